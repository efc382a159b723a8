"""Several tomograms at a time: the same bytes, failures alone, always a summary."""

from __future__ import annotations

import json
import logging
import os
import threading
import time

import numpy as np
import pandas as pd
import pytest
from dataset_scenes import (
    config_of,
    results_of,
    rows_of,
    threshold_of,
    write_network,
    write_tomogram,
    write_yaml,
)
from distributed import KilledWorker
from typer.testing import CliRunner

from deepict_dask import pipeline
from deepict_dask.batch import Batch
from deepict_dask.cli import app
from deepict_dask.core.errors import VolumeFormatError, WorkFailedError
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.engine import ClusterSettings, connect
from deepict_dask.engine.arrays import task_key
from deepict_dask.engine.turns import Turns
from deepict_dask.io.dataset import TomogramEntry
from deepict_dask.io.dataset_picks import PicksFile, write_dataset_picks
from deepict_dask.io.ome_zarr_write import create_ome_zarr
from deepict_dask.jobs.runs.dataset_outputs import write_dataset
from deepict_dask.jobs.runs.summary import TomogramReport
from deepict_dask.jobs.session import Session
from deepict_dask.pipeline import run_pipeline
from deepict_dask.tomogram_stages import TomogramStages

NAMES = ("a", "b", "c", "d")

GATE = threading.Event()
"""Lets tasks end; workers of these tests are threads of this process."""
ORDER: list[int] = []
"""Turns of tasks as they ran."""


def wait_at_gate():
    GATE.wait(300)


def took_place(turn):
    ORDER.append(turn)


@pytest.fixture
def gate():
    """The gate, closed; open when the test has ended."""
    GATE.clear()
    yield GATE
    GATE.set()


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return write_network(tmp_path_factory.mktemp("network") / "net.safetensors")


