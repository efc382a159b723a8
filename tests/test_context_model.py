"""Does the 2D model of the demonstration learn slices, and does context mean what it says?"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from deepict_dask.core.errors import ConfigError
from deepict_dask.models.checkpoint import load_checkpoint
from deepict_dask.models.registry import bundled_models
from deepict_dask.models.unet2d import UNet2DSettings
from deepict_dask.synthetic import CONTEXT_CELL, PARTICLE_NAMES, CellSettings
from deepict_dask.training import TrainSettings, demo_model_2d, standardized, train_unet2d
from deepict_dask.training.demo_model import DemoSettings
from deepict_dask.training.demo_model_2d import (
    ContextSettings,
    MaskLimits,
    choose_mask_limits,
    cytosol_mask,
    cytosol_scores,
    picks_in_region,
)

TINY = TrainSettings(
    UNet2DSettings(depth=1, initial_features=4),
    steps=5,
    patch_shape=(1, 16, 16),
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
def half():
    """A volume whose left half is darker, and where that is."""
    target = np.zeros((6, 32, 32), np.uint8)
    target[..., :16] = 1
    noise = np.random.default_rng(0).normal(0, 0.5, target.shape)
    return (noise - target).astype(np.float32), target[None]


# --- training on slices


@pytest.mark.parametrize("both_sides", [False, True])
def test_the_loss_falls_and_the_network_finds_the_compartment(half, both_sides):
    volume, target = half
    losses: list[float] = []
    settings = replace(TINY, steps=80, learning_rate=1e-2, batch_size=4, both_sides=both_sides)
    network = train_unet2d(
        [volume], [target], settings, progress=lambda _, loss: losses.append(loss)
    )
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])
    found = cytosol_scores(network, volume) > 0.5
    assert (found == (target[0] > 0)).mean() > 0.9


def test_the_same_seed_gives_the_same_2d_weights_and_another_seed_does_not(half):
    first, again, other = (
        train_unet2d([half[0]], [half[1]], replace(TINY, seed=seed)).state_dict()
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["out_conv.weight"], other["out_conv.weight"])


def test_patches_of_a_2d_network_are_one_slice():
    with pytest.raises(ConfigError, match="one slice thick"):
        TrainSettings(UNet2DSettings(depth=1), patch_shape=(16, 16, 16))
    with pytest.raises(ConfigError, match="multiples of 16"):
        TrainSettings(UNet2DSettings(depth=4), patch_shape=(1, 40, 32))


def test_scores_of_slices_do_not_depend_on_their_batch(half):
    network = train_unet2d([half[0]], [half[1]], TINY)
    volume = np.concatenate([half[0]] * 4)
    whole = cytosol_scores(network, volume)
    with torch.inference_mode():
        one = network(torch.from_numpy(standardized(volume))[17][None, None])
    assert np.allclose(whole[17], torch.sigmoid(one)[0, 0].numpy(), atol=1e-6)


# --- mask and context


def test_the_chosen_limits_smooth_away_what_is_wrong_in_single_slices():
    true = np.zeros((24, 8, 8), bool)
    true[..., :4] = True
    scores = np.where(true, 0.65, 0.25).astype(np.float32)
    scores[5], scores[17] = 0.0, 0.9
    limits = choose_mask_limits([(scores, true)])
    assert limits.z_sigma > 0
    assert np.array_equal(cytosol_mask(scores, limits), true)


def test_a_mask_leaves_the_scores_as_they_are():
    scores = np.random.default_rng(0).random((6, 4, 4), np.float32)
    before = scores.copy()
    cytosol_mask(scores, MaskLimits(0.5, 2.0))
    assert np.array_equal(scores, before)


def test_context_drops_picks_that_lie_farther_from_the_region_than_allowed():
    mask = np.zeros((9, 9, 9), bool)
    mask[4, 4, 4] = True
    points = np.array([[4.0, 4.0, 4.0], [6.4, 2.0, 4.0], [4.0, 4.0, 7.0], [0.0, 0.0, 0.0]])
    assert picks_in_region(points, mask, 0).tolist() == points[:1].tolist()
    assert picks_in_region(points, mask, 2).tolist() == points[:2].tolist()
    assert picks_in_region(points[:0], mask, 2).shape == (0, 3)


# --- the bundled model


def test_the_groups_of_cells_share_no_seed_and_the_3d_model_saw_no_held_out_one():
    settings, other = ContextSettings(), DemoSettings()
    groups = (settings.train_seeds, settings.tune_seeds, settings.held_out_seeds)
    seeds = [seed for group in (*groups, (settings.cell.seed,)) for seed in group]
    assert len(set(seeds)) == len(seeds)
    unseen = {*settings.held_out_seeds, settings.cell.seed}
    assert not unseen & {*other.train_seeds, *other.tune_seeds}
    assert settings.cell == CONTEXT_CELL


def test_a_2d_model_is_written_with_its_card(tmp_path, monkeypatch, capsys):
    tiny = ContextSettings(
        cell=CellSettings((48, 64, 64), n_ribosomes=3, n_fas=1, n_distractors_each=0),
        train=replace(TINY, steps=2),
        train_seeds=(1,),
        tune_seeds=(2,),
        held_out_seeds=(3,),
    )
    monkeypatch.setattr(demo_model_2d, "ContextSettings", lambda: tiny)
    demo_model_2d.main([str(tmp_path / "model.safetensors")])
    model = load_checkpoint(tmp_path / "model.safetensors")
    assert model.class_names == ("cytosol",)
    assert set(model.card["recommended"]["cytosol"]) == {"threshold", "z_sigma"}
    assert set(model.card["figures"]) == {"seed 2023", "seed 3"}
    assert model.card["settings"]["train"]["steps"] == 2
    assert json.loads(capsys.readouterr().out) == model.card


def test_the_bundled_2d_model_was_made_with_the_settings_of_its_script():
    path = bundled_models()["demo_cytosol"]
    model = load_checkpoint(path)
    settings = ContextSettings()
    assert path.stat().st_size < 1_500_000
    assert model.network.settings == settings.train.network
    assert model.card["training_steps"] == settings.train.steps
    assert model.card["settings"]["train_seeds"] == list(settings.train_seeds)


@pytest.mark.parametrize("name", PARTICLE_NAMES)
def test_on_every_measured_cell_context_raised_precision_at_hardly_any_recall(name):
    """What the card of the bundled model says; `tests/test_demo.py` measures anew."""
    figures = load_checkpoint(bundled_models()["demo_cytosol"]).card["figures"]
    assert len(figures) == 3
    for of_cell in figures.values():
        alone, context = of_cell[name]["alone"], of_cell[name]["with_context"]
        assert context["precision"] > alone["precision"]
        assert context["recall"] >= alone["recall"] - 0.02
