"""Does training do what its settings say?"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from deepict_dask.core.errors import ConfigError, ShapeMismatchError, VoxelValueError
from deepict_dask.models.checkpoint import load_checkpoint
from deepict_dask.models.unet3d import UNet3DSettings
from deepict_dask.synthetic import CellSettings
from deepict_dask.training import (
    PatchSampler,
    TrainSettings,
    demo_model,
    dice_loss,
    sphere_target,
    standardized,
    train_unet3d,
)
from deepict_dask.training.demo_model import DemoSettings, PickLimits, choose_limits, find_picks

TINY = TrainSettings(
    UNet3DSettings(depth=1, initial_features=2),
    steps=5,
    patch_shape=(8, 8, 8),
    norm_batches=2,
    bfloat16=False,
)


@pytest.fixture(autouse=True)
def one_thread():
    """Two threads are many times slower than one while other programs run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def toy():
    """Bright balls in weak noise: learnable in a hundred steps."""
    rng = np.random.default_rng(3)
    centres = np.array([[6, 6, 6], [17, 17, 8], [8, 16, 18]])
    target = sphere_target(centres, (24, 24, 24), 4)
    volume = target + rng.normal(0, 0.3, target.shape)
    return volume.astype(np.float32), target[None]


# --- targets


def test_a_ball_of_eight_voxels_holds_every_voxel_within_the_radius_and_no_other():
    target = sphere_target(np.array([[10, 11, 12]]), (24, 24, 24), 8)
    grid = np.indices(target.shape) - np.array([10, 11, 12])[:, None, None, None]
    assert np.array_equal(target, (grid**2).sum(0) <= 64)
    assert target.sum() == 2109


def test_balls_are_clipped_at_the_border_and_a_ball_outside_leaves_nothing():
    clipped = sphere_target(np.array([[0, 0, 0]]), (6, 6, 6), 2)
    whole = sphere_target(np.array([[3, 3, 3]]), (6, 6, 6), 2)
    assert np.array_equal(clipped[:3, :3, :3], whole[3:, 3:, 3:])
    assert not sphere_target(np.array([[50, 3, 3]]), (6, 6, 6), 2).any()
    assert not sphere_target(np.zeros((0, 3)), (6, 6, 6), 2).any()


def test_centres_between_voxels_are_not_rounded():
    target = sphere_target(np.array([[2.5, 2.0, 2.0]]), (5, 5, 5), 0.6)
    assert np.argwhere(target).tolist() == [[2, 2, 2], [3, 2, 2]]


@pytest.mark.parametrize(("centres", "radius"), [(np.zeros((1, 3)), 0), (np.zeros(3), 2)])
def test_impossible_targets_are_refused(centres, radius):
    with pytest.raises(ConfigError, match=r"positive radius and centres of shape \(n, 3\)"):
        sphere_target(centres, (4, 4, 4), radius)


# --- loss


def test_the_dice_loss_equals_the_value_by_hand():
    """Class 0: 1 - 2 (0.5 + 1) / (0.25 + 1 + 0.25 + 2); class 1: 1 - 0 / (1 + 1)."""
    scores = torch.tensor([[0.5, 1.0, 0.5], [1.0, 0.0, 0.0]]).reshape(1, 2, 1, 1, 3)
    targets = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]]).reshape(1, 2, 1, 1, 3)
    by_hand = ((1 - 3.0 / 3.5) + 1.0) / 2
    assert dice_loss(scores, targets).item() == pytest.approx(by_hand, abs=1e-6)


def test_the_dice_loss_sums_over_the_batch_before_it_divides():
    scores = torch.tensor([1.0, 0.0, 0.0, 1.0]).reshape(2, 1, 1, 1, 2)
    targets = torch.tensor([1.0, 1.0, 0.0, 0.0]).reshape(2, 1, 1, 1, 2)
    assert dice_loss(scores, targets).item() == pytest.approx(1 - 2 * 1 / (2 + 2))


def test_the_dice_loss_of_nothing_against_nothing_is_finite():
    nothing = torch.zeros(1, 1, 2, 2, 2)
    assert dice_loss(nothing, nothing).item() == 1.0


