"""The 3D U-Net of DeePiCt, with DeePiCt's parameter names, and how far it sees.

The network
    Each of ``depth`` encoder levels applies two 3x3x3 convolutions (each followed by ReLU, batch
    normalisation and dropout), keeps the result and halves the volume by max pooling. A base level
    (never normalised) follows. Each decoder level doubles the volume by a 2x2x2 transposed
    convolution, appends it to the kept encoder result and applies two convolutions again. A 1x1x1
    convolution gives one logit per class; the sigmoid is applied outside.

Space to depth
    Of our own networks, not DeePiCt's: with ``space_to_depth`` 2, the voxels of a cell of 2x2x2
    are channels of one position, all of the above works on those positions, and the last
    convolution gives each class eight logits, one for each voxel of the cell. An eighth of the
    positions is a seventh of the work, and a position sees twice as far.

How far does an output voxel see?
    The interval of voxels it needs is carried backwards through the layers, for each position that
    a voxel can have in a pooling cell: a 3-wide convolution adds one voxel on both sides, doubling
    maps voxel v to v // 2, and pooling maps v to the pair 2 v, 2 v + 1; skip connections add by
    union. Windows start and stop on pooling cells (``align``), so the halo is how far the interval
    leaves the voxel's own cell of 2**depth voxels, rounded up to whole cells. Of positions that are
    cells themselves, all this is multiplied by their edge.

Source: the U-Net of de Teresa-Trueba et al., Nature Methods 2023 (10.1038/s41592-022-01746-2).
The published code, which this follows, pads convolutions by 1 and upsamples with kernel 2; the
paper's text says otherwise.
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

__all__ = ["UNet3D", "UNet3DSettings", "depth_to_space", "needed_interval", "space_to_depth"]

CONVOLUTIONS_PER_BLOCK = 2
KERNEL_REACH = 1
"""Voxels a 3-wide convolution sees on either side."""


@dataclass(frozen=True)
class UNet3DSettings:
    """Everything that fixes the network's shape.

    Examples
    --------
    >>> settings = UNet3DSettings(depth=2, initial_features=4, n_classes=1, batch_norm=True)
    >>> settings.align, settings.halo
    (4, 24)
    >>> settings.features
    (4, 8)
    """

    depth: int = 2
    """Number of max-poolings."""
    initial_features: int = 4
    """Channels of the first level; each level doubles them."""
    n_classes: int = 1
    """Channels of the output, one per semantic class."""
    batch_norm: bool = True
    encoder_dropout: float = 0.0
    """Probability; also used in the base."""
    decoder_dropout: float = 0.0
    space_to_depth: int = 1
    """Edge, in voxels, of the cells whose voxels are channels of one position."""

    def __post_init__(self) -> None:
        for name in ("depth", "initial_features", "n_classes", "space_to_depth"):
            if getattr(self, name) < 1:
                raise ModelFileError(
                    f"3D U-Net: {name} must be at least 1, found {getattr(self, name)}"
                )
        for name in ("encoder_dropout", "decoder_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ModelFileError(
                    f"3D U-Net: {name} must be in [0, 1), found {getattr(self, name)}"
                )

    @property
    def features(self) -> tuple[int, ...]:
        """Channels of each encoder level."""
        return tuple(self.initial_features * 2**level for level in range(self.depth))

    @property
    def channels_of_position(self) -> int:
        """Voxels that are channels of one position."""
        return self.space_to_depth**3

    @property
    def pooling_cell(self) -> int:
        """Positions along an edge of a pooling cell."""
        return int(2**self.depth)

    @property
    def align(self) -> int:
        """Voxels of a pooling cell; windows start on its multiples."""
        return self.space_to_depth * self.pooling_cell

    @cached_property
    def halo(self) -> int:
        """Voxels needed on every side of an aligned box of voxels, in whole pooling cells."""
        reach, cell = 0, self.pooling_cell
        for position in range(cell):
            low, high = needed_interval(position, self.depth)
            reach = max(reach, -low, high - (cell - 1))
        return self.space_to_depth * ceil_to(reach, cell)


def needed_interval(voxel: int, depth: int) -> tuple[int, int]:
    """Return the first and the last input voxel that an output voxel depends on, along one axis.

    Examples
    --------
    >>> needed_interval(0, depth=1), needed_interval(1, depth=1)
    ((-8, 9), (-8, 9))
    """
    return _decoded(voxel, voxel, level=0, depth=depth)


def _decoded(low: int, high: int, level: int, depth: int) -> tuple[int, int]:
    """Carry an interval of a level's output back to the input of the network's same level."""
    reach = CONVOLUTIONS_PER_BLOCK * KERNEL_REACH
    low, high = low - reach, high + reach
    if level == depth:
        return low, high
    pooled_low, pooled_high = _decoded(low // 2, high // 2, level + 1, depth)
    kept_low, kept_high = min(low, 2 * pooled_low), max(high, 2 * pooled_high + 1)
    return kept_low - reach, kept_high + reach


def space_to_depth(volume: torch.Tensor, edge: int) -> torch.Tensor:
    """Return (batch, channels * edge**3, z, y, x) of (batch, channels, edge * z, ...).

    Examples
    --------
    >>> cells = space_to_depth(torch.arange(8.0).view(1, 1, 2, 2, 2), 2)
    >>> cells.shape, cells.flatten().tolist() == list(range(8))
    (torch.Size([1, 8, 1, 1, 1]), True)
    """
    if edge == 1:
        return volume
    n, channels, *shape = volume.shape
    z, y, x = (size // edge for size in shape)
    split = volume.reshape(n, channels, z, edge, y, edge, x, edge)
    return split.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(n, channels * edge**3, z, y, x)


def depth_to_space(positions: torch.Tensor, edge: int) -> torch.Tensor:
    """Return what `space_to_depth` was given.

    Examples
    --------
    >>> volume = torch.rand(1, 3, 4, 6, 8)
    >>> bool((depth_to_space(space_to_depth(volume, 2), 2) == volume).all())
    True
    """
    if edge == 1:
        return positions
    n, channels, z, y, x = positions.shape
    split = positions.reshape(n, channels // edge**3, edge, edge, edge, z, y, x)
    voxels = split.permute(0, 1, 5, 2, 6, 3, 7, 4)
    return voxels.reshape(n, channels // edge**3, edge * z, edge * y, edge * x)


def _block(inputs: int, outputs: int, dropout: float, *, batch_norm: bool) -> nn.Sequential:
    """Return convolution, ReLU, normalisation and dropout, twice; the order fixes the names."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv3d(channels, outputs, kernel_size=3, padding=1), nn.ReLU(inplace=True)]
        if batch_norm:
            layers.append(nn.BatchNorm3d(outputs))
        layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)


