"""Where are the densest places of labelled voxels? Mean shift, without its cost.

1. Space is cut into bins as wide as the bandwidth. Each bin that holds a labelled voxel starts a
   *path* at the bin's centre.
2. A path moves to the mean of the labelled voxels within the bandwidth, until it moves by no more
   than a thousandth of the bandwidth. Where it ends is a *mode*.
3. Modes are taken by falling number of voxels around them; a mode within the bandwidth of a kept
   one is dropped. What is left are the centres, and each voxel belongs to the nearest.

These are the centres of scikit-learn's MeanShift with a flat kernel and binned seeds, to the last
bit: voxels are whole numbers, so that sums over them are exact in any order.

Two things make it fast and bounded. Running sums along x turn the voxels of a ball into two
look-ups for each of its rows. And a path needs no voxel farther than the bandwidth from where it
is: a chunk with a halo of twice the bandwidth moves its paths as long as their balls lie in its
window, then hands them over to the chunk they have reached. So no chunking changes a path.

After Comaniciu and Meer (2002), as DeepFinder (Moebel et al. 2021) uses it on label maps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.ops import TreeReduction
from .class_labels import ClassLabels
from .row_sums import BYTES_PER_ROW, RowSums

if TYPE_CHECKING:
    from ..core.geometry import Block, Box, Grid, Vec

__all__ = [
    "PATH_DTYPE",
    "ModeReduction",
    "ModesFound",
    "centres_of",
    "find_centres",
    "owners_of",
    "start_paths",
]

Array = np.ndarray[Any, Any]

PATH_DTYPE = np.dtype(
    [("z", "f8"), ("y", "f8"), ("x", "f8"), ("n_near", "i8"), ("seed", "i8"), ("n_moves", "i4")]
)
"""A path: where it is (zyx voxels), labelled voxels around it before its last move, the first voxel
of its bin in raster order, moves so far."""

MAX_MOVES = 300
_STOP = 1e-3
"""A path ends when it moves by no more than this part of the bandwidth."""
_BATCH_ROWS = 1 << 17
"""Rows of balls that are summed at a time: their arrays stay in the processor's cache."""
_MOST_VOXELS = 1 << 20
"""Of an axis, for seeds that sort in raster order."""


def start_paths(labelled: Array, block: Block, bandwidth: float, *, binned: bool = True) -> Array:
    """Return the paths that start in a block.

    A bin belongs to the block of its first voxel in raster order, which every window with a voxel
    of it can see: so each bin starts one path, whatever the chunking.

    Parameters
    ----------
    labelled
        bool zyx over ``block.read``, which has a halo of a bandwidth or more.
    block
        Where the window lies.
    bandwidth
        In voxels.
    binned
        Start from bins, else from every labelled voxel.

    Returns
    -------
    array
        `PATH_DTYPE`.
    """
    firsts = _first_of_each_bin(labelled, block.read, bandwidth if binned else 1.0)
    inside = np.unravel_index(firsts, labelled.shape)
    voxels = np.stack(inside, axis=1) + np.asarray(block.read.start)
    own = ((voxels >= block.write.start) & (voxels < block.write.stop)).all(axis=1)
    voxels = voxels[own]
    places = voxels.astype(np.float64)
    if binned:  # in float32, as scikit-learn has it
        bins = np.rint(voxels / bandwidth).astype(np.float32)
        places = (bins * np.float32(bandwidth)).astype(np.float64)
    paths = np.zeros(len(voxels), PATH_DTYPE)
    paths["z"], paths["y"], paths["x"] = places.T
    z, y, x = voxels.T
    paths["seed"] = (z * _MOST_VOXELS + y) * _MOST_VOXELS + x
    return paths


