"""What is known of compared voxels, and the figures that follow from it.

A `Tally` holds whole numbers, and voxels drawn at random (or a histogram of all). Tallies of parts
of a volume add up to that of the volume, tallies of tomograms to that of a data set.

Ratios without a denominator are 0; an AUPRC without a true voxel is NaN: unknown, not bad.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .curves import Curve, curve_of_counts, last_of_equals, ratio
from .voxel_sample import VoxelSample

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "N_STEPS",
    "BadVoxels",
    "SegmentationScore",
    "Tally",
    "VoxelCounts",
    "pool_tallies",
    "score_segmentation",
]

Array = np.ndarray[Any, Any]
N_STEPS = 1 << 16
"""Steps of the histogram from score 0 to 1; one more holds the score 1 itself."""
_EPSILON = 1e-6


class VoxelCounts(NamedTuple):
    """Whole numbers that add up over the parts of a volume."""

    voxels: int = 0
    true: int = 0
    predicted: int = 0
    both: int = 0
    product: int = 0
    """Sum of prediction times truth, their values as they are; `published` only."""
    predicted_squares: int = 0
    true_squares: int = 0

    def plus(self, other: VoxelCounts) -> VoxelCounts:
        """Return the sums of two."""
        return VoxelCounts(*(a + b for a, b in zip(self, other, strict=True)))


class BadVoxels(NamedTuple):
    """How many voxels of a volume cannot be compared, and the first in raster order."""

    n_bad: int = 0
    first: float = math.inf
    """Row of the first one in the whole volume."""

    def plus(self, other: BadVoxels) -> BadVoxels:
        """Return those of two parts."""
        return BadVoxels(self.n_bad + other.n_bad, min(self.first, other.first))


@dataclass(frozen=True)
class Tally:
    """What is known of some voxels; tallies of parts combine to that of the whole."""

    counts: VoxelCounts
    bad: tuple[BadVoxels, ...]
    """One for each volume: prediction, truth, region."""
    sample: VoxelSample
    histogram: Array | None = None
    """int64 (2, 2**16 + 1): voxels that are not true, and that are, at each step of the score."""


@dataclass(frozen=True)
class SegmentationScore:
    """How well a segmentation agrees with the truth."""

    n_voxels: int
    """Compared voxels."""
    n_true: int
    n_predicted: int
    n_both: int
    """Predicted and true: the true positives."""
    dice: float
    precision: float
    recall: float
    auprc: float
    """Area under the precision-recall curve of the scores; NaN without a true voxel."""
    best_f1: float
    """Highest F1 (which is the Dice of a cut) over all cuts of the scores."""
    best_score: float
    """The lowest score that this cut keeps; NaN where there is no cut."""
    n_sampled: int
    """Voxels behind curve and area."""
    n_sampled_true: int
    curve: Curve = field(repr=False)


def pool_tallies(tallies: Sequence[Tally]) -> Tally:
    """Join tomograms: every voxel, and every sampled voxel, counts alike.

    Parameters
    ----------
    tallies
        At least one, all made with the same settings.

    Examples
    --------
    >>> one = Tally(VoxelCounts(4, 1, 1, 1), (), VoxelSample.none())
    >>> pool_tallies([one, one]).counts.voxels
    8
    """
    histograms = [one.histogram for one in tallies if one.histogram is not None]
    counts = VoxelCounts()
    for one in tallies:
        counts = counts.plus(one.counts)
    return Tally(
        counts,
        (),
        VoxelSample(
            np.concatenate([one.sample.ticket for one in tallies]),
            np.concatenate([one.sample.score for one in tallies]),
            np.concatenate([one.sample.true for one in tallies]),
        ),
        np.sum(histograms, axis=0) if histograms else None,
    )


def score_segmentation(tally: Tally, *, published: bool = False) -> SegmentationScore:
    """Turn counts and a sample into the figures.

    Parameters
    ----------
    tally
        Of one volume or several.
    published
        Dice by DeePiCt's formula, from the sums of values.

    Examples
    --------
    >>> score = score_segmentation(Tally(VoxelCounts(9, 4, 4, 3), (), VoxelSample.none()))
    >>> score.dice, score.n_sampled, score.auprc
    (0.75, 0, nan)
    """
    n = tally.counts
    curve, n_sampled, n_sampled_true = _curve(tally)
    best = curve.best
    known = n_sampled_true > 0
    return SegmentationScore(
        n_voxels=n.voxels,
        n_true=n.true,
        n_predicted=n.predicted,
        n_both=n.both,
        dice=_published_dice(n) if published else float(ratio(2 * n.both, n.true + n.predicted)),
        precision=float(ratio(n.both, n.predicted)),
        recall=float(ratio(n.both, n.true)),
        auprc=curve.area if known else math.nan,
        best_f1=float(curve.f1[best]) if known else math.nan,
        best_score=float(curve.score[best]) if known else math.nan,
        n_sampled=n_sampled,
        n_sampled_true=n_sampled_true,
        curve=curve,
    )


def _published_dice(n: VoxelCounts) -> float:
    return 2 * n.product / max(n.predicted_squares + n.true_squares, _EPSILON)


def _curve(tally: Tally) -> tuple[Curve, int, int]:
    """Return the curve over scored voxels, how many there are, and how many are true."""
    if tally.histogram is None:
        falling = np.argsort(-tally.sample.score, kind="stable")
        score = tally.sample.score[falling]
        true = tally.sample.true[falling].astype(np.int64)
        wrong = 1 - true
    else:
        used = np.flatnonzero(tally.histogram.sum(axis=0))[::-1]
        score = used / N_STEPS
        wrong, true = tally.histogram[:, used]
    ends = last_of_equals(score)
    found, missed = np.cumsum(true)[ends], np.cumsum(wrong)[ends]
    n_true = int(true.sum())
    curve = curve_of_counts(found, missed, n_true=n_true, score=score[ends])
    return curve, n_true + int(wrong.sum()), n_true
