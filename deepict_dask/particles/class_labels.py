"""Score maps of several classes, or a label volume, as one label for each voxel.

A label volume is what it is: 0 is background, 1 to n are classes. Of score maps a voxel has, of
the classes whose score is above their threshold, the one with the highest score; of equal scores
the first class. Thresholds of minus infinity make that NumPy's argmax.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import VoxelValueError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ClassLabels"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ClassLabels:
    """How labels are made of the windows of a task.

    Examples
    --------
    >>> scores = np.array([[[0.2, 0.6]]]), np.array([[[0.7, 0.5]]])
    >>> ClassLabels(threshold=0.5).of(scores).tolist()
    [[[2, 1]]]
    >>> ClassLabels().of([np.array([[[0, 3]]])]).tolist()
    [[[0, 3]]]
    >>> ClassLabels(threshold=(0.1, 0.9)).of(scores).tolist()
    [[[1, 1]]]
    """

    threshold: float | tuple[float, ...] | None = None
    """Scores above it count, of all classes or of each; None for a label volume."""
    label_value: int | None = None
    """Only this class, of a label volume or of those that won."""
    background: int | None = None
    """Of several score maps the one of the background, counted from 1."""
    bytes_per_voxel: int = 24
    """Peak bytes of windows and labels for each voxel."""

    def of(self, windows: Sequence[Array]) -> Array:
        """Return the labels (zyx) of windows: one label volume, or one score map for each class.

        Raises
        ------
        VoxelValueError
            Scores are NaN, or labels are no whole numbers of 0 or more.
        """
        return self.scored(windows)[0]

    def scored(self, windows: Sequence[Array]) -> tuple[Array, Array | None]:
        """Return the labels of windows, and the scores that won (None of a label volume)."""
        if self.threshold is None:
            return self._checked(windows[0]), None
        labels = np.zeros(windows[0].shape, np.uint16)
        limits = np.broadcast_to(np.array(self.threshold, np.float32), len(windows))
        highest = np.full(windows[0].shape, limits.min(), np.float32)
        for number, (window, limit) in enumerate(zip(windows, limits, strict=True), start=1):
            if window.dtype.kind == "f" and np.isnan(window).any():
                raise VoxelValueError("expected scores, found NaN; correct the score map")
            better = window > highest
            if limit > limits.min():
                better &= window > limit
            labels[better] = number
            np.copyto(highest, window, where=better, casting="same_kind")
        if self.background is not None:
            labels[labels == self.background] = 0
        if self.label_value is not None:
            labels[labels != self.label_value] = 0
        return labels, highest

    def _checked(self, window: Array) -> Array:
        """Return a label window, of one class where one is asked for."""
        if window.dtype.kind == "f":
            if not (np.isfinite(window).all() and (window == np.rint(window)).all()):
                raise VoxelValueError(
                    "expected whole numbers in a label volume, found others; give --threshold "
                    "for a score map"
                )
            window = window.astype(np.int32)
        if window.dtype.kind == "i" and window.size and window.min() < 0:
            raise VoxelValueError("expected labels of 0 or more, found negative ones; correct them")
        if self.label_value is None:
            return window
        return np.where(window == self.label_value, window, 0)
