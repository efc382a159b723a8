"""The network: its names, how far it sees, and its arrangement for prediction."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepict_dask.core.errors import ModelFileError
from deepict_dask.models.inference import InferenceUNet3D
from deepict_dask.models.unet3d import UNet3D, UNet3DSettings, needed_interval


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
def test_the_halo_is_derived_from_the_depth(depth, halo):
    assert UNet3DSettings(depth=depth).halo == halo


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
    ("depth", "features", "classes", "batch_norm"),
    [(1, 2, 3, True), (2, 4, 1, True), (2, 4, 1, False), (3, 3, 2, True), (2, 16, 1, True)],
)
def test_the_prediction_arrangement_equals_the_network(depth, features, classes, batch_norm):
    network = random_network(
        depth=depth, initial_features=features, n_classes=classes, batch_norm=batch_norm
    )
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


@pytest.mark.parametrize("wrong", [{"depth": 0}, {"n_classes": 0}, {"decoder_dropout": 1.0}])
def test_impossible_settings_are_refused_by_name(wrong):
    with pytest.raises(ModelFileError, match=next(iter(wrong))):
        UNet3DSettings(**wrong)


@pytest.mark.parametrize("inputs", [1, 2, 8])
@pytest.mark.parametrize(("outputs", "k"), [(2, 8), (4, 4), (8, 2), (16, 1)])
@pytest.mark.parametrize("groups", [1, 2, 3, 5])
def test_no_memory_beyond_a_row_is_looked_at(inputs, outputs, k, groups):
    from deepict_dask.models.inference import _Affine, _Conv3

    torch.manual_seed(0)
    layer = torch.nn.Conv3d(inputs, outputs, 3, padding=1)
    z, y, x = 3, 5, k * groups
    n = z * y * x * inputs
    with torch.inference_mode():
        conv = _Conv3(layer, _Affine.identity(layer.weight[:, 0, 0, 0, 0]), k=k)
        for _ in range(3):
            for size in (256, 1024, 4096, 16384, 65536):
                _ = [torch.full((size,), float("nan")) for _ in range(20)]
            around = torch.full((n + 4096,), float("nan"))
            around[2048 : 2048 + n].normal_()
            strides = (n, 1, y * x * inputs, x * inputs, inputs)
            volume = around.as_strided((1, inputs, z, y, x), strides, storage_offset=2048)
            expected = layer(volume.contiguous()).relu()
            assert torch.allclose(conv(volume), expected, atol=1e-5)
