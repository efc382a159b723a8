"""How workers are set up, wherever they run: Dask's own settings, and one thread each."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..core.heap import HEAP_ENVIRONMENT

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DASK_CONFIG", "SINGLE_THREADED", "environment_kept", "job_environment"]

DASK_CONFIG = {
    # Tasks are planned to fit, and results are small: spilling or pausing would only hide a bug.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.95,
    # The profiler calls sys._current_frames, which in CPython 3.11 can collect garbage while it
    # holds the lock of all threads: seen once, a worker hung for good.
    "distributed.worker.profile.enabled": False,
    # Every process looks 50 times a second whether its loop is late, only to warn of it: two
    # workers, a scheduler and a client took 10 % of a core with nothing to do, now 3 %.
    "distributed.admin.tick.interval": "500ms",
    "distributed.scheduler.allowed-failures": 3,
    "distributed.admin.log-format": "%(message)s",
    # The last messages are kept, with the tasks in them: a hundred are enough to look into.
    "distributed.admin.low-level-log-length": 100,
    # What a task raises is reported once, in words, by the process that drives the work.
    "logging.distributed": "critical",
    "distributed.nanny.pre-spawn-environ.DASK_LOGGING__DISTRIBUTED": "critical",
    "distributed.nanny.pre-spawn-environ.DASK_LOGGING__ASYNCIO": "critical",
    "distributed.comm.timeouts.connect": "60s",
    # The C library reads these as a process starts.
    **{
        f"distributed.nanny.pre-spawn-environ.{name}": value
        for name, value in HEAP_ENVIRONMENT.items()
    },
}
SINGLE_THREADED = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    # Zarr decodes ten chunks at once by default: a 176^3 window took 124 MiB to read, now 21 MiB.
    **dict.fromkeys(("ZARR_ASYNC__CONCURRENCY", "ZARR_THREADING__MAX_WORKERS"), "1"),
}
_OF_JOBS = ("distributed.worker.", "distributed.comm.", "distributed.admin.tick.")
"""What workers of a job are told too. They keep Dask's own messages: these go to the job's log."""


def job_environment() -> dict[str, str]:
    """Return the variables that set up workers which a job starts.

    Examples
    --------
    >>> job_environment()["DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED"]
    'False'
    >>> job_environment()["OMP_NUM_THREADS"]
    '1'
    """
    told = {
        "DASK_" + key.replace(".", "__").replace("-", "_").upper(): str(value)
        for key, value in DASK_CONFIG.items()
        if key.startswith(_OF_JOBS)
    }
    return SINGLE_THREADED | HEAP_ENVIRONMENT | told


@contextmanager
def environment_kept() -> Iterator[None]:
    """Put back what is set for workers while they start, in the process that starts them.

    Dask's nannies write variables such as ``OMP_NUM_THREADS=1`` into their own process for workers
    to inherit, and leave them there: PyTorch, imported afterwards, would train on one core.
    """
    import dask

    before = dict(os.environ)
    try:
        yield
    finally:
        for name in dask.config.get("distributed.nanny.pre-spawn-environ"):
            os.environ.pop(name, None)
            os.environ.update({name: before[name]} if name in before else {})
