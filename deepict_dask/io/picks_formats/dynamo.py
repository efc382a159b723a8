"""Dynamo tables (.tbl): lines of numbers without a header, columns known by their place.

Counted from 1: 4-6 shift dx, dy, dz, 7-9 tdrot, tilt, narot, 10 cross-correlation, 20 tomogram,
22 class, 24-26 x, y, z. Positions are voxels counted from 1, as in MATLAB: the first voxel's centre
is at 1. A particle lies at position plus shift, so

    voxel = x + dx - 1

Older tables end at column 26, newer ones have 35 or more. A shift is added on reading and written
as 0. Columns that we have no name for come back as ``dynamo_<name>``, where they hold anything.

Source: the table convention of Dynamo's wiki, as dynamotable 0.3 names the columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.errors import PicksFormatError
from ..orientation import (
    angles_from_dynamo,
    dynamo_from_angles,
    has_angles,
    relion_angles,
    with_angles,
)
from ..picks_csv import parsed_cells
from ..picks_numbers import class_numbers, particle_numbers, tomogram_numbers
from ..picks_table import checked_picks, make_picks, whole_numbers
from ..text_rows import fixed_cells, lines, significant_cells, whole_cells, words
from ..text_table import read_text_table

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from ..picks_table import TomogramFrame
    from ..text_table import TextTable

__all__ = ["dump_dynamo", "load_dynamo"]

_NAMES = (
    "tag", "aligned", "averaged", "dx", "dy", "dz", "tdrot", "tilt", "narot", "cc", "cc2", "cpu",
    "ftype", "ymintilt", "ymaxtilt", "xmintilt", "xmaxtilt", "fs1", "fs2", "tomo", "reg", "class",
    "annotation", "x", "y", "z", "dshift", "daxis", "dnarot", "dcc", "otag", "npar", "undefined1",
    "ref", "sref", "apix", "def", "undefined2", "undefined3", "undefined4", "eig1", "eig2",
)  # fmt: skip
_LEAST, _USUAL = 26, 35
_PLACE = {name: place for place, name in enumerate(_NAMES)}
_SPENT = {"dx", "dy", "dz", "tdrot", "tilt", "narot", "cc", "x", "y", "z", "tomo", "class", "tag"}
_SHIFT = 1.0
"""Position of the first voxel's centre."""


def load_dynamo(path: Path, _frame: TomogramFrame) -> pd.DataFrame:
    """Read a Dynamo table.

    Parameters
    ----------
    path
        A table of at least 26 columns.

    Returns
    -------
    DataFrame
        A picks table with ``score`` (column 10), ``particle_number``, ``tomogram_number``,
        ``class_number``, angles, and what else the table holds as ``dynamo_<name>``.

    Raises
    ------
    PicksFormatError
        Where a line has other columns than the first, or no numbers.
    """
    table = read_text_table(path)
    if not table.rows:
        return make_picks([])
    if not table.n_columns >= _LEAST:
        raise PicksFormatError(
            f"{path}, line {table.lines[0]}: expected the {_LEAST} columns or more of a Dynamo "
            f"table, found {table.n_columns}; give a .tbl of Dynamo"
        )
    xyz = _three(table, "x", "y", "z") + _three(table, "dx", "dy", "dz") - _SHIFT
    picks = make_picks(xyz[:, ::-1], table.numbers(_PLACE["cc"]))
    numbers = {"particle_number": "tag", "tomogram_number": "tomo", "class_number": "class"}
    for name, column in numbers.items():
        picks[name] = whole_numbers(table.numbers(_PLACE[column]))
    angles = _three(table, "tdrot", "tilt", "narot")
    if angles.any():
        picks = with_angles(picks, angles_from_dynamo(angles))
    return checked_picks(picks.assign(**_rest(table)), path)


def _three(table: TextTable, *names: str) -> np.ndarray[Any, Any]:
    return np.column_stack([table.numbers(_PLACE[name]) for name in names])


def _rest(table: TextTable) -> dict[str, Any]:
    """Return the columns that we have no name for and that are not as we write them by default."""
    kept = {}
    for place in range(table.n_columns):
        name = _NAMES[place] if place < len(_NAMES) else f"column{place + 1}"
        cells = [row[place] for row in table.rows]
        if name not in _SPENT and set(cells) != {"1" if name == "aligned" else "0"}:
            kept[f"dynamo_{name}"] = parsed_cells(cells)
    return kept


def dump_dynamo(table: pd.DataFrame, _frame: TomogramFrame) -> bytes:
    """Return the bytes of a Dynamo table of 35 columns, more where the picks have them.

    Parameters
    ----------
    table
        Picks. Without a ``particle_number`` of their own they are numbered from 1; several names of
        classes or tomograms become numbers.

    Examples
    --------
    >>> from deepict_dask.io.picks_table import TomogramFrame, make_picks
    >>> line = dump_dynamo(make_picks([[5, 88, 9]], [0.75]), TomogramFrame()).decode().split()
    >>> line[:3], line[9], line[19], line[23:26]
    (['1', '1', '0'], '0.75', '1', ['10.000', '89.000', '6.000'])
    """
    picks = checked_picks(table)
    n = len(picks)
    names = [str(name) for name in picks.columns if _is_own(str(name))]
    own = {name.removeprefix("dynamo_"): picks[name] for name in names}
    values: dict[str, Any] = {"aligned": np.ones(n, int)} | own
    values["tag"] = particle_numbers(picks)
    values["tomo"] = tomogram_numbers(picks, 1)
    values["class"] = class_numbers(picks)
    values["cc"] = np.nan_to_num(picks["score"].to_numpy(), nan=0.0)
    if has_angles(picks):
        angles = np.nan_to_num(dynamo_from_angles(relion_angles(picks)))
        values |= dict(zip(("tdrot", "tilt", "narot"), angles.T, strict=True))
    values |= {axis: picks[axis].to_numpy() + _SHIFT for axis in ("x", "y", "z")}
    columns = [_cells(values.get(name, np.zeros(n, int)), name) for name in _names(own)]
    return lines(columns, n, " ").encode()


def _names(own: dict[str, Any]) -> list[str]:
    """Return the columns to write: 35, or as many as the last of ours needs."""
    beyond = [int(name.removeprefix("column")) for name in own if name.startswith("column")]
    last = max([_USUAL, *beyond, *(_PLACE[name] + 1 for name in own if name in _PLACE)])
    names = [*_NAMES, *(f"column{place}" for place in range(len(_NAMES) + 1, last + 1))]
    return names[:last]


def _is_own(name: str) -> bool:
    bare = name.removeprefix("dynamo_")
    known = bare in _PLACE or (bare.startswith("column") and bare.removeprefix("column").isdigit())
    return bare != name and known


def _cells(values: Any, name: str) -> Any:
    if name in {"x", "y", "z"}:
        return fixed_cells(values, 3)
    numbers = np.asarray(values)
    if numbers.dtype.kind in "iu":
        return whole_cells(numbers)
    if numbers.dtype.kind == "f":
        return significant_cells(np.nan_to_num(numbers))
    return words([str(value) or "0" for value in values])
