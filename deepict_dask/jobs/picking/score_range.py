"""Mean, deviation and range of scores where they are: on a GPU with a few reductions."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...backend import is_on_device, namespace_of
from ...core.geometry import Block, Box
from ...core.statistics import StatisticsReduction

if TYPE_CHECKING:
    from ...core.statistics import StatisticsPartial

__all__ = ["score_range"]

_NO_BLOCK = Block(0, (0, 0, 0), Box((0, 0, 0), (0, 1, 1)), Box((0, 0, 0), (0, 1, 1)))


def score_range(block: Block, score: Any) -> StatisticsPartial:
    """Return what `StatisticsReduction` measures of finite scores, which may be on a GPU.

    Parameters
    ----------
    block
        Where the scores lie.
    score
        float zyx over ``block.write``, NumPy or CuPy, without NaN.

    Examples
    --------
    >>> from deepict_dask.core.geometry import Grid
    >>> (block,) = Grid((1, 1, 2), (1, 1, 2))
    >>> score_range(block, np.array([[[0.25, 0.75]]], np.float32)).moments.mean
    0.5
    """
    if not is_on_device(score):
        return StatisticsReduction().measure(block, score)
    xp = namespace_of(score)
    low, high = float(score.min()), float(score.max())
    mean = float(score.mean(dtype=np.float64))
    # a plane at a time: float64 copies of all scores would not fit beside them
    deviations = float(sum(xp.square(plane.astype(np.float64) - mean).sum() for plane in score))
    nothing = StatisticsReduction().measure(_NO_BLOCK, np.zeros((0, 1, 1), np.float32))
    moments = replace(nothing.moments, count=score.size, mean=mean, deviations=deviations)
    return replace(nothing, moments=moments, minimum=low, maximum=high)
