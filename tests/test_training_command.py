"""`deepict-dask train` on small tomograms: our YAML, DeePiCt's, the model's use afterwards."""

import logging
import os
import signal
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import mrcfile
import numpy as np
import pytest
import yaml
from stand_in_training import Spots, small_config
from typer.testing import CliRunner

from deepict_dask.cli import app
from deepict_dask.cli.stopping import StoppedError
from deepict_dask.config import RunConfig, SegmentSettings
from deepict_dask.config.training import PRESETS, RECIPES, TrainConfig, load_train_config
from deepict_dask.core.errors import (
    ConfigError,
    ModelFileError,
    OutputExistsError,
    VolumeFormatError,
)
from deepict_dask.core.geometry import Box
from deepict_dask.core.spectrum import Spectrum
from deepict_dask.deepict_project.training import read_deepict_training
from deepict_dask.io.dataset import list_tomograms
from deepict_dask.io.spectrum import read_spectrum, write_spectrum
from deepict_dask.io.volumes import open_volume
from deepict_dask.jobs.equalize import equalize_volume, measure_spectrum
from deepict_dask.jobs.export_model import export_model
from deepict_dask.jobs.segmenting.model_fit import spacing_misfit
from deepict_dask.jobs.session import Session
from deepict_dask.jobs.training.train import equalize_training, train_model
from deepict_dask.models.checkpoint import load_checkpoint, model_info, save_model
from deepict_dask.models.unet2d import UNet2D, UNet2DSettings
from deepict_dask.models.unet3d import UNet3D, UNet3DSettings
from deepict_dask.plan import plan_run
from deepict_dask.training.fit import train_network
from deepict_dask.training.networks import network_to_train

EDGE = 32


def write_mrc(path, voxels, spacing=10.0):
    with mrcfile.new(path, voxels) as file:
        file.voxel_size = spacing


