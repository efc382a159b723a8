"""Compare a score map or a segmentation with the truth, voxel by voxel.

Each block is measured in small pieces; everything that is summed is a whole number, so that the
figures do not depend on the chunking.

1. A voxel is *predicted* where its score is above the threshold (a volume of whole numbers is a
   segmentation: predicted where it is above the threshold, its score 0 or 1), *true* where the
   truth is not 0, or is the label value asked for.
2. *Counts*: voxels, true, predicted, both. Dice = 2 both / (true + predicted), precision = both /
   predicted, recall = both / true.
3. *AUPRC*: from voxels drawn at random (`deepict_dask.evaluate.voxel_sample`), or from all of them
   by a histogram of scores with 2**16 steps from 0 to 1: exact for scores rounded down to multiples
   of 2**-16.
4. Inside a region only its voxels count.

``published`` is DeePiCt's Dice: 2 sum(p t) / max(sum(p p) + sum(t t), 1e-6) of the volumes as they
are, where a region multiplies the prediction and not the truth.

NaN in any volume is counted with its first place, for the caller to refuse. Ratios without a
denominator are 0; an AUPRC without a true voxel is NaN: unknown, not bad.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.ops import TreeReduction
from .tally import (
    N_STEPS,
    BadVoxels,
    SegmentationScore,
    Tally,
    VoxelCounts,
    pool_tallies,
    score_segmentation,
)
from .voxel_sample import SAMPLE_BYTES, VoxelSample

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..core.geometry import Block, Vec

__all__ = [
    "CompareReduction",
    "SegmentationScore",
    "Tally",
    "pool_tallies",
    "score_segmentation",
]

Array = np.ndarray[Any, Any]
PIECE_VOXELS = 1 << 17
_PIECE_BYTES = 96 * PIECE_VOXELS
_HISTOGRAM_BYTES = 2 * 8 * (N_STEPS + 1)
_LARGEST_LABEL = (1 << 16) - 1


@dataclass(frozen=True)
class CompareReduction(TreeReduction[Tally, Tally]):
    """Compare a prediction with the truth, and optionally inside a region.

    Windows: prediction, truth and, if there is one, the region mask, non-zero inside.

    Examples
    --------
    >>> from deepict_dask.core.geometry import Grid
    >>> compare = CompareReduction((1, 1, 4), sample=0)
    >>> (block,) = Grid((1, 1, 4), (1, 1, 4))
    >>> tally = compare.measure(block, np.float32([[[0.9, 0.8, 0.3, 0.1]]]),
    ...                         np.uint8([[[1, 0, 1, 0]]]))
    >>> score = score_segmentation(compare.finalize(tally))
    >>> score.dice, score.precision, score.recall, round(score.auprc, 4)
    (0.5, 0.5, 0.5, 0.8333)
    """

    shape: Vec
    """Voxels of the whole volume: a voxel's place in it decides whether it is sampled."""
    threshold: float = 0.5
    label_value: int | None = None
    """Voxels of the truth equal to it are true; None: those that are not 0."""
    predicted_label_value: int | None = None
    """Voxels of the prediction equal to it are predicted; None: those above ``threshold``."""
    sample: int = 5000
    """Voxels behind the curve; 0 takes all of them, by a histogram."""
    seed: int = 0
    published: bool = False
    """Sum the values as DeePiCt does; the region then multiplies the prediction."""
    dtypes: tuple[str, ...] = ("float32", "float32")
    """NumPy names of the windows' types; only ``bytes_needed`` depends on them."""
    name: str = field(default="compare", init=False)

    def measure(self, block: Block, *windows: Array) -> Tally:
        """Compare the write box of the windows (zyx, any real type)."""
        tally = self._nothing(len(windows))
        flat = [np.ascontiguousarray(block.crop(window)).reshape(-1) for window in windows]
        for part, places in self._pieces(block):
            tally = self.combine(tally, self._piece(places, [values[part] for values in flat]))
        return tally

    def combine(self, left: Tally, right: Tally) -> Tally:
        """Add up two disjoint sets of voxels."""
        histogram = left.histogram
        if left.histogram is not None and right.histogram is not None:
            histogram = left.histogram + right.histogram
        return Tally(
            left.counts.plus(right.counts),
            tuple(a.plus(b) for a, b in zip(left.bad, right.bad, strict=True)),
            left.sample.merge(right.sample, self.sample),
            histogram,
        )

    def finalize(self, partial: Tally) -> Tally:
        """Return the tally of the whole, its sample in one order."""
        return Tally(partial.counts, partial.bad, partial.sample.in_order(), partial.histogram)

    def bytes_needed(self, window_shape: Vec) -> int:
        """Return the bytes of the windows, of one piece, and of the tallies that are combined."""
        per_voxel = sum(np.dtype(dtype).itemsize for dtype in self.dtypes)
        tally = 2 * SAMPLE_BYTES * self.sample + (0 if self.sample else _HISTOGRAM_BYTES)
        return math.prod(window_shape) * per_voxel + _PIECE_BYTES + 10 * tally

    def _nothing(self, n_windows: int) -> Tally:
        histogram = None if self.sample else np.zeros((2, N_STEPS + 1), np.int64)
        return Tally(VoxelCounts(), (BadVoxels(),) * n_windows, VoxelSample.none(), histogram)

    def _pieces(self, block: Block) -> Iterator[tuple[slice, Array]]:
        """Yield parts of a flat window with the place of each voxel in the whole volume."""
        _, n_y, n_x = self.shape
        box = block.write
        _, b_y, b_x = box.shape
        for start in range(0, box.n_voxels, PIECE_VOXELS):
            part = slice(start, min(start + PIECE_VOXELS, box.n_voxels))
            row, x = np.divmod(np.arange(part.start, part.stop), b_x)
            z, y = np.divmod(row, b_y)
            y += box.start[1]
            z += box.start[0]
            yield part, (z * n_y + y) * n_x + (x + box.start[2])

    def _piece(self, places: Array, values: list[Array]) -> Tally:
        """Compare some voxels; where there are bad ones, only say so."""
        nothing = self._nothing(len(values))
        bad = tuple(_bad_voxels(places, self._is_bad(k, window)) for k, window in enumerate(values))
        if any(one.n_bad for one in bad):
            return Tally(nothing.counts, bad, nothing.sample, nothing.histogram)
        if len(values) > 2 and not self.published:
            inside = np.flatnonzero(values[2])
            places, values = places[inside], [values[0][inside], values[1][inside]]
        score, predicted, target = self._judged(*values)
        true = target != 0
        counts = _counts(predicted, true)
        if self.published:
            counts = counts.plus(_published_sums(predicted, target))
        if self.sample:
            sample = nothing.sample.add(places, score, true, n=self.sample, seed=self.seed)
            return Tally(counts, bad, sample)
        return Tally(counts, bad, nothing.sample, _histogram(score, true))

    def _judged(
        self, predicted: Array, target: Array, region: Array | None = None
    ) -> tuple[Array, Array, Array]:
        """Return the score of each voxel, the segmentation and the target."""
        above = predicted > self.threshold
        if self.predicted_label_value is not None:
            above = predicted == self.predicted_label_value
        is_score = predicted.dtype.kind == "f" and self.predicted_label_value is None
        score = predicted if is_score else above
        if self.label_value is not None:
            target = target == self.label_value
        if region is None:
            return score, above, target
        return np.where(region != 0, score, 0), np.where(above, region, 0), target

    def _is_bad(self, number: int, values: Array) -> Array:
        """Return which voxels cannot be compared; see `what_is_expected`."""
        kind = self._kind_of_values(number)
        if kind == "scores":
            return (values < 0) | (~(values <= 1) & (values.dtype.kind == "f"))
        if kind == "labels":
            return ~((values >= 0) & (values <= _LARGEST_LABEL) & (np.floor(values) == values))
        if kind == "masks":
            return ~(np.isfinite(values) & (values >= 0))
        return ~np.isfinite(values)

    def _kind_of_values(self, number: int) -> str:
        """Return what a volume must hold: the histogram and the sums have limits."""
        if number == 0:
            is_score = not self.sample and self.predicted_label_value is None
            return "scores" if is_score else "numbers"
        summed = self.published and (number == 2 or self.label_value is None)
        if summed:
            return "labels"
        return "numbers" if number == 1 and self.label_value is not None else "masks"

    def what_is_expected(self, number: int) -> tuple[str, str]:
        """Return what a volume must hold, and what to do where it holds something else.

        Examples
        --------
        >>> CompareReduction((1, 1, 1), sample=0).what_is_expected(0)[0]
        'scores from 0 to 1'
        """
        filled = "`deepict-dask convert IN OUT --fill-nonfinite VALUE`"
        mask = (
            "bytes may have been stored as signed ones: save it again as 0 and 1; replace NaN and "
            f"infinite voxels with {filled}"
        )
        return {
            "numbers": ("finite voxels", f"replace NaN and infinite ones with {filled}"),
            "scores": ("scores from 0 to 1", "only a sample (--sample N) takes other scores"),
            "masks": ("a mask of 0 outside and positive numbers inside", mask),
            "labels": (f"whole numbers from 0 to {_LARGEST_LABEL}", "give a mask of 0 and 1"),
        }[self._kind_of_values(number)]


def _bad_voxels(places: Array, bad: Array) -> BadVoxels:
    """Count the bad voxels of a piece."""
    rows = np.flatnonzero(bad)
    return BadVoxels(len(rows), int(places[rows[0]])) if len(rows) else BadVoxels()


def _counts(predicted: Array, true: Array) -> VoxelCounts:
    """Count voxels."""
    predicted = predicted != 0
    numbers = (np.count_nonzero(one) for one in (true, predicted, predicted & true))
    return VoxelCounts(len(true), *map(int, numbers))


def _published_sums(predicted: Array, target: Array) -> VoxelCounts:
    """Sum products of whole numbers below 2**16 exactly."""
    p, t = predicted.astype(np.int64), target.astype(np.int64)
    return VoxelCounts(0, 0, 0, 0, int(np.dot(p, t)), int(np.dot(p, p)), int(np.dot(t, t)))


def _histogram(score: Array, true: Array) -> Array:
    """Count voxels by the step of their score, true ones in the second row."""
    step = (score.astype(np.float64) * N_STEPS).astype(np.int64)
    bins = np.bincount(step + (N_STEPS + 1) * true, minlength=2 * (N_STEPS + 1))
    return bins.reshape(2, -1).astype(np.int64)
