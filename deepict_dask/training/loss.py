"""Measure how far scores are from targets.

The Dice loss of one class is ``1 - 2 sum(p t) / max(sum(p^2) + sum(t^2), 1e-6)``, the sums running
over all voxels of the batch; the loss is the mean over the classes. Source: V-Net (Milletari et
al. 2016, 10.1109/3DV.2016.79), as DeePiCt uses it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["dice_loss"]

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
