"""Any process of a cluster dies at any moment: the run ends, and ends with the same bytes.

The moments are marks of progress, drawn by a seed over the whole life of a run, never seconds. A
window counts as done twice if its chunks were on the disk before the run was resumed (or before the
fault, where the run survives it) and were written again.
"""

from __future__ import annotations

import random

import pytest
from fault_cluster import Cluster, end_of, kill, start_driver
from fault_runs import FaultRun, threshold_of, write_inputs
from programs import marks, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

VICTIMS = ("worker", "nanny", "scheduler", "driver")
N_SEEDS = 20


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("cluster")) as started:
        yield started


@pytest.fixture(scope="module")
def threshold(inputs, cluster, tmp_path_factory):
    run = FaultRun(tmp_path_factory.mktemp("scout"), inputs, 0.5)
    finish(run, cluster)
    return threshold_of(run)


@pytest.fixture(scope="module")
def undisturbed(inputs, cluster, threshold, tmp_path_factory):
    run = FaultRun(tmp_path_factory.mktemp("undisturbed"), inputs, threshold)
    driver = start_driver(run.command, cluster)
    wait_until(lambda: marks(run.partial), driver)
    run.n_windows = len(marks(run.partial))
    code, text = end_of(driver)
    assert code == 0, text
    assert run.n_windows >= 60
    assert len((run.cell / "picks_0" / "picks.csv").read_text().splitlines()) > 20
    return run


def finish(run, cluster):
    code, text = end_of(start_driver(run.command, cluster))
    assert code == 0, text
    return text


def strike(cluster, driver, victim, chance):
    """Kill one process; return whether the driver is expected to survive."""
    number = chance.randrange(cluster.n_workers)
    if victim == "driver":
        kill(driver)
    elif victim == "scheduler":
        cluster.kill_scheduler()
    else:
        {"worker": cluster.kill_worker, "nanny": cluster.kill_nanny}[victim](number)
    return victim in ("worker", "nanny")


def assert_said_in_one_line(code, text):
    assert code == 1, text
    assert "Traceback" not in text
    assert len([line for line in text.splitlines() if line.startswith("error: ")]) == 1, text
    assert "again" in text


@pytest.mark.parametrize("seed", range(N_SEEDS))
def test_a_process_killed_at_a_random_moment_changes_no_byte(
    seed, inputs, cluster, threshold, undisturbed, tmp_path
):
    chance = random.Random(seed)
    victim = VICTIMS[seed % len(VICTIMS)]
    run = FaultRun(tmp_path, inputs, threshold)
    n_chunks = len(undisturbed.chunks)
    moments = [*run.moments(undisturbed.n_windows)]
    # Each kind of victim meets every fifth of the run's life once.
    turn = seed // len(VICTIMS)
    n_turns = N_SEEDS // len(VICTIMS)
    moment = chance.randrange(len(moments) * turn // n_turns, len(moments) * (turn + 1) // n_turns)
    driver = start_driver(run.command, cluster)
    wait_until(moments[moment], driver)
    before = run.chunks
    survives = strike(cluster, driver, victim, chance)
    if turn % 2:
        cluster.mend()  # a new scheduler at the old address knows nothing of the work
    code, text = end_of(driver)
    cluster.mend()
    if survives:
        assert code == 0, text
    elif code != 0:
        if victim == "scheduler":
            assert_said_in_one_line(code, text)
        before = run.chunks
        finish(run, cluster)
    now = run.chunks
    assert n_chunks == len(now)
    assert sum(now[name] != time for name, time in before.items()) < 0.1 * n_chunks
    assert run.results() == undisturbed.results()


def test_a_run_waits_for_workers_when_all_have_died(
    inputs, cluster, threshold, undisturbed, tmp_path
):
    run = FaultRun(tmp_path, inputs, threshold)
    driver = start_driver(run.command, cluster)
    wait_until(lambda: run.n_done >= 20, driver)
    for number in range(cluster.n_workers):
        cluster.kill_host(number)
    cluster.mend()
    code, text = end_of(driver)
    assert code == 0, text
    assert run.results() == undisturbed.results()


def memory_hog():
    """Return a function that takes more than a worker may have, the first time; sent by value."""

    def take_memory_once(flag):
        from pathlib import Path

        if Path(flag).exists():
            return "second time"
        Path(flag).touch()
        held = []
        while True:
            held.append(b"x" * (64 << 20))

    return take_memory_once


def test_a_run_survives_a_worker_that_is_killed_for_its_memory(
    inputs, cluster, threshold, undisturbed, tmp_path
):
    from distributed import Client

    run = FaultRun(tmp_path, inputs, threshold)
    driver = start_driver(run.command, cluster)
    wait_until(lambda: run.n_done >= 5, driver)
    before = {cluster.worker_of(nanny).pid for nanny in cluster.nannies}
    with Client(cluster.address) as client:
        hog = client.submit(memory_hog(), str(tmp_path / "flag"), priority=1000)
        assert hog.result(timeout=300) == "second time"
    code, text = end_of(driver)
    assert code == 0, text
    assert run.results() == undisturbed.results()
    cluster.mend()
    assert before != {cluster.worker_of(nanny).pid for nanny in cluster.nannies}
