"""Train the small model that the package carries, and write its card.

    python -m deepict_dask.training.demo_model OUT.safetensors

1. Make training cells and train a two-class U-Net on balls round their ribosomes and FAS.
2. Choose threshold and size limits of each class by F1 on cells kept for that.
3. Measure F1 on cells that neither step has seen, and on the cell of the demonstration's seed (the
   default of `CellSettings`), none with a large mitochondrion; do the same for a threshold on the
   low-passed tomogram, which shows what density alone can tell.
4. Write weights and card: seeds, settings, steps, recommended limits, figures.

Seeds of the four groups of cells are disjoint.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from ..evaluate.picks import score_picks
from ..models.checkpoint import save_model
from ..models.unet3d import UNet3D, UNet3DSettings
from ..synthetic import PARTICLE_NAMES, Cell, CellSettings, make_cell
from .loop import TrainSettings, train_unet3d
from .patches import standardized
from .targets import radius_in_voxels, sphere_target

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..evaluate.picks import PicksScore

__all__ = [
    "DemoSettings",
    "PickLimits",
    "choose_limits",
    "darkness_maps",
    "figures_of",
    "find_picks",
    "main",
    "score_maps",
    "train_demo_model",
]

Floats = np.ndarray[Any, np.dtype[np.float32]]
Points = np.ndarray[Any, np.dtype[np.float64]]

SCORE_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
DARKNESS_THRESHOLDS = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5)
"""Of the low-passed tomogram, in standard deviations."""
MIN_SIZES = (25, 50, 100, 200, 300, 400, 500, 600, 700, 800, 1000, 1200, 1400, 1600, 1800, 2000)
MAX_SIZES = (3000, 4000, 5000, 20000)
LOW_PASS_SIGMA = 4.0
"""Voxels; a Gaussian about as wide as a ribosome."""


def _default_training() -> TrainSettings:
    network = UNet3DSettings(n_classes=len(PARTICLE_NAMES))
    return TrainSettings(network, steps=3600, batch_size=2, learning_rate=2e-3)


@dataclass(frozen=True)
class DemoSettings:
    """All that the demonstration model depends on."""

    cell: CellSettings = field(default_factory=CellSettings)
    """Of every cell but for its seed; its own seed is the demonstration's."""
    train: TrainSettings = field(default_factory=_default_training)
    train_seeds: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    tune_seeds: tuple[int, ...] = (11, 12)
    held_out_seeds: tuple[int, ...] = (21, 22)
    target_radius_nm: float = 10.8
    match_radius: float = 10.0
    """Farthest a pick may lie from its particle, in voxels."""

    def cell_of(self, seed: int) -> Cell:
        """Make the cell of a seed."""
        return make_cell(replace(self.cell, seed=seed))


@dataclass(frozen=True)
class PickLimits:
    """Which components of a score map are picks: min_size <= n_voxels <= max_size."""

    threshold: float
    min_size: int
    max_size: int


def train_demo_model(
    settings: DemoSettings, *, progress: Callable[[int, float], None] | None = None
) -> tuple[UNet3D, dict[str, Any]]:
    """Train, choose limits and measure.

    Parameters
    ----------
    settings
        Cells, training and seeds.
    progress
        As in `train_unet3d`.

    Returns
    -------
    network : UNet3D
        In evaluation mode, one channel per class of `PARTICLE_NAMES`.
    card : dict
        JSON: how it was made, the recommended limits of each class, and the figures.
    """
    losses: list[float] = []

    def note(step: int, loss: float) -> None:
        losses.append(loss)
        if progress is not None:
            progress(step, loss)

    network, seconds = _train(settings, note)
    card: dict[str, Any] = {
        "about": "Trained on synthetic cells only: for demonstrations and tests, not for data.",
        "made_by": "python -m deepict_dask.training.demo_model",
        "settings": asdict(settings),
        "training_seconds": round(seconds),
        "training_steps": len(losses),
        "final_dice_loss": round(float(np.mean(losses[-100:])), 4),
    }
    by_network = _measure(settings, lambda tomogram: score_maps(network, tomogram))
    by_density = _measure(settings, darkness_maps, DARKNESS_THRESHOLDS)
    card["recommended"], card["figures"] = by_network
    card["figures_of_low_passed_density"] = by_density[1]
    return network, card


def _train(settings: DemoSettings, progress: Callable[[int, float], None]) -> tuple[UNet3D, float]:
    cells = [settings.cell_of(seed) for seed in settings.train_seeds]
    radius = radius_in_voxels(settings.target_radius_nm, settings.cell.voxel_spacing_angstrom)
    targets = [_targets(cell, radius) for cell in cells]
    tomograms = [cell.tomogram for cell in cells]
    begin = time.monotonic()
    network = train_unet3d(tomograms, targets, settings.train, progress=progress)
    return network, time.monotonic() - begin


