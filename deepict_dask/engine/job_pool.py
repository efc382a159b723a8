"""Keeps a number of jobs running in a batch system, for as long as their workers are needed.

Dask knows which workers are there, the batch system knows which jobs. Every few seconds:

1. A job whose workers are there is well; the batch system is not even asked.
2. A job that has lost its workers (killed, at its time limit, its node gone) is replaced: at once
   if it has left the queue, after a minute if not, since a nanny may be starting them again.
3. A job that left the queue before any worker came is replaced too. If that goes on, something is
   wrong with the jobs themselves: no more are sent, and the end of a job's messages is shown.

Dask's own ways do less: ``scale`` replaces no lost job, and ``adapt`` none with several workers.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..core.errors import ClusterError
from .batch_systems import BatchSystem, make_job

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from ..config.profile import ClusterProfile

__all__ = ["JobPool"]

log = logging.getLogger("deepict_dask")

_RESTART_S = 60.0
"""A nanny may take so long to start its workers again."""
_SUBMITTED_S = 5.0
"""A job may take so long to show up in the queue."""
_FIRST_NEWS_S, _NEWS_S = 30.0, 900.0
"""After how long a user is told what the queue says, first and then again."""


@dataclass
class _Slot:
    """One of the jobs that are kept running."""

    group: str
    job: Any
    submitted: float
    arrived: bool = False
    """Whether a worker of this job has ever come."""
    missing_since: float | None = None

    @property
    def number(self) -> str:
        """Number of the job in the queue."""
        return str(self.job.job_id)

    def has_worker(self, names: Iterable[str]) -> bool:
        """Say whether a worker of this job is there: NAME, or NAME-0 to NAME-N."""
        own = self.job.name
        return any(name == own or name.startswith(f"{own}-") for name in names)


@dataclass
class JobPool:
    """Jobs of a batch system that are replaced when they are lost.

    Parameters
    ----------
    system
        The batch system.
    profiles
        What the jobs of each group ask for.
    address
        Of the scheduler that workers connect to.
    present
        Returns the names of the workers that are connected.
    on_failure
        Called once, from another thread, when no worker is left and none will come.
    """

    system: BatchSystem
    profiles: dict[str, ClusterProfile]
    address: str
    present: Callable[[], set[str]]
    on_failure: Callable[[], None] = lambda: None
    problem: str | None = None
    """Why there will be no more workers, once that is so."""
    replaced: int = 0
    """How many jobs were sent in place of lost ones."""
    _slots: list[_Slot] = field(default_factory=list)
    _counter: Any = field(default_factory=itertools.count)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _failures: Counter[str] = field(default_factory=Counter)
    """Jobs of a group that ended, one after another, before a worker came."""
    _none_since: dict[str, float] = field(default_factory=dict)
    """Since when a group has had no worker."""
    _told: float = 0.0

    def start(self) -> None:
        """Send the jobs, and look after them from now on.

        Raises
        ------
        ClusterError
            The batch system refuses one; those sent before are cancelled.
        """
        try:
            for group, profile in self.profiles.items():
                for _ in range(profile.jobs):
                    self._slots.append(self._sent(group))
        except BaseException:
            self.close()
            raise
        self._none_since = dict.fromkeys(self.profiles, time.monotonic())
        self._thread = threading.Thread(target=self._watch, name="jobs", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait for the first worker of every group.

        Raises
        ------
        ClusterError
            None came in time, or none will; the message has what the queue says.
        """
        while self._groups_without(self.present()):
            if self.problem is not None:
                raise ClusterError(self.problem)
            time.sleep(0.2)

    def close(self) -> None:
        """Cancel all jobs. May be called twice."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        slots, self._slots = self._slots, []
        _run(_cancelled([slot.job for slot in slots]))

    def _keeps_failing(self, group: str) -> bool:
        """Say whether as many jobs of a group ended without a worker as are worth trying."""
        n_slots = sum(slot.group == group for slot in self._slots)
        return self._failures[group] >= max(3, n_slots)

    def _groups_without(self, names: set[str]) -> list[str]:
        """Return the groups of which no worker is there."""
        here = {slot.group for slot in self._slots if slot.has_worker(names)}
        return [group for group in self.profiles if group not in here]

    def _sent(self, group: str) -> _Slot:
        """Send one job of a group to the batch system."""
        name = f"{group}{next(self._counter)}"
        job = make_job(self.system, self.profiles[group], self.address, name)
        try:
            _run(job.start())
        except (RuntimeError, OSError, ValueError) as error:
            raise ClusterError(
                f"--cluster: expected {self.system.title} to take a job, found: "
                f"{_in_short(error)}; check queue, account, cores, memory, walltime and gpus "
                "in the profile"
            ) from error
        return _Slot(group, job, time.monotonic())

    def _watch(self) -> None:
        """Look after the jobs until the pool is closed."""
        interval = min(profile.poll_s for profile in self.profiles.values())
        while not self._stop.wait(interval) and self.problem is None:
            try:
                self.tend()
            except Exception:
                log.exception("looking after the jobs failed; trying again")

    def tend(self) -> None:
        """Look after the jobs once."""
        now, names = time.monotonic(), self.present()
        absent = []
        for slot in self._slots:
            if slot.has_worker(names):
                if not slot.arrived:
                    self._failures[slot.group] = 0
                slot.arrived, slot.missing_since = True, None
            else:
                absent.append(slot)
        without = self._groups_without(names)
        self._none_since |= {group: now for group in self.profiles if group not in without}
        if absent:
            states = self.system.states()
            for slot in absent:
                if self._is_lost(slot, states, now):
                    self._replace(slot)
            for group in without:
                self._judge([slot for slot in self._slots if slot.group == group], states, now)

    def _is_lost(self, slot: _Slot, states: dict[str, str] | None, now: float) -> bool:
        """Say whether a job without workers will get none any more."""
        queued = states is None or slot.number in states
        if slot.arrived:
            slot.missing_since = slot.missing_since or now
            return not queued or now - slot.missing_since > _RESTART_S
        return not queued and now - slot.submitted > _SUBMITTED_S

    def _replace(self, slot: _Slot) -> None:
        """Send another job in place of a lost one, unless jobs keep failing."""
        if not slot.arrived:
            if self._keeps_failing(slot.group):
                return
            self._failures[slot.group] += 1
        log.warning("job %s of %s is lost; sending another", slot.number, self.system.title)
        _run(_cancelled([slot.job]))
        try:
            fresh = self._sent(slot.group)
        except ClusterError as error:
            log.warning("%s", error)
            return
        self._slots[self._slots.index(slot)] = fresh
        self.replaced += 1

    def _judge(self, slots: list[_Slot], states: dict[str, str] | None, now: float) -> None:
        """Of a group without workers: tell what the queue says, or give up if none will come."""
        group, title = slots[0].group, self.system.title
        limit, waited = self.profiles[group].wait_s, now - self._none_since[group]
        found = [(states or {}).get(slot.number, "nothing of it") for slot in slots]
        said = ", ".join(f"{found.count(state)} x {state}" for state in sorted(set(found)))
        queued = states is None or any(slot.number in states for slot in slots)
        fresh = any(now - slot.submitted <= _SUBMITTED_S for slot in slots)
        if self._keeps_failing(group) and not queued and not fresh:
            self._give_up(
                f"{self._failures[group]} jobs of {title} ended before a worker came; "
                f"{self._last_words(slots)}"
            )
        elif all(re.search(self.system.hopeless, state) for state in found):
            self._give_up(
                f"the jobs will never start: {title} says {said}; check queue, cores, memory, "
                "walltime and gpus in the profile"
            )
        elif waited > limit:
            self._give_up(
                f"expected a worker within {limit:.0f} s, found none: {title} says {said}; "
                "run again when there is room, or give a longer wait_s in the profile"
            )
        elif waited > _FIRST_NEWS_S and now - self._told > _NEWS_S:
            self._told = now
            log.warning("waiting for workers: %s says %s", title, said)

    def _last_words(self, slots: list[_Slot]) -> str:
        """Return the end of a failed job's messages, and where they are."""
        folder = self.profiles[slots[0].group].log_directory.expanduser().absolute()
        numbers = {slot.number for slot in slots}
        files = [p for p in folder.glob("*") if numbers & {*re.findall(r"\d+", p.name)}]
        written = sorted((p for p in files if p.stat().st_size), key=lambda p: p.stat().st_mtime)
        if not written:
            return f"see their messages in {folder}"
        lines = written[-1].read_text(errors="replace").strip().splitlines()[-3:]
        return f"the last messages of {written[-1]}: {' / '.join(lines)}"

    def _give_up(self, reason: str) -> None:
        """Send no more jobs, and say why."""
        self.problem = f"--cluster: {reason}"
        self.on_failure()


async def _cancelled(jobs: list[Any]) -> None:
    """Cancel jobs; one that is gone already is no error."""
    await asyncio.gather(*(job.close() for job in jobs), return_exceptions=True)


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end what dask-jobqueue does; in a thread, as a notebook has a loop of its own."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(asyncio.run, work).result()


def _in_short(error: BaseException) -> str:
    """Return what a batch system's command said, without our words around it."""
    text = str(error)
    said = re.search(r"stderr:\n(.*)", text, re.DOTALL)
    return " ".join((said[1] if said and said[1].strip() else text).split())
