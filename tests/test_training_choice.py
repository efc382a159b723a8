"""Is the best epoch chosen by what was asked for, and do recipes train as their programs do?"""

from __future__ import annotations

import mrcfile
import numpy as np
import pytest
import torch
from stand_in_training import Spots, small_config

from deepict_dask.config.training import TrainConfig
from deepict_dask.core.errors import ConfigError
from deepict_dask.models.checkpoint import load_checkpoint, save_model
from deepict_dask.training.data import open_training_data
from deepict_dask.training.f1_alpha import ParticlesOfPatch, PickCounter, count_picks, f1_alpha
from deepict_dask.training.fit import train_network
from deepict_dask.training.losses import loss_function
from deepict_dask.training.module import TrainingModule
from deepict_dask.training.networks import network_to_train
from deepict_dask.training.validation import Validated, validated

SHAPE = (48, 48, 48)
WHOLE = (48, 48, 48)
CLASSES = {"ribosome": {"picks": "picks", "radius_voxels": 3}}


def blobs(*centres, shape=SHAPE):
    scores = np.zeros(shape, np.float32)
    for z, y, x in centres:
        scores[z - 2 : z + 3, y - 2 : y + 3, x - 2 : x + 3] = 0.8
    return scores


def points(*centres):
    return np.array(centres, np.float64).reshape(-1, 3)


def counts(scores, particles, end=WHOLE, radius=3.0):
    return count_picks(scores, particles, radius, end).tolist()


