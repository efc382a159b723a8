"""What networks find in cells they have not seen, after a quarter of an hour of training on two.

1. Cells of the demonstration's generator are written as a user has them: tomogram, label volume,
   particle lists, and one table of files. Two are trained on.
2. Each recipe is trained with several seeds, one after another, for the same time: ours for
   particles and membranes, and DeePiCt's on the same classes (Dice, no augmentation, its patches);
   DeepFinder's and DeepETPicker's on particles (`picker_recipes`, with their own pickers); for a
   third of it a 2D network for the cytosol.
3. Score limits of each class (threshold, smallest and largest cluster) are chosen on the two cells
   of the training; three others are tested on, picks outside of their cytosol left out.
"""

from __future__ import annotations

import math
import tempfile
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepict_dask.config.training import TrainConfig
from deepict_dask.evaluate.picks import score_picks
from deepict_dask.models.checkpoint import load_checkpoint
from deepict_dask.synthetic import CellSettings, make_cell
from deepict_dask.synthetic.dataset import write_dataset
from deepict_dask.training.fit import train_network
from deepict_dask.training.score_limits import choose_pick_limits, find_picks, whole_scores

from . import picker_recipes
from .picker_recipes import MATCH_RADIUS, picker_f1s

if TYPE_CHECKING:
    from deepict_dask.models.architecture import Network
    from deepict_dask.synthetic import Cell

Scores = dict[str, np.ndarray[Any, np.dtype[np.float32]]]

TRAINED_ON, TESTED_ON = (1, 2), (31, 32, 33)
"""Seeds of cells."""
SEEDS = (0, 1, 2)
MINUTES = 15.0
MINUTES_2D = 5.0
"""What a 2D network needs is a small part of what a 3D one does."""
_MEMBRANE = 3
"""Membranes in the label volume."""
_THRESHOLDS = np.linspace(0.05, 0.95, 19)

_PARTICLES = {
    "ribosome": {"picks": "ribosome", "radius_nm": 10.8},
    "fas": {"picks": "fas", "radius_nm": 13.5},
    "membrane": {"labels": "labels", "values": [_MEMBRANE]},
}
RECIPES: dict[str, dict[str, Any]] = {
    "ours": {
        "classes": _PARTICLES,
        "network": {"depth": 2, "initial_features": 8},
        "patches": {"shape": [64, 64, 64], "sampling": "uniform"},
        "augment": {"flips": True, "gaussian_noise": 0.5, "contrast": 0.1},
        "optimizer": {
            "loss": "dice", "learning_rate": 3e-3, "schedule": "cosine", "batch_size": 2,
            "precision": "bfloat16", "epochs": 1000,
        },
    },
    "DeePiCt's recipe": {
        "classes": _PARTICLES,
        "recipe": "deepict",
        "network": {"initial_features": 8},
        "optimizer": {"epochs": 1000},
    },
    **picker_recipes.RECIPES,
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
_SMALL: dict[str, dict[str, Any]] = {
    "network": {"depth": 1, "initial_features": 2, "width": 0.1},
    "patches": {"shape": [16, 16, 16], "sampling": "uniform"},
    "optimizer": {"epochs": 1, "steps_per_epoch": 2, "batch_size": 1},
}


@dataclass(frozen=True)
class Cells:
    """Cells in memory, and those of the training as a table of files."""

    trained_on: tuple[Cell, ...]
    tested_on: tuple[Cell, ...]
    table: Path


def make_cells(folder: Path, *, small: bool) -> Cells:
    """Make all cells and write those of the training."""
    settings: dict[str, Any] = {}
    if small:
        settings = {
            "shape": (48, 64, 64), "n_ribosomes": 3, "n_fas": 2, "n_distractors_each": 0,
            "n_vesicles": 1, "signal_to_noise": 1.0,
        }  # fmt: skip
    trained_on, tested_on = (
        tuple(make_cell(CellSettings(**settings, seed=seed)) for seed in seeds)
        for seeds in (TRAINED_ON, TESTED_ON[:1] if small else TESTED_ON)
    )
    return Cells(trained_on, tested_on, write_dataset(trained_on, folder))


def trained(
    recipe: str, cells: Cells, folder: Path, seed: int, *, minutes: float, small: bool
) -> Network:
    """Train one recipe with one seed; return its network."""
    model = trained_model(recipe, cells, folder, seed, minutes=minutes, small=small)
    return load_checkpoint(model).network


def trained_model(
    recipe: str, cells: Cells, folder: Path, seed: int, *, minutes: float, small: bool
) -> Path:
    """Train one recipe with one seed; return its model file."""
    wanted: dict[str, Any] = deepcopy(RECIPES[recipe])
    for part, values in _SMALL.items() if small else ():
        wanted[part] = wanted.get(part, {}) | values
    if small and wanted["network"].get("kind") == "unet2d":
        wanted["patches"]["shape"] = [1, 16, 16]
    if not small:
        wanted["optimizer"]["max_minutes"] = minutes
    config = TrainConfig.model_validate(
        {"tomograms": cells.table, "output": folder / f"{recipe}_{seed}", "seed": seed, **wanted}
    )
    return train_network(config, device="cpu").model


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


def model_figures(recipe: str, model: Path, cells: Cells) -> dict[str, float]:
    """Return the figures of a model, which picks as its own program does."""
    if recipe in picker_recipes.RECIPES:
        return picker_f1s(model, cells.trained_on, cells.tested_on)
    return figures(recipe, load_checkpoint(model).network, cells)


def figures(recipe: str, network: Any, cells: Cells) -> dict[str, float]:
    """Return the mean of each figure over the cells that were not trained on."""
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
    seeds = SEEDS[:1] if small else SEEDS
    rows: list[list[Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        cells = make_cells(Path(scratch), small=small)
        for recipe, settings in RECIPES.items():
            flat = settings["network"].get("kind") == "unet2d"
            minutes = MINUTES_2D if flat else MINUTES
            found = [
                model_figures(
                    recipe,
                    trained_model(recipe, cells, Path(scratch), seed, minutes=minutes, small=small),
                    cells,
                )
                for seed in seeds
            ]
            rows += _rows(recipe, found)
    return {
        "name": "training: held-out figures after the same time on two cells",
        "minutes, 3D and 2D": [0, 0] if small else [MINUTES, MINUTES_2D],
        "cells trained on and tested on": [len(cells.trained_on), len(cells.tested_on)],
        "training": {
            "columns": ["recipe", "figure", "mean", "lowest", "highest", "seeds"],
            "rows": rows,
        },
    }


def _rows(recipe: str, found: list[dict[str, float]]) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for name in found[0]:
        values = [round(one[name], 3) for one in found]
        mean = round(float(np.mean(values)), 3)
        rows.append([recipe, name, mean, min(values), max(values), len(values)])
    return rows
