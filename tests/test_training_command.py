"""`deepict-dask train` on small tomograms: what it shows, makes and refuses; recipes."""

import os
import signal

import pytest
from training_cells import cells, command, write_config

from deepict_dask.cli.stopping import StoppedError
from deepict_dask.config.training import PRESETS, RECIPES, TrainConfig, load_train_config
from deepict_dask.core.errors import ConfigError, OutputExistsError, VolumeFormatError
from deepict_dask.models.checkpoint import load_checkpoint, model_info
from deepict_dask.training.networks import network_to_train

__all__ = ["cells"]


def test_a_dry_run_shows_settings_counts_and_a_picture_and_trains_nothing(cells):
    shown = command(write_config(cells), "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert "loss: dice" in shown.output
    counts = [line.split()[:3] for line in shown.output.splitlines()]
    assert ["training", "one", "cube"] in counts
    assert ["validation", "two", "cube"] in counts
    assert "6 steps of 2 patches" in shown.output
    assert (cells / "model/preview.png").read_bytes().startswith(b"\x89PNG")
    assert not (cells / "model/model.safetensors").exists()
    said = shown.output
    assert said.index("6 steps of 2") < said.index("picture:") < said.index("loss: dice")


def test_a_dry_run_says_of_another_training_that_it_is_there_and_leaves_its_picture(cells):
    assert command(write_config(cells)).exit_code == 0
    assert "would be refused" not in command(write_config(cells), "--dry-run").output
    picture = cells / "model/preview.png"
    picture.write_bytes(b"of the first")
    changed = write_config(cells, seed=5)
    shown = command(changed, "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert "training would be refused, and no picture is written: " in shown.output
    assert "of other settings or data" in shown.output
    assert picture.read_bytes() == b"of the first"
    assert "would be refused" not in command(changed, "--dry-run", "--overwrite").output
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_problem_of_the_data_is_not_below_the_settings(cells):
    shown = command(write_config(cells, classes={"cube": {"labels": "masks"}}), "--dry-run")
    assert isinstance(shown.exception, ConfigError)
    assert "loss:" not in shown.output


def test_the_command_hears_sigterm_and_says_how_to_continue(cells, monkeypatch):
    def terminated(*_args, **_wishes):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("deepict_dask.jobs.training.train.train_model", terminated)
    stopped = command(write_config(cells)).exception
    assert isinstance(stopped, StoppedError)
    assert stopped.exit_code == 143
    assert "run the same command again" in str(stopped)


def test_a_training_ends_in_a_model_and_a_second_one_finds_it_up_to_date(cells):
    config = write_config(cells)
    first = command(config)
    assert first.exit_code == 0, first.output
    assert "epoch 2 of 2: loss" in first.output
    model = load_checkpoint(cells / "model/model.safetensors")
    assert (model.class_names, model.voxel_spacing_angstrom) == (("cube",), 10.0)
    assert model.card["training_data"]["two"]["roles"] == ["validation"]
    assert "up to date" in command(config).output
    assert "up to date" not in command(config, "--restart").output


def test_a_changed_config_is_refused_until_overwrite(cells):
    assert command(write_config(cells)).exit_code == 0
    changed = write_config(cells, seed=5)
    refused = command(changed)
    assert isinstance(refused.exception, OutputExistsError)
    assert "--overwrite" in str(refused.exception)
    assert command(changed, "--overwrite").exit_code == 0
    assert load_checkpoint(cells / "model/model.safetensors").card["settings"]["seed"] == 5


def test_moved_tomograms_are_the_same_training(cells, tmp_path_factory):
    assert command(write_config(cells)).exit_code == 0
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "project"
    cells.rename(elsewhere)
    assert "up to date" in command(elsewhere / "train.yaml").output
    elsewhere.rename(cells)


def test_particle_lists_train_as_label_volumes_do(cells):
    classes = {"cube": {"picks": "list", "radius_nm": 3.0}}
    done = command(write_config(cells, classes=classes, validation={"fraction": 0.5}))
    assert done.exit_code == 0, done.output


def test_slices_train_a_2d_network(cells):
    network = {"kind": "unet2d", "depth": 2, "initial_features": 2}
    done = command(write_config(cells, network=network, patches={"shape": [1, 32, 32]}))
    assert done.exit_code == 0, done.output
    assert model_info(cells / "model/model.safetensors").kind == "unet2d"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": {"epoch": 3}}, "optimizer.epoch: unknown key (known keys: loss, learning"),
        ({"classes": {"cube": {"label": "mask"}}}, "cube.label: unknown key (known keys: picks"),
        ({"network": {"preset": "ribosom"}}, "expected one of ribosome, fas"),
        ({"classes": {"cube": {"labels": "masks"}}}, "expected labels to be one of"),
        ({"classes": {}}, "classes"),
    ],
)
def test_a_wrong_config_is_refused_by_the_name_of_its_key(cells, changes, message):
    refused = command(write_config(cells, **changes))
    assert isinstance(refused.exception, ConfigError)
    assert message in str(refused.exception)


def test_a_list_given_as_labels_is_refused_by_class_and_tomogram(cells):
    refused = command(write_config(cells, classes={"cube": {"labels": "list"}}))
    assert isinstance(refused.exception, VolumeFormatError)
    said = str(refused.exception)
    assert "tomogram one: class cube: expected a label volume" in said
    assert "a particle list goes under picks" in said


def test_what_is_no_yaml_is_refused_by_line_and_column_in_one_sentence(cells):
    (cells / "train.yaml").write_text("tomograms: cells.csv\nclasses: {cube: [1\n")
    said = str(command(cells / "train.yaml").exception)
    assert "train.yaml, line 3, column 1: expected YAML" in said
    assert "unicode string" not in said


def test_a_config_of_run_is_known_as_one(cells):
    text = "tomograms: cells.csv\noutput: o\nsegment: [{model: m.pth}]\nkeep_scores: false\n"
    (cells / "run.yaml").write_text(text)
    refused = command(cells / "run.yaml")
    assert isinstance(refused.exception, ConfigError)
    assert "found keys of `run`: segment, keep_scores; use" in str(refused.exception)


def test_known_keys_are_listed_once_for_several_wrong_ones(cells):
    wrong = {"optimizer": {"epoch": 3, "batch": 2}}
    said = str(command(write_config(cells, **wrong)).exception)
    assert "optimizer.batch, optimizer.epoch: unknown keys (known keys: loss" in said
    assert said.count("known keys:") == 1


def test_paths_of_a_config_count_from_its_folder(cells):
    start = {"depth": 1, "start_from": "one.mrc"}
    read = load_train_config(write_config(cells, network=start, equalize={"target": "t.tsv"}))
    assert read.tomograms == cells / "cells.csv"
    assert read.output == cells / "model"
    assert read.equalize.target == cells / "t.tsv"
    assert read.network.start_from == str(cells / "one.mrc")


def test_presets_are_the_networks_of_the_paper():
    # Supplementary Table 1: depth, filters of the first block, batch norm
    in_3d = {
        "ribosome": (2, 4, True), "fas": (2, 16, True), "membrane": (2, 4, True),
        "npc": (3, 16, True), "microtubule": (2, 4, True), "actin": (3, 8, False),
    }  # fmt: skip
    of_3d = {name: one for name, one in PRESETS.items() if one["kind"] == "unet3d"}
    found = {n: (p["depth"], p["initial_features"], p["batch_norm"]) for n, p in of_3d.items()}
    assert found == in_3d
    # D5 IF16, which is 4 poolings
    of_2d = {name: one for name, one in PRESETS.items() if one["kind"] == "unet2d"}
    found = {n: (p["depth"], p["initial_features"]) for n, p in of_2d.items()}
    assert found == {"cytosol": (4, 16), "organelle": (4, 16)}


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_recipe_is_a_training_whose_settings_can_be_overridden(name):
    wanted = {"tomograms": "cells.csv", "output": "model", "recipe": name,
              "classes": {"ribosome": {"picks": "ribosome", "radius_nm": 10.8}}}  # fmt: skip
    config = TrainConfig.model_validate(wanted)
    for part, settings in RECIPES[name].items():
        found = getattr(config, part).model_dump(mode="json")
        assert found | settings == found
    other = TrainConfig.model_validate(wanted | {"optimizer": {"batch_size": 3}})
    assert other.optimizer.batch_size == 3
    assert other.optimizer.loss == config.optimizer.loss
    assert network_to_train(config).training
    of_paper = TrainConfig.model_validate(wanted | {"network": {"preset": "fas"}})
    assert of_paper.network.initial_features == 16


def test_a_recipe_nobody_knows_is_refused_with_those_there_are(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text("recipe: topaz\ntomograms: t.csv\noutput: out\nclasses: {a: {labels: a}}\n")
    with pytest.raises(ConfigError, match="recipe: expected one of deepict, deepfinder, deepetp"):
        load_train_config(path)