def write_cell(folder, name, seed):
    """Write a tomogram with bright cubes, the label volume and the particle list of them."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((EDGE,) * 3, np.int8)
    centres = rng.integers(4, EDGE - 4, (8, 3))
    for z, y, x in centres:
        labels[z - 3 : z + 3, y - 3 : y + 3, x - 3 : x + 3] = 1
    tomogram = rng.normal(size=labels.shape) + 2 * labels
    write_mrc(folder / f"{name}.mrc", tomogram.astype(np.float32))
    write_mrc(folder / f"{name}_labels.mrc", labels)
    lines = ["x,y,z", *(f"{x},{y},{z}" for z, y, x in centres)]
    (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def cells(tmp_path):
    for seed, name in enumerate(("one", "two")):
        write_cell(tmp_path, name, seed)
    rows = [f"{n},{n}.mrc,{n}_labels.mrc,{n}.csv" for n in ("one", "two")]
    (tmp_path / "cells.csv").write_text("\n".join(["name,tomogram,mask,list", *rows]) + "\n")
    return tmp_path


def write_config(folder, **changes):
    values = {
        "tomograms": "cells.csv",
        "output": "model",
        "network": {"depth": 1, "initial_features": 2},
        "classes": {"cube": {"labels": "mask"}},
        "patches": {"shape": [16, 16, 16]},
        "optimizer": {"epochs": 2, "steps_per_epoch": 3, "batch_size": 2, "learning_rate": 0.01},
        "validation": {"tomograms": ["two"]},
        "cluster": {"device": "cpu", "workers": 1},
    }
    (folder / "train.yaml").write_text(yaml.safe_dump(values | changes))
    return folder / "train.yaml"


def command(*words):
    return CliRunner().invoke(app, ["train", *map(str, words)], catch_exceptions=True)


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
    assert PRESETS["fas"]["initial_features"] == 16
    assert PRESETS["actin"]["batch_norm"] is False


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


def test_tomograms_are_equalized_first_and_the_card_holds_the_spectrum(cells, one_worker):
    session = Session(one_worker)
    target = measure_spectrum(session, cells / "two.mrc", cells / "target.tsv")
    path = write_config(cells, equalize={"target": "target.tsv"}, validation={})
    config = equalize_training(session, load_train_config(path))
    entries = list_tomograms(config.tomograms)
    assert [entry.name for entry in entries] == ["one", "two"]
    alone = equalize_volume(session, cells / "one.mrc", cells / "alone.zarr", config.equalize)
    whole = Box.whole((EDGE,) * 3)
    assert np.array_equal(open_volume(entries[0].path).read(whole), open_volume(alone).read(whole))
    done = train_model(config)
    said = load_checkpoint(done.model).card["equalization"]
    assert said["target"]["intensity"] == list(read_spectrum(target).intensity)
    again = equalize_training(session, load_train_config(path))
    assert train_model(again).was_finished

    export_model(str(done.model), cells / "again.tsv")
    assert (cells / "again.tsv").read_text() == target.read_text()
    by_model = config.equalize.model_copy(update={"target": done.model})
    other = equalize_volume(session, cells / "one.mrc", cells / "by_model.zarr", by_model)
    assert np.array_equal(open_volume(other).read(whole), open_volume(alone).read(whole))


def test_segment_says_which_threshold_the_model_recommends(cells):
    said = {"cube": {"threshold": 0.6}, "ball": {"threshold": 0.3, "min_size": 9}}
    write_model(cells / "m.safetensors", {"recommended": said})
    words = ["segment", cells / "one.mrc", cells / "s.zarr", "--model", cells / "m.safetensors"]
    words += ["--class", "cube", "--workers", "1", "--device", "cpu", "--no-progress"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    *_, recommended, last = done.stdout.splitlines()
    assert recommended == "the model recommends for cube: threshold 0.6"
    assert last == f"wrote {cells / 's.zarr'}"
    assert "ball" not in done.output


@pytest.mark.parametrize("words", [[], ["--threshold", "0.4"]])
def test_pick_says_that_it_takes_a_threshold_nobody_gave(monkeypatch, words):
    seen = []

    def pick(_session, _score, _folder, settings, **_wishes):
        seen.append(settings.threshold)
        return SimpleNamespace(n_picks=1)

    monkeypatch.setattr("deepict_dask.jobs.picking.pick.pick_particles", pick)
    monkeypatch.setattr("deepict_dask.cli.picking.open_session", lambda **_: nullcontext())
    done = CliRunner().invoke(app, ["pick", "s.zarr", "picks", *words])
    assert done.exit_code == 0, done.output
    assert ("threshold 0.5, as no --threshold is given" in done.output) == (not words)
    assert seen == [0.4 if words else 0.5]


def write_model(path, card):
    network = UNet3D(UNet3DSettings(depth=1, initial_features=2))
    save_model(path, network, class_names=["cube"], voxel_spacing_angstrom=10.0, card=card)


def test_a_run_without_equalization_warns_where_the_model_had_it(cells, caplog):
    write_model(cells / "plain.safetensors", {})
    said = {"target": {"intensity": [1.0], "frequency_per_angstrom": [0.01]}}
    write_model(cells / "equalized.safetensors", {"equalization": said})
    for name, warned in (("plain", False), ("equalized", True)):
        model = SegmentSettings(model=str(cells / f"{name}.safetensors"))
        config = RunConfig(tomograms=cells / "one.mrc", output=cells / "out", segment=(model,))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            plan_run(config)
        assert caplog.text.count("trained on equalized tomograms") == warned


def test_a_model_without_equalization_is_no_target(cells, one_worker):
    write_model(cells / "plain.safetensors", {})
    settings = load_train_config(
        write_config(cells, equalize={"target": "plain.safetensors"})
    ).equalize
    with pytest.raises(ConfigError, match="trained on equalized tomograms, found none"):
        equalize_volume(Session(one_worker), cells / "one.mrc", cells / "o.zarr", settings)


@pytest.mark.parametrize(("spacing", "warned"), [(10.4, False), (10.6, True), (9.4, True)])
def test_a_voxel_spacing_off_by_more_than_5_percent_is_told(cells, spacing, warned):
    write_mrc(cells / "off.mrc", np.zeros((4, 4, 4), np.float32), spacing)
    header = open_volume(cells / "off.mrc").header
    text = spacing_misfit(header, 10.0, "m.safetensors")
    assert (text is not None and "was trained at 10 Å" in text) == warned


def test_a_trained_model_is_written_as_deepict_checkpoint_and_trained_on_from_there(tmp_path):
    done = train_network(small_config(tmp_path / "a", epochs=1), data=Spots())
    export_model(str(done.model), tmp_path / "spot.pth")
    ours, theirs = load_checkpoint(done.model), load_checkpoint(tmp_path / "spot.pth")
    assert theirs.class_names == ("spot",)
    assert theirs.settings == ours.settings
    state = theirs.network.state_dict()
    assert all(np.array_equal(v, state[k]) for k, v in ours.network.state_dict().items())
    network = {"start_from": str(tmp_path / "spot.pth")}
    more = train_network(small_config(tmp_path / "b", network=network), data=Spots())
    assert load_checkpoint(more.model).settings == ours.settings
    with pytest.raises(OutputExistsError):
        export_model(str(done.model), tmp_path / "spot.pth")
    with pytest.raises(ConfigError, match=r"ending in \.pth"):
        export_model(str(done.model), tmp_path / "spot.h5")


def test_the_exported_checkpoint_has_the_keys_and_fields_of_deepicts_own(tmp_path, golden):
    import torch

    from deepict_dask.models.torch_file import read_torch_file

    reference = read_torch_file((golden / "deepict/models/blob_D2_IF4_BN.pth").read_bytes()).content
    model = golden / "deepict/models/blob_D2_IF4_BN.pth"
    export_model(str(model), tmp_path / "again.pth")
    content = read_torch_file((tmp_path / "again.pth").read_bytes()).content
    assert content.keys() == reference.keys()
    assert content["model_state_dict"].keys() == reference["model_state_dict"].keys()
    assert vars(content["model_descriptor"]).keys() >= vars(reference["model_descriptor"]).keys()
    assert content["optimizer_state_dict"].keys() == reference["optimizer_state_dict"].keys()
    first = load_checkpoint(model).network(torch.ones(1, 1, 8, 8, 8))
    assert torch.equal(
        load_checkpoint(tmp_path / "again.pth").network(torch.ones(1, 1, 8, 8, 8)), first
    )


def test_a_2d_network_is_no_deepict_checkpoint(tmp_path):
    network = UNet2D(UNet2DSettings(depth=1, initial_features=2))
    path = tmp_path / "m.safetensors"
    save_model(path, network, class_names=["cytosol"], voxel_spacing_angstrom=10.0)
    with pytest.raises(ModelFileError, match="expected a 3D U-Net"):
        export_model(str(path), tmp_path / "m.pth")


def deepict_3d(folder, **training):
    """Write DeePiCt's 3D config and table; keys of the training are changed."""
    table = ["tomo_name,raw,cube_mask", *(f"{n},{n}.mrc,{n}_labels.mrc" for n in ("one", "two"))]
    (folder / "metadata.csv").write_text("\n".join(table) + "\n")
    values = {
        "dataset_table": "metadata.csv", "output_dir": "out", "work_dir": "work",
        "model_path": "models/cube.pth",
        "tomos_sets": {"training_list": ["one", "two"], "prediction_list": []},
        "training": {
            "active": True, "semantic_classes": ["cube"], "processing_tomo": "raw",
            "box_size": 16, "overlap": 4, "min_label_fraction": 0.001, "batch_size": 5,
            "force_retrain": False,
            "unet_hyperparameters": {
                "depth": 1, "initial_features": 2, "epochs": 2, "train_split": 0.5,
                "batch_norm": True, "encoder_dropout": 0, "decoder_dropout": 0.2, "loss": "Dice",
            },
            "data_augmentation": {
                "rounds": 1, "rot_angle": 90, "elastic_alpha": 0, "sigma_gauss": 1,
                "salt_pepper_p": 0.01, "salt_pepper_ampl": 0.1,
            },
        },
    }  # fmt: skip
    values["training"] |= training
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    (folder / "models").mkdir()
    return folder / "config.yaml"


