"""Tasks that end after everybody gave them up: of a host that came back, or of an earlier run."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

from deepict_dask.core.errors import DeepictError
from deepict_dask.core.geometry import Box
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.engine import StagedOutput
from deepict_dask.engine.reduce import SpillFolder, TreeNode
from deepict_dask.engine.staging import swept
from deepict_dask.io import ome_zarr_write
from deepict_dask.io.zarr_array import open_array
from deepict_dask.jobs.volume_output import VolumeOutput


def test_two_workers_may_store_the_same_node_at_the_same_time(tmp_path, monkeypatch):
    """The second begins while the first has written, and not yet renamed, its file."""
    spill, node, rows = SpillFolder(str(tmp_path)), TreeNode(0, (0, 0, 0)), {"x": np.arange(9)}
    save = np.save

    def interrupted(path, array):
        save(path, array)
        monkeypatch.setattr(np, "save", save)
        spill.save(node, rows)

    monkeypatch.setattr(np, "save", interrupted)
    spill.save(node, rows)
    assert spill.load(node, "x").tolist() == list(range(9))
    assert len([*tmp_path.iterdir()]) == 1


def test_a_task_of_an_earlier_run_cannot_write_into_the_next_one(tmp_path):
    header, whole = VolumeHeader((8, 8, 8), "float32", 10.0), Box.whole((8, 8, 8))
    path = tmp_path / "scores.zarr"
    with StagedOutput(path, "a" * 64) as first:
        late = VolumeOutput(first).sink(header, (8, 8, 8))  # a worker has it, and computes
    with StagedOutput(path, "b" * 64) as second:  # with another model
        output = VolumeOutput(second)
        output.sink(header, (8, 8, 8)).write(whole, np.full((8, 8, 8), 2, "float32"))
        with pytest.raises(DeepictError):
            late.write(whole, np.full((8, 8, 8), 1, "float32"))
        output.finish()
    assert (zarr.open_array(path / "0", mode="r")[:] == 2).all()


def test_a_write_that_ends_after_the_output_was_finished_leaves_nothing(tmp_path, monkeypatch):
    header, whole = VolumeHeader((8, 8, 8), "float32", 10.0), Box.whole((8, 8, 8))
    with StagedOutput(tmp_path / "scores.zarr", "a" * 64) as staged:
        output = VolumeOutput(staged)
        writer = output.sink(header, (8, 8, 8))
        writer.write(whole, np.ones((8, 8, 8), "float32"))

        def finished_meanwhile(path, *, writable):
            opened = open_array(path, writable=writable)
            output.finish()
            return opened

        monkeypatch.setattr(ome_zarr_write, "open_array", finished_meanwhile)
        writer.write(whole, np.ones((8, 8, 8), "float32"))
        assert [path.name for path in tmp_path.glob("*.zarr*") if path.is_dir()] == ["scores.zarr"]


def test_what_an_earlier_run_sweeps_is_not_what_the_next_one_makes(tmp_path):
    path = tmp_path / "picks"
    partial = path.with_name("picks.partial")
    with swept():
        with StagedOutput(path, "a" * 64):
            pass
        (partial / "late").mkdir(parents=True)  # by a task that nobody waited for
    assert not partial.exists()
    with swept():  # by a run whose jobs take long to end
        with StagedOutput(path, "a" * 64):
            pass
        partial.mkdir()
        (partial / ".request").write_text("b" * 64)  # by another process, which has begun
    assert partial.exists()
