"""Match picks with true particles, and count.

How many of the picks are true, and how many of the true particles were picked?
Default counting, one to one:

1. Go through the picks by falling score (ties in raster order, so that the list's order is of no
   importance; without scores in the order given).
2. Each pick takes the nearest true particle within the radius that is still free: a true positive.
   A pick that finds none is a false positive, also where another pick took its particle.
3. Precision and recall after each score give the curve; its area is the average precision (the
   sum of precision times step in recall: no interpolation, no anchor).

``counting="deepict"`` is the count behind DeePiCt's published figures, for comparison only: picks
go in the order given, a pick whose particles are all taken counts neither for nor against
(precision looks better), true particles at one place are one, and the area is a trapezoid over
(recall, precision) without anchor.

Ratios without a denominator are 0: no picks have precision 0, no true particles give recall 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..core.errors import ConfigError, PicksFormatError

__all__ = ["Counting", "Matching", "PicksScore", "match_picks", "score_picks"]

Counting = Literal["one-to-one", "deepict"]
"""How picks near an already taken particle count."""

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


@dataclass(frozen=True)
class PicksScore:
    """Counts and ratios of a list of picks.

    ``precision_curve``, ``recall_curve``: after each pick, in the order of the matching.
    """

    n_true: int
    n_found: int
    """Picks in the list."""
    true_positives: int
    false_positives: int
    redundant: int
    """Picks whose true particles were all taken: false positives, but not in DeePiCt's count."""
    precision: float
    recall: float
    f1: float
    best_f1: float
    """Highest F1 over all cuts of the list."""
    best_n_picks: int
    """How many picks to keep for it."""
    best_score: float
    """Score of the last pick to keep for it; NaN without scores or picks."""
    auprc: float
    """Area under the precision-recall curve."""
    precision_curve: Floats
    recall_curve: Floats

    @property
    def false_negatives(self) -> int:
        """True particles that no pick took."""
        return self.n_true - self.true_positives


def _points(values: Any, what: str) -> Floats:
    """Return finite points (n, 3) float64."""
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


def same_class(predicted: Any, true: Any, class_name: str | None = None) -> tuple[Any, Any]:
    """Return the rows of one class of two picks tables.

    Parameters
    ----------
    predicted, true
        Picks tables (`pandas.DataFrame`); those without ``class_name`` are of one class.
    class_name
        Which class; by default the one class of ``predicted``, else of ``true``.

    Raises
    ------
    ConfigError
        There are several classes and none was chosen, or the class is in neither table.

    Examples
    --------
    >>> import pandas as pd
    >>> true = pd.DataFrame({"x": [1, 2], "class_name": ["ribosome", "fas"]})
    >>> len(same_class(pd.DataFrame({"x": [1]}), true, "fas")[1])
    1
    """
    tables = (predicted, true)
    known = [set(t["class_name"].dropna()) if "class_name" in t else set() for t in tables]
    single = next((names for names in known if len(names) == 1), None)
    if class_name is None and single and all(single <= names or not names for names in known):
        (class_name,) = single
    everything = sorted(set().union(*known), key=str)
    if class_name is None and everything:
        raise ConfigError(
            f"picks: expected one class to compare, found {', '.join(map(str, everything))}; "
            "choose one with --class"
        )
    if class_name is not None and everything and class_name not in everything:
        raise ConfigError(
            f"picks: expected the class {class_name}, found {', '.join(map(str, everything))}"
        )
    predicted, true = (
        t[t["class_name"] == class_name] if names else t
        for t, names in zip(tables, known, strict=True)
    )
    return predicted, true


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
    predicted, true = _points(predicted, "predicted picks"), _points(true, "true particles")
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


