"""The orientations of a particle list as rotations of the particle.

Every list with angles has them as ``rot_degrees``, ``tilt_degrees``, ``psi_degrees`` once it is
read (`deepict_dask.io.orientation` has the conventions). The truth of our synthetic cells has
quaternions ``qx``, ``qy``, ``qz``, ``qw`` instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import PicksFormatError
from ..io.orientation import has_angles, matrices_from_angles, relion_angles

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["rotations_of"]

Floats = np.ndarray[Any, np.dtype[np.float64]]

_QUATERNION = ["qx", "qy", "qz", "qw"]


def rotations_of(picks: pd.DataFrame, where: object) -> Floats:
    """Return one rotation matrix per pick.

    Parameters
    ----------
    picks
        A picks table with angles or quaternions.
    where
        The file, for messages.

    Returns
    -------
    ndarray
        (n, 3, 3) float64; columns are the particle's axes x, y, z in the tomogram's x, y, z.

    Raises
    ------
    PicksFormatError
        The table has no orientations, or not of every pick.

    Examples
    --------
    >>> import pandas as pd
    >>> angles = {"rot_degrees": [0.0], "tilt_degrees": [0.0], "psi_degrees": [-90.0]}
    >>> (rotations_of(pd.DataFrame(angles), "picks.csv")[0] @ [1, 0, 0]).round(6).tolist()
    [0.0, 1.0, 0.0]
    """
    if has_angles(picks.columns):
        angles = relion_angles(picks)
        unknown = int(np.count_nonzero(~np.isfinite(angles).all(axis=1)))
        if unknown:
            raise PicksFormatError(
                f"{where}: expected the angles of every pick, for a shape that is turned, found "
                f"{unknown} of {len(picks)} without; remove these or give shape: sphere"
            )
        return matrices_from_angles(angles)
    if set(_QUATERNION) <= set(picks.columns) and len(picks):
        from scipy.spatial.transform import Rotation

        turns = Rotation.from_quat(picks[_QUATERNION].to_numpy(np.float64))
        return np.asarray(turns.as_matrix(), np.float64)
    if picks.empty:
        return np.zeros((0, 3, 3))
    raise PicksFormatError(
        f"{where}: expected the angles of each pick, for a shape that is turned, found columns "
        f"{', '.join(picks.columns)} (a motl whose angles are all 0 counts as one without); give a "
        "list with angles (rlnAngleRot, rlnAngleTilt, rlnAnglePsi; columns 17-19 of a motl; "
        "rot_degrees, tilt_degrees, psi_degrees), or shape: sphere"
    )
