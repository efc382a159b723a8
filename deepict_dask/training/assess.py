"""How good a model is on tomograms that it was not trained on, voxel by voxel.

All of what is held out is predicted in patches without overlap. Of every class the voxels are
counted by their score, true ones and others, so that every figure is of all voxels: precision,
recall and F1 above a score of 0.5, the area under the precision-recall curve, and the best F1 with
its threshold. At the sides of a patch the network sees less than it does when a tomogram is
segmented, so the figures are a little low.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..evaluate.curves import ratio
from ..evaluate.tally import N_STEPS, Tally, VoxelCounts, score_segmentation
from ..evaluate.voxel_sample import VoxelSample
from ..models.architecture import ends_in_softmax
from ..models.checkpoint import load_checkpoint
from .losses import class_scores, loss_function
from .networks import is_flat
from .stream import as_tensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from ..config.training import TrainConfig
    from ..core.geometry import Vec

__all__ = ["assess_model", "figures_of_counts"]

Integers = np.ndarray[Any, np.dtype[np.int64]]
HALF = 0.5


@torch.no_grad()
def assess_model(
    model: Path,
    config: TrainConfig,
    batches: Iterable[tuple[Any, Any]],
    device: str = "cpu",
    *,
    ends: Iterable[Sequence[Vec]] | None = None,
) -> dict[str, float]:
    """Return the figures of a model over patches.

    Parameters
    ----------
    model
        The model's file.
    config
        Classes and loss.
    batches
        Patches and targets, as `TrainingData.validation_batches` gives them.
    device
        Where the network runs.
    ends
        Of each patch the voxels that count, as `TrainingData.validation_ends`; all by default.

    Returns
    -------
    dict
        ``loss`` (mean over the batches), and of each class those of `figures_of_counts`, such as
        ``f1_ribosome``; ``dice_ribosome`` is the Dice of its scores, ``dice`` the classes' mean.
        NaN for a class without a true voxel, which counts in no mean.

    Raises
    ------
    ModelFileError
        It is no model.
    """
    loaded = load_checkpoint(model)
    network = loaded.network.to(device).eval()
    flat, softmax = is_flat(loaded.settings), ends_in_softmax(loaded.settings)
    loss = loss_function(config.optimizer.loss, softmax=softmax)
    names = tuple(config.classes)
    counts = np.zeros((len(names), 2, N_STEPS + 1), np.int64)
    sums, losses = np.zeros((len(names), 2)), []
    all_ends = itertools.repeat(None) if ends is None else iter(ends)
    for batch, of_batch in zip(batches, all_ends, strict=False):
        patches, targets = (part.to(device) for part in as_tensors(batch, flat=flat))
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False, deterministic=True):
            logits = network(patches).float()
        losses.append(float(loss(logits, targets)))
        scores = class_scores(logits, softmax=softmax)
        for place, number in np.ndindex(len(scores), len(names)):
            end = () if of_batch is None else of_batch[place][1 if flat else 0 :]
            inner = (place, number, *(slice(n) for n in end))
            p, t = scores[inner], targets[inner]
            sums[number] += [2 * float((p * t).sum()), float((p**2).sum() + (t**2).sum())]
            counts[number] += _counted(p.cpu().numpy(), t.cpu().numpy())
    found = {"loss": float(np.mean(losses)) if losses else math.nan}
    dice = np.where(counts[:, 1].sum(axis=1) > 0, ratio(sums[:, 0], sums[:, 1]), math.nan)
    there = dice[np.isfinite(dice)]
    found["dice"] = float(there.mean()) if len(there) else math.nan
    for number, name in enumerate(names):
        found[f"dice_{name}"] = float(dice[number])
        figures = figures_of_counts(counts[number])
        found |= {f"{key}_{name}": value for key, value in figures.items()}
    return found


def _counted(scores: Any, targets: Any) -> Integers:
    """Return how many voxels have each score, those that are not true and those that are."""
    steps = np.clip(np.floor(scores.ravel() * N_STEPS), 0, N_STEPS).astype(np.int64)
    true = targets.ravel() > HALF
    return np.stack([np.bincount(steps[true == one], minlength=N_STEPS + 1) for one in (0, 1)])


def figures_of_counts(counts: Integers) -> dict[str, float]:
    """Return the figures of one class.

    Parameters
    ----------
    counts
        int64 (2, steps + 1): voxels that are not true, and that are, at each step of the score.

    Returns
    -------
    dict
        ``precision``, ``recall``, ``f1`` of the voxels with a score above 0.5; ``auprc``; and
        ``best_f1`` at ``best_threshold``. NaN where no voxel is true.

    Examples
    --------
    >>> counts = np.zeros((2, N_STEPS + 1), np.int64)
    >>> counts[0, 0], counts[0, -1], counts[1, -1] = 90, 5, 5
    >>> figures = figures_of_counts(counts)
    >>> figures["precision"], figures["recall"], figures["auprc"], round(figures["f1"], 3)
    (0.5, 1.0, 0.5, 0.667)
    """
    above = counts[:, math.floor(HALF * (counts.shape[1] - 1)) + 1 :]
    wrong, right = (int(n) for n in above.sum(axis=1))
    n_true = int(counts[1].sum())
    found = VoxelCounts(int(counts.sum()), n_true, wrong + right, right)
    score = score_segmentation(Tally(found, (), VoxelSample.none(), counts))
    figures = {
        "precision": score.precision, "recall": score.recall, "f1": score.dice,
        "auprc": score.auprc, "best_f1": score.best_f1, "best_threshold": score.best_score,
    }  # fmt: skip
    return figures if n_true else dict.fromkeys(figures, math.nan)
