"""Train the small model that the package carries, as ``train`` does, and write its card.

    python -m deepict_dask.training.demo_model OUT.safetensors

1. Write training cells as a dataset, and train on it.
2. Choose threshold and size limits of each class of particles by F1 on cells kept for that.
3. Measure F1 on cells that neither step has seen, and on the cell of the demonstration's seed (the
   default of `CellSettings`), none with a large mitochondrion; do the same for a threshold on the
   low-passed tomogram, which shows what density alone can tell.
4. Write weights and card: that of the training, recommended limits, figures.

Seeds of the four groups of cells are disjoint.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from ..config.training import TrainConfig
from ..evaluate.picks import score_picks
from ..models.checkpoint import load_checkpoint, save_model
from ..synthetic import PARTICLE_NAMES, Cell, CellSettings, make_cell
from ..synthetic.dataset import write_dataset
from .fit import train_network
from .score_limits import (
    PICK_THRESHOLDS,
    choose_pick_limits,
    find_picks,
    standardized,
    whole_scores,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ..evaluate.picks import PicksScore
    from ..models.architecture import Network
    from .score_limits import PickLimits

__all__ = [
    "PARTICLE_RECIPE",
    "DemoSettings",
    "darkness_maps",
    "figures_of",
    "main",
    "score_maps",
    "train_demo_model",
    "trained_on_cells",
]

Floats = np.ndarray[Any, np.dtype[np.float32]]

DARKNESS_THRESHOLDS = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5)
"""Of the low-passed tomogram, in standard deviations."""
LOW_PASS_SIGMA = 4.0
"""Voxels; a Gaussian about as wide as a ribosome."""

PARTICLE_RECIPE: dict[str, Any] = {
    "classes": {
        "ribosome": {"picks": "ribosome", "radius_nm": 10.8},
        "fas": {"picks": "fas", "radius_nm": 10.8},
    },
    "network": {
        "depth": 2, "initial_features": 16, "space_to_depth": 2, "mirror_symmetric": True,
    },
    "patches": {"shape": [96, 96, 96], "sampling": "uniform"},
    "augment": {"flips": True, "gaussian_noise": 0.7, "tomogram_noise": 1.0},
    "optimizer": {
        "loss": "dice", "optimizer": "muon", "learning_rate": 0.02, "schedule": "cosine",
        "weight_averaging": 0.998, "batch_size": 2, "precision": "bfloat16",
        "epochs": 15, "steps_per_epoch": 100,
    },
}  # fmt: skip
"""Settings of ``train`` for the particles of synthetic cells."""


@dataclass(frozen=True)
class DemoSettings:
    """All that the demonstration model depends on."""

    cell: CellSettings = field(default_factory=CellSettings)
    """Of every cell but for its seed; its own seed is the demonstration's."""
    train: dict[str, Any] = field(default_factory=lambda: PARTICLE_RECIPE)
    train_seeds: tuple[int, ...] = (1, 2)
    tune_seeds: tuple[int, ...] = (11, 12)
    held_out_seeds: tuple[int, ...] = (21, 22)
    match_radius: float = 10.0
    """Farthest a pick may lie from its particle, in voxels."""

    def cell_of(self, seed: int) -> Cell:
        """Make the cell of a seed."""
        return make_cell(replace(self.cell, seed=seed))


def trained_on_cells(
    recipe: dict[str, Any], cells: Iterable[Cell], *, tell: Callable[[str], None] = lambda _: None
) -> tuple[Network, dict[str, Any]]:
    """Train as ``deepict-dask train`` does, on cells that are written for it.

    Parameters
    ----------
    recipe
        Settings of `TrainConfig`, but for dataset and output.
    cells
        What to train on.
    tell
        Receives a line for each epoch.

    Returns
    -------
    network
        In evaluation mode.
    card : dict
        As the training wrote it, without names of files.
    """
    with tempfile.TemporaryDirectory() as folder:
        table = write_dataset(cells, folder)
        config = TrainConfig.model_validate(
            {"tomograms": table, "output": Path(folder) / "trained", **recipe}
        )
        done = train_network(config, device="cpu", tell=tell)
        network = load_checkpoint(done.model).network
    left_out = ("training_data", "settings", "recommended")
    card = {key: value for key, value in done.card.items() if key not in left_out}
    return network, card


