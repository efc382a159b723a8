"""Hosts are cut off, freeze and crash in mid-run: the run ends, and ends with the same bytes.

Hosts are namespaces of this machine, each with its own address (`hosts.py`). The moments are marks
of progress, never seconds. A host that comes back late finishes what it was doing when everybody
had given it up; it must find nothing to damage.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from fault_runs import FaultRun, threshold_of, write_inputs
from hosts import network, wait_for, why_no_hosts
from programs import PATIENCE_S, PROGRAM, is_alive, run, wait_until
from slurm_hosts import slurm_hosts

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]

DASK = PROGRAM.with_name("dask")
PORT = 8786
TIMES = {
    # How long a silent connection is believed in. The default is 30 s, the least possible 11 s.
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "12s",
    # What the scheduler says is counted; local workers of earlier tests leave it silent.
    "DASK_LOGGING__DISTRIBUTED": "info",
    "OMP_NUM_THREADS": "1",
}
HANGS = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "30s"}
"""The same for workers that are connected and do not answer; by default five minutes. With 15 s
healthy ones were given up too, on a busy machine: a worker that imports PyTorch does not answer."""


@pytest.fixture(scope="module", autouse=True)
def _hosts():
    if reason := why_no_hosts():
        pytest.skip(reason)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory):
    """A run on local workers, without any network."""
    folder = tmp_path_factory.mktemp("undisturbed")
    scout = FaultRun(folder, inputs, 0.5)
    run(*scout.command, "--workers", 2)
    threshold = threshold_of(scout)
    here = FaultRun(folder, inputs, threshold)
    run(*here.command, "--workers", 2)  # only picks again
    assert len((here.cell / "picks_0" / "picks.csv").read_text().splitlines()) > 20
    here.threshold = threshold
    return here


class HostedCluster:
    """A scheduler on the first host, which also drives the runs, and a worker on each other."""

    def __init__(self, net, folder, **times):
        self.first, *self.others = net.hosts
        self.times = TIMES | times
        self.folder, self.n_logs = folder, 0
        self.address = f"tcp://{self.first.address}:{PORT}"

    def start(self):
        listen = ("--host", self.first.address, "--port", PORT)
        self._start(self.first, "scheduler", *listen)
        for host in self.others:
            self.start_worker(host)
        wait_for(lambda: self.said("Register worker") == len(self.others), "workers")

    def start_worker(self, host):
        self._start(host, "worker", self.address, "--nthreads", 1, "--memory-limit", "1GiB")

    def _start(self, host, kind, *arguments):
        self.n_logs += 1
        log = self.folder / f"{kind}{self.n_logs}.log"
        host.start(DASK, kind, *arguments, "--no-dashboard", log=log, **self.times)

    def said(self, words):
        """How often the scheduler has said something."""
        return (self.folder / "scheduler1.log").read_text().count(words)

    def drive(self, faulted):
        """Start a run."""
        return self.first.start(PROGRAM, *faulted.command, "--cluster", self.address, **self.times)


@pytest.fixture
def cluster(request, tmp_path):
    with network(tmp_path, "ctl", "h1", "h2") as net:
        hosted = HostedCluster(net, tmp_path, **getattr(request, "param", {}))
        hosted.start()
        yield hosted


@pytest.fixture
def faulted(inputs, undisturbed, tmp_path):
    return FaultRun(tmp_path / "run", inputs, undisturbed.threshold)


def ends_well(driver):
    text, _ = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 0, text
    return text


def freeze(host):
    """Stop all that computes on a host and what looks after it; return a function to go on."""
    frozen = host.processes("python")
    for process in frozen:
        process.suspend()
    return lambda: [process.resume() for process in frozen]


def outputs(faulted):
    """Digests of what is finished: a late host that was in mid-write leaves a folder beside it."""
    return {n: d for n, d in faulted.results().items() if ".partial/" not in n}


def test_a_run_over_three_hosts_gives_the_bytes_of_a_local_run(cluster, faulted, undisturbed):
    ends_well(cluster.drive(faulted))
    assert faulted.results() == undisturbed.results()


def test_a_link_that_is_down_for_a_moment_costs_no_worker(cluster, faulted, undisturbed):
    driver = cluster.drive(faulted)
    wait_until(lambda: faulted.n_done >= 5, driver)
    for host in cluster.others:
        host.cut()
        host.join()
    ends_well(driver)
    assert cluster.said("Remove worker") == 0
    assert faulted.results() == undisturbed.results()


KILLED = """
import sys, time
from pathlib import Path
from hosts import network
with network(Path(sys.argv[1]), "a", "b") as net:
    for host in net.hosts:
        host.start("sleep", 1000)
        print(host.pid, *(process.pid for process in host.processes("sleep")))
    print("up", flush=True)
    time.sleep(1000)
