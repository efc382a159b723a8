"""A scheduler and many workers, for plans whose tasks only sleep.

The scheduler has a process of its own, so that its CPU time and memory can be told from the
driver's. All workers live in a second process: a thread that sleeps needs no core, so two cores can
host 64 workers. They talk TCP, as on a cluster; what they spend is not what a cluster's scheduler
or driver would.
"""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from deepict_dask.engine import ClusterSettings, Workers, connect

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class WorkerCluster:
    """Running workers, and the processes whose costs matter."""

    workers: Workers
    driver: psutil.Process
    scheduler: psutil.Process

    def cpu_s(self) -> dict[str, float]:
        """Return the CPU seconds that driver and scheduler have used."""
        return {name: sum(process.cpu_times()[:2]) for name, process in self._processes()}

    def resident_bytes(self) -> dict[str, int]:
        """Return the resident bytes of driver and scheduler."""
        return {name: process.memory_info().rss for name, process in self._processes()}

    def n_tasks_known(self) -> int:
        """Return how many tasks the scheduler remembers: flat plans keep this small."""
        known: int = self.workers.client.run_on_scheduler(_n_tasks)
        return known

    def _processes(self) -> list[tuple[str, psutil.Process]]:
        return [("driver", self.driver), ("scheduler", self.scheduler)]


def _n_tasks(dask_scheduler: Any) -> int:
    return len(dask_scheduler.tasks)


@contextmanager
def _program(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start this module as a program, wait for its first line, end it with the block."""
    command = [sys.executable, "-m", "benchmarks.worker_cluster", *arguments]
    quiet = os.environ | {"DASK_LOGGING__DISTRIBUTED": "error"}
    with subprocess.Popen(
        command, cwd=_ROOT, env=quiet, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.terminate()


@contextmanager
def worker_cluster(n_workers: int) -> Iterator[WorkerCluster]:
    """Start a scheduler and workers of one thread, reach them as the command line does."""
    with ExitStack() as stack:
        scheduler, address = stack.enter_context(_program("scheduler"))
        stack.enter_context(_program("workers", address, str(n_workers)))
        settings = ClusterSettings(kind=address, workers=n_workers, memory="1GiB")
        workers = stack.enter_context(connect(settings))
        yield WorkerCluster(workers, psutil.Process(), psutil.Process(scheduler.pid))


async def _scheduler() -> None:
    from distributed import Scheduler

    async with Scheduler(host="127.0.0.1", port=0, dashboard=False) as scheduler:
        print(scheduler.address, flush=True)
        await scheduler.finished()


async def _workers(address: str, n: int) -> None:
    import dask
    from distributed import Worker

    # 64 workers of one process would look 128 times a second at what it uses, and each look for
    # garbage goes through the objects of all of them: costs that a worker of its own does not have.
    dask.config.set({"distributed.admin.system-monitor.interval": "30s"})
    gc.set_threshold(50_000, 50, 50)
    started = [Worker(address, nthreads=1, memory_limit=0, dashboard=False) for _ in range(n)]
    await asyncio.gather(*started)
    print("started", flush=True)
    await asyncio.gather(*(worker.finished() for worker in started))


if __name__ == "__main__":
    if sys.argv[1] == "scheduler":
        asyncio.run(_scheduler())
    else:
        asyncio.run(_workers(sys.argv[2], int(sys.argv[3])))
