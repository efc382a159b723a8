"""Filaments to a picks table: positions, filament, distance along it, Euler angles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .centreline import resample
from .orientation import carried_frames, euler_angles

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from .trace import Filament

__all__ = ["STAR_NAMES", "filament_columns", "filament_table"]

Floats = np.ndarray[Any, np.dtype[np.float64]]

STAR_NAMES = {
    "filament_id": "rlnHelicalTubeID",
    "track_length_angstrom": "rlnHelicalTrackLengthAngst",
    "rot_degrees": "rlnAngleRot",
    "tilt_degrees": "rlnAngleTilt",
    "psi_degrees": "rlnAnglePsi",
}
"""What RELION calls the columns."""


def filament_columns(
    points: Floats, tangents: Floats, arc_angstrom: Floats, number: int, twist_degrees: float
) -> pd.DataFrame:
    """Return the table of one filament.

    Parameters
    ----------
    points, tangents
        (n, 3), zyx; voxels and unit vectors.
    arc_angstrom
        Distances along the filament, Å.
    number
        Of the filament, from 1.
    twist_degrees
        Turn from one point to the next.

    Examples
    --------
    >>> one = np.array([[1.0, 2, 3]])
    >>> filament_columns(one, np.array([[1.0, 0, 0]]), np.zeros(1), 1, 0.0).tilt_degrees.tolist()
    [0.0]
    """
    import pandas as pd

    rot, tilt, psi = euler_angles(carried_frames(tangents, twist_degrees)).T
    z, y, x = points.T
    return pd.DataFrame(
        {
            "z": z, "y": y, "x": x, "filament_id": number,
            "track_length_angstrom": arc_angstrom.round(4),
            "rot_degrees": rot.round(4), "tilt_degrees": tilt.round(4),
            "psi_degrees": psi.round(4),
        }
    )  # fmt: skip


def filament_table(
    filaments: Sequence[Filament],
    step: float,
    *,
    voxel_spacing_angstrom: float,
    twist_degrees: float = 0.0,
) -> pd.DataFrame:
    """Return oriented picks along all filaments, in the order of the filaments and along each.

    Parameters
    ----------
    filaments
        Centrelines.
    step
        Distance of neighbouring picks along a filament, voxels.
    voxel_spacing_angstrom
        Edge of a voxel.
    twist_degrees
        Turn of the particle from one pick to the next.

    Returns
    -------
    DataFrame
        A picks table. ``label`` counts its rows from 1, so that lists that are sorted (``.csv``)
        keep the order; no pick has a score.

    Examples
    --------
    >>> filament_table([], 4.0, voxel_spacing_angstrom=10.0).columns[:4].tolist()
    ['z', 'y', 'x', 'score']
    """
    import pandas as pd

    tables = [filament_columns(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0), 0, 0.0)]
    for filament in filaments:
        points, tangents, arc = resample(filament.curve, step)
        along = (arc - arc[:1]) * voxel_spacing_angstrom
        tables.append(filament_columns(points, tangents, along, filament.number, twist_degrees))
    return numbered(pd.concat(tables[1:] or tables, ignore_index=True))


def numbered(table: pd.DataFrame) -> pd.DataFrame:
    """Return a picks table of filament columns: with a score column, rows counted in ``label``."""
    table.insert(3, "score", np.nan)
    table.insert(4, "label", np.arange(1, len(table) + 1))
    return table
