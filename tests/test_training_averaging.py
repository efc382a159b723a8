"""Is the model the running mean of the weights that it is said to be, kills or not?"""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402
from stand_in_training import (  # noqa: E402
    Interrupted,
    Spots,
    killed,
    same_weights,
    small_config,
)

from deepict_dask.models.checkpoint import load_checkpoint  # noqa: E402
from deepict_dask.training.epochs import validate  # noqa: E402
from deepict_dask.training.fit import train_network  # noqa: E402
from deepict_dask.training.module import TrainingModule  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

DECAY = 0.6


def trained(folder, n_steps, **optimizer):
    network = {"depth": 1, "initial_features": 2, "batch_norm": False}
    config = small_config(
        folder, network=network, epochs=1, steps_per_epoch=n_steps, schedule="constant", **optimizer
    )
    done = train_network(config, data=Spots(validates=False))
    return {name: np.float64(weight.numpy()) for name, weight in load_file(done.model).items()}


def test_the_model_is_the_running_mean_of_the_weights_after_each_step(tmp_path):
    found = trained(tmp_path / "mean", 8, weight_averaging=DECAY)
    mean = {}
    for n in range(8):
        weights = trained(tmp_path / f"after_{n}", n + 1)
        # over all of them at first: (1 + n) / (10 + n) is less than 0.6 in the first 12 steps
        kept = (1 + n) / (10 + n) if n else 0
        mean = {name: kept * mean.get(name, 0) + (1 - kept) * weights[name] for name in weights}
    for name, weight in mean.items():
        assert np.allclose(found[name], weight, atol=1e-6), name
    assert not np.allclose(found["out_conv.weight"], weights["out_conv.weight"], atol=1e-4)


def test_the_mean_keeps_no_more_than_it_is_told(tmp_path):
    first, second, third = (trained(tmp_path / str(n), n + 1)["out_conv.bias"] for n in range(3))
    found = trained(tmp_path / "mean", 3, weight_averaging=0.1)["out_conv.bias"]
    expected = 0.1 * (0.1 * first + 0.9 * second) + 0.9 * third
    assert np.allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize("checkpoint_steps", [1, 3])
def test_the_mean_is_the_same_after_a_kill(tmp_path, checkpoint_steps):
    network = {"depth": 1, "initial_features": 8, "mirror_symmetric": True, "encoder_dropout": 0.1}
    wishes = {"network": network, "optimizer": "muon", "weight_averaging": 0.9}
    config = small_config(tmp_path / "model", **wishes)
    whole = train_network(config, data=Spots(), folder=tmp_path / "whole")
    for step in (1, 5, 9, 11):
        with pytest.raises(RuntimeError, match="killed"):
            train_network(config, data=Interrupted(step, killed), checkpoint_steps=checkpoint_steps)
    assert same_weights(train_network(config, data=Spots()).model, whole.model)


def test_the_mean_is_what_is_validated(tmp_path):
    network = {"depth": 1, "initial_features": 2, "batch_norm": False}
    config = small_config(
        tmp_path, network=network, schedule="constant", learning_rate=0.05, weight_averaging=0.9
    )
    done = train_network(config, data=Spots())
    alone = small_config(tmp_path, network=network)
    module = TrainingModule(load_checkpoint(done.model).network, alone, Spots())
    assert done.best["val_loss"] == pytest.approx(validate(module).row()["val_loss"], abs=1e-6)
    last = trained(tmp_path / "last", 12, learning_rate=0.05)["out_conv.weight"]
    assert not np.allclose(load_file(done.model)["out_conv.weight"], last, atol=1e-3)
