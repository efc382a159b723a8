"""A few long tasks, each of which may fail without the others: trainings, most of all.

Unlike the blocks of a volume (`arrays.run_each`) a task here takes minutes to days and a good part
of a worker. A task that raises is handed back with its error. A worker runs one at a time; with
fewer tasks than workers of this machine, a task may use the cores that the others leave idle.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from ..core.errors import DeepictError
from .arrays import explain, task_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .cluster import Workers

__all__ = ["cores_each", "run_apart"]

Task = TypeVar("Task")
Result = TypeVar("Result")


def cores_each(workers: Workers, n_tasks: int) -> int:
    """Return how many cores each of so many tasks may use.

    Of workers on this machine an equal share of its cores; elsewhere the threads of a worker.

    Examples
    --------
    >>> from deepict_dask.engine import ClusterSettings, connect
    >>> with connect(ClusterSettings(kind="threads", workers=1, memory="1GiB")) as workers:
    ...     cores_each(workers, 1) == len(os.sched_getaffinity(0))
    True
    """
    from distributed import LocalCluster

    at_once = max(1, min(n_tasks, workers.n_workers))
    if isinstance(getattr(workers.client, "cluster", None), LocalCluster):
        return max(1, len(os.sched_getaffinity(0)) // at_once)
    known = workers.client.scheduler_info(n_workers=-1)["workers"].values()
    return max(1, min((worker["nthreads"] for worker in known), default=1))


def run_apart(
    workers: Workers, function: Callable[[Task], Result], tasks: Sequence[Task], *, stage: str
) -> Iterator[tuple[Task, Result | DeepictError]]:
    """Run a function on each task; yield each with its result, or with why it failed, as they end.

    Parameters
    ----------
    workers
        Where they run; tasks that have a ``device`` of "cuda" need a worker with a GPU where there
        are workers of two kinds.
    function
        Called in a worker.
    tasks
        Picklable, with a ``name`` and the ``folder`` they write.
    stage
        For the dashboard and for messages.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> from deepict_dask.engine import ClusterSettings, connect
    >>> @dataclass(frozen=True)
    ... class Division:
    ...     by: int
    ...     name: str = "division"
    ...     folder: str = "nowhere"
    ...     def made(self):
    ...         return 6 // self.by
    >>> with connect(ClusterSettings(kind="threads", workers=1, memory="1GiB")) as workers:
    ...     ended = list(run_apart(workers, Division.made, [Division(0), Division(3)], stage="do"))
    >>> sorted(type(result).__name__ for _, result in ended)
    ['WorkFailedError', 'int']
    """
    from distributed import as_completed

    pending: dict[Any, Any] = {}
    for number, task in enumerate(tasks):
        how = {"pure": False, "key": task_key(stage, number), **workers.placed(task, alone=True)}
        pending[workers.client.submit(function, task, **how)] = task
    try:
        for future in as_completed(list(pending)):
            task = pending.pop(future)
            yield task, _outcome(future, stage, str(task.folder))
    finally:
        if workers.client.status == "running":
            with suppress(Exception):
                workers.client.cancel(list(pending))


def _outcome(future: Any, stage: str, where: str) -> Any:
    """Return what a task made, or its error in words."""
    try:
        return future.result()
    except Exception as error:  # of any kind: it concerns this task only
        return error if isinstance(error, DeepictError) else explain(error, stage, where)
