"""Training from a config to a model file: kills, resumption, stops, refusals."""

import json
import os
import pickle
import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from stand_in_training import Interrupted, Spots, killed, same_weights, small_config

from deepict_dask.cli.stopping import StoppedError, stopped_cleanly
from deepict_dask.core.errors import (
    ConfigError,
    LedgerError,
    ModelFileError,
    WorkFailedError,
)
from deepict_dask.models.checkpoint import load_checkpoint
from deepict_dask.models.unet3d import UNet3D
from deepict_dask.training import packages
from deepict_dask.training.fit import train_network

pytestmark = pytest.mark.usefixtures("one_thread")

PROGRAM = Path(__file__).parent / "stand_in_training.py"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "model"


def train_apart(folder, *, kill_at, checkpoint_steps):
    """Train in another process; return its exit code."""
    asked = {"folder": str(folder), "kill_at": kill_at, "checkpoint_steps": checkpoint_steps}
    command = [sys.executable, "-W", "error", str(PROGRAM), json.dumps(asked)]
    done = subprocess.run(command, timeout=300, capture_output=True, text=True, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_training_killed_at_random_steps_ends_in_the_weights_of_an_undisturbed_one(folder, seed):
    chance = random.Random(seed)
    kill_at, checkpoint_steps = chance.randrange(2, 12), chance.choice([1, 2, 3])
    undisturbed = train_network(small_config(folder.with_name("whole")), data=Spots())
    wishes = {"kill_at": kill_at, "checkpoint_steps": checkpoint_steps}
    assert train_apart(folder, **wishes) == -signal.SIGKILL
    assert not (folder / "model.safetensors").exists()
    assert train_apart(folder, **wishes) == 0
    assert same_weights(folder / "model.safetensors", undisturbed.model)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("checkpoint_steps", [1, 3, None])
def test_every_step_is_a_good_place_to_be_stopped(folder, optimizer, checkpoint_steps):
    config = small_config(folder, schedule="plateau", gradient_clip=1.0, optimizer=optimizer)
    whole = train_network(config, data=Spots(), folder=folder.with_name("whole"))
    for step in (1, 4, 5, 9, 11):
        with pytest.raises(RuntimeError, match="killed"):
            train_network(config, data=Interrupted(step, killed), checkpoint_steps=checkpoint_steps)
    done = train_network(config, data=Spots())
    assert same_weights(done.model, whole.model)
    assert [row["train_loss"] for row in done.history] == [r["train_loss"] for r in whole.history]


def test_dropout_is_the_same_after_a_resumption_and_differs_from_step_to_step(folder):
    network = {"depth": 1, "initial_features": 2, "encoder_dropout": 0.5, "batch_norm": False}
    config = small_config(folder, network=network)
    whole = train_network(config, data=Spots(), folder=folder.with_name("whole"))
    with pytest.raises(RuntimeError, match="killed"):
        train_network(config, data=Interrupted(6, killed), checkpoint_steps=1)
    torch.manual_seed(99)  # chance of the process is not that of the training
    assert same_weights(train_network(config, data=Spots()).model, whole.model)
    none = network | {"encoder_dropout": 0.0}
    plain = train_network(
        small_config(folder, network=none), data=Spots(), folder=folder.with_name("plain")
    )
    assert not same_weights(plain.model, whole.model)


def test_a_sigterm_leaves_a_checkpoint_of_the_step_that_was_running(folder):
    config = small_config(folder)
    data = Interrupted(6, lambda: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train_network(config, data=data)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] >= 5  # the end of an epoch was at 4
    lines = []
    done = train_network(config, data=Spots(), tell=lines.append)
    assert lines[0] == f"continuing from epoch 2 (step {checkpoint['global_step']})"
    assert lines[1].startswith("epoch 2 of 3: loss ")
    whole = train_network(config, data=Spots(), folder=folder.with_name("whole"))
    assert same_weights(done.model, whole.model)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_training_that_is_told_to_stop_says_how_to_continue_and_ends_by_the_signals_code(
    folder, number, code
):
    data = Interrupted(6, lambda: os.kill(os.getpid(), number))
    again = pytest.raises(StoppedError, match="run the same command again")
    with again as stopped, stopped_cleanly():
        train_network(small_config(folder), data=data)
    assert stopped.value.exit_code == code
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] >= (5 if number == signal.SIGTERM else 4)


def test_a_damaged_checkpoint_is_refused_with_what_to_do(folder):
    config = small_config(folder)
    with pytest.raises(RuntimeError, match="killed"):
        train_network(config, data=Interrupted(6, killed))
    last = folder / "checkpoints/last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(ModelFileError, match=r"damage.*--restart"):
        train_network(config, data=Spots())
    assert train_network(config, data=Spots(), resume=False).model.exists()


def test_training_leaves_the_callers_random_numbers_alone(folder):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_network(small_config(folder), data=Spots())
    assert torch.equal(torch.rand(3), expected)


