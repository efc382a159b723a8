"""DeepFinder and DeepETPicker beside the rest: what they train on, and how they pick.

Both are trained as their programs do by default (`deepict_dask.config.recipes`), smaller where a
quarter of an hour on two cores asks for it; ``RECIPES`` says where. Both are used as their programs
use them, on whole cells:

DeepFinder
    Softmax with the background, the class with the highest score in each voxel, mean shift over
    all classes together, the majority's class, and a smallest size for each class.
DeepETPicker
    Tiles of the network's own size and pad, mean-pooling non-maximum suppression of each class's
    scores, the highest of close picks. Its program has a fixed threshold and floor; here both are
    chosen, since networks that were trained for so short a time are unsure.

As for the other recipes limits are chosen on the cells of the training, and nothing is picked
outside of the cytosol.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deepict_dask.core.geometry import Grid
from deepict_dask.evaluate.picks import score_picks
from deepict_dask.models.checkpoint import load_checkpoint
from deepict_dask.models.deepfinder import DeepFinder
from deepict_dask.particles.mean_pool_nms import MeanPoolReduction, MeanPoolSettings, keep_highest
from deepict_dask.particles.mean_shift_members import find_objects
from deepict_dask.segmentation.deepetpicker_tiles import DeepETPickerOp
from deepict_dask.segmentation.deepfinder_windows import DeepFinderOp
from deepict_dask.training.score_limits import MIN_SIZES

from .train_on_cells import compare_recipes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from deepict_dask.synthetic import Cell

    from .train_on_cells import Cells, Recipe

__all__ = ["MATCH_RADIUS", "RECIPES", "cell_scores", "compare_seeds", "picker_f1s"]

Array = np.ndarray[Any, Any]

MATCH_RADIUS = 10.0
"""Farthest a pick may lie from its particle, in voxels."""
RADII = {"ribosome": 8, "fas": 10}
"""Of the particles, in voxels, in the order of the networks' channels."""
BANDWIDTH = 8.0
"""Of the mean shift, in voxels."""
THRESHOLDS = (0.2, 0.35, 0.5)
FLOORS = tuple(n / 20 for n in range(1, 20))

RECIPES: dict[str, Recipe] = {
    # published: 32, 48 and 64 channels, batches of 25, 10,000 steps at a rate of 1e-4, float32
    "DeepFinder": {
        "recipe": "deepfinder",
        "classes": {n: {"picks": n, "radius_voxels": r} for n, r in RADII.items()},
        "network": {"width": 0.25},
        # it has no norms: at 1e-3 logits reach 100 within 30 steps and all becomes background; at
        # 2e-4 too, with one seed of three, where gradients were not clipped
        "optimizer": {
            "learning_rate": 2e-4, "schedule": "cosine", "gradient_clip": 1.0, "batch_size": 2,
            "precision": "bfloat16", "epochs": 1000,
        },
    },
    # published: 24 to 108 channels, batches of 8, 60 epochs of all particles, float32, AdamW along
    # one cycle (F1 of ribosomes 0.73 after the same time); small turns and changes of size, which
    # are interpolated, so that a step takes an eighth longer; kernels that are not tied to their
    # mirror images. Radius of the balls: after 1,000 steps ribosomes have 0.78 with 3 voxels, 0.76
    # with 5, on cells of no table 0.81 and 0.79
    "DeepETPicker": {
        "recipe": "deepetpicker",
        "classes": {n: {"picks": n, "shape": "tball", "radius_voxels": 3} for n in RADII},
        "network": {"width": 1 / 3, "mirror_symmetric": True},
        "augment": {"rotation_degrees": 0.0, "scale": 0.0},
        "optimizer": {
            "optimizer": "muon", "learning_rate": 0.02, "schedule": "cosine",
            "weight_averaging": 0.998, "batch_size": 2, "precision": "bfloat16", "epochs": 1000,
            "patches_apart": True,
        },
    },
}  # fmt: skip


def cell_scores(model: Path, cell: Cell) -> Array:
    """Return the scores of a whole cell as the model's program makes them.

    Parameters
    ----------
    model
        File of a DeepFinder or DeepETPicker model.
    cell
        Whose tomogram is predicted.

    Returns
    -------
    ndarray
        Float32 (classes, z, y, x), the background first.
    """
    tomogram = cell.tomogram
    mean, std = float(tomogram.mean(dtype=np.float64)), float(tomogram.std(dtype=np.float64))
    common = (str(model), mean, std, None, "cpu")
    op: DeepFinderOp | DeepETPickerOp = DeepETPickerOp(*common, shape=cell.settings.shape)
    if isinstance(load_checkpoint(model).network, DeepFinder):
        op = DeepFinderOp(*common)
    (block,) = Grid(cell.settings.shape, cell.settings.shape)
    return op.apply(block, tomogram)


