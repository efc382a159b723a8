"""DeepFinder's 3D U-Net, and how far it sees.

The network
    Two encoder levels of two 3x3x3 convolutions, each level halved by max pooling; four 3x3x3
    convolutions on the lowest level; then twice: every voxel is repeated 2x2x2 times, a 2x2x2
    convolution follows, the kept encoder result is put behind it, and two 3x3x3 convolutions are
    applied. A ReLU comes after each of these. A 1x1x1 convolution gives one logit per class,
    background first, and a softmax makes scores of them; it is applied outside.

Which voxels does the 2x2x2 convolution see?
    Keras' "same" padding of an even kernel adds its one voxel at the far end, so that voxel ``v``
    comes from ``v`` and ``v + 1``. The network sees further forward than backward.

How far does an output voxel see?
    As in `unet3d`, the interval of voxels it needs is carried backwards through the layers for each
    place in a pooling cell of four voxels.

Source: Moebel et al., Nature Methods 2021 (10.1038/s41592-021-01275-4). The published program's
network, which this follows, has 2x2x2 convolutions after the repetition; the text says 3x3x3.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from torch import nn
from torch.nn import functional

from ..core.errors import ModelFileError
from ..core.geometry import ceil_to

__all__ = ["CONVOLUTIONS", "DeepFinder", "DeepFinderSettings", "needed_interval"]

REACH: Final = 2
"""Voxels that two 3-wide convolutions see on either side."""
LOWEST_REACH: Final = 4
"""Voxels that the four convolutions of the lowest level see on either side."""
CONVOLUTIONS: Final = (
    "high.0", "high.1", "mid.0", "mid.1", "low.0", "low.1", "low.2", "low.3",
    "up_mid", "join_mid.0", "join_mid.1", "up_high", "join_high.0", "join_high.1", "out_conv",
)  # fmt: skip
"""Names of the convolutions in the order of the data's way through them, as Keras lists them."""


@dataclass(frozen=True)
class DeepFinderSettings:
    """Everything that fixes the network's shape.

    Examples
    --------
    >>> settings = DeepFinderSettings(n_classes=3)
    >>> settings.align, settings.halo, settings.depth
    (4, 36, 2)
    """

    n_classes: int = 2
    """Channels of the output, background included."""
    features: tuple[int, int, int] = (32, 48, 64)
    """Channels of the three levels."""

    def __post_init__(self) -> None:
        # JSON knows lists only
        object.__setattr__(self, "features", tuple(self.features))
        if self.n_classes < 2 or len(self.features) != 3 or min(self.features) < 1:
            raise ModelFileError(
                "DeepFinder: expected background and one class or more, and three levels of "
                f"features, found {self.n_classes} classes and features {self.features}"
            )

    @property
    def depth(self) -> int:
        """Number of max-poolings."""
        return 2

    @property
    def initial_features(self) -> int:
        """Channels of the first level."""
        return self.features[0]

    @property
    def align(self) -> int:
        """Voxels of a pooling cell; windows start on its multiples."""
        return 4

    @cached_property
    def halo(self) -> int:
        """Voxels needed on every side of an aligned box of voxels, in whole pooling cells."""
        reach = 0
        for voxel in range(self.align):
            low, high = needed_interval(voxel)
            reach = max(reach, -low, high - (self.align - 1))
        return ceil_to(reach, self.align)


def needed_interval(voxel: int) -> tuple[int, int]:
    """Return the first and the last input voxel that an output voxel depends on, along one axis.

    Examples
    --------
    >>> needed_interval(0), needed_interval(3)
    ((-30, 33), (-26, 37))
    """
    return _needed(voxel, voxel, level=0)


def _needed(low: int, high: int, level: int) -> tuple[int, int]:
    """Carry an interval of a level's output back to the input of the network's same level."""
    if level == 2:
        return low - LOWEST_REACH, high + LOWEST_REACH
    low, high = low - REACH, high + REACH
    below_low, below_high = _needed(low // 2, (high + 1) // 2, level + 1)
    return min(low, 2 * below_low) - REACH, max(high, 2 * below_high + 1) + REACH


class DeepFinder(nn.Module):
    """DeepFinder's network.

    Parameters
    ----------
    settings
        Classes and channels.

    Examples
    --------
    >>> network = DeepFinder(DeepFinderSettings(n_classes=3))
    >>> sum(parameter.numel() for parameter in network.parameters())
    903027
    >>> network(torch.zeros(1, 1, 4, 8, 12)).shape
    torch.Size([1, 3, 4, 8, 12])
    """

    def __init__(self, settings: DeepFinderSettings) -> None:
        super().__init__()
        self.settings = settings
        high, mid, low = settings.features
        self.high = _convolutions(1, high, high)
        self.mid = _convolutions(high, mid, mid)
        self.low = _convolutions(mid, low, low, low, low)
        self.up_mid = nn.Conv3d(low, low, 2)
        self.join_mid = _convolutions(low + mid, mid, mid)
        self.up_high = nn.Conv3d(mid, mid, 2)
        self.join_high = _convolutions(mid + high, high, high)
        self.out_conv = nn.Conv3d(high, settings.n_classes, 1)

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        """Return logits, background first.

        Parameters
        ----------
        volume
            float32, (batch, 1, z, y, x); each axis a multiple of four.

        Returns
        -------
        torch.Tensor
            float32 logits, (batch, n_classes, z, y, x).
        """
        high = _applied(self.high, volume)
        mid = _applied(self.mid, functional.max_pool3d(high, 2))
        low = _applied(self.low, functional.max_pool3d(mid, 2))
        x = torch.cat([_raised(self.up_mid, low), mid], dim=1)
        x = _applied(self.join_mid, x)
        x = torch.cat([_raised(self.up_high, x), high], dim=1)
        logits: torch.Tensor = self.out_conv(_applied(self.join_high, x))
        return logits

    @classmethod
    def state_shapes(cls, settings: DeepFinderSettings) -> OrderedDict[str, tuple[int, ...]]:
        """Return the name and shape of every tensor of the state dict, without allocating them."""
        with torch.device("meta"):
            network = cls(settings)
        return OrderedDict((k, tuple(v.shape)) for k, v in network.state_dict().items())


def _convolutions(*channels: int) -> nn.ModuleList:
    """Return 3x3x3 convolutions from each number of channels to the next."""
    pairs = itertools.pairwise(channels)
    return nn.ModuleList([nn.Conv3d(a, b, 3, padding=1) for a, b in pairs])


def _applied(layers: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
    """Apply convolutions, each followed by a ReLU."""
    for layer in layers:
        x = functional.relu(layer(x))
    return x


def _raised(layer: nn.Conv3d, x: torch.Tensor) -> torch.Tensor:
    """Repeat every voxel 2x2x2 times and apply the 2x2x2 convolution and a ReLU."""
    x = functional.interpolate(x, scale_factor=2, mode="nearest")
    return functional.relu(layer(functional.pad(x, (0, 1, 0, 1, 0, 1))))
