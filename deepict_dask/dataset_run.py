"""One run over a dataset, whatever is made of each tomogram: one driver for an output folder.

1. The output folder is locked, and what the run means to do is written down (`jobs.runs.journal`).
2. Tomograms run side by side (`batch`).
3. What became of each is shown and written to ``summary.csv``, even after an interrupt.

`pipeline` says what is made for a config of ours, `deepict_project` for one of DeePiCt.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from .batch import Batch, tomograms_in_flight
from .engine.budget import format_bytes
from .engine.output_lock import Holder, OutputLock
from .engine.progress import in_time, one_at_a_time
from .jobs.picking.outputs import versions
from .jobs.runs.in_turn import working_on
from .jobs.runs.journal import Journal, OutputPlace, lock_of
from .jobs.runs.summary import RunReport, TomogramReport, summary_lines, write_summary
from .report import report_of_run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from .engine import Workers
    from .jobs.session import Session

__all__ = ["DatasetPlan", "RunOne", "run_dataset"]

log = logging.getLogger("deepict_dask")


@dataclass(frozen=True)
class DatasetPlan:
    """What a run over a dataset means to make."""

    output: Path
    """Folder of the run: its lock, journal and summary."""
    outputs: Mapping[str, Sequence[str]]
    """For each tomogram, in the order of the run, what is made of it."""
    picks: Sequence[str]
    """What picks are counted by: columns of the summary."""
    n_at_once: int | None = None
    """Tomograms in work at a time; by the number of workers where it is not given."""
    places: Mapping[str, Mapping[str, OutputPlace]] = field(default_factory=dict)
    """Where outputs are, if not at OUTPUT/TOMOGRAM/NAME and made in NAME.partial beside it."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else is written down for the report: ``config``, ``inputs`` (file by tomogram),
    ``spacings`` (Å, of those that were told)."""


class RunOne(Protocol):
    """Runs one tomogram; called in threads."""

    def __call__(
        self, name: str, session: Session, made: Callable[[str], None], /
    ) -> dict[str, int]:
        """Return the number of picks by what they are counted by.

        Parameters
        ----------
        name
            Of the tomogram.
        session
            Workers that know whose turn it is.
        made
            To be told the name of each output that is made, or found to answer the request.
        """
        ...


def run_dataset(
    session: Session,
    plan: DatasetPlan,
    run_one: RunOne,
    *,
    say: Callable[[str], None],
    before: Callable[[], None] = lambda: None,
    after: Callable[[Sequence[TomogramReport]], str | None] = lambda _reports: None,
) -> RunReport:
    """Run all tomograms; one that fails does not stop the others.

    Parameters
    ----------
    session
        Workers and wishes.
    plan
        What is to be made.
    run_one
        Makes it for one tomogram.
    say
        Receives the reasons of failures, and the summary; called by one thread at a time.
    before
        Called once the output folder is locked.
    after
        Called when all tomograms have ended, unless the run was stopped; returns a line to say.

    Raises
    ------
    LedgerError
        Another run works in the output folder.
    DeepictError
        The only tomogram failed.
    """
    with OutputLock(lock_of(plan.output)):
        before()
        start = time.monotonic()
        session.progress.line(_planned(session, plan))
        report = _Run(session, plan, run_one, one_at_a_time(say)).run(after)
        page = report_of_run(plan.output, workers=session.workers, say=say)
    if len(report.tomograms) == 1 and report.tomograms[0].error is not None:
        raise report.tomograms[0].error
    say(_made(report, plan, page, time.monotonic() - start))
    return report


def _planned(session: Session, plan: DatasetPlan) -> str:
    """Return the first line of a run: what it means to make, of what, with what and where."""
    each = list(dict.fromkeys(name for names in plan.outputs.values() for name in names))
    workers = session.workers
    return (
        f"plan: {', '.join(each) or 'nothing'} of {_number(len(plan.outputs), 'tomogram')} on "
        f"{_number(workers.n_workers, 'worker')} of {format_bytes(workers.memory_bytes)}, "
        f"in {plan.output}"
    )


def _made(report: RunReport, plan: DatasetPlan, page: Path | None, seconds: float) -> str:
    """Return the last line of a run: what was made, where, and where to look first."""
    done = [one for one in report.tomograms if one.state == "done"]
    counts = {name: sum(one.n_picks.get(name, 0) for one in done) for name in plan.picks}
    picks = ", ".join(f"{_number(n, 'pick')} in {name}" for name, n in counts.items())
    look = "" if page is None else f"; look at {page}"
    return (
        f"made: {_number(len(done), 'tomogram')} of {len(report.tomograms)}"
        f"{f' ({picks})' if picks else ''} in {plan.output} in {in_time(seconds)}{look}"
    )


def _number(n: int, what: str) -> str:
    """Return a number of things.

    Examples
    --------
    >>> _number(1, "pick"), _number(2, "pick")
    ('1 pick', '2 picks')
    """
    return f"{n} {what}{'' if n == 1 else 's'}"


class _Run:
    """The journal, the batch and the summary of one run."""

    def __init__(
        self, session: Session, plan: DatasetPlan, run_one: RunOne, say: Callable[[str], None]
    ) -> None:
        self._session, self._plan, self._make, self._say = session, plan, run_one, say
        self._names = list(plan.outputs)
        facts = {"versions": versions(), "by": asdict(Holder.ours()), **plan.facts}
        self._journal = Journal(plan.output, plan.outputs, facts, places=plan.places)

    def run(self, after: Callable[[Sequence[TomogramReport]], str | None]) -> RunReport:
        """Run all tomograms and write what became of them, even after an interrupt."""
        workers = self._session.workers
        n_at_once = self._plan.n_at_once or tomograms_in_flight(workers.n_workers)
        batch = Batch(workers, self._names, self._run_one, n_at_once=n_at_once, note=self._noted)
        ended = "by an error"
        try:
            batch.run()
            line = after(batch.reports)
            ended = ""
        except KeyboardInterrupt as stop:
            ended = str(stop) or "by an interrupt"
            raise
        finally:
            self._conclude(batch.reports, ended)
        if line:
            self._say(line)
        return RunReport(batch.reports)

    def _conclude(self, reports: Sequence[TomogramReport], stopped: str) -> None:
        """Write the summary and show it."""
        path = self._plan.output / "summary.csv"
        for report in reports:
            if report.state == "unfinished":
                self._journal.note(report.name, state=report.state, reason=report.why)
        self._journal.close(stopped)
        write_summary(reports, self._plan.picks, path)
        for line in summary_lines(reports, self._plan.picks):
            self._say(line)
        self._say(f"summary in {path}")

    def _noted(self, name: str, report: TomogramReport | None) -> None:
        """Write down, and say, that a tomogram begins or what became of it."""
        if report is None:
            self._journal.note(name, state="running")
            return
        self._journal.note(
            name, state=report.state, reason=report.why, picks=report.n_picks,
            seconds=round(report.seconds, 3),
        )  # fmt: skip
        if report.state == "failed" and len(self._names) > 1:  # of one alone the command says it
            with working_on(name):
                log.error("%s: failed: %s", name, report.why)

    def _run_one(self, place: int, workers: Workers) -> dict[str, int]:
        """Run one tomogram on workers of its turn."""
        name = self._names[place]
        progress = self._session.progress.named(name if len(self._names) > 1 else "")
        told: set[str] = set()

        def warn(text: str) -> None:
            if text not in told:  # several stages may open the same file
                told.add(text)
                self._journal.note(name, warning=text)
                log.warning("%s", text)

        session = replace(self._session, workers=workers, progress=progress, warn=warn)
        with working_on(name):
            return self._make(name, session, lambda output: self._journal.note(name, output=output))
