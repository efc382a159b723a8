"""Reads and writes that fail for a moment are tried again, a few times and with growing pauses.

Network storage answers "input/output error" or "stale file handle" while a server restarts or a
folder was renamed, and works again seconds later. A full disk, a missing file or a damaged one
does not get better by waiting and fails at once.
"""

from __future__ import annotations

import errno
import time
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ..core.errors import WorkFailedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..core.geometry import Box
    from ..core.volume import VolumeReader, VolumeWriter

__all__ = ["PAUSES_S", "patiently", "read_patiently", "write_patiently"]

T = TypeVar("T")

PAUSES_S = (0.5, 2.0, 8.0)
"""Pauses between the tries, in seconds: four tries, eleven seconds."""
_PASSING = frozenset({
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EREMOTEIO, errno.ENOLINK,
    errno.ECONNRESET, errno.ECONNABORTED, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN,
    errno.EHOSTUNREACH, errno.ENOTCONN, errno.ESHUTDOWN,
})  # fmt: skip


def patiently(action: Callable[[], T], what: str) -> T:
    """Return what an action returns; try again where the storage fails for a moment.

    Parameters
    ----------
    action
        Reads or writes; may be done again after any failure.
    what
        For the message, such as "reading tomo.mrc".

    Raises
    ------
    WorkFailedError
        It failed each time for a reason that could have passed.
    Exception
        What the action raised, where waiting cannot help.

    Examples
    --------
    >>> patiently(lambda: 3, "counting")
    3
    """
    for pause in (*PAUSES_S, None):
        try:
            return action()
        except Exception as error:
            reason = _passing_reason(error)
            if reason is None:
                raise
            if pause is None:
                raise WorkFailedError(
                    f"{what}: expected storage that answers, found {reason.strerror} "
                    f"{len(PAUSES_S) + 1} times in {sum(PAUSES_S):.0f} s; check the disk or the "
                    "network storage, then run the same command again to continue"
                ) from error
            time.sleep(pause)
    raise AssertionError  # the last try returns or raises


def read_patiently(source: VolumeReader, box: Box) -> Any:
    """Return a box of a volume; errors are those of `patiently`."""
    return patiently(partial(source.read, box), f"reading {source.path}")


def write_patiently(sink: VolumeWriter, box: Box, array: Any) -> None:
    """Write a box of a volume; errors are those of `patiently`."""
    patiently(partial(sink.write, box, array), f"writing {sink.path}")


def _passing_reason(error: BaseException) -> OSError | None:
    """Return the failure of the storage behind an error, if it is of a kind that may pass."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in _PASSING:
            return cause
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what led to it: readers put their own words around what they met."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__
