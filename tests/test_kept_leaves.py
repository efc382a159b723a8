"""Picks in one pass after a kill: finished windows are kept, and the bytes are as undisturbed."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from dataset_scenes import config_of, results_of, threshold_of, write_network, write_tomogram
from programs import inside, kill_when, marks, run
from typer.testing import CliRunner

from deepict_dask.cli import app
from deepict_dask.config import SegmentSettings
from deepict_dask.core.errors import WorkFailedError
from deepict_dask.core.geometry import Grid
from deepict_dask.core.statistics import StatisticsReduction
from deepict_dask.jobs.picking.kept_leaves import KeptLeaves, open_leaves
from deepict_dask.jobs.runs.status import read_status
from deepict_dask.jobs.session import Session
from deepict_dask.pipeline import run_pipeline
from deepict_dask.segmentation.joint import JointSegmentOp

SHAPE = (48, 72, 96)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return write_network(tmp_path_factory.mktemp("network") / "net.safetensors")


@pytest.fixture(scope="module")
def threshold(tmp_path_factory, network, two_workers):
    return threshold_of(tmp_path_factory.mktemp("threshold"), network, two_workers)


@pytest.fixture
def config(tmp_path, network, threshold):
    write_tomogram(tmp_path / "a.mrc", 0, shape=SHAPE)
    config = config_of(tmp_path, tmp_path / "out", network, threshold, tomograms="a.mrc")
    return config.model_copy(update={"keep_scores": False, "chunks": (16, 24, 24)})


class Windows:
    """Counts the windows that networks are applied to, and fails after some."""

    def __init__(self, monkeypatch):
        self.n_done, self.at_most, self._lock = 0, None, threading.Lock()
        predict, windows = JointSegmentOp.written_scores, self

        def counted(self, block, *arrays):
            with windows._lock:
                if windows.n_done == windows.at_most:
                    raise OSError(5, "Input/output error of a test")
                windows.n_done += 1
            return predict(self, block, *arrays)

        monkeypatch.setattr(JointSegmentOp, "written_scores", counted)

    def run(self, workers, config, at_most=None):
        """Run; return how many windows were predicted, with an error where it failed."""
        self.n_done, self.at_most = 0, at_most
        if at_most is None:
            run_pipeline(Session(workers), config)
        else:
            with pytest.raises(WorkFailedError):
                run_pipeline(Session(workers), config)
        return self.n_done


@pytest.fixture
def windows(monkeypatch):
    return Windows(monkeypatch)


@pytest.fixture
def undisturbed(one_worker, config, windows, tmp_path):
    """The files of a run that nothing disturbs, and how many windows it has."""
    n = windows.run(one_worker, config.model_copy(update={"output": tmp_path / "undisturbed"}))
    assert n >= 4
    return results_of(tmp_path / "undisturbed"), n


def test_a_pass_goes_on_where_it_stopped(one_worker, config, windows, undisturbed):
    files, n = undisturbed
    assert windows.run(one_worker, config, at_most=n - 2) == n - 2
    (tomogram,) = read_status(config.output).tomograms
    assert str(tomogram.outputs[0]).startswith("picks_a failed ")
    assert tomogram.outputs[0].n_windows == n
    assert tomogram.outputs[0].n_done in {n - 2, n - 3}  # the last may not have been fetched
    assert windows.run(one_worker, config) == 2
    assert results_of(config.output) == files
    assert not [*config.output.rglob("*.leaf")]


def test_any_number_of_workers_goes_on_with_the_same_bytes(
    one_worker, three_workers, config, windows, undisturbed
):
    files, n = undisturbed
    assert windows.run(three_workers, config, at_most=1) == 1
    leaves = inside(config.output / "a/picks_a.partial", "pass/leaves")
    until = time.monotonic() + 300
    while not [*leaves.glob("*.leaf")] and time.monotonic() < until:
        time.sleep(0.01)  # its task may end after the run
    assert windows.run(one_worker, config, at_most=1) == 1
    assert windows.run(three_workers, config) == n - 2
    assert results_of(config.output) == files


@pytest.mark.parametrize("damage", ["cut", "changed", "no chunk", "bad chunk", "no voxels"])
def test_a_window_whose_files_are_damaged_is_predicted_again(
    one_worker, config, windows, undisturbed, damage
):
    files, n = undisturbed
    done = windows.run(one_worker, config, at_most=n - 1)
    folder = inside(config.output / "a/picks_a.partial", "pass")
    leaf = folder / "leaves/0.leaf"
    (store,) = (folder / "chosen0").glob("*.zarr")
    chunk = store / "0/c/0/0/0"
    content = bytearray(leaf.read_bytes())
    lost = 1
    if damage == "cut":
        leaf.write_bytes(content[:-9])
    elif damage == "changed":
        content[len(content) // 2] ^= 1
        leaf.write_bytes(content)
    elif damage == "no chunk":
        chunk.unlink()
    elif damage == "bad chunk":
        found = bytearray(chunk.read_bytes())
        found[-1] ^= 1
        chunk.write_bytes(found)
    else:
        store.rename(store.with_name("elsewhere"))
        lost = done
    assert windows.run(one_worker, config) == n - done + lost
    assert results_of(config.output) == files


def test_another_threshold_or_input_starts_afresh(one_worker, config, windows, undisturbed):
    _, n = undisturbed
    windows.run(one_worker, config, at_most=n - 1)
    (pick,) = config.pick
    other = pick.model_copy(update={"threshold": pick.threshold + 0.001})
    assert windows.run(one_worker, config.model_copy(update={"pick": (other,)})) == n
    windows.run(one_worker, config.model_copy(update={"output": config.output / "b"}), at_most=2)
    write_tomogram(config.tomograms, 1, shape=SHAPE)
    assert windows.run(one_worker, config.model_copy(update={"output": config.output / "b"})) == n


def test_corrected_class_names_start_afresh(one_worker, config, windows, tmp_path):
    model = write_network(tmp_path / "two.safetensors", names=("a", "b"))

    def named(*names, output="out"):
        segment = (SegmentSettings(model=str(model), class_names=names),)
        return config.model_copy(update={"segment": segment, "output": tmp_path / output})

    n = windows.run(one_worker, named("b", "a", output="undisturbed"))
    windows.run(one_worker, named("a", "b"), at_most=n - 1)
    assert windows.run(one_worker, named("b", "a")) == n
    assert results_of(tmp_path / "out") == results_of(tmp_path / "undisturbed")


def test_a_class_whose_name_has_a_slash_is_noted_under_its_whole_name(
    one_worker, config, windows, tmp_path
):
    model = write_network(tmp_path / "slash.safetensors", names=("a/b",))
    segment = (SegmentSettings(model=str(model)),)
    (pick,) = config.pick
    picks = (pick.model_copy(update={"class_name": "a/b"}),)
    config = config.model_copy(update={"segment": segment, "pick": picks})
    assert windows.run(one_worker, config) > 0
    assert windows.run(one_worker, config) == 0


def test_several_sections_go_on_together(one_worker, config, windows, tmp_path):
    (pick,) = config.pick
    two = (pick, pick.model_copy(update={"name": "few", "threshold": pick.threshold + 0.05}))
    config = config.model_copy(update={"pick": two})
    n = windows.run(one_worker, config.model_copy(update={"output": tmp_path / "undisturbed"}))
    windows.run(one_worker, config, at_most=n - 1)
    assert windows.run(one_worker, config) == 1
    assert results_of(config.output) == results_of(tmp_path / "undisturbed")


def test_a_leaf_that_a_stray_worker_adds_is_not_believed(tmp_path):
    grid, folder = Grid((4, 4, 4), (2, 4, 4)), tmp_path / "leaves"
    assert open_leaves(folder, "key", grid, []) == frozenset()
    ours = KeptLeaves(StatisticsReduction(), str(folder))
    KeptLeaves(StatisticsReduction(), str(folder)).measure(grid[1], np.zeros((2, 4, 4)))
    found = ours.measure(grid[1], np.ones((2, 4, 4)))
    assert found == StatisticsReduction().measure(grid[1], np.ones((2, 4, 4)))


@pytest.mark.slow
@pytest.mark.cluster
def test_a_killed_pass_shows_its_windows_and_goes_on(network, threshold, tmp_path):
    write_tomogram(tmp_path / "a.mrc", 0, shape=(64, 96, 128))
    (tmp_path / "run.yaml").write_text(
        f"tomograms: a.mrc\noutput: out\nchunks: [16, 24, 24]\nkeep_scores: false\n"
        f"segment: [{{model: {network}}}]\npick: [{{class: a, threshold: {threshold}}}]\n"
        "cluster: {workers: 2, memory: 420MiB}\n"
    )
    partial = tmp_path / "out/a/picks_a.partial"
    kill_when(lambda: sum(marks(partial)) >= 3, "run", tmp_path / "run.yaml", "--no-progress")
    n_done, n = sum(marks(partial)), len(marks(partial))
    assert n_done < n
    shown = CliRunner().invoke(app, ["status", str(tmp_path / "out")]).output
    assert f"picks_a stopped {n_done} of {n} windows" in shown
    leaves = inside(partial, "pass/leaves")
    before = {path.name: path.stat().st_mtime_ns for path in leaves.glob("*.leaf")}
    assert len(before) >= n_done
    kill_when(
        lambda: sum(marks(partial)) > len(before), "run", tmp_path / "run.yaml", "--no-progress",
        may_end=True,
    )  # fmt: skip
    for name, at in before.items() if leaves.exists() else ():
        assert (leaves / name).stat().st_mtime_ns == at
    run("run", tmp_path / "run.yaml", "--no-progress")
    text = (tmp_path / "run.yaml").read_text().replace("output: out", "output: undisturbed")
    (tmp_path / "other.yaml").write_text(text)
    run("run", tmp_path / "other.yaml", "--no-progress")
    assert results_of(tmp_path / "out") == results_of(tmp_path / "undisturbed")