def test_a_3d_config_of_deepict_trains_and_leaves_its_checkpoint(cells):
    path = deepict_3d(cells)
    done = command(path)
    assert done.exit_code == 0, done.output
    assert "computes it and does not use it" in done.output
    model = load_checkpoint(cells / "models/cube.pth")
    assert (model.class_names, model.settings.depth) == (("cube",), 1)
    card = load_checkpoint(cells / "out/models/cube/model.safetensors").card
    assert card["settings"]["patches"]["sampling"] == "grid"
    assert card["settings"]["optimizer"]["schedule"] == "plateau"
    assert card["settings"]["optimizer"]["batch_size"] == 5
    assert card["settings"]["validation"]["fraction"] == 0.5
    assert "is there and is not trained again" in command(path).output


def test_all_problems_of_a_deepict_training_are_named_at_once(cells):
    path = deepict_3d(cells, box_size="64", batch_size=0)
    with pytest.raises(ConfigError, match=r"training\.box_size.*training\.batch_size"):
        read_deepict_training(path)


def deepict_2d(folder, **changes):
    rows = [f"{n}.mrc,{n}_labels.mrc,{n},0" for n in ("one", "two")]
    (folder / "train.csv").write_text("\n".join(["data,labels,id,flip_y", *rows]) + "\n")
    values = {
        "data": {"training_data": "train.csv", "prediction_data": "train.csv", "output_dir": "o"},
        "preprocessing": {
            "filtering": {"active": False},
            "remapping": {"active": True, "mapping": {1: 1, 2: 0}},
            "slicing": {"patch_size": [32, 32]},
        },
        "training": {
            "general": {"lr": "1e-4", "drop_empty": 1, "batch_size": 2, "n_filters": 1},
            "evaluation": {"active": False, "random_seed": 3},
            "production": {"active": True, "epochs": 1, "model_output": "models/organelle.h5"},
        },
        "prediction": {"active": False},
        "postprocessing": {"active": False},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(values | changes))
    return folder / "config.yaml"


