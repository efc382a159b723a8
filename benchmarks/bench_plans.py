"""Plans of a million windows whose tasks only sleep: what the driver and the scheduler cost.

1. A plan of a million blocks is started and stopped again after a part of it: seconds to the first
   result, CPU of driver and scheduler per task, their memory early and late.
2. Real Dask workers (see `worker_cluster`) run tasks of several lengths: which part of their time
   they work.
3. What is computed and not measured says so. A driver and a scheduler hand out at most
   1 / (the larger CPU time per task) tasks a second: with a core each this continues the table of
   step 2 where two cores cannot, and tells how short a window may be before workers wait.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepict_dask.core.geometry import Grid
from deepict_dask.core.ops import ChunkOp, TreeReduction
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.engine import Ledger, map_chunks, reduce_chunks

from .worker_cluster import WorkerCluster, worker_cluster

if TYPE_CHECKING:
    from deepict_dask.core.geometry import Block, Box, Vec

LENGTHS_S = (0.1, 0.3, 1.0, 3.0, 10.0)
WORKERS = (2, 16, 64)
MEASURED = (100_000, 100_000)
"""Tasks that are run of a plan of a million: of a map, and leaves of a reduction."""
_CHUNK = 8


@dataclass(frozen=True)
class NoVolume:
    """Reads and writes a volume that is not there: plans cost no voxels."""

    shape: Vec
    path: str = "no volume"

    @property
    def header(self) -> VolumeHeader:
        """A header of its shape."""
        return VolumeHeader(self.shape, "uint8", 1.0)

    @property
    def write_shape(self) -> Vec:
        """Chunks of the plan."""
        return (_CHUNK, _CHUNK, _CHUNK)

    def read(self, box: Box) -> np.ndarray[Any, Any]:
        """Return a view of one byte in the box's shape."""
        return np.broadcast_to(np.uint8(0), box.shape)

    def write(self, box: Box, array: np.ndarray[Any, Any]) -> None:
        """Write nothing."""


@dataclass(frozen=True)
class SleepOp(ChunkOp):
    """A kernel that takes a given time."""

    seconds: float
    name: str = "sleep"
    dtype: str = "uint8"

    def apply(self, block: Block, *windows: Any) -> Any:  # noqa: ARG002 - the op's signature
        """Sleep, and return the window."""
        time.sleep(self.seconds)
        return windows[0]

    def bytes_needed(self, window_shape: Vec) -> int:  # noqa: ARG002 - the op's signature
        """Nothing is held."""
        return 0


@dataclass(frozen=True)
class SleepReduction(TreeReduction[int, int]):
    """Counts blocks; measuring one takes a given time."""

    seconds: float
    name: str = "count"

    def measure(self, block: Block, *windows: Any) -> int:  # noqa: ARG002 - the op's signature
        """Sleep, and count one block."""
        time.sleep(self.seconds)
        return 1

    def combine(self, left: int, right: int) -> int:
        """Add the blocks."""
        return left + right

    def finalize(self, partial: int) -> int:
        """Return the number of blocks."""
        return partial

    def bytes_needed(self, window_shape: Vec) -> int:  # noqa: ARG002 - the op's signature
        """Nothing is held."""
        return 0


class EnoughError(Exception):
    """Stops a plan that has shown what it costs."""


