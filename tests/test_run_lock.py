"""One driver for an output folder: a second one is refused, and a dead one is in nobody's way."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest
from dataset_scenes import config_of, threshold_of, write_network, write_tomogram
from staging_scenes import make

from deepict_dask.core.errors import LedgerError
from deepict_dask.engine import output_lock
from deepict_dask.engine.output_lock import Holder, OutputLock, living_holder
from deepict_dask.jobs.runs.journal import lock_of
from deepict_dask.jobs.session import Session
from deepict_dask.pipeline import run_pipeline


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return write_network(tmp_path_factory.mktemp("network") / "net.safetensors")


@pytest.fixture(scope="module")
def threshold(tmp_path_factory, network, two_workers):
    return threshold_of(tmp_path_factory.mktemp("threshold"), network, two_workers)


@pytest.fixture
def dataset(tmp_path):
    for seed, name in enumerate("ab"):
        write_tomogram(tmp_path / f"{name}.mrc", seed)
    return tmp_path


def test_a_second_run_on_one_output_is_refused_by_host_and_process(
    two_workers, dataset, network, threshold, tmp_path
):
    config = config_of(dataset, tmp_path / "out", network, threshold)
    with OutputLock(lock_of(config.output)), pytest.raises(LedgerError) as refused:
        run_pipeline(Session(two_workers), config, restart=True)
    for word in (str(tmp_path / "out"), platform.node(), f"process {os.getpid()}", "wait"):
        assert word in str(refused.value)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".deepict-dask"]


HOLD = """
import pathlib, sys, time
from deepict_dask.engine.output_lock import OutputLock
with OutputLock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def no_flock(*_arguments):
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize("locks_work", [True, False])
def test_the_lock_of_another_process_holds_until_it_is_killed(tmp_path, monkeypatch, locks_work):
    if not locks_work:
        monkeypatch.setattr(fcntl, "flock", no_flock)
    path = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        assert living_holder(path).pid == holder.pid
        with pytest.raises(LedgerError, match=f"process {holder.pid}"), OutputLock(path):
            pass
    finally:
        holder.kill()
        holder.communicate()
    assert living_holder(path) is None
    with OutputLock(path):
        assert living_holder(path).pid == os.getpid()


def test_a_driver_elsewhere_counts_as_alive_while_its_file_is_fresh(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    with OutputLock(path):
        monkeypatch.setattr(platform, "node", lambda: "another-machine")
        assert living_holder(path).pid == os.getpid()
        old = time.time() - 3600
        os.utime(path, (old, old))
        assert living_holder(path) is None


@pytest.mark.parametrize("lives", [True, False])
def test_a_driver_elsewhere_whose_lock_is_not_seen_here_has_time_for_a_sign_of_life(
    tmp_path, monkeypatch, lives
):
    """As on Lustre with local locks: the lock can be taken, and means nothing."""
    monkeypatch.setattr(output_lock, "_DEATH_S", 2.0)
    monkeypatch.setattr(output_lock, "_POLL_S", 0.05)
    path = tmp_path / "lock"
    elsewhere = replace(Holder.ours(), host="another-machine")
    path.write_text(json.dumps(asdict(elsewhere)))
    ended = threading.Event()

    def beat():
        while lives and not ended.wait(0.2):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        if lives:
            with pytest.raises(LedgerError, match="another-machine"), OutputLock(path):
                pass
        else:
            with OutputLock(path):
                assert living_holder(path).host == platform.node()
    finally:
        ended.set()
        thread.join()


def test_a_lock_may_be_waited_for(tmp_path):
    path = tmp_path / "lock"
    first = OutputLock(path)
    first.__enter__()
    timer = threading.Timer(0.5, first.__exit__, (None, None, None))
    timer.start()
    with OutputLock(path, wait_s=60):
        assert living_holder(path).pid == os.getpid()
    timer.join()


def test_an_output_is_made_where_the_file_system_has_no_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", no_flock)
    make(tmp_path / "picks")
    assert (tmp_path / "picks/picks.csv").read_text() == "finished"
    assert [path.name for path in tmp_path.iterdir()] == ["picks"]
