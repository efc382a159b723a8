"""The 2D U-Net of DeePiCt, which segments organelles slice by slice, and how far it sees.

The network
    Each of ``depth`` encoder levels applies two 3x3 convolutions, each followed by ReLU, keeps the
    result and halves the slice by max pooling. A base level follows. Each decoder level doubles the
    slice by a 3x3 transposed convolution with stride 2, puts the kept encoder result behind it (the
    3D network puts it in front) and applies two convolutions again. A 1x1 convolution gives one
    logit per class; the sigmoid is applied outside.

Which pixels does the transposed convolution see?
    It is the reverse of Keras' 3-wide convolution with stride 2 and "same" padding, where result
    ``i`` reads pixels ``2 i``, ``2 i + 1`` and ``2 i + 2``: an even axis is padded at its end only.
    So pixel ``2 i`` comes from ``i`` and ``i - 1``, pixel ``2 i + 1`` from ``i`` alone. PyTorch
    without padding gives one row and one column more, which are cut off at the end.

How far does an output pixel see?
    As in `unet3d`, the interval of pixels it needs is carried backwards through the layers for each
    position in a pooling cell. Only the doubling differs: an interval low..high comes from
    ``(low - 1) // 2`` to ``high // 2``, so the network sees further back than forward. The halo is
    the larger of the two, rounded up to whole cells of 2**depth pixels.

Source: the 2D network of de Teresa-Trueba et al., Nature Methods 2023
(10.1038/s41592-022-01746-2), as the published code builds it in Keras.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from ..core.errors import ModelFileError
from ..core.geometry import ceil_to

__all__ = ["UNet2D", "UNet2DSettings", "needed_interval"]

BLOCK_REACH = 2
"""Pixels that a block of two 3-wide convolutions sees on either side."""


@dataclass(frozen=True)
class UNet2DSettings:
    """Everything that fixes the network's shape.

    Examples
    --------
    >>> settings = UNet2DSettings(depth=4, initial_features=16, n_classes=1)
    >>> settings.align, settings.halo
    (16, 112)
    >>> settings.features
    (16, 32, 64, 128)
    """

    depth: int = 4
    """Number of max-poolings."""
    initial_features: int = 16
    """Channels of the first level, 4 times DeePiCt's ``n_filters``; each level doubles them."""
    n_classes: int = 1
    """Channels of the output, one per semantic class."""

    def __post_init__(self) -> None:
        for name in ("depth", "initial_features", "n_classes"):
            if getattr(self, name) < 1:
                raise ModelFileError(
                    f"2D U-Net: {name} must be at least 1, found {getattr(self, name)}"
                )

    @property
    def features(self) -> tuple[int, ...]:
        """Channels of each encoder level."""
        return tuple(self.initial_features * 2**level for level in range(self.depth))

    @property
    def align(self) -> int:
        """Pixels of a pooling cell along y and x; tiles start on its multiples."""
        return int(2**self.depth)

    @cached_property
    def halo(self) -> int:
        """Pixels in y and x needed on every side of an aligned box, in whole pooling cells."""
        reach = 0
        for pixel in range(self.align):
            low, high = needed_interval(pixel, self.depth)
            reach = max(reach, -low, high - (self.align - 1))
        return ceil_to(reach, self.align)


def needed_interval(pixel: int, depth: int) -> tuple[int, int]:
    """Return the first and the last input pixel that an output pixel depends on, along one axis.

    Examples
    --------
    >>> needed_interval(0, depth=1), needed_interval(1, depth=1)
    ((-10, 9), (-8, 9))
    """
    return _decoded(pixel, pixel, level=0, depth=depth)


def _decoded(low: int, high: int, level: int, depth: int) -> tuple[int, int]:
    """Carry an interval of a level's output back to the input of the network's same level."""
    low, high = low - BLOCK_REACH, high + BLOCK_REACH
    if level == depth:
        return low, high
    pooled_low, pooled_high = _decoded((low - 1) // 2, high // 2, level + 1, depth)
    kept_low, kept_high = min(low, 2 * pooled_low), max(high, 2 * pooled_high + 1)
    return kept_low - BLOCK_REACH, kept_high + BLOCK_REACH


def _block(inputs: int, outputs: int) -> nn.Sequential:
    """Return convolution and ReLU, twice; the order fixes the names."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
    )


class UNet2D(nn.Module):
    """DeePiCt's 2D U-Net.

    Parameters
    ----------
    settings
        Depth, channels and classes.

    Examples
    --------
    >>> network = UNet2D(UNet2DSettings(depth=4, initial_features=16))
    >>> sum(parameter.numel() for parameter in network.parameters())
    2158417
    >>> network(torch.zeros(2, 1, 16, 32)).shape
    torch.Size([2, 1, 16, 32])
    """

    def __init__(self, settings: UNet2DSettings) -> None:
        super().__init__()
        self.settings = settings
        widths = settings.features
        bottom = 2 * widths[-1]
        steps = list(itertools.pairwise([bottom, *reversed(widths)]))
        self.encoder = nn.ModuleList(
            [_block(a, b) for a, b in itertools.pairwise([1, *widths])],
        )
        self.base = _block(widths[-1], bottom)
        self.upsamplers = nn.ModuleList([nn.ConvTranspose2d(a, b, 3, stride=2) for a, b in steps])
        self.decoder = nn.ModuleList([_block(a, b) for a, b in steps])
        self.out_conv = nn.Conv2d(widths[0], settings.n_classes, kernel_size=1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, slices: torch.Tensor) -> torch.Tensor:
        """Return logits.

        Parameters
        ----------
        slices
            float32, (batch, 1, y, x); y and x multiples of ``settings.align``.

        Returns
        -------
        torch.Tensor
            float32 logits, (batch, n_classes, y, x).
        """
        kept: list[torch.Tensor] = []
        x = slices
        for block in self.encoder:
            x = block(x)
            kept.append(x)
            x = self.pool(x)
        x = self.base(x)
        for upsample, block in zip(self.upsamplers, self.decoder, strict=True):
            # the kept result comes last; popping frees it as soon as it is used
            x = block(torch.cat([upsample(x)[..., :-1, :-1], kept.pop()], dim=1))
        return self.out_conv(x)

    @classmethod
    def state_shapes(cls, settings: UNet2DSettings) -> OrderedDict[str, tuple[int, ...]]:
        """Return the name and shape of every tensor of the state dict, without allocating them."""
        with torch.device("meta"):
            network = cls(settings)
        return OrderedDict((k, tuple(v.shape)) for k, v in network.state_dict().items())
