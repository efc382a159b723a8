"""K-fold cross-validation over tomograms: how good a model is on tomograms it has not seen.

1. Tomograms are shared out by the seed, or as DeePiCt's ``cv_data.csv`` says.
2. Each fold is a training of its own on a worker, in ``fold_1``, ``fold_2``, ...; it is assessed on
   every voxel of the tomograms that it did not see.
3. ``cross_validation.csv`` has a row for each fold, then their mean and standard deviation.

With ``validation.fraction`` the best epoch is chosen on the ends of the tomograms that are trained
on; without, on the fold's own tomograms, which flatters it a little.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ...core.errors import ConfigError, DeepictError, WorkFailedError
from ...engine.output_lock import OutputLock
from ...io.csv_text import csv_of_rows
from ...io.dataset import list_tomograms
from ...io.metadata_table import cell_text, read_metadata_csv
from ...io.replace import replace_file
from .task import (
    FIRST_FIGURES,
    STUDY_LOCK,
    TrainingResult,
    TrainingTask,
    begin_study,
    run_tasks,
    train_task,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from ...config.training import TrainConfig
    from ..session import Session

__all__ = [
    "Fold",
    "cross_validate",
    "folds_of",
    "read_folds",
    "shared_out",
    "table_text",
    "write_folds",
]

TABLE = "cross_validation.csv"
FOLDS_TABLE = "cv_data.csv"
_NAMES = ("fold", "cv_fold")
_HELD_OUT = ("cv_validation_list", "cv_evaluation_list")


@dataclass(frozen=True)
class Fold:
    """Names of the tomograms of one fold.

    Examples
    --------
    >>> Fold("1", ("a", "b"), ("c",)).folder
    'fold_1'
    """

    name: str
    training: tuple[str, ...]
    held_out: tuple[str, ...]

    @property
    def folder(self) -> str:
        """Name of the folder of its model."""
        return f"fold_{self.name}"


def shared_out(names: Sequence[str], folds: int, seed: int) -> list[Fold]:
    """Share tomograms out over folds by chance; each is held out once.

    Parameters
    ----------
    names
        Of the tomograms, in the order of the dataset, which is kept within a fold.
    folds, seed
        How many, and what decides.

    Raises
    ------
    ConfigError
        There are fewer tomograms than folds.

    Examples
    --------
    >>> [fold.held_out for fold in shared_out(["a", "b", "c", "d"], 2, seed=0)]
    [('a', 'c'), ('b', 'd')]
    """
    if len(names) < folds:
        raise ConfigError(
            f"cross_validation.folds: expected at most one fold for each of the {len(names)} "
            f"tomograms, found {folds}"
        )
    order = np.random.default_rng(seed).permutation(len(names))
    found = []
    for number, part in enumerate(np.array_split(order, folds), 1):
        out = {int(place) for place in part}
        training = tuple(name for place, name in enumerate(names) if place not in out)
        held_out = tuple(name for place, name in enumerate(names) if place in out)
        found.append(Fold(str(number), training, held_out))
    return found


def read_folds(path: Path) -> list[Fold]:
    r"""Read DeePiCt's ``cv_data.csv``: names of tomograms, with spaces between them, by fold.

    Its columns are ``fold`` (or ``cv_fold``), ``cv_training_list``, and ``cv_validation_list`` (or
    ``cv_evaluation_list``), by the age of the program.

    Raises
    ------
    ConfigError
        It is no such table, or a list is empty, or names a tomogram on both sides.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "cv_data.csv")
    >>> _ = path.write_text("fold,cv_training_list,cv_validation_list\n0,TS_4 TS_5 ,TS_6\n")
    >>> read_folds(path)
    [Fold(name='0', training=('TS_4', 'TS_5'), held_out=('TS_6',))]
    """
    table = read_metadata_csv(path)
    fold = next((name for name in _NAMES if name in table.columns), None)
    out = next((name for name in _HELD_OUT if name in table.columns), None)
    if fold is None or out is None or "cv_training_list" not in table.columns:
        raise ConfigError(
            f"{path}: expected the columns fold, cv_training_list and cv_validation_list, found "
            f"{', '.join(table.columns)}"
        )
    found = []
    for row in table.rows:
        name = cell_text(row, fold) or ""
        lists = [tuple((cell_text(row, key) or "").split()) for key in ("cv_training_list", out)]
        both = sorted(set(lists[0]) & set(lists[1]))
        if not all(lists) or both:
            wrong = f"{', '.join(both)} in both" if both else "an empty one"
            raise ConfigError(f"{path}: fold {name}: expected two lists of names, found {wrong}")
        found.append(Fold(name, *lists))
    names = [one.name for one in found]
    if not found or len(set(names)) < len(names) or any("/" in name or not name for name in names):
        raise ConfigError(f"{path}: expected folds of different names, found {names or 'none'}")
    return found


def write_folds(path: Path, folds: Sequence[Fold]) -> None:
    """Write folds as DeePiCt's ``cv_data.csv``, unless a name holds a space, which parts names."""
    rows = [[one.name, " ".join(one.training), " ".join(one.held_out)] for one in folds]
    if not any(" " in name for one in folds for name in (*one.training, *one.held_out)):
        replace_file(path, csv_of_rows([["fold", "cv_training_list", "cv_validation_list"], *rows]))


