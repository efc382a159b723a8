"""Does the 2D model of the demonstration learn slices, and does context mean what it says?"""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from deepict_dask.models.checkpoint import load_checkpoint
from deepict_dask.models.registry import bundled_models
from deepict_dask.models.unet2d import UNet2D, UNet2DSettings
from deepict_dask.synthetic import CONTEXT_CELL, PARTICLE_NAMES, CellSettings
from deepict_dask.training import demo_model_2d
from deepict_dask.training.demo_model import DemoSettings
from deepict_dask.training.demo_model_2d import CYTOSOL_RECIPE, ContextSettings, picks_in_region
from deepict_dask.training.score_limits import (
    MaskLimits,
    choose_mask_limits,
    mask_of,
    standardized,
    whole_scores,
)

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = CYTOSOL_RECIPE | {
    "network": {"kind": "unet2d", "depth": 1, "initial_features": 4},
    "patches": {"shape": [1, 16, 16], "sampling": "uniform"},
    "optimizer": {"epochs": 1, "steps_per_epoch": 2, "batch_size": 1},
}


def test_scores_of_slices_do_not_depend_on_their_batch():
    network = UNet2D(UNet2DSettings(depth=1, initial_features=4)).eval()
    volume = np.random.default_rng(0).normal(0, 1, (24, 32, 32)).astype(np.float32)
    whole = whole_scores(network, volume)
    with torch.inference_mode():
        one = network(torch.from_numpy(standardized(volume))[17][None, None])
    assert whole.shape == (1, 24, 32, 32)
    assert np.allclose(whole[0, 17], torch.sigmoid(one)[0, 0].numpy(), atol=1e-6)


# --- mask and context


def test_the_chosen_limits_smooth_away_what_is_wrong_in_single_slices():
    true = np.zeros((24, 8, 8), bool)
    true[..., :4] = True
    scores = np.where(true, 0.65, 0.25).astype(np.float32)
    scores[5], scores[17] = 0.0, 0.9
    limits = choose_mask_limits([(scores, true)])
    assert limits.z_sigma > 0
    assert np.array_equal(mask_of(scores, limits), true)


def test_a_mask_leaves_the_scores_as_they_are():
    scores = np.random.default_rng(0).random((6, 4, 4), np.float32)
    before = scores.copy()
    mask_of(scores, MaskLimits(0.5, 2.0))
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
        train=TINY,
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
    assert model.card["steps"] == 2
    assert json.loads(capsys.readouterr().out) == model.card


def test_the_bundled_2d_model_was_made_with_the_settings_of_its_script():
    path = bundled_models()["demo_cytosol"]
    model = load_checkpoint(path)
    settings = ContextSettings()
    assert path.stat().st_size < 1_500_000
    assert model.card["settings"] == json.loads(json.dumps(asdict(settings)))
    wanted = CYTOSOL_RECIPE["optimizer"]
    assert model.card["steps"] == wanted["epochs"] * wanted["steps_per_epoch"]


@pytest.mark.parametrize("name", PARTICLE_NAMES)
def test_on_every_measured_cell_context_raised_precision_at_hardly_any_recall(name):
    """What the card of the bundled model says; `tests/test_demo.py` measures anew."""
    figures = load_checkpoint(bundled_models()["demo_cytosol"]).card["figures"]
    assert len(figures) == 3
    for of_cell in figures.values():
        alone, context = of_cell[name]["alone"], of_cell[name]["with_context"]
        assert context["precision"] > alone["precision"]
        assert context["recall"] >= alone["recall"] - 0.02
