"""Count picks against true particles.

How many of the picks are true, and how many of the true particles were picked?
Default counting, one to one:

1. Match picks with true particles by falling score (`deepict_dask.evaluate.matching`).
2. A pick with a match is a true positive, any other a false positive, also where another pick took
   its particle.
3. Precision and recall at each score give the curve (`deepict_dask.evaluate.curves`).

``counting="deepict"`` is the count behind DeePiCt's published figures, for comparison only: picks
go in the order given, a pick whose particles are all taken counts neither for nor against
(precision looks better), true particles at one place are one, and the area is a trapezoid over
(recall, precision) without anchor.

Lists of several tomograms are pooled by `pool_picks`: each was matched within its own tomogram,
then all picks are ranked together.

Ratios without a denominator are 0: no picks have precision 0, no true particles give recall 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..core.errors import ConfigError
from ..io.picks_table import named_by_number
from .curves import Curve, curve_of_counts, last_of_equals
from .matching import Matching, match_picks, points_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Counting",
    "JudgedPicks",
    "Matching",
    "PicksScore",
    "count_picks",
    "judge_picks",
    "match_picks",
    "pool_picks",
    "same_class",
    "score_picks",
]

Counting = Literal["one-to-one", "deepict"]
"""How picks near an already taken particle count."""

Floats = np.ndarray[Any, np.dtype[np.float64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class JudgedPicks:
    """Each pick of a list, in the order of the matching, and what became of it."""

    hit: Bools
    """It found a true particle."""
    redundant: Bools
    """It found none because others took all within the radius."""
    score: Floats
    """NaN without scores."""
    n_true: int
    counting: Counting

    @property
    def wrong(self) -> Bools:
        """It counts as a false positive."""
        return ~self.hit & ~self.redundant if self.counting == "deepict" else ~self.hit


@dataclass(frozen=True)
class PicksScore:
    """Counts and ratios of a list of picks."""

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
    """After each pick, in the order of the matching."""
    recall_curve: Floats
    """The same for the recall."""
    curve: Curve
    """Precision and recall at each cut: between picks of one score there is none."""

    @property
    def false_negatives(self) -> int:
        """True particles that no pick took."""
        return self.n_true - self.true_positives


def same_class(
    predicted: Any, true: Any, class_name: str | None = None, true_class: str | None = None
) -> tuple[Any, Any]:
    """Return the rows of one class of two picks tables.

    Parameters
    ----------
    predicted, true
        Picks tables (`pandas.DataFrame`). Those with several ``class_number`` and no ``class_name``
        have their numbers as names; others without names are of one class.
    class_name
        Which class; by default the one class of ``predicted``, else of ``true``.
    true_class
        What ``true`` calls it, where that is another name.

    Raises
    ------
    ConfigError
        There are several classes and none was chosen, the class is in neither table, ``true_class``
        is not in ``true``, or one table has names and the other numbers.

    Examples
    --------
    >>> import pandas as pd
    >>> true = pd.DataFrame({"x": [1, 2], "class_name": ["ribosome", "fas"]})
    >>> len(same_class(pd.DataFrame({"x": [1]}), true, "fas")[1])
    1
    """
    predicted, true = named_by_number(predicted), named_by_number(true)
    if true_class is not None:
        true = _only_class(true, true_class)
    tables = predicted, true
    known = [set(t["class_name"].dropna()) if "class_name" in t else set() for t in tables]
    single = next((names for names in known if len(names) == 1), None)
    if class_name is None and single and all(single <= names or not names for names in known):
        (class_name,) = single
    everything = sorted(set().union(*known), key=str)
    if class_name is None and everything:
        raise ConfigError(
            f"picks: expected one class to compare, found {', '.join(map(str, everything))}; "
            "choose one with --class (and with --true-class what the true list calls it)"
        )
    if class_name is not None:
        _refuse_other_names(tables, known, class_name)
    if class_name is not None and everything and class_name not in everything:
        raise ConfigError(
            f"picks: expected the class {class_name}, found {', '.join(map(str, everything))}"
        )
    predicted, true = (
        t[t["class_name"] == class_name] if names else t
        for t, names in zip(tables, known, strict=True)
    )
    return predicted, true


def _only_class(true: Any, true_class: str) -> Any:
    """Return the particles of one class of the true list, which then is of one class."""
    known = set(true["class_name"].dropna()) if "class_name" in true else set()
    if true_class not in known:
        raise ConfigError(
            f"true particles: expected the class {true_class} (--true-class), found "
            f"{', '.join(sorted(map(str, known))) or 'no names of classes'}"
        )
    return true[true["class_name"] == true_class].drop(columns="class_name")


def _refuse_other_names(tables: Sequence[Any], known: Sequence[set[str]], class_name: str) -> None:
    """Refuse a name for classes that one list knows by number only: nobody says which it is."""
    numbered = [
        len(names) > 1 and "class_number" in t and names == set(map(str, t["class_number"]))
        for t, names in zip(tables, known, strict=True)
    ]
    for what, names in zip(("predicted picks", "true particles"), known, strict=True):
        if any(numbered) and names and class_name not in names:
            found = ", ".join(sorted(names, key=str))
            raise ConfigError(
                f"{what}: expected the class {class_name}, found {found}; one list has "
                "numbers instead of names: give it as a picks.csv with the names in a column "
                "class_name, or each list with the picks of this class alone"
            )


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

    Raises
    ------
    PicksFormatError
        As in `match_picks`.

    References
    ----------
    de Teresa-Trueba et al., Nature Methods 20, 284 (2023), evaluation of particle picking.

    Examples
    --------
    >>> score = score_picks([[0, 0, 0], [9, 9, 9]], [[0, 0, 1], [5, 5, 5]], 2, scores=[0.9, 0.8])
    >>> score.precision, score.recall, score.best_n_picks, score.auprc
    (0.5, 0.5, 1, 0.5)
    """
    return count_picks(judge_picks(predicted, true, radius, scores=scores, counting=counting))


