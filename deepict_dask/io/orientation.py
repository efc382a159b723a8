"""Orientations of particles: one convention inside, one function for each outside.

The picks table holds RELION's Euler angles in degrees, ``rot_degrees``, ``tilt_degrees`` and
``psi_degrees``. They stand for one matrix in x, y, z that turns the REFERENCE INTO THE PARTICLE as
it lies in the tomogram; Rz and Ry turn counter-clockwise, seen against the axis:

    R = Rz(-psi) Ry(-tilt) Rz(-rot)                          RELION, Warp, M
    R = Rz(psi) Rx(theta) Rz(phi)                            TOM, AV3, Artiatomi, DeepFinder
    R = Rz(-tdrot) Rx(-tilt) Rz(-narot)                      Dynamo
    R itself                                                 copick, CryoET Data Portal

Since Ry(t) = Rz(90) Rx(t) Rz(-90), the Euler angles of two conventions differ by quarter turns and
signs only. So they are converted without a matrix, and nothing is lost where tilt is 0 and a matrix
gives the sum of two angles alone. The tests hold this against the matrices.

Sources: ParticleSet::getMatrix3x3 of RELION 5; the tables of conventions in eulerangles 1.0 and
cryoCAT, which agree; copick's and the portal's own converters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "ANGLES",
    "angles_from_av3",
    "angles_from_dynamo",
    "angles_from_matrices",
    "are_rotations",
    "av3_from_angles",
    "dynamo_from_angles",
    "has_angles",
    "matrices_from_angles",
    "relion_angles",
    "with_angles",
]

Floats = np.ndarray[Any, np.dtype[np.float64]]

ANGLES = ("rot_degrees", "tilt_degrees", "psi_degrees")
"""Columns of the picks table."""

_PARALLEL = 1e-9
_ROTATION_TOLERANCE = 1e-3
_LARGEST = 2.0
"""No cell of a rotation is larger than 1; larger ones must not overflow when they are squared."""


def has_angles(columns: Any) -> bool:
    """Say whether a table, or a list of names, has all three angles."""
    return all(name in columns for name in ANGLES)


def with_angles(picks: pd.DataFrame, rot_tilt_psi: Any) -> pd.DataFrame:
    """Return a picks table with RELION's angles, (n, 3) degrees, brought into -180 to 180."""
    angles = wrapped(rot_tilt_psi).reshape(-1, 3)
    return picks.assign(**dict(zip(ANGLES, angles.T, strict=True)))


def relion_angles(picks: pd.DataFrame) -> Floats:
    """Return rot, tilt, psi, (n, 3) degrees; NaN where a pick has no orientation."""
    return np.column_stack([np.asarray(picks[name], np.float64) for name in ANGLES])


def wrapped(degrees: Any) -> Floats:
    """Return angles from -180 to below 180; NaN where one is infinite.

    Examples
    --------
    >>> wrapped([190.0, -190.0, 180.0, 30.0]).tolist()
    [-170.0, 170.0, -180.0, 30.0]
    """
    angles = np.asarray(degrees, np.float64)
    inside = (angles >= -180) & (angles < 180)  # those keep every digit
    with np.errstate(invalid="ignore"):
        return np.where(inside, angles, (angles + 180) % 360 - 180)


def angles_from_av3(phi_psi_theta: Any) -> Floats:
    """Return rot, tilt, psi for the columns 17 to 19 of a motl, (n, 3) degrees.

    Examples
    --------
    >>> angles_from_av3([[90.0, -90.0, 30.0]]).tolist()
    [[0.0, 30.0, 0.0]]
    """
    phi, psi, theta = np.asarray(phi_psi_theta, np.float64).reshape(-1, 3).T
    return wrapped(np.column_stack([90 - phi, theta, -90 - psi]))


def av3_from_angles(rot_tilt_psi: Any) -> Floats:
    """Return phi, psi, theta, (n, 3) degrees; the reverse of `angles_from_av3`."""
    rot, tilt, psi = np.asarray(rot_tilt_psi, np.float64).reshape(-1, 3).T
    return wrapped(np.column_stack([90 - rot, -90 - psi, tilt]))


