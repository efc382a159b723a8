"""What a million windows cost, to their end: 64 workers whose tasks only sleep, one driver.

`bench_plans` starts such a plan and continues its costs by arithmetic; here all of it runs. 64
workers that sleep a quarter of a second finish 256 windows a second at most: 65 minutes.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from deepict_dask.engine import Ledger, map_chunks

from .bench_plans import NoVolume, SleepOp, grid_of
from .worker_cluster import WorkerCluster, worker_cluster

WINDOWS, WORKERS, SECONDS = 1_000_000, 64, 0.25
ROWS = 20
"""Of the table, about."""


class Course:
    """Notes how a plan goes on: speed, memory, and what the scheduler knows."""

    def __init__(self, cluster: WorkerCluster, n_windows: int, seconds: float) -> None:
        self._cluster, self._every, self._seconds = cluster, max(1, n_windows // ROWS), seconds
        self._start = time.perf_counter()
        self._before = cluster.cpu_s()
        self.n, self.first_s = 0, 0.0
        self.rows: list[list[Any]] = []

    def __call__(self, n: int) -> None:
        """Count windows that ended."""
        wall = time.perf_counter() - self._start
        self.first_s = self.first_s or wall
        before, self.n = self.n, self.n + n
        if self.n // self._every > before // self._every:
            resident = self._cluster.resident_bytes()
            self.rows.append([
                self.n, round(wall, 1), round(self.utilisation(wall), 3),
                *(round(resident[name] / 2**20, 1) for name in ("driver", "scheduler")),
                self._cluster.n_tasks_known(),
            ])  # fmt: skip

    def utilisation(self, wall_s: float) -> float:
        """Return which part of their time the workers have slept in tasks."""
        return self.n * self._seconds / (self._cluster.workers.n_workers * wall_s)

    def figures(self) -> dict[str, Any]:
        """Return the figures of the whole."""
        wall = time.perf_counter() - self._start
        cpu = {name: used - self._before[name] for name, used in self._cluster.cpu_s().items()}
        return {
            "windows finished": self.n,
            "minutes": round(wall / 60, 1),
            "part of their time that workers slept in tasks": round(self.utilisation(wall), 3),
            "seconds to the first result": round(self.first_s, 2),
            **{f"{name}, ms of CPU per window": round(1e3 * s / self.n, 3)
               for name, s in cpu.items()},
        }  # fmt: skip


def run(workers: Any, *, small: bool) -> dict[str, Any]:  # noqa: ARG001 - brings its own workers
    """Run 1,000,000 windows of 0.25 s on 64 workers (64 of 0.01 s on 2 if small)."""
    n, n_workers, seconds = (64, 2, 0.01) if small else (WINDOWS, WORKERS, SECONDS)
    grid = grid_of(n)
    volume = NoVolume(grid.shape)
    with worker_cluster(n_workers) as cluster, tempfile.TemporaryDirectory() as folder:
        course = Course(cluster, grid.n_blocks, seconds)
        with Ledger(Path(folder) / "ledger", "0" * 64, grid.n_blocks) as ledger:
            map_chunks(
                cluster.workers, SleepOp(seconds), [volume], volume, grid,
                ledger=ledger, on_done=course,
            )  # fmt: skip
        found = course.figures()
    return {
        "name": f"a million windows: {n_workers} workers, tasks that sleep {seconds} s",
        **found,
        "course": {
            "columns": ["windows", "s", "utilisation", "driver, MiB", "scheduler, MiB",
                        "tasks known to the scheduler"],
            "rows": course.rows,
        },
    }  # fmt: skip
