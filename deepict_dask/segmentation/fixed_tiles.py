"""Tiles that a model or a published program fixes, on blocks of any shape.

Which tiles does a block need? Those whose kept voxels reach into what it writes; so blocks need not
follow the tiles, and a score does not depend on the chunks of the store. A tile that belongs to two
blocks is predicted for both. `choose_tile_grid` takes the blocks that predict the fewest tiles
within a worker's memory; its halo is what the tiles of its blocks reach beyond them.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..core.errors import BudgetError
from ..core.geometry import Box, Grid, as_vec
from .window_choice import whole_chunk_shapes
from .windows import normalise

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..core.geometry import Vec

__all__ = ["AxisTile", "Tile", "choose_tile_grid", "cut_tile", "tile_grid", "tiles_of"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class AxisTile:
    """A tile along one axis."""

    start: int
    """First voxel it sees; below 0 where it reaches out of the volume."""
    stop: int
    """One past the last voxel it sees; may lie outside of the volume too."""
    kept_start: int
    """First voxel that it predicts."""
    kept_stop: int
    """One past the last voxel that it predicts; in the volume."""


@dataclass(frozen=True)
class Tile:
    """A tile of a volume.

    Examples
    --------
    >>> axis = AxisTile(-2, 6, 0, 4)
    >>> tile = Tile((axis, axis, axis))
    >>> tile.kept, tile.kept_in_tile
    (Box(start=(0, 0, 0), stop=(4, 4, 4)), Box(start=(2, 2, 2), stop=(6, 6, 6)))
    """

    axes: tuple[AxisTile, AxisTile, AxisTile]

    @property
    def kept(self) -> Box:
        """Voxels of the volume that it predicts."""
        start, stop = ([getattr(a, k) for a in self.axes] for k in ("kept_start", "kept_stop"))
        return Box(as_vec(start), as_vec(stop))

    @property
    def shape(self) -> Vec:
        """Voxels that it sees."""
        return as_vec([axis.stop - axis.start for axis in self.axes])

    @property
    def kept_in_tile(self) -> Box:
        """The same, counted from the first voxel that it sees."""
        return self.kept.shift(as_vec([-axis.start for axis in self.axes]))


def tiles_of(axes: Sequence[Sequence[AxisTile]], write: Box) -> Iterator[Tile]:
    """Yield the tiles whose kept voxels reach into a box, in the order z, y, x.

    Parameters
    ----------
    axes
        The tiles of each axis, rising.
    write
        The box.

    Examples
    --------
    >>> axis = [AxisTile(-1, 3, 0, 2), AxisTile(1, 5, 2, 4)]
    >>> box = Box((0, 0, 1), (2, 2, 3))
    >>> [tile.kept.start for tile in tiles_of([axis] * 3, box)]
    [(0, 0, 0), (0, 0, 2)]
    """
    near = [
        [t for t in tiles if t.kept_start < b and t.kept_stop > a]
        for tiles, a, b in zip(axes, write.start, write.stop, strict=True)
    ]
    for z, y, x in itertools.product(*near):
        yield Tile((z, y, x))


def cut_tile(window: Array, read: Box, tile: Tile, mean: float, std: float) -> Array:
    """Return the normalised voxels that a tile sees, 0 outside of the volume.

    Parameters
    ----------
    window
        zyx voxels over ``read``, which holds all that the tile sees of the volume.
    read
        Where the window lies.
    tile
        The tile.
    mean, std
        Of the whole volume.

    Returns
    -------
    numpy.ndarray
        float32 zyx, of the tile's shape.

    Examples
    --------
    >>> tile = Tile((AxisTile(0, 1, 0, 1), AxisTile(0, 1, 0, 1), AxisTile(-1, 3, 0, 2)))
    >>> cut_tile(np.array([[[1, 3]]]), Box.whole((1, 1, 2)), tile, 2.0, 2.0)[0, 0].tolist()
    [0.0, -0.5, 0.5, 0.0]
    """
    cut = np.zeros(tile.shape, dtype=np.float32)
    seen = Box(
        as_vec([max(r, a.start) for a, r in zip(tile.axes, read.start, strict=True)]),
        as_vec([min(r, a.stop) for a, r in zip(tile.axes, read.stop, strict=True)]),
    )
    inner = seen.shift(as_vec([-axis.start for axis in tile.axes]))
    cut[inner.slices] = normalise(window[seen.slices_in(read)], mean, std)
    return cut


class TiledOp(Protocol):
    """An op whose tiles are fixed."""

    @property
    def name(self) -> str:
        """The stage."""
        ...

    @property
    def axes(self) -> Sequence[Sequence[AxisTile]]:
        """The tiles of each axis."""
        ...

    def bytes_needed(self, window_shape: Vec, /) -> int:
        """Return the peak bytes of one block."""
        ...


def tile_grid(shape: Vec, write_shape: Vec, op: TiledOp) -> Grid:
    """Return the grid of a write shape, with the halo that its blocks' tiles need.

    Examples
    --------
    See `choose_tile_grid`.
    """
    return Grid(
        shape, write_shape, as_vec([halo for halo, _ in _along_axes(shape, write_shape, op)])
    )


def n_tiles(grid: Grid, op: TiledOp) -> int:
    """Return how many tiles the blocks of a grid predict, counted again for each block."""
    return math.prod(count for _, count in _along_axes(grid.shape, grid.write_shape, op))


def _along_axes(shape: Vec, write_shape: Vec, op: TiledOp) -> list[tuple[int, int]]:
    """Return for each axis how far tiles reach out of blocks, and how many they are."""
    return [
        _along_axis(n, step, tuple(tiles))
        for n, step, tiles in zip(shape, write_shape, op.axes, strict=True)
    ]


@lru_cache(maxsize=1024)
def _along_axis(size: int, step: int, tiles: tuple[AxisTile, ...]) -> tuple[int, int]:
    """Return how far the tiles of any block reach out of it, and how many all blocks have."""
    reach = count = 0
    for start in range(0, size, step):
        stop = min(size, start + step)
        for tile in (t for t in tiles if t.kept_start < stop and t.kept_stop > start):
            reach = max(reach, start - max(0, tile.start), min(size, tile.stop) - stop)
            count += 1
    return reach, count


def choose_tile_grid(
    shape: Vec, chunk_shape: Vec, op: TiledOp, budget_bytes: int, *, n_workers: int = 1
) -> Grid:
    """Return the grid of whole chunks that predicts the fewest tiles within a budget.

    Parameters
    ----------
    shape
        Voxels of the volume, zyx.
    chunk_shape
        Chunk of the output's store; blocks write whole ones.
    op
        What will be computed.
    budget_bytes
        Bytes one task may hold.
    n_workers
        Blocks are counted in rounds of this many.

    Raises
    ------
    BudgetError
        Not even one chunk fits.

    Examples
    --------
    >>> class Op:
    ...     name = "segment"
    ...     axes = ([AxisTile(8 * i - 2, 8 * i + 10, 8 * i, 8 * i + 8) for i in range(4)],) * 3
    ...     def bytes_needed(self, window_shape):
    ...         return 4 * math.prod(window_shape)
    >>> grid = choose_tile_grid((32, 32, 32), (4, 4, 4), Op(), 4 * 24**3)
    >>> grid.write_shape, grid.halo, n_tiles(grid, Op())
    ((8, 32, 32), (2, 0, 0), 64)
    """
    best: Grid | None = None
    best_cost: tuple[float, int] | None = None
    for write_shape in whole_chunk_shapes(shape, chunk_shape):
        grid = tile_grid(shape, write_shape, op)
        rounds = -(-grid.n_blocks // n_workers)
        cost = (rounds * n_tiles(grid, op) / grid.n_blocks, grid.n_blocks)
        cheaper = best_cost is None or cost < best_cost
        if cheaper and op.bytes_needed(grid.window_shape) <= budget_bytes:
            best, best_cost = grid, cost
    if best is None:
        needed = op.bytes_needed(tile_grid(shape, chunk_shape, op).window_shape)
        raise BudgetError(
            f"{op.name} needs {needed / 2**20:.0f} MiB per task (chunks of "
            f"{'x'.join(map(str, chunk_shape))} and the tiles that reach into one) but the budget "
            f"is {budget_bytes / 2**20:.0f} MiB; give each worker more with --memory, or use "
            "smaller --chunks"
        )
    return best
