"""A few threads share a list of requests, and a Ctrl-C leaves at once.

The threads are daemons: one that waits for a silent server does not keep the program alive. An
error of one request is its result; a defect, or a Ctrl-C, stops all.
"""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from .remote import FetchError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .web import Web

__all__ = ["each"]

Item = TypeVar("Item")
Result = TypeVar("Result")

_SECONDS_TO_STOP = 2.0
_TICK_S = 0.2


def each(
    web: Web,
    work: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    tick: Callable[[], None] = lambda: None,
) -> list[Result | FetchError]:
    """Do work on items in threads.

    Parameters
    ----------
    web
        Is stopped on a Ctrl-C or a defect.
    work
        Called with one item, in a thread.
    items
        Taken in this order.
    workers
        How many at a time.
    tick
        Called in the caller's thread several times a second.

    Returns
    -------
    list
        For each item what ``work`` returned, or the `FetchError` (any `OSError` becomes one).

    Examples
    --------
    >>> from deepict_dask.fetch import Web
    >>> with Web() as web:
    ...     each(web, abs, [-2, -1], workers=2)
    [2, 1]
    """
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, Result | BaseException]] = queue.SimpleQueue()
    for number in range(len(items)):
        todo.put(number)

    def serve() -> None:
        while not web.stopped and not todo.empty():
            number = _taken(todo)
            if number is not None:
                done.put((number, _outcome(work, items[number])))

    threads = [threading.Thread(target=serve, daemon=True) for _ in items[:workers]]
    for thread in threads:
        thread.start()
    try:
        return _gather(done, len(items), tick)
    except BaseException:
        web.stop()
        _leave(threads)
        raise


def _taken(todo: queue.SimpleQueue[int]) -> int | None:
    """Return the next number, or None if another thread was faster."""
    try:
        return todo.get_nowait()
    except queue.Empty:
        return None


def _outcome(work: Callable[[Item], Result], item: Item) -> Result | BaseException:
    """Return what work returns or raises."""
    try:
        return work(item)
    except FetchError as error:
        return error
    except OSError as error:
        failed = FetchError(f"{error.filename or 'writing'}: {error.strerror or error}")
        failed.__cause__ = error
        return failed
    except Exception as error:
        return error


def _gather(
    done: queue.SimpleQueue[tuple[int, Result | BaseException]],
    n_items: int,
    tick: Callable[[], None],
) -> list[Result | FetchError]:
    """Wait for all results; raise the first defect."""
    results: dict[int, Result | FetchError] = {}
    while len(results) < n_items:
        tick()
        try:
            number, result = done.get(timeout=_TICK_S)
        except queue.Empty:
            continue
        if isinstance(result, BaseException) and not isinstance(result, FetchError):
            raise result
        results[number] = result
    tick()
    return [results[number] for number in range(n_items)]


def _leave(threads: list[threading.Thread]) -> None:
    """Give threads a moment to write what they hold."""
    end = time.monotonic() + _SECONDS_TO_STOP
    for thread in threads:
        thread.join(max(end - time.monotonic(), 0.0))
