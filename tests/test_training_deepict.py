"""DeePiCt's checkpoints and training configs: written, trained on from there, run."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from stand_in_training import Spots, small_config
from training_cells import cells, command

from deepict_dask.core.errors import ConfigError, ModelFileError, OutputExistsError
from deepict_dask.deepict_project.training import read_deepict_training
from deepict_dask.io.dataset import list_tomograms
from deepict_dask.jobs.export_model import export_model
from deepict_dask.models.checkpoint import load_checkpoint, save_model
from deepict_dask.models.unet2d import UNet2D, UNet2DSettings
from deepict_dask.training.fit import train_network
from deepict_dask.training.module import TrainingModule

__all__ = ["cells"]


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


def test_training_goes_on_from_a_network_that_deepict_trained(tmp_path, golden):
    path = golden / "deepict/models/blob_D2_IF4_BN.pth"
    theirs = load_checkpoint(path).network.state_dict()
    # at a rate of nearly nothing the weights stay as they were read; batch norm's means move
    still = {"epochs": 1, "steps_per_epoch": 1, "learning_rate": 1e-12}
    config = small_config(tmp_path / "a", network={"start_from": str(path)}, **still)
    done = train_network(config, data=Spots())
    ours = load_checkpoint(done.model)
    assert ours.settings == load_checkpoint(path).settings
    state = ours.network.state_dict()
    for name, value in theirs.items():
        if name.endswith(("weight", "bias")):
            np.testing.assert_allclose(state[name].numpy(), value.numpy(), rtol=0, atol=1e-9)


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
    (folder / "models").mkdir(exist_ok=True)
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


def test_a_training_that_is_forced_is_trained_again_though_it_is_up_to_date(cells):
    path, made = deepict_3d(cells), cells / "out/models/cube/model.safetensors"
    assert command(path).exit_code == 0
    first = made.stat().st_mtime_ns
    deepict_3d(cells, force_retrain=True)
    done = command(path)
    assert done.exit_code == 0, done.output
    assert "up to date" not in done.output
    assert made.stat().st_mtime_ns > first
    checkpoint = (cells / "models/cube.pth").stat().st_mtime_ns
    deepict_3d(cells, batch_size=4)
    done = command(path, "--overwrite")
    assert done.exit_code == 0, done.output
    assert (cells / "models/cube.pth").stat().st_mtime_ns > checkpoint


def test_a_forced_training_that_was_killed_goes_on_and_does_not_begin_again(cells, monkeypatch):
    path = deepict_3d(cells)
    assert command(path).exit_code == 0
    deepict_3d(cells, force_retrain=True)
    step = TrainingModule.training_step

    def killed_later(module, batch, batch_idx):
        if module.trainer.global_step == module.config.optimizer.steps_per_epoch:
            raise RuntimeError("killed")
        return step(module, batch, batch_idx)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingModule, "training_step", killed_later)
        assert command(path).exit_code != 0
    assert not (cells / "out/models/cube/model.safetensors").exists()
    done = command(path)
    assert done.exit_code == 0, done.output
    assert "continuing from epoch 2" in done.output
    assert (cells / "out/models/cube/model.safetensors").exists()


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


@pytest.mark.parametrize("production", [True, False])
def test_a_2d_evaluation_of_deepict_is_a_cross_validation(cells, production):
    evaluation = {
        "active": True, "cv_folds": 2, "epochs": 7, "stopping_patience": 3, "random_seed": 5
    }  # fmt: skip
    path = deepict_2d(cells)
    values = yaml.safe_load(path.read_text())
    values["training"]["evaluation"] = evaluation
    values["training"]["production"]["active"] = production
    path.write_text(yaml.safe_dump(values))
    said = []
    config = read_deepict_training(path, say=said.append).config
    assert (config.cross_validation.folds, config.cross_validation.final) == (2, production)
    expected = (1, 0) if production else (7, 3)
    assert (config.optimizer.epochs, config.optimizer.patience) == expected
    assert config.seed == 5
    assert production == any("for the epochs of training.production" in line for line in said)
    path.write_text(path.read_text().replace("cv_folds: 2", "cv_folds: 1"))
    with pytest.raises(ConfigError, match="cv_folds: expected 2 or more, found 1"):
        read_deepict_training(path)


def test_labels_that_deepict_would_flip_are_refused(cells):
    path = deepict_2d(cells)
    table = Path(cells / "train.csv")
    table.write_text(table.read_text().replace("one,0", "one,1"))
    with pytest.raises(ConfigError, match="row one: flip_y"):
        read_deepict_training(path)