def test_another_seed_gives_other_weights(folder):
    one, again, other = (
        train_network(
            small_config(folder / name).model_copy(update={"seed": seed}), data=Spots(seed=seed)
        ).model
        for name, seed in (("one", 1), ("again", 1), ("other", 2))
    )
    assert same_weights(one, again)
    assert not same_weights(one, other)


def test_the_loss_falls_and_the_class_is_found(folder):
    config = small_config(folder, epochs=6, steps_per_epoch=10)
    done = train_network(config, data=Spots())
    losses = [row["train_loss"] for row in done.history]
    assert losses[-1] < 0.7 * losses[0]
    assert done.best["val_f1_spot"] > 0.8
    assert done.card["recommended"]["spot"]["threshold"] in {n / 10 for n in range(1, 10)}


def test_the_model_holds_the_weights_of_the_best_epoch(folder):
    config = small_config(
        folder, learning_rate=3.0, schedule="constant", epochs=6, steps_per_epoch=2
    )
    done = train_network(config, data=Spots())
    dice = [row["val_dice"] for row in done.history]
    assert done.best["val_dice"] >= max(dice) - 1e-4
    assert done.card["validation"]["val_dice"] >= round(done.best["val_dice"], 6)


def test_without_validation_the_last_weights_are_kept(folder):
    done = train_network(small_config(folder), data=Spots(validates=False))
    assert done.best["epoch"] == 3
    assert "val_dice" not in done.best
    assert done.card["recommended"] == {}


def test_the_files_of_a_training_are_its_model_table_picture_and_tensorboard(folder):
    done = train_network(small_config(folder), data=Spots())
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors", "metrics.csv", "losses.png", "tensorboard",
    }  # fmt: skip
    rows = (folder / "metrics.csv").read_text().splitlines()
    assert rows[0].split(",")[:5] == ["epoch", "step", "minutes", "learning_rate", "train_loss"]
    assert len(rows) == 1 + len(done.history) == 4
    assert (folder / "losses.png").read_bytes().startswith(b"\x89PNG")
    assert list((folder / "tensorboard").glob("events.*"))


def test_the_card_says_how_the_model_was_made(folder):
    done = train_network(small_config(folder), data=Spots())
    model = load_checkpoint(done.model)
    assert (model.class_names, model.voxel_spacing_angstrom) == (("spot",), 10.0)
    assert model.card["training_data"] == {"cell": {"sha256": "0" * 64}}
    assert model.card["settings"]["optimizer"]["loss"] == "dice"
    assert model.card["versions"]["torch"] == torch.__version__
    assert model.card["steps"] == 12


def test_training_stops_after_epochs_without_improvement(folder):
    config = small_config(folder, epochs=50, patience=2, learning_rate=1e-9)
    done = train_network(config, data=Spots())
    assert 3 <= len(done.history) < 50
    assert done.card["ended"] == "no improvement in 2 epochs"


def test_training_stops_when_its_time_is_over(folder):
    config = small_config(folder, epochs=1000, max_minutes=1 / 600)
    done = train_network(config, data=Spots())
    assert done.card["steps"] < 4000
    assert done.card["ended"] == "the time is over"


