"""Scores as whole numbers, so that their sums do not depend on an order."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core.errors import VoxelValueError
from ..core.tables import SCORE_UNIT

__all__ = ["refuse_large_scores", "score_unit"]


def score_unit(dtype: Any) -> float:
    """Return the unit in which scores of a dtype are summed.

    Examples
    --------
    >>> score_unit("uint8"), score_unit("float32") == SCORE_UNIT
    (1.0, True)
    """
    return SCORE_UNIT if np.dtype(dtype).kind == "f" else 1.0


def refuse_large_scores(largest: float, unit: float, n_voxels_of_volume: int) -> None:
    """Check that no sum of scores can overflow.

    Parameters
    ----------
    largest
        The largest absolute score, in units.
    unit
        What a unit is.
    n_voxels_of_volume
        As many may be summed.

    Raises
    ------
    VoxelValueError
        A sum of 64 bits could overflow.
    """
    if largest * n_voxels_of_volume >= 2.0**62:
        raise VoxelValueError(
            f"score map: expected scores near 0..1, found {largest * unit:g}; "
            "give a score map, or a label volume with --label-value"
        )