def _targets(cell: Cell, radius: float) -> Any:
    shape = cell.settings.shape
    return np.stack([sphere_target(cell.picks_of(n), shape, radius) for n in PARTICLE_NAMES])


def score_maps(network: UNet3D, tomogram: Floats) -> dict[str, Floats]:
    """Return the float32 score map of each class over a whole small tomogram, zyx."""
    with torch.inference_mode():
        logits = network(torch.from_numpy(standardized(tomogram))[None, None])
        return dict(zip(PARTICLE_NAMES, torch.sigmoid(logits)[0].numpy(), strict=True))


def darkness_maps(tomogram: Floats) -> dict[str, Floats]:
    """Return how dark a low-passed tomogram is, in standard deviations, for every class alike."""
    darkness = -standardized(gaussian_filter(tomogram, LOW_PASS_SIGMA))
    return dict.fromkeys(PARTICLE_NAMES, darkness)


def _measure(
    settings: DemoSettings,
    maps_of: Callable[[Floats], dict[str, Floats]],
    thresholds: tuple[float, ...] = SCORE_THRESHOLDS,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the limits of each class, and the figures of each class on each unseen cell."""
    tuning = [(cell, maps_of(cell.tomogram)) for cell in map(settings.cell_of, settings.tune_seeds)]
    limits = {
        name: choose_limits(
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


def find_picks(score: Floats, limits: PickLimits) -> Points:
    """Return centroids of the 26-connected components of a thresholded score map.

    Parameters
    ----------
    score
        Float32, zyx.
    limits
        Threshold and sizes.

    Returns
    -------
    ndarray
        Float64, (n, 3), zyx voxels.

    Examples
    --------
    >>> score = np.zeros((8, 8, 8), np.float32)
    >>> score[2:5, 2:5, 2:5] = 0.9
    >>> find_picks(score, PickLimits(0.5, 20, 30)).tolist()
    [[3.0, 3.0, 3.0]]
    """
    sizes, centroids = _components(score, limits.threshold)
    return centroids[(sizes >= limits.min_size) & (sizes <= limits.max_size)]


def choose_limits(
    scored: Sequence[tuple[Floats, Floats]],
    match_radius: float,
    thresholds: tuple[float, ...] = SCORE_THRESHOLDS,
) -> PickLimits:
    """Return the limits of the highest mean F1.

    Parameters
    ----------
    scored
        Pairs of a score map (zyx) and its true centres (n, 3).
    match_radius
        In voxels.
    thresholds
        Those to try.

    Examples
    --------
    >>> score = np.zeros((16, 16, 16), np.float32)
    >>> score[2:6, 2:6, 2:6] = 0.65
    >>> choose_limits([(score, np.array([[3.5, 3.5, 3.5]]))], 3.0).threshold
    0.1
    """
    best, best_f1 = PickLimits(thresholds[0], MIN_SIZES[0], MAX_SIZES[-1]), -1.0
    for threshold in thresholds:
        found = [(*_components(score, threshold), truth) for score, truth in scored]
        for low, high in itertools.product(MIN_SIZES, MAX_SIZES):
            scores = [
                score_picks(centroids[(sizes >= low) & (sizes <= high)], truth, match_radius)
                for sizes, centroids, truth in found
            ]
            f1 = float(np.mean([score.f1 for score in scores]))
            if f1 > best_f1:
                best, best_f1 = PickLimits(threshold, low, high), f1
    return best


def _components(score: Floats, threshold: float) -> tuple[Points, Points]:
    """Return voxel counts and centroids of the components above a threshold."""
    import cc3d

    table = cc3d.statistics(cc3d.connected_components(score > threshold, connectivity=26))
    return table["voxel_counts"][1:], table["centroids"][1:]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the model and write it to the path given."""
    parser = argparse.ArgumentParser(description="Train the bundled demonstration model.")
    parser.add_argument("out", type=Path, help="where to write it (.safetensors)")
    parser.add_argument("--max-seconds", type=float, help="end the training after this time")
    options = parser.parse_args(arguments)
    settings = DemoSettings()
    settings = replace(settings, train=replace(settings.train, max_seconds=options.max_seconds))
    # One thread is as fast as two for such small patches, and far faster on a busy machine.
    torch.set_num_threads(1)
    network, card = train_demo_model(settings, progress=_tell)
    spacing = settings.cell.voxel_spacing_angstrom
    save_model(
        options.out,
        network,
        class_names=PARTICLE_NAMES,
        voxel_spacing_angstrom=spacing,
        card=card,
    )
    sys.stdout.write(json.dumps(card, indent=2) + "\n")


def _tell(step: int, loss: float) -> None:
    if step % 50 == 0:
        sys.stderr.write(f"step {step}: Dice loss {loss:.3f}\n")


if __name__ == "__main__":
    main()
