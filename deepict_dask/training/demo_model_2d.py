"""Train the small 2D model that the package carries, which says where the cytosol is.

    python -m deepict_dask.training.demo_model_2d OUT.safetensors

1. Make training cells with a mitochondrion and train on their slices, with flips and quarter turns.
   The cytosol fills most of a cell, so both it and what it leaves are compared.
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
import itertools
import json
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.ndimage import maximum_filter

from ..evaluate.picks import score_picks
from ..models.checkpoint import save_model
from ..models.registry import loaded_model, loaded_unet3d, resolve_model
from ..models.unet2d import UNet2D, UNet2DSettings
from ..segmentation.smoothing import smooth_along_z
from ..synthetic import CONTEXT_CELL, Cell, CellSettings, make_cell
from .demo_model import PickLimits, figures_of, find_picks, score_maps
from .loop import TrainSettings, train_unet2d
from .patches import standardized

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "ContextSettings",
    "MaskLimits",
    "choose_mask_limits",
    "cytosol_mask",
    "cytosol_scores",
    "dice_coefficients",
    "main",
    "picks_in_region",
    "train_context_model",
]

Floats = np.ndarray[Any, np.dtype[np.float32]]
Points = np.ndarray[Any, np.dtype[np.float64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
Z_SIGMAS = (0.0, 2.0, 4.0, 6.0, 8.0)
"""In voxels."""
SLICES_AT_ONCE = 8


def _default_training() -> TrainSettings:
    return TrainSettings(
        UNet2DSettings(depth=4, initial_features=4),
        steps=2000,
        batch_size=4,
        patch_shape=(1, 192, 192),
        learning_rate=2e-3,
        quarter_turns=True,
        both_sides=True,
        bfloat16=False,
    )


@dataclass(frozen=True)
class ContextSettings:
    """All that the demonstration's 2D model depends on."""

    cell: CellSettings = CONTEXT_CELL
    """Of every cell but for its seed; its own seed is the demonstration's."""
    train: TrainSettings = field(default_factory=_default_training)
    train_seeds: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 31, 32, 33, 34, 35, 36)
    tune_seeds: tuple[int, ...] = (11, 12)
    held_out_seeds: tuple[int, ...] = (21, 22)
    particle_model: str = "demo_ribosome_fas"
    """A 3D model whose card recommends limits of picks."""
    contact_distance: int = 2
    """Farthest a pick may lie from the cytosol found, in voxels (chessboard)."""
    match_radius: float = 10.0
    """Farthest a pick may lie from its particle, in voxels."""

    def cell_of(self, seed: int) -> Cell:
        """Make the cell of a seed."""
        return make_cell(replace(self.cell, seed=seed))


@dataclass(frozen=True)
class MaskLimits:
    """How scores become a mask: smoothed along z, then above a threshold."""

    threshold: float
    z_sigma: float


def train_context_model(
    settings: ContextSettings, *, progress: Callable[[int, float], None] | None = None
) -> tuple[UNet2D, dict[str, Any]]:
    """Train, choose limits and measure.

    Parameters
    ----------
    settings
        Cells, training and seeds.
    progress
        As in `train_unet2d`.

    Returns
    -------
    network : UNet2D
        In evaluation mode, one channel: the cytosol.
    card : dict
        JSON: how it was made, the recommended limits, and the figures.
    """
    losses: list[float] = []

    def note(step: int, loss: float) -> None:
        losses.append(loss)
        if progress is not None:
            progress(step, loss)

    begin = time.monotonic()
    network = _train(settings, note)
    seconds = time.monotonic() - begin
    tuning = [settings.cell_of(seed) for seed in settings.tune_seeds]
    limits = choose_mask_limits(
        [(cytosol_scores(network, cell.tomogram), cell.cytosol > 0) for cell in tuning]
    )
    seeds = (settings.cell.seed, *settings.held_out_seeds)
    card: dict[str, Any] = {
        "about": "Trained on synthetic cells only: for demonstrations and tests, not for data.",
        "made_by": "python -m deepict_dask.training.demo_model_2d",
        "settings": asdict(settings),
        "training_seconds": round(seconds),
        "training_steps": len(losses),
        "final_dice_loss": round(float(np.mean(losses[-100:])), 4),
        "recommended": {"cytosol": asdict(limits)},
        "figures": {f"seed {seed}": _figures(network, limits, settings, seed) for seed in seeds},
    }
    return network, card


