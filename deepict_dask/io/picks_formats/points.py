"""Points as JSON: what copick's picks and the CryoET Data Portal's annotations have in common.

A point has a location {x, y, z} and what else its program says of it. Cells of unknown keys that
are texts, numbers or truth values are kept; what is nested is not.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.errors import PicksFormatError
from ..orientation import ANGLES, angles_from_matrices, are_rotations, with_angles

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pandas as pd

__all__ = ["locations", "other_cells", "parse_json", "plain_cell", "with_matrices"]

_TOLERANCE = 1e-6
_MOST_DIGITS = 300
"""What a float can still hold."""

Point = tuple[str, dict[str, Any]]
"""Where a point stands, for messages, and its keys."""


def parse_json(text: str, where: str, *, first_line: int | None = None) -> Any:
    """Return what a JSON text means.

    Parameters
    ----------
    text
        The text.
    where
        The file, for messages.
    first_line
        The line of the file that the text begins on, if it is a part.

    Raises
    ------
    PicksFormatError
        Where it is no JSON, nested too deeply, or holds NaN; the line is named.

    Examples
    --------
    >>> parse_json('{"x": 1}', "a.json")
    {'x': 1}
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_int=_int)
    except json.JSONDecodeError as error:
        line = error.lineno + (first_line or 1) - 1
        raise PicksFormatError(
            f"{where}, line {line}: expected JSON, found {error.msg}; is the file complete?"
        ) from error
    except (ValueError, RecursionError) as error:
        place = where if first_line is None else f"{where}, line {first_line}"
        reason = "brackets in brackets without end" if isinstance(error, RecursionError) else error
        raise PicksFormatError(
            f"{place}: expected JSON, found {reason}; correct the file"
        ) from error


def _int(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name}, which is no number")


def locations(points: Sequence[Point]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return z, y, x of each point as the file counts it, (n, 3).

    Raises
    ------
    PicksFormatError
        Where a point has no location; the point is named.
    """
    found = np.zeros((len(points), 3))
    for row, (where, point) in enumerate(points):
        place = point.get("location") if isinstance(point, dict) else None
        if not isinstance(place, dict) or not all(_is_number(place.get(axis)) for axis in "xyz"):
            raise PicksFormatError(
                f"{where}: expected a location with numbers x, y, z, found "
                f"{json.dumps(place if place is not None else point)[:60]}; correct the point"
            )
        found[row] = [place[axis] for axis in "zyx"]
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def with_matrices(
    picks: pd.DataFrame, points: Sequence[Point], key: str, size: int
) -> tuple[pd.DataFrame, np.ndarray[Any, np.dtype[np.float64]]]:
    """Add the angles of square matrices, where any turns its point, and return their shifts.

    Parameters
    ----------
    picks
        As many picks as points.
    points
        Some of which have a matrix.
    key, size
        Its name, and 3 or 4 rows. The fourth column is a shift in x, y, z.

    Returns
    -------
    tuple
        The picks, and (n, 3) shifts x, y, z in the file's unit.

    Raises
    ------
    PicksFormatError
        Where a matrix has another shape, or is no rotation; the point is named.
    """
    held = [row for row, (_, point) in enumerate(points) if point.get(key) is not None]
    matrices = _matrices([points[row] for row in held], key, size)
    turns, shifts = np.tile(np.eye(3), (len(points), 1, 1)), np.zeros((len(points), 3))
    turns[held] = matrices[:, :3, :3]
    if size == 4:
        shifts[held] = matrices[:, :3, 3]
    if (turns != np.eye(3)).any():
        picks = with_angles(picks, angles_from_matrices(turns))
    return picks, shifts


def _matrices(points: Sequence[Point], key: str, size: int) -> np.ndarray[Any, Any]:
    """Return the matrices of points that have one, all at once if all are well."""
    if not points:
        return np.zeros((0, size, size))
    whole = _numbers([point[key] for _, point in points])
    good = whole.shape == (len(points), size, size) and bool(_are_good(whole).all())
    if not good:
        for where, point in points:
            _refuse_bad(point[key], size, where, key)
    return whole


def _numbers(cells: Any) -> np.ndarray[Any, Any]:
    try:
        return np.array(cells, np.float64)
    except (TypeError, ValueError):
        return np.zeros(0)


def _are_good(matrices: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return for each matrix whether it is a rotation, with a shift where it has four columns."""
    good = are_rotations(matrices[:, :3, :3])
    if matrices.shape[1] == 4:
        last = np.abs(matrices[:, 3] - (0, 0, 0, 1)).max(axis=1)
        good &= np.isfinite(matrices[:, :3, 3]).all(axis=1) & (last < _TOLERANCE)
    return good


def _refuse_bad(cells: Any, size: int, where: str, key: str) -> None:
    matrix = _numbers(cells)
    if matrix.shape != (size, size) or not _are_good(matrix[np.newaxis])[0]:
        raise PicksFormatError(
            f"{where}: expected {size} x {size} numbers of a rotation for {key}, found "
            f"{json.dumps(cells)[:60]}; correct the point"
        )


def other_cells(points: Iterable[Point], spent: Iterable[str]) -> dict[str, list[Any]]:
    """Return the cells of keys that have no place in a picks table, by key.

    Examples
    --------
    >>> other_cells([("p", {"location": {}, "who": "me"}), ("q", {})], ["location"])
    {'who': ['me', None]}
    """
    points = list(points)
    spent = {*spent, *ANGLES, "z", "y", "x"}
    names = dict.fromkeys(name for _, point in points for name in point if name not in spent)
    kept = {name: [point.get(name) for _, point in points] for name in names}
    simple = (str, int, float, bool, type(None))
    return {
        name: cells
        for name, cells in kept.items()
        if all(isinstance(cell, simple) for cell in cells)
    }


def plain_cell(value: Any) -> Any:
    """Return a cell of a table as JSON has it; None where it is missing or infinite."""
    import pandas as pd

    value = value.item() if isinstance(value, np.generic) else value
    missing = pd.isna(value) or (isinstance(value, float) and math.isinf(value))
    return None if missing else value
