"""Figures of an evaluation as text, JSON and CSV.

One tomogram is a list of figures; several are a table with a row each, then *pooled* (all of them
as one), *mean* and *std* (over the tomograms; standard deviation of a sample, so n - 1; unknown
figures are left out).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from ..io.csv_text import csv_of_dicts
from .picks import PicksScore
from .tally import SegmentationScore

__all__ = [
    "EvaluatedTomogram",
    "Evaluation",
    "as_csv",
    "as_curve_csv",
    "as_json",
    "as_text",
    "figures",
]

Score = PicksScore | SegmentationScore
Figures = dict[str, float | int | None]

RATIOS = ("dice", "precision", "recall", "f1", "best_f1", "auprc")
"""Figures whose mean over tomograms means something."""
_WORDS = {
    "found": "picks",
    "true": "true",
    "matched": "matched (true positives)",
    "false_positives": "false positives",
    "false_negatives": "false negatives",
    "redundant": "redundant picks",
    "voxels": "voxels compared",
    "predicted": "predicted",
    "dice": "Dice",
    "f1": "F1",
    "best_f1": "best F1",
    "best_score": "  keeps scores from",
    "best_n_picks": "  keeps picks",
    "auprc": "AUPRC",
    "sampled": "voxels sampled",
    "sampled_true": "  of them true",
}
_SHORT = {"false_positives": "FP", "false_negatives": "FN", "f1": "F1", "best_f1": "best F1"}
_SHORT |= {"auprc": "AUPRC", "dice": "Dice"}
_COUNTS = ("found", "true", "predicted", "matched", "false_positives", "false_negatives")
_IN_TABLES = (*_COUNTS, *RATIOS)


@dataclass(frozen=True)
class EvaluatedTomogram:
    """One tomogram's figures, or why there are none."""

    name: str
    score: Score | None
    error: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """Tomograms compared with their truth."""

    tomograms: tuple[EvaluatedTomogram, ...]
    pooled: Score | None = None
    """All tomograms as one; None for a single comparison."""

    @property
    def failed(self) -> tuple[EvaluatedTomogram, ...]:
        """Tomograms without figures."""
        return tuple(one for one in self.tomograms if one.score is None)

    @property
    def scores(self) -> list[tuple[str, Score]]:
        """Names and scores of those that have some."""
        return [(one.name, one.score) for one in self.tomograms if one.score is not None]


def figures(score: Score) -> Figures:
    """Return a score's figures by name, NaN as None.

    Examples
    --------
    >>> from .picks import score_picks
    >>> figures(score_picks([[0, 0, 0]], [[0, 0, 1]], 2))["matched"]
    1
    """
    found = _of_picks(score) if isinstance(score, PicksScore) else _of_voxels(score)
    return {key: None if math.isnan(value) else value for key, value in found.items()}


def _of_picks(score: PicksScore) -> dict[str, float | int]:
    return {
        "found": score.n_found, "true": score.n_true, "matched": score.true_positives,
        "false_positives": score.false_positives, "false_negatives": score.false_negatives,
        "redundant": score.redundant, "precision": score.precision, "recall": score.recall,
        "f1": score.f1, "best_f1": score.best_f1, "best_score": score.best_score,
        "best_n_picks": score.best_n_picks, "auprc": score.auprc,
    }  # fmt: skip


def _of_voxels(score: SegmentationScore) -> dict[str, float | int]:
    return {
        "voxels": score.n_voxels, "true": score.n_true, "predicted": score.n_predicted,
        "matched": score.n_both, "dice": score.dice, "precision": score.precision,
        "recall": score.recall, "auprc": score.auprc, "best_f1": score.best_f1,
        "best_score": score.best_score, "sampled": score.n_sampled,
        "sampled_true": score.n_sampled_true,
    }  # fmt: skip


def _summaries(evaluation: Evaluation) -> dict[str, Figures]:
    """Return the rows pooled, mean and std; none for a single comparison."""
    if evaluation.pooled is None:
        return {}
    rows = [figures(score) for _, score in evaluation.scores]
    mean: Figures = {}
    std: Figures = {}
    for key in (key for key in RATIOS if key in rows[0]):
        values = [value for row in rows if (value := row[key]) is not None]
        n = len(values)
        mean[key] = math.fsum(values) / n if n else None
        spread = math.fsum((value - (mean[key] or 0)) ** 2 for value in values)
        std[key] = math.sqrt(spread / (n - 1)) if n > 1 else None
    return {"pooled": figures(evaluation.pooled), "mean": mean, "std": std}


