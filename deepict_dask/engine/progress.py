"""Progress of a stage: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Progress"]

_SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Shows how far a stage is; the engine only calls ``advance``.

    Parameters
    ----------
    shown
        False shows nothing.

    Examples
    --------
    >>> with Progress(shown=False).stage("segment", 3) as advance:
    ...     advance(1)
    """

    def __init__(self, *, shown: bool = True) -> None:
        self._shown = shown

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
        """Show one stage of ``total`` blocks, of which ``done`` were finished before."""
        if self._shown and done:
            print(f"{name}: continuing, {done} of {total} blocks are done", file=sys.stderr)
        if not self._shown:
            yield lambda _n: None
        elif sys.stderr.isatty():
            with _bar(name, total, done) as advance:
                yield advance
        else:
            yield _lines(name, total, done)


@contextmanager
def _bar(name: str, total: int, done: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(name, total=total, completed=done)
        yield lambda n: bars.advance(task, n)


def _lines(name: str, total: int, done: int) -> Callable[[int], None]:
    """Print a line now and then, and one at the end of the stage."""
    state = {"done": done, "last": time.monotonic()}

    def advance(n: int) -> None:
        state["done"] += n
        now = time.monotonic()
        if state["done"] == total or now - state["last"] > _SECONDS_BETWEEN_LINES:
            state["last"] = now
            print(f"{name}: {int(state['done'])} of {total} blocks", file=sys.stderr, flush=True)

    return advance
