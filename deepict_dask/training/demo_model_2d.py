"""Train the small 2D model that the package carries, which says where the cytosol is.

    python -m deepict_dask.training.demo_model_2d OUT.safetensors

1. Write training cells with a mitochondrion as a dataset and train on their slices, with flips and
   quarter turns. The cytosol fills most of a cell, so cross-entropy counts beside Dice.
2. Choose threshold and smoothing along z on cells kept for that: the highest mean of two Dice
   coefficients, of the cytosol and of what is not cytosol.
3. On cells that neither step has seen, and on the cell of ``deepict-dask demo``, measure these, and
   the picks of the bundled 3D model: alone, and with context, that is, those that lie in the
   cytosol found.
4. Write weights and card: seeds, settings, steps, recommended limits, figures.

Seeds of the four groups of cells are disjoint, and the held-out ones were not used for the 3D model
either. Slices are normalised by mean and standard deviation of their whole tomogram.

What it learns is to leave the mitochondrion out. The volume's corner outside the cell and vesicles,
which together are a few hundredths of a volume, it takes for cytosol.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.ndimage import maximum_filter

from ..evaluate.picks import score_picks
from ..models.checkpoint import save_model
from ..models.registry import loaded_model, loaded_unet3d, resolve_model
from ..synthetic import CONTEXT_CELL, Cell, CellSettings, make_cell
from .demo_model import figures_of, score_maps, trained_on_cells
from .score_limits import (
    PickLimits,
    choose_mask_limits,
    dice_coefficients,
    find_picks,
    mask_of,
    whole_scores,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..models.architecture import Network
    from .score_limits import MaskLimits

__all__ = [
    "CYTOSOL_RECIPE",
    "ContextSettings",
    "main",
    "picks_in_region",
    "train_context_model",
]

Floats = np.ndarray[Any, np.dtype[np.float32]]
Points = np.ndarray[Any, np.dtype[np.float64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]

CYTOSOL_RECIPE: dict[str, Any] = {
    "classes": {"cytosol": {"labels": "cytosol"}},
    "network": {"kind": "unet2d", "depth": 4, "initial_features": 4},
    "patches": {"shape": [1, 192, 192], "sampling": "uniform"},
    "augment": {"flips": True, "quarter_turns": True},
    "optimizer": {
        "loss": "dice_cross_entropy", "learning_rate": 2e-3, "schedule": "cosine",
        "batch_size": 4, "epochs": 20, "steps_per_epoch": 100,
    },
}  # fmt: skip
"""Settings of ``train`` for the cytosol of synthetic cells."""


@dataclass(frozen=True)
class ContextSettings:
    """All that the demonstration's 2D model depends on."""

    cell: CellSettings = CONTEXT_CELL
    """Of every cell but for its seed; its own seed is the demonstration's."""
    train: dict[str, Any] = field(default_factory=lambda: CYTOSOL_RECIPE)
    train_seeds: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 31, 32, 33, 34, 35, 36)
    tune_seeds: tuple[int, ...] = (11, 12)
    held_out_seeds: tuple[int, ...] = (21, 22)
    particle_model: str = "demo_ribosome_fas"
    """A 3D model whose card recommends limits of picks."""
    contact_distance: int = 4
    """Farthest a pick may lie from the cytosol found, in voxels (chessboard): half the radius of a
    particle, for a mask and a centroid are both a little off."""
    match_radius: float = 10.0
    """Farthest a pick may lie from its particle, in voxels."""

    def cell_of(self, seed: int) -> Cell:
        """Make the cell of a seed."""
        return make_cell(replace(self.cell, seed=seed))


def train_context_model(
    settings: ContextSettings, *, tell: Callable[[str], None] = lambda _: None
) -> tuple[Network, dict[str, Any]]:
    """Train, choose limits and measure.

    Parameters
    ----------
    settings
        Cells, training and seeds.
    tell
        Receives a line for each epoch.

    Returns
    -------
    network
        In evaluation mode, one channel: the cytosol.
    card : dict
        JSON: how it was made, the recommended limits, and the figures.
    """
    cells = map(settings.cell_of, settings.train_seeds)
    network, card = trained_on_cells(settings.train, cells, tell=tell)
    tuning = [settings.cell_of(seed) for seed in settings.tune_seeds]
    limits = choose_mask_limits(
        [(whole_scores(network, cell.tomogram)[0], cell.cytosol > 0) for cell in tuning]
    )
    seeds = (settings.cell.seed, *settings.held_out_seeds)
    card |= {
        "about": "Trained on synthetic cells only: for demonstrations and tests, not for data.",
        "made_by": "python -m deepict_dask.training.demo_model_2d",
        "settings": asdict(settings),
        "recommended": {"cytosol": asdict(limits)},
        "figures": {f"seed {seed}": _figures(network, limits, settings, seed) for seed in seeds},
    }
    return network, card


def picks_in_region(points: Points, mask: Bools, distance: int) -> Points:
    """Return the points that lie at most so many voxels (chessboard) from a mask.

    Examples
    --------
    >>> mask = np.zeros((1, 1, 9), bool)
    >>> mask[..., 4] = True
    >>> picks_in_region(np.array([[0, 0, 2.4], [0, 0, 6.0]]), mask, 2).tolist()
    [[0.0, 0.0, 2.4], [0.0, 0.0, 6.0]]
    """
    near = maximum_filter(mask, 2 * distance + 1, mode="constant")
    return points[near[tuple(np.rint(points).astype(int).T)]]


def _figures(
    network: Network, limits: MaskLimits, settings: ContextSettings, seed: int
) -> dict[str, Any]:
    """Measure the mask of one cell, and the picks alone and with context."""
    cell = settings.cell_of(seed)
    mask = mask_of(whole_scores(network, cell.tomogram)[0], limits)
    inside, outside = dice_coefficients(mask, cell.cytosol > 0)
    path = resolve_model(settings.particle_model)
    maps = score_maps(loaded_unet3d(path), cell.tomogram)
    figures: dict[str, Any] = {
        "dice_cytosol": round(inside, 3),
        "dice_elsewhere": round(outside, 3),
    }
    for name, recommended in loaded_model(path).card["recommended"].items():
        alone = find_picks(maps[name], PickLimits(**recommended))
        kept = picks_in_region(alone, mask, settings.contact_distance)
        figures[name] = {
            how: figures_of(score_picks(picks, cell.picks_of(name), settings.match_radius))
            for how, picks in (("alone", alone), ("with_context", kept))
        }
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the model and write it to the path given."""
    parser = argparse.ArgumentParser(description="Train the bundled 2D demonstration model.")
    parser.add_argument("out", type=Path, help="where to write it (.safetensors)")
    options = parser.parse_args(arguments)
    settings = ContextSettings()
    # one thread, so that the same seed gives the same weights
    torch.set_num_threads(1)
    network, card = train_context_model(settings, tell=lambda line: print(line, file=sys.stderr))
    spacing = settings.cell.voxel_spacing_angstrom
    save_model(
        options.out, network, class_names=("cytosol",), voxel_spacing_angstrom=spacing, card=card
    )
    sys.stdout.write(json.dumps(card, indent=2) + "\n")


if __name__ == "__main__":
    main()
