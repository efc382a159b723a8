"""Copick's picks (.json): the points of one object in one run, by one user in one session.

Locations are Å from the corner, x = voxel * voxel_spacing, so the first voxel's centre is at 0. A
point's 4 x 4 matrix turns the reference into the particle; its fourth column is a shift in Å, which
is added on reading. The tomogram's voxel spacing comes first where it is given, else the file's.

``pickable_object_name`` is the class, ``run_name`` the tomogram. User and session come back as
``copick_user_id`` and ``copick_session_id``.

Source: copick's models and files. copick itself is no dependency: it brings a dozen packages for
servers, and the file is a small JSON.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.errors import PicksFormatError
from ..orientation import ANGLES, has_angles, matrices_from_angles, relion_angles
from ..picks_table import checked_picks, make_picks, whole_numbers
from .points import locations, other_cells, parse_json, plain_cell, with_matrices

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pandas as pd

    from ..picks_table import TomogramFrame

__all__ = ["dump_copick", "load_copick"]

_SPENT = ("location", "transformation_", "score")
_NAMES = {
    "pickable_object_name": "class_name",
    "run_name": "tomogram_name",
    "user_id": "copick_user_id",
    "session_id": "copick_session_id",
}


def load_copick(path: Path, frame: TomogramFrame) -> pd.DataFrame:
    """Read picks of copick.

    Parameters
    ----------
    path
        A file as copick keeps it in ``Picks/USER_SESSION_OBJECT.json``.
    frame
        The voxel spacing, where the file does not have it or another tomogram is meant.

    Raises
    ------
    PicksFormatError
        Where the file is none of copick's, or a point has no location or a wrong matrix.
    SpacingError
        Where no voxel spacing is known.
    """
    data = _file(path)
    points = [(f"{path}, point {n}", point) for n, point in enumerate(data["points"] or [], 1)]
    zyx = locations(points)
    picks, shifts = with_matrices(make_picks(zyx), points, "transformation_", 4)
    spacing = frame.voxel_spacing_angstrom or _spacing(data, path) or frame.need_spacing(path)
    picks[["z", "y", "x"]] = (zyx + shifts[:, ::-1]) / spacing
    picks["score"] = _scores(points)
    for key, name in _NAMES.items():
        if data.get(key) is not None:
            picks[name] = str(data[key])
    picks = picks.assign(**other_cells(points, _SPENT))
    if "instance_id" in picks and not picks["instance_id"].any():
        picks = picks.drop(columns="instance_id")
    return checked_picks(picks, path)


def _file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PicksFormatError(
            f"{path}: expected a text file, found bytes that are no text at {error.start}; give "
            "picks of copick"
        ) from error
    data = parse_json(text, str(path))
    if isinstance(data, dict) and "annotation_object" in data:
        raise PicksFormatError(
            f"{path}: expected picks of copick, found what the CryoET Data Portal says about an "
            f"annotation; its points are in {_portal_points(data)}, give that file"
        )
    if not isinstance(data, dict) or not isinstance(data.get("points", 0), list | None):
        raise PicksFormatError(
            f"{path}: expected picks of copick, with a list of points, found other JSON; give a "
            "file of a project's Picks folder"
        )
    unit = data.get("unit", "angstrom")
    if unit != "angstrom":
        raise PicksFormatError(f"{path}: expected the unit angstrom, found {unit!r}; convert it")
    return data


def _portal_points(data: Mapping[str, Any]) -> str:
    """Name the .ndjson file of an annotation of the CryoET Data Portal, as its metadata do."""
    files = data.get("files")
    entries = [each for each in files if isinstance(each, dict)] if isinstance(files, list) else []
    names = (str(each.get("path", "")).rpartition("/")[2] for each in entries)
    return next((name for name in names if name.endswith(".ndjson")), "an .ndjson file beside it")


def _spacing(data: Mapping[str, Any], path: Path) -> float | None:
    spacing = data.get("voxel_spacing")
    if spacing is None:
        return None
    if not isinstance(spacing, int | float) or not 0 < spacing < np.inf:
        raise PicksFormatError(
            f"{path}: expected a positive voxel_spacing in Å, found {spacing!r}; correct the file"
        )
    return float(spacing)


def _scores(points: Any) -> list[float]:
    scores = []
    for where, point in points:
        score = point.get("score")
        if score is not None and not isinstance(score, int | float):
            raise PicksFormatError(f"{where}: expected a number for score, found {score!r}")
        scores.append(np.nan if score is None else float(score))
    return scores


def dump_copick(table: pd.DataFrame, frame: TomogramFrame) -> bytes:
    """Return the bytes of a file of copick.

    Parameters
    ----------
    table
        Picks of one class and one tomogram.
    frame
        Voxel spacing; the tomogram's name where the table has none.

    Raises
    ------
    PicksFormatError
        Where there are several classes or tomograms.
    SpacingError
        Where the voxel spacing is not known.

    Examples
    --------
    >>> from deepict_dask.io.picks_table import TomogramFrame, make_picks
    >>> frame = TomogramFrame(voxel_spacing_angstrom=10.0, name="TS_1")
    >>> data = json.loads(dump_copick(make_picks([[5, 88, 9]], [0.75]), frame))
    >>> data["points"][0]["location"], data["run_name"]
    ({'x': 90.0, 'y': 880.0, 'z': 50.0}, 'TS_1')
    """
    picks = checked_picks(table)
    spacing = frame.need_spacing("copick JSON")
    defaults = ("particle", frame.name, "deepict-dask", "1")
    known = {
        key: _one(picks, name, default)
        for (key, name), default in zip(_NAMES.items(), defaults, strict=True)
    }
    file = known | {
        "voxel_spacing": spacing,
        "unit": "angstrom",
        "trust_orientation": has_angles(picks),
        "points": [],
    }
    head = json.dumps(file, indent=4).removesuffix("[]\n}")
    points = [json.dumps(point, allow_nan=False) for point in _points(picks, spacing)]
    return (head + "[\n" + ",\n".join(points) + "\n    ]\n}\n").encode()


def _one(picks: pd.DataFrame, name: str, default: str | None) -> str | None:
    """Return the one value of a column of names."""
    found = sorted(set(picks[name].dropna().astype(str)) - {""}) if name in picks else []
    if len(found) > 1:
        raise PicksFormatError(
            f"copick JSON: a file holds picks of one {name}, found {len(found)} "
            f"({', '.join(found[:3])}, ...); write one list for each "
            f"({'--class' if name == 'class_name' else '--tomogram-name'})"
        )
    return found[0] if found else default


def _points(picks: pd.DataFrame, spacing: float) -> list[dict[str, Any]]:
    turns = np.tile(np.eye(4), (len(picks), 1, 1))
    if has_angles(picks):
        turns[:, :3, :3] = matrices_from_angles(np.nan_to_num(relion_angles(picks)))
    spent = {"z", "y", "x", "instance_id", *_SPENT, *ANGLES, *_NAMES.values()}
    own = {str(name): picks[name].tolist() for name in picks.columns if name not in spent}
    given = np.asarray(picks.get("instance_id", np.zeros(len(picks))), np.float64)
    instances = whole_numbers(np.nan_to_num(given)).tolist()  # 0: of no instance
    scores = picks["score"].tolist()
    points = []
    for row, (x, y, z) in enumerate((picks[["x", "y", "z"]].to_numpy() * spacing).tolist()):
        point = {
            "location": {"x": x, "y": y, "z": z},
            "transformation_": turns[row].tolist(),
            "instance_id": instances[row],
            "score": plain_cell(scores[row]),
        }
        points.append(point | {name: plain_cell(cells[row]) for name, cells in own.items()})
    return points