def as_text(evaluation: Evaluation) -> str:
    """Return lines for people.

    Examples
    --------
    >>> from .picks import score_picks
    >>> one = EvaluatedTomogram("TS_1", score_picks([[0, 0, 0]], [[0, 0, 1]], 2))
    >>> print(as_text(Evaluation((one,))).splitlines()[0])
    picks                     1
    """
    if evaluation.pooled is None and not evaluation.failed:
        ((_, score),) = evaluation.scores
        listed = figures(score)
        if score.curve.straight:  # DeePiCt's list is not cut by score
            del listed["best_score"]
        return "\n".join(f"{_word(key):<25} {_text(value)}" for key, value in listed.items())
    rows = {name: figures(score) for name, score in evaluation.scores}
    summaries = _summaries(evaluation)
    columns = [key for key in _IN_TABLES if any(key in row for row in rows.values())]
    cells = [["tomogram", *(_SHORT.get(key, _word(key)) for key in columns)]]
    cells[0] = [cell.removesuffix(" (true positives)") for cell in cells[0]]
    for name, row in (rows | summaries).items():
        cells.append([name, *(_text(row[key]) if key in row else "" for key in columns)])
    return "\n".join([*_aligned(cells), *(f"{one.name}: {one.error}" for one in evaluation.failed)])


def _word(key: str) -> str:
    return _WORDS.get(key, key)


def _text(value: float | None) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, int):
        return f"{value:d}"
    return f"{value:.4f}" if value <= 1 else f"{value:.6g}"


def _aligned(rows: list[list[str]]) -> list[str]:
    """Return lines with names to the left and numbers to the right."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if k == 0 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def as_json(evaluation: Evaluation) -> str:
    """Return JSON: one object for a single comparison; else tomograms, pooled, mean and std.

    Examples
    --------
    >>> from .picks import score_picks
    >>> one = EvaluatedTomogram("TS_1", score_picks([[0, 0, 0]], [[0, 0, 1]], 2))
    >>> json.loads(as_json(Evaluation((one,), pooled=one.score)))["pooled"]["recall"]
    1.0
    """
    single = evaluation.pooled is None and not evaluation.failed
    entries: list[dict[str, Any]] = [
        {"name": one.name, "error": one.error}
        if one.score is None
        else {"name": one.name, **figures(one.score)}
        for one in evaluation.tomograms
    ]
    return json.dumps(entries[0] if single else {"tomograms": entries, **_summaries(evaluation)})


def as_csv(evaluation: Evaluation) -> str:
    """Return CSV: a row for each tomogram, then pooled, mean and std; unknown figures are empty.

    Examples
    --------
    >>> print(as_csv(Evaluation((EvaluatedTomogram("TS_1", None, "no file"),))))
    row,name,error
    tomogram,TS_1,no file
    <BLANKLINE>
    """
    rows: list[dict[str, Any]] = [
        {"row": "tomogram", "name": one.name, "error": one.error}
        | (figures(one.score) if one.score is not None else {})
        for one in evaluation.tomograms
    ]
    rows += [{"row": kind, **values} for kind, values in _summaries(evaluation).items()]
    known = next((list(figures(score)) for _, score in evaluation.scores), [])
    return _csv(rows, ["row", "name", *known, "error"])


def as_curve_csv(evaluation: Evaluation) -> str:
    """Return CSV of the curves: name, score, kept, precision, recall, f1; one row for each cut.

    Examples
    --------
    >>> from .picks import score_picks
    >>> one = EvaluatedTomogram("TS_1", score_picks([[0, 0, 0]], [[0, 0, 1]], 2, scores=[0.9]))
    >>> as_curve_csv(Evaluation((one,))).splitlines()[1]
    'TS_1,0.9,1,1.0,1.0,1.0'
    """
    named = list(evaluation.scores)
    if evaluation.pooled is not None:
        named.append(("pooled", evaluation.pooled))
    columns = ("score", "n_kept", "precision", "recall", "f1")
    rows = [
        {"name": name} | {key: value.item() for key, value in zip(columns, values, strict=True)}
        for name, score in named
        for values in zip(*(getattr(score.curve, key) for key in columns), strict=True)
    ]
    return _csv(rows, ["name", *columns])


def _csv(rows: list[dict[str, Any]], columns: list[str]) -> str:
    known = [{key: v for key, v in row.items() if v == v} for row in rows]  # NaN is empty
    return csv_of_dicts(known, columns)