"""


def test_nothing_is_left_of_hosts_though_the_tests_are_killed(tmp_path):
    named = _named_namespaces()
    command = [sys.executable, "-c", KILLED, tmp_path]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent
    ) as tests:
        pids = []
        for line in tests.stdout:
            if line == "up\n":
                break
            pids += map(int, line.split())
        tests.kill()
    assert len(pids) == 4
    wait_for(lambda: not any(map(is_alive, pids)), "the end of the hosts")
    assert _named_namespaces() == named


def test_nothing_is_left_of_hosts_after_a_failure(tmp_path):
    named = _named_namespaces()
    with suppress(ZeroDivisionError), network(tmp_path, "a", "b") as net:
        net.hosts[0].start("sleep", 1000)
        (asleep,) = net.hosts[0].processes("sleep")
        assert "eth0" in net.hosts[0].run("ip", "-brief", "link")
        raise ZeroDivisionError
    wait_for(lambda: not is_alive(asleep.pid), "the end of the program")
    assert _named_namespaces() == named


def _named_namespaces():
    return subprocess.run(["ip", "netns", "list"], capture_output=True, check=True).stdout


def segmenting(run):
    return run.n_done >= 8


@pytest.mark.parametrize(
    ("moment", "is_frozen"),
    [(segmenting, False), (FaultRun.is_labelling, True)],
    ids=["segmenting, lives on", "labelling, freezes"],
)
def test_a_host_that_is_cut_off_and_comes_back_late_damages_nothing(
    moment, is_frozen, cluster, faulted, undisturbed
):
    _, lost = cluster.others
    computing = lost.processes("spawn_main")
    driver = cluster.drive(faulted)
    wait_until(lambda: moment(faulted), driver)
    go_on = freeze(lost) if is_frozen else None
    lost.cut()
    ends_well(driver)
    assert cluster.said(f"Remove worker addr: tcp://{lost.address}:") == 1
    assert faulted.results() == undisturbed.results()
    if go_on is not None:
        go_on()
    lost.join()
    wait_for(lambda: not any(is_alive(p.pid) for p in computing), "the end of the late work")
    assert outputs(faulted) == undisturbed.results()
    # A host that is back is of use again, once somebody starts its worker.
    cluster.start_worker(lost)
    wait_for(lambda: cluster.said("Register worker") >= 3, "a worker of the host that is back")


@pytest.mark.parametrize("cluster", [HANGS], indirect=True, ids=["short patience"])
def test_a_host_that_hangs_with_its_link_up_is_given_up(cluster, faulted, undisturbed):
    _, hung = cluster.others
    computing = hung.processes("spawn_main")
    driver = cluster.drive(faulted)
    wait_until(lambda: faulted.n_done >= 8, driver)
    go_on = freeze(hung)
    ends_well(driver)
    assert cluster.said(f"Remove worker addr: tcp://{hung.address}:")
    assert faulted.results() == undisturbed.results()
    go_on()
    wait_for(lambda: not any(is_alive(p.pid) for p in computing), "the end of the late work")
    assert outputs(faulted) == undisturbed.results()


def test_a_host_that_crashes_costs_no_byte(cluster, faulted, undisturbed):
    _, lost = cluster.others
    driver = cluster.drive(faulted)
    wait_until(lambda: faulted.n_done >= 8, driver)
    lost.crash()
    ends_well(driver)
    assert cluster.said(f"Remove worker addr: tcp://{lost.address}:") == 1
    assert faulted.results() == undisturbed.results()


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with slurm_hosts(tmp_path_factory.mktemp("hosts")) as machine:
        yield machine


@pytest.fixture
def profile(slurm, tmp_path):
    """Writes a profile; nothing of its jobs may be left."""

    def write(**keys):
        usual = {
            "memory_per_job": "2GiB", "walltime": "00:30:00", "interface": "eth0", "poll_s": 1,
            "log_directory": str(tmp_path / "logs"), "dashboard_port": 0,
        }  # fmt: skip
        path = tmp_path / "slurm.yaml"
        path.write_text("\n".join(f"{key}: {value}" for key, value in (usual | keys).items()))
        return f"slurm:{path}"

    yield write
    slurm.wait_for(lambda machine: not machine.jobs(), timeout_s=60)


def test_slurm_over_three_hosts_gives_the_bytes_of_a_local_run(
    slurm, profile, faulted, undisturbed
):
    several = profile(jobs=2, cores_per_job=3)  # of the four that a node has
    driver = slurm.start(PROGRAM, *faulted.command, "--cluster", several)
    wait_until(lambda: faulted.n_done, driver)
    slurm.wait_for(lambda machine: len(machine.jobs("RUNNING")) == 2)
    assert {slurm.host_of(job).name for job in slurm.jobs()} == {"n1", "n2"}
    ends_well(driver)
    assert faulted.results() == undisturbed.results()


def test_the_jobs_of_a_crashed_host_are_replaced_on_another(slurm, profile, faulted, undisturbed):
    driver = slurm.start(PROGRAM, *faulted.command, "--cluster", profile(jobs=1))
    wait_until(lambda: faulted.n_done >= 8, driver)
    (job,) = slurm.jobs()
    lost = slurm.host_of(job)
    lost.crash()
    text = ends_well(driver)
    assert f"job {job} of Slurm is lost; sending another" in text
    assert faulted.results() == undisturbed.results()
    lost.boot()
    slurm.start_node(lost.name)
    slurm.wait_for(lambda machine: machine.nodes() == ["idle", "idle"])
