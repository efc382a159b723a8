"""DeePiCt's table of statistics: OUTPUT/pp_statistics.csv, one row per number.

A row holds the fields of the model's descriptor (what the checkpoint says of its training), how the
prediction was post-processed, and one number: tp, fp, fn, auPRC, max_F1, F1 or dice. DeePiCt
appends without end; here a row that differs in nothing but its number takes the old one's place.
"""

from __future__ import annotations

import csv
import fcntl
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ..io.csv_text import csv_of_dicts
from ..io.replace import replace_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from .project3d import Project3D, Tomogram3D

__all__ = ["COLUMNS", "add_rows", "arrange_rows", "holds_rows", "statistics_rows"]

_DESCRIPTOR = (
    "batch_norm", "box_size", "da_elastic_alpha", "da_rot_angle", "da_rounds",
    "da_salt_pepper_ampl", "da_salt_pepper_p", "da_sigma_gauss", "decoder_dropout", "depth",
    "encoder_dropout", "epochs", "fold", "initial_features", "log_path", "loss", "model_name",
    "model_path", "old_model", "output_classes", "overlap", "partition_name", "processing_tomo",
    "retrain", "semantic_classes", "testing_set", "total_folds", "train_split", "training_date",
    "training_set",
)  # fmt: skip
_PERFORMANCE = (
    "clustering_connectivity", "max_cluster_size", "min_cluster_size", "pr_radius",
    "prediction_class", "region_mask", "statistic_value", "statistic_variable", "threshold",
    "tomo_name",
)  # fmt: skip
COLUMNS = tuple(sorted((*_DESCRIPTOR, *_PERFORMANCE)))
"""Columns of the table, in alphabetical order."""

_POST = "postprocessing_clustering"
_TO_DEEPICT = {6: 1, 18: 2, 26: 3}
Row = dict[str, str]


def statistics_rows(
    project: Project3D, card: Mapping[str, Any], tomogram: Tomogram3D, numbers: Mapping[str, float]
) -> list[Row]:
    """Return the rows of one tomogram.

    Parameters
    ----------
    project
        The config; it speaks for fields that the checkpoint lacks.
    card
        What the checkpoint says of itself.
    tomogram
        Which one.
    numbers
        By the names of ``statistic_variable``; rounded to four decimals.
    """
    descriptor = {**_from_config(project), **card}
    fixed: dict[str, Any] = {name: descriptor.get(name) for name in _DESCRIPTOR} | {
        "clustering_connectivity": _TO_DEEPICT[project[f"{_POST}.clustering_connectivity"]],
        "max_cluster_size": project[f"{_POST}.max_cluster_size"] or "inf",
        "min_cluster_size": project[f"{_POST}.min_cluster_size"],
        "pr_radius": project["evaluation.particle_picking.pr_tolerance_radius"],
        "prediction_class": project.class_name,
        "region_mask": project[f"{_POST}.region_mask"],
        "threshold": project[f"{_POST}.threshold"],
        "tomo_name": tomogram.name,
    }
    return [
        _as_text({**fixed, "statistic_variable": name, "statistic_value": round(float(value), 4)})
        for name, value in numbers.items()
    ]


def _from_config(project: Project3D) -> dict[str, Any]:
    """Return the descriptor's fields as the config has them."""
    network = "training.unet_hyperparameters"
    return {
        "box_size": project["training.box_size"],
        "overlap": project["training.overlap"],
        "depth": project[f"{network}.depth"],
        "initial_features": project[f"{network}.initial_features"],
        "batch_norm": project[f"{network}.batch_norm"],
        "model_name": project.model_name,
        "model_path": project["model_path"],
        "output_classes": len(project["training.semantic_classes"]),
        "semantic_classes": list(project["training.semantic_classes"]),
        "processing_tomo": project["training.processing_tomo"],
    }


def _as_text(row: Mapping[str, Any]) -> Row:
    """Return the cells as DeePiCt writes them; nothing for None."""
    return {name: "" if row[name] is None else str(row[name]) for name in COLUMNS}


def holds_rows(path: Path, rows: list[Row]) -> bool:
    """Say whether a table has all rows."""
    return path.is_file() and all(row in _read(path)[1] for row in rows)


def add_rows(path: Path, rows: list[Row]) -> None:
    """Add rows to the table, in one step; several runs may do so at the same time.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp(), "pp_statistics.csv")
    >>> row = dict.fromkeys(COLUMNS, "")
    >>> add_rows(path, [{**row, "statistic_variable": "tp", "statistic_value": "3.0"}])
    >>> add_rows(path, [{**row, "statistic_variable": "tp", "statistic_value": "4.0"}])
    >>> len(path.read_text().splitlines()), holds_rows(path, [row])
    (2, False)
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone_in(path.parent):
        columns, old = _read(path) if path.is_file() else (list(COLUMNS), [])
        columns += [name for name in COLUMNS if name not in columns]
        new = {_identity(row): row for row in rows}
        kept = [new.pop(_identity(row), row) for row in old]
        _write(path, columns, [*kept, *new.values()])


def arrange_rows(path: Path, rows: list[Row]) -> None:
    """Put some rows of a table in an order, at the places that they have together.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp(), "pp_statistics.csv")
    >>> a, b, c = ({**dict.fromkeys(COLUMNS, ""), "tomo_name": name} for name in "abc")
    >>> add_rows(path, [c, b, a])
    >>> arrange_rows(path, [a, c])
    >>> [line.strip(",") for line in path.read_text().splitlines()[1:]]
    ['a', 'b', 'c']
    """
    if not path.is_file():
        return
    with _alone_in(path.parent):
        columns, old = _read(path)
        order = [_identity(row) for row in rows]
        found = {_identity(row): row for row in old}
        arranged = iter([found[each] for each in order if each in found])
        new = [next(arranged) if _identity(row) in order else row for row in old]
        if new != old:
            _write(path, columns, new)


def _write(path: Path, columns: list[str], rows: list[Row]) -> None:
    """Write a table in one step."""
    replace_file(path, csv_of_dicts(rows, columns))


def _identity(row: Row) -> tuple[tuple[str, str], ...]:
    """Return all of a row but its number."""
    return tuple((name, row.get(name, "")) for name in COLUMNS if name != "statistic_value")


def _read(path: Path) -> tuple[list[str], list[Row]]:
    """Return the columns and rows of a table."""
    with path.open(newline="") as file:
        reader = csv.DictReader(file, restval="")
        rows = [{k: v for k, v in row.items() if k is not None} for row in reader]
        return list(reader.fieldnames or ()), rows


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other run writes to a folder's table."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # file systems without such locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