@pytest.fixture
def cells(tmp_path):
    """Two tomograms of noise, seven particles each, and a table of them."""
    rng = np.random.default_rng(0)
    for name in "ab":
        mrcfile.write(tmp_path / f"{name}.mrc", rng.normal(size=(24, 48, 48)).astype(np.float32))
        rows = [f"{x},24,12" for x in (4, 12, 20, 28, 36, 44)] + ["24,12,12"]
        (tmp_path / f"{name}.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "cells.csv").write_text("name,tomogram,picks\na,a.mrc,a.csv\nb,b.mrc,b.csv\n")
    return tmp_path


def config(folder, **changes):
    settings = {
        "tomograms": folder / "cells.csv", "output": folder / "model", "classes": CLASSES,
        "patches": {"shape": (24, 48, 48)}, "voxel_spacing_angstrom": 10.0,
    }  # fmt: skip
    return TrainConfig.model_validate(settings | changes)


def test_f1_alpha_weighs_the_recall_by_its_third_power():
    assert f1_alpha(0.75, 0.5) == pytest.approx(0.75 * 0.125 / (0.75 + 0.125))
    assert f1_alpha(0.5, 0.75) > f1_alpha(0.75, 0.5)
    assert f1_alpha(0.8, 0.5, alpha=1) == pytest.approx(0.4 / 1.3)  # half of F1


def test_right_false_and_missed_picks_are_counted_by_hand():
    scores = blobs((12, 12, 12), (12, 12, 30))
    assert counts(scores, points((13, 12, 11), (30, 30, 30))) == [2, 1, 2, 1]


def test_a_pick_as_far_away_as_the_radius_is_false():
    assert counts(blobs((20, 20, 20)), points((20, 20, 22.9))) == [1, 1, 1, 1]
    assert counts(blobs((20, 20, 20)), points((20, 20, 23))) == [1, 0, 1, 0]


def test_what_lies_at_the_sides_of_a_patch_is_not_counted():
    """A sixth of 48 voxels is 8: of the border the first that counts, and the last."""
    for x, counted in ((7, 0), (8, 1), (39, 1), (40, 0)):
        assert counts(blobs((20, 20, x)), points((20, 20, x))) == [counted] * 4


def test_a_particle_beyond_the_counted_part_may_make_a_pick_right():
    assert counts(blobs((20, 20, 39)), points((20, 20, 41))) == [1, 1, 0, 0]
    assert counts(blobs((20, 20, 41)), points((20, 20, 39))) == [0, 0, 1, 1]


def test_mirrored_voxels_of_a_patch_are_not_counted():
    assert counts(blobs((20, 20, 30)), points(), end=(48, 48, 30)) == [0, 0, 0, 0]
    assert counts(blobs((20, 20, 30)), points(), end=(48, 48, 31)) == [1, 0, 0, 0]


def test_scores_of_a_half_are_no_picks():
    assert counts(blobs((20, 20, 20)) * 0.5 / 0.8, points((20, 20, 20))) == [0, 0, 1, 0]


def test_patches_are_pooled_and_classes_without_particles_are_left_out():
    first = ParticlesOfPatch((points((20, 20, 20)), points(), None), WHOLE)
    second = ParticlesOfPatch((points((20, 20, 20), (20, 36, 20)), points(), None), WHOLE)
    counter = PickCounter([first, second], [3.0, 3.0, None])
    nothing = np.zeros(SHAPE, np.float32)
    scores = np.stack([
        [blobs((20, 20, 20)), nothing, nothing],
        [blobs((20, 20, 20), (36, 20, 20), (20, 20, 36)), nothing, nothing],
    ])  # fmt: skip
    counter.add(scores[:1])
    counter.add(scores[1:])
    found = counter.figures(("a", "b", "c"))
    precision, recall = 2 / 4, 2 / 3
    expected = precision * recall**3 / (precision + recall**3)
    assert found == {"a": pytest.approx(expected), "b": None, "c": None}


class Given(torch.nn.Module):
    """A network that answers its input."""

    def forward(self, patches):
        return patches


def test_validation_has_f1_alpha_where_it_is_asked_for():
    scores = blobs((20, 20, 20), (36, 20, 20)).clip(0.1)
    logits = torch.from_numpy(np.log(scores / (1 - scores)))[None, None]
    patch = ParticlesOfPatch((points((20, 20, 20)),), WHOLE)
    found = validated(
        Given(), [(logits, (logits > 0).float())], loss_function("dice"), ("a",), softmax=False,
        to_tensors=lambda pair: pair, counter=PickCounter([patch], [3.0]),
    )  # fmt: skip
    assert found.f1_alpha == {"a": pytest.approx(0.5 * 1 / 1.5)}
    assert found.row()["val_f1_alpha"] == found.row()["val_f1_alpha_a"] == found.f1_alpha["a"]
    assert found.score("f1_alpha") == found.mean_f1_alpha
    assert (found.score("loss"), found.score("dice")) == (-found.loss, found.mean_dice)


def test_as_long_as_nothing_is_picked_the_loss_decides_and_any_pick_is_better():
    early, later = (Validated(loss, {}, {}, {}, {"a": 0.0}) for loss in (0.9, 0.8))
    picked = Validated(0.95, {}, {}, {}, {"a": 0.01})
    chosen = [one.score("f1_alpha") for one in (early, later, picked)]
    assert chosen == sorted(chosen)
    assert Validated(0.5, {}, {}, {}, {"a": None}).score("f1_alpha") is None


def test_true_targets_as_scores_have_the_highest_f1_alpha(cells):
    data = open_training_data(config(cells, validation={"tomograms": ["b"]}))
    ((_, targets),) = data.validation_batches()
    for scores, expected in ((targets, 0.5), (np.roll(targets, 9, axis=3), 0.0)):
        counter = data.pick_counter()
        counter.add(scores)
        assert counter.figures(data.class_names) == {"ribosome": expected}


def test_only_particles_of_the_side_that_is_held_out_are_counted(cells):
    asked = config(
        cells, validation={"fraction": 0.5, "axis": "x"}, patches={"shape": (24, 24, 24)}
    )
    data = open_training_data(asked)
    patches = [patch for patch, _ in zip(data.pick_counter()._patches, range(4), strict=True)]
    rows = {tuple(row) for patch in patches for row in patch.centres[0].tolist()}
    # x = 28, 36, 44 of the second half, which begins at 24; and that at x = 24, y = 12
    assert {(z, x) for z, _, x in rows} == {(12, 4), (12, 12), (12, 20), (12, 0)}


class Chosen(Spots):
    """Data whose picks have the F1-alpha that the test wants, epoch by epoch."""

    def pick_counter(self, limit=None):
        del limit
        value = self.inputs["f1_alpha"].pop(0)

        class Counter:
            def add(self, scores):
                assert scores.shape[1] == 1

            def figures(self, names):
                return dict.fromkeys(names, value)

        return Counter()


def chosen_config(folder, choose, **optimizer):
    classes = {"spot": {"picks": "spot", "radius_voxels": 3}}
    known = small_config(folder, epochs=4, steps_per_epoch=2, **optimizer).model_dump()
    known["optimizer"]["choose"] = choose
    return TrainConfig.model_validate(known | {"classes": classes})


def test_the_epoch_with_the_highest_f1_alpha_is_kept(tmp_path):
    wanted = [0.1, 0.4, 0.0, 0.2]
    data = Chosen(inputs={"f1_alpha": [*wanted, 0.3, 0.3]})  # the last two: batch normalisation
    lines = []
    done = train_network(chosen_config(tmp_path, "f1_alpha"), data=data, tell=lines.append)
    assert [row["val_f1_alpha"] for row in done.history] == wanted
    assert (done.best["epoch"], done.best["val_f1_alpha_spot"]) == (2, 0.4)
    assert "F1-alpha 0.400" in lines[1]
    assert done.card["settings"]["optimizer"]["choose"] == "f1_alpha"


def test_the_epoch_with_the_lowest_loss_is_kept(tmp_path):
    asked = chosen_config(tmp_path, "loss", learning_rate=3.0, schedule="constant")
    done = train_network(asked, data=Spots())
    losses = [row["val_loss"] for row in done.history]
    assert done.best["val_loss"] == pytest.approx(min(losses), abs=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": {"membrane": {"labels": "labels"}}},
        {"network": {"kind": "unet2d"}, "patches": {"shape": (1, 16, 16)}},
    ],
)
def test_f1_alpha_without_particles_to_pick_is_refused(cells, changes):
    with pytest.raises(ValueError, match="f1_alpha: expected a 3D network and a class"):
        config(cells, optimizer={"choose": "f1_alpha"}, **changes)


