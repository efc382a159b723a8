"""What DeepFinder and DeepETPicker find in cells they have not seen, trained as `training` does.

The same cells, seeds and minutes as of `bench_training`; each picks as its own program does
(`picker_recipes`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .picker_recipes import RECIPES, picker_f1s
from .train_on_cells import compare_recipes

if TYPE_CHECKING:
    from pathlib import Path

    from .train_on_cells import Cells


def _figures(_recipe: str, model: Path, cells: Cells) -> dict[str, float]:
    return picker_f1s(model, cells.trained_on, cells.tested_on)


def run(workers: Any, *, small: bool) -> dict[str, Any]:  # noqa: ARG001 - trains in this process
    """Train both with every seed; return figures of the cells that were kept."""
    name = "DeepFinder and DeepETPicker: held-out figures after the same time on two cells"
    return {"name": name} | compare_recipes(RECIPES, _figures, small=small)
