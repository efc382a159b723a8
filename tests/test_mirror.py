"""Is a network whose kernels are tied the same in every mirror image, and trained as it says?"""

from __future__ import annotations

import itertools

import pytest

torch = pytest.importorskip("torch")

from stand_in_training import Spots, small_config  # noqa: E402
from torch.nn import functional  # noqa: E402

from deepict_dask.core.errors import ConfigError  # noqa: E402
from deepict_dask.models.checkpoint import load_checkpoint  # noqa: E402
from deepict_dask.models.deepetpicker import DeepETPicker, DeepETPickerSettings  # noqa: E402
from deepict_dask.models.unet3d import UNet3D, UNet3DSettings  # noqa: E402
from deepict_dask.training.fit import train_network  # noqa: E402
from deepict_dask.training.mirror import asymmetry, settle_mirrored, tie_mirrored  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

MIRRORINGS = [axes for n in range(4) for axes in itertools.combinations((2, 3, 4), n)]
MIRRORED = {"depth": 1, "initial_features": 8, "mirror_symmetric": True}


def largest_difference(network, volume):
    """Compare scores of mirrored volumes with mirrored scores."""
    with torch.no_grad():
        scores = network(volume)
        return max(
            float((network(volume.flip(axes)) - scores.flip(axes)).abs().max())
            for axes in MIRRORINGS
        )


def tied(network=None, *, depth=2, edge=1, batch_norm=True, seed=0):
    torch.manual_seed(seed)
    network = network or UNet3D(UNet3DSettings(depth, 8, 2, batch_norm, space_to_depth=edge))
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm3d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    tie_mirrored(network, fresh=True)
    settle_mirrored(network)
    return network.eval()


@pytest.mark.parametrize("edge", [1, 2, 4])
@pytest.mark.parametrize("depth", [1, 2])
def test_first_weights_give_mirrored_scores_of_a_mirrored_volume(depth, edge):
    network = tied(depth=depth, edge=edge)
    volume = torch.randn(1, 1, *[2 * n * edge * 2**depth for n in (1, 2, 3)])
    assert largest_difference(network, volume) < 1e-5
    assert asymmetry(network) == 0
    with torch.no_grad():
        network.encoder[0][0].weight[0] += 0.1
    assert largest_difference(network, volume) > 1e-3


@pytest.mark.parametrize("features", [(8, 16), (16, 8, 24)])
@pytest.mark.parametrize("n_classes", [1, 3])
def test_of_deepetpicker_too_with_its_places_and_pyramid(features, n_classes):
    torch.manual_seed(2)
    settings = DeepETPickerSettings(n_classes, features, block_size=16, pad_size=2)
    network = tied(DeepETPicker(settings))
    tile = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert network(tile).std() > 1e-3
        assert largest_difference(network, tile) < 1e-5
        assert asymmetry(network) == 0
        places = network.encoders[1].basic_module.conv1.conv.weight[:, -3:]
        assert places.abs().min() > 0
        places.abs_()  # places that do not change their sign
    assert largest_difference(network, tile) > 1e-4


def test_first_weights_keep_their_spread():
    torch.manual_seed(0)
    settings = UNet3DSettings(2, 16, 1)
    network, plain = UNet3D(settings), UNet3D(settings)
    tie_mirrored(network, fresh=True)
    for (name, weight), other in zip(network.named_parameters(), plain.parameters(), strict=True):
        if weight.ndim > 1 and weight.numel() > 1000:
            ratio = (weight.std() / other.std()).item()
            assert ratio == pytest.approx(1, abs=0.15), name


