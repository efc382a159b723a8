"""Motive lists ("motl"): 20 numbers per particle, as TOM, AV3 and DeePiCt keep them.

Columns counted from 1: 1 score, 4 particle number, 5 tomogram number, 6 object number,
8-10 x, y, z, 11-13 shift found by alignment, 14-16 shift before rotation, 17-19 phi, psi, theta,
20 class. DeePiCt repeats x, y in columns 2 and 3 and leaves the rest 0. Positions are 0-based
voxels, as DeePiCt reads and writes them.

The angles are turned into RELION's (`deepict_dask.io.orientation`).

Three containers: DeePiCt's headerless CSV byte for byte (integers, score = cluster size), the same
with fractional positions (our default), and TOM's EM file of 20 x N float32.
A particle's position is columns 8-10 plus the shift in 11-13.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import PicksFormatError
from .orientation import (
    ANGLES,
    angles_from_av3,
    av3_from_angles,
    has_angles,
    relion_angles,
    with_angles,
)
from .picks_numbers import class_numbers, tomogram_numbers
from .picks_table import checked_picks, make_picks, whole_numbers
from .text_rows import PIECE_ROWS, fixed_cells, lines, significant_cells, whole_cells
from .text_table import TextTable, read_text_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import pandas as pd

__all__ = [
    "KEPT",
    "N_MOTL_COLUMNS",
    "dump_motl_csv",
    "dump_motl_em",
    "load_motl_csv",
    "load_motl_em",
    "motl_csv_pieces",
    "motl_from_text",
    "picks_from_motl",
]

N_MOTL_COLUMNS = 20

KEPT = {
    "tomogram_number": 5,
    "object_number": 6,
    "inner_shift_x": 14,
    "inner_shift_y": 15,
    "inner_shift_z": 16,
    "class_number": 20,
}
"""Names of our columns for columns of a motl (counted from 1) that are kept when not empty."""

_EM_HEADER_BYTES = 512
_EM_TYPES = {1: "i1", 2: "i2", 4: "i4", 5: "f4", 9: "f8"}


def picks_from_motl(values: np.ndarray[Any, Any], where: object) -> pd.DataFrame:
    """Return the picks of a motl, in its order.

    Parameters
    ----------
    values
        (n, 20) numbers.
    where
        For messages.

    Examples
    --------
    >>> row = np.zeros((1, 20))
    >>> row[0, [0, 3, 7, 8, 9, 10, 19]] = 959, 1, 9, 88, 5, 0.5, 1
    >>> picks_from_motl(row, "motl_1.csv").to_dict("records")
    [{'z': 5.0, 'y': 88.0, 'x': 9.5, 'score': 959.0}]
    """
    values = np.asarray(values, np.float64).reshape(-1, N_MOTL_COLUMNS)
    xyz = values[:, 7:10] + values[:, 10:13]
    picks = make_picks(xyz[:, ::-1], values[:, 0])
    if (values[:, 3] != np.arange(1, len(values) + 1)).any():
        picks["particle_number"] = whole_numbers(values[:, 3])
    for name, column in KEPT.items():
        empty = 1 if name == "class_number" else 0
        if (values[:, column - 1] != empty).any():
            picks[name] = whole_numbers(values[:, column - 1])
    if values[:, 16:19].any():
        picks = with_angles(picks, angles_from_av3(values[:, 16:19]))
    return checked_picks(picks, where)


def _in_raster_order(table: pd.DataFrame) -> pd.DataFrame:
    """Return checked picks by label if there is one, else as given; names become numbers."""
    picks = checked_picks(table)
    if "class_number" in picks.columns or len(set(picks.get("class_name", []))) > 1:
        picks = picks.assign(class_number=class_numbers(picks))
    if len(set(picks.get("tomogram_name", []))) > 1:
        picks = picks.assign(tomogram_number=tomogram_numbers(picks, 0))
    if "label" in picks.columns:
        return picks.sort_values("label", kind="stable", ignore_index=True)
    return picks


def _motl_values(picks: pd.DataFrame, first_number: int = 1) -> np.ndarray[Any, Any]:
    """Return (n, 20) float64 in the order given, numbered from ``first_number``."""
    values = np.zeros((len(picks), N_MOTL_COLUMNS))
    values[:, 0] = np.nan_to_num(picks["score"].to_numpy(), nan=0.0)
    values[:, 7:10] = picks[["x", "y", "z"]].to_numpy()
    values[:, 1:3] = values[:, 7:9]
    values[:, 3] = _numbers_from(first_number, len(picks))
    values[:, 19] = 1
    for name, column in {"particle_number": 4, **KEPT}.items():
        if name in picks.columns:
            values[:, column - 1] = np.nan_to_num(picks[name].to_numpy(np.float64))
    if has_angles(picks):
        values[:, 16:19] = np.nan_to_num(av3_from_angles(relion_angles(picks)))
    return values


def _numbers_from(first: int, n: int) -> np.ndarray[Any, Any]:
    return np.arange(first, first + n)


def _published_lines(picks: pd.DataFrame, first_number: int) -> str:
    """Return DeePiCt's integers: cluster size, rounded x, y and x, y, z, a running number."""
    if "n_voxels" in picks.columns:
        picks = picks.assign(score=picks["n_voxels"].astype(np.float64))
    values = _motl_values(picks[[name for name in picks.columns if name not in {*KEPT, *ANGLES}]])
    values[:, 3] = _numbers_from(first_number, len(picks))
    columns = [whole_cells(column) for column in np.rint(values).astype(np.int64).T]
    return lines(columns, len(picks), ",")


