"""Does training do what its settings say?"""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from deepict_dask.core.errors import ConfigError, VoxelValueError
from deepict_dask.models.checkpoint import load_checkpoint
from deepict_dask.models.registry import bundled_models
from deepict_dask.synthetic import CellSettings
from deepict_dask.training import demo_model, dice_loss, sphere_target
from deepict_dask.training.demo_model import PARTICLE_RECIPE, DemoSettings
from deepict_dask.training.score_limits import (
    PickLimits,
    choose_pick_limits,
    find_picks,
    standardized,
)

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = PARTICLE_RECIPE | {
    "network": {"depth": 1, "initial_features": 2},
    "patches": {"shape": [8, 8, 8], "sampling": "uniform"},
    "optimizer": {"epochs": 1, "steps_per_epoch": 2, "batch_size": 1},
}


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


# --- whole small volumes


def test_a_standardized_volume_has_mean_0_and_deviation_1():
    volume = standardized(np.random.default_rng(0).normal(5e3, 7, (8, 9, 10)).astype(np.float32))
    assert volume.dtype == np.float32
    assert abs(volume.mean()) < 1e-3
    assert volume.std() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("value", [3.0, np.nan])
def test_a_flat_or_broken_volume_is_refused(value):
    with pytest.raises(
        VoxelValueError, match="expected a finite mean and a standard deviation above 0"
    ):
        standardized(np.full((4, 4, 4), value))


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
    limits = choose_pick_limits([(score, np.array([[22.5, 22.5, 22.5]]))], match_radius=2.0)
    assert 64 < limits.min_size <= 216 <= limits.max_size


def test_the_groups_of_cells_share_no_seed():
    settings = DemoSettings()
    groups = (settings.train_seeds, settings.tune_seeds, settings.held_out_seeds)
    seeds = [seed for group in (*groups, (settings.cell.seed,)) for seed in group]
    assert len(set(seeds)) == len(seeds)
    assert settings.cell == CellSettings()


def test_the_bundled_model_was_made_with_the_settings_of_its_script():
    model = load_checkpoint(bundled_models()["demo_ribosome_fas"])
    assert model.card["settings"] == json.loads(json.dumps(asdict(DemoSettings())))
    wanted = PARTICLE_RECIPE["optimizer"]
    assert model.card["steps"] == wanted["epochs"] * wanted["steps_per_epoch"]
    assert len(model.card["figures"]) == 3


def test_a_demonstration_model_is_written_with_its_card(tmp_path, monkeypatch, capsys):
    tiny = DemoSettings(
        cell=CellSettings((48, 64, 64), n_ribosomes=3, n_fas=1, n_distractors_each=0),
        train=TINY,
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
    assert model.card["settings"]["train"]["network"]["depth"] == 1
    assert model.card["steps"] == 2
    assert json.loads(capsys.readouterr().out) == model.card