def test_an_early_cycle_moves_rate_and_first_beta_of_the_optimizer(folder, monkeypatch):
    seen = []
    step = torch.optim.AdamW.step

    def watched(optimizer, *arguments, **options):
        (group,) = optimizer.param_groups
        seen.append((group["lr"], group["betas"]))
        return step(optimizer, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    config = small_config(folder, schedule="early_cycle", optimizer="adamw", epochs=5)
    train_network(config, data=Spots())
    rates, betas = zip(*seen, strict=True)
    assert len(seen) == 20
    assert rates[0] == pytest.approx(0.01 / 30)
    assert np.argmax(rates) == np.argmin([beta for beta, _ in betas]) == 2
    assert betas[0] == pytest.approx((0.95, 0.999))
    assert betas[2] == pytest.approx((0.85, 0.999))


def test_a_plateau_lowers_the_rate_to_a_tenth(folder):
    network = {"depth": 1, "initial_features": 2, "batch_norm": False}
    config = small_config(
        folder, network=network, epochs=14, steps_per_epoch=1, schedule="plateau",
        learning_rate=1e-9,
    )  # fmt: skip
    rates = [row["learning_rate"] for row in train_network(config, data=Spots()).history]
    assert rates[0] == 1e-9
    assert rates[-1] == pytest.approx(1e-10)


def test_a_loss_that_is_no_number_stops_with_step_rate_and_what_to_do(folder):
    class Broken(Spots):
        def batch(self, step):
            patches, targets = super().batch(step)
            return patches * (np.nan if step == 2 else 1), targets

    with pytest.raises(WorkFailedError, match=r"step 3: .*found nan: a patch has voxels"):
        train_network(small_config(folder), data=Broken())

    plain = {"depth": 1, "initial_features": 2, "batch_norm": False}
    config = small_config(folder, network=plain, learning_rate=1e20)
    with pytest.raises(WorkFailedError, match=r"step \d: .*rate .*e\+.*gradient_clip: 1"):
        train_network(config, data=Spots(), folder=folder.with_name("fast"))


def test_a_validation_that_is_no_number_stops_with_epoch_and_what_to_do(folder):
    plain = {"depth": 1, "initial_features": 2, "batch_norm": False}
    config = small_config(folder, network=plain, learning_rate=1e30, epochs=1, steps_per_epoch=1)
    with pytest.raises(WorkFailedError, match=r"epoch 1: .*dice.*found nan at .*lower optimizer"):
        train_network(config, data=Spots())


def test_patches_without_a_class_train_to_the_end(folder):
    done = train_network(small_config(folder), data=Spots(empty=True))
    assert "val_dice" not in done.best
    assert done.card["recommended"] == {}


@pytest.mark.parametrize(
    ("network", "patches"),
    [
        ({"kind": "unet2d", "depth": 2, "initial_features": 2}, (1, 16, 16)),
        ({"kind": "deepfinder"}, (16, 16, 16)),
        ({"kind": "deepetpicker"}, (16, 16, 16)),
        ({"depth": 1, "initial_features": 2, "batch_norm": False}, (16, 16, 16)),
        ({"depth": 1, "initial_features": 4, "space_to_depth": 2}, (16, 16, 16)),
    ],
)
def test_every_network_trains_and_its_model_is_read_again(folder, network, patches):
    names = ("spot", "dot")
    config = small_config(
        folder, network=network, patches=patches, classes=names, epochs=1, steps_per_epoch=2
    )
    done = train_network(config, data=Spots(names, flat=patches[0] == 1))
    model = load_checkpoint(done.model)
    softmax = network.get("kind") in ("deepfinder", "deepetpicker")
    assert model.class_names == (("background",) if softmax else ()) + names
    assert np.isfinite(done.history[0]["train_loss"])


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_layers_compute_in_the_precision_asked_for_and_weights_are_float32(
    folder, monkeypatch, precision
):
    computed = set()
    forward = UNet3D.forward

    def seen(self, volume):
        scores = forward(self, volume)
        computed.add(str(scores.dtype)) if self.training else None
        return scores

    monkeypatch.setattr(UNet3D, "forward", seen)
    done = train_network(small_config(folder, precision=precision), data=Spots())
    assert computed == {f"torch.{precision}"}
    weights = load_file(done.model).values()
    assert {w.dtype for w in weights if w.is_floating_point()} == {torch.float32}
    assert done.history[-1]["train_loss"] < done.history[0]["train_loss"]


def test_training_goes_on_from_a_model_file(folder):
    first = train_network(small_config(folder), data=Spots())
    network = {"start_from": str(first.model)}
    config = small_config(folder, network=network, learning_rate=1e-9, epochs=1, steps_per_epoch=1)
    second = train_network(config, data=Spots(), folder=folder.with_name("second"))
    assert load_checkpoint(second.model).settings.initial_features == 2
    assert second.best["val_dice"] == pytest.approx(first.best["val_dice"], abs=0.15)
    two = small_config(folder, network=network, classes=("spot", "dot"))
    with pytest.raises(ConfigError, match="has 1 classes, expected the 2 of the config"):
        train_network(two, data=Spots(("spot", "dot")), folder=folder.with_name("third"))


@pytest.mark.parametrize(
    ("network", "patches", "message"),
    [
        ({"depth": 2}, (16, 16, 18), "multiples of 4"),
        ({"kind": "unet2d", "depth": 1}, (16, 16, 16), r"expected \(1, y, x\)"),
        ({"depth": 1}, (1, 16, 16), "more than one slice"),
        ({"kind": "deepetpicker"}, (16, 16, 32), "cubes of 16"),
    ],
)
def test_patches_that_do_not_fit_the_network_are_refused(folder, network, patches, message):
    with pytest.raises(ConfigError, match=message):
        train_network(small_config(folder, network=network, patches=patches), data=Spots())


def test_a_missing_package_is_one_sentence_with_the_command(folder, monkeypatch):
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "lightning" else name)
    with pytest.raises(ConfigError, match=r"lightning is not installed; run.*'\.\[train\]'"):
        train_network(small_config(folder), data=Spots())


def test_training_runs_in_a_thread_as_in_a_task_and_what_it_returns_travels(folder):
    config = pickle.loads(pickle.dumps(small_config(folder)))
    with ThreadPoolExecutor(1) as one:
        done = one.submit(train_network, config, data=Spots()).result()
    assert pickle.loads(pickle.dumps(done)) == done
    assert done.model.exists()


def test_two_trainings_of_one_folder_are_refused(folder):
    def another():
        with pytest.raises(LedgerError, match="work here alone"):
            train_network(small_config(folder), data=Spots())
        killed()

    with pytest.raises(RuntimeError, match="killed"):
        train_network(small_config(folder), data=Interrupted(2, another))