# --- patches


def test_a_standardized_volume_has_mean_0_and_deviation_1():
    volume = standardized(np.random.default_rng(0).normal(5e3, 7, (8, 9, 10)).astype(np.float32))
    assert volume.dtype == np.float32
    assert abs(volume.mean()) < 1e-3
    assert volume.std() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("value", [3.0, np.nan])
def test_a_flat_or_broken_volume_is_refused(value):
    with pytest.raises(VoxelValueError, match="finite voxels that differ"):
        standardized(np.full((4, 4, 4), value))


@pytest.mark.parametrize("quarter_turns", [False, True])
def test_patch_and_target_are_moved_alike(quarter_turns):
    volume = np.random.default_rng(1).random((12, 12, 12), np.float32)
    target = (volume > 0.5).astype(np.uint8)[None]
    sampler = PatchSampler([volume], [target], (6, 8, 8), quarter_turns=quarter_turns)
    patches, targets = sampler.batch(20, np.random.default_rng(2))
    assert np.array_equal(patches > 0.5, targets)


def test_without_quarter_turns_no_patch_has_y_and_x_exchanged():
    """A volume that changes along y only keeps doing so: the missing wedge stays round z."""
    volume = np.broadcast_to(np.arange(8, dtype=np.float32)[None, :, None], (8, 8, 8)).copy()
    empty = [np.zeros((1, 8, 8, 8), np.uint8)]
    still, _ = PatchSampler([volume], empty, (8, 8, 8)).batch(32, np.random.default_rng(0))
    assert (np.ptp(still, axis=(2, 4)) == 0).all()
    assert len(np.unique(still[:, 0, 0, 0, 0])) == 2
    turned, _ = PatchSampler([volume], empty, (8, 8, 8), quarter_turns=True).batch(
        32, np.random.default_rng(0)
    )
    assert np.ptp(turned, axis=4).any()


def test_centred_patches_always_hold_a_target_voxel():
    target = np.zeros((1, 32, 32, 32), np.uint8)
    target[0, 3, 30, 15] = 1
    volume = np.random.default_rng(0).random((32, 32, 32), np.float32)
    sampler = PatchSampler([volume], [target], (8, 8, 8), centred_fraction=1.0)
    _, targets = sampler.batch(50, np.random.default_rng(0))
    assert (targets.sum(axis=(1, 2, 3, 4)) == 1).all()


def test_the_same_seed_draws_the_same_patches(toy):
    volume, target = toy
    sampler = PatchSampler([volume], [target], (8, 8, 8))
    first, again = (sampler.batch(4, np.random.default_rng(9))[0] for _ in range(2))
    other = sampler.batch(4, np.random.default_rng(10))[0]
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_volumes_targets_and_patches_that_do_not_fit_are_refused():
    volume, target = np.zeros((8, 8, 8), np.float32), np.zeros((1, 8, 8, 8), np.uint8)
    with pytest.raises(ShapeMismatchError, match="1 volumes and 0 targets"):
        PatchSampler([volume], [])
    with pytest.raises(ShapeMismatchError, match="target 0 must be"):
        PatchSampler([volume], [target[0]], (4, 4, 4))
    with pytest.raises(ShapeMismatchError, match="smaller than a patch"):
        PatchSampler([volume], [target], (16, 8, 8))
    with pytest.raises(ConfigError, match="square in y and x"):
        PatchSampler([volume], [target], (4, 4, 8), quarter_turns=True)


# --- loop


def test_the_same_seed_gives_the_same_weights_and_another_seed_does_not(toy):
    first, again, other = (
        train_unet3d([toy[0]], [toy[1]], replace(TINY, seed=seed)).state_dict()
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["out_conv.weight"], other["out_conv.weight"])