def _fractional_lines(picks: pd.DataFrame, first_number: int) -> str:
    """Return positions with three decimals, other numbers as short as they are."""
    places = {1, 2, 7, 8, 9}
    columns = [
        fixed_cells(values, 3) if column in places else significant_cells(values)
        for column, values in enumerate(_motl_values(picks, first_number).T)
    ]
    return lines(columns, len(picks), ",")


def motl_csv_pieces(tables: Iterable[pd.DataFrame], *, compat: bool = False) -> Iterator[bytes]:
    """Yield the bytes of the file that `dump_motl_csv` makes of tables joined in this order.

    Parameters
    ----------
    tables
        Picks by ``label``, or in the order that is wanted; all with the same columns.
    compat
        As for `dump_motl_csv`.

    Examples
    --------
    >>> some, more = make_picks([[5, 88, 9]], [0.5]), make_picks([[6, 1, 2]], [0.25])
    >>> print(b"".join(motl_csv_pieces([some, more])).decode(), end="")
    0.5,9.000,88.000,1,0,0,0,9.000,88.000,5.000,0,0,0,0,0,0,0,0,0,1
    0.25,2.000,1.000,2,0,0,0,2.000,1.000,6.000,0,0,0,0,0,0,0,0,0,1
    """
    lines_of = _published_lines if compat else _fractional_lines
    n_before = 0
    for table in tables:
        picks = checked_picks(table)
        for start in range(0, len(picks), PIECE_ROWS):
            piece = picks.iloc[start : start + PIECE_ROWS]
            yield lines_of(piece, n_before + start + 1).encode()
        n_before += len(picks)


def dump_motl_csv(table: pd.DataFrame, *, compat: bool = False) -> bytes:
    """Return the bytes of a headerless 20-column CSV; no bytes for no picks.

    Parameters
    ----------
    table
        Picks. Rows go by ``label`` (clusters are numbered in raster order), else as they stand.
    compat
        DeePiCt's own file: positions rounded half to even, score = ``n_voxels``.

    Examples
    --------
    >>> picks = make_picks([[5, 88.25, 9]], [0.5], n_voxels=[959])
    >>> print(dump_motl_csv(picks, compat=True).decode(), end="")
    959,9,88,1,0,0,0,9,88,5,0,0,0,0,0,0,0,0,0,1
    >>> print(dump_motl_csv(picks).decode(), end="")
    0.5,9.000,88.250,1,0,0,0,9.000,88.250,5.000,0,0,0,0,0,0,0,0,0,1
    """
    return b"".join(motl_csv_pieces([_in_raster_order(table)], compat=compat))


def dump_motl_em(table: pd.DataFrame) -> bytes:
    """Return the bytes of a TOM/AV3 motl: an EM file of 20 x N float32, little-endian.

    Examples
    --------
    >>> len(dump_motl_em(make_picks([[5, 88, 9]], [0.5])))
    592
    """
    values = _motl_values(_in_raster_order(table)).astype("<f4")
    header = struct.pack("<bbbb3i", 6, 0, 0, 5, N_MOTL_COLUMNS, len(values), 1)
    return header.ljust(_EM_HEADER_BYTES, b"\0") + values.tobytes()


def load_motl_csv(path: Path) -> pd.DataFrame:
    """Read a headerless CSV of 20 columns; an empty file holds no picks.

    Raises
    ------
    PicksFormatError
        Where a row does not have 20 numbers; the line is named.
    """
    return motl_from_text(read_text_table(path))


def motl_from_text(table: TextTable) -> pd.DataFrame:
    """Return the picks of a text table of 20 columns."""
    if table.rows and table.n_columns != N_MOTL_COLUMNS:
        raise PicksFormatError(
            f"{table.path}: expected the 20 columns of a motl, found {table.n_columns}; "
            "give a motl, or name the list's own format"
        )
    columns = [table.numbers(column) for column in range(table.n_columns)]
    return picks_from_motl(np.array(columns).T, table.path)


def load_motl_em(path: Path) -> pd.DataFrame:
    """Read a TOM/AV3 motl from an EM file of 20 x N numbers, of either byte order.

    Raises
    ------
    PicksFormatError
        Where the file is a volume, or is shorter than its header says.
    """
    count, kind = _em_layout(path)
    values = np.fromfile(path, kind, count * N_MOTL_COLUMNS, offset=_EM_HEADER_BYTES)
    return picks_from_motl(values, path)


def _em_layout(path: Path) -> tuple[int, np.dtype[Any]]:
    """Return the particles and the number type of an EM motl, after checking header and size."""
    with path.open("rb") as file:
        head = file.read(16)
    if len(head) < 16:
        raise PicksFormatError(
            f"{path}: expected an EM header of 512 bytes, found {len(head)}; copy the file again"
        )
    order = "<" if head[0] == 6 else ">"
    x, y, z = struct.unpack(f"{order}3i", head[4:16])
    if x != N_MOTL_COLUMNS or y < 0 or z not in (0, 1) or head[3] not in _EM_TYPES:
        raise PicksFormatError(
            f"{path}: expected 20 x N x 1 numbers, found {x} x {y} x {z} of type {head[3]}; "
            "this is no motl (a volume?)"
        )
    kind = np.dtype(f"{order}{_EM_TYPES[head[3]]}")
    expected = _EM_HEADER_BYTES + x * y * kind.itemsize
    if path.stat().st_size < expected:
        raise PicksFormatError(
            f"{path}: expected {expected} bytes for {y} particles, "
            f"found {path.stat().st_size}; the file is truncated, copy it again"
        )
    return y, kind