def _first_of_each_bin(labelled: Array, box: Box, width: float) -> Array:
    """Return the first labelled voxel of each bin (numbers in the window's raster order)."""
    axes = []
    for low, high in zip(box.start, box.stop, strict=True):
        bins = np.rint(np.arange(low, high) / width).astype(np.int64)
        axes.append(bins - bins[0])
    z_bins, y_bins, x_bins = axes
    in_plane = np.add.outer(y_bins * (x_bins[-1] + 1), x_bins).ravel()
    per_plane = int(in_plane[-1]) + 1
    first = np.full((int(z_bins[-1]) + 1) * per_plane, -1, np.int64)
    for i, plane in enumerate(labelled):
        voxels = np.flatnonzero(plane)
        bins = in_plane[voxels] + z_bins[i] * per_plane
        fresh = first[bins] < 0
        numbers = voxels[fresh] + i * plane.size
        first[bins[fresh][::-1]] = numbers[::-1]  # of several the last that is written stays
    return np.sort(first[first >= 0])


def move_paths(rows: RowSums, paths: Array, shape: Vec, bandwidth: float) -> tuple[Array, Array]:
    """Move paths until they end or need voxels outside the window.

    Parameters
    ----------
    rows
        Labelled voxels of a window.
    paths
        `PATH_DTYPE`; changed in place.
    shape
        Of the volume: nothing is missing beyond its ends.
    bandwidth
        In voxels.

    Returns
    -------
    ended, leaving
        Paths that have reached a mode, and those that another chunk must move.
    """
    size = max(1, _BATCH_ROWS // (int(2 * bandwidth) + 1) ** 2)
    ended, leaving = [paths[:0]], [paths[:0]]
    for first in range(0, len(paths), size):
        active = paths[first : first + size]
        while len(active):
            known = _ball_is_known(active, rows.box, shape, bandwidth)
            leaving.append(active[~known])
            active = active[known]
            done = _move(rows, active, bandwidth)
            ended.append(active[done])
            active = active[~done]
    return np.concatenate(ended), np.concatenate(leaving)


def _ball_is_known(paths: Array, box: Box, shape: Vec, radius: float) -> Array:
    """Say of paths whether the voxels within a radius lie in a box or outside the volume."""
    known = np.ones(len(paths), np.bool_)
    for name, low, high, size in zip("zyx", box.start, box.stop, shape, strict=True):
        if low > 0:
            known &= paths[name] - radius >= low
        if high < size:
            known &= paths[name] + radius <= high - 1
    return known


def _move(rows: RowSums, paths: Array, bandwidth: float) -> Array:
    """Move paths once, in place; say which of them have ended."""
    here = np.stack([paths[name] for name in "zyx"], axis=1)
    sums, counts = rows.of_balls(here, bandwidth)
    there = sums / np.maximum(counts, 1)[:, None]
    paths["z"], paths["y"], paths["x"] = there.T
    paths["n_near"] = counts
    moved = np.sqrt(np.square(there - here).sum(axis=1))
    done: Array = (moved <= _STOP * bandwidth) | (paths["n_moves"] == MAX_MOVES)
    paths["n_moves"] += ~done
    return done


@dataclass(frozen=True)
class ModesFound:
    """What one box of the volume has found; its paths go to a file of its node."""

    n_voxels: int
    """Labelled voxels."""
    n_bins: int
    ended: Array
    leaving: Array

    def spill(self) -> tuple[ModesFound, dict[str, Array]]:
        """Return what the nodes above need, and what is stored."""
        none = self.ended[:0]
        light = ModesFound(self.n_voxels, self.n_bins, none, none)
        return light, {"modes": self.ended, "leaving": self.leaving}


@dataclass(frozen=True)
class ModeReduction(TreeReduction[ModesFound, ModesFound]):
    """Start the paths of each chunk and move them as far as its window reaches."""

    shape: Vec
    labels: ClassLabels
    """How voxels are chosen from the sources."""
    bandwidth: float
    """In voxels."""
    binned: bool = True
    name: str = "mean shift"

    @property
    def halo(self) -> Vec:
        """Voxels read on every side: a bin's path can start, and a path that arrives can move."""
        side = math.ceil(2 * self.bandwidth) + 1
        return (side, side, side)

    def measure(self, block: Block, *windows: Array) -> ModesFound:
        """Find the modes of the paths that start in a block."""
        labelled = self.labels.of(windows) > 0
        paths = start_paths(labelled, block, self.bandwidth, binned=self.binned)
        n_voxels = int(np.count_nonzero(block.crop(labelled)))
        return ModesFound(n_voxels, len(paths), *self._moved(labelled, block, paths))

    def go_on(self, block: Block, paths: Array, *windows: Array) -> tuple[Array, Array]:
        """Move paths that came from other chunks; as `move_paths`."""
        return self._moved(self.labels.of(windows) > 0, block, paths.copy())

    def _moved(self, labelled: Array, block: Block, paths: Array) -> tuple[Array, Array]:
        if len(paths) == 0:
            return paths, paths
        rows = RowSums.of(labelled, block.read)
        return move_paths(rows, paths, self.shape, self.bandwidth)

    def combine(self, left: ModesFound, right: ModesFound) -> ModesFound:
        """Add two boxes."""
        return ModesFound(
            left.n_voxels + right.n_voxels,
            left.n_bins + right.n_bins,
            np.concatenate([left.ended, right.ended]),
            np.concatenate([left.leaving, right.leaving]),
        )

    def finalize(self, partial: ModesFound) -> ModesFound:
        """Return what the whole volume has found."""
        return partial

    def bytes_needed(self, window_shape: Vec) -> int:
        """Return the peak bytes of one task: windows, labels, running sums, a batch of rows."""
        n = math.prod(window_shape)
        k = int(2 * self.bandwidth) + 1
        batch = max(_BATCH_ROWS, k * k) * BYTES_PER_ROW
        return n * (self.labels.bytes_per_voxel + 18) + batch


def owners_of(paths: Array, grid: Grid) -> Array:
    """Return the numbers of the blocks that paths have reached.

    Examples
    --------
    >>> from deepict_dask.core.geometry import Grid
    >>> paths = np.zeros(2, PATH_DTYPE)
    >>> paths["x"] = [3.9, 12.0]
    >>> owners_of(paths, Grid((4, 4, 10), (4, 4, 4))).tolist()
    [0, 2]
    """
    index = []
    for name, size, step in zip("zyx", grid.shape, grid.write_shape, strict=True):
        voxel = np.clip(np.floor(paths[name]), 0, size - 1).astype(np.int64)
        index.append(voxel // step)
    return np.ravel_multi_index(tuple(index), grid.counts)


def centres_of(modes: Array, bandwidth: float) -> Array:
    """Return the centres: modes of which no denser one lies within the bandwidth.

    Parameters
    ----------
    modes
        Paths that have ended, in any order.
    bandwidth
        In voxels.

    Returns
    -------
    array
        (n, 3) float64 zyx, by falling number of voxels, ties by falling z, y, x.
    """
    from scipy.spatial import KDTree

    # of paths that end at one place the last one's number of voxels counts, as in scikit-learn
    latest = np.sort(modes, order="seed")[::-1]
    places = np.stack([latest[name] for name in "zyx"], axis=1)
    _, firsts = np.unique(places, axis=0, return_index=True)
    places, n_near = places[firsts], latest["n_near"][firsts]
    order = np.lexsort((places[:, 2], places[:, 1], places[:, 0], n_near))[::-1]
    places = places[order]
    if len(places) == 0:
        return places
    tree = KDTree(places)
    kept = np.ones(len(places), np.bool_)
    for i in range(len(places)):
        if kept[i]:
            kept[tree.query_ball_point(places[i], bandwidth)] = False
            kept[i] = True
    return places[kept]


def find_centres(labelled: Array, bandwidth: float) -> Array:
    """Return the mean-shift centres of a volume that fits the memory.

    Parameters
    ----------
    labelled
        zyx, non-zero where labelled.
    bandwidth
        In voxels.

    Examples
    --------
    >>> find_centres(np.ones((3, 3, 3), bool), 5.0).tolist()
    [[1.0, 1.0, 1.0]]
    """
    from ..core.geometry import Grid, as_vec

    shape = as_vec(labelled.shape)
    (block,) = Grid(shape, shape)
    for binned in (True, False):
        reduction = ModeReduction(shape, ClassLabels(), bandwidth, binned)
        found = reduction.measure(block, labelled)
        if found.n_bins < found.n_voxels:
            break  # else every voxel has its own bin, and scikit-learn starts from the voxels
    return centres_of(found.ended, bandwidth)
