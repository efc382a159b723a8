"""The network: its names, how far it sees, and its arrangement for prediction."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepict_dask.core.errors import ModelFileError
from deepict_dask.core.geometry import Box
from deepict_dask.models.arranged import Affine, Conv3
from deepict_dask.models.inference import InferenceUNet3D, decoded_parts
from deepict_dask.models.unet3d import (
    UNet3D,
    UNet3DSettings,
    depth_to_space,
    needed_interval,
    space_to_depth,
)


def random_network(seed: int = 0, *, flip: bool = False, **settings) -> UNet3D:
    """A network whose normalisations are far from the identity."""
    torch.manual_seed(seed)
    network = UNet3D(UNet3DSettings(**settings)).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean.normal_(0.3, 0.2)
            module.running_var.uniform_(0.5, 2)
            module.bias.data.normal_(0, 0.3)
            module.weight.data.uniform_(-1.5 if flip else 0.5, 1.5)
    return network


def test_parameter_names_and_shapes_are_those_of_deepict():
    # the listing in the reference notes, made by running DeePiCt (depth 2, 4 features, BN)
    shapes = UNet3D.state_shapes(UNet3DSettings(2, 4, 1, batch_norm=True))
    assert shapes["encoder.0.0.weight"] == (4, 1, 3, 3, 3)
    assert shapes["encoder.1.4.weight"] == (8, 8, 3, 3, 3)
    assert shapes["encoder.0.6.running_var"] == (4,)
    assert shapes["base.3.weight"] == (16, 16, 3, 3, 3)
    assert shapes["decoder.0.0.weight"] == (8, 16, 3, 3, 3)
    assert shapes["upsamplers.1.weight"] == (8, 4, 2, 2, 2)
    assert shapes["out_conv.weight"] == (1, 4, 1, 1, 1)
    assert not any(name.startswith("base.2") for name in shapes)


def test_without_batch_norm_the_second_convolution_moves_up_one_place():
    shapes = UNet3D.state_shapes(UNet3DSettings(2, 4, 1, batch_norm=False))
    assert "encoder.0.3.weight" in shapes
    assert not any("running" in name for name in shapes)


@pytest.mark.parametrize(("depth", "halo"), [(1, 8), (2, 24), (3, 48)])
@pytest.mark.parametrize("edge", [1, 2, 3])
def test_the_halo_is_derived_from_the_depth_and_the_edge_of_cells(depth, halo, edge):
    assert UNet3DSettings(depth=depth, space_to_depth=edge).halo == halo * edge


def test_cells_become_channels_as_pytorch_does_it_in_a_plane_and_come_back():
    slices = torch.randn(2, 3, 1, 6, 8)
    expected = torch.nn.functional.pixel_unshuffle(slices[:, :, 0], 2)
    found = space_to_depth(slices.repeat_interleave(2, dim=2), 2)
    assert torch.equal(found.reshape(2, 3, 2, 4, 3, 4)[:, :, 1].flatten(1, 2), expected)
    volume = torch.randn(2, 3, 4, 6, 8)
    cells = space_to_depth(volume, 2)
    assert cells.shape == (2, 24, 2, 3, 4)
    assert torch.equal(cells[:, :8, 1, 2, 0], volume[:, 0, 2:4, 4:6, 0:2].flatten(1))
    assert torch.equal(depth_to_space(cells, 2), volume)


@pytest.mark.parametrize("depth", [1, 2])
def test_an_output_voxel_depends_on_exactly_the_derived_interval(depth):
    # oracle: autograd through an average-pooling twin with positive weights, which hides nothing
    network = UNet3D(UNet3DSettings(depth, 1, 1, batch_norm=False))
    for parameter in network.parameters():
        parameter.data.fill_(0.1)
    network.pool = torch.nn.AvgPool3d(2)
    network.double()
    middle = 48
    for phase in range(2**depth):
        volume = torch.ones(1, 1, 2**depth, 2**depth, 96, dtype=torch.float64, requires_grad=True)
        network(volume)[0, 0, 0, 0, middle + phase].backward()
        touched = np.flatnonzero(volume.grad.sum(dim=(0, 1, 2, 3)).numpy())
        low, high = needed_interval(phase, depth)
        assert (touched.min(), touched.max()) == (middle + low, middle + high)


@pytest.mark.parametrize(
    ("depth", "features", "classes", "batch_norm", "edge"),
    [
        (1, 2, 3, True, 1), (2, 4, 1, True, 1), (2, 4, 1, False, 1), (3, 3, 2, True, 1),
        (2, 16, 1, True, 1), (1, 2, 3, True, 2), (2, 4, 2, True, 2), (1, 3, 1, False, 4),
    ],
)  # fmt: skip
def test_the_prediction_arrangement_equals_the_network(depth, features, classes, batch_norm, edge):
    network = random_network(
        depth=depth, initial_features=features, n_classes=classes, batch_norm=batch_norm,
        space_to_depth=edge,
    )  # fmt: skip
    window = torch.randn(16, 24, 40)
    with torch.inference_mode():
        expected = network(window[None, None])[0].sigmoid()
    scores = InferenceUNet3D(network).scores(window)
    assert float((scores - expected).abs().max()) <= 1e-6


def test_negative_batch_norm_scales_are_kept_out_of_the_convolutions():
    network = random_network(flip=True, depth=2, initial_features=4)
    window = torch.randn(16, 16, 16)
    with torch.inference_mode():
        expected = network(window[None, None])[0].sigmoid()
    assert float((InferenceUNet3D(network).scores(window) - expected).abs().max()) <= 1e-6


def test_prediction_leaves_the_network_and_the_window_unchanged():
    network = random_network(depth=1, initial_features=2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    window = torch.randn(8, 8, 8)
    copy = window.clone()
    InferenceUNet3D(network).scores(window)
    assert torch.equal(window, copy)
    assert all(torch.equal(before[n], t) for n, t in network.state_dict().items())


def test_a_network_learns():
    torch.manual_seed(0)
    network = UNet3D(UNet3DSettings(1, 2, 1)).train()
    volume = torch.randn(2, 1, 8, 8, 8)
    network(volume).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())


@pytest.mark.parametrize(
    "wrong", [{"depth": 0}, {"n_classes": 0}, {"decoder_dropout": 1.0}, {"space_to_depth": 0}]
)
def test_impossible_settings_are_refused_by_name(wrong):
    with pytest.raises(ModelFileError, match=next(iter(wrong))):
        UNet3DSettings(**wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inputs", [1, 2, 8])
@pytest.mark.parametrize(("outputs", "k"), [(2, 8), (4, 4), (8, 2), (16, 1)])
@pytest.mark.parametrize("groups", [1, 2, 3, 5])
def test_no_memory_beyond_a_row_is_looked_at(inputs, outputs, k, groups, dtype):
    torch.manual_seed(0)
    layer = torch.nn.Conv3d(inputs, outputs, 3, padding=1)
    z, y, x = 3, 5, k * groups
    n = (z + 2) * y * x * inputs
    identity = Affine.identity(layer.weight[:, 0, 0, 0, 0])
    with torch.inference_mode():
        conv = Conv3(layer, identity, k=k, dtype=dtype)
        for _ in range(3):
            for size in (256, 1024, 4096, 16384, 65536):
                _ = [torch.full((size,), float("nan")) for _ in range(20)]
            around = torch.full((n + 4096,), float("nan"), dtype=dtype)
            slab = around[2048 : 2048 + n].view(z + 2, y, x, inputs)
            slab.normal_()
            volume = slab.permute(3, 0, 1, 2)[None].float().contiguous()
            expected = layer(volume).relu()[0, :, 1:-1].permute(1, 2, 3, 0)
            tolerance = 1e-5 if dtype == torch.float32 else 0.03
            assert torch.allclose(conv(slab).float(), expected, atol=tolerance)


@pytest.mark.parametrize("by_onednn", [True, False])
@pytest.mark.parametrize("width", [4, 12])
def test_a_convolution_in_two_parts_equals_that_of_joined_channels(by_onednn, width, monkeypatch):
    if not by_onednn:
        monkeypatch.setattr("deepict_dask.models.arranged._onednn_takes", lambda _: False)
    torch.manual_seed(0)
    layer = torch.nn.Conv3d(8, 4, 3, padding=1)
    after = Affine(torch.rand(4) + 0.5, torch.randn(4))
    slab = torch.randn(5, 6, width, 8)
    with torch.inference_mode():
        conv = Conv3(layer, after, k=4, kept=4)
        onto = conv.begun(slab[..., :4].contiguous())
        found = conv.slab(slab[..., 4:].contiguous(), torch.float32, onto)[1:-1]
        whole = layer(slab.permute(3, 0, 1, 2)[None]).relu()[0, :, 1:-1].permute(1, 2, 3, 0)
    assert torch.allclose(found, whole * after.scale + after.shift, atol=1e-5)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("planes", [8, 16, 200])
def test_a_box_of_a_window_has_the_scores_of_the_whole(depth, planes, monkeypatch):
    monkeypatch.setattr("deepict_dask.models.inference.planes_at_once", lambda *_: planes)
    network = random_network(depth=depth, initial_features=2, n_classes=2)
    window = torch.randn(40, 48, 56)
    with torch.inference_mode():
        expected = network(window[None, None])[0].sigmoid()
    arranged = InferenceUNet3D(network)
    for low, high in (((0, 0, 0), (40, 48, 56)), ((9, 17, 30), (10, 18, 31)),
                      ((0, 21, 3), (17, 48, 40)), ((24, 0, 0), (40, 1, 56))):  # fmt: skip
        box = Box(low, high)
        found = arranged.scores(window, box)
        assert float((found - expected[(slice(None), *box.slices)]).abs().max()) <= 1e-6


@pytest.mark.parametrize("planes", [4, 12])
def test_a_box_that_cuts_cells_has_the_scores_of_the_whole(planes, monkeypatch):
    monkeypatch.setattr("deepict_dask.models.inference.planes_at_once", lambda *_: planes)
    network = random_network(depth=2, initial_features=2, n_classes=2, space_to_depth=2)
    window = torch.randn(40, 48, 56)
    with torch.inference_mode():
        expected = network(window[None, None])[0].sigmoid()
    arranged = InferenceUNet3D(network)
    for low, high in (((0, 0, 0), (40, 48, 56)), ((9, 17, 31), (10, 18, 32)),
                      ((3, 21, 0), (18, 48, 41)), ((25, 0, 0), (40, 1, 55))):  # fmt: skip
        box = Box(low, high)
        found = arranged.scores(window, box)
        assert float((found - expected[(slice(None), *box.slices)]).abs().max()) <= 1e-6


def test_a_decoder_computes_less_than_the_window():
    parts = decoded_parts(Box((24, 24, 24), (152, 280, 280)), (176, 304, 304), depth=2, planes=4)
    assert parts[0].box == Box((20, 20, 20), (156, 284, 284))
    assert parts[1].box == Box((8, 8, 8), (80, 144, 144))
    assert parts[2].box == Box((0, 0, 0), (44, 76, 76))
