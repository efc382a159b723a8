"""A run that is told to stop, by Ctrl-C or by SIGTERM (a batch system, a shutdown, `kill`).

Both end it the same way: submitted work is cancelled, the workers are stopped, the journal and the
summary say what was not finished, and one message names how to go on. The exit code is that of a
program which the signal ended: 130 or 143.
"""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..core.errors import WorkFailedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

__all__ = ["StoppedError", "Terminated", "stopped_cleanly"]


class Terminated(KeyboardInterrupt):
    """SIGTERM came: whatever treats a Ctrl-C well treats it as well."""


class StoppedError(WorkFailedError):
    """A run was told to stop, and did."""

    def __init__(self, how: str, number: signal.Signals) -> None:
        super().__init__(
            f"{how}; what is finished is kept: run the same command again (--resume, which is the "
            "default) to continue"
        )
        self.exit_code = 128 + number


@contextmanager
def stopped_cleanly() -> Iterator[None]:
    """Let SIGTERM raise as Ctrl-C does, and say of both in words what to do next.

    Raises
    ------
    StoppedError
        One of them came.

    Examples
    --------
    >>> import os
    >>> with stopped_cleanly():
    ...     os.kill(os.getpid(), signal.SIGTERM)
    Traceback (most recent call last):
    ...
    deepict_dask.cli.stopping.StoppedError: stopped by SIGTERM; what is finished is kept: ...
    """
    signals = _Signals()
    try:
        with signals.heeded():
            yield
    except KeyboardInterrupt:
        if signals.terminated:
            raise StoppedError("stopped by SIGTERM", signal.SIGTERM) from None
        raise StoppedError("interrupted", signal.SIGINT) from None


class _Signals:
    """Raises at SIGINT, and at the first SIGTERM: what ends the work is not disturbed by another.

    SIGTERM is passed on as SIGINT, since that is held back while workers start and end.
    """

    def __init__(self) -> None:
        self.terminated = False

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Heed signals until the block ends."""
        if threading.current_thread() is not threading.main_thread():
            yield  # Python gives signals to the main thread only
            return
        handlers = {signal.SIGTERM: self._terminate, signal.SIGINT: self._interrupt}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)

    def _terminate(self, number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        self.terminated = True
        signal.raise_signal(signal.SIGINT)

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        raise Terminated("by SIGTERM") if self.terminated else KeyboardInterrupt
