"""Measure batch normalisation again: running averages lag behind the weights.

They are averages over the last few batches, each of a few patches, while the weights moved.
Prediction uses them, so at the end they are replaced by plain averages over fresh batches, in
float32 and without dropout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["has_norms", "measure_norms"]

_Norm = torch.nn.modules.batchnorm._BatchNorm


def has_norms(network: torch.nn.Module) -> bool:
    """Say whether a network has batch normalisation.

    Examples
    --------
    >>> has_norms(torch.nn.Sequential(torch.nn.Conv3d(1, 1, 1)))
    False
    """
    return any(isinstance(layer, _Norm) for layer in network.modules())


@torch.no_grad()
def measure_norms(network: torch.nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Replace running averages by plain averages over batches; leave the network in eval mode.

    Parameters
    ----------
    network
        With batch normalisation or without.
    batches
        Patches as the network takes them.

    Examples
    --------
    >>> network = torch.nn.Sequential(torch.nn.BatchNorm3d(1))
    >>> measure_norms(network, [torch.full((1, 1, 2, 2, 2), 3.0)])
    >>> network[0].running_mean
    tensor([3.])
    """
    network.eval()
    norms = [layer for layer in network.modules() if isinstance(layer, _Norm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over all batches
    for patches in batches:
        network(patches)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
