"""How far is a fetch: a bar of bytes on a terminal, a line now and then elsewhere; on stderr."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..engine.budget import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["show_bytes"]

_SECONDS_BETWEEN_LINES = 30.0


@contextmanager
def show_bytes(total_bytes: int, *, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Give a function to call with the bytes that are here by now, from one thread.

    Parameters
    ----------
    total_bytes
        What there will be.
    shown
        False shows nothing.

    Examples
    --------
    >>> with show_bytes(10, shown=False) as reached:
    ...     reached(5)
    """
    if not shown:
        yield lambda _size: None
    elif sys.stderr.isatty():
        with _bar(total_bytes) as reached:
            yield reached
    else:
        yield _lines(total_bytes)


@contextmanager
def _bar(total_bytes: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task("fetch", total=total_bytes)
        yield lambda size: bars.update(task, completed=size)


def _lines(total_bytes: int) -> Callable[[int], None]:
    last = time.monotonic()

    def reached(size_bytes: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > _SECONDS_BETWEEN_LINES:
            last = now
            of = f"{format_bytes(size_bytes)} of {format_bytes(total_bytes)}"
            print(f"fetch: {of}", file=sys.stderr, flush=True)

    return reached
