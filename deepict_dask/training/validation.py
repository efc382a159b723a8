"""Measure how good a network is on what it was not trained on.

All validation patches are pooled before anything is divided. Voxels that only fill up a patch at
the far end of a tomogram count in no figure but the loss. Of every class:

1. Dice of its scores, ``2 sum(p t) / (sum(p^2) + sum(t^2))``: the score by which the best epoch is
   chosen (mean over the classes that are there);
2. F1 of its voxels at nine thresholds, of which the best is the one a model's card recommends;
3. where it is asked for, F1-alpha of its picks (`f1_alpha`).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from .losses import class_scores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy as np

    from ..config.training import Choice
    from ..core.geometry import Vec
    from .f1_alpha import PickCounter

__all__ = ["THRESHOLDS", "Validated", "validated"]

THRESHOLDS = tuple(n / 10 for n in range(1, 10))


@dataclass(frozen=True)
class Validated:
    """What validation found.

    Examples
    --------
    >>> Validated(0.4, {"ribosome": 0.6, "fas": None}, {}, {}).mean_dice
    0.6
    """

    loss: float
    """Mean over the batches."""
    dice: dict[str, float | None]
    """Of each class; None where no validation patch has it."""
    f1: dict[str, float | None]
    """Of the class's voxels, at its best threshold."""
    threshold: dict[str, float | None]
    """That gives this F1."""
    f1_alpha: dict[str, float | None] = field(default_factory=dict)
    """Of each class's picks, where it was asked for."""

    @property
    def mean_dice(self) -> float | None:
        """Mean over the classes that are there."""
        return _mean(self.dice)

    @property
    def mean_f1_alpha(self) -> float | None:
        """Mean over the classes that have particles."""
        return _mean(self.f1_alpha)

    def score(self, choose: Choice) -> float | None:
        """Return by what the best epoch is chosen: more is better, None where there is nothing.

        As long as nothing right is picked F1-alpha is 0, and the loss decides.

        Examples
        --------
        >>> found = Validated(0.4, {"a": 0.6}, {}, {}, {"a": 0.0})
        >>> found.score("dice"), found.score("loss"), found.score("f1_alpha")
        (0.6, -0.4, -0.4)
        """
        if choose == "loss":
            return -self.loss
        if choose == "dice":
            return self.mean_dice
        return self.mean_f1_alpha if self.mean_f1_alpha != 0 else -self.loss

    def row(self) -> dict[str, float]:
        """Return the figures as columns of a table."""
        named = {"val_loss": self.loss, "val_dice": self.mean_dice}
        named |= {f"val_dice_{name}": value for name, value in self.dice.items()}
        named |= {f"val_f1_{name}": value for name, value in self.f1.items()}
        named |= {"val_f1_alpha": self.mean_f1_alpha}
        named |= {f"val_f1_alpha_{name}": value for name, value in self.f1_alpha.items()}
        return {name: value for name, value in named.items() if value is not None}


@torch.no_grad()
def validated(
    network: torch.nn.Module,
    batches: Iterable[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]],
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    class_names: tuple[str, ...],
    *,
    softmax: bool,
    to_tensors: Callable[[Any], tuple[torch.Tensor, torch.Tensor]],
    counter: PickCounter | None = None,
    ends: Iterable[Sequence[Vec]] | None = None,
) -> Validated | None:
    """Return how good a network is; None without validation patches. Its mode is left as it was.

    Parameters
    ----------
    network
        Gives logits.
    batches
        Patches and targets.
    loss
        Of logits against targets.
    class_names
        Of the targets' channels.
    softmax
        Whether the first channel of the logits is the background.
    to_tensors
        Turns a batch into what the network takes, where it is.
    counter
        Counts picks in the patches.
    ends
        Of each patch the voxels that count, as `TrainingData.validation_ends`; all by default.
    """
    was_training = network.training
    network.eval()
    losses: list[float] = []
    sums: Any = 0
    all_ends = itertools.repeat(None) if ends is None else iter(ends)
    for batch, of_batch in zip(batches, all_ends, strict=False):
        patches, targets = to_tensors(batch)
        logits = network(patches).float()
        losses.append(float(loss(logits, targets)))
        scores = class_scores(logits, softmax=softmax)
        inside = 1 if of_batch is None else _inside(targets, of_batch)
        sums = sums + _sums(scores * inside, targets * inside)
        if counter is not None:
            counter.add(scores.cpu().numpy())
    network.train(was_training)
    if not losses:
        return None
    found = _divided(sum(losses) / len(losses), sums.cpu(), class_names)
    return found if counter is None else replace(found, f1_alpha=counter.figures(class_names))


def _mean(figures: dict[str, float | None]) -> float | None:
    """Return the mean of the figures that are there."""
    there = [figure for figure in figures.values() if figure is not None]
    return sum(there) / len(there) if there else None


def _inside(targets: torch.Tensor, ends: Sequence[Vec]) -> torch.Tensor:
    """Return 1 where a voxel counts and 0 where it only fills up its patch, (batch, 1, ...)."""
    inside = torch.zeros_like(targets[:, :1])
    for place, end in enumerate(ends):
        box: tuple[Any, ...] = tuple(slice(n) for n in end[5 - targets.ndim :])
        inside[(place, 0, *box)] = 1
    return inside


def _sums(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the sums of each class, (class, 3 + 2 thresholds), in float64.

    First p t, p^2 and t^2; then, of each threshold, how many voxels are found and rightly found.
    """
    voxels = (0, *range(2, scores.ndim))
    of_both, of_scores = (scores * targets).sum(voxels), (scores**2).sum(voxels)
    sums = [of_both, of_scores, (targets**2).sum(voxels)]
    for threshold in THRESHOLDS:
        found = scores > threshold
        sums += [found.sum(voxels), (found * targets).sum(voxels)]
    return torch.stack([one.double() for one in sums], dim=1)


def _divided(loss: float, sums: torch.Tensor, names: tuple[str, ...]) -> Validated:
    """Turn sums into figures."""
    dice: dict[str, float | None] = dict.fromkeys(names)
    f1: dict[str, float | None] = dict.fromkeys(names)
    best: dict[str, float | None] = dict.fromkeys(names)
    for name, of_class in zip(names, sums.tolist(), strict=True):
        both, of_scores, true, *counts = of_class
        if true == 0:
            continue
        dice[name] = 2 * both / (of_scores + true)
        each = [2 * r / (n + true) for n, r in zip(counts[::2], counts[1::2], strict=True)]
        f1[name] = max(each)
        best[name] = THRESHOLDS[each.index(max(each))]
    return Validated(loss, dice, f1, best)
