"""Several processes of one training: what one alone does, what they wait for, what they learn."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from process_of_two import NETWORK
from safetensors.numpy import load_file
from stand_in_training import Spots, same_weights, small_config
from training_cells import cells, write_config

from deepict_dask.config.training import load_train_config
from deepict_dask.core.errors import ConfigError, WorkFailedError
from deepict_dask.core.spectrum import Spectrum
from deepict_dask.io.spectrum import write_spectrum
from deepict_dask.jobs.session import Session
from deepict_dask.jobs.training.train import equalize_training
from deepict_dask.training import fit
from deepict_dask.training.checkpoint_io import WholeCheckpoints
from deepict_dask.training.fit import train_network
from deepict_dask.training.processes import is_first_process, wait_for_first

__all__ = ["cells"]
NUMBERS = ("LOCAL_RANK", "SLURM_PROCID", "NODE_RANK")
PROGRAM = Path(__file__).with_name("process_of_two.py")


@pytest.mark.parametrize(
    ("found", "first"),
    [
        ({}, True),
        ({"SLURM_PROCID": "0"}, True),
        ({"SLURM_PROCID": "3"}, False),
        ({"LOCAL_RANK": "1"}, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False),
    ],
)
def test_one_process_writes(monkeypatch, found, first):
    for name in NUMBERS:
        monkeypatch.delenv(name, raising=False)
    for name, number in found.items():
        monkeypatch.setenv(name, number)
    assert is_first_process() == first


def test_processes_of_srun_do_not_all_equalize(cells, one_worker, monkeypatch):
    write_spectrum(cells / "s.tsv", Spectrum((1.0, 2.0), (0.01, 0.03)))
    config = load_train_config(write_config(cells, equalize={"target": "s.tsv"}))
    session = Session(one_worker)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(ConfigError, match=r"expected one process, found 4 of srun; begin this"):
        equalize_training(session, config)
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    made = equalize_training(session, config)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert equalize_training(session, config).tomograms == made.tomograms


def test_others_wait_until_the_first_has_made_the_folder_ready(tmp_path, monkeypatch):
    monkeypatch.setattr("deepict_dask.training.processes._LOOK_S", 0.01)
    note = tmp_path / "request"
    note.write_text("another training")
    waited = threading.Thread(target=wait_for_first, args=(note, "this one"))
    waited.start()
    waited.join(0.2)
    assert waited.is_alive()
    note.write_text("this one")
    waited.join(60)
    assert not waited.is_alive()
    with pytest.raises(WorkFailedError, match="expected the first process to begin"):
        wait_for_first(note, "a third", patience_s=0.05)


class BatchesOfTwo(Spots):
    """What two processes learn from in a step, as one batch."""

    def batch(self, step):
        pairs = zip(super().batch(2 * step), super().batch(2 * step + 1), strict=True)
        return tuple(np.concatenate(pair) for pair in pairs)


def train_in_two_processes(folder, *, kill_at=-1, resume=True):
    """Train in two processes; return their exit codes and what they print."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    together = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0",
        "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    outside = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    asked = {"folder": str(folder), "kill_at": kill_at, "resume": resume}
    command = [sys.executable, str(PROGRAM), json.dumps(asked)]
    started = [
        subprocess.Popen(
            command,
            env=outside | together | {"LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        told = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [process.returncode for process in started], told


@pytest.mark.parametrize(
    ("tasks", "n_gpus", "starts"),
    [("1", 4, True), ("1", 1, False), ("4", 4, False), (None, 4, False)],
)
def test_one_task_of_slurm_with_several_gpus_starts_the_others_itself(
    tmp_path, monkeypatch, tasks, n_gpus, starts
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    if tasks is not None:
        monkeypatch.setenv("SLURM_NTASKS", tasks)
    monkeypatch.setattr("lightning.pytorch.Trainer", lambda **settings: settings)
    optimizer = SimpleNamespace(precision="float32", gradient_clip=0)
    module = SimpleNamespace(config=SimpleNamespace(optimizer=optimizer), n_steps=1)
    wishes = fit._Wishes(str, None, None, on_gpu=True)
    settings = fit._trainer(module, None, tmp_path, 0, wishes)
    kinds = [type(plugin) for plugin in settings["plugins"]]
    assert (LightningEnvironment in kinds) == starts


def test_a_training_without_several_gpus_is_no_task_of_slurm(tmp_path, monkeypatch):
    """In a batch script without srun, Lightning refuses to be one of its tasks."""
    for name, value in (("SLURM_NTASKS", "16"), ("SLURM_JOB_NAME", "train"), ("SLURM_JOB_ID", "7")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    done = fit.train_network(small_config(tmp_path / "model", epochs=1), data=Spots())
    assert done.model.is_file()


def test_checkpoints_are_read_to_the_processor_as_lightning_asks_for_them(tmp_path, monkeypatch):
    torch.save({"a": torch.ones(2)}, tmp_path / "last.ckpt")
    places, load = [], torch.load

    def seen(path, *, map_location, weights_only):
        places.append(map_location)
        return load(path, map_location=map_location, weights_only=weights_only)

    monkeypatch.setattr(torch, "load", seen)
    WholeCheckpoints().load_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert places == ["cpu"]


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_two_processes_learn_what_one_learns_from_the_batches_of_both(tmp_path):
    codes, told = train_in_two_processes(tmp_path / "two")
    assert codes == [0, 0], told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["two"]
    config = small_config(tmp_path / "one", network=NETWORK, loss="cross_entropy")
    one = load_file(train_network(config, data=BatchesOfTwo()).model)
    two = load_file(tmp_path / "two" / "model.safetensors")
    alone = load_file(train_network(config, data=Spots(), folder=tmp_path / "alone").model)
    assert one.keys() == two.keys() == alone.keys()
    for name, weights in one.items():
        np.testing.assert_allclose(two[name], weights, atol=1e-4)
    assert max(abs(alone[name] - weights).max() for name, weights in one.items()) > 1e-2
    histories = [json.loads(out)["rows"] for out, _ in told]
    assert [r["val_dice"] for r in histories[0]] == [r["val_dice"] for r in histories[1]]
    codes, told = train_in_two_processes(tmp_path / "two")
    assert codes == [0, 0]
    assert all(json.loads(out)["was_finished"] for out, _ in told)


@pytest.mark.slow
@pytest.mark.parametrize("resume", [True, False])
def test_two_processes_of_which_one_is_killed_end_and_go_on_to_the_same_weights(tmp_path, resume):
    codes, told = train_in_two_processes(tmp_path / "whole")
    assert codes == [0, 0], told
    # process 1 has the odd batches: this is its sixth of twelve
    codes, told = train_in_two_processes(tmp_path / "killed", kill_at=11)
    assert codes[1] == -signal.SIGKILL
    assert codes[0] != 0
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    codes, told = train_in_two_processes(tmp_path / "killed", kill_at=11, resume=resume)
    assert codes == [0, 0], told
    models = (tmp_path / name / "model.safetensors" for name in ("killed", "whole"))
    assert same_weights(*models)