class Watch:
    """Notes, as tasks end, when the first one did and how costs grow; stops after enough."""

    def __init__(self, cluster: WorkerCluster, n_tasks: int) -> None:
        self._cluster, self._n_tasks = cluster, n_tasks
        self._every = max(1, n_tasks // 40)
        self._start = time.perf_counter()
        self._cpu_before = cluster.cpu_s()
        self.first_s = 0.0
        self.n = 0
        self.samples: list[tuple[int, dict[str, int]]] = []
        self.most_known = 0

    def __call__(self, n: int) -> None:
        """Count tasks that ended."""
        self.first_s = self.first_s or time.perf_counter() - self._start
        self.n += n
        if self.n % self._every == 0:
            self.samples.append((self.n, self._cluster.resident_bytes()))
            self.most_known = max(self.most_known, self._cluster.n_tasks_known())
        if self.n >= self._n_tasks:
            raise EnoughError

    def figures(self) -> dict[str, float]:
        """Return seconds to the first result, ms of CPU per task, MiB per 100,000 tasks."""
        used = self._cluster.cpu_s()
        wall_ms = 1e3 * (time.perf_counter() - self._start) / self.n
        found: dict[str, float] = {
            "seconds to the first result": round(self.first_s, 3),
            "most tasks known to the scheduler": self.most_known,
        }
        for name, before in self._cpu_before.items():
            found[f"{name}, ms of CPU per task"] = round(1e3 * (used[name] - before) / self.n, 3)
        for name in self._cpu_before:
            early, late = (self.samples[i][1][name] / 2**20 for i in (len(self.samples) // 10, -1))
            found[f"{name}, MiB after a tenth"] = round(early, 1)
            found[f"{name}, MiB at the end"] = round(late, 1)
            found[f"{name}, MiB per 100,000 tasks, second half"] = round(self._growth(name), 1)
        return found | {"ms per task on this machine": round(wall_ms, 3)}

    def _growth(self, name: str) -> float:
        """Return the slope of resident memory over the second half of the run."""
        late = self.samples[len(self.samples) // 2 :]
        counts, sizes = [n for n, _ in late], [sizes[name] for _, sizes in late]
        return float(np.polyfit(counts, sizes, 1)[0]) * 1e5 / 2**20


def grid_of(n_blocks: int) -> Grid:
    """Return a grid of at least this many blocks, as cubic as it can be."""
    side = round(n_blocks ** (1 / 3))
    side += side**3 < n_blocks
    return Grid((_CHUNK * side,) * 3, (_CHUNK,) * 3)


def long_map(cluster: WorkerCluster, n_blocks: int, n_tasks: int) -> dict[str, float]:
    """Start a map over many blocks with a ledger; return its costs over the first tasks."""
    grid, op = grid_of(n_blocks), SleepOp(0.0)
    volume = NoVolume(grid.shape)
    with tempfile.TemporaryDirectory() as folder:
        watch = Watch(cluster, n_tasks)
        with (
            Ledger(Path(folder) / "ledger", "0" * 64, grid.n_blocks) as ledger,
            suppress(EnoughError),
        ):
            map_chunks(cluster.workers, op, [volume], volume, grid, ledger=ledger, on_done=watch)
    return watch.figures()


def long_reduce(cluster: WorkerCluster, n_blocks: int, n_tasks: int) -> dict[str, float]:
    """Start a reduction over many blocks; return its costs over the first leaves."""
    grid = grid_of(n_blocks)
    watch = Watch(cluster, n_tasks)
    with suppress(EnoughError):
        volume = NoVolume(grid.shape)
        reduce_chunks(cluster.workers, SleepReduction(0.0), [volume], grid, on_done=watch)
    return watch.figures()


def utilisation(cluster: WorkerCluster, seconds: float, n_tasks: int) -> float:
    """Return which part of their time the workers sleep in tasks of this length."""
    grid = Grid((1, 1, _CHUNK * n_tasks), (_CHUNK,) * 3)
    volume = NoVolume(grid.shape)
    start = time.perf_counter()
    map_chunks(cluster.workers, SleepOp(seconds), [volume], volume, grid)
    wall = time.perf_counter() - start
    return n_tasks * seconds / (cluster.workers.n_workers * wall)


def modelled(workers: int, seconds: float, cost_s: float) -> float:
    """Return the part of their time that workers work when each task costs the hub this much.

    Examples
    --------
    >>> modelled(64, 0.1, 0.001), modelled(200, 0.1, 0.001)
    (1.0, 0.5)
    """
    return min(1.0, seconds / (workers * cost_s))


def shortest_s(workers: int, cost_s: float) -> float:
    """Return the length of task below which workers work less than 90 % of their time.

    Examples
    --------
    >>> round(shortest_s(64, 0.001), 4)
    0.0576
    """
    return 0.9 * workers * cost_s


def computed(cost_s: float) -> dict[str, float]:
    """Return what the costs per task mean for plans that were not run to their end."""
    return {
        "least time for 1,000,000 tasks, min (computed)": round(1e6 * cost_s / 60, 1),
        **{
            f"{n} workers fall under 90 % below, s a task (computed)": round(
                shortest_s(n, cost_s), 3
            )
            for n in (64, 256, 1024)
        },
    }


def run(workers: Any, *, small: bool) -> dict[str, Any]:  # noqa: ARG001 - all benchmarks are called alike
    """Measure plans of 1,000,000 windows (of 1,000 if small), and workers' use of their time."""
    n_blocks, n_map, n_reduce = (1_000, 200, 100) if small else (1_000_000, *MEASURED)
    counts, lengths = ((2,), (0.05,)) if small else (WORKERS, LENGTHS_S)
    rows: list[list[Any]] = []
    with worker_cluster(2) as two:
        mapped = long_map(two, n_blocks, n_map)
    with worker_cluster(2) as two:
        reduced = long_reduce(two, n_blocks, n_reduce)
    cost_s = 1e-3 * max(value for key, value in mapped.items() if "CPU" in key)
    for n in counts:
        with worker_cluster(n) as running:
            for seconds in lengths:
                n_tasks = n * max(2, min(20, round(10 / seconds)))
                measured = utilisation(running, seconds, n_tasks)
                rows.append(
                    [n, seconds, round(measured, 3), round(modelled(n, seconds, cost_s), 3)]
                )
    return {
        "name": "plans: a million windows, tasks that only sleep",
        "windows of the plan": n_blocks,
        "windows run": {"map": n_map, "reduce": n_reduce},
        "map": mapped,
        "reduce": reduced,
        "where it breaks": computed(cost_s),
        "utilisation": {
            "columns": ["workers", "task, s", "measured here", "computed"],
            "rows": rows,
        },
    }