def test_training_leaves_the_callers_random_state_alone(toy):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_unet3d([toy[0]], [toy[1]], TINY)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_loss_falls_and_the_network_finds_the_balls(toy, bfloat16):
    volume, target = toy
    losses: list[float] = []
    settings = replace(
        TINY, steps=120, learning_rate=1e-2, patch_shape=(16, 16, 16), bfloat16=bfloat16
    )
    network = train_unet3d(
        [volume], [target], settings, progress=lambda _, loss: losses.append(loss)
    )
    assert len(losses) == 120
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])
    with torch.inference_mode():
        found = network(torch.from_numpy(standardized(volume))[None, None])[0, 0] > 0
    common = (found.numpy() & (target[0] > 0)).sum()
    assert 2 * common / (found.sum().item() + target.sum()) > 0.8


def test_training_stops_when_its_seconds_are_spent(toy, monkeypatch):
    """The clock is replaced: one second passes at every look, so 3 seconds allow 2 steps."""
    ticks = iter(range(1000))
    monkeypatch.setattr("deepict_dask.training.loop.monotonic", lambda: next(ticks))
    steps: list[int] = []
    settings = replace(TINY, steps=50, max_seconds=3.0)
    train_unet3d([toy[0]], [toy[1]], settings, progress=lambda step, _: steps.append(step))
    assert steps == [1, 2]


def test_normalisation_is_measured_over_fresh_patches_without_touching_the_weights(toy):
    plain, measured = (
        train_unet3d([toy[0]], [toy[1]], replace(TINY, norm_batches=n)).state_dict() for n in (0, 4)
    )
    assert torch.equal(plain["out_conv.weight"], measured["out_conv.weight"])
    name = "encoder.0.2.running_mean"
    assert not torch.equal(plain[name], measured[name])


def test_settings_that_cannot_work_are_refused(toy):
    with pytest.raises(ConfigError, match="steps must be positive"):
        TrainSettings(steps=0)
    with pytest.raises(ConfigError, match="multiples of 4"):
        TrainSettings(patch_shape=(66, 64, 64))
    with pytest.raises(ConfigError, match="1 classes"):
        train_unet3d([toy[0]], [np.repeat(toy[1], 2, axis=0)], TINY)


# --- demonstration model


def test_picks_are_centroids_of_components_within_the_limits():
    score = np.zeros((16, 16, 16), np.float32)
    score[1:3, 1:3, 1:3] = 0.9
    score[6:10, 6:10, 6:10] = 0.9
    assert find_picks(score, PickLimits(0.5, 9, 64)).tolist() == [[7.5, 7.5, 7.5]]
    assert len(find_picks(score, PickLimits(0.5, 8, 64))) == 2
    assert len(find_picks(score, PickLimits(0.5, 8, 63))) == 1


def test_chosen_limits_drop_what_is_small_and_false():
    score = np.zeros((32, 32, 32), np.float32)
    score[2:6, 2:6, 2:6] = 0.95
    score[20:26, 20:26, 20:26] = 0.95
    limits = choose_limits([(score, np.array([[22.5, 22.5, 22.5]]))], match_radius=2.0)
    assert 64 < limits.min_size <= 216 <= limits.max_size


def test_the_groups_of_cells_share_no_seed():
    settings = DemoSettings()
    groups = (settings.train_seeds, settings.tune_seeds, settings.held_out_seeds)
    seeds = [seed for group in (*groups, (settings.cell.seed,)) for seed in group]
    assert len(set(seeds)) == len(seeds)
    assert settings.cell == CellSettings()


def test_a_demonstration_model_is_written_with_its_card(tmp_path, monkeypatch, capsys):
    tiny = DemoSettings(
        cell=CellSettings((48, 64, 64), n_ribosomes=3, n_fas=1, n_distractors_each=0),
        train=replace(TINY, network=UNet3DSettings(1, 2, 2), steps=2),
        train_seeds=(1,),
        tune_seeds=(2,),
        held_out_seeds=(3,),
    )
    monkeypatch.setattr(demo_model, "DemoSettings", lambda: tiny)
    demo_model.main([str(tmp_path / "model.safetensors")])
    model = load_checkpoint(tmp_path / "model.safetensors")
    assert model.class_names == ("ribosome", "fas")
    assert set(model.card["recommended"]) == {"ribosome", "fas"}
    assert set(model.card["figures"]) == {"seed 2023", "seed 3"}
    assert model.card["settings"]["train"]["steps"] == 2
    assert json.loads(capsys.readouterr().out) == model.card
