"""Mean-pooling non-maximum suppression as DeepETPicker's program makes it, losses included.

*Tiles.* The volume has a border of ``pad`` zeros. Cubes of ``block`` voxels start every
``block - 2 * pad`` voxels; the last of an axis is moved inwards to end with the border. Each cube
is searched alone, with zeros around it, in float32, and its picks ``pad`` to ``block - pad`` count,
both ends included: so picks on the faces come twice, and what is farther away than the pad is not
seen.

*De-duplication.* Picks are visited in order. Those closer than the distance form a group, with the
visited one last. Picks dropped earlier should leave the group first, but the entry behind each one
that leaves is not looked at: so a dropped pick can stay. The highest stays (the first of equal
ones), the others are dropped; where it had been dropped before, nothing is left of three or more
picks of one place.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ShapeMismatchError
from ..core.geometry import Block, Box, as_vec
from .mean_pool_nms import PEAK_DTYPE, find_peaks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..core.geometry import Vec
    from .mean_pool_nms import MeanPoolSettings

__all__ = ["TileSearch", "drop_as_deepetpicker", "mean_pool_float32"]

Array = np.ndarray[Any, Any]
_HALF = 2


def mean_pool_float32(values: Array, n_pools: int) -> Array:
    """Take the mean over 5 x 5 x 5 voxels some times, summing in float32 in raster order.

    Examples
    --------
    >>> mean_pool_float32(np.ones((5, 5, 5), bool), 1)[2, 2, 2], mean_pool_float32(
    ...     np.ones((5, 5, 5), bool), 1
    ... )[0, 0, 0]
    (np.float32(1.0), np.float32(0.216))
    """
    means = values.astype(np.float32)
    for _ in range(n_pools):
        padded = np.pad(means, _HALF)
        sums = np.zeros_like(means)
        for offset in itertools.product(range(2 * _HALF + 1), repeat=3):
            part = tuple(slice(o, o + n) for o, n in zip(offset, means.shape, strict=True))
            sums += padded[part]
        means = sums / np.float32((2 * _HALF + 1) ** 3)
    return means


@dataclass(frozen=True)
class TileSearch:
    """The tiles of a volume and what is searched in them.

    Examples
    --------
    >>> from deepict_dask.particles.mean_pool_nms import MeanPoolSettings
    >>> search = TileSearch((70, 100, 118), MeanPoolSettings.of_diameters([15]))
    >>> search.starts(0), search.starts(1), search.n_tiles
    ([0, 22], [0, 48, 52], 18)
    """

    shape: Vec
    """Of the volume, zyx."""
    settings: MeanPoolSettings
    block: int = 72
    pad: int = 12

    def starts(self, axis: int) -> list[int]:
        """Return where tiles start on an axis of the volume with its border.

        Raises
        ------
        ShapeMismatchError
            The axis is shorter than a tile without its pads.
        """
        size, step = self.shape[axis], self.block - 2 * self.pad
        if size < step:
            raise ShapeMismatchError(
                f"compat deepetpicker: expected at least {step} voxels on every axis, found "
                f"{self.shape} (zyx); pick without compat"
            )
        n = -(-size // step)
        return [min(i * step, size - step) for i in range(n)]

    @property
    def n_tiles(self) -> int:
        """Number of tiles."""
        return math.prod(len(self.starts(axis)) for axis in range(3))

    @property
    def bytes_needed(self) -> int:
        """Peak bytes of one tile: its windows, cube, sums and copies."""
        return 48 * self.block**3

    def tiles(self) -> Iterator[Block]:
        """Yield what each tile reads of the volume, in the order of the tiles."""
        starts = itertools.product(*(self.starts(axis) for axis in range(3)))
        for number, start in enumerate(starts):
            low = as_vec([max(0, s - self.pad) for s in start])
            stops = zip(start, self.shape, strict=True)
            high = as_vec([min(n, s - self.pad + self.block) for s, n in stops])
            box = Box(low, high)
            yield Block(number, as_vec(start), read=box, write=box)

    def search(self, tile: Block, windows: Sequence[Array]) -> Array:
        """Return the picks of a tile, class by class, in raster order.

        Parameters
        ----------
        tile
            From `tiles`.
        windows
            Score maps over ``tile.read``, one for each class, or a label volume.
        """
        inside = tile.read.shift(as_vec([-c for c in self.corner(tile)])).slices
        cubes = []
        for channel, window in enumerate(self.settings.channels(windows)):
            cube = np.zeros((self.block,) * 3, np.bool_)
            cube[inside] = self.settings.chosen(window, channel)
            cubes.append(cube)
        return self.search_cubes(tile, cubes)

    def search_scores(self, tile: Block, cubes: Sequence[Array]) -> Array:
        """Return the picks of a tile as its network returned it, the scores of the pads included.

        Parameters
        ----------
        tile
            From `tiles`.
        cubes
            Scores over the tile, ``block`` voxels on each axis, one array for each class.
        """
        return self.search_cubes(tile, [self.settings.chosen(c, i) for i, c in enumerate(cubes)])

    def search_cubes(self, tile: Block, cubes: Sequence[Array]) -> Array:
        """Return the picks of a tile, whose voxels were chosen for each class."""
        corner = self.corner(tile)
        found = [self._peaks(cube, i, corner) for i, cube in enumerate(cubes) if cube.any()]
        return np.concatenate([np.zeros(0, PEAK_DTYPE), *found])

    def corner(self, tile: Block) -> Vec:
        """Return the first voxel of a tile; below 0 where it reaches out of the volume."""
        return as_vec([s - self.pad for s in tile.index])

    def _peaks(self, cube: Array, channel: int, corner: Vec) -> Array:
        """Return the picks of one class that lie in the part of a tile that counts."""
        means = mean_pool_float32(cube, self.settings.n_pools)
        peaks = np.stack(np.nonzero(find_peaks(means, self.settings.floor)), axis=1)
        counts = ((peaks >= self.pad) & (peaks <= self.block - self.pad)).all(axis=1)
        peaks = peaks[counts]
        rows = np.zeros(len(peaks), PEAK_DTYPE)
        rows["channel"], rows["value"] = channel, means[tuple(peaks.T)]
        rows["z"], rows["y"], rows["x"] = (peaks + corner).T
        return rows


def drop_as_deepetpicker(rows: Array, min_distance: float) -> Array:
    """Drop close picks as the published program does, with the picks that it loses.

    Parameters
    ----------
    rows
        Picks in the order of their tiles.
    min_distance
        Picks closer than this (voxels) are a group.

    Examples
    --------
    >>> drop_as_deepetpicker(np.zeros(2, PEAK_DTYPE), 4).size
    1
    >>> drop_as_deepetpicker(np.zeros(3, PEAK_DTYPE), 4).size
    0
    """
    from scipy.spatial import KDTree

    if len(rows) == 0:
        return rows
    points = np.stack([rows[name] for name in "zyx"], axis=1).astype(np.float64)
    tree, values = KDTree(points), rows["value"]
    dropped: set[int] = set()
    for number, point in enumerate(points):
        if number in dropped:
            continue
        near = sorted(tree.query_ball_point(point, min_distance))
        distances = np.linalg.norm(points[near] - point, axis=1)
        group = [n for n, d in zip(near, distances, strict=True) if d < min_distance]
        group.remove(number)
        left = _left_in([*group, number], dropped)
        highest = left[int(np.argmax(values[left]))]
        dropped.update(member for member in left if member != highest)
    return rows[[number not in dropped for number in range(len(rows))]]


def _left_in(group: Sequence[int], dropped: set[int]) -> list[int]:
    """Take dropped picks out of a group, but not one that follows such a pick."""
    left, looked_away = [], False
    for member in group:
        looked_away = not looked_away and member in dropped
        if not looked_away:
            left.append(member)
    return left
