"""How many particles would be picked? F1-alpha, by which DeepETPicker's paper chooses a model.

Of the validation patches, as its program tests them:

1. Voxels with a score above 1/2 are searched by mean pooling and non-maximum suppression, patch by
   patch (`deepict_dask.particles.mean_pool_nms`), for blobs of the size that was painted.
2. A pick less than a particle's radius from a particle's centre is right; a particle with such a
   pick is found. Picks and particles near the sides of a patch are not counted, since the network
   sees half of them; but they may stand for one that is.
3. With precision P and recall R over all patches, F1-alpha is ``P R^3 / (P + R^3)``: at most 1/2,
   and with a weight on recall, because false picks can be sorted out later, and lost ones cannot.

Classes that are made from label volumes have no particles to count and are left out.

Source: Liu et al., Nature Communications 2024 (10.1038/s41467-024-46041-0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.geometry import Grid, as_vec
from ..particles.mean_pool_nms import MeanPoolReduction, MeanPoolSettings, keep_highest

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ALPHA", "ParticlesOfPatch", "PickCounter", "count_picks", "f1_alpha"]

Floats = np.ndarray[Any, np.dtype[np.float32]]
Points = np.ndarray[Any, np.dtype[np.float64]]
Counts = np.ndarray[Any, np.dtype[np.int64]]

ALPHA = 3
"""Weight of the recall."""
LARGEST_PAD = 12
"""Voxels at the sides of a patch that are not counted, where the patch is large enough."""


def f1_alpha(precision: float, recall: float, alpha: float = ALPHA) -> float:
    """Return F1-alpha; 0 where nothing right was picked.

    Examples
    --------
    >>> f1_alpha(1.0, 1.0), f1_alpha(0.5, 1.0), round(f1_alpha(1.0, 0.5), 4), f1_alpha(0.0, 0.0)
    (0.5, 0.3333333333333333, 0.1111, 0.0)
    """
    weighted = recall**alpha
    return precision * weighted / (precision + weighted) if precision and weighted else 0.0


@dataclass(frozen=True, eq=False)
class ParticlesOfPatch:
    """What a validation patch holds."""

    centres: tuple[Points | None, ...]
    """Of each class (n, 3), zyx voxels from the patch's first; None for label volumes. Those that
    lie outside, but reach the patch, too."""
    end: tuple[int, int, int]
    """Voxels of the patch that are no mirrored ones, zyx."""


def count_picks(
    scores: Floats, particles: Points, radius: float, end: tuple[int, int, int]
) -> Counts:
    """Count picks and particles of one class in one patch.

    Parameters
    ----------
    scores
        Float32, zyx.
    particles
        (n, 3) zyx voxels of the patch.
    radius
        Of a particle, in voxels.
    end
        Of `ParticlesOfPatch`.

    Returns
    -------
    ndarray
        Int64: picks, right ones; particles, found ones.

    Examples
    --------
    >>> scores = np.zeros((24, 24, 24), np.float32)
    >>> scores[8:13, 8:13, 8:13] = 0.9
    >>> particles = np.array([[10.0, 10, 10], [10, 10, 18]])
    >>> count_picks(scores, particles, 3.0, (24, 24, 24)).tolist()
    [1, 1, 2, 1]
    """
    picks = _picks(scores, radius)
    pads = [min(LARGEST_PAD, n // 6) for n in scores.shape]
    high = np.minimum(np.subtract(scores.shape, pads), end)

    def inside(points: Points) -> Any:
        return ((points >= pads) & (points < high)).all(axis=1)

    near = np.linalg.norm(picks[:, None] - particles[None], axis=2) < radius
    counted, there = inside(picks), inside(particles)
    right, found = near.any(axis=1) & counted, near.any(axis=0) & there
    return np.array([counted.sum(), right.sum(), there.sum(), found.sum()], np.int64)


def _picks(scores: Floats, radius: float) -> Points:
    """Return the picks of a patch (n, 3), zyx voxels."""
    settings = MeanPoolSettings.of_diameters([2 * int(radius) + 1])
    shape = as_vec(scores.shape)
    (block,) = Grid(shape, shape)
    rows = MeanPoolReduction(settings).measure(block, scores).rows
    kept = keep_highest(rows, settings.min_distance)
    return np.stack([kept[name] for name in "zyx"], axis=1).astype(np.float64)


class PickCounter:
    """Adds up counts over patches.

    Parameters
    ----------
    patches
        What each holds, in the order in which scores come.
    radii
        Of each class's particles, in voxels; None for label volumes.

    Examples
    --------
    >>> patch = ParticlesOfPatch((np.array([[10.0, 10, 10]]), None), (24, 24, 24))
    >>> counter = PickCounter([patch], [3.0, None])
    >>> scores = np.zeros((1, 2, 24, 24, 24), np.float32)
    >>> scores[0, 0, 8:13, 8:13, 8:13] = 0.9
    >>> counter.add(scores)
    >>> counter.figures(("ribosome", "membrane"))
    {'ribosome': 0.5, 'membrane': None}
    """

    def __init__(self, patches: Sequence[ParticlesOfPatch], radii: Sequence[float | None]) -> None:
        self._patches, self._radii = iter(patches), radii
        self._counts = np.zeros((len(radii), 4), np.int64)

    def add(self, scores: Floats) -> None:
        """Count the next patches, whose scores are (batch, class, z, y, x)."""
        for of_patch in scores:
            patch = next(self._patches)
            of_classes = zip(of_patch, patch.centres, self._radii, strict=True)
            for number, (of_class, centres, radius) in enumerate(of_classes):
                if centres is not None and radius is not None:
                    self._counts[number] += count_picks(of_class, centres, radius, patch.end)

    def figures(self, class_names: Sequence[str]) -> dict[str, float | None]:
        """Return F1-alpha of each class; None where no particle could be counted."""
        found: dict[str, float | None] = dict.fromkeys(class_names)
        for name, (picks, right, true, hit) in zip(class_names, self._counts, strict=True):
            if true:
                found[name] = f1_alpha(float(right / max(1, picks)), float(hit / true))
        return found
