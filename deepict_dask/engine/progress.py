"""Progress of stages, several at a time: bars on a terminal, plain lines elsewhere.

A line says tomogram, stage, blocks done, their rate, the time left and the memory of the fullest
worker. The first 20 lines come as they are made; then there is one in 10 seconds at most, and one
for the end of each stage that took as long, so that the log of a thousand tomograms can be read.
"""

from __future__ import annotations

import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .budget import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Progress", "Reached", "in_time", "one_at_a_time"]

_SECONDS_BETWEEN_LINES = 10.0
_FREE_LINES = 20
_SECONDS_BETWEEN_LOOKS = 2.0
"""Between two looks at the memory of the workers."""


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


@dataclass(frozen=True)
class Reached:
    """How far a stage is.

    Examples
    --------
    >>> print(Reached("segment", 12, 40, tomogram="TS_1", per_s=0.31, memory_bytes=812 << 20))
    TS_1: segment: 12 of 40 blocks, 0.31 a second, 1 min 30 s left, workers have up to 812.0 MiB
    >>> print(Reached("label", 3, 9, is_resumed=True))
    label: continuing, 3 of 9 blocks are done
    """

    stage: str
    done: int
    total: int
    """Blocks."""
    tomogram: str = ""
    """Nothing where there is only one."""
    per_s: float | None = None
    """Blocks a second since the stage began."""
    memory_bytes: int | None = None
    """Of the fullest worker."""
    is_resumed: bool = False
    """Whether this is what an earlier run has left."""

    @property
    def left_s(self) -> float | None:
        """Seconds to the end of the stage at this rate, None where that is not known."""
        return (self.total - self.done) / self.per_s if self.per_s else None

    @property
    def facts(self) -> dict[str, Any]:
        """All of it by name, for a log that programs read."""
        left = self.left_s
        return {
            "stage": self.stage, "done": self.done, "total": self.total,
            "tomogram": self.tomogram or None, "memory_bytes": self.memory_bytes,
            "per_s": self.per_s and float(f"{self.per_s:.3g}"),
            "left_s": None if left is None else round(left, 1),
        }  # fmt: skip

    def __str__(self) -> str:
        where = f"{self.tomogram}: {self.stage}" if self.tomogram else self.stage
        if self.is_resumed:
            return f"{where}: continuing, {self.done} of {self.total} blocks are done"
        parts = [f"{where}: {self.done} of {self.total} blocks", *self.rate_and_memory()]
        if self.left_s and self.done < self.total:
            parts.insert(2, f"{in_time(self.left_s)} left")
        return ", ".join(parts)

    def rate_and_memory(self) -> list[str]:
        """Return the rate and the memory in words, as far as they are known."""
        rate = [] if self.per_s is None else [f"{self.per_s:.2g} a second"]
        memory = self.memory_bytes
        return rate + ([] if memory is None else [f"workers have up to {format_bytes(memory)}"])


