"""STAR files of Warp and M that are unlike RELION's.

M's species (``..._particles.star``)
    Positions in Å from the first voxel and angles at several points of time:
    ``wrpCoordinateX1/Y1/Z1``, ``wrpCoordinateX2`` ..., ``wrpAngleRot1/Tilt1/Psi1``; the tilt series
    is ``wrpSourceName``. The first point of time is read, under RELION's names.
WarpTools' template matching (``matching/*.star``)
    ``rlnCoordinateX/Y/Z`` are fractions of the tomogram's size, 0 to 1, and no pixel size is given.
    Warp itself is told so by an option (``--normalized_coords``); here it is seen.

Source: the columns that Warp and M write (warpem/warp), and programs that read them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .star_write import STAR_ANGLES, UNBINNED

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["IN_ANGSTROM", "are_fractions", "with_relion_names"]

_ANGLES = ("wrpAngleRot", "wrpAngleTilt", "wrpAnglePsi")
_POSITIONS = ("wrpCoordinateX", "wrpCoordinateY", "wrpCoordinateZ")
_SOURCE = "wrpSourceName"
IN_ANGSTROM = "wrpPositionsInAngstrom"
"""A column of ours, where positions are in Å, whatever a pixel is."""


def with_relion_names(particles: pd.DataFrame) -> pd.DataFrame:
    """Return a list of M's with RELION's columns at the first point of time; others as they are.

    Examples
    --------
    >>> import pandas as pd
    >>> found = pd.DataFrame({f"wrpCoordinate{axis}1": [5.0] for axis in "XYZ"})
    >>> with_relion_names(found).to_dict("records")[0]["rlnCoordinateX"]
    5.0
    """
    for time in ("1", ""):
        positions = [f"{name}{time}" for name in _POSITIONS]
        if set(positions) <= set(particles.columns):
            angles = [f"{name}{time}" for name in _ANGLES]
            names = dict(zip((*positions, *angles), (*UNBINNED, *STAR_ANGLES), strict=True))
            names[_SOURCE] = "rlnTomoName"
            return particles.rename(columns=names).assign(**{IN_ANGSTROM: True})
    return particles


def are_fractions(coordinates: np.ndarray[Any, Any]) -> bool:
    """Say whether positions are fractions of the tomogram's size: all from 0 to 1, not all whole.

    Examples
    --------
    >>> are_fractions(np.array([[0.5, 0.25, 1.0]])), are_fractions(np.array([[1.0, 0.0, 1.0]]))
    (True, False)
    """
    inside = bool(((coordinates >= 0) & (coordinates <= 1)).all())
    return inside and bool((coordinates != np.rint(coordinates)).any())