class UNet3D(nn.Module):
    """DeePiCt's 3D U-Net; its state dict has the names of DeePiCt's checkpoints.

    Parameters
    ----------
    settings
        Depth, channels, classes, normalisation and dropout.

    Examples
    --------
    >>> network = UNet3D(UNet3DSettings(depth=2, initial_features=4, n_classes=1))
    >>> sum(parameter.numel() for parameter in network.parameters())
    21453
    >>> network(torch.zeros(1, 1, 8, 8, 12)).shape
    torch.Size([1, 1, 8, 8, 12])
    """

    def __init__(self, settings: UNet3DSettings) -> None:
        super().__init__()
        self.settings = settings
        widths = settings.features
        bottom = 2 * widths[-1]
        rising = [bottom, *reversed(widths)]
        encoder_in = [settings.channels_of_position, *widths[:-1]]
        bn, p_in, p_out = settings.batch_norm, settings.encoder_dropout, settings.decoder_dropout
        self.encoder = nn.ModuleList(
            [_block(a, b, p_in, batch_norm=bn) for a, b in zip(encoder_in, widths, strict=True)]
        )
        self.base = _block(widths[-1], bottom, p_in, batch_norm=False)
        steps = list(itertools.pairwise(rising))
        self.upsamplers = nn.ModuleList([nn.ConvTranspose3d(a, b, 2, stride=2) for a, b in steps])
        self.decoder = nn.ModuleList([_block(a, b, p_out, batch_norm=bn) for a, b in steps])
        n_logits = settings.n_classes * settings.channels_of_position
        self.out_conv = nn.Conv3d(widths[0], n_logits, kernel_size=1)
        self.pool = nn.MaxPool3d(2)

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        """Return logits.

        Parameters
        ----------
        volume
            float32, (batch, 1, z, y, x); each axis a multiple of ``settings.align``.

        Returns
        -------
        torch.Tensor
            float32 logits, (batch, n_classes, z, y, x).
        """
        kept: list[torch.Tensor] = []
        x = space_to_depth(volume, self.settings.space_to_depth)
        for block in self.encoder:
            x = block(x)
            kept.append(x)
            x = self.pool(x)
        x = self.base(x)
        for upsample, block in zip(self.upsamplers, self.decoder, strict=True):
            # the kept result comes first; popping frees it as soon as it is used
            x = block(torch.cat([kept.pop(), upsample(x)], dim=1))
        return depth_to_space(self.out_conv(x), self.settings.space_to_depth)

    @classmethod
    def state_shapes(cls, settings: UNet3DSettings) -> OrderedDict[str, tuple[int, ...]]:
        """Return the name and shape of every tensor of the state dict, without allocating them."""
        with torch.device("meta"):
            network = cls(settings)
        return OrderedDict((k, tuple(v.shape)) for k, v in network.state_dict().items())
