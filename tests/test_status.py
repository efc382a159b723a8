"""What `deepict-dask status` says of a run: against the run itself, while it works and after."""

from __future__ import annotations

import json
import os
import threading

import pytest
from dataset_scenes import config_of, threshold_of, write_network, write_tomogram
from typer.testing import CliRunner

from deepict_dask.cli import app
from deepict_dask.core.errors import ConfigError
from deepict_dask.engine.ledger import Ledger
from deepict_dask.engine.output_lock import OutputLock
from deepict_dask.jobs.runs.journal import Journal, lock_of, read_events
from deepict_dask.jobs.runs.status import read_status, status_lines
from deepict_dask.jobs.session import Session
from deepict_dask.pipeline import run_pipeline

OUTPUTS = ["scores_net.zarr", "picks_a"]


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return write_network(tmp_path_factory.mktemp("network") / "net.safetensors")


@pytest.fixture(scope="module")
def threshold(tmp_path_factory, network, two_workers):
    return threshold_of(tmp_path_factory.mktemp("threshold"), network, two_workers)


@pytest.fixture(scope="module")
def told(tmp_path_factory, network, threshold, two_workers):
    """A run over three tomograms of which the second is broken, and its status at each line."""
    folder = tmp_path_factory.mktemp("run")
    for seed, name in enumerate("abc"):
        write_tomogram(folder / f"{name}.mrc", seed)
    (folder / "b.mrc").write_bytes((folder / "b.mrc").read_bytes()[:5000])
    told = {}
    config = config_of(folder, folder / "out", network, threshold, in_flight=1)

    def say(line):
        told[line] = read_status(folder / "out")

    run_pipeline(Session(two_workers), config, say=say)
    return folder / "out", told


def states_of(status):
    return {
        one.tomogram: (one.state, [part.state for part in one.outputs]) for one in status.tomograms
    }


@pytest.fixture
def output(tmp_path):
    """An output folder with a plan of two tomograms, locked by this process."""
    with OutputLock(lock_of(tmp_path)):
        yield tmp_path


def planned(output, names=("TS_1", "TS_2")):
    return Journal(output, dict.fromkeys(names, OUTPUTS), {})


def test_a_live_run_shows_what_is_done_and_what_waits(told):
    _, lines = told
    status = lines["a: wrote scores_net.zarr"]
    assert status.driver.pid == os.getpid()
    assert states_of(status) == {
        "a": ("running", ["done", "waiting"]),
        "b": ("waiting", ["waiting", "waiting"]),
        "c": ("waiting", ["waiting", "waiting"]),
    }
    later = lines["c: wrote scores_net.zarr"]
    assert states_of(later) == {
        "a": ("done", ["done", "done"]),
        "b": ("failed", ["failed", "not made"]),
        "c": ("running", ["done", "waiting"]),
    }


def test_a_run_that_is_over_shows_picks_and_reasons_and_no_driver(told):
    folder, _ = told
    status = read_status(folder)
    assert status.driver is None
    assert status.counts == {"done": 2, "failed": 1}
    a, b, c = status.tomograms
    for one in (a, c):
        listed = (folder / one.tomogram / "picks_a/picks.csv").read_text().splitlines()
        assert one.picks == {"picks_a": len(listed) - 1}
    assert "b.mrc" in b.reason
    text = "\n".join(status_lines(status))
    assert "nobody works here now" in text
    assert "3 tomograms: 2 done, 1 failed" in text


def test_the_command_prints_the_same_for_people_and_for_programs(told):
    folder, _ = told
    shown = CliRunner().invoke(app, ["status", str(folder)]).output.splitlines()
    assert [line.split()[:2] for line in shown[2:]] == [
        ["a", "done"], ["b", "failed"], ["c", "done"],
    ]  # fmt: skip
    found = json.loads(CliRunner().invoke(app, ["status", str(folder), "--json"]).output)
    assert [one["state"] for one in found["tomograms"]] == ["done", "failed", "done"]
    assert found["driver"] is None
    assert found["plan"]["by"]["pid"] == os.getpid()
    assert found["plan"]["versions"]["zarr"]
    assert [part["output"] for part in found["tomograms"][0]["outputs"]] == OUTPUTS


def test_looking_changes_nothing(told):
    folder, _ = told
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    read_status(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_windows_are_counted_in_the_ledger_of_unfinished_work(output):
    journal = planned(output)
    journal.note("TS_1", state="running")
    partial = output / "TS_1/scores_net.zarr.partial"
    partial.mkdir(parents=True)
    with Ledger(partial / ".ledger", "0" * 64, 7) as ledger:
        for number in (0, 3, 6):
            ledger.mark(number)
        scores = read_status(output).tomograms[0].outputs[0]
    assert (scores.state, scores.n_done, scores.n_windows) == ("running", 3, 7)
    assert str(scores) == "scores_net.zarr running 3 of 7 windows"


def test_work_of_a_driver_that_died_has_stopped_where_it_was(tmp_path):
    with OutputLock(lock_of(tmp_path)):
        journal = planned(tmp_path)
        journal.note("TS_1", state="running")
        partial = tmp_path / "TS_1/scores_net.zarr.partial"
        partial.mkdir(parents=True)
        with Ledger(partial / ".ledger", "0" * 64, 4) as ledger:
            ledger.mark(2)
    status = read_status(tmp_path)
    assert status.driver is None
    assert states_of(status)["TS_1"] == ("stopped", ["stopped", "waiting"])
    assert status.tomograms[0].outputs[0].n_done == 1
    journal.close()


def test_outputs_of_an_earlier_run_are_told_from_those_of_this_one(output):
    (output / "TS_1/picks_a").mkdir(parents=True)
    (output / "TS_1/stages.json").write_text(json.dumps({"picks_a": "key"}))
    journal = planned(output)
    assert states_of(read_status(output))["TS_1"] == ("waiting", ["waiting", "earlier"])
    journal.note("TS_1", output="picks_a")
    assert states_of(read_status(output))["TS_1"] == ("waiting", ["waiting", "done"])


def test_a_new_run_forgets_the_events_of_the_last_one(output):
    first = planned(output)
    first.note("TS_1", state="done", picks={}, seconds=1.0)
    planned(output)
    assert read_events(output)["TS_1"].state == "waiting"
    first.note("TS_2", state="done")  # a thread of the last run that is still there
    assert read_events(output)["TS_2"].state == "waiting"


def test_a_line_that_is_half_written_is_not_there_yet(output):
    journal = planned(output)
    journal.note("TS_1", state="running")
    with (output / ".deepict-dask/events.jsonl").open("a") as file:
        file.write('{"run": "x", "tomogr')
    assert read_events(output)["TS_1"].state == "running"
    journal.note("TS_2", state="running")  # ends the half line, as after a full disk
    journal.note("TS_2", state="done")
    assert read_events(output)["TS_2"].state == "done"


def test_reading_while_the_run_writes_sees_whole_events_in_their_order(output):
    names = [f"TS_{i}" for i in range(200)]
    journal = planned(output, names)

    def write():
        for name in names:
            journal.note(name, state="running")
            journal.note(name, state="done", picks={"picks_a": 1}, seconds=1.0)

    writers = threading.Thread(target=write)
    writers.start()
    n_done = []
    while writers.is_alive():
        n_done.append(read_status(output).counts.get("done", 0))
    writers.join()
    n_done.append(read_status(output).counts["done"])
    assert n_done == sorted(n_done)
    assert n_done[-1] == 200


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="found no plan of a run"):
        read_status(tmp_path)
