"""The skeleton of a volume, declared for the engine: windows with a halo in, voxel numbers out.

A block thins its window and keeps the skeleton voxels of its write box. They are few (one per voxel
of filament length), so combining is joining lists: memory at the root is proportional to the
skeleton, 8 bytes per voxel, not to the volume. Pieces on two sides of a chunk face meet because
voxels have numbers in the volume: there is nothing to merge.

The result does not depend on the chunks wherever the mask is no thicker than the declared radius
(see ``settings.py``); blocks that hold thicker stuff are counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.ops import TreeReduction
from .graph import encode
from .skeleton import foreground, is_thicker, thin

if TYPE_CHECKING:
    from ..core.geometry import Block, Vec
    from .settings import VoxelLengths

__all__ = ["Skeleton", "SkeletonReduction"]

Integers = np.ndarray[Any, np.dtype[np.int64]]

_BYTES_PER_VOXEL = 10
"""Foreground, filled mask, thinning (measured: 4 for tubes, 7 for noise, 6 for a solid block)."""


@dataclass(frozen=True)
class Skeleton:
    """Skeleton voxels of a box, and what the mask in it looked like."""

    voxels: Integers
    """Numbers of the voxels (see `deepict_dask.filaments.graph.encode`), sorted."""
    n_foreground: int = 0
    """Voxels of the mask."""
    n_thick: int = 0
    """Blocks in which the mask is thicker than the settings say."""
    maximum: float = 0.0
    """Largest value of the volume."""


def voxel_numbers(skeleton: Any, start: Vec, shape: Vec) -> Integers:
    """Return the numbers of a box's skeleton voxels, plane by plane to save memory.

    Examples
    --------
    >>> voxel_numbers(np.ones((1, 1, 2), bool), (0, 0, 0), (4, 5, 6)).tolist()
    [65, 66]
    """
    found = []
    for z, plane in enumerate(skeleton, start[0]):
        y, x = np.nonzero(plane)
        zyx = np.stack([np.full(len(y), z), y + start[1], x + start[2]], axis=-1)
        found.append(encode(zyx, shape))
    return np.concatenate(found)


@dataclass(frozen=True)
class SkeletonReduction(TreeReduction[Skeleton, Skeleton]):
    """Thin a mask chunk by chunk; the grid's halo must be ``lengths.halo``.

    Examples
    --------
    >>> from deepict_dask.core.geometry import Grid
    >>> from deepict_dask.filaments.settings import VoxelLengths
    >>> mask = np.zeros((5, 5, 20), "uint8")
    >>> mask[2, 2, 2:18] = 1
    >>> op = SkeletonReduction(mask.shape, VoxelLengths(radius=1, hole=0))
    >>> grid = Grid(mask.shape, (5, 5, 10), halo=op.lengths.halo)
    >>> left, right = (op.measure(block, mask[block.read.slices]) for block in grid)
    >>> len(op.finalize(op.combine(left, right)).voxels)
    16
    """

    shape: Vec
    lengths: VoxelLengths
    threshold: float = 0.5
    label_value: int | None = None
    dtype: str = "uint8"
    """NumPy name of the mask's type; only ``bytes_needed`` depends on it."""
    name: str = "skeleton"

    def measure(self, block: Block, *windows: Any) -> Skeleton:
        """Return the skeleton voxels of the block's write box."""
        (window,) = windows
        mask = foreground(window, self.threshold, self.label_value)
        inner = block.write.slices_in(block.read)
        n_foreground, maximum = int(mask[inner].sum()), float(window[inner].max())
        if not mask.any():
            return Skeleton(np.zeros(0, np.int64), maximum=maximum)
        skeleton, solid = thin(mask, self.lengths.hole, self.lengths.erode)
        return Skeleton(
            voxel_numbers(skeleton[inner], block.write.start, self.shape),
            n_foreground,
            int(is_thicker(solid, self.lengths.radius)),
            maximum,
        )

    def combine(self, left: Skeleton, right: Skeleton) -> Skeleton:
        """Join two lists of voxels."""
        return Skeleton(
            np.concatenate([left.voxels, right.voxels]),
            left.n_foreground + right.n_foreground,
            left.n_thick + right.n_thick,
            max(left.maximum, right.maximum),
        )

    def finalize(self, partial: Skeleton) -> Skeleton:
        """Return the skeleton with its voxels in raster order."""
        voxels = np.sort(partial.voxels)
        return Skeleton(voxels, partial.n_foreground, partial.n_thick, partial.maximum)

    def bytes_needed(self, window_shape: Vec) -> int:
        """Return the peak bytes of thinning one window."""
        return math.prod(window_shape) * (np.dtype(self.dtype).itemsize + _BYTES_PER_VOXEL)
