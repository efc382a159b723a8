"""Are patches that go apart those of one batch, and the same on any number of threads?"""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

from stand_in_training import Interrupted, Spots, killed, same_weights, small_config  # noqa: E402

from deepict_dask.models.deepetpicker import DeepETPicker, DeepETPickerSettings  # noqa: E402
from deepict_dask.models.unet3d import UNet3D, UNet3DSettings  # noqa: E402
from deepict_dask.training.apart import PatchesApart  # noqa: E402
from deepict_dask.training.fit import train_network  # noqa: E402
from deepict_dask.training.mirror import tie_mirrored  # noqa: E402

PLAIN = {"depth": 1, "initial_features": 2, "batch_norm": False}


def unet(**settings):
    torch.manual_seed(0)
    asked = {"depth": 1, "initial_features": 4, "n_classes": 2} | settings
    return UNet3D(UNet3DSettings(**asked)).train()


def gradients(network, call, patches):
    """Return logits and gradients of a loss over the whole batch."""
    network.zero_grad()
    logits = call(patches)
    weights = torch.linspace(-1, 1, logits.numel()).reshape(logits.shape)
    ((logits * weights).sum() / logits.square().sum()).backward()
    return logits.detach(), [weight.grad.clone() for weight in network.parameters()]


def patches(n=3, edge=8):
    return torch.rand(n, 1, edge, edge, edge, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["plain", "space_to_depth", "mirror_symmetric"])
def test_without_norms_logits_and_gradients_are_those_of_the_batch(kind):
    network = unet(
        batch_norm=False,
        initial_features=8 if kind == "mirror_symmetric" else 4,
        space_to_depth=2 if kind == "space_to_depth" else 1,
    )
    if kind == "mirror_symmetric":
        tie_mirrored(network, fresh=True)
    whole = gradients(network, network, patches())
    apart = gradients(network, PatchesApart(network), patches())
    torch.testing.assert_close(apart[0], whole[0])
    assert len(apart[1]) == len(whole[1]) > 5
    for ours, theirs in zip(apart[1], whole[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_norms_are_of_single_patches_and_keep_those_of_the_first():
    network = unet(batch_norm=True)
    alone = [copy.deepcopy(network) for _ in range(3)]
    found = PatchesApart(network)(patches())
    for number, (one, patch) in enumerate(zip(alone, patches().split(1), strict=True)):
        torch.testing.assert_close(found[number : number + 1], one(patch))
    for name, kept in network.named_buffers():
        torch.testing.assert_close(kept, dict(alone[0].named_buffers())[name])
    whole = copy.deepcopy(alone[0])
    assert not torch.allclose(found, whole(patches()), atol=1e-3)


def test_any_number_of_threads_gives_the_same_bytes():
    torch.manual_seed(0)
    network = DeepETPicker(DeepETPickerSettings(n_classes=3, features=(4, 6, 8, 10)))
    threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            with torch.autocast("cpu", torch.bfloat16):
                found.append(gradients(network, PatchesApart(network), patches(3, 16)))
    finally:
        torch.set_num_threads(threads)
    for logits, grads in found[1:]:
        assert torch.equal(logits, found[0][0])
        assert all(torch.equal(a, b) for a, b in zip(grads, found[0][1], strict=True))


def test_each_call_has_its_own_gradients():
    """Two batches before one step back: what a patch needs is kept with its own logits."""
    network = unet(batch_norm=False)
    apart = PatchesApart(network)
    first, second = patches()[:2], patches()[1:]
    loss = apart(first).square().mean() + 2 * apart(second).square().mean()
    loss.backward()
    found = [weight.grad.clone() for weight in network.parameters()]
    network.zero_grad()
    (network(first).square().mean() + 2 * network(second).square().mean()).backward()
    for ours, weight in zip(found, network.parameters(), strict=True):
        torch.testing.assert_close(ours, weight.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("norms", [False, True])
def test_a_training_that_was_killed_reaches_the_same_weights(tmp_path, norms):
    wishes = {"network": PLAIN | {"batch_norm": norms}, "patches_apart": True, "batch_size": 2}
    whole = train_network(small_config(tmp_path / "whole", **wishes), data=Spots())
    config = small_config(tmp_path / "killed", **wishes)
    with pytest.raises(RuntimeError, match="killed"):
        train_network(config, data=Interrupted(5, killed), checkpoint_steps=2)
    assert same_weights(train_network(config, data=Spots()).model, whole.model)


def test_dropout_is_refused(tmp_path):
    network = {"depth": 1, "initial_features": 2, "encoder_dropout": 0.2}
    with pytest.raises(ValueError, match=r"patches_apart: expected a network without dropout"):
        small_config(tmp_path, network=network, patches_apart=True)
