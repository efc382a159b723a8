"""Score maps of several classes, or a label volume, as one label for each voxel.

A label volume is what it is: 0 is background, 1 to n are classes. Of score maps a voxel has the
class with the highest score, if that is above the threshold; of equal scores the first class.
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
    """

    threshold: float | None = None
    """Scores above it count; None for a label volume."""
    label_value: int | None = None
    """Of a label volume, only this class."""
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
        highest = np.full(windows[0].shape, self.threshold, np.float32)
        for number, window in enumerate(windows, start=1):
            if window.dtype.kind == "f" and np.isnan(window).any():
                raise VoxelValueError("expected scores, found NaN; correct the score map")
            better = window > highest
            labels[better] = number
            np.copyto(highest, window, where=better, casting="same_kind")
        if self.background is not None:
            labels[labels == self.background] = 0
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
