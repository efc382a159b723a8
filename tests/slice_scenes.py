"""2D networks, tomograms and score maps of whole slices, for the tests of slices."""

from __future__ import annotations

import functools

import mrcfile
import numpy as np
import pytest
import torch

from deepict_dask.io.array import ArrayReader
from deepict_dask.models.checkpoint import save_model
from deepict_dask.models.unet2d import UNet2D, UNet2DSettings
from deepict_dask.segmentation.deepict_slices import (
    CompatSliceOp,
    CompatSlices,
    SlabReader,
    compat_slice_grid,
)
from deepict_dask.segmentation.deepict_statistics import statistics_of


@pytest.fixture(autouse=True)
def one_thread():
    """As in a worker; more threads only fight over the cores of a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def sharp_network(depth: int, features: int = 2, classes: int = 1) -> UNet2D:
    """Weights large enough for scores all over 0..1, so that a wrong voxel shows."""
    torch.manual_seed(depth)
    network = UNet2D(UNet2DSettings(depth, features, classes)).eval()
    for name, weights in network.named_parameters():
        weights.data *= 2.2 if name.endswith("weight") else 1
    with torch.inference_mode():
        logits = network(torch.randn(1, 1, 128, 128))
    scale, bias = 1.5 / logits.std(), network.out_conv.bias.data
    network.out_conv.weight.data *= scale
    network.out_conv.bias.data = -scale * (logits.mean() - bias)
    return network


@pytest.fixture(scope="module")
def model_paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    paths = {}
    for depth in (1, 2, 3, 4):
        paths[depth] = folder / f"d{depth}.safetensors"
        save_model(paths[depth], sharp_network(depth), class_names=["er"],
                   voxel_spacing_angstrom=None)  # fmt: skip
    return {depth: str(path) for depth, path in paths.items()}


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "two.safetensors"
    network = sharp_network(2, classes=2)
    save_model(path, network, class_names=["er", "golgi"], voxel_spacing_angstrom=None)
    return str(path)


def random_volume(shape, seed=0):
    return np.random.default_rng(seed).normal(40, 5, shape).astype("float32")


def whole_slices(network: UNet2D, volume, mean: float, std: float):
    """The definition: normalise, pad far ends by reflection, apply the plain network to a slice."""
    normalised = ((volume - np.float32(mean)) / np.float32(std)).astype("float32")
    align = network.settings.align
    widths = [(0, 0), *[(0, -n % align) for n in volume.shape[1:]]]
    padded = np.pad(normalised, widths, mode="reflect")
    with torch.inference_mode():
        scores = [network(torch.from_numpy(plane)[None, None])[0].sigmoid() for plane in padded]
    return np.stack(scores, axis=1)[..., : volume.shape[1], : volume.shape[2]]


def run(op, grid, volume):
    """What the engine does: read, apply, crop, write."""
    blocks = [(block, op.apply(block, volume[block.read.slices].copy())) for block in grid]
    leading = blocks[0][1].shape[:-3]
    out = np.empty((*leading, *grid.shape), dtype=op.dtype)
    for block, result in blocks:
        assert result.dtype == op.dtype
        out[(..., *block.write.slices)] = block.crop(result)
    return out


def read_mrc(path):
    with mrcfile.open(path) as file:
        return np.array(file.data)


def compat_scores(path, volume, tiling, *, class_index=0, slab=3):
    """Run the published way over slabs, statistics included."""
    plan, reader = CompatSlices(volume.shape, tiling), ArrayReader(volume)
    mean, std = statistics_of(SlabReader(reader, *plan.predicted))
    if not tiling.normalize:
        mean, std = 0.0, 1.0
    op = CompatSliceOp(path, mean, std, plan, class_index)
    slices = SlabReader(reader, *plan.written)
    assert slices.header.shape == plan.out_shape
    out = [
        block.crop(op.apply(block, slices.read(block.read)))
        for block in compat_slice_grid(plan, slab)
    ]
    return np.concatenate(out, axis=-3)
