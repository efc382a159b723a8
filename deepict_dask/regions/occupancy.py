"""Where does a region lie at all? One pass over its mask, before any distance is measured.

Each chunk that has voxels inside becomes a *part*: the smallest box that holds them, and whether
they fill it. A part tells two things without reading the mask again: no voxel of the region in that
chunk is nearer than the box, and where the box is full its distance is the region's.

The same pass sees whether the mask is a mask: its range, and whether all voxels are finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.ops import TreeReduction

if TYPE_CHECKING:
    from ..core.geometry import Block, Vec

__all__ = ["PART_DTYPE", "MaskSurvey", "SurveyReduction"]

Array = np.ndarray[Any, Any]

PART_DTYPE = np.dtype([("start", np.int64, 3), ("stop", np.int64, 3), ("full", np.bool_)])
"""Box of the region's voxels in one chunk (zyx voxels, half-open), and whether they fill it."""


@dataclass(frozen=True)
class MaskSurvey:
    """What is known of a region mask after one pass."""

    parts: Array
    """Where the region lies: `PART_DTYPE`, one row for each chunk with voxels inside."""
    minimum: float = math.inf
    """Smallest value, NaN where a voxel is NaN."""
    maximum: float = -math.inf
    is_fractional: bool = False
    """Whether a voxel lies between 0 and 1, as in a score map."""

    @property
    def is_empty(self) -> bool:
        """Whether no voxel is inside."""
        return len(self.parts) == 0

    @property
    def is_finite(self) -> bool:
        """Whether no voxel is NaN or infinite."""
        return math.isfinite(self.minimum) and math.isfinite(self.maximum)


@dataclass(frozen=True)
class SurveyReduction(TreeReduction[MaskSurvey, MaskSurvey]):
    """Find the parts of a region and the range of its mask.

    Examples
    --------
    >>> from deepict_dask.core.geometry import Grid
    >>> mask = np.zeros((1, 4, 8), "uint8")
    >>> mask[0, 1:3, 5:7] = 1
    >>> left, right = (SurveyReduction().measure(block, mask[block.read.slices])
    ...                for block in Grid((1, 4, 8), (1, 4, 4)))
    >>> left.is_empty, right.parts["start"].tolist(), right.parts["full"].tolist()
    (True, [[0, 1, 5]], [True])
    """

    dtype: str = "uint8"
    """NumPy name of the mask's type; only ``bytes_needed`` depends on it."""
    name: str = "region"

    def measure(self, block: Block, *windows: Any) -> MaskSurvey:
        """Return the part of one chunk."""
        (mask,) = windows
        inside = mask != 0
        parts = np.zeros(1 if inside.any() else 0, PART_DTYPE)
        for axis in range(3 if len(parts) else 0):
            others = tuple(other for other in range(3) if other != axis)
            (places,) = np.nonzero(inside.any(axis=others))
            parts["start"][0, axis] = block.read.start[axis] + places[0]
            parts["stop"][0, axis] = block.read.start[axis] + places[-1] + 1
        if len(parts):
            box = parts["stop"][0] - parts["start"][0]
            parts["full"] = np.count_nonzero(inside) == math.prod(box.tolist())
        fractional = mask.dtype.kind == "f" and bool((inside & (mask > 0) & (mask < 1)).any())
        return MaskSurvey(parts, float(mask.min()), float(mask.max()), fractional)

    def combine(self, left: MaskSurvey, right: MaskSurvey) -> MaskSurvey:
        """Join two sets of parts."""
        return MaskSurvey(
            np.concatenate([left.parts, right.parts]),
            float(np.minimum(left.minimum, right.minimum)),  # NaN stays NaN
            float(np.maximum(left.maximum, right.maximum)),
            left.is_fractional or right.is_fractional,
        )

    def finalize(self, partial: MaskSurvey) -> MaskSurvey:
        """Return the survey of the whole mask."""
        return partial

    def bytes_needed(self, window_shape: Vec) -> int:
        """Return the bytes of the mask, as stored and as read, and of what is inside."""
        return math.prod(window_shape) * (2 * np.dtype(self.dtype).itemsize + 3) + (1 << 20)
