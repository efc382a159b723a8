"""The whole pipeline over a dataset: what a config of ours makes of each tomogram (`dataset_run`).

Each tomogram goes through its stages (`tomogram_stages`); the picks of all that are done are
written to ``dataset.parquet``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .core.errors import VolumeFormatError
from .dataset_run import DatasetPlan, run_dataset
from .engine.progress import one_at_a_time
from .io.dataset import TomogramEntry, list_tomograms
from .jobs.runs.dataset_outputs import write_dataset
from .jobs.runs.stage_record import StageRecord
from .jobs.runs.summary import RunReport, TomogramReport
from .run_outputs import (
    are_many,
    check_config,
    expected_outputs,
    pick_folders,
    remove_results,
    warn_of_models,
)
from .tomogram_stages import TomogramStages

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .config import RunConfig
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
    warn_of_models(config)
    if len(entries) == 1:
        _check_file(entries[0])
    session = replace(
        session, chunks=config.chunks, overwrite=True, many_tomograms=are_many(len(entries))
    )
    maker = _Maker(config, {entry.name: entry for entry in entries}, one_at_a_time(say))

    def before() -> None:
        if restart:
            remove_results(config)

    return run_dataset(
        session,
        _dataset_plan(config, entries),
        maker.run_one,
        say=maker.say,
        before=before,
        after=maker.gather_picks,
    )


def _dataset_plan(config: RunConfig, entries: Sequence[TomogramEntry]) -> DatasetPlan:
    """Return what the run makes of each tomogram, and from what."""
    return DatasetPlan(
        config.output,
        dict.fromkeys((entry.name for entry in entries), expected_outputs(config)),
        pick_folders(config),
        config.cluster.tomograms_in_flight,
        facts={
            "config": config.model_dump(mode="json", by_alias=True),
            "inputs": {entry.name: str(entry.path.absolute()) for entry in entries},
            "spacings": {
                entry.name: spacing
                for entry in entries
                if (spacing := entry.told_spacing(config.voxel_spacing_angstrom)) is not None
            },
        },
    )


@dataclass(frozen=True)
class _Maker:
    """Makes the outputs of a config's tomograms."""

    config: RunConfig
    entries: Mapping[str, TomogramEntry]
    say: Callable[[str], None]

    def run_one(self, name: str, session: Session, made: Callable[[str], None]) -> dict[str, int]:
        """Run all stages of one tomogram."""
        entry = self.entries[name]
        _check_file(entry)
        spacing = entry.told_spacing(self.config.voxel_spacing_angstrom)
        session = replace(session, voxel_spacing_angstrom=spacing)
        folder = self.config.output / name
        folder.mkdir(parents=True, exist_ok=True)
        record = StageRecord(folder, made)
        record.begin()
        return TomogramStages(session, self.config, entry, folder, record, self.say).run()

    def gather_picks(self, reports: Sequence[TomogramReport]) -> str | None:
        """Write the table of all picks; return what to say of it."""
        n_picks = write_dataset(self.config.output, reports)
        where = self.config.output / "dataset.parquet"
        return f"{n_picks} picks in {where}" if self.config.pick else None


def _check_file(entry: TomogramEntry) -> None:
    """Refuse a tomogram that is not there."""
    if not entry.path.exists():
        raise VolumeFormatError(
            f"{entry.path}: expected a tomogram, found no such file; check the path"
        )
