"""Where are the middles of blobs of one size? Mean-pooling non-maximum suppression.

1. Voxels with a score above the threshold are 1, the others 0.
2. The mean over 5 x 5 x 5 voxels is taken ``n_pools`` times: as often as means need to reach from
   a particle's surface to its middle.
3. A voxel is a pick where no mean of the 5 x 5 x 5 voxels around it is higher, and its own mean is
   above ``floor``. A plateau gives several picks.
4. Of picks closer than ``min_distance`` the highest is kept (ties: the first in raster order), as
   `merge.stand_ins` does it.

A voxel's mean depends on voxels at most ``2 * n_pools`` away, and whether it is a pick on two more:
that is the halo, and with it no chunking changes a pick. Sums are made of pairs that lie opposite
each other, and divided at the end, so that a symmetric blob has its maximum in its middle.

After DeepETPicker (Liu et al. 2024); what its own program makes of it is in `deepetpicker_compat`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend import Device, compute_on, namespace_of, to_host
from ..core.errors import VoxelValueError
from ..core.ops import TreeReduction
from .merge import stand_ins

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..core.geometry import Block, Vec

__all__ = [
    "PEAK_DTYPE",
    "MeanPoolReduction",
    "MeanPoolSettings",
    "PeaksFound",
    "find_peaks",
    "keep_highest",
    "mean_pool",
]

Array = Any

PEAK_DTYPE = np.dtype([("channel", "i4"), ("z", "i4"), ("y", "i4"), ("x", "i4"), ("value", "f8")])
"""A pick: the channel it is of (from 0), its voxel, the mean there."""

_KERNEL = 5


@dataclass(frozen=True)
class MeanPoolSettings:
    """How picks are found.

    Examples
    --------
    >>> settings = MeanPoolSettings.of_diameters([23])
    >>> settings.n_pools, settings.reach, settings.min_distance
    (6, 14, 12)
    """

    n_pools: int
    """How often the mean is taken."""
    min_distance: float
    """Picks closer than this (voxels) are one."""
    threshold: float = 0.5
    """Scores above it count."""
    floor: float = 0.1
    """Means above it count."""
    labels: tuple[int, ...] = ()
    """Instead of a threshold: each is searched in the one label volume that is given."""
    thresholds: tuple[float, ...] = ()
    """Of each score map, where they differ."""

    @classmethod
    def of_diameters(
        cls,
        diameters: Sequence[float],
        threshold: float = 0.5,
        *,
        labels: Sequence[int] = (),
        thresholds: Sequence[float] = (),
    ) -> MeanPoolSettings:
        """Return the settings for particles of some diameters, in voxels, one for each class."""
        n_pools = int(max(diameters) / (_KERNEL - 1) + 1)
        min_distance = int(min(diameters)) // 2 + 1
        return cls(
            n_pools,
            min_distance,
            threshold,
            labels=tuple(labels),
            thresholds=tuple(thresholds),
        )

    def channels(self, windows: Sequence[Array]) -> Sequence[Array]:
        """Return what is searched: each score map, or a label volume once for each label."""
        return [*windows] * max(1, len(self.labels))

    def chosen(self, window: np.ndarray[Any, Any], channel: int = 0) -> np.ndarray[Any, Any]:
        """Say which voxels of a window count, which is one of `channels`.

        Raises
        ------
        VoxelValueError
            Scores are NaN.
        """
        if window.dtype.kind == "f" and np.isnan(window).any():
            raise VoxelValueError("expected scores, found NaN; correct the score map")
        limit = self.thresholds[channel] if self.thresholds else self.threshold
        chosen: np.ndarray[Any, Any] = (
            window == self.labels[channel] if self.labels else window > limit
        )
        return chosen

    @property
    def reach(self) -> int:
        """Voxels on every side that a pick depends on."""
        return _KERNEL // 2 * (self.n_pools + 1)


def _opposite_pairs(padded: Array, axis: int, n: int) -> list[tuple[Array, Array]]:
    """Return the neighbours of n voxels that lie opposite each other on an axis."""
    part = [slice(None)] * 3

    def shifted(by: int) -> Array:
        part[axis] = slice(by, by + n)
        return padded[tuple(part)]

    return [(shifted(i), shifted(_KERNEL - 1 - i)) for i in range(_KERNEL // 2)]


def _padded(values: Array, axis: int, fill: float) -> Array:
    """Return an array with as many more voxels at both ends of an axis as a kernel needs."""
    width = [(0, 0)] * 3
    width[axis] = (_KERNEL // 2, _KERNEL // 2)
    return namespace_of(values).pad(values, width, constant_values=fill)


def mean_pool(values: Array, n_pools: int) -> Array:
    """Take the mean over 5 x 5 x 5 voxels some times; outside all is 0.

    Parameters
    ----------
    values
        zyx, NumPy or CuPy.
    n_pools
        How often.

    Returns
    -------
    array
        float64 zyx in the same place.

    Examples
    --------
    >>> one = np.zeros((5, 5, 5))
    >>> one[2, 2, 2] = 125
    >>> mean_pool(one, 1)[0, 0, 0], mean_pool(one, 2)[2, 2, 2]
    (np.float64(1.0), np.float64(1.0))
    """
    sums = values.astype(np.float64)
    for _ in range(n_pools):
        for axis in range(3):
            pairs = _opposite_pairs(_padded(sums, axis, 0.0), axis, sums.shape[axis])
            for one, other in pairs:
                sums = sums + (one + other)
    sums /= float(_KERNEL**3) ** n_pools
    return sums


def find_peaks(means: Array, floor: float) -> Array:
    """Say of voxels whether no mean around them is higher, and theirs is above a floor.

    Parameters
    ----------
    means
        zyx, NumPy or CuPy.
    floor
        Means must be above it.

    Returns
    -------
    array
        bool zyx in the same place.
    """
    xp = namespace_of(means)
    highest = means
    for axis in range(3):
        padded = _padded(highest, axis, -math.inf)
        for one, other in _opposite_pairs(padded, axis, means.shape[axis]):
            highest = xp.maximum(highest, xp.maximum(one, other))
    return (highest == means) & (means > floor)


@dataclass(frozen=True)
class PeaksFound:
    """The picks of one box of the volume; they go to a file of its node."""

    n: int
    rows: np.ndarray[Any, Any]

    def spill(self) -> tuple[PeaksFound, dict[str, Any]]:
        """Return what the nodes above need, and what is stored."""
        return PeaksFound(self.n, self.rows[:0]), {"peaks": self.rows}


@dataclass(frozen=True)
class MeanPoolReduction(TreeReduction[PeaksFound, PeaksFound]):
    """Find the picks of each chunk, plateaus and close ones included.

    Examples
    --------
    >>> from deepict_dask.core.geometry import Grid
    >>> score = np.zeros((9, 9, 9), np.float32)
    >>> score[2:7, 2:7, 2:7] = 1
    >>> reduction = MeanPoolReduction(MeanPoolSettings.of_diameters([5]))
    >>> (block,) = Grid((9, 9, 9), (9, 9, 9))
    >>> reduction.measure(block, score).rows[["z", "y", "x"]].tolist()
    [(4, 4, 4)]
    """

    settings: MeanPoolSettings
    device: str = "cpu"
    n_windows: int = 1
    """Score maps that are read for a block; only ``bytes_needed`` depends on it."""
    name: str = "mean-pool nms"

    @property
    def halo(self) -> Vec:
        """Voxels read on every side."""
        return (self.settings.reach,) * 3

    def measure(self, block: Block, *windows: np.ndarray[Any, Any]) -> PeaksFound:
        """Find the picks of a block; each window is the score map of a class, or has all labels."""
        channels = enumerate(self.settings.channels(windows))
        rows = [self._rows(block, number, window) for number, window in channels]
        joined = np.concatenate(rows)
        return PeaksFound(len(joined), joined)

    def _rows(self, block: Block, channel: int, window: Any) -> np.ndarray[Any, Any]:
        """Return the picks of one class."""
        chosen = self.settings.chosen(window, channel)
        if not chosen.any():
            return np.zeros(0, PEAK_DTYPE)
        work = partial(self._peaks, block)
        *places, means = compute_on(Device(self.device), self.name, work, chosen)
        rows = np.zeros(len(means), PEAK_DTYPE)
        rows["channel"] = channel
        for name, values, start in zip("zyx", places, block.write.start, strict=True):
            rows[name] = values + start
        rows["value"] = means
        return rows

    def _peaks(self, block: Block, chosen: Array) -> list[np.ndarray[Any, Any]]:
        """Return z, y, x in the block and the means of its picks, on the host."""
        means = mean_pool(chosen, self.settings.n_pools)
        is_peak = block.crop(find_peaks(means, self.settings.floor))
        places = is_peak.nonzero()
        return [to_host(each) for each in (*places, block.crop(means)[places])]

    def combine(self, left: PeaksFound, right: PeaksFound) -> PeaksFound:
        """Put two boxes together."""
        return PeaksFound(left.n + right.n, np.concatenate([left.rows, right.rows]))

    def finalize(self, partial: PeaksFound) -> PeaksFound:
        """Return the picks of the whole volume."""
        return partial

    def bytes_needed(self, window_shape: Vec) -> int:
        """Return the peak bytes of one task: windows, sums, a padded copy and two pairs."""
        return math.prod(window_shape) * (44 + 4 * self.n_windows)


def keep_highest(rows: np.ndarray[Any, Any], min_distance: float) -> np.ndarray[Any, Any]:
    """Keep one of each group of close picks, whatever its class: the highest.

    Parameters
    ----------
    rows
        `PEAK_DTYPE` in any order.
    min_distance
        Picks closer than this (voxels) are one.

    Returns
    -------
    array
        The kept picks by falling value, ties in raster order.

    Examples
    --------
    >>> rows = np.zeros(4, PEAK_DTYPE)
    >>> rows["x"], rows["value"] = [1, 2, 3, 9], [0.5, 0.7, 0.5, 0.6]
    >>> keep_highest(rows, 4)["x"].tolist()
    [2, 9]
    """
    order = np.lexsort((rows["channel"], rows["x"], rows["y"], rows["z"], -rows["value"]))
    ordered = rows[order]
    scaled = np.stack([ordered[name] for name in "zyx"], axis=1) / min_distance
    kept = stand_ins(scaled) == np.arange(len(ordered))
    return np.compress(kept, ordered)
