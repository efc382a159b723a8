"""Paint the cell without its particles: membranes, a small mitochondrion, vesicles, the cytosol.

1. The plasma membrane is a wavy sphere that leaves one corner of the volume outside the cell.
2. A small mitochondrion (two membranes, a dense matrix, cristae) or, if asked for, large ones
   (`mitochondria`), and vesicles lie where they fit.
3. The cytosol is what is inside the cell and outside the organelles and the membranes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .membranes import add_membrane, ellipsoid_distance, smooth_wave, volume_axes
from .mitochondria import GAP_NM, add_mitochondria
from .settings import LABELS

if TYPE_CHECKING:
    from .settings import CellSettings

__all__ = ["Scene", "paint_scene"]

Floats = np.ndarray[Any, np.dtype[np.float32]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]

CLEARANCE = 8.0
"""Voxels from a vesicle to a large mitochondrion; a vesicle nearer than that is left out."""


@dataclass(eq=False)
class Scene:
    """The cell as painted so far; the three volumes have one zyx shape."""

    density: Floats
    """Mass, 0 in water, 1 in a ribosome or a leaflet."""
    labels: Bytes
    cytosol: Bytes
    """1 where particles may be."""
    matrix: Bytes
    """1 in the matrix of large mitochondria, where particles of its own may be."""


@dataclass(frozen=True)
class _Organelle:
    kind: str
    centre: tuple[float, float, float]
    semi_axes: tuple[float, float, float]


def paint_scene(
    settings: CellSettings, rng: np.random.Generator, mitochondria: np.random.Generator
) -> Scene:
    """Return the membranes, organelles and cytosol of a cell.

    Parameters
    ----------
    settings
        Shape, spacing and number of vesicles and large mitochondria.
    rng
        Where membranes, vesicles and the small mitochondrion lie.
    mitochondria
        Where large mitochondria lie and how they look; not drawn from without them.

    Returns
    -------
    Scene
        Float32 density, uint8 labels, cytosol and matrix, all zyx.

    Raises
    ------
    ConfigError
        If a large mitochondrion finds no place.

    Examples
    --------
    >>> from deepict_dask.synthetic import CellSettings
    >>> first, second = np.random.default_rng(0), np.random.default_rng(1)
    >>> scene = paint_scene(CellSettings(shape=(32, 48, 48)), first, second)
    >>> scene.density.shape, scene.density.dtype.name, bool(scene.cytosol.any())
    ((32, 48, 48), 'float32', True)
    """
    wave = smooth_wave(settings.shape, rng)
    inside = _plasma_distance(settings.shape, rng) + wave
    scene = _with_plasma_membrane(inside, settings.voxel_spacing_angstrom / 10)
    before = scene.cytosol.copy()
    add_mitochondria(scene, settings, mitochondria)
    taken = before != scene.cytosol
    for organelle in _organelles(settings, rng):
        distance = ellipsoid_distance(settings.shape, organelle.centre, organelle.semi_axes) + wave
        if not taken[distance < CLEARANCE].any():
            _add_organelle(scene, distance * (settings.voxel_spacing_angstrom / 10), organelle)
    scene.cytosol[scene.labels != LABELS["background"]] = 0
    return scene


def _with_plasma_membrane(inside: Floats, spacing_nm: float) -> Scene:
    """Return a scene that holds nothing but the plasma membrane."""
    density, labels = np.zeros(inside.shape, np.float32), np.zeros(inside.shape, np.uint8)
    add_membrane(density, labels, inside * spacing_nm)
    return Scene(density, labels, (inside < 0).astype(np.uint8), np.zeros_like(labels))


def _plasma_distance(shape: tuple[int, int, int], rng: np.random.Generator) -> Floats:
    """Return the distance in voxels to a sphere that cuts one corner of the volume off."""
    side = rng.integers(0, 2, 2)
    places = (0.5, *(0.38 + 0.24 * side))
    centre = [place * n for place, n in zip(places, shape, strict=True)]
    square = sum(
        (axis - np.float32(c)) ** 2 for axis, c in zip(volume_axes(shape), centre, strict=True)
    )
    return np.sqrt(square, dtype=np.float32) - np.float32(0.73 * max(shape[1:]))


def _organelles(settings: CellSettings, rng: np.random.Generator) -> list[_Organelle]:
    """Choose organelles that do not meet; a vesicle that finds no place is left out."""
    shape = np.asarray(settings.shape)
    axes = shape * [0.30, 0.20, 0.13]
    place = shape * [0.5, *rng.uniform(0.35, 0.65, 2)]
    chosen = [_Organelle("mitochondrion", tuple(place), tuple(axes))]
    for _ in range(20 * settings.n_vesicles):
        if len(chosen) > settings.n_vesicles:
            break
        radius = float(min(shape) * rng.uniform(0.08, 0.14))
        candidate = _Organelle("vesicle", tuple(shape * rng.uniform(0.1, 0.9, 3)), (radius,) * 3)
        if all(_apart(candidate, other) for other in chosen):
            chosen.append(candidate)
    # large mitochondria take the place of the small one; the choice of vesicles stays as it was
    return chosen[1:] if settings.n_mitochondria else chosen


def _apart(one: _Organelle, other: _Organelle) -> bool:
    return np.hypot.reduce(np.subtract(one.centre, other.centre)) > max(one.semi_axes) + max(
        other.semi_axes
    )


def _add_organelle(scene: Scene, distance_nm: Floats, organelle: _Organelle) -> None:
    density, labels = scene.density, scene.labels
    scene.cytosol[distance_nm <= 0] = 0
    labels[(distance_nm < 0) & (labels == 0)] = LABELS["organelle"]
    if organelle.kind == "mitochondrion":
        density[distance_nm < -GAP_NM] += 0.3
        add_membrane(density, labels, distance_nm + GAP_NM)
        add_membrane(density, labels, _cristae_distance(distance_nm))
    add_membrane(density, labels, distance_nm)


def _cristae_distance(distance_nm: Floats, period_nm: float = 28.0) -> Floats:
    """Return the distance to flat sheets across y, far from everything outside the matrix."""
    y = np.arange(distance_nm.shape[1], dtype=np.float32)[None, :, None]
    sheet = np.abs((y * 1.3 + 0.3 * distance_nm) % period_nm - period_nm / 2)
    return np.where(distance_nm < -1.5 * GAP_NM, sheet, np.float32(1e3))
