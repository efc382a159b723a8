"""The curve of precision against recall, its area and its best cut.

A result with scores is a family of results: keep what scores at least s, for every s that occurs.
Each such cut has a precision and a recall; things of one score are kept or dropped together.

1. *Area* (AUPRC): the average precision, the sum of precision times step in recall. No
   interpolation, no anchor. A *straight* curve has the trapezoid under its points instead, as
   DeePiCt computes it.
2. *Best cut*: the one with the highest F1; of several, the one that keeps the fewest.

Ratios without a denominator are 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Curve", "curve_of_counts", "last_of_equals", "ratio"]

Floats = np.ndarray[Any, np.dtype[np.float64]]
Integers = np.ndarray[Any, np.dtype[np.int64]]


def ratio(part: Any, whole: Any) -> Any:
    """Divide; 0 where there is nothing to divide by.

    Examples
    --------
    >>> ratio([1, 0], [2, 0]).tolist()
    [0.5, 0.0]
    """
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.zeros(np.broadcast(part, whole).shape), where=whole != 0)


def last_of_equals(ranked: Any) -> Integers:
    """Return the last row of each run of equal scores: after these a list can be cut.

    NaN is equal to nothing, so that a list without scores can be cut everywhere.

    Examples
    --------
    >>> last_of_equals(np.array([0.9, 0.9, 0.5])).tolist()
    [1, 2]
    """
    scores = np.asarray(ranked, np.float64)
    last = np.ones(len(scores), np.bool_)
    last[:-1] = scores[:-1] != scores[1:]
    return np.flatnonzero(last).astype(np.int64)


@dataclass(frozen=True)
class Curve:
    """Precision and recall at every cut, from the strictest to the one that keeps everything.

    Examples
    --------
    >>> curve = curve_of_counts([1, 1, 2], [0, 1, 1], n_true=2, score=[0.9, 0.8, 0.7])
    >>> round(curve.area, 4), curve.best, curve.score[curve.best]
    (0.8333, 2, np.float64(0.7))
    """

    precision: Floats
    recall: Floats
    score: Floats = field(repr=False)
    """The lowest score that each cut keeps; NaN without scores."""
    n_kept: Integers = field(repr=False)
    """How many each cut keeps, the redundant picks of DeePiCt's count included."""
    straight: bool = False
    """The area is that of trapezoids."""

    @property
    def f1(self) -> Floats:
        """Harmonic mean of precision and recall at every cut."""
        f1: Floats = ratio(2 * self.precision * self.recall, self.precision + self.recall)
        return f1

    @property
    def best(self) -> int:
        """The cut of the highest F1; -1 where there is no cut."""
        return int(np.argmax(self.f1)) if len(self.precision) else -1

    @property
    def area(self) -> float:
        """Area under the curve; 0 where there is no cut."""
        if self.straight:
            return float(np.trapezoid(self.precision, self.recall))
        return float((self.precision * np.diff(self.recall, prepend=0.0)).sum())


def curve_of_counts(
    true_positives: Any,
    false_positives: Any,
    *,
    n_true: int,
    score: Any,
    n_kept: Any = None,
    straight: bool = False,
) -> Curve:
    """Return the curve of running counts.

    Parameters
    ----------
    true_positives, false_positives
        How many of both each cut keeps, from the strictest cut on.
    n_true
        How many there are to find.
    score
        The lowest score that each cut keeps.
    n_kept
        How many each cut keeps; by default the sum of both counts.
    straight
        See `Curve`.
    """
    found = np.asarray(true_positives, np.int64)
    wrong = np.asarray(false_positives, np.int64)
    return Curve(
        precision=ratio(found, found + wrong),
        recall=ratio(found, n_true),
        score=np.asarray(score, np.float64),
        n_kept=found + wrong if n_kept is None else np.asarray(n_kept, np.int64),
        straight=straight,
    )