def in_time(seconds: float) -> str:
    """Return a time in words.

    Examples
    --------
    >>> in_time(4.2), in_time(95), in_time(7300)
    ('4 s', '1 min 35 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Progress:
    """Shows how far stages are; the engine only calls ``advance``. Threads may share it.

    Parameters
    ----------
    shown
        False shows nothing on the screen: no bars, and where ``tell`` is not given no lines.
    tell
        Receives lines, on a terminal beside the bars; by default they are printed where no
        terminal is. What `line` is given comes as text.
    memory
        Returns the memory of the fullest worker in bytes.

    Examples
    --------
    >>> with Progress(shown=False).named("TS_1").stage("segment", 3) as advance:
    ...     advance(1)
    >>> with Progress(shown=False, tell=lambda reached: print(reached.done)).stage("a", 2) as go:
    ...     go(2)
    2
    """

    def __init__(
        self,
        *,
        shown: bool = True,
        tell: Callable[[Reached | str], None] | None = None,
        memory: Callable[[], int | None] | None = None,
    ) -> None:
        self._shown, self._given = shown, tell
        self._shared = _Shared(memory)
        self._of = ""

    def named(self, tomogram: str) -> Progress:
        """Return the same with the name of a tomogram before that of each stage."""
        other = Progress(shown=self._shown, tell=self._given)
        other._shared, other._of = self._shared, tomogram
        return other

    def line(self, text: str) -> None:
        """Show a line about the whole of the work, such as what is planned."""
        if self._given is not None:
            self._given(text)
        elif self._shown:
            _print(text)

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
        """Show one stage of ``total`` blocks, of which ``done`` were finished before."""
        bars = self._shown and sys.stderr.isatty()
        tell = self._given or (_print if self._shown and not bars else None)
        begun = Reached(name, done, total, tomogram=self._of)
        if done and (tell or bars):
            (tell or _print)(replace(begun, is_resumed=True))
        watch = _Watch(begun, self._shared)
        with self._shared.bars.bar(watch) if bars else _no_bar() as show:

            def advance(n: int) -> None:
                reached = watch.advance(n)
                show(n, reached)
                if tell and watch.is_worth_telling():
                    tell(watch.with_memory())

            yield advance


@contextmanager
def _no_bar() -> Iterator[Callable[[int, Reached], None]]:
    """Show nothing."""
    yield lambda _n, _reached: None


def _print(line: Reached | str) -> None:
    """Print a line."""
    print(f"{line}\n", end="", file=sys.stderr, flush=True)  # in one write: threads share it


class _Shared:
    """What all stages of a command share: bars, the pace of lines, the last look at the memory."""

    def __init__(self, memory: Callable[[], int | None] | None) -> None:
        self.bars = _Bars()
        self._memory = memory
        self._lock = threading.Lock()
        self._n_lines, self._last_line = 0, -_SECONDS_BETWEEN_LINES
        self._last_look = -_SECONDS_BETWEEN_LOOKS
        self._bytes: int | None = None

    def may_tell(self) -> bool:
        """Say whether it is time for a line, which then counts as told."""
        now = time.monotonic()
        with self._lock:
            is_time = now - self._last_line >= _SECONDS_BETWEEN_LINES
            if not is_time and self._n_lines >= _FREE_LINES:
                return False
            self._n_lines, self._last_line = self._n_lines + 1, now
            return True

    def memory_bytes(self) -> int | None:
        """Return the memory of the fullest worker, as seen a moment ago."""
        if self._memory is None:
            return None
        now = time.monotonic()
        with self._lock:
            is_time = now - self._last_look >= _SECONDS_BETWEEN_LOOKS
            if is_time:
                self._last_look = now
        if is_time:
            self._bytes = self._memory()
        return self._bytes


class _Watch:
    """Counts one stage."""

    def __init__(self, begun: Reached, shared: _Shared) -> None:
        self._begun = self.reached = begun
        self._shared = shared
        self._start = self._last = time.monotonic()
        self._lock = threading.Lock()

    def advance(self, n: int) -> Reached:
        """Count ``n`` more blocks; return how far the stage is."""
        with self._lock:
            done = self.reached.done + n
            seconds = time.monotonic() - self._start
            per_s = (done - self._begun.done) / seconds if seconds > 0 else None
            self.reached = replace(self._begun, done=done, per_s=per_s)
            return self.reached

    def is_worth_telling(self) -> bool:
        """Say whether the stage has ended or was not told of for a while, and a line may come.

        The end of a long stage is always told.
        """
        now = time.monotonic()
        has_ended = self.reached.done >= self.reached.total
        if not has_ended and now - self._last < _SECONDS_BETWEEN_LINES:
            return False
        is_long = now - self._start >= _SECONDS_BETWEEN_LINES
        if not self._shared.may_tell() and not (has_ended and is_long):
            return False
        self._last = now
        return True

    def with_memory(self) -> Reached:
        """Return how far the stage is, and the memory."""
        return replace(self.reached, memory_bytes=self._shared.memory_bytes())


class _Bars:
    """The bars of all stages that run; a terminal can show one such group only."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_running = 0
        self._display: Any = None

    @contextmanager
    def bar(self, watch: _Watch) -> Iterator[Callable[[int, Reached], None]]:
        """Show a bar, together with those that are there."""
        begun = watch.reached
        name = f"{begun.tomogram}: {begun.stage}" if begun.tomogram else begun.stage
        with self._lock:
            if self._n_running == 0:
                self._display = _new_display()
                self._display.start()
            self._n_running += 1
            display = self._display
            task = display.add_task(name, total=begun.total, completed=begun.done, said="")

        def show(n: int, _reached: Reached) -> None:
            said = ", ".join(watch.with_memory().rate_and_memory())
            display.update(task, advance=n, said=said)

        try:
            yield show
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
        TextColumn("{task.fields[said]}"),
    )
    # Lines of results go to where they were sent, even while bars are shown.
    return RichProgress(*columns, console=Console(stderr=True), redirect_stdout=sys.stdout.isatty())
