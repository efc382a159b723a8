"""Paint large mitochondria: a compartment that holds particles nobody asked for.

1. Places are tried at the volume's sides, which cut a mitochondrion off as the field of view does.
   Of those that lie in free cytosol, the one whose size is nearest to the wanted one is taken.
2. The outer membrane is a wavy ellipsoid. The inner one lies 12 nm inside it and folds into
   cristae: shelves that grow from either side in turn.
3. Inside the inner membrane is the matrix: denser than the cytosol and granular. Its particles,
   mitoribosomes and pyruvate dehydrogenase cores, look much like ribosomes and FAS but are neither.

A network that sees particles only is misled by them; one that sees where the mitochondrion is can
say which picks lie in the cytosol.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import gaussian_filter

from ..core.errors import ConfigError
from .membranes import add_membrane, ellipsoid_distance, smooth_wave
from .settings import LABELS

if TYPE_CHECKING:
    from .scene import Scene
    from .settings import CellSettings

__all__ = ["GAP_NM", "add_mitochondria"]

Floats = np.ndarray[Any, np.dtype[np.float32]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Vec3 = tuple[float, float, float]

GAP_NM = 12.0
"""Distance between the two membranes of a mitochondrion."""
MATRIX_DENSITY = 0.08
"""Mean density between the particles of the matrix; the cytosol has 0 there. With particles and
membranes a mitochondrion has twice the mean density of the cytosol (0.28 and 0.13)."""
GRAIN_DENSITY = 0.05
"""Standard deviation of the matrix's density."""
GRAIN_NM = 4.0
CRISTA_PERIOD_NM = 140.0
CRISTA_NM = 8.0
"""Half the width of the space inside a crista."""
WANTED_FRACTION = 0.16
"""Of the volume."""
N_TRIES = 200
COARSE = 4
"""A place is tried on every fourth voxel of each axis."""
CLEARANCE_NM = 15.0
"""Least distance to other membranes."""


@dataclass(frozen=True)
class _Place:
    centre: Vec3
    semi_axes: Vec3
    along: int
    """Axis (1 is y, 2 is x) across which the cristae lie."""


def add_mitochondria(scene: Scene, settings: CellSettings, rng: np.random.Generator) -> None:
    """Paint ``settings.n_mitochondria`` large mitochondria into the cytosol of a scene.

    Parameters
    ----------
    scene
        Changed in place: density, labels, matrix, and a smaller cytosol.
    settings
        Number of mitochondria, shape and spacing.
    rng
        Where they lie and how they look.

    Raises
    ------
    ConfigError
        If one finds no place.
    """
    for number in range(settings.n_mitochondria):
        place = _free_place(scene, settings, rng)
        if place is None:
            raise ConfigError(
                f"synthetic cell: {settings.n_mitochondria} mitochondria were asked for, but the "
                f"cytosol has room for {number}; ask for fewer, or for a larger shape"
            )
        _paint(scene, settings, place, rng)


def _free_place(scene: Scene, settings: CellSettings, rng: np.random.Generator) -> _Place | None:
    """Return the place in free cytosol, of those tried, of about the wanted size."""
    free = scene.cytosol[(slice(None, None, COARSE),) * 3] > 0
    clearance = CLEARANCE_NM * 10 / settings.voxel_spacing_angstrom
    best, least = None, np.inf
    for _ in range(N_TRIES):
        place = _random_place(settings.shape, rng)
        distance = ellipsoid_distance(settings.shape, place.centre, place.semi_axes, step=COARSE)
        off = abs(float((distance < 0).mean()) - WANTED_FRACTION)
        if off < least and free[distance < clearance].all():
            best, least = place, off
    return best


def _random_place(shape: tuple[int, int, int], rng: np.random.Generator) -> _Place:
    """Return a place at one of the four sides; z is thin, so a mitochondrion leaves it at both."""
    across = int(rng.integers(1, 3))
    along = 3 - across
    centre, semi_axes = np.empty(3), np.empty(3)
    centre[0], semi_axes[0] = rng.uniform(0.4, 0.6), rng.uniform(0.8, 1.2)
    centre[across] = abs(int(rng.integers(2)) - rng.uniform(0.0, 0.15))
    semi_axes[across] = rng.uniform(0.2, 0.32)
    centre[along], semi_axes[along] = rng.uniform(0.25, 0.75), rng.uniform(0.25, 0.42)
    return _Place(tuple(centre * shape), tuple(semi_axes * shape), along)


def _paint(scene: Scene, settings: CellSettings, place: _Place, rng: np.random.Generator) -> None:
    """Paint one mitochondrion."""
    distance = ellipsoid_distance(settings.shape, place.centre, place.semi_axes)
    distance += smooth_wave(settings.shape, rng)
    distance *= np.float32(settings.voxel_spacing_angstrom / 10)
    inner = np.maximum(distance + GAP_NM, -_cristae(settings, place, rng))
    inside = inner < 0
    scene.cytosol[distance < 0] = 0
    scene.labels[distance < 0] = LABELS["mitochondrion"]
    scene.density[inside] = _grains(settings, rng)[inside]
    add_membrane(scene.density, scene.labels, inner)
    add_membrane(scene.density, scene.labels, distance)
    scene.matrix[inside & (scene.labels == LABELS["mitochondrion"])] = 1


def _cristae(settings: CellSettings, place: _Place, rng: np.random.Generator) -> Floats:
    """Return the distance in nm to the space inside the cristae, negative there."""
    spacing_nm = settings.voxel_spacing_angstrom / 10
    axes = np.ogrid[tuple(slice(n) for n in settings.shape)]
    across = 3 - place.along
    u = (axes[place.along] - place.centre[place.along]) * spacing_nm
    v = (axes[across] - place.centre[across]) * spacing_nm
    # waves of some nm and a tilt, so that shelves are not planes
    u = u + 0.15 * v + 3 * spacing_nm * smooth_wave(settings.shape, rng)
    number = np.round(u / CRISTA_PERIOD_NM)
    side = 1 - 2 * (number % 2)
    reach = 0.35 * place.semi_axes[across] * spacing_nm
    return np.maximum(np.abs(u - CRISTA_PERIOD_NM * number) - CRISTA_NM, side * v - reach).astype(
        np.float32
    )


def _grains(settings: CellSettings, rng: np.random.Generator) -> Floats:
    """Return the density of a matrix that fills the volume."""
    noise = rng.standard_normal(settings.shape, dtype=np.float32)
    grains = gaussian_filter(noise, GRAIN_NM * 10 / settings.voxel_spacing_angstrom / 2)
    grains *= np.float32(GRAIN_DENSITY) / grains.std()
    grains += np.float32(MATRIX_DENSITY)
    return grains.clip(min=0)
