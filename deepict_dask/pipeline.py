"""The whole pipeline over a dataset: several tomograms at a time, one driver for an output folder.

1. The output folder is locked, and what the run means to do is written down (`jobs.run_journal`).
2. Tomograms run side by side (`batch`), each through its stages (`tomogram_stages`).
3. What became of each is shown and written to ``summary.csv``, even after an interrupt, and the
   picks of all that are done to ``dataset.parquet``.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from .batch import Batch, tomograms_in_flight
from .core.errors import VolumeFormatError
from .engine.output_lock import Holder, OutputLock
from .engine.progress import one_at_a_time
from .io.dataset import TomogramEntry, list_tomograms
from .jobs.dataset_outputs import write_dataset
from .jobs.pick_outputs import versions
from .jobs.run_journal import Journal, lock_of
from .jobs.run_summary import RunReport, TomogramReport, summary_lines, write_summary
from .jobs.stage_record import StageRecord
from .run_outputs import check_config, expected_outputs, pick_folders, remove_results
from .tomogram_stages import TomogramStages

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .config import RunConfig
    from .engine import Workers
    from .jobs.session import Session

__all__ = ["RunReport", "TomogramReport", "run_pipeline"]


def run_pipeline(
    session: Session,
    config: RunConfig,
    *,
    say: Callable[[str], None] = lambda _text: None,
    restart: bool = False,
) -> RunReport:
    """Run the pipeline over all tomograms; one that fails does not stop the others.

    Beside the tomograms' folders it writes ``summary.csv`` and ``dataset.parquet``; an interrupted
    run writes the summary only.

    Parameters
    ----------
    session
        Workers and wishes; outputs of other requests are replaced, finished ones are kept.
    config
        What to do.
    say
        Receives one line per finished stage, and the summary.
    restart
        Remove first what earlier runs made for these tomograms.

    Raises
    ------
    ConfigError
        The config contradicts the models or the table.
    OutputExistsError
        The output folder holds something else.
    LedgerError
        Another run works in the output folder.
    DeepictError
        The only tomogram failed.
    """
    entries = list_tomograms(config.tomograms)
    check_config(config, entries)
    if len(entries) == 1:
        _check_file(entries[0])
    session = replace(session, chunks=config.chunks, overwrite=True)
    with OutputLock(lock_of(config.output)):
        if restart:
            remove_results(config)
        report = _DatasetRun(session, config, entries, one_at_a_time(say)).run()
    if len(entries) == 1 and report.tomograms[0].error is not None:
        raise report.tomograms[0].error
    return report


class _DatasetRun:
    """One run over a dataset: the journal, the batch, the summary."""

    def __init__(
        self,
        session: Session,
        config: RunConfig,
        entries: Sequence[TomogramEntry],
        say: Callable[[str], None],
    ) -> None:
        self._session, self._config, self._entries, self._say = session, config, entries, say
        outputs = expected_outputs(config)
        facts = {"versions": versions(), "by": asdict(Holder.ours())}
        self._journal = Journal(config.output, {entry.name: outputs for entry in entries}, facts)

    def run(self) -> RunReport:
        """Run all tomograms and write what became of them, even after an interrupt."""
        workers = self._session.workers
        n_at_once = self._config.cluster.tomograms_in_flight or tomograms_in_flight(
            workers.n_workers
        )
        names = [entry.name for entry in self._entries]
        batch = Batch(workers, names, self._run_one, n_at_once=n_at_once, note=self._noted)
        try:
            batch.run()
            n_picks = write_dataset(self._config.output, batch.reports)
        finally:
            self._conclude(batch.reports)
        if self._config.pick:
            self._say(f"{n_picks} picks in {self._config.output / 'dataset.parquet'}")
        return RunReport(batch.reports)

    def _conclude(self, reports: Sequence[TomogramReport]) -> None:
        """Write the summary and show it."""
        folders, path = pick_folders(self._config), self._config.output / "summary.csv"
        for report in reports:
            if report.state == "unfinished":
                self._journal.note(report.name, state=report.state, reason=report.why)
        self._journal.close()
        write_summary(reports, folders, path)
        for line in summary_lines(reports, folders):
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
        if report.state == "failed":
            self._say(f"{name}: failed: {report.why}")

    def _run_one(self, place: int, workers: Workers) -> dict[str, int]:
        """Run all stages of one tomogram."""
        entry = self._entries[place]
        _check_file(entry)
        session = replace(
            self._session,
            workers=workers,
            progress=self._session.progress.named(entry.name if len(self._entries) > 1 else ""),
            voxel_spacing_angstrom=self._config.voxel_spacing_angstrom
            or entry.voxel_spacing_angstrom,
        )
        folder = self._config.output / entry.name
        folder.mkdir(parents=True, exist_ok=True)
        record = StageRecord(folder, lambda output: self._journal.note(entry.name, output=output))
        record.begin()
        return TomogramStages(session, self._config, entry, folder, record, self._say).run()


def _check_file(entry: TomogramEntry) -> None:
    """Refuse a tomogram that is not there."""
    if not entry.path.exists():
        raise VolumeFormatError(
            f"{entry.path}: expected a tomogram, found no such file; check the path"
        )
