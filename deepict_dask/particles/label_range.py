"""Which labels does a volume have? Its smallest and largest number above 0."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.ops import TreeReduction

if TYPE_CHECKING:
    from ..core.geometry import Block, Vec

__all__ = ["LabelRange", "LabelRangeReduction"]


@dataclass(frozen=True)
class LabelRange:
    """The smallest and the largest label of some voxels; both 0 where there is none."""

    lowest: int = 0
    highest: int = 0

    @property
    def has_several(self) -> bool:
        """Whether there are at least two labels."""
        return self.lowest != self.highest


@dataclass(frozen=True)
class LabelRangeReduction(TreeReduction[LabelRange, LabelRange]):
    """Find the smallest and the largest label of a volume of whole numbers.

    Examples
    --------
    >>> from deepict_dask.core.geometry import Grid
    >>> (block,) = Grid((1, 1, 4), (1, 1, 4))
    >>> LabelRangeReduction().measure(block, np.array([[[0, 3, 2, 7]]]))
    LabelRange(lowest=2, highest=7)
    """

    name: str = "labels"

    def measure(self, block: Block, *windows: Any) -> LabelRange:
        """Look at a block, zyx."""
        voxels = np.asarray(block.crop(windows[0]))
        labels = voxels[voxels > 0]
        return LabelRange(int(labels.min()), int(labels.max())) if labels.size else LabelRange()

    def combine(self, left: LabelRange, right: LabelRange) -> LabelRange:
        """Put two boxes together."""
        lowest = min((side.lowest for side in (left, right) if side.highest), default=0)
        return LabelRange(lowest, max(left.highest, right.highest))

    def finalize(self, partial: LabelRange) -> LabelRange:
        """Return the range of the whole volume."""
        return partial

    def bytes_needed(self, window_shape: Vec) -> int:
        """Return the peak bytes of one block: voxels of up to 8 bytes, those above 0, a mask."""
        return math.prod(window_shape) * 17
