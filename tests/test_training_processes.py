"""What several processes of one training must not all do, and what they wait for."""

from __future__ import annotations

import threading

import pytest
from training_cells import cells, write_config

from deepict_dask.config.training import load_train_config
from deepict_dask.core.errors import ConfigError, WorkFailedError
from deepict_dask.core.spectrum import Spectrum
from deepict_dask.io.spectrum import write_spectrum
from deepict_dask.jobs.session import Session
from deepict_dask.jobs.training.train import equalize_training
from deepict_dask.training.processes import is_first_process, wait_for_first

__all__ = ["cells"]
NUMBERS = ("LOCAL_RANK", "SLURM_PROCID", "NODE_RANK")


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
