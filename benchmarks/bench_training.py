"""What networks find in cells they have not seen, after a quarter of an hour of training on two.

1. Two recipes for particles and membranes, trained on the same cells with the same time at their
   disposal (`train_on_cells`): ours, which may end before, and DeePiCt's (Dice, no augmentation,
   its patches); for a third of the time a 2D network for the cytosol.
2. Score limits of each class (threshold, smallest and largest cluster) are chosen on the two cells
   of the training; three others are tested on, picks outside of their cytosol left out.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from deepict_dask.evaluate.picks import score_picks
from deepict_dask.models.checkpoint import load_checkpoint
from deepict_dask.training.demo_model import PARTICLE_RECIPE
from deepict_dask.training.score_limits import choose_pick_limits, find_picks, whole_scores

from .picker_recipes import MATCH_RADIUS
from .train_on_cells import compare_recipes

if TYPE_CHECKING:
    from pathlib import Path

    from deepict_dask.synthetic import Cell

    from .train_on_cells import Cells, Recipe

Scores = dict[str, np.ndarray[Any, np.dtype[np.float32]]]

_MEMBRANE = 3
"""Membranes in the label volume."""
_THRESHOLDS = np.linspace(0.05, 0.95, 19)

_PARTICLES = {
    "ribosome": {"picks": "ribosome", "radius_nm": 10.8},
    "fas": {"picks": "fas", "radius_nm": 13.5},
    "membrane": {"labels": "labels", "values": [_MEMBRANE]},
}
RECIPES: dict[str, Recipe] = {
    # that of the bundled model, with its 1,500 steps
    "ours": {**PARTICLE_RECIPE, "classes": _PARTICLES},
    "DeePiCt's recipe": {
        "classes": _PARTICLES,
        "recipe": "deepict",
        "network": {"initial_features": 8},
        "optimizer": {"epochs": 1000},
    },
    "cytosol, 2D": {
        "classes": {"cytosol": {"labels": "cytosol"}},
        "network": {"kind": "unet2d", "depth": 4, "initial_features": 8},
        "patches": {"shape": [1, 192, 192], "sampling": "uniform"},
        "augment": {"flips": True, "quarter_turns": True},
        "optimizer": {
            "loss": "dice_cross_entropy", "learning_rate": 2e-3, "schedule": "cosine",
            "batch_size": 4, "precision": "bfloat16", "epochs": 1000,
        },
    },
}  # fmt: skip


def score_maps(network: Any, names: tuple[str, ...], cell: Cell) -> Scores:
    """Return the score maps of a whole cell."""
    return dict(zip(names, whole_scores(network, cell.tomogram), strict=True))


def average_precision(scores: Any, truth: Any) -> float:
    """Return the area under precision against recall.

    Examples
    --------
    >>> average_precision(np.array([0.9, 0.8, 0.1]), np.array([True, False, True]))
    0.8333333333333333
    """
    order = np.argsort(-scores.ravel(), kind="stable")
    right = truth.ravel()[order].astype(bool)
    precision = np.cumsum(right) / np.arange(1, right.size + 1)
    return float(precision[right].mean()) if right.any() else math.nan


def _voxel_f1(scores: Any, truth: Any, threshold: float) -> float:
    found = scores > threshold
    return float(2 * (found & truth).sum() / max(1, found.sum() + truth.sum()))


def figures(recipe: str, model: Path, cells: Cells) -> dict[str, float]:
    """Return the mean of each figure over the cells that were not trained on."""
    network = load_checkpoint(model).network
    names = tuple(RECIPES[recipe]["classes"])
    seen = [(score_maps(network, names, cell), cell) for cell in cells.trained_on]
    unseen = [(score_maps(network, names, cell), cell) for cell in cells.tested_on]
    found = {}
    for name in names:
        if name == "cytosol":
            one = [average_precision(maps[name], cell.cytosol > 0) for maps, cell in unseen]
            found["cytosol AUPRC"] = float(np.mean(one))
        elif name == "membrane":
            found["membrane voxel F1"] = _membrane_f1(seen, unseen)
        else:
            found[f"{name} F1"] = _picks_f1(name, seen, unseen)
    return found


def _membrane_f1(seen: list[tuple[Scores, Cell]], unseen: list[tuple[Scores, Cell]]) -> float:
    def mean(threshold: float, pairs: list[tuple[Scores, Cell]]) -> float:
        return float(
            np.mean([
                _voxel_f1(maps["membrane"], cell.labels == _MEMBRANE, threshold)
                for maps, cell in pairs
            ])
        )  # fmt: skip

    best = max(_THRESHOLDS, key=lambda threshold: mean(threshold, seen))
    return mean(float(best), unseen)


def _picks_f1(
    name: str, seen: list[tuple[Scores, Cell]], unseen: list[tuple[Scores, Cell]]
) -> float:
    def inside(maps: Scores, cell: Cell) -> Any:
        return np.where(cell.cytosol > 0, maps[name], np.float32(0))

    known = [(inside(maps, cell), cell.picks_of(name)) for maps, cell in seen]
    limits = choose_pick_limits(known, MATCH_RADIUS)
    scores = [
        score_picks(find_picks(inside(maps, cell), limits), cell.picks_of(name), MATCH_RADIUS)
        for maps, cell in unseen
    ]
    return float(np.mean([score.f1 for score in scores]))


def run(workers: Any, *, small: bool) -> dict[str, Any]:  # noqa: ARG001 - trains in this process
    """Train every recipe with every seed; return figures of the cells that were kept."""
    name = "training: held-out figures after the same time on two cells"
    return {"name": name} | compare_recipes(RECIPES, figures, small=small)