@pytest.mark.parametrize("edge", [1, 2])
def test_the_gradient_is_the_mean_over_the_eight_mirrored_patches(edge):
    network = tied(edge=edge, seed=1).double()
    patch = torch.randn(1, 1, *[8 * edge] * 3, dtype=torch.float64)
    target = (torch.rand(1, 2, *patch.shape[2:]) > 0.7).double()

    def gradients(network, axes):
        network.zero_grad()
        logits = network(patch.flip(axes))
        functional.binary_cross_entropy_with_logits(logits, target.flip(axes)).backward()
        return [parameter.grad.clone() for parameter in network.parameters()]

    found = gradients(network, ())
    free = UNet3D(network.settings).double().eval()
    free.load_state_dict(network.state_dict())
    of_each = [gradients(free, axes) for axes in MIRRORINGS]
    for ours, *theirs in zip(found, *of_each, strict=True):
        mean = torch.stack(theirs).mean(0)
        assert (ours - mean).norm() < 1e-9 * mean.norm()
        if ours.shape[2:] == (3, 3, 3):
            assert (theirs[0] - mean).norm() > 1e-3 * mean.norm()


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
@pytest.mark.parametrize("edge", [1, 2])
def test_a_trained_model_is_symmetric_and_one_trained_without_is_not(tmp_path, optimizer, edge):
    volume = torch.randn(1, 1, 8, 16, 24)
    for name in ("mirrored", "plain"):
        network = MIRRORED | {"space_to_depth": edge, "mirror_symmetric": name == "mirrored"}
        config = small_config(
            tmp_path / name, network=network, optimizer=optimizer, learning_rate=0.02
        )
        model = train_network(config, data=Spots()).model
        difference = largest_difference(load_checkpoint(model).network, volume)
        assert (difference < 1e-5) == (name == "mirrored"), difference


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_trained_model_of_deepetpicker_is_symmetric_too(tmp_path, optimizer, apart):
    tile = torch.randn(1, 1, 16, 16, 16)
    for mirrored in (True, False):
        network = {"kind": "deepetpicker", "width": 1 / 3, "mirror_symmetric": mirrored}
        config = small_config(
            tmp_path / str(mirrored), network=network,
            optimizer=optimizer, patches_apart=apart, learning_rate=0.02,
        )  # fmt: skip
        found = load_checkpoint(train_network(config, data=Spots()).model).network
        assert found.settings.features == ((8, 16, 24, 32) if mirrored else (8, 16, 24, 36))
        assert (largest_difference(found, tile) < 1e-5) == mirrored


def test_training_goes_on_from_a_symmetric_model_only(tmp_path):
    plain = train_network(
        small_config(tmp_path / "plain", network=MIRRORED | {"mirror_symmetric": False}),
        data=Spots(),
    )
    mirrored = train_network(small_config(tmp_path / "mirrored", network=MIRRORED), data=Spots())
    network = MIRRORED | {"start_from": str(mirrored.model)}
    again = small_config(tmp_path / "again", network=network, learning_rate=1e-9, epochs=1)
    found = load_checkpoint(train_network(again, data=Spots()).model).network
    before = load_checkpoint(mirrored.model).network
    assert torch.allclose(found.out_conv.weight, before.out_conv.weight, atol=1e-6)
    network = MIRRORED | {"start_from": str(plain.model)}
    with pytest.raises(ConfigError, match="was not trained with it; turn it off"):
        train_network(small_config(tmp_path / "refused", network=network), data=Spots())
    other = small_config(tmp_path / "other", network={"kind": "deepfinder", "width": 0.1})
    network["start_from"] = str(train_network(other, data=Spots()).model)
    with pytest.raises(ConfigError, match=r"found the deepfinder of network.start_from; turn"):
        train_network(small_config(tmp_path / "kind", network=network), data=Spots())


def test_what_cannot_be_mirrored_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"expected a multiple of 8 .*, found 12"):
        train_network(
            small_config(tmp_path / "a", network=MIRRORED | {"initial_features": 12}), data=Spots()
        )
    with pytest.raises(
        ValueError, match=r"mirror_symmetric: only of a 3D U-Net or a .*, not deepfinder"
    ):
        small_config(tmp_path / "b", network={"kind": "deepfinder", "mirror_symmetric": True})