def folds_of(config: TrainConfig) -> list[Fold]:
    """Return the folds that a config asks for.

    Raises
    ------
    ConfigError
        It asks for none, holds tomograms out by name as well, or a fold has unknown tomograms.
    """
    asked = config.cross_validation
    if asked is None:
        raise ConfigError("cross_validation: expected folds: K, found nothing")
    if config.validation.tomograms:
        raise ConfigError(
            "validation.tomograms: not with cross_validation, whose folds hold tomograms out; "
            "leave it out (validation.fraction can choose the best epoch)"
        )
    names = [entry.name for entry in list_tomograms(config.tomograms)]
    if asked.folds is not None:
        return shared_out(names, asked.folds, config.seed)
    assert asked.table is not None
    folds = read_folds(asked.table)
    unknown = {name for one in folds for name in (*one.training, *one.held_out)} - {*names}
    if unknown:
        raise ConfigError(
            f"{asked.table}: expected names among {', '.join(names)}, found "
            f"{', '.join(sorted(unknown))}"
        )
    return folds


def cross_validate(
    session: Session,
    config: TrainConfig,
    *,
    resume: bool = True,
    overwrite: bool = False,
    tell: Callable[[str], None] = lambda _text: None,
    trainer: Callable[[TrainingTask], TrainingResult] = train_task,
) -> Path:
    """Train and assess every fold, as many at once as there are workers; return the table's path.

    What is finished is kept, what was begun goes on. A fold that fails does not stop the others.

    Parameters
    ----------
    session
        Workers, and the device of the networks.
    config
        With ``cross_validation``; of tomograms that are equalized, where they shall be.
    resume, overwrite
        As of `deepict_dask.training.fit.train_network`, for every fold.
    tell
        Receives a line as each training ends.
    trainer
        What a worker does with a fold.

    Raises
    ------
    ConfigError
        The folds contradict the dataset.
    LedgerError
        Another command works in the output folder.
    WorkFailedError
        A fold failed; the table has the others.
    """
    folds = folds_of(config)
    begin_study(config, "cross-validation")
    output = config.output.absolute()
    lock = output / STUDY_LOCK
    with OutputLock(lock):
        write_folds(output / FOLDS_TABLE, folds)
        tasks = [_task(config, fold, output / fold.folder) for fold in folds]
        if config.cross_validation and config.cross_validation.final:
            tasks.append(_task(config, None, output / "final"))
        tasks = [replace(task, resume=resume, overwrite=overwrite, lock=lock) for task in tasks]
        found = run_tasks(session, tasks, stage="folds", tell=tell, trainer=trainer)
        replace_file(output / TABLE, table_text(folds, found))
    failed = {name: one for name, one in found.items() if isinstance(one, DeepictError)}
    if failed:
        reasons = "; ".join(f"{name}: {error}" for name, error in failed.items())
        raise WorkFailedError(
            f"{output}: {len(failed)} of {len(found)} trainings failed: {reasons}; run the same "
            "command again to continue"
        )
    return output / TABLE


def _task(config: TrainConfig, fold: Fold | None, folder: Path) -> TrainingTask:
    """Return the training of a fold, or on all tomograms."""
    own = config.model_copy(update={"cross_validation": None, "output": folder})
    if fold is None:
        return TrainingTask("final", own, folder)
    return TrainingTask(f"fold {fold.name}", own, folder, fold.training, fold.held_out)


def table_text(folds: Sequence[Fold], found: Mapping[str, TrainingResult | DeepictError]) -> str:
    """Return the statistics table as CSV: a row for each fold, then mean and standard deviation.

    Parameters
    ----------
    folds
        In the order of the rows.
    found
        By ``fold NAME``; folds that failed have no figures.

    Returns
    -------
    str
        Columns: ``fold``, ``held_out``, ``state``, ``epoch``, ``minutes``, ``loss``,
        ``train_loss``, ``dice``, the classes' figures, ``reason``. The deviation is that of a
        sample (n - 1), empty for one fold; figures that are not known (a class without a voxel in a
        fold) are empty and not counted.
    """
    results = [found[f"fold {one.name}"] for one in folds]
    figures = [one.figures if isinstance(one, TrainingResult) else {} for one in results]
    known = list(dict.fromkeys(name for one in figures for name in one))
    columns = [*FIRST_FIGURES, *(name for name in known if name not in FIRST_FIGURES)]
    rows: list[list[str]] = [["fold", "held_out", "state", *columns, "reason"]]
    for fold, result, numbers in zip(folds, results, figures, strict=True):
        failed = isinstance(result, DeepictError)
        state, reason = ("failed", " ".join(str(result).split())) if failed else ("done", "")
        cells = [_cell(numbers.get(name)) for name in columns]
        rows.append([fold.name, " ".join(fold.held_out), state, *cells, reason])
    for name, summary in (("mean", _mean), ("std", _std)):
        cells = [_cell(summary([one[column] for one in figures if _is_known(one.get(column))]))
                 for column in columns]  # fmt: skip
        rows.append([name, "", "", *cells, ""])
    return csv_of_rows(rows)


def _is_known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _mean(values: list[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _std(values: list[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _cell(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{round(value, 6):g}"
