"""Fixtures shared by all tests: golden data, real files, running workers."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from fetch_server import archive, deposit
from hypothesis import HealthCheck, settings

__all__ = ["archive", "deposit"]

SHARED = Path(__file__).parents[1].parent / "shared"

# A shell starts what is in its background (`make test &`) deaf to Ctrl-C, and programs that the
# tests interrupt would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "local",
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("nightly", parent=settings.get_profile("local"), max_examples=500)
# A change is judged by the same examples each time; new ones are looked for at night and by hand.
settings.register_profile("ci", parent=settings.get_profile("local"), derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if "CI" in os.environ else "local"))


@pytest.fixture(scope="session")
def golden() -> Path:
    """Outputs of the reference programs."""
    if not (SHARED / "golden").is_dir():
        pytest.skip("../shared/golden is absent")
    return SHARED / "golden"


@pytest.fixture(scope="session")
def real_files() -> Path:
    """Awkward files that users sent."""
    if not (SHARED / "data").is_dir():
        pytest.skip("../shared/data is absent")
    return SHARED / "data"


@pytest.fixture
def one_thread():
    """Let PyTorch use one thread, as in a worker: two only fight over a busy machine's cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def nothing_said_before():
    """Let what is said once per process be said in this test, and in the next one."""
    from deepict_dask.backend import memory

    memory._said.clear()
    yield
    memory._said.clear()


@pytest.fixture
def stand_in(monkeypatch):
    """Put the stand-in in CuPy's place."""
    import sys

    import standin_cupy

    for name, module in standin_cupy.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("deepict_dask.backend.device._torch_is_for_cuda", lambda: True)
    standin_cupy.transfers.clear()
    standin_cupy.pinned_pool.clear()


def _threads(n):
    from deepict_dask.engine import ClusterSettings, connect

    return connect(ClusterSettings(kind="threads", workers=n, memory="4GiB"))


@pytest.fixture(scope="session")
def one_worker():
    with _threads(1) as workers:
        yield workers


@pytest.fixture(scope="session")
def two_workers():
    with _threads(2) as workers:
        yield workers


@pytest.fixture(scope="session")
def three_workers():
    with _threads(3) as workers:
        yield workers


@pytest.fixture(scope="session")
def any_workers(one_worker, two_workers, three_workers):
    """Clusters of 1, 2 and 3 workers, by their number."""
    return {1: one_worker, 2: two_workers, 3: three_workers}


@pytest.fixture(scope="session")
def gpu_worker():
    """A worker as `gpu_workers` plans it: three threads and as many places for tasks."""
    import dask
    from distributed import Client, LocalCluster

    from deepict_dask.engine.cluster import Workers
    from deepict_dask.engine.worker_settings import DASK_CONFIG

    options = {"n_workers": 1, "threads_per_worker": 3, "processes": False, "memory_limit": 0}
    with (
        dask.config.set(DASK_CONFIG),
        LocalCluster(**options, resources={"GPU": 3, "CPU": 1}, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield Workers(
            client, 1, 4 << 30, cluster.scheduler_address, kinds=frozenset({"GPU", "CPU"}),
            gpu_bytes=4 << 30, tasks_per_gpu=3,
        )  # fmt: skip
