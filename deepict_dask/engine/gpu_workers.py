"""Workers of one machine with GPUs: one for each GPU, and beside them some without.

A worker sees one GPU, by ``CUDA_VISIBLE_DEVICES``. It has a thread for each of a few tasks and says
so to Dask (``GPU=3``; a task asks for ``GPU=1``): one of them computes (`backend.device_turn`)
while another reads its windows and a third writes. Workers without a GPU (``CPU=1``) have one
thread; they read, merge and write what leaves it. In a job of a batch system the variable lists the
job's GPUs, and these are divided.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ..core.errors import DeviceError
from .worker_settings import SINGLE_THREADED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .cluster import ClusterSettings

__all__ = [
    "WorkerPlan",
    "plan_gpu_workers",
    "plan_local",
    "task_bytes",
    "visible_gpus",
    "worker_specs",
]

_GIB = 1 << 30
CPU_WORKER_BYTES = 2 * _GIB
"""Memory of a worker without a GPU, at least."""
TASKS_AT_ONCE = 3
"""What a worker with a GPU has in work: one task reads, one computes, one writes."""
TASK_BYTES = 8 * _GIB
"""Memory of each of them, at least: with less there are fewer, and larger windows."""
CHUNKS_AT_ONCE = 8
"""What a worker with a GPU decodes in as many threads, if there are the cores."""

WorkerPlan = dict[str, tuple[int, dict[str, str], dict[str, float]]]
"""For each worker's name its bytes, what its environment adds, and the tasks it has at a time."""


def visible_gpus(n_found: int, environment: Mapping[str, str] | None = None) -> list[str]:
    """Return how each GPU of this process is named in ``CUDA_VISIBLE_DEVICES``.

    Parameters
    ----------
    n_found
        GPUs that CUDA counts.
    environment
        Of this process.

    Examples
    --------
    >>> visible_gpus(2, {"CUDA_VISIBLE_DEVICES": "3,GPU-5a"})
    ['3', 'GPU-5a']
    >>> visible_gpus(2, {})
    ['0', '1']
    """
    listed = (os.environ if environment is None else environment).get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in listed.split(",") if name.strip()]
    return names[:n_found] if names else [str(number) for number in range(n_found)]


def plan_gpu_workers(
    gpus: list[str], n_cores: int, free_bytes: int, *,
    n_cpu_workers: int | None = None, memory_bytes: int | None = None,
) -> WorkerPlan:  # fmt: skip
    """Divide a machine: a worker for each GPU, and CPU workers with what cores are left.

    Parameters
    ----------
    gpus
        Names as of `visible_gpus`.
    n_cores
        Of the machine, or the job.
    free_bytes
        Memory to divide: two thirds go to the workers with a GPU, which hold whole windows, each
        of as many tasks as its memory and its cores allow.
    n_cpu_workers
        Workers without a GPU, if the user says so; by default as many as cores and memory allow.
    memory_bytes
        Of each worker with a GPU, if the user says so.

    Raises
    ------
    DeviceError
        There is no GPU, or too little memory for its worker.

    Examples
    --------
    >>> plan = plan_gpu_workers(["0"], n_cores=3, free_bytes=24 << 30)
    >>> n_bytes, environment, resources = plan["gpu-0"]
    >>> n_bytes >> 30, environment["CUDA_VISIBLE_DEVICES"], resources
    (16, '0', {'GPU': 2})
    >>> list(plan)
    ['gpu-0', 'cpu-0', 'cpu-1']
    """
    if not gpus:
        raise DeviceError("device cuda: expected a GPU for a worker, found none")
    with_gpu = memory_bytes or free_bytes * 2 // 3 // len(gpus)
    left = free_bytes - with_gpu * len(gpus)
    if left < CPU_WORKER_BYTES:
        needed = with_gpu * len(gpus) + CPU_WORKER_BYTES
        raise DeviceError(
            f"device cuda: expected {needed / _GIB:.1f} GiB for {len(gpus)} workers with a GPU and "
            f"one without, found {free_bytes / _GIB:.1f} GiB free; lower --memory"
        )
    n_cpu = n_cpu_workers or max(1, min(n_cores - len(gpus), left // CPU_WORKER_BYTES))
    cores_each = n_cores // len(gpus)
    n_tasks = max(1, min(TASKS_AT_ONCE, cores_each, with_gpu // TASK_BYTES))
    at_once = str(max(1, min(CHUNKS_AT_ONCE, cores_each)))
    reading = dict.fromkeys(("ZARR_ASYNC__CONCURRENCY", "ZARR_THREADING__MAX_WORKERS"), at_once)
    plan: WorkerPlan = {
        f"gpu-{i}": (with_gpu, {"CUDA_VISIBLE_DEVICES": gpu} | reading, {"GPU": n_tasks})
        for i, gpu in enumerate(gpus)
    }
    nothing = {"CUDA_VISIBLE_DEVICES": ""}
    return plan | {f"cpu-{i}": (left // n_cpu, nothing, {"CPU": 1}) for i in range(n_cpu)}


def task_bytes(plan: WorkerPlan, kind: str) -> int:
    """Return the memory of each task of the smallest worker of a kind, "GPU" or "CPU".

    Examples
    --------
    >>> task_bytes({"gpu-0": (24 << 30, {}, {"GPU": 3}), "cpu-0": (4 << 30, {}, {"CPU": 1})}, "GPU")
    8589934592
    """
    return min(
        n_bytes // int(places[kind]) for n_bytes, _, places in plan.values() if kind in places
    )


def plan_local(settings: ClusterSettings) -> WorkerPlan | None:
    """Return the plan for this machine as it is now, None where no GPUs are asked for.

    Raises
    ------
    DeviceError
        As of `plan_gpu_workers`.
    """
    import psutil
    from distributed.system import MEMORY_LIMIT

    if not settings.gpus:
        return None
    free = min(int(psutil.virtual_memory().available * 0.9), MEMORY_LIMIT)
    return plan_gpu_workers(
        [*settings.gpus], len(os.sched_getaffinity(0)), free,
        n_cpu_workers=settings.workers, memory_bytes=settings.memory_bytes,
    )  # fmt: skip


def worker_specs(plan: WorkerPlan) -> dict[str, Any]:
    """Return the plan as `distributed.SpecCluster` wants it: a process each, a thread a task."""
    from distributed import Nanny

    return {
        name: {
            "cls": Nanny,
            "options": {
                "name": name, "nthreads": int(sum(places.values())), "memory_limit": n_bytes,
                "resources": places, "env": {**SINGLE_THREADED, **environment},
                "dashboard_address": None,
            },
        }
        for name, (n_bytes, environment, places) in plan.items()
    }  # fmt: skip
