"""A window on a GPU: what it takes there, and smaller ones where that is too much.

Scores stay where they were computed, for whoever thresholds and labels them. Where a GPU runs out
of memory even with empty pools, the voxels that a window writes are halved, along its longest axis
and at a multiple of the alignment, until each part fits: the same scores to 1e-5, collected on the
host. How many voxels were too many is remembered, so later windows of the process are halved at
once.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..backend import empty_pools, is_out_of_memory, retry_with_empty_pools, say_once, to_host
from ..core.geometry import Block, Box, as_vec, ceil_to, floor_to

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..core.geometry import Vec

__all__ = ["Halving", "halves", "scores_that_fit"]

Array = Any


class Windowed(Protocol):
    """What windows are computed by."""

    @property
    def halo(self) -> Vec:
        """Voxels a window needs on every side."""
        ...

    @property
    def align(self) -> int:
        """Windows start on multiples of this."""
        ...


class Halving:
    """What a process has learnt of the windows that its GPU can hold.

    Examples
    --------
    >>> halving = Halving()
    >>> halving.refuses((8, 8, 8))
    False
    >>> halving.learn((8, 8, 8))
    >>> halving.refuses((8, 8, 8)), halving.refuses((8, 8, 4))
    (True, False)
    """

    def __init__(self) -> None:
        self.too_many: float = math.inf

    def refuses(self, shape: Vec) -> bool:
        """Say whether as many voxels were too many before."""
        return math.prod(shape) >= self.too_many

    def learn(self, shape: Vec) -> None:
        """Note that a window was too large."""
        self.too_many = min(self.too_many, math.prod(shape))


_OF_THIS_PROCESS = Halving()


def halves(block: Block, op: Windowed) -> tuple[Block, Block] | None:
    """Cut the voxels that a block writes in two, each with what it must read.

    Parameters
    ----------
    block
        Whose ``read`` holds the halo of ``write``, where the volume has one.
    op
        Says halo and alignment.

    Returns
    -------
    tuple or None
        Blocks inside ``block.read``; None where ``write`` is one cell of the alignment.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> block = Block(0, (0, 0, 0), Box((0, 0, 0), (16, 16, 36)), Box((4, 4, 0), (12, 12, 32)))
    >>> one, other = halves(block, SimpleNamespace(halo=(4, 4, 4), align=4))
    >>> one.write, one.read
    (Box(start=(4, 4, 0), stop=(12, 12, 16)), Box(start=(0, 0, 0), stop=(16, 16, 20)))
    >>> other.read
    Box(start=(0, 0, 12), stop=(16, 16, 36))
    """
    axes = sorted(range(3), key=lambda axis: -block.write.shape[axis])
    for axis in axes:
        start, stop = block.write.start[axis], block.write.stop[axis]
        middle = floor_to((start + stop) // 2, op.align)
        if start < middle < stop:
            low, high = list(block.write.stop), list(block.write.start)
            low[axis] = high[axis] = middle
            parts = (Box(block.write.start, as_vec(low)), Box(as_vec(high), block.write.stop))
            first, second = (_reading(block, part, op) for part in parts)
            return first, second
    return None


def _reading(block: Block, write: Box, op: Windowed) -> Block:
    """Return the block that writes a part of another, within what that one reads."""
    around = zip(write.start, write.stop, op.halo, strict=True)
    wanted = [(floor_to(a - n, op.align), ceil_to(b + n, op.align)) for a, b, n in around]
    start = [max(a, limit) for (a, _), limit in zip(wanted, block.read.start, strict=True)]
    stop = [min(b, limit) for (_, b), limit in zip(wanted, block.read.stop, strict=True)]
    return Block(block.number, block.index, Box(as_vec(start), as_vec(stop)), write)


def scores_that_fit(
    op: Windowed,
    compute: Callable[[Block, Array], Array],
    block: Block,
    window: Array,
    halving: Halving = _OF_THIS_PROCESS,
) -> Array:
    """Return the scores of a window, computed at once or in parts.

    Parameters
    ----------
    op
        Says halo and alignment.
    compute
        From a block and its window (zyx, on the host) to scores, czyx over ``block.read``.
    block
        Where the window lies.
    window
        zyx, NumPy, as read.
    halving
        What was too large before.

    Returns
    -------
    array
        float32 czyx over ``block.write``: on the GPU where the window fitted, else NumPy.

    Raises
    ------
    RuntimeError, MemoryError
        Not even one cell of the alignment fits; as the GPU's library raised it.
    """
    parts = halves(block, op)
    if parts is None or not halving.refuses(block.read.shape):
        try:
            return block.crop(retry_with_empty_pools(lambda: compute(block, window)))
        except Exception as error:
            if parts is None or not is_out_of_memory(error):
                raise
            halving.learn(block.read.shape)
            say_once("window", _too_large(block, error))
        empty_pools()  # only now nothing refers to the arrays of the attempt
    found: np.ndarray[Any, Any] | None = None
    for part in parts:
        view = window[part.read.slices_in(block.read)]
        scores = to_host(scores_that_fit(op, compute, part, view, halving))
        if found is None:
            found = np.empty((len(scores), *block.write.shape), np.float32)
        found[(slice(None), *part.write.slices_in(block.write))] = scores
    return found


def _too_large(block: Block, error: Exception) -> str:
    size = "x".join(map(str, block.read.shape))
    return f"segment: too little GPU memory for windows of {size}, smaller ones are used ({error})"