def test_a_2d_config_of_deepict_is_a_training_of_ours(cells):
    config = read_deepict_training(deepict_2d(cells)).config
    assert (config.network.kind, config.network.depth) == ("unet2d", 4)
    assert config.network.initial_features == 4
    assert config.patches.shape == (1, 32, 32)
    assert config.classes["organelle"].values == (1,)
    assert (config.optimizer.learning_rate, config.optimizer.epochs, config.seed) == (1e-4, 1, 3)
    assert (config.augment.flips, config.augment.quarter_turns) == (True, True)
    assert config.output == cells / "models/organelle"
    assert [entry.name for entry in list_tomograms(config.tomograms)] == ["one", "two"]


def test_labels_that_deepict_would_flip_are_refused(cells):
    path = deepict_2d(cells)
    table = Path(cells / "train.csv")
    table.write_text(table.read_text().replace("one,0", "one,1"))
    with pytest.raises(ConfigError, match="row one: flip_y"):
        read_deepict_training(path)


def test_a_spectrum_by_place_comes_back_as_it_was(tmp_path):
    card = {"equalization": {"cutoff": 350, "smoothing": 20, "compat": "deepict",
            "target": {"intensity": [2.0, 1.0], "frequency_per_angstrom": None}}}  # fmt: skip
    write_model(tmp_path / "m.safetensors", card)
    export_model(str(tmp_path / "m.safetensors"), tmp_path / "out.tsv")
    expected = write_spectrum(tmp_path / "by_hand.tsv", Spectrum((2.0, 1.0)))
    assert (tmp_path / "out.tsv").read_text() == expected.read_text()
