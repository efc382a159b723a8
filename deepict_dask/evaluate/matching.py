"""Match picks with true particles, one to one.

1. Go through the picks by falling score; ties in raster order, so that the list's order is of no
   importance; without scores in the order given.
2. Each pick takes the nearest true particle within the radius that is still free. Of equally near
   ones it takes the one with the smaller x, then y, then z.
3. A pick that finds none is without a match; it is *redundant* where others took what it could
   have had.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.errors import PicksFormatError

__all__ = ["Matching", "match_picks", "points_of"]

Floats = np.ndarray[Any, np.dtype[np.float64]]
Integers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Matching:
    """Which pick found which true particle."""

    true_index: Integers
    """For each pick the row of its true particle; -1 where it has none."""
    distance: Floats
    """For each pick the distance to it in voxels; infinite where it has none."""
    redundant: np.ndarray[Any, np.dtype[np.bool_]]
    """For each pick whether it has none because others took all within the radius."""
    order: Integers
    """Rows of the picks in the order in which they chose."""
    n_true: int
    """Number of true particles."""

    @property
    def found(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """For each true particle whether a pick took it."""
        found = np.zeros(self.n_true, np.bool_)
        found[self.true_index[self.true_index >= 0]] = True
        return found


def points_of(values: Any, what: str) -> Floats:
    """Return finite points (n, 3) float64, zyx voxels.

    Raises
    ------
    PicksFormatError
        They are not (n, 3) or not finite.

    Examples
    --------
    >>> points_of([], "picks").shape
    (0, 3)
    """
    points = np.asarray(values, np.float64)
    if points.size == 0:
        return np.zeros((0, 3))
    if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
        raise PicksFormatError(
            f"{what}: expected finite positions of shape (n, 3), found shape {points.shape}; "
            "give columns z, y, x"
        )
    return points


def _choosing_order(points: Floats, scores: Any) -> Integers:
    """Return rows by falling score, ties in raster order; as given without any score."""
    if scores is None or np.isnan(np.asarray(scores, np.float64)).all():
        return np.arange(len(points))
    falling = -np.asarray(scores, np.float64)
    return np.lexsort((points[:, 2], points[:, 1], points[:, 0], falling)).astype(np.int64)


def _candidates(predicted: Floats, true: Floats, radius: float) -> list[list[tuple[float, int]]]:
    """Return for each pick (distance, rank) of the true particles in reach, nearest first.

    Of equally near ones the one with the smaller x, then y, then z comes first. ``true`` is
    sorted so, thus its row is its rank.
    """
    from scipy.spatial import KDTree

    # the tree is asked for a little more, so that its rounding cannot lose a point at the radius
    near = KDTree(true).query_ball_point(predicted, radius * (1 + 1e-9))
    ranked = []
    for point, rows in zip(predicted, near, strict=True):
        distances = np.linalg.norm(true[rows] - point, axis=1)
        pairs = zip(distances.tolist(), rows, strict=True)
        ranked.append(sorted(pair for pair in pairs if pair[0] <= radius))
    return ranked


def match_picks(predicted: Any, true: Any, radius: float, *, scores: Any = None) -> Matching:
    """Match picks with true particles, one to one.

    Parameters
    ----------
    predicted
        Positions of picks in voxels, (n, 3), zyx.
    true
        Positions of true particles in voxels, (m, 3), zyx.
    radius
        Largest distance of a match in voxels; a match at exactly this distance counts.
    scores
        One number per pick; the highest chooses first. Without: the first chooses first.

    Returns
    -------
    Matching
        Empty lists give an empty matching.

    Raises
    ------
    PicksFormatError
        Where positions are not (n, 3) or not finite, scores are not one per pick, or the radius
        is negative.

    Examples
    --------
    >>> matching = match_picks([[0, 0, 0], [0, 0, 1]], [[0, 0, 2]], radius=3, scores=[0.9, 0.8])
    >>> matching.true_index.tolist(), matching.redundant.tolist()
    ([0, -1], [False, True])
    """
    predicted, true = points_of(predicted, "predicted picks"), points_of(true, "true particles")
    if scores is not None and len(scores) != len(predicted):
        raise PicksFormatError(
            f"scores: expected one per pick ({len(predicted)}), found {len(scores)}; give as many"
        )
    if not radius >= 0:
        raise PicksFormatError(f"radius: expected 0 voxels or more, found {radius}; correct it")
    order = _choosing_order(predicted, scores)
    by_xyz = np.lexsort((true[:, 0], true[:, 1], true[:, 2]))
    if len(predicted) == 0 or len(true) == 0:
        return _unmatched(order, len(true))
    return _greedy(_candidates(predicted, true[by_xyz], radius), order, by_xyz)


def _unmatched(order: Integers, n_true: int) -> Matching:
    n = len(order)
    nobody = np.zeros(n, np.bool_)
    return Matching(np.full(n, -1, np.int64), np.full(n, np.inf), nobody, order, n_true)


def _greedy(
    candidates: list[list[tuple[float, int]]], order: Integers, by_xyz: Integers
) -> Matching:
    """Let each pick in turn take the nearest true particle that is free."""
    matching = _unmatched(order, len(by_xyz))
    taken: set[int] = set()
    for pick in order.tolist():
        free = next((pair for pair in candidates[pick] if pair[1] not in taken), None)
        if free is None:
            matching.redundant[pick] = bool(candidates[pick])
            continue
        distance, rank = free
        taken.add(rank)
        matching.true_index[pick] = by_xyz[rank]
        matching.distance[pick] = distance
    return matching
