"""DeepETPicker's residual U-Net, which knows where in its tile a voxel lies.

The network
    Four encoder levels, each half the size of the one before by average pooling. From the second on
    a level also gets the tile itself, averaged to its size (the image pyramid). Every level and
    every decoder step gets three more channels: the place along each axis, from -1 at the first
    voxel of the tile to 1 at its last. A block has three 3x3x3 convolutions, each with batch
    normalisation and ReLU; the first one's result is added to the third's. Each decoder step
    doubles the size by a 3x3x3 transposed convolution and adds the encoder's result. A 1x1x1
    convolution gives logits: of background and each class for the softmax, or of one class for the
    sigmoid, which are applied outside.

Why is the tile part of the model?
    The places run from -1 to 1 over each tile and zeros are padded round each tile, so a score
    depends on the tile's size and place. Tiles are cubes of the size the model was made for.

Source: Liu et al., Nature Communications 2024 (10.1038/s41467-024-46041-0). The published program
applies an ELU after the sum, which changes nothing: both terms are never negative.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from ..core.errors import ModelFileError

__all__ = ["N_PLACES", "DeepETPicker", "DeepETPickerSettings"]

N_PLACES = 3
"""Channels that say where a voxel lies."""


@dataclass(frozen=True)
class DeepETPickerSettings:
    """Everything that fixes the network's shape, and the tiles it was made for.

    Examples
    --------
    >>> settings = DeepETPickerSettings(n_classes=3)
    >>> settings.step, settings.align, settings.depth
    (48, 8, 3)
    """

    n_classes: int = 1
    """Channels of the output: one, or background and each class."""
    features: tuple[int, ...] = (24, 48, 72, 108)
    """Channels of each level."""
    block_size: int = 72
    """Edge of a tile in voxels."""
    pad_size: int = 12
    """Voxels of a tile, on each side, that are context only."""

    def __post_init__(self) -> None:
        # JSON knows lists only
        object.__setattr__(self, "features", tuple(self.features))
        if self.n_classes < 1 or len(self.features) < 2 or min(self.features) < 1:
            raise ModelFileError(
                "DeepETPicker: expected one class or more and two levels of features or more, "
                f"found {self.n_classes} classes and features {self.features}"
            )
        if self.block_size % self.align or self.pad_size < 0 or self.step < 1:
            raise ModelFileError(
                f"DeepETPicker: expected a block_size of a multiple of {self.align} above twice "
                f"the pad_size, found block_size {self.block_size} and pad_size {self.pad_size}"
            )

    @property
    def depth(self) -> int:
        """Number of poolings."""
        return len(self.features) - 1

    @property
    def initial_features(self) -> int:
        """Channels of the first level."""
        return self.features[0]

    @property
    def step(self) -> int:
        """Voxels from a tile to the next, and edge of the cube a tile predicts."""
        return self.block_size - 2 * self.pad_size

    @property
    def align(self) -> int:
        """Voxels of a pooling cell; tiles have a multiple of it."""
        return int(2**self.depth)

    @property
    def halo(self) -> int:
        """Voxels on each side of what a tile predicts."""
        return self.pad_size


class _Layer(nn.Module):
    """A 3x3x3 convolution, batch normalisation and ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3, padding=1)
        self.batchnorm = nn.BatchNorm3d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.batchnorm(self.conv(x)))


class _Block(nn.Module):
    """Three layers; the first one's result is added to the third's."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = _Layer(inputs, outputs)
        self.conv2 = _Layer(outputs, outputs)
        self.conv3 = _Layer(outputs, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.conv1(x)
        return self.conv3(self.conv2(first)) + first


class _Encoder(nn.Module):
    """A block under the name that checkpoints have for it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.basic_module = _Block(inputs + N_PLACES, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.basic_module(with_places(x))
        return result


class _Upsampling(nn.Module):
    """A 3x3x3 transposed convolution that doubles the size."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose3d(inputs, outputs, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor, size: torch.Size) -> torch.Tensor:
        result: torch.Tensor = self.upsample(x, output_size=size)
        return result


class _Decoder(nn.Module):
    """Doubling, the sum with the encoder's result, and a block."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.upsampling = _Upsampling(inputs, outputs)
        self.basic_module = _Block(outputs + N_PLACES, outputs)

    def forward(self, kept: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        raised = self.upsampling(x, kept.shape[2:])
        result: torch.Tensor = self.basic_module(with_places(raised + kept))
        return result


class DeepETPicker(nn.Module):
    """DeepETPicker's network; its state dict has the names of the published checkpoints.

    Parameters
    ----------
    settings
        Classes, channels and tiles.

    Examples
    --------
    >>> network = DeepETPicker(DeepETPickerSettings(n_classes=3)).eval()
    >>> sum(parameter.numel() for parameter in network.parameters())
    2429895
    >>> network(torch.zeros(1, 1, 8, 8, 8)).shape
    torch.Size([1, 3, 8, 8, 8])
    """

    def __init__(self, settings: DeepETPickerSettings) -> None:
        super().__init__()
        self.settings = settings
        widths = settings.features
        inputs = [1, *(width + 1 for width in widths[:-1])]  # one more for the pyramid
        self.encoders = nn.ModuleList([_Encoder(a, b) for a, b in zip(inputs, widths, strict=True)])
        rising = itertools.pairwise(reversed(widths))
        self.decoders = nn.ModuleList([_Decoder(a, b) for a, b in rising])
        self.final_conv = nn.Conv3d(widths[0], settings.n_classes, 1)

    def forward(self, tile: torch.Tensor) -> torch.Tensor:
        """Return logits.

        Parameters
        ----------
        tile
            float32, (batch, 1, z, y, x); each axis a multiple of ``settings.align``. Scores mean
            what they did in training only for cubes of ``settings.block_size``.

        Returns
        -------
        torch.Tensor
            float32 logits, (batch, n_classes, z, y, x).
        """
        kept: list[torch.Tensor] = []
        x, pyramid = tile, tile
        for level, encoder in enumerate(self.encoders):
            if level:
                pyramid = functional.avg_pool3d(pyramid, 2)
                x = torch.cat([functional.avg_pool3d(x, 2), pyramid], dim=1)
            x = encoder(x)
            kept.append(x)
        kept.pop()
        for decoder in self.decoders:
            x = decoder(kept.pop(), x)
        logits: torch.Tensor = self.final_conv(x)
        return logits

    def scores(self, tile: torch.Tensor) -> torch.Tensor:
        """Return scores 0..1: a softmax over background and classes, or one class's sigmoid."""
        logits = self(tile)
        return logits.sigmoid() if self.settings.n_classes == 1 else logits.softmax(dim=1)

    @classmethod
    def state_shapes(cls, settings: DeepETPickerSettings) -> OrderedDict[str, tuple[int, ...]]:
        """Return the name and shape of every tensor of the state dict, without allocating them."""
        with torch.device("meta"):
            network = cls(settings)
        return OrderedDict((k, tuple(v.shape)) for k, v in network.state_dict().items())


def with_places(x: torch.Tensor) -> torch.Tensor:
    """Append three channels: the place along the axes x, y and z, in this order, from -1 to 1.

    Examples
    --------
    >>> with_places(torch.zeros(1, 1, 2, 2, 3))[0, 1, 0, 0].tolist()
    [-1.0, 0.0, 1.0]
    """
    n, _, *sizes = x.shape
    places = [torch.linspace(-1, 1, size, device=x.device, dtype=x.dtype) for size in sizes]
    grids = torch.meshgrid(*places, indexing="ij")
    return torch.cat([x, torch.stack(grids[::-1]).expand(n, -1, *sizes)], dim=1)
