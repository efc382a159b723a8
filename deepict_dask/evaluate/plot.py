"""Draw precision against recall.

Every tomogram is a line, their pool a thick one. Lines of equal F1 are grey behind them, the best
cut of the main curve is a dot. Steps are drawn as steps: what is between two cuts cannot be had.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ConfigError
from .picks import PicksScore

if TYPE_CHECKING:
    from pathlib import Path

    from .curves import Curve
    from .report import Evaluation, Score

__all__ = ["PLOT_ENDINGS", "check_plot_path", "draw_curves"]

PLOT_ENDINGS = (".png", ".pdf", ".svg")
_MAIN, _ONE, _GREY, _DARK = "#0b5fa5", "#9dc3e6", "#dcdcdc", "#8c8c8c"
_MAX_NAMES = 8
"""Tomograms whose names the legend lists; more would cover the curves."""


def check_plot_path(path: Path) -> None:
    """Refuse endings that are no picture.

    Raises
    ------
    ConfigError
        Names the endings that are known.

    Examples
    --------
    >>> from pathlib import Path
    >>> check_plot_path(Path("curve.pdf"))
    """
    if path.suffix.lower() not in PLOT_ENDINGS:
        raise ConfigError(
            f"--plot {path}: expected a name that ends in {', '.join(PLOT_ENDINGS)}, "
            f"found {path.suffix or 'no ending'}; rename it"
        )


def draw_curves(evaluation: Evaluation, ending: str, *, title: str = "") -> bytes:
    """Return the picture of the curves, in the format of a file's ending.

    Parameters
    ----------
    evaluation
        At least one tomogram with figures.
    ending
        One of ``.png .pdf .svg``.
    title
        Above the picture.

    Returns
    -------
    bytes
        The same for the same figures and version of matplotlib.

    Examples
    --------
    >>> from .picks import score_picks
    >>> from .report import EvaluatedTomogram, Evaluation
    >>> score = score_picks([[0, 0, 0]], [[0, 0, 1]], 2, scores=[0.9])
    >>> draw_curves(Evaluation((EvaluatedTomogram("TS_1", score),)), ".png")[1:4]
    b'PNG'
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "deepict-dask", "font.size": 9}):
        figure = Figure(figsize=(5.2, 4.8), layout="constrained")
        axes = figure.add_subplot()
        _draw_f1_lines(axes)
        _draw_evaluation(axes, evaluation)
        _dress(axes, title)
        content = io.BytesIO()
        dateless = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}.get(ending.lower())
        figure.savefig(content, format=ending[1:].lower(), dpi=200, metadata=dateless)
    return content.getvalue()


def _draw_f1_lines(axes: Any) -> None:
    """Draw where F1 is 0.1 to 0.9, with the number at the right end."""
    for f1 in np.arange(1, 10) / 10:
        recall = np.geomspace(f1 / (2 - f1), 1, 200)  # precision is 1 at its left end
        precision = f1 * recall / (2 * recall - f1)
        axes.plot(recall, precision, color=_GREY, linewidth=0.8, zorder=1)
        axes.annotate(
            f"{f1:.1f}", (1, precision[-1]), (4, 0), textcoords="offset points",
            color=_DARK, fontsize=7, va="center",
        )  # fmt: skip
    axes.annotate(
        "F1", (1, 1), (4, 0), textcoords="offset points", color=_DARK, fontsize=7, va="center"
    )


def _draw_evaluation(axes: Any, evaluation: Evaluation) -> None:
    """Draw the tomograms thin and their pool thick, or the only one thick."""
    named = evaluation.scores
    if evaluation.pooled is None:
        ((name, main),) = named
    else:
        name, main = f"all {len(named)} pooled", evaluation.pooled
        for k, (one, score) in enumerate(named):
            label = one if len(named) <= _MAX_NAMES else "each tomogram" if k == 0 else None
            few = len(named) <= _MAX_NAMES
            _draw(axes, score.curve, color=f"C{k + 1}" if few else _ONE, linewidth=1, label=label)
    area = f"{main.auprc:.3f}" if np.isfinite(main.auprc) else "unknown"
    _draw(axes, main.curve, color=_MAIN, linewidth=2.2, label=f"{name}, AUPRC {area}", zorder=4)
    _draw_best(axes, main)


def _draw(axes: Any, curve: Curve, **style: Any) -> None:
    """Draw a curve from its own first precision at recall 0 (a straight one from its first cut)."""
    recall, precision = curve.recall, curve.precision
    if not curve.straight and len(recall):
        recall, precision = np.r_[0, recall], np.r_[precision[0], precision]
    style = {"zorder": 3, "drawstyle": "default" if curve.straight else "steps-pre"} | style
    axes.plot(recall, precision, **style)


def _draw_best(axes: Any, score: Score) -> None:
    """Mark the cut with the highest F1."""
    curve, best = score.curve, score.curve.best
    if best < 0 or not curve.f1[best] > 0:
        return
    kept = []
    if isinstance(score, PicksScore):
        kept.append(f"{score.best_n_picks} picks")
    if np.isfinite(score.best_score) and not curve.straight:
        kept.append(f"score ≥ {score.best_score:.4g}")
    axes.plot(
        curve.recall[best], curve.precision[best], "o", color="white", markeredgecolor=_MAIN,
        markeredgewidth=2, markersize=8, zorder=5, clip_on=False,
        label=f"best F1 {score.best_f1:.3f} ({', '.join(kept)})" if kept
        else f"best F1 {score.best_f1:.3f}",
    )  # fmt: skip


def _dress(axes: Any, title: str) -> None:
    """Name the axes and keep the legend off the curves."""
    axes.set(xlim=(0, 1), ylim=(0, 1.01), xlabel="recall", ylabel="precision", aspect="equal")
    axes.set_title(title, fontsize=10)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.figure.legend(loc="outside lower left", frameon=False, fontsize=8, ncols=2)
