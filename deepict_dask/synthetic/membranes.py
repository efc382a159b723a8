"""Membranes, and the fields that say how far a voxel is from them.

A membrane is a bilayer round the zero of a distance: two leaflets of density 1, 4 nm apart. No
membrane is a perfect sphere: distances are bent by smooth waves.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .settings import LABELS

__all__ = ["add_membrane", "ellipsoid_distance", "smooth_wave", "volume_axes"]

Floats = np.ndarray[Any, np.dtype[np.float32]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Vec3 = tuple[float, float, float]

LEAFLET_NM = 2.0
"""Distance of a leaflet from the middle of its membrane."""
MEMBRANE_NM = 3.5
"""Half the thickness that is labelled membrane."""


def volume_axes(shape: tuple[int, int, int], step: int = 1) -> list[Floats]:
    """Return the coordinates of every so many voxels on each axis, ready to broadcast."""
    return [axis.astype(np.float32) for axis in np.ogrid[tuple(slice(0, n, step) for n in shape)]]


def smooth_wave(shape: tuple[int, int, int], rng: np.random.Generator) -> Floats:
    """Return a smooth field of some 2 voxels, so that no membrane is a perfect sphere."""
    field = np.zeros(shape, np.float32)
    for _ in range(3):
        waves = rng.normal(0.0, 0.06, 3)
        phase = sum(axis * wave for axis, wave in zip(volume_axes(shape), waves, strict=True))
        field += 1.2 * np.cos(phase + np.float32(rng.uniform(0, 2 * np.pi)))
    return field


def ellipsoid_distance(
    shape: tuple[int, int, int],
    centre: Vec3,
    semi_axes: Vec3,
    step: int = 1,
) -> Floats:
    """Return the distance in voxels to an ellipsoid, exact at its surface.

    Parameters
    ----------
    shape
        Voxels of the volume, zyx.
    centre, semi_axes
        Of the ellipsoid, in voxels, zyx.
    step
        Only every so many voxels of each axis.

    Examples
    --------
    >>> distance = ellipsoid_distance((9, 9, 9), (4, 4, 4), (2, 3, 4))
    >>> distance[4, 4, 7:9], distance[1, 4, 4] > 0
    (array([-1.,  0.], dtype=float32), np.True_)
    """
    parts = [
        (axis - np.float32(c)) / np.float32(r)
        for axis, c, r in zip(volume_axes(shape, step), centre, semi_axes, strict=True)
    ]
    length = np.sqrt(sum(part**2 for part in parts))
    slopes = [(part / np.float32(r)) ** 2 for part, r in zip(parts, semi_axes, strict=True)]
    slope = np.sqrt(sum(slopes))
    return length * (length - 1) / np.maximum(slope, np.float32(1e-6))


def add_membrane(density: Floats, labels: Bytes, distance_nm: Floats) -> None:
    """Add a bilayer round the zero of a distance, and label it."""
    near = np.abs(distance_nm) < MEMBRANE_NM + 1.5
    offset = np.abs(distance_nm[near])
    density[near] = np.maximum(density[near], np.exp(-(((offset - LEAFLET_NM) / 1.2) ** 2)))
    labels[np.abs(distance_nm) < MEMBRANE_NM] = LABELS["membrane"]
