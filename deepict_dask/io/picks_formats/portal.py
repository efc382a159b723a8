"""Point annotations of the CryoET Data Portal (.ndjson): a JSON object in each line.

    {"type": "orientedPoint", "location": {"x": 9, "y": 88, "z": 5}, "xyz_rotation_matrix": [...]}

``point`` has a location, ``orientedPoint`` a 3 x 3 matrix that turns the reference into the
particle, ``instancePoint`` an ``instance_id``. Locations are voxels of the annotation's tomogram,
counted from 0. The portal keeps a list in a folder named VoxelSpacing13.480: where the path has one
and the tomogram at hand has another spacing, positions are scaled.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.errors import PicksFormatError
from ..orientation import ANGLES, has_angles, matrices_from_angles, relion_angles
from ..picks_table import checked_picks, make_picks
from .points import locations, other_cells, parse_json, plain_cell, with_matrices

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from ..picks_table import TomogramFrame

__all__ = ["dump_portal", "load_portal"]

_TYPES = ("point", "orientedPoint", "instancePoint")
_MATRIX = "xyz_rotation_matrix"
_FOLDER = re.compile(r"VoxelSpacing(\d+(?:\.\d+)?)")


def load_portal(path: Path, frame: TomogramFrame) -> pd.DataFrame:
    r"""Read point annotations.

    Parameters
    ----------
    path
        The list.
    frame
        With a voxel spacing, positions in a list of another spacing (by its folder) are scaled.

    Raises
    ------
    PicksFormatError
        Where a line is no point; the line is named.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from deepict_dask.io.picks_table import TomogramFrame
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "ribosome_point.ndjson")
    ...     _ = path.write_text('{"type": "point", "location": {"x": 9, "y": 88, "z": 5}}\n')
    ...     load_portal(path, TomogramFrame())[["z", "y", "x"]].to_numpy().tolist()
    [[5.0, 88.0, 9.0]]
    """
    points = [(where, point) for where, point in _lines(path)]
    picks = make_picks(locations(points) * _scale(path, frame))
    picks, _ = with_matrices(picks, points, _MATRIX, 3)
    spent = ("type", "location", _MATRIX)
    return checked_picks(picks.assign(**other_cells(points, spent)), path)


def _lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PicksFormatError(
            f"{path}: expected a text file, found bytes that are no text at {error.start}; give "
            "an annotation of points"
        ) from error
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            where = f"{path}, line {number}"
            found.append((where, _point(parse_json(line, str(path), first_line=number), where)))
    return found


def _point(point: Any, where: str) -> dict[str, Any]:
    kind = point.get("type", "point") if isinstance(point, dict) else type(point).__name__
    if kind not in _TYPES:
        raise PicksFormatError(
            f"{where}: expected one of {', '.join(_TYPES)}, found {str(kind)[:40]!r}; give an "
            "annotation of points"
        )
    return dict(point)


def _scale(path: Path, frame: TomogramFrame) -> float:
    """Return voxels of the tomogram at hand for one of the list's."""
    found = _FOLDER.fullmatch("")
    for part in path.resolve().parts:
        found = _FOLDER.fullmatch(part) or found
    if found is None or frame.voxel_spacing_angstrom is None or float(found[1]) <= 0:
        return 1.0
    scale = float(found[1]) / frame.voxel_spacing_angstrom
    # the folder's name is rounded to three decimals
    return 1.0 if abs(scale - 1) * frame.voxel_spacing_angstrom < 6e-4 else scale


def dump_portal(table: pd.DataFrame, _frame: TomogramFrame) -> bytes:
    """Return lines of points; oriented ones where the picks have angles.

    Examples
    --------
    >>> from deepict_dask.io.picks_table import TomogramFrame, make_picks
    >>> print(dump_portal(make_picks([[5, 88, 9]]), TomogramFrame()).decode(), end="")
    {"type": "point", "location": {"x": 9.0, "y": 88.0, "z": 5.0}}
    """
    picks = checked_picks(table)
    oriented = has_angles(picks)
    instance = not oriented and "instance_id" in picks
    kind = "orientedPoint" if oriented else "instancePoint" if instance else "point"
    turns = matrices_from_angles(np.nan_to_num(relion_angles(picks))) if oriented else None
    spent = {"z", "y", "x", "type", "location", _MATRIX, *ANGLES}
    own = [str(name) for name in picks.columns if name not in spent]
    columns = {name: picks[name].tolist() for name in own}
    lines = []
    for row, (x, y, z) in enumerate(picks[["x", "y", "z"]].to_numpy().tolist()):
        point: dict[str, Any] = {"type": kind, "location": {"x": x, "y": y, "z": z}}
        if turns is not None:
            point[_MATRIX] = turns[row].tolist()
        cells = {name: plain_cell(values[row]) for name, values in columns.items()}
        point |= {name: cell for name, cell in cells.items() if cell is not None}
        lines.append(json.dumps(point, allow_nan=False) + "\n")
    return "".join(lines).encode()