def score_picks(
    predicted: Any,
    true: Any,
    radius: float,
    *,
    scores: Any = None,
    counting: Counting = "one-to-one",
) -> PicksScore:
    """Score picks against true particles.

    Parameters
    ----------
    predicted, true, radius, scores
        As in `match_picks`.
    counting
        ``"deepict"`` counts as DeePiCt's evaluation does; scores then serve for ``best_score``
        only, and the picks go in the order given.

    Returns
    -------
    PicksScore
        Defined for empty lists too.

    References
    ----------
    de Teresa-Trueba et al., Nature Methods 20, 284 (2023), evaluation of particle picking.

    Examples
    --------
    >>> score = score_picks([[0, 0, 0], [9, 9, 9]], [[0, 0, 1], [5, 5, 5]], 2, scores=[0.9, 0.8])
    >>> score.precision, score.recall, score.best_n_picks, score.auprc
    (0.5, 0.5, 1, 0.5)
    """
    predicted, true = _points(predicted, "predicted picks"), _points(true, "true particles")
    published = counting == "deepict"
    places = np.unique(true, axis=0) if published else true
    matching = match_picks(predicted, places, radius, scores=None if published else scores)
    hit = matching.true_index[matching.order] >= 0
    wrong = ~hit & ~matching.redundant[matching.order] if published else ~hit
    ranked = _ranked_scores(scores, matching.order)
    return _summary(hit, wrong, matching, len(true), ranked, published=published)


def _ranked_scores(scores: Any, order: Integers) -> Floats:
    """Return scores in choosing order; NaN without scores."""
    if scores is None:
        return np.full(len(order), np.nan)
    return np.asarray(scores, np.float64)[order]


def _cuts(ranked: Floats) -> Integers:
    """Return after which picks a list can be cut: not between equal scores."""
    last = np.ones(len(ranked), np.bool_)
    last[:-1] = ranked[:-1] != ranked[1:]
    return np.flatnonzero(last).astype(np.int64)


def _ratio(part: Any, whole: Any) -> Any:
    """Divide; 0 where there is nothing to divide by."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.zeros(np.broadcast(part, whole).shape), where=whole != 0)


def _summary(
    hit: np.ndarray[Any, Any],
    wrong: np.ndarray[Any, Any],
    matching: Matching,
    n_true: int,
    ranked: Floats,
    *,
    published: bool,
) -> PicksScore:
    """Turn hits and misses, in choosing order, into counts, ratios and curves."""
    ends = _cuts(np.full(len(ranked), np.nan) if published else ranked)
    true_positives, false_positives = np.cumsum(hit), np.cumsum(wrong)
    precision = _ratio(true_positives, true_positives + false_positives)
    recall = _ratio(true_positives, n_true)
    f1 = _ratio(2 * precision * recall, precision + recall)
    best = int(ends[np.argmax(f1[ends])]) if len(ends) else -1
    area = _trapezoid_area if published else _step_area
    return PicksScore(
        n_true=n_true,
        n_found=len(hit),
        true_positives=int(hit.sum()),
        false_positives=int(wrong.sum()),
        redundant=int(matching.redundant.sum()),
        precision=float(precision[-1]) if len(hit) else 0.0,
        recall=float(recall[-1]) if len(hit) else 0.0,
        f1=float(f1[-1]) if len(hit) else 0.0,
        best_f1=float(f1[best]) if len(ends) else 0.0,
        best_n_picks=best + 1,
        best_score=float(ranked[best]) if len(ends) else float("nan"),
        auprc=area(precision[ends], recall[ends]),
        precision_curve=precision,
        recall_curve=recall,
    )


def _step_area(precision: Floats, recall: Floats) -> float:
    """Return the average precision.

    Examples
    --------
    >>> _step_area(np.array([1.0, 0.5]), np.array([0.5, 0.5]))
    0.5
    """
    return float((precision * np.diff(recall, prepend=0.0)).sum())


def _trapezoid_area(precision: Floats, recall: Floats) -> float:
    """Return the trapezoid area without an anchor at recall 0.

    Examples
    --------
    >>> _trapezoid_area(np.array([1.0, 0.5]), np.array([0.5, 1.0]))
    0.375
    """
    return float(np.trapezoid(precision, recall))
