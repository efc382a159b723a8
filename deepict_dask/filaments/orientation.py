"""Directions along a filament to RELION's Euler angles.

The particle's z axis lies along the filament. Its x axis is carried from point to point without
turning about the filament (each frame is turned by the smallest rotation that takes one tangent to
the next), and then turned by the helical twist, right-handed about the z axis, once per step: a
right-handed helix is one from either end.

RELION's angles rot, tilt, psi make the matrix A = Rz(-psi) Ry(-tilt) Rz(-rot) (the inverse of the
intrinsic ZYZ rotation; Heymann, Chagoyen and Belnap 2005) that takes the particle's axes x, y, z to
the tomogram's. Its third column is the direction of the filament,
(-sin tilt cos psi, sin tilt sin psi, cos tilt); rot is the turn about the filament.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["carried_frames", "direction_of", "euler_angles"]

Floats = np.ndarray[Any, np.dtype[np.float64]]

_PARALLEL = 1e-9


def _upright_frame(tangent: Floats) -> Floats:
    """Return the frame with rot 0 whose third column is a direction (x, y, z)."""
    x, y, z = tangent
    aside = np.hypot(x, y)
    # psi is of no meaning along z: take 0
    cos_psi, sin_psi = (-x / aside, y / aside) if aside > _PARALLEL else (1.0, 0.0)
    first = np.array([z * cos_psi, -z * sin_psi, aside])
    second = np.array([sin_psi, cos_psi, 0.0])
    return np.stack([first, second, tangent], axis=-1)


def _turn(start: Floats, end: Floats) -> Floats:
    """Return the smallest rotation, a matrix, that takes one unit vector to another."""
    axis = np.cross(start, end)
    cosine = float(start @ end)
    if cosine < -1 + _PARALLEL:  # a hairpin has no smallest rotation
        other = _upright_frame(start)[:, 0]
        found: Floats = 2 * np.outer(other, other) - np.eye(3)
        return found
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + cross + cross @ cross / (1 + cosine)


def _squared(frame: Floats, tangent: Floats) -> Floats:
    """Return a frame whose axes are exactly at right angles: rounding must not add up."""
    second = np.cross(tangent, frame[:, 0])
    second /= np.linalg.norm(second)
    return np.stack([np.cross(second, tangent), second, tangent], axis=-1)


def carried_frames(tangents_zyx: Floats, twist_degrees: float = 0.0) -> Floats:
    """Return the particle's axes at each point of a filament.

    Parameters
    ----------
    tangents_zyx
        (n, 3) unit vectors in the order of the points.
    twist_degrees
        Turn about the filament from one point to the next.

    Returns
    -------
    ndarray
        (n, 3, 3) matrices; columns are the particle's x, y, z axes in the tomogram's x, y, z.

    Examples
    --------
    >>> carried_frames(np.array([[1.0, 0, 0]] * 2), 90.0)[1].round(6).tolist()
    [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    tangents = np.asarray(tangents_zyx, np.float64)[:, ::-1]
    frames = np.empty((len(tangents), 3, 3))
    for i, tangent in enumerate(tangents):
        if i == 0:
            frames[i] = _upright_frame(tangent)
        else:
            frames[i] = _squared(_turn(tangents[i - 1], tangent) @ frames[i - 1], tangent)
    angles = np.radians(twist_degrees) * np.arange(len(tangents))
    turns = np.zeros((len(tangents), 3, 3))
    turns[:, 0, 0] = turns[:, 1, 1] = np.cos(angles)
    turns[:, 1, 0], turns[:, 0, 1] = np.sin(angles), -np.sin(angles)
    turns[:, 2, 2] = 1
    found: Floats = frames @ turns
    return found


def euler_angles(frames: Floats) -> Floats:
    """Return RELION's rot, tilt, psi of frames, in degrees, (n, 3).

    Examples
    --------
    >>> euler_angles(carried_frames(np.array([[0.0, 1, 0]])))[0].round(6).tolist()
    [0.0, 90.0, 90.0]
    """
    tilt = np.arctan2(np.hypot(frames[:, 0, 2], frames[:, 1, 2]), frames[:, 2, 2])
    along_z = np.sin(tilt) < _PARALLEL
    psi = np.where(along_z, 0.0, np.arctan2(frames[:, 1, 2], -frames[:, 0, 2]))
    rot = np.where(
        along_z,
        np.arctan2(-frames[:, 1, 0], frames[:, 1, 1]),
        np.arctan2(frames[:, 2, 1], frames[:, 2, 0]),
    )
    return np.degrees(np.stack([rot, tilt, psi], axis=-1)) + 0.0


def direction_of(rot_tilt_psi: Any) -> Floats:
    """Return the directions (zyx) of the particle's z axis for angles in degrees.

    Examples
    --------
    >>> direction_of([[0, 90, 90]])[0].round(6).tolist()
    [0.0, 1.0, -0.0]
    """
    _, tilt, psi = np.radians(np.asarray(rot_tilt_psi, np.float64)).T
    x, y = -np.sin(tilt) * np.cos(psi), np.sin(tilt) * np.sin(psi)
    return np.stack([np.cos(tilt), y, x], axis=-1)
