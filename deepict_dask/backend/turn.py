"""One task of a process at a time on the GPU, while others read and write.

A worker with a GPU has a few threads, each with a task of its own. A task has its turn from the
upload of its windows to the download of what it made, so a GPU never holds the windows of two; what
it needs before and leaves after is read and written meanwhile by the other threads. All threads use
CUDA's default stream, in which the turns follow one another.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["after_turn", "device_turn"]


class _OfThread(threading.local):
    """What a thread has put off until its turn ends; None where it has no turn."""

    put_off: list[Callable[[], object]] | None = None


_ONE = threading.Lock()
_OF_THREAD = _OfThread()


@contextmanager
def device_turn() -> Iterator[None]:
    """Wait for the GPU, have it alone in this process, and then do what was put off.

    A turn within a turn is part of it.

    Examples
    --------
    >>> with device_turn():
    ...     after_turn(lambda: print("written"))
    ...     print("computed")
    computed
    written
    """
    if _OF_THREAD.put_off is not None:
        yield
        return
    put_off = _OF_THREAD.put_off = []
    try:
        with _ONE:
            yield
    finally:
        _OF_THREAD.put_off = None
    for action in put_off:
        action()


def after_turn(action: Callable[[], object]) -> None:
    """Do something that needs no GPU once this thread's turn has ended; at once without a turn.

    Actions are done in their order, by the same thread: what they raise is raised where the turn
    ends. They are dropped where the turn itself failed.

    Examples
    --------
    >>> after_turn(lambda: print("written"))
    written
    """
    if _OF_THREAD.put_off is None:
        action()
    else:
        _OF_THREAD.put_off.append(action)
