"""One table of all picks of a dataset, streamed from the lists of its tomograms.

The lists are read in pieces and leave in row groups, so that neither a list of millions of picks
nor thousands of lists are ever held in memory; small lists share a row group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core.errors import PicksFormatError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import pyarrow as pa

__all__ = ["PicksFile", "write_dataset_picks"]

GROUP_ROWS = 1 << 17
"""Rows of a group, about 12 MB."""
_READ_BYTES = 1 << 22


@dataclass(frozen=True)
class PicksFile:
    """A picks.csv, and what its rows are to be told apart by."""

    path: Path
    tomogram: str
    picks: str
    """Name of the folder of picks."""
    voxel_spacing_angstrom: float | None = None
    """Edge of a voxel; positions in Å are NaN without it."""


def write_dataset_picks(files: Iterable[PicksFile], path: Path) -> int:
    r"""Write the picks of many lists as one Parquet file, which appears when it is whole.

    Parameters
    ----------
    files
        The lists, in the order of the table.
    path
        The file, which is replaced. Columns: ``tomogram``, ``picks``, ``class_name``, ``label``,
        ``z``, ``y``, ``x`` (voxels, 0-based), ``score``, ``n_voxels``, ``z_angstrom``,
        ``y_angstrom``, ``x_angstrom`` (the voxels' positions times the voxel spacing).

    Returns
    -------
    int
        Rows written.

    Raises
    ------
    PicksFormatError
        A list cannot be read.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import pandas as pd
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "picks.csv").write_text("score,x,y,z,n_voxels,label\n0.5,3,2,1,9,1\n")
    >>> lists = [PicksFile(folder / "picks.csv", name, "picks_a", 10.0) for name in "AB"]
    >>> write_dataset_picks(lists, folder / "dataset.parquet")
    2
    >>> table = pd.read_parquet(folder / "dataset.parquet")
    >>> table[["tomogram", "z", "x_angstrom", "label"]].values.tolist()
    [['A', 1.0, 30.0, 1], ['B', 1.0, 30.0, 1]]
    """
    import pyarrow.parquet as pq

    unfinished = path.with_name(f".{path.name}.tmp")
    n_rows = 0
    try:
        with pq.ParquetWriter(unfinished, _schema()) as writer:
            for group in _groups(files):
                writer.write_table(group)
                n_rows += group.num_rows
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return n_rows


def _schema() -> pa.Schema:
    import pyarrow as pa

    floats = ("z", "y", "x", "score", "z_angstrom", "y_angstrom", "x_angstrom")
    types = {name: pa.float64() for name in floats}
    types |= {name: pa.string() for name in ("tomogram", "picks", "class_name")}
    types |= {"label": pa.int64(), "n_voxels": pa.int64()}
    order = (
        "tomogram", "picks", "class_name", "label", "z", "y", "x", "score", "n_voxels",
        "z_angstrom", "y_angstrom", "x_angstrom",
    )  # fmt: skip
    return pa.schema([(name, types[name]) for name in order])


def _groups(files: Iterable[PicksFile]) -> Iterator[pa.Table]:
    """Join the pieces of small lists to row groups."""
    import pyarrow as pa

    held: list[pa.Table] = []
    for file in files:
        for piece in _pieces(file):
            held.append(piece)
            if sum(part.num_rows for part in held) >= GROUP_ROWS:
                yield pa.concat_tables(held)
                held = []
    if held:
        yield pa.concat_tables(held)


def _pieces(file: PicksFile) -> Iterator[pa.Table]:
    """Read a list piece by piece, with the columns that it has."""
    import pyarrow as pa
    from pyarrow import csv

    schema = _schema()
    read = [name for name in schema.names if name not in ("tomogram", "picks")]
    read = [name for name in read if not name.endswith("_angstrom")]
    convert = csv.ConvertOptions(
        column_types={name: schema.field(name).type for name in read},
        include_columns=read,
        include_missing_columns=True,
        strings_can_be_null=False,
    )
    try:
        with csv.open_csv(
            file.path, csv.ReadOptions(block_size=_READ_BYTES), convert_options=convert
        ) as pieces:
            for piece in pieces:
                yield _told_apart(pa.Table.from_batches([piece]), file, schema)
    except (OSError, pa.ArrowInvalid) as error:
        raise PicksFormatError(
            f"{file.path}: expected a list of picks, found: {error}; remove its folder and run "
            "again"
        ) from error


def _told_apart(piece: pa.Table, file: PicksFile, schema: pa.Schema) -> pa.Table:
    """Add whose picks they are, and where they lie in Å."""
    import numpy as np
    import pyarrow as pa

    n = piece.num_rows
    spacing = file.voxel_spacing_angstrom
    columns: dict[str, Any] = {name: piece[name] for name in piece.column_names}
    columns |= {"tomogram": pa.array([file.tomogram] * n), "picks": pa.array([file.picks] * n)}
    for axis in "zyx":
        voxels = np.asarray(piece[axis], np.float64)
        columns[f"{axis}_angstrom"] = voxels * (math.nan if spacing is None else spacing)
    return pa.table(columns).select(schema.names).cast(schema)
