"""Train recipes on synthetic cells, and tabulate what their networks find in others.

1. Cells of the demonstration's generator are written as a user has them: tomogram, label volume,
   particle lists, and one table of files. Two are trained on, three others are tested on.
2. Each recipe is trained with several seeds, one after another, for at most the same time.
3. A row for each figure: its mean, lowest and highest value over the seeds.
"""

from __future__ import annotations

import sys
import tempfile
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepict_dask.config.training import TrainConfig
from deepict_dask.synthetic import CellSettings, make_cell
from deepict_dask.synthetic.dataset import write_dataset
from deepict_dask.training.fit import train_network

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from deepict_dask.synthetic import Cell

__all__ = ["Cells", "Recipe", "compare_recipes"]

Recipe = dict[str, Any]
"""Settings of ``train``, but for dataset, output and seed."""

TRAINED_ON, TESTED_ON = (1, 2), (31, 32, 33)
"""Seeds of cells."""
SEEDS = (0, 1, 2)
MINUTES = 15.0
MINUTES_2D = 5.0
"""What a 2D network needs is a small part of what a 3D one does."""

_SMALL: dict[str, dict[str, Any]] = {
    "network": {"depth": 1, "initial_features": 8, "width": 0.1},
    "patches": {"shape": [16, 16, 16], "sampling": "uniform"},
    "optimizer": {"epochs": 1, "steps_per_epoch": 2, "batch_size": 1},
}


@dataclass(frozen=True)
class Cells:
    """Cells in memory, and those of the training as a table of files."""

    trained_on: tuple[Cell, ...]
    tested_on: tuple[Cell, ...]
    table: Path


def _make_cells(folder: Path, *, small: bool) -> Cells:
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


def _trained_model(
    recipe: Recipe, cells: Cells, output: Path, seed: int, *, minutes: float, small: bool
) -> Path:
    """Train one recipe with one seed; return its model file."""
    wanted = deepcopy(recipe)
    for part, values in _SMALL.items() if small else ():
        wanted[part] = wanted.get(part, {}) | values
    if small and _is_flat(recipe):
        wanted["patches"]["shape"] = [1, 16, 16]
    if not small:
        wanted["optimizer"]["max_minutes"] = minutes
    config = TrainConfig.model_validate(
        {"tomograms": cells.table, "output": output, "seed": seed, **wanted}
    )
    return train_network(config, device="cpu").model


def _is_flat(recipe: Recipe) -> bool:
    return bool(recipe["network"].get("kind") == "unet2d")


def compare_recipes(
    recipes: Mapping[str, Recipe],
    figures: Callable[[str, Path, Cells], dict[str, float]],
    *,
    small: bool,
) -> dict[str, Any]:
    """Train every recipe with every seed.

    Parameters
    ----------
    recipes
        By name.
    figures
        Returns what a recipe's model finds, given the recipe's name, the model and the cells.
    small
        Tiny cells and networks, one seed.

    Returns
    -------
    dict
        Minutes, numbers of cells, and the table.
    """
    seeds = SEEDS[:1] if small else SEEDS
    rows: list[list[Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        cells = _make_cells(Path(scratch), small=small)
        for name, recipe in recipes.items():
            minutes = MINUTES_2D if _is_flat(recipe) else MINUTES
            found = []
            for seed in seeds:
                output = Path(scratch) / f"{name}_{seed}"
                model = _trained_model(recipe, cells, output, seed, minutes=minutes, small=small)
                found.append(figures(name, model, cells))
                print(f"{name}, seed {seed}: {found[-1]}", file=sys.stderr, flush=True)
            rows += _rows(name, found)
    return {
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
