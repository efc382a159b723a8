"""Any process of a cluster dies at any moment: the run ends, and ends with the same bytes.

The moments are marks of progress, drawn by a seed over the whole life of a run, never seconds. A
window counts as done twice if its chunks were on the disk before the run was resumed (or before the
fault, where the run survives it) and were written again.
"""

from __future__ import annotations

import json
import random

import mrcfile
import numpy as np
import pytest
import zarr
from fault_cluster import Cluster, end_of, kill, start_driver
from programs import files_of, marks, times_of, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

SHAPE = (128, 128, 256)
CHUNK = 32
VICTIMS = ("worker", "nanny", "scheduler", "driver")
N_SEEDS = 20


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A noisy tomogram and a small network with random weights."""
    import torch

    from deepict_dask.models.checkpoint import save_model
    from deepict_dask.models.unet3d import UNet3D, UNet3DSettings

    folder = tmp_path_factory.mktemp("inputs")
    noise = np.random.default_rng(5).normal(size=SHAPE).astype("float32")
    mrcfile.write(folder / "cell.mrc", noise, voxel_size=10)
    torch.manual_seed(0)
    network = UNet3D(UNet3DSettings(depth=1, initial_features=2)).eval()
    for weights in network.parameters():
        torch.nn.init.normal_(weights, std=0.2)
    path = folder / "model.safetensors"
    save_model(path, network, class_names=("ribosome",), voxel_spacing_angstrom=10.0)
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("cluster")) as started:
        yield started


def write_config(folder, inputs, threshold=0.5):
    """Write the YAML of a run; return its command."""
    values = {
        "tomograms": str(inputs / "cell.mrc"),
        "output": str(folder / "out"),
        "chunks": [CHUNK] * 3,
        "segment": [{"model": str(inputs / "model.safetensors")}],
        "pick": [{"threshold": threshold, "label_map": True}],
        "cluster": {"memory": "400MiB"},
    }
    folder.mkdir(exist_ok=True)
    (folder / "run.yaml").write_text(json.dumps(values))
    return ("run", folder / "run.yaml", "--resume", "--no-progress")


class Run:
    """One run's folder, command and progress."""

    def __init__(self, folder, inputs, threshold):
        self.command = write_config(folder, inputs, threshold)
        self.cell = folder / "out" / "cell"
        self.scores = self.cell / "scores_model.zarr"
        self.partial = self.cell / "scores_model.zarr.partial"
        self.picks = self.cell / "picks_0.partial"
        self.n_windows = 0

    @property
    def n_done(self):
        return sum(marks(self.partial))

    @property
    def chunks(self):
        """When each chunk of the score map was written."""
        store = self.scores if self.scores.exists() else self.partial / "volume.zarr"
        return {n: t for n, t in times_of(store).items() if n.startswith("0/c/") and n[-1] != "l"}

    def moments(self, n_windows):
        """Conditions that become true one after another over a run's life."""
        yield self.partial.exists
        for n in range(1, n_windows):
            yield lambda n=n: self.n_done >= n or self.scores.exists()
        yield self.scores.exists
        yield lambda: (self.picks / "nodes").exists() or self._picked
        yield lambda: (self.picks / "segmentation.zarr" / "0" / "c").exists() or self._picked

    @property
    def _picked(self):
        return (self.cell / "picks_0" / "run.json").exists()

    def results(self):
        """Digests of all files but the one that holds times."""
        return {n: d for n, d in files_of(self.cell).items() if not n.endswith("run.json")}


@pytest.fixture(scope="module")
def threshold(inputs, cluster, tmp_path_factory):
    """A threshold that leaves a few hundred small clusters."""
    run = Run(tmp_path_factory.mktemp("scout"), inputs, 0.5)
    finish(run, cluster)
    return round(float(np.quantile(zarr.open_array(run.scores / "0", mode="r")[:], 0.99)), 6)


@pytest.fixture(scope="module")
def undisturbed(inputs, cluster, threshold, tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("undisturbed"), inputs, threshold)
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
    run = Run(tmp_path, inputs, threshold)
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
    run = Run(tmp_path, inputs, threshold)
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

    run = Run(tmp_path, inputs, threshold)
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
