"""What processes have from their start: workers that keep a chunk's memory, a driver as it was."""

from __future__ import annotations

import os
import resource
import sys

import dask
import pytest

from deepict_dask.core.heap import HEAP_ENVIRONMENT
from deepict_dask.engine import ClusterSettings, connect
from deepict_dask.engine.worker_settings import job_environment

CHUNK_BYTES = 8 << 20
PAGES = CHUNK_BYTES // resource.getpagesize()


def pages_mapped_for_ten_chunks() -> int:
    """Return how many pages the kernel mapped while ten chunks came and went."""

    def chunk():
        return len(bytearray(b"x") * CHUNK_BYTES)

    chunk()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        chunk()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(sys.platform != "linux", reason="thresholds of glibc")
def test_a_local_worker_uses_the_memory_of_a_chunk_again():
    with connect(ClusterSettings("local", workers=1, memory="1GiB")) as workers:
        mapped = workers.client.submit(pages_mapped_for_ten_chunks).result(timeout=300)
    assert mapped < PAGES  # each chunk anew would be ten times as many


@pytest.mark.parametrize("already", [{}, {"OMP_NUM_THREADS": "7"}])
def test_the_process_that_starts_workers_keeps_its_own_variables(already, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in already.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with connect(ClusterSettings("local", workers=1, memory="1GiB")) as workers:
        ask = workers.client.submit(os.getenv, "OMP_NUM_THREADS")
        assert ask.result(timeout=300) == "1"
        assert dict(os.environ) == before


def test_workers_look_at_their_loops_twice_a_second():
    with connect(ClusterSettings("local", workers=1, memory="1GiB")) as workers:
        ask = workers.client.submit(dask.config.get, "distributed.admin.tick.interval")
        assert ask.result(timeout=300) == "500ms"


def test_workers_of_jobs_are_told_the_same():
    assert HEAP_ENVIRONMENT.items() <= job_environment().items()
