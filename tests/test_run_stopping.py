"""A run that is told to stop: cleanly, soon, with one message, and nothing is lost."""

from __future__ import annotations

import os
import signal
import threading

import psutil
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
from programs import marks, run, start, wait_until, workers_of

from deepict_dask.batch import Batch
from deepict_dask.cli.stopping import StoppedError, Terminated, stopped_cleanly
from deepict_dask.jobs.runs.status import read_status, status_lines
from deepict_dask.jobs.session import Session
from deepict_dask.pipeline import run_pipeline

GATE = threading.Event()
"""Lets tasks end; workers of these tests are threads of this process."""


def wait_at_gate():
    GATE.wait(300)


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


def test_an_interrupt_ends_the_threads_soon_and_nothing_is_lost(two_workers, gate):
    begun = threading.Barrier(3, timeout=60)

    def run_one(place, workers):
        if place == 0:
            return {"picks": 5}
        future = workers.client.submit(wait_at_gate, pure=False)
        begun.wait()
        return {"picks": future.result()}

    def interrupt():
        begun.wait()
        os.kill(os.getpid(), signal.SIGINT)

    batch = Batch(two_workers, list("abcd"), run_one, n_at_once=2)
    threading.Thread(target=interrupt).start()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            batch.run()
    finally:
        signal.signal(signal.SIGINT, before)
        gate.set()
    assert [one.state for one in batch.reports] == ["done", *["unfinished"] * 3]
    whys = [one.why.split(";")[0] for one in batch.reports]
    assert whys == ["", "interrupted", "interrupted", "not begun"]
    for thread in threading.enumerate():
        if thread.name.startswith("tomogram-"):  # it has ended, or is about to
            thread.join(60)
            assert not thread.is_alive()


def test_sigterm_is_told_from_an_interrupt_and_a_second_one_disturbs_nothing():
    seen = []

    @stopped_cleanly()
    def terminated():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Terminated:
            os.kill(os.getpid(), signal.SIGTERM)
            seen.append("all of the end")
            raise

    @stopped_cleanly()
    def interrupted():
        os.kill(os.getpid(), signal.SIGINT)

    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(StoppedError, match="--resume") as stopped:
        terminated()
    assert seen == ["all of the end"]
    assert stopped.value.exit_code == 143
    with pytest.raises(StoppedError, match="--resume") as stopped:
        interrupted()
    assert stopped.value.exit_code == 130
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_the_journal_says_by_what_a_run_was_stopped(two_workers, network, threshold, tmp_path):
    for seed, name in enumerate("ab"):
        write_tomogram(tmp_path / f"{name}.mrc", seed)
    config = config_of(tmp_path, tmp_path / "out", network, threshold, in_flight=1)

    def say(line):
        if line.startswith("a: wrote scores"):
            raise Terminated("by SIGTERM")

    with pytest.raises(KeyboardInterrupt):
        run_pipeline(Session(two_workers), config, say=say)
    status = read_status(tmp_path / "out")
    assert status.ended.startswith("stopped by SIGTERM at 20")
    assert [one.state for one in status.tomograms] == ["unfinished", "unfinished"]
    assert [one.reason.split(";")[0] for one in status.tomograms] == ["interrupted", "not begun"]
    assert f"and was {status.ended}" in next(status_lines(status))
    run_pipeline(Session(two_workers), config)
    status = read_status(tmp_path / "out")
    assert status.ended.startswith("20")
    assert "was stopped" not in next(status_lines(status))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, network, threshold):
    """The files of a run that nobody stops, with one tomogram at a time."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for seed, name in enumerate("ab"):
        write_tomogram(folder / f"{name}.mrc", seed, shape=(64, 96, 128))
    wishes = {"workers": 2, "memory": "405MiB", "tomograms_in_flight": 1}
    run("run", write_yaml(folder, network, threshold, **wishes), "--no-progress")
    return results_of(folder / "out")


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize(
    ("number", "code", "says"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "stopped by SIGTERM")],
)
def test_a_command_told_to_stop_leaves_one_message_a_summary_and_work_to_continue(
    network, threshold, undisturbed, tmp_path, number, code, says
):
    for seed, name in enumerate("ab"):
        write_tomogram(tmp_path / f"{name}.mrc", seed, shape=(64, 96, 128))
    path = write_yaml(tmp_path, network, threshold, workers=2, memory="405MiB")
    process = start("run", path, "--no-progress")
    partial = tmp_path / "out/a/scores_net.zarr.partial"
    wait_until(lambda: sum(marks(partial)) >= 2, process)
    workers = workers_of(process)
    process.send_signal(number)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == code
    assert workers
    assert not psutil.wait_procs(workers, timeout=60)[1]
    assert text.count("interrupted; run the same command again to continue") >= 1
    assert "Traceback" not in text
    assert text.splitlines()[-1].startswith(f"error: {says}; what is finished is kept")
    assert "--resume" in text.splitlines()[-1]
    shown = run("status", tmp_path / "out").splitlines()
    assert "and was stopped by" in shown[0]
    assert "2 unfinished" in shown[1]
    assert "unfinished" in {row["state"] for row in rows_of(tmp_path / "out")}
    run("run", path, "--no-progress")
    assert {row["state"] for row in rows_of(tmp_path / "out")} == {"done"}
    assert results_of(tmp_path / "out") == undisturbed


@pytest.mark.slow
@pytest.mark.cluster
def test_a_run_that_is_stopped_while_its_workers_start_ends_with_code_143(
    network, threshold, tmp_path
):
    write_tomogram(tmp_path / "a.mrc", 0)
    path = write_yaml(tmp_path, network, threshold, workers=2, memory="1GiB")
    process = start("run", path, "--no-progress")
    wait_until(lambda: workers_of(process), process)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 143, text
    assert text.splitlines()[-1].startswith("error: stopped by SIGTERM")
    assert "Traceback" not in text
