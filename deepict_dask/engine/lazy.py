"""The same ops on dask arrays, lazily: what the notebook functions are made of.

The kernels are those of the command line; only the graph differs, since a dask array has no store
to read halos from. Near the size of memory, the command line's stores are the better way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.geometry import Block, Box, Grid, Vec, as_vec, ceil_to
from .reduce import TreeNode, combine_children, tree_nodes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..core.ops import ChunkOp, TreeReduction
    from ..core.volume import VolumeReader

__all__ = [
    "compute_delayed",
    "lazy_reader",
    "lazy_whole",
    "map_blocks",
    "map_op",
    "map_windows",
    "reduce_blocks",
]


def lazy_reader(reader: VolumeReader, chunks: Vec) -> Any:
    """Return a dask array whose chunks are read when they are needed.

    Examples
    --------
    >>> from deepict_dask.io.array import ArrayReader
    >>> array = lazy_reader(ArrayReader(np.arange(8.0).reshape(2, 2, 2)), (1, 2, 2))
    >>> array.chunks[0], float(array.sum().compute())
    ((1, 1), 28.0)
    """
    import dask.array as da

    shape = reader.header.shape
    fitted = da.core.normalize_chunks(chunks, shape=shape)
    meta = np.empty((0, 0, 0), reader.header.dtype)
    return da.map_blocks(_read_block, reader, chunks=fitted, dtype=meta.dtype, meta=meta)


def _read_block(reader: VolumeReader, block_info: Any = None) -> Any:
    """Read one chunk of a lazy volume."""
    location = block_info[None]["array-location"]
    box = Box(as_vec([a for a, _ in location]), as_vec([b for _, b in location]))
    return reader.read(box)


def map_windows(function: Callable[..., Any], array: Any, *, halo: Vec, align: int) -> Any:
    """Map a function of a window over an array, windows starting on multiples of ``align``.

    Parameters
    ----------
    function
        Takes a zyx window, returns a zyx array of its shape.
    array
        zyx dask array; rechunked so that chunks start on multiples of ``align``.
    halo
        Voxels a window needs on every side, multiples of ``align``.
    align
        2**depth of a U-Net.

    Examples
    --------
    >>> import dask.array as da
    >>> map_windows(lambda w: w + 1, da.zeros((8, 8, 8), chunks=4), halo=(2, 2, 2), align=2).shape
    (8, 8, 8)
    """
    import dask.array as da

    aligned = array.rechunk(
        tuple(
            _aligned_chunks(n, c[0], h, align)
            for n, c, h in zip(array.shape, array.chunks, halo, strict=True)
        )
    )
    # an axis in one piece has nothing beyond; Dask refuses a halo that is wider than the axis
    depth = {
        i: h if len(c) > 1 else 0 for i, (h, c) in enumerate(zip(halo, aligned.chunks, strict=True))
    }
    return da.map_overlap(
        function, aligned, depth=depth, boundary="none", dtype="float32",
        meta=np.empty((0, 0, 0), "float32"), trim=True,
    )  # fmt: skip


def map_op(op: ChunkOp, array: Any, grid: Grid) -> Any:
    """Map an op of one source over an array, on any blocks.

    Parameters
    ----------
    op
        Returns zyx.
    array
        zyx dask array.
    grid
        Blocks, with the halo that the op needs.

    Examples
    --------
    >>> import dask.array as da
    >>> from types import SimpleNamespace
    >>> op = SimpleNamespace(dtype="int64", apply=lambda block, window: window + block.number)
    >>> grid = Grid((4, 2, 2), (2, 2, 2), (1, 0, 0))
    >>> map_op(op, da.arange(16).reshape(4, 2, 2), grid)[:, 0, 0].compute()
    array([ 0,  4,  9, 13])
    """
    import dask.array as da
    from dask import delayed

    results = np.empty(grid.counts, dtype=object)
    for block in grid:
        window = array[block.read.slices]
        task = delayed(_apply_cropped)(op, block, window.rechunk(window.shape))
        results[block.index] = da.from_delayed(task, block.write.shape, dtype=op.dtype)
    return da.block(results.tolist())


def _apply_cropped(op: ChunkOp, block: Block, window: Any) -> Any:
    return block.crop(op.apply(block, np.asarray(window)))


def _aligned_chunks(size: int, chunk: int, halo: int, align: int) -> tuple[int, ...]:
    """Return chunks that start on multiples of ``align``, none shorter than the halo.

    Examples
    --------
    >>> _aligned_chunks(61, chunk=20, halo=6, align=4)
    (20, 20, 21)
    """
    step = max(ceil_to(chunk, align), ceil_to(halo, align))
    n = max(1, size // step + (size % step >= max(halo, 1)))
    return (*[step] * (n - 1), size - step * (n - 1))


def lazy_whole(function: Callable[[Any], Any], array: Any) -> Any:
    """Apply a function to a whole volume as one task; chunks stay as they were.

    Examples
    --------
    >>> import dask.array as da
    >>> lazy_whole(lambda v: v - v.mean(), da.ones((4, 4, 4), chunks=2)).sum().compute()
    np.float32(0.0)
    """
    meta = np.empty((0, 0, 0), "float32")
    whole = array.rechunk(array.shape).map_blocks(function, dtype="float32", meta=meta)
    return whole.rechunk(array.chunks)


def grid_of(array: Any) -> Grid:
    """Return the grid of a regularly chunked array.

    Examples
    --------
    >>> import dask.array as da
    >>> grid_of(da.zeros((5, 4, 4), chunks=4)).counts
    (2, 1, 1)
    """
    return Grid(as_vec(array.shape), as_vec([c[0] for c in array.chunks]))


def _blocks(arrays: Sequence[Any], grid: Grid) -> list[list[Any]]:
    """Return the delayed chunks of each array, in the grid's order."""
    return [list(a.rechunk(grid.write_shape).to_delayed().ravel()) for a in arrays]


