"""What the ops of all networks with exclusive classes share, and labels instead of scores.

A label volume has for each voxel the class with the highest score, 0 being the background: one byte
where scores take four for each class. Of equal scores the first class wins, as NumPy's argmax has
it.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ..core.ops import ChunkOp

if TYPE_CHECKING:
    from ..core.geometry import Block, Grid, Vec
    from ..models.registry import PinnedModel

__all__ = ["ClassScoresOp", "LabelsOp", "labels_of"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ClassScoresOp(ChunkOp):
    """A network's scores of a tomogram, the background first.

    The one source is the tomogram. The result is float32: zyx for one class, czyx for all.
    """

    model_path: str | PinnedModel
    mean: float
    """Of the whole tomogram."""
    std: float
    """Of the whole tomogram."""
    class_index: int | None = None
    """Channel to return; all of them for None."""
    device: str = "cpu"
    name: str = "segment"
    dtype: str = "float32"

    @property
    @abstractmethod
    def settings(self) -> Any:
        """The network's architecture; loads the model on first use."""

    @property
    @abstractmethod
    def fixed_bytes(self) -> int:
        """Resident bytes of a process before its first block: torch, and this model's weights."""

    @property
    def n_classes(self) -> int:
        """Channels of the result."""
        n: int = self.settings.n_classes
        return n if self.class_index is None else 1

    def measured(self, mean: float, std: float) -> Self:
        """Return the same for a tomogram of this mean and standard deviation."""
        return replace(self, mean=mean, std=std)


@dataclass(frozen=True)
class LabelsOp(ChunkOp):
    """The class with the highest score, of a network's scores of all classes: uint8 zyx.

    Examples
    --------
    >>> class Scores(ChunkOp):
    ...     name = "segment"
    ...     def apply(self, block, *windows):
    ...         return np.array([[[[0.2, 0.5]]], [[[0.8, 0.5]]]], "float32")
    ...     def bytes_needed(self, window_shape):
    ...         return 8
    >>> from deepict_dask.core.geometry import Grid
    >>> LabelsOp(Scores()).apply(Grid((1, 1, 2), (1, 1, 2))[0]).tolist()
    [[[1, 0]]]
    """

    scores: Any
    """A `ClassScoresOp` of all classes."""
    name: str = "segment"
    dtype: str = "uint8"

    @property
    def halo(self) -> Vec:
        """Voxels needed on every side, those of the scores."""
        halo: Vec = self.scores.halo
        return halo

    @property
    def align(self) -> int:
        """Windows start on multiples of this, as those of the scores."""
        align: int = self.scores.align
        return align

    @property
    def n_classes(self) -> int:
        """Channels of the result."""
        return 1

    @property
    def axes(self) -> Any:
        """The tiles of each axis, where a model or a published program fixes them."""
        return self.scores.axes

    @property
    def fixed_bytes(self) -> int:
        """Resident bytes of a process before its first block."""
        fixed: int = self.scores.fixed_bytes
        return fixed

    def measured(self, mean: float, std: float) -> LabelsOp:
        """Return the same for a tomogram of this mean and standard deviation."""
        return replace(self, scores=self.scores.measured(mean, std))

    def apply(self, block: Block, *windows: Any) -> Array:
        """Return the labels over ``block.read``; outside ``block.write`` they say nothing."""
        return labels_of(self.scores.apply(block, *windows))

    def bytes_needed(self, window_shape: Vec) -> int:
        """Return the peak bytes of one block: those of its scores, and its labels."""
        needed: int = self.scores.bytes_needed(window_shape)
        return needed + 9 * math.prod(window_shape)

    def bytes_of(self, grid: Grid) -> int:
        """Return the peak bytes of one block of a grid."""
        return self.bytes_needed(grid.window_shape)


def labels_of(scores: Array) -> Array:
    """Return for each voxel of czyx scores the class with the highest: uint8 zyx.

    Examples
    --------
    >>> labels_of(np.array([[[[0.5, 0.1]]], [[[0.5, 0.3]]], [[[0.0, 0.6]]]])).tolist()
    [[[0, 2]]]
    """
    return np.argmax(scores, axis=0).astype(np.uint8)
