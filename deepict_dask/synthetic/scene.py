"""Paint the cell without its particles: membranes, a mitochondrion, vesicles, the cytosol.

1. The plasma membrane is a wavy sphere that leaves one corner of the volume outside the cell.
2. A mitochondrion (two membranes, a dense matrix, cristae) and vesicles lie where they fit.
3. Every membrane is a bilayer: two leaflets of density 1, 4 nm apart.
4. The cytosol is what is inside the cell and outside the organelles and the membranes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .settings import LABELS

if TYPE_CHECKING:
    from .settings import CellSettings

__all__ = ["Scene", "paint_scene"]

Floats = np.ndarray[Any, np.dtype[np.float32]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]

LEAFLET_NM = 2.0
"""Distance of a leaflet from the middle of its membrane."""
MEMBRANE_NM = 3.5
"""Half the thickness that is labelled membrane."""
GAP_NM = 12.0
"""Distance between the two membranes of a mitochondrion."""


@dataclass(eq=False)
class Scene:
    """The cell as painted so far; the three volumes have one zyx shape."""

    density: Floats
    """Mass, 0 in water, 1 in a ribosome or a leaflet."""
    labels: Bytes
    cytosol: Bytes
    """1 where particles may be."""


@dataclass(frozen=True)
class _Organelle:
    kind: str
    centre: tuple[float, float, float]
    semi_axes: tuple[float, float, float]


def paint_scene(settings: CellSettings, rng: np.random.Generator) -> Scene:
    """Return the membranes, organelles and cytosol of a cell.

    Parameters
    ----------
    settings
        Shape, spacing and number of vesicles.
    rng
        Where they lie.

    Returns
    -------
    Scene
        Float32 density, uint8 labels and uint8 cytosol, all zyx.

    Examples
    --------
    >>> from deepict_dask.synthetic import CellSettings
    >>> scene = paint_scene(CellSettings(shape=(32, 48, 48)), np.random.default_rng(0))
    >>> scene.density.shape, scene.density.dtype.name, bool(scene.cytosol.any())
    ((32, 48, 48), 'float32', True)
    """
    wave = _wave(settings.shape, rng)
    inside = _plasma_distance(settings.shape, rng) + wave
    density = np.zeros(settings.shape, np.float32)
    labels = np.zeros(settings.shape, np.uint8)
    cytosol = inside < 0
    spacing_nm = settings.voxel_spacing_angstrom / 10
    _add_membrane(density, labels, inside * spacing_nm)
    for organelle in _organelles(settings, rng):
        distance = (_organelle_distance(settings.shape, organelle) + wave) * spacing_nm
        cytosol &= distance > 0
        _add_organelle(density, labels, distance, organelle)
    cytosol &= labels == LABELS["background"]
    return Scene(density, labels, cytosol.astype(np.uint8))


def _wave(shape: tuple[int, int, int], rng: np.random.Generator) -> Floats:
    """Return a smooth field of some 2 voxels, so that no membrane is a perfect sphere."""
    field = np.zeros(shape, np.float32)
    for _ in range(3):
        waves = rng.normal(0.0, 0.06, 3)
        phase = sum(axis * wave for axis, wave in zip(_axes(shape), waves, strict=True))
        field += 1.2 * np.cos(phase + np.float32(rng.uniform(0, 2 * np.pi)))
    return field


def _axes(shape: tuple[int, int, int]) -> list[Floats]:
    return [axis.astype(np.float32) for axis in np.ogrid[tuple(slice(n) for n in shape)]]


def _plasma_distance(shape: tuple[int, int, int], rng: np.random.Generator) -> Floats:
    """Return the distance in voxels to a sphere that cuts one corner of the volume off."""
    side = rng.integers(0, 2, 2)
    places = (0.5, *(0.38 + 0.24 * side))
    centre = [place * n for place, n in zip(places, shape, strict=True)]
    square = sum((axis - np.float32(c)) ** 2 for axis, c in zip(_axes(shape), centre, strict=True))
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
    return chosen


def _apart(one: _Organelle, other: _Organelle) -> bool:
    return np.hypot.reduce(np.subtract(one.centre, other.centre)) > max(one.semi_axes) + max(
        other.semi_axes
    )


def _organelle_distance(shape: tuple[int, int, int], organelle: _Organelle) -> Floats:
    """Return the distance in voxels to an ellipsoid, exact at its surface."""
    parts = [
        (axis - np.float32(c)) / np.float32(r)
        for axis, c, r in zip(_axes(shape), organelle.centre, organelle.semi_axes, strict=True)
    ]
    length = np.sqrt(sum(part**2 for part in parts))
    slopes = [
        (part / np.float32(r)) ** 2 for part, r in zip(parts, organelle.semi_axes, strict=True)
    ]
    slope = np.sqrt(sum(slopes))
    return length * (length - 1) / np.maximum(slope, np.float32(1e-6))


def _add_organelle(
    density: Floats, labels: Bytes, distance_nm: Floats, organelle: _Organelle
) -> None:
    labels[(distance_nm < 0) & (labels == 0)] = LABELS["organelle"]
    if organelle.kind == "mitochondrion":
        matrix = distance_nm < -GAP_NM
        density[matrix] += 0.3
        _add_membrane(density, labels, distance_nm + GAP_NM)
        _add_membrane(density, labels, _cristae_distance(distance_nm))
    _add_membrane(density, labels, distance_nm)


def _cristae_distance(distance_nm: Floats, period_nm: float = 28.0) -> Floats:
    """Return the distance to flat sheets across y, far from everything outside the matrix."""
    y = np.arange(distance_nm.shape[1], dtype=np.float32)[None, :, None]
    sheet = np.abs((y * 1.3 + 0.3 * distance_nm) % period_nm - period_nm / 2)
    return np.where(distance_nm < -1.5 * GAP_NM, sheet, np.float32(1e3))


def _add_membrane(density: Floats, labels: Bytes, distance_nm: Floats) -> None:
    """Add a bilayer round the zero of a distance, and label it."""
    near = np.abs(distance_nm) < MEMBRANE_NM + 1.5
    offset = np.abs(distance_nm[near])
    density[near] = np.maximum(density[near], np.exp(-(((offset - LEAFLET_NM) / 1.2) ** 2)))
    labels[np.abs(distance_nm) < MEMBRANE_NM] = LABELS["membrane"]