def train_demo_model(
    settings: DemoSettings, *, tell: Callable[[str], None] = lambda _: None
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
        In evaluation mode, one channel per class of `PARTICLE_NAMES`.
    card : dict
        JSON: how it was made, the recommended limits of each class, and the figures.
    """
    cells = map(settings.cell_of, settings.train_seeds)
    network, card = trained_on_cells(settings.train, cells, tell=tell)
    card |= {
        "about": "Trained on synthetic cells only: for demonstrations and tests, not for data.",
        "made_by": "python -m deepict_dask.training.demo_model",
        "settings": asdict(settings),
    }
    by_network = _measure(settings, lambda tomogram: score_maps(network, tomogram))
    by_density = _measure(settings, darkness_maps, DARKNESS_THRESHOLDS)
    card["recommended"], card["figures"] = by_network
    card["figures_of_low_passed_density"] = by_density[1]
    return network, card


def score_maps(network: Network, tomogram: Floats) -> dict[str, Floats]:
    """Return the float32 score map of each class over a whole small tomogram, zyx."""
    return dict(zip(PARTICLE_NAMES, whole_scores(network, tomogram), strict=True))


def darkness_maps(tomogram: Floats) -> dict[str, Floats]:
    """Return how dark a low-passed tomogram is, in standard deviations, for every class alike."""
    darkness = -standardized(gaussian_filter(tomogram, LOW_PASS_SIGMA))
    return dict.fromkeys(PARTICLE_NAMES, darkness)


def _measure(
    settings: DemoSettings,
    maps_of: Callable[[Floats], dict[str, Floats]],
    thresholds: tuple[float, ...] = PICK_THRESHOLDS,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the limits of each class, and the figures of each class on each unseen cell."""
    tuning = [(cell, maps_of(cell.tomogram)) for cell in map(settings.cell_of, settings.tune_seeds)]
    limits = {
        name: choose_pick_limits(
            [(maps[name], cell.picks_of(name)) for cell, maps in tuning],
            settings.match_radius,
            thresholds,
        )
        for name in PARTICLE_NAMES
    }
    figures = {
        f"seed {seed}": _figures(settings.cell_of(seed), maps_of, limits, settings.match_radius)
        for seed in (settings.cell.seed, *settings.held_out_seeds)
    }
    return {name: asdict(limit) for name, limit in limits.items()}, figures


def _figures(
    cell: Cell,
    maps_of: Callable[[Floats], dict[str, Floats]],
    limits: dict[str, PickLimits],
    match_radius: float,
) -> dict[str, Any]:
    maps = maps_of(cell.tomogram)
    figures = {}
    for name, limit in limits.items():
        score = score_picks(find_picks(maps[name], limit), cell.picks_of(name), match_radius)
        figures[name] = figures_of(score)
    return figures


def figures_of(score: PicksScore) -> dict[str, float]:
    """Return what a card says of a score."""
    return {
        "picks": score.n_found,
        "true": score.n_true,
        "true_positives": score.true_positives,
        "precision": round(score.precision, 3),
        "recall": round(score.recall, 3),
        "f1": round(score.f1, 3),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the model and write it to the path given."""
    parser = argparse.ArgumentParser(description="Train the bundled demonstration model.")
    parser.add_argument("out", type=Path, help="where to write it (.safetensors)")
    out = parser.parse_args(arguments).out
    settings = DemoSettings()
    # one thread, so that the same seed gives the same weights
    torch.set_num_threads(1)
    network, card = train_demo_model(settings, tell=lambda line: print(line, file=sys.stderr))
    save_model(
        out,
        network,
        class_names=PARTICLE_NAMES,
        voxel_spacing_angstrom=settings.cell.voxel_spacing_angstrom,
        card=card,
    )
    sys.stdout.write(json.dumps(card, indent=2) + "\n")


if __name__ == "__main__":
    main()