def reduce_blocks(reduction: TreeReduction[Any, Any], arrays: Sequence[Any], grid: Grid) -> Any:
    """Return a delayed value: the reduction of chunked arrays.

    Examples
    --------
    >>> import dask.array as da
    >>> from deepict_dask.core.statistics import StatisticsReduction
    >>> array = da.ones((4, 4, 4), chunks=2)
    >>> reduce_blocks(StatisticsReduction(), [array], grid_of(array)).compute().mean
    1.0
    """
    from dask import delayed

    chunks = _blocks(arrays, grid)
    parts: dict[TreeNode, Any] = {}
    for node, children in tree_nodes(grid.counts):
        if children:
            places = [child.index for child in children]
            below = [parts.pop(child) for child in children]
            parts[node] = delayed(combine_children)(reduction, node, places, below, None)
        else:
            block = grid.at(node.index)
            parts[node] = delayed(reduction.measure)(block, *[c[block.number] for c in chunks])
    (root,) = parts.values()
    return delayed(reduction.finalize)(root)


def map_blocks(
    make_op: Callable[[Any], ChunkOp], value: Any, arrays: Sequence[Any], grid: Grid, dtype: str
) -> Any:
    """Map an op that needs a delayed value (the root of a reduction) over chunked arrays.

    Parameters
    ----------
    make_op
        Makes the op of the value, inside a task.
    value
        Delayed value.
    arrays
        Sources.
    grid
        Blocks without a halo.
    dtype
        Of the result.
    """
    import dask.array as da
    from dask import delayed

    chunks = _blocks(arrays, grid)
    op = delayed(make_op)(value)
    results = np.empty(grid.counts, dtype=object)
    for block in grid:
        windows = [c[block.number] for c in chunks]
        task = delayed(_apply)(op, block, *windows)
        results[block.index] = da.from_delayed(task, block.write.shape, dtype=dtype)
    return da.block(results.tolist())


def _apply(op: ChunkOp, block: Block, *windows: Any) -> Any:
    return op.apply(block, *windows)


def compute_delayed(function: Callable[..., Any], *values: Any) -> Any:
    """Return the delayed result of a function of delayed values.

    Examples
    --------
    >>> compute_delayed(sum, [1, 2]).compute()
    3
    """
    from dask import delayed

    return delayed(function)(*values)
