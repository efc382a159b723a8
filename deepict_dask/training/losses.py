"""Measure how far scores are from targets: the losses that training can descend.

dice
    Of one class ``1 - 2 sum(p t) / max(sum(p^2) + sum(t^2), 1e-6)``, the sums running over all
    voxels of the batch; the mean over the classes. Source: V-Net (Milletari et al. 2016,
    10.1109/3DV.2016.79), as DeePiCt uses it.
soft_dice
    Of one class ``1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1)``, without squares, as DeepETPicker
    has it; the mean over the classes, with the background where there is one.
generalized_dice, tversky
    Those of MONAI, their sums over the whole batch too, so that a patch without labels is no
    special case.
cross_entropy
    The mean over all voxels (and over all classes of a sigmoid).
dice_cross_entropy
    The sum of dice and cross_entropy: a class that fills most of a volume, or a batch
    without a class, is still told right from wrong.

A network that ends in a sigmoid has a channel per class. One that ends in a softmax has a channel
for the background before them, of which the target is 1 where no class is; where classes overlap,
the last one counts, as in the targets that `data` makes for such networks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "LossName",
    "class_scores",
    "dice_loss",
    "loss_function",
    "soft_dice_loss",
    "with_background",
]

LossName = Literal[
    "dice", "soft_dice", "generalized_dice", "dice_cross_entropy", "cross_entropy", "tversky"
]
SMALLEST = 1e-6


def dice_loss(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean Dice loss over the classes.

    Parameters
    ----------
    scores
        Float, (batch, class, z, y, x), 0 to 1.
    targets
        The same shape, 0 or 1.

    Returns
    -------
    torch.Tensor
        One number, 0 (equal) to 1 (nothing in common).

    Examples
    --------
    >>> import torch
    >>> target = torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 1, 2)
    >>> round(dice_loss(0.5 * torch.ones_like(target), target).item(), 4)
    0.3333
    """
    voxels = (0, *range(2, scores.ndim))
    common = (scores * targets).sum(voxels)
    total = (scores**2).sum(voxels) + (targets**2).sum(voxels)
    return (1 - 2 * common / total.clamp(min=SMALLEST)).mean()


def soft_dice_loss(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean Dice loss without squares, its sums larger by 1.

    Parameters
    ----------
    scores, targets
        As of `dice_loss`.

    Examples
    --------
    >>> import torch
    >>> target = torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 1, 2)
    >>> round(soft_dice_loss(0.5 * torch.ones_like(target), target).item(), 4)
    0.3333
    """
    voxels = (0, *range(2, scores.ndim))
    common = (scores * targets).sum(voxels)
    total = scores.sum(voxels) + targets.sum(voxels)
    return (1 - (2 * common + 1) / (total + 1)).mean()


def with_background(targets: torch.Tensor) -> torch.Tensor:
    """Return targets with a channel for the background in front, one channel 1 in every voxel.

    Examples
    --------
    >>> with_background(torch.tensor([[[1.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]]]).reshape(1, 2, 3))
    tensor([[[0., 1., 0.],
             [0., 0., 1.],
             [1., 0., 0.]]])
    """
    classes = targets.unbind(1)  # whole channels: torch's argmax over them takes 20 times as long
    highest = 1 - targets.amax(1)
    right = torch.zeros_like(highest)
    for number, one in enumerate(classes, 1):
        right = torch.where(one >= highest, number, right)
        highest = torch.maximum(highest, one)
    return torch.stack([right == number for number in range(len(classes) + 1)], 1).to(targets)


def class_scores(logits: torch.Tensor, *, softmax: bool) -> torch.Tensor:
    """Return the score of each class, 0 to 1, without the background.

    Examples
    --------
    >>> class_scores(torch.zeros(1, 2, 1), softmax=True).tolist()
    [[[0.5]]]
    """
    return logits.softmax(1)[:, 1:] if softmax else logits.sigmoid()


def loss_function(
    name: LossName, *, softmax: bool = False
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the loss of logits against targets.

    Parameters
    ----------
    name
        One of those above.
    softmax
        Whether the logits are those of background and classes, of which one is right.

    Returns
    -------
    callable
        Takes float logits and targets (batch, class, ...), gives one number.

    Examples
    --------
    >>> loss = loss_function("dice_cross_entropy")
    >>> round(loss(torch.zeros(1, 1, 2), torch.tensor([[[1.0, 0.0]]])).item(), 4)
    1.0265
    """
    compared = None if name == "cross_entropy" else _of_scores(name)

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        expected = with_background(targets) if softmax else targets
        if compared is None:
            return _cross_entropy(logits, expected, softmax=softmax)
        value = compared(logits.softmax(1) if softmax else logits.sigmoid(), expected)
        if name == "dice_cross_entropy":
            value = value + _cross_entropy(logits, expected, softmax=softmax)
        return value

    return loss


def _of_scores(name: LossName) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return what compares scores with targets."""
    if name in ("dice", "dice_cross_entropy"):
        return dice_loss
    if name == "soft_dice":
        return soft_dice_loss
    from monai.losses.dice import GeneralizedDiceLoss
    from monai.losses.tversky import TverskyLoss

    kind: Any = GeneralizedDiceLoss if name == "generalized_dice" else TverskyLoss
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = kind(batch=True)
    return loss


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor, *, softmax: bool) -> torch.Tensor:
    """Return the mean cross-entropy of all voxels (and of all classes of a sigmoid)."""
    if softmax:
        return functional.cross_entropy(logits, targets)
    return functional.binary_cross_entropy_with_logits(logits, targets)