def drawn_round(data, n_slots):
    """Return for each patch where in it each particle of its part lies."""
    found = []
    for slot in range(n_slots):
        patch = data.patch_of(0, slot)
        centres = data.training[patch.part].tomogram.targets.classes[0].points
        found.append((patch, centres - np.array(patch.box.start)))
    return found


def test_each_particle_has_its_turn_before_one_comes_again(cells):
    patches = {"shape": (8, 8, 8), "sampling": "particles", "largest_shift": 0}
    data = open_training_data(config(cells, patches=patches, optimizer={"batch_size": 28}))
    middles = [
        (patch.part, *np.add(patch.box.start, 4).tolist()) for patch, _ in drawn_round(data, 28)
    ]
    assert len(set(middles[:14])) == 14
    assert set(middles[:14]) == set(middles[14:])


@pytest.mark.parametrize("sampling", ["particles", "balanced"])
def test_patches_are_shifted_by_no_more_than_asked_and_by_as_much(cells, sampling):
    patches = {"shape": (12, 12, 12), "sampling": sampling, "largest_shift": 3,
               "centred_fraction": 1.0}  # fmt: skip
    data = open_training_data(config(cells, patches=patches, optimizer={"batch_size": 300}))
    places = set()
    for _, offsets in drawn_round(data, 300):
        near = np.abs(offsets - 6).max(axis=1) <= 3
        assert near.any()
        places |= {int(z) for z in offsets[near][:, 0]}
    assert places == set(range(3, 10))


def test_drawing_particles_where_there_are_only_label_volumes_is_refused(cells):
    mrcfile.write(cells / "labels.mrc", np.ones((24, 48, 48), np.int8))
    (cells / "cells.csv").write_text("name,tomogram,labels\na,a.mrc,labels.mrc\n")
    asked = config(
        cells, classes={"all": {"labels": "labels"}},
        patches={"shape": (8, 8, 8), "sampling": "particles"},
    )  # fmt: skip
    with pytest.raises(ConfigError, match="expected a class with a particle list"):
        open_training_data(asked)


def test_deepetpickers_recipe_has_the_betas_and_the_choice_of_its_program(cells):
    asked = config(cells, recipe="deepetpicker", patches={}, network={"width": 0.1})
    optimizer = TrainingModule(network_to_train(asked), asked, None).configure_optimizers()
    (group,) = optimizer.param_groups
    assert isinstance(optimizer, torch.optim.AdamW)
    assert (group["betas"], group["weight_decay"]) == ((0.9, 0.99), 0.01)
    assert (asked.optimizer.choose, asked.patches.sampling) == ("loss", "particles")
    plain = TrainingModule(network_to_train(config(cells)), config(cells), None)
    assert plain.configure_optimizers().param_groups[0]["betas"] == (0.9, 0.999)


@pytest.mark.parametrize(
    ("kind", "features"), [("deepfinder", (16, 24, 32)), ("deepetpicker", (12, 24, 36, 54))]
)
def test_a_narrower_network_is_saved_and_read_again(cells, kind, features):
    patches = {"shape": (24, 24, 24)}
    network = network_to_train(config(cells, network={"kind": kind, "width": 0.5}, patches=patches))
    assert network.settings.features == features
    path = cells / "narrow.safetensors"
    n = network.settings.n_classes
    save_model(path, network, class_names=tuple(f"c{i}" for i in range(n)),
               voxel_spacing_angstrom=10.0, card={})  # fmt: skip
    assert load_checkpoint(path).network.settings == network.settings