@pytest.fixture(scope="module")
def threshold(tmp_path_factory, network, two_workers):
    return threshold_of(tmp_path_factory.mktemp("threshold"), network, two_workers)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Four tomograms, one larger than the others."""
    folder = tmp_path_factory.mktemp("dataset")
    for seed, name in enumerate(NAMES):
        write_tomogram(folder / f"{name}.mrc", seed, shape=(40, 48, 96 if name == "a" else 48))
    return folder


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory, dataset, network, threshold, two_workers):
    """The results of a run that has one tomogram in work at a time."""
    output = tmp_path_factory.mktemp("one") / "out"
    run_pipeline(Session(two_workers), config_of(dataset, output, network, threshold, in_flight=1))
    return output


@pytest.fixture
def broken(tmp_path):
    """A folder of three tomograms, of which the second is cut short."""
    for seed, name in enumerate("abc"):
        write_tomogram(tmp_path / f"{name}.mrc", seed)
    whole = (tmp_path / "b.mrc").read_bytes()
    (tmp_path / "b.mrc").write_bytes(whole[: len(whole) // 2])
    return tmp_path


def n_lines(path):
    """Return the picks of a list, by its lines below the header."""
    return len(path.read_text().splitlines()) - 1


def test_three_at_a_time_leave_the_bytes_of_one_by_one(
    two_workers, dataset, one_by_one, network, threshold, tmp_path
):
    config = config_of(dataset, tmp_path / "out", network, threshold, in_flight=3)
    report = run_pipeline(Session(two_workers), config)
    assert [one.name for one in report.tomograms] == list(NAMES)
    expected = results_of(one_by_one)
    assert results_of(tmp_path / "out") == expected
    assert "dataset.parquet" in expected
    assert len(expected) > 40


def test_the_summary_counts_the_picks_of_each_list(one_by_one):
    rows = rows_of(one_by_one)
    assert [row["tomogram"] for row in rows] == list(NAMES)
    assert {row["state"] for row in rows} == {"done"}
    found = [n_lines(one_by_one / name / "picks_a/picks.csv") for name in NAMES]
    assert [int(row["picks_a"]) for row in rows] == found
    assert min(found) > 0
    assert all(float(row["seconds"]) >= 0 and row["reason"] == "" for row in rows)


def test_the_table_of_the_dataset_is_all_lists_one_after_another(one_by_one):
    table = pd.read_parquet(one_by_one / "dataset.parquet")
    lists = [pd.read_csv(one_by_one / name / "picks_a/picks.csv") for name in NAMES]
    expected = pd.concat(lists, ignore_index=True)
    for column in ("label", "z", "y", "x", "score", "n_voxels"):
        np.testing.assert_array_equal(table[column], expected[column])
    assert list(table["tomogram"]) == [
        name for name, each in zip(NAMES, lists, strict=True) for _ in range(len(each))
    ]
    np.testing.assert_allclose(table["x_angstrom"], expected["x"] * 12.0)
    assert set(table["picks"]) == {"picks_a"}
    assert set(table["class_name"]) == {"a"}


@pytest.mark.parametrize(
    ("record", "spacing"),
    [
        ({"voxel_spacing_angstrom": 10.0}, 10.0),
        ({"voxel_spacing_angstrom": None}, np.nan),
        ({"n_picks": 1}, 20.0),  # of an older version: that of the volume beside it
    ],
)
def test_positions_are_of_the_spacing_that_the_picks_were_made_with(tmp_path, record, spacing):
    folder = tmp_path / "t/picks_a"
    folder.mkdir(parents=True)
    (folder / "picks.csv").write_text("score,x,y,z\n0.5,3,2,1\n")
    (folder / "run.json").write_text(json.dumps(record))
    create_ome_zarr(tmp_path / "t/scores_of_another.zarr", VolumeHeader((2, 2, 2), "uint8", 20.0))
    write_dataset(tmp_path, [TomogramReport("t", {"picks_a": 1})])
    (row,) = pd.read_parquet(tmp_path / "dataset.parquet").to_dict("records")
    found = [row[f"{axis}_angstrom"] for axis in "zyx"]
    np.testing.assert_array_equal(found, [spacing, 2 * spacing, 3 * spacing])


def test_lists_without_rows_or_columns_have_a_place_in_the_table(tmp_path):
    (tmp_path / "none.csv").write_text("score,x,y,z,n_voxels,label\n")
    (tmp_path / "bare.csv").write_text("score,x,y,z\n0.5,3,2,1\n")
    files = [PicksFile(tmp_path / f"{name}.csv", name, "p") for name in ("none", "bare")]
    assert write_dataset_picks(files, tmp_path / "t.parquet") == 1
    (row,) = pd.read_parquet(tmp_path / "t.parquet").to_dict("records")
    assert (row["tomogram"], row["z"], row["score"]) == ("bare", 1.0, 0.5)
    assert np.isnan(row["label"])
    assert np.isnan(row["z_angstrom"])
    assert write_dataset_picks([], tmp_path / "t.parquet") == 0
    assert len(pd.read_parquet(tmp_path / "t.parquet")) == 0


def test_a_list_larger_than_a_piece_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("deepict_dask.io.dataset_picks._READ_BYTES", 1000)
    monkeypatch.setattr("deepict_dask.io.dataset_picks.GROUP_ROWS", 300)
    lines = [f"0.5,{i},2,1,9,{i}" for i in range(1000)]
    (tmp_path / "p.csv").write_text("score,x,y,z,n_voxels,label\n" + "\n".join(lines) + "\n")
    assert write_dataset_picks([PicksFile(tmp_path / "p.csv", "t", "p")], tmp_path / "t") == 1000
    assert pd.read_parquet(tmp_path / "t")["label"].tolist() == list(range(1000))


def test_a_broken_tomogram_fails_alone_and_the_run_says_why(
    two_workers, broken, network, threshold
):
    said = []
    config = config_of(broken, broken / "out", network, threshold)
    report = run_pipeline(Session(two_workers), config, say=said.append)
    assert [one.state for one in report.tomograms] == ["done", "failed", "done"]
    rows = rows_of(broken / "out")
    assert [row["state"] for row in rows] == ["done", "failed", "done"]
    assert "b.mrc" in rows[1]["reason"]
    assert rows[1]["picks_a"] == ""
    assert set(pd.read_parquet(broken / "out/dataset.parquet")["tomogram"]) == {"a", "c"}
    assert "2 of 3 tomograms done, 1 failed, 0 unfinished" in said


@pytest.mark.parametrize("error", [ValueError("odd"), MemoryError(), KeyError("gone")])
def test_an_unexpected_error_fails_its_tomogram_and_leaves_its_traceback_in_the_log(
    two_workers, dataset, network, threshold, tmp_path, monkeypatch, caplog, error
):
    whole = TomogramStages.regions

    def regions(self, *arguments):
        if self.entry.name == "b":
            raise error
        return whole(self, *arguments)

    monkeypatch.setattr(TomogramStages, "regions", regions)
    config = config_of(dataset, tmp_path / "out", network, threshold)
    with caplog.at_level(logging.DEBUG, "deepict_dask"):
        report = run_pipeline(Session(two_workers), config)
    assert [one.name for one in report.failed] == ["b"]
    words = {ValueError: "odd", MemoryError: "out of memory", KeyError: "gone"}
    assert words[type(error)] in rows_of(tmp_path / "out")[1]["reason"]
    (record,) = [r for r in caplog.records if r.levelno == logging.DEBUG and r.exc_info]
    assert record.exc_info[1] is error


def test_a_single_tomogram_that_fails_raises_its_own_error_after_the_summary(
    two_workers, broken, network, threshold
):
    config = config_of(broken, broken / "out", network, threshold, tomograms="b.mrc")
    with pytest.raises(VolumeFormatError, match=r"b\.mrc"):
        run_pipeline(Session(two_workers), config)
    assert [row["state"] for row in rows_of(broken / "out")] == ["failed"]


def test_the_command_shows_the_table_and_ends_with_code_1(broken, network, threshold):
    path = write_yaml(broken, network, threshold, kind="threads", workers=2)
    ended = CliRunner().invoke(app, ["run", str(path), "--no-progress"])
    assert isinstance(ended.exception, WorkFailedError)
    assert ended.exception.exit_code == 1
    assert "1 of 3 tomograms failed: b: " in str(ended.exception)
    lines = ended.output.splitlines()
    (head,) = [i for i, line in enumerate(lines) if line.split()[:2] == ["tomogram", "state"]]
    assert [line.split()[:2] for line in lines[head + 1 : head + 4]] == [
        ["a", "done"], ["b", "failed"], ["c", "done"],
    ]  # fmt: skip


def test_a_failure_is_an_error_of_its_tomogram_in_the_log(broken, network, threshold, tmp_path):
    path = write_yaml(broken, network, threshold, kind="threads", workers=2)
    log = ["--log-format", "json", "--log-file", str(tmp_path / "run.log")]
    CliRunner().invoke(app, [*log, "run", str(path), "--no-progress"])
    lines = [json.loads(line) for line in (tmp_path / "run.log").read_text().splitlines()]
    (failed,) = [one for one in lines if one["level"] == "error" and "tomogram" in one]
    assert failed["tomogram"] == "b"
    assert failed["message"].startswith("b: failed: ")
    assert "b.mrc" in failed["message"]


def test_what_a_source_says_of_the_voxel_spacing_holds_for_its_tomogram(
    two_workers, dataset, network, threshold, tmp_path, monkeypatch
):
    entries = [
        TomogramEntry("b", dataset / "b.mrc", voxel_spacing_angstrom=7.0),
        TomogramEntry("c", dataset / "c.mrc"),
    ]
    monkeypatch.setattr(pipeline, "list_tomograms", lambda _source: entries)
    config = config_of(dataset, tmp_path / "own", network, threshold)
    run_pipeline(Session(two_workers), config)
    table = pd.read_parquet(tmp_path / "own/dataset.parquet")
    spacing = np.where(table["tomogram"] == "b", 7.0, 12.0)
    np.testing.assert_allclose(table["y_angstrom"], table["y"] * spacing, rtol=1e-6)
    wins = {"voxel_spacing_angstrom": 9.0, "output": tmp_path / "wins"}
    run_pipeline(Session(two_workers), config.model_copy(update=wins))
    table = pd.read_parquet(tmp_path / "wins/dataset.parquet")
    np.testing.assert_allclose(table["y_angstrom"], table["y"] * 9.0, rtol=1e-6)


def test_tasks_of_an_earlier_tomogram_go_first(one_worker, gate):
    ORDER.clear()
    turns, known = Turns(one_worker), one_worker.client.cluster.scheduler.tasks
    futures = [turns.workers(0).client.submit(wait_at_gate, pure=False)]
    # A worker has the first few tasks of a kind at once, whatever their turn; the others queue.
    # Submissions may overtake each other, so the first few are waited for.
    for turns_of_some in ((9,), (2, 1, 0)):
        for turn in turns_of_some:
            client = turns.workers(turn).client
            futures += [
                client.submit(took_place, turn, pure=False, key=task_key("work", i))
                for i in range(3)
            ]
        while len(known) < len(futures):
            time.sleep(0.01)
    gate.set()
    one_worker.client.gather(futures)
    assert [turn for turn in ORDER if turn != 9] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_no_more_tomograms_run_at_a_time_than_are_wanted(two_workers):
    running, most, lock = set(), [], threading.Lock()
    ready = threading.Barrier(3, timeout=60)

    def run_one(place, _workers):
        with lock:
            running.add(place)
            most.append(len(running))
        ready.wait()  # nobody goes on until three are in work
        with lock:
            running.remove(place)
        ready.wait()
        return {}

    Batch(two_workers, list("abcdef"), run_one, n_at_once=3).run()
    assert max(most) == 3


def test_tomograms_that_follow_a_lost_scheduler_are_unfinished_and_not_failed():
    with connect(ClusterSettings(kind="threads", workers=1, memory="1GiB")) as workers:

        def run_one(place, workers):
            if place == 1:
                workers.client.close()
            return {"picks": workers.client.submit(sum, [place], pure=False).result()}

        batch = Batch(workers, list("abc"), run_one, n_at_once=1)
        batch.run()
    assert [one.state for one in batch.reports] == ["done", "unfinished", "unfinished"]
    assert "connection to the workers was lost" in batch.reports[1].why


def test_all_tomograms_in_work_are_told_that_the_connection_was_lost():
    both_run = threading.Barrier(2, timeout=60)
    with connect(ClusterSettings(kind="threads", workers=1, memory="1GiB")) as workers:

        def run_one(_place, workers):
            both_run.wait()
            workers.client.close()
            both_run.wait()
            return {"picks": workers.client.submit(sum, [1], pure=False).result()}

        batch = Batch(workers, list("abc"), run_one, n_at_once=2)
        batch.run()
    lost = "the connection to the workers was lost; run the same command again to continue"
    assert [one.why for one in batch.reports[:2]] == [lost, lost]
    assert "not begun" in batch.reports[2].why


def test_a_tomogram_that_shared_a_dying_worker_is_tried_again_alone(two_workers):
    tries, lock = [], threading.Lock()

    def run_one(place, _workers):
        with lock:
            tries.append(place)
            first = tries.count(place) == 1
        if place == 2 or (place == 1 and first):
            cause = KilledWorker("task", None, 3)
            raise WorkFailedError("its worker died") from cause
        return {}

    batch = Batch(two_workers, list("abcd"), run_one, n_at_once=2)
    batch.run()
    assert [one.state for one in batch.reports] == ["done", "done", "failed", "done"]
    assert sorted(tries[:4]) == [0, 1, 2, 3]
    assert tries[4:] == [1, 2]


@pytest.mark.slow
@pytest.mark.cluster
def test_a_tomogram_that_kills_its_workers_fails_alone():
    def run_one(place, workers):
        if place == 1:
            try:
                return {"picks": workers.client.submit(os._exit, 1, pure=False).result()}
            except KilledWorker as error:
                raise WorkFailedError("its worker died again and again") from error
        return {"picks": workers.client.submit(sum, [place, 1], pure=False).result()}

    with connect(ClusterSettings(workers=2, memory="1GiB")) as workers:
        batch = Batch(workers, list("abcd"), run_one, n_at_once=3)
        batch.run()
    assert [one.state for one in batch.reports] == ["done", "failed", "done", "done"]
    assert "died" in batch.reports[1].why
    assert [one.n_picks.get("picks") for one in batch.reports] == [1, None, 3, 4]
