"""Several tomograms at a time on one cluster; one that fails fails alone.

How do the workers stay busy while a tomogram begins or ends?

1. A few driver threads take tomograms in the order of the dataset. What they ask of the workers has
   the priority of their place: the tasks of later tomograms fill in where earlier ones have none.
2. Whatever goes wrong with a tomogram ends that tomogram, with its reason; the thread takes the
   next. Dask blames a worker's death on all tasks that waited there, so a tomogram that was given
   up for it while others ran is tried once more at the end, with nothing beside it.
3. An interrupt, or the loss of the workers, stops all threads: submitted work is cancelled, and
   tomograms that were not finished are reported as that. What they finished is kept on disk.

Every worker thread has one task at a time, as ever: more tomograms do not take more memory there.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from importlib import import_module
from typing import TYPE_CHECKING

from .core.errors import DeepictError
from .engine.arrays import explain
from .engine.turns import Turns, died_with_worker
from .jobs.runs.summary import TomogramReport

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .engine import Workers

__all__ = ["Batch", "tomograms_in_flight"]

log = logging.getLogger("deepict_dask")

_LOOK_S = 0.2
_PATIENCE_S = 30.0
"""How long an interrupted run waits for its threads."""
_IMPORTED_BY_THREADS = ("pandas", "pyarrow.csv", "pyarrow.parquet", "zarr")


def tomograms_in_flight(n_workers: int) -> int:
    """Return how many tomograms to run at a time by default.

    Two hide the end of one behind the middle of the next; many workers need more, since a small
    tomogram has fewer windows than there are workers.

    Examples
    --------
    >>> [tomograms_in_flight(n) for n in (1, 8, 16, 64, 1000)]
    [2, 3, 4, 8, 8]
    """
    return min(8, 2 + n_workers // 8)


class Batch:
    """Runs tomograms, a few at a time; holds what became of each, also after an interrupt.

    Parameters
    ----------
    workers
        The cluster that all share.
    names
        The tomograms, in order.
    run_one
        Runs the tomogram of a place in the order, on workers that have its priority; returns its
        picks by folder. Called in threads.
    n_at_once
        How many tomograms to run at a time.
    note
        Told each time that a tomogram begins (with no report) or ends. Called in threads.

    Examples
    --------
    >>> from deepict_dask.core.errors import ConfigError
    >>> from deepict_dask.engine import ClusterSettings, connect
    >>> def run_one(place, workers):
    ...     if place == 1:
    ...         raise ConfigError("no")
    ...     return {"picks": workers.client.submit(sum, [place, 1]).result()}
    >>> with connect(ClusterSettings(kind="threads", workers=1, memory="1GiB")) as workers:
    ...     batch = Batch(workers, ["a", "b", "c"], run_one, n_at_once=2)
    ...     batch.run()
    >>> [(one.name, one.state, one.n_picks) for one in batch.reports]
    [('a', 'done', {'picks': 1}), ('b', 'failed', {}), ('c', 'done', {'picks': 3})]
    """

    def __init__(
        self,
        workers: Workers,
        names: Sequence[str],
        run_one: Callable[[int, Workers], dict[str, int]],
        *,
        n_at_once: int,
        note: Callable[[str, TomogramReport | None], None] = lambda _name, _report: None,
    ) -> None:
        self._names, self._run_one, self._note = names, run_one, note
        self._n_at_once = max(1, min(n_at_once, len(names)))
        self._turns = Turns(workers)
        self._reports = {name: _unfinished(name, "not begun") for name in names}
        self._waiting = deque(range(len(names)))
        self._again: list[int] = []
        """Tomograms to be tried once more, alone."""
        self._fatal: BaseException | None = None
        self._end = "interrupted"
        """Why the run ends before its time, if it does."""

    @property
    def reports(self) -> tuple[TomogramReport, ...]:
        """What became of the tomograms, in their order."""
        return tuple(self._reports[name] for name in self._names)

    def run(self) -> None:
        """Run all tomograms.

        Raises
        ------
        KeyboardInterrupt
            The run was interrupted; threads have ended, or were waited for for half a minute.
        """
        for name in _IMPORTED_BY_THREADS:  # at the same time, threads can see half a module
            import_module(name)
        self._run_threads(self._n_at_once)
        self._waiting.extend(sorted(self._again))
        self._run_threads(1)

    def _run_threads(self, n: int) -> None:
        """Work through the tomograms that wait."""
        threads = [
            threading.Thread(target=self._drive, args=(n > 1,), daemon=True, name=f"tomogram-{i}")
            for i in range(min(n, len(self._waiting)))
        ]
        try:
            for thread in threads:
                thread.start()
            _join(threads)
        except BaseException:
            self._turns.stop()
            _join(threads, patience_s=_PATIENCE_S)
            raise
        if self._fatal is not None:
            raise self._fatal

    def _drive(self, has_company: bool) -> None:  # noqa: FBT001 - an argument of a thread
        """Take one tomogram after another: the body of a thread."""
        while not self._turns.is_stopped:
            try:
                place = self._waiting.popleft()
            except IndexError:
                return
            try:
                self._run_place(place, has_company=has_company)
            except BaseException as error:  # of this program, not of a tomogram
                self._fatal = self._fatal or error
                self._turns.stop()

    def _run_place(self, place: int, *, has_company: bool) -> None:
        """Run one tomogram and keep what became of it."""
        name, start = self._names[place], time.monotonic()
        self._reports[name] = _unfinished(name, "interrupted")
        self._note(name, None)
        try:
            counts = self._run_one(place, self._turns.workers(place))
            report = TomogramReport(name, counts, seconds=time.monotonic() - start)
        except Exception as error:
            report = self._failed(name, error, time.monotonic() - start)
            if has_company and report.error is not None and died_with_worker(error):
                log.info("%s: its workers died (%s); it is tried again, alone", name, error)
                self._again.append(place)
                return
        self._reports[name] = report
        self._note(name, report)

    def _failed(self, name: str, error: Exception, seconds: float) -> TomogramReport:
        """Return why a tomogram was not finished: by itself, or because the run is at its end."""
        if not self._turns.is_stopped and not self._turns.is_connected:
            self._end = "the connection to the workers was lost"  # before others see a stopped run
            log.error("%s; no more tomograms are begun", self._end)
            self._turns.stop()
        if self._turns.is_stopped:
            return _unfinished(name, self._end, seconds)
        log.debug("%s failed", name, exc_info=error)
        known = error if isinstance(error, DeepictError) else explain(error, "the run", name)
        return TomogramReport(name, error=known, seconds=seconds, is_done=False)


def _unfinished(name: str, why: str, seconds: float = 0.0) -> TomogramReport:
    """Return the report of a tomogram that failed in nothing of its own."""
    reason = f"{why}; run the same command again to continue"
    return TomogramReport(name, seconds=seconds, is_done=False, reason=reason)


def _join(threads: Sequence[threading.Thread], patience_s: float | None = None) -> None:
    """Wait for threads, so that an interrupt is seen at once; for ever, or for some time."""
    until = None if patience_s is None else time.monotonic() + patience_s
    while any(thread.is_alive() for thread in threads):
        if until is not None and time.monotonic() > until:
            return
        for thread in threads:
            thread.join(_LOOK_S)
