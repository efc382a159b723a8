"""Progress of stages, several at a time: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Progress", "one_at_a_time"]

_SECONDS_BETWEEN_LINES = 30.0


def one_at_a_time(say: Callable[[str], None]) -> Callable[[str], None]:
    """Return what says a line as ``say`` does, and may be called by several threads.

    Examples
    --------
    >>> one_at_a_time(print)("done")
    done
    """
    lock = threading.Lock()

    def locked(text: str) -> None:
        with lock:
            say(text)

    return locked


class Progress:
    """Shows how far stages are; the engine only calls ``advance``. Threads may share it.

    Parameters
    ----------
    shown
        False shows nothing.

    Examples
    --------
    >>> with Progress(shown=False).named("TS_1").stage("segment", 3) as advance:
    ...     advance(1)
    """

    def __init__(self, *, shown: bool = True) -> None:
        self._shown = shown
        self._bars = _Bars()
        self._of = ""

    def named(self, tomogram: str) -> Progress:
        """Return the same with the name of a tomogram before that of each stage."""
        other = Progress(shown=self._shown)
        other._bars, other._of = self._bars, f"{tomogram}: " if tomogram else ""
        return other

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
        """Show one stage of ``total`` blocks, of which ``done`` were finished before."""
        name = self._of + name
        if self._shown and done:
            print(f"{name}: continuing, {done} of {total} blocks are done", file=sys.stderr)
        if not self._shown:
            yield lambda _n: None
        elif sys.stderr.isatty():
            with self._bars.bar(name, total, done) as advance:
                yield advance
        else:
            yield _lines(name, total, done)


class _Bars:
    """The bars of all stages that run; a terminal can show one such group only."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_running = 0
        self._display: Any = None

    @contextmanager
    def bar(self, name: str, total: int, done: int) -> Iterator[Callable[[int], None]]:
        """Show a bar, together with those that are there."""
        with self._lock:
            if self._n_running == 0:
                self._display = _new_display()
                self._display.start()
            self._n_running += 1
            display = self._display
            task = display.add_task(name, total=total, completed=done)
        try:
            yield lambda n: display.advance(task, n)
        finally:
            with self._lock:
                self._n_running -= 1
                if self._n_running == 0:
                    display.stop()
                else:
                    display.remove_task(task)


def _new_display() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    # Lines of results go to where they were sent, even while bars are shown.
    return RichProgress(*columns, console=Console(stderr=True), redirect_stdout=sys.stdout.isatty())


def _lines(name: str, total: int, done: int) -> Callable[[int], None]:
    """Print a line now and then, and one at the end of the stage."""
    state = {"done": done, "last": time.monotonic()}

    def advance(n: int) -> None:
        state["done"] += n
        now = time.monotonic()
        if state["done"] == total or now - state["last"] > _SECONDS_BETWEEN_LINES:
            state["last"] = now
            line = f"{name}: {int(state['done'])} of {total} blocks\n"
            print(line, end="", file=sys.stderr, flush=True)  # in one write: threads share it

    return advance