def _train(settings: ContextSettings, progress: Callable[[int, float], None]) -> UNet2D:
    tomograms, targets = [], []
    for seed in settings.train_seeds:
        cell = settings.cell_of(seed)
        tomograms.append(cell.tomogram)
        targets.append(cell.cytosol[None])
    return train_unet2d(tomograms, targets, settings.train, progress=progress)


def cytosol_scores(network: UNet2D, tomogram: Floats) -> Floats:
    """Return the float32 scores of a small tomogram, zyx, each slice predicted whole."""
    slices = torch.from_numpy(standardized(tomogram))[:, None]
    with torch.inference_mode():
        logits = torch.cat([network(part)[:, 0] for part in slices.split(SLICES_AT_ONCE)])
    return torch.sigmoid(logits).numpy()


def cytosol_mask(scores: Floats, limits: MaskLimits) -> Bools:
    """Return where smoothed scores are above the threshold.

    Examples
    --------
    >>> scores = np.zeros((5, 1, 1), np.float32)
    >>> scores[2] = 1
    >>> cytosol_mask(scores, MaskLimits(threshold=0.2, z_sigma=1.0))[:, 0, 0].tolist()
    [False, True, True, True, False]
    """
    smoothed = scores.copy()
    if limits.z_sigma:
        smooth_along_z(smoothed, limits.z_sigma)
    found: Bools = smoothed > limits.threshold
    return found


def dice_coefficients(found: Bools, true: Bools) -> tuple[float, float]:
    """Return the Dice coefficients of what is inside and of what is outside.

    Examples
    --------
    >>> dice_coefficients(np.array([True, True, False]), np.array([True, False, False]))
    (0.6666666666666666, 0.6666666666666666)
    """
    inside, outside = (
        2 * int((a & b).sum()) / max(1, int(a.sum()) + int(b.sum()))
        for a, b in ((found, true), (~found, ~true))
    )
    return inside, outside


def choose_mask_limits(scored: Sequence[tuple[Floats, Bools]]) -> MaskLimits:
    """Return the limits of the highest mean of all Dice coefficients.

    Parameters
    ----------
    scored
        Pairs of scores and truth, both zyx.

    Examples
    --------
    >>> scores = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 8, 8)
    >>> choose_mask_limits([(scores, scores > 0.6)])
    MaskLimits(threshold=0.6, z_sigma=0.0)
    """
    best, highest = MaskLimits(THRESHOLDS[0], Z_SIGMAS[0]), -1.0
    for threshold, z_sigma in itertools.product(THRESHOLDS, Z_SIGMAS):
        limits = MaskLimits(threshold, z_sigma)
        mean = float(
            np.mean([dice_coefficients(cytosol_mask(scores, limits), t) for scores, t in scored])
        )
        if mean > highest:
            best, highest = limits, mean
    return best


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
    network: UNet2D, limits: MaskLimits, settings: ContextSettings, seed: int
) -> dict[str, Any]:
    """Measure the mask of one cell, and the picks alone and with context."""
    cell = settings.cell_of(seed)
    mask = cytosol_mask(cytosol_scores(network, cell.tomogram), limits)
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
    network, card = train_context_model(settings, progress=_tell)
    spacing = settings.cell.voxel_spacing_angstrom
    save_model(
        options.out, network, class_names=("cytosol",), voxel_spacing_angstrom=spacing, card=card
    )
    sys.stdout.write(json.dumps(card, indent=2) + "\n")


def _tell(step: int, loss: float) -> None:
    if step % 50 == 0:
        sys.stderr.write(f"step {step}: Dice loss {loss:.3f}\n")


if __name__ == "__main__":
    main()