def judge_picks(
    predicted: Any,
    true: Any,
    radius: float,
    *,
    scores: Any = None,
    counting: Counting = "one-to-one",
) -> JudgedPicks:
    """Say of each pick whether it is true; arguments and errors as in `score_picks`.

    Examples
    --------
    >>> judge_picks([[0, 0, 0], [0, 0, 1]], [[0, 0, 0]], 2).redundant.tolist()
    [False, True]
    """
    predicted, true = points_of(predicted, "predicted picks"), points_of(true, "true particles")
    published = counting == "deepict"
    places = np.unique(true, axis=0) if published else true
    matching = match_picks(predicted, places, radius, scores=None if published else scores)
    known = np.full(len(predicted), np.nan) if scores is None else np.asarray(scores, np.float64)
    return JudgedPicks(
        hit=matching.true_index[matching.order] >= 0,
        redundant=matching.redundant[matching.order],
        score=known[matching.order],
        n_true=len(true),
        counting=counting,
    )


def pool_picks(lists: Sequence[JudgedPicks]) -> JudgedPicks:
    """Join the picks of several tomograms, each matched within its own, into one ranked list.

    By falling score, picks without one last; without any score, or in DeePiCt's count, list after
    list in the order given. Scores must mean the same in all lists for the pooled curve to mean
    anything.

    Parameters
    ----------
    lists
        At least one, all of one counting.

    Examples
    --------
    >>> good = judge_picks([[0, 0, 0]], [[0, 0, 0]], 1, scores=[0.5])
    >>> bad = judge_picks([[9, 9, 9]], [[0, 0, 0]], 1, scores=[0.9])
    >>> pooled = pool_picks([good, bad])
    >>> pooled.hit.tolist(), pooled.n_true
    ([False, True], 2)
    """
    counting = lists[0].counting
    score = np.concatenate([one.score for one in lists])
    order = np.argsort(-score, kind="stable")
    if counting == "deepict":
        order = np.arange(len(score))
    return JudgedPicks(
        hit=np.concatenate([one.hit for one in lists])[order],
        redundant=np.concatenate([one.redundant for one in lists])[order],
        score=score[order],
        n_true=sum(one.n_true for one in lists),
        counting=counting,
    )


def count_picks(judged: JudgedPicks) -> PicksScore:
    """Turn hits and misses into counts, ratios and curves.

    Examples
    --------
    >>> count_picks(judge_picks([], [[0, 0, 0]], 1)).false_negatives
    1
    """
    each = _curve_after_each_pick(judged)
    curve = _curve_of_cuts(each, judged)
    best = curve.best
    some = len(judged.hit) > 0
    return PicksScore(
        n_true=judged.n_true,
        n_found=len(judged.hit),
        true_positives=int(judged.hit.sum()),
        false_positives=int(judged.wrong.sum()),
        redundant=int(judged.redundant.sum()),
        precision=float(each.precision[-1]) if some else 0.0,
        recall=float(each.recall[-1]) if some else 0.0,
        f1=float(each.f1[-1]) if some else 0.0,
        best_f1=float(curve.f1[best]) if some else 0.0,
        best_n_picks=int(curve.n_kept[best]) if some else 0,
        best_score=float(curve.score[best]) if some else float("nan"),
        auprc=curve.area,
        precision_curve=each.precision,
        recall_curve=each.recall,
        curve=curve,
    )


def _curve_after_each_pick(judged: JudgedPicks) -> Curve:
    """Return precision and recall after each pick, whether or not the list can be cut there."""
    return curve_of_counts(
        np.cumsum(judged.hit),
        np.cumsum(judged.wrong),
        n_true=judged.n_true,
        score=judged.score,
        n_kept=np.arange(1, len(judged.hit) + 1),
        straight=judged.counting == "deepict",
    )


def _curve_of_cuts(each: Curve, judged: JudgedPicks) -> Curve:
    """Keep the points between which the scores differ; DeePiCt's list can be cut anywhere."""
    if judged.counting == "deepict":
        return each
    ends = last_of_equals(judged.score)
    return Curve(each.precision[ends], each.recall[ends], each.score[ends], each.n_kept[ends])
