"""DeepETPicker's coordinates (.coords) and EMAN2's 3D boxes (.box): lines of numbers, no header.

How many columns a line has says what they are: ``x y z``, ``class x y z`` or, for a list with
scores, ``class x y z value``. Classes count from 1. Positions are voxels counted from 0. A .box has
``x y z``, a box's centre; a 2D box of EMAN (``x y width height``) is refused.

DeepETPicker writes whole numbers and truncates what it reads; we keep three decimals.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...core.errors import PicksFormatError
from ..picks_numbers import class_numbers
from ..picks_table import checked_picks, make_picks, named_by_number, whole_numbers
from ..text_rows import fixed_cells, lines, significant_cells, whole_cells
from ..text_table import read_text_table

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from ..picks_table import TomogramFrame
    from ..text_rows import Cells

__all__ = ["dump_box", "dump_coords", "load_box", "load_coords"]

_COLUMNS = {3: ("x", "y", "z"), 4: ("class", "x", "y", "z"), 5: ("class", "x", "y", "z", "value")}


def load_coords(path: Path, _frame: TomogramFrame) -> pd.DataFrame:
    r"""Read a list of DeepETPicker.

    Raises
    ------
    PicksFormatError
        Where lines have not 3, 4 or 5 numbers; the line is named.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from deepict_dask.io.picks_table import TomogramFrame
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "tomo.coords")
    ...     _ = path.write_text("2\t9\t88\t5\n")
    ...     load_coords(path, TomogramFrame())[["z", "class_number"]].to_numpy().tolist()
    [[5.0, 2.0]]
    """
    return _load(path, _COLUMNS, "x y z, class x y z, or class x y z value")


def load_box(path: Path, _frame: TomogramFrame) -> pd.DataFrame:
    """Read a list of 3D box centres of EMAN2.

    Raises
    ------
    PicksFormatError
        Where lines have not 3 numbers, as in 2D boxes; the line is named.
    """
    return _load(path, {3: _COLUMNS[3]}, "x y z of a box's centre (2D boxes are not read)")


def _load(path: Path, layouts: dict[int, tuple[str, ...]], expected: str) -> pd.DataFrame:
    table = read_text_table(path)
    if not table.rows:
        return make_picks([])
    if table.n_columns not in layouts:
        raise PicksFormatError(
            f"{path}, line {table.lines[0]}: expected {expected}, found {table.n_columns} columns; "
            "correct the list or name its format"
        )
    names = layouts[table.n_columns]
    columns = {name: table.numbers(place) for place, name in enumerate(names)}
    zyx = np.column_stack([columns[axis] for axis in "zyx"])
    picks = make_picks(zyx, columns.get("value"))
    if "class" in columns:
        picks["class_number"] = whole_numbers(columns["class"])
    return checked_picks(named_by_number(picks), path)


def dump_coords(table: pd.DataFrame, _frame: TomogramFrame) -> bytes:
    """Return lines ``class x y z``, with ``value`` where any pick has a score.

    Examples
    --------
    >>> from deepict_dask.io.picks_table import TomogramFrame, make_picks
    >>> dump_coords(make_picks([[5, 88, 9]], [0.75]), TomogramFrame()).decode().split()
    ['1', '9.000', '88.000', '5.000', '0.75']
    """
    picks = checked_picks(table)
    columns = [whole_cells(class_numbers(picks)), *_positions(picks)]
    if picks["score"].notna().any():
        columns.append(significant_cells(picks["score"]))
    return lines(columns, len(picks), "\t").encode()


def dump_box(table: pd.DataFrame, _frame: TomogramFrame) -> bytes:
    """Return lines ``x y z``.

    Examples
    --------
    >>> from deepict_dask.io.picks_table import TomogramFrame, make_picks
    >>> dump_box(make_picks([[5, 88, 9]]), TomogramFrame()).decode().split()
    ['9.000', '88.000', '5.000']
    """
    picks = checked_picks(table)
    return lines(_positions(picks), len(picks), "\t").encode()


def _positions(picks: pd.DataFrame) -> list[Cells]:
    return [fixed_cells(picks[axis], 3) for axis in "xyz"]
