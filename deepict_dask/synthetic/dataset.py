"""Write cells as a dataset that can be trained on: files, and a table that names them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .cell import write_cell
from .settings import PARTICLE_NAMES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .cell import Cell

__all__ = ["write_dataset"]


def write_dataset(cells: Iterable[Cell], folder: str | Path) -> Path:
    """Write cells one after another, so that one at a time is in memory.

    Parameters
    ----------
    cells
        Each goes into a folder called after its seed.
    folder
        Made if it is not there.

    Returns
    -------
    Path
        A table with a row for each cell and the columns ``name``, ``tomogram``, ``labels``,
        ``cytosol`` (volumes), ``ribosome`` and ``fas`` (particle lists: x, y, z in voxels, score).

    Raises
    ------
    OutputExistsError
        A file of a cell is there.

    Examples
    --------
    >>> import tempfile
    >>> from deepict_dask.synthetic import CellSettings, make_cell
    >>> cell = make_cell(CellSettings((48, 64, 64), n_ribosomes=1, n_fas=1, n_distractors_each=0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_dataset([cell], folder).read_text().splitlines()[0]
    'name,tomogram,labels,cytosol,ribosome,fas'
    """
    import pandas as pd

    folder = Path(folder)
    rows = [_written(cell, folder / f"cell_{cell.settings.seed}") for cell in cells]
    table = folder / "cells.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    return table


def _written(cell: Cell, folder: Path) -> dict[str, str]:
    """Write a cell; return its row of the table, with paths from the table's folder."""
    paths = {name: path.name for name, path in write_cell(cell, folder).items()}
    row = {name: paths[name] for name in ("tomogram", "labels", "cytosol")}
    for name in PARTICLE_NAMES:
        row[name] = f"{name}.csv"
        centres = cell.picks[cell.picks["class_name"] == name][["x", "y", "z"]]
        centres.assign(score=1.0).to_csv(folder / row[name], index=False)
    return {"name": folder.name} | {key: f"{folder.name}/{name}" for key, name in row.items()}
