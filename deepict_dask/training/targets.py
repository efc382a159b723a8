"""Turn picks into what a network should answer: a ball of ones round every centre.

A voxel belongs to a ball if its own centre lies within the radius, so a ball of radius 8 voxels
(10.8 nm at 13.48 Å, as DeePiCt's paper uses for ribosomes) holds 2109 voxels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ConfigError

if TYPE_CHECKING:
    from ..core.geometry import Vec

__all__ = ["radius_in_voxels", "sphere_target"]


def radius_in_voxels(radius_nm: float, voxel_spacing_angstrom: float) -> float:
    """Return a radius given in nm in voxels.

    Examples
    --------
    >>> round(radius_in_voxels(10.8, 13.48), 2)
    8.01
    """
    return radius_nm * 10 / voxel_spacing_angstrom


def sphere_target(
    centres: np.ndarray[Any, Any], shape: Vec, radius: float
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return balls round centres.

    Parameters
    ----------
    centres
        Array (n, 3) of zyx voxels, whole or not; balls may leave the volume.
    shape
        Voxels of the volume, zyx.
    radius
        In voxels.

    Returns
    -------
    ndarray
        Uint8, zyx, 1 inside a ball.

    Raises
    ------
    ConfigError
        If the radius is not positive or the centres are not an (n, 3) array.

    Examples
    --------
    >>> int(sphere_target(np.array([[4, 4, 4]]), (9, 9, 9), radius=1).sum())
    7
    """
    points = np.asarray(centres, np.float64)
    if radius <= 0 or points.ndim != 2 or points.shape[1] != 3:
        raise ConfigError(
            f"targets: expected a positive radius and centres of shape (n, 3), found radius "
            f"{radius:g} and shape {points.shape}; give zyx voxels"
        )
    target = np.zeros(shape, np.uint8)
    for point in points:
        _add_ball(target, point, radius)
    return target


def _add_ball(target: np.ndarray[Any, Any], point: np.ndarray[Any, Any], radius: float) -> None:
    low = np.maximum(np.ceil(point - radius), 0).astype(int)
    high = np.minimum(np.floor(point + radius) + 1, target.shape).astype(int)
    if (high <= low).any():
        return
    axes = [np.arange(a, b) - c for a, b, c in zip(low, high, point, strict=True)]
    square = axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    target[box] |= square <= radius**2
