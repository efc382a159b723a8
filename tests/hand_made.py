"""Networks whose weights are made by hand: bright balls are one class, dark balls another.

A voxel's mean over 3 x 3 x 3 voxels goes through unchanged, split by its sign; all other weights
are small random numbers, so that every layer takes part.
"""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import torch

from deepict_dask.models.deepetpicker import DeepETPicker, DeepETPickerSettings
from deepict_dask.models.deepfinder import DeepFinder, DeepFinderSettings

NAMES = ("background", "bright", "dark")
SHAPE = (64, 72, 80)
BRIGHT = ((12, 12, 12), (32, 33, 31), (50, 20, 64))
DARK = ((14, 50, 40), (48, 56, 32), (32, 15, 48), (20, 30, 66))


def _noisy(network):
    torch.manual_seed(4)
    for parameter in network.parameters():
        parameter.data.normal_(0, 0.01)
    return network.eval()


def _signs(layer: torch.nn.Conv3d) -> None:
    layer.weight.data[:, 0] = torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1) / 27


def _through(layer: torch.nn.Conv3d, first: int = 0) -> None:
    for channel in range(2):
        layer.weight.data[channel, first + channel, 1, 1, 1] = 1.0


def _out(layer: torch.nn.Conv3d) -> None:
    layer.weight.data[:, :, 0, 0, 0] = torch.tensor([[0.0, 0.0], [12.0, 0.0], [0.0, 12.0]])
    layer.bias.data[:] = torch.tensor([6.0, 0.0, 0.0])


def deepfinder() -> DeepFinder:
    network = _noisy(DeepFinder(DeepFinderSettings(3, (2, 2, 2))))
    _signs(network.high[0])
    _through(network.high[1])
    _through(network.join_high[0], first=2)
    _through(network.join_high[1])
    _out(network.out_conv)
    return network


def deepetpicker() -> DeepETPicker:
    network = _noisy(DeepETPicker(DeepETPickerSettings(3, (2, 2, 2, 2), 32, 4)))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.weight.data.fill_(1.0)
    _signs(network.encoders[0].basic_module.conv1.conv)
    _through(network.decoders[-1].basic_module.conv1.conv)
    _out(network.final_conv)
    return network


def balls(path: Path, radius: float = 5) -> Path:
    """A tomogram of noise with bright and dark balls."""
    volume = np.random.default_rng(0).normal(3, 0.2, SHAPE).astype("float32")
    places = np.indices(SHAPE).transpose(1, 2, 3, 0)
    for centres, sign in ((BRIGHT, 1), (DARK, -1)):
        for centre in centres:
            volume[((places - centre) ** 2).sum(axis=-1) <= radius**2] += 3 * sign
    with mrcfile.new(path) as file:
        file.set_data(volume)
        file.voxel_size = 10.0
    return path