def picker_f1s(model: Path, seen: Sequence[Cell], unseen: Sequence[Cell]) -> dict[str, float]:
    """Return the mean F1 of each class over cells that were not trained on.

    Parameters
    ----------
    model
        Trained on the classes of ``RADII``.
    seen
        Cells on which limits are chosen.
    unseen
        Others.
    """
    finds_labels = isinstance(load_checkpoint(model).network, DeepFinder)
    search = _labels_found if finds_labels else _blobs_found

    def found(cell: Cell, thresholds: Iterable[float]) -> tuple[Searched, Cell]:
        return search(cell_scores(model, cell), cell, thresholds), cell

    known = [found(cell, THRESHOLDS) for cell in seen]
    limits = {name: _best_limit(known, name) for name in RADII}
    chosen = {threshold for threshold, _ in limits.values()}
    new = [found(cell, chosen) for cell in unseen]
    return {
        f"{name} F1": float(np.mean([_f1(one, cell, name, limits[name]) for one, cell in new]))
        for name in RADII
    }


def compare_seeds(name: str, *, small: bool) -> dict[str, Any]:
    """Train a recipe with every seed; return what its networks find in cells that were kept.

    Parameters
    ----------
    name
        Of the recipe.
    small
        Tiny cells and networks, one seed.
    """

    def figures(_recipe: str, model: Path, cells: Cells) -> dict[str, float]:
        return picker_f1s(model, cells.trained_on, cells.tested_on)

    title = f"{name}: held-out figures after the same time on two cells"
    return {"name": title} | compare_recipes({name: RECIPES[name]}, figures, small=small)


@dataclass(frozen=True)
class Found:
    """Picks of one class with one threshold, before the second limit."""

    points: Array
    """(n, 3), zyx."""
    sizes: Array
    """Voxels, or means of MP-NMS: those below a limit are dropped."""


Searched = dict[tuple[str, float], Found]
"""What a search found of each class and with each threshold."""
Limit = tuple[float, float]
"""Threshold, and smallest size."""


def _f1(found: Searched, cell: Cell, name: str, limit: Limit) -> float:
    picks = found[name, limit[0]]
    kept = picks.points[picks.sizes >= limit[1]]
    return score_picks(kept, cell.picks_of(name), MATCH_RADIUS).f1


def _best_limit(known: Sequence[tuple[Searched, Cell]], name: str) -> Limit:
    found = known[0][0]
    thresholds = [threshold for of_class, threshold in found if of_class == name]
    sizes = FLOORS if len(thresholds) > 1 else MIN_SIZES

    def mean(limit: Limit) -> float:
        return float(np.mean([_f1(one, cell, name, limit) for one, cell in known]))

    return max(itertools.product(thresholds, sizes), key=mean)


def _labels_found(scores: Array, cell: Cell, _thresholds: Iterable[float]) -> Searched:
    """Pick as DeepFinder does, which has no threshold."""
    labels = np.where(cell.cytosol > 0, scores.argmax(0), 0)
    objects = find_objects(labels, BANDWIDTH)
    points = np.stack([objects[axis] for axis in "zyx"], axis=1)
    return {
        (name, 0.0): Found(
            points[objects["label"] == label], objects["n_voxels"][objects["label"] == label]
        )
        for label, name in enumerate(RADII, 1)
    }


def _blobs_found(scores: Array, cell: Cell, thresholds: Iterable[float]) -> Searched:
    """Pick as DeepETPicker does, with several thresholds."""
    inside = [np.where(cell.cytosol > 0, one, np.float32(0)) for one in scores[1:]]
    (block,) = Grid(cell.settings.shape, cell.settings.shape)
    found: Searched = {}
    for threshold in thresholds:
        settings = MeanPoolSettings.of_diameters(
            [2 * radius + 1 for radius in RADII.values()], threshold
        )
        rows = MeanPoolReduction(settings).measure(block, *inside).rows
        rows = keep_highest(rows, settings.min_distance)
        points = np.stack([rows[axis] for axis in "zyx"], axis=1).astype(np.float64)
        for channel, name in enumerate(RADII):
            own = rows["channel"] == channel
            found[name, threshold] = Found(points[own], rows["value"][own])
    return found