def angles_from_dynamo(tdrot_tilt_narot: Any) -> Floats:
    """Return rot, tilt, psi for the columns 7 to 9 of a Dynamo table, (n, 3) degrees.

    Examples
    --------
    >>> angles_from_dynamo([[-90.0, 30.0, 90.0]]).tolist()
    [[0.0, 30.0, 0.0]]
    """
    tdrot, tilt, narot = np.asarray(tdrot_tilt_narot, np.float64).reshape(-1, 3).T
    return wrapped(np.column_stack([narot - 90, tilt, tdrot + 90]))


def dynamo_from_angles(rot_tilt_psi: Any) -> Floats:
    """Return tdrot, tilt, narot, (n, 3) degrees; the reverse of `angles_from_dynamo`."""
    rot, tilt, psi = np.asarray(rot_tilt_psi, np.float64).reshape(-1, 3).T
    return wrapped(np.column_stack([psi - 90, tilt, rot + 90]))


def matrices_from_angles(rot_tilt_psi: Any) -> Floats:
    """Return the matrices R, (n, 3, 3), x first, of rot, tilt, psi in degrees.

    Examples
    --------
    >>> matrices_from_angles([[0.0, 90.0, 0.0]]).round(6)[0, :, 2].tolist()
    [-1.0, 0.0, 0.0]
    """
    from scipy.spatial.transform import Rotation

    angles = np.asarray(rot_tilt_psi, np.float64).reshape(-1, 3)
    if len(angles) == 0:
        return np.zeros((0, 3, 3))
    matrices = Rotation.from_euler("ZYZ", angles, degrees=True).inv().as_matrix()
    return np.asarray(matrices, np.float64)


def are_rotations(matrices: Any) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return for each of (n, 3, 3) matrices whether it turns, without mirroring or stretching.

    Examples
    --------
    >>> are_rotations([np.eye(3), -np.eye(3)]).tolist()
    [True, False]
    """
    turns = np.asarray(matrices, np.float64).reshape(-1, 3, 3)
    finite = np.asarray((np.abs(turns) < _LARGEST).all(axis=(1, 2)))  # NaN is not less
    turns = np.where(finite[:, np.newaxis, np.newaxis], turns, 0.0)
    off = np.abs(turns @ turns.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2), initial=0.0)
    return np.asarray(finite & (off < _ROTATION_TOLERANCE) & (np.linalg.det(turns) > 0))


def angles_from_matrices(matrices: Any) -> Floats:
    """Return rot, tilt, psi, (n, 3) degrees, of matrices R, (n, 3, 3); psi is 0 where tilt is.

    Raises
    ------
    ValueError
        Where a matrix is no rotation.

    Examples
    --------
    >>> angles_from_matrices([np.eye(3)]).tolist()
    [[0.0, 0.0, 0.0]]
    """
    turns = np.asarray(matrices, np.float64).reshape(-1, 3, 3)
    bad = np.flatnonzero(~are_rotations(turns))
    if len(bad):
        raise ValueError(f"matrix {bad[0] + 1} is no rotation")
    inverse = turns.transpose(0, 2, 1)  # Rz(rot) Ry(tilt) Rz(psi)
    sine = np.hypot(inverse[:, 0, 2], inverse[:, 1, 2])
    tilt = np.arctan2(sine, inverse[:, 2, 2])
    along_z = sine < _PARALLEL
    rot = np.where(
        along_z,
        np.arctan2(-inverse[:, 0, 1], inverse[:, 1, 1]),
        np.arctan2(inverse[:, 1, 2], inverse[:, 0, 2]),
    )
    psi = np.where(along_z, 0.0, np.arctan2(inverse[:, 2, 1], -inverse[:, 2, 0]))
    return np.degrees(np.column_stack([rot, tilt, psi])) + 0.0
