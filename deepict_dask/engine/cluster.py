"""Workers: started here, reached over TCP, or asked for from a batch system (`cluster_jobs`)."""

from __future__ import annotations

import logging
import os
import signal
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backend import free_device_bytes, resolve_device
from ..core.errors import BudgetError, ClusterError
from .batch_systems import BATCH_SYSTEMS
from .budget import BASELINE_BYTES, format_bytes, parse_bytes
from .company import told_when_alone
from .device_part import needs_gpu
from .gpu_workers import plan_local, task_bytes, worker_specs
from .staging import swept
from .worker_settings import DASK_CONFIG, SINGLE_THREADED, environment_kept

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .gpu_workers import WorkerPlan

__all__ = ["ClusterSettings", "Workers", "connect"]

_GIB = 1 << 30
log = logging.getLogger("deepict_dask")


@dataclass(frozen=True)
class ClusterSettings:
    """Where the work runs.

    Examples
    --------
    >>> ClusterSettings(kind="local", workers=2, memory="4GiB").memory_bytes
    4294967296
    """

    kind: str = "local"
    """"local" (processes of one thread each), "threads" (in this process), tcp://HOST:PORT,
    scheduler-file:PATH, or slurm:PROFILE.yaml (also pbs:, lsf: and sge:)."""
    workers: int | None = None
    """Number of workers; by default as many as the cores and the memory allow."""
    memory: str | None = None
    """Memory of each worker, such as "4GiB"; by default an equal share of what is free."""
    gpus: tuple[str, ...] = ()
    """Of "local" workers: GPUs, as CUDA_VISIBLE_DEVICES names them. Each has a worker of its own,
    and ``workers`` are those without one that stand beside them."""

    @property
    def memory_bytes(self) -> int | None:
        """Memory of each worker in bytes, None where it is not given."""
        return None if self.memory is None else parse_bytes(self.memory)


@dataclass(frozen=True)
class Workers:
    """A running cluster: a client, and what one worker may use."""

    client: Any
    n_workers: int
    memory_bytes: int
    """Memory of each task of the smallest worker."""
    address: str
    dashboard: str | None = None
    elsewhere: bool = False
    """Whether the workers' machines differ from this one: they may have a GPU where it has none."""
    kinds: frozenset[str] = frozenset()
    """Dask resources of the workers where they differ: "GPU" for networks, "CPU" for the rest."""
    gpu_bytes: int | None = None
    """Memory of each task of a worker with a GPU, where that has more than the others."""
    tasks_per_gpu: int = 1
    """Tasks that each worker with a GPU has at a time: one computes, others read and write."""
    per_gpu: int = 1
    """Workers that share one GPU, each of which may have as large a part of its memory."""
    hint: str | None = None
    """What to tell the user of these workers, such as how to see the dashboard."""
    _told: dict[str, int] = field(default_factory=dict, repr=False, compare=False)
    """What workers were asked once: ``free``, the bytes of a GPU."""

    def in_flight(self) -> int:
        """Return how many tasks to keep submitted: enough that no worker waits for the client."""
        return 4 * max(1, self.n_workers) + 8

    @property
    def is_connected(self) -> bool:
        """Whether the scheduler can be reached."""
        return self.client.status in {"running", "connecting"}

    def memory_used(self) -> int | None:
        """Return the bytes of the fullest worker, as its scheduler last heard; None if it is gone.

        Examples
        --------
        >>> with connect(ClusterSettings(kind="threads", workers=1, memory="1GiB")) as workers:
        ...     workers.memory_used() > 0
        True
        """
        try:
            known = self.client.scheduler_info(n_workers=-1)["workers"].values()
        except Exception:  # of a connection that was just lost: what waits for results says so
            return None
        return max((int(one["metrics"].get("memory", 0)) for one in known), default=None)

    def placed(self, *work: Any, alone: bool = False) -> dict[str, Any]:
        """Return what a submission says of where it runs, if there are workers of two kinds.

        Parameters
        ----------
        work
            Ops or reductions of the task: one that holds a network on a GPU needs such a worker.
        alone
            Whether no other task may run beside it on a worker with a GPU.

        Examples
        --------
        >>> Workers(None, 2, 1 << 30, "", kinds=frozenset({"CPU", "GPU"})).placed()
        {'resources': {'CPU': 1}}
        """
        if len(self.kinds) < 2:
            return {}
        if not needs_gpu(work):
            return {"resources": {"CPU": 1}}
        return {"resources": {"GPU": self.tasks_per_gpu if alone else 1}}

    def memory_of(self, *work: Any, alone: bool = False) -> int:
        """Return the memory that a task has on the smallest worker on which it may be placed.

        Examples
        --------
        >>> Workers(None, 2, 1 << 30, "", gpu_bytes=4 << 30).memory_of()
        1073741824
        """
        if self.gpu_bytes is None or not needs_gpu(work):
            return self.memory_bytes
        return self.gpu_bytes * (self.tasks_per_gpu if alone else 1)

    def device(self, name: str) -> str:
        """Return cpu or cuda for auto, cpu or cuda: where the workers are, their GPU counts.

        Raises
        ------
        DeviceError
            cuda was asked for, and does not work there.
        """
        if not self.elsewhere:
            return resolve_device(name).name
        kind = {"resources": {"GPU": 1}} if "GPU" in self.kinds else {}
        found = self.client.submit(resolve_device, name, pure=False, **kind).result()
        return str(found.name)

    def free_device_bytes(self) -> int:
        """Return the free memory of a worker's GPU, or its part where workers share one.

        Raises
        ------
        DeviceError
            The worker has no CuPy.
        """
        if "free" not in self._told:  # asked once: windows must not follow what a neighbour holds
            kind = {"resources": {"GPU": 1}} if "GPU" in self.kinds else {}
            free = self.client.submit(free_device_bytes, pure=False, **kind).result()
            self._told["free"] = int(free) // self.per_gpu
        return self._told["free"]


@contextmanager
def connect(settings: ClusterSettings | None = None) -> Iterator[Workers]:
    """Start or reach workers, and stop what was started when the block ends.

    Raises
    ------
    ClusterError
        The scheduler cannot be reached, has no workers, or the kind is unknown.
    BudgetError
        Workers of the given memory cannot even import the libraries, or the machine lacks it.

    Examples
    --------
    >>> with connect(ClusterSettings(kind="threads", workers=1, memory="1GiB")) as workers:
    ...     workers.client.submit(sum, [1, 2]).result()
    3
    """
    import dask
    import distributed  # noqa: F401 - its own settings must be there before ours are laid over them

    settings = settings or ClusterSettings()
    name = settings.kind.partition(":")[0]
    _quieten()
    with dask.config.set(DASK_CONFIG), swept():
        if settings.kind in ("local", "threads"):
            with _local(settings) as workers:
                yield workers
        elif "://" in settings.kind or name == "scheduler-file":
            with _remote(settings) as workers:
                yield workers
        elif name in BATCH_SYSTEMS:
            from .cluster_jobs import batch_workers

            with batch_workers(settings) as workers:
                yield workers
        else:
            raise ClusterError(
                "--cluster: expected local, tcp://HOST:PORT, scheduler-file:PATH or "
                f"SYSTEM:PROFILE.yaml with one of {', '.join(BATCH_SYSTEMS)}, "
                f"found {settings.kind!r}"
            )


def _quieten() -> None:
    """Keep Dask's own news out of a biologist's terminal; what a task raises is said by us."""
    for name in [*logging.root.manager.loggerDict]:
        if name.startswith("distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def plan_workers(settings: ClusterSettings) -> tuple[int, int]:
    """Return how many workers to start and the bytes each may use: of a profile, or local ones.

    Examples
    --------
    >>> plan_workers(ClusterSettings(workers=1, memory="1GiB"))
    (1, 1073741824)
    """
    import psutil
    from distributed.system import MEMORY_LIMIT

    if settings.kind.partition(":")[0] in BATCH_SYSTEMS:
        from .cluster_jobs import plan_jobs, profiles_of

        return plan_jobs(profiles_of(settings), settings)
    free = min(int(psutil.virtual_memory().available * 0.9), MEMORY_LIMIT)
    cores = len(os.sched_getaffinity(0))
    each = settings.memory_bytes
    if each is not None and each < BASELINE_BYTES:
        raise BudgetError(
            f"--memory: a worker needs {format_bytes(BASELINE_BYTES)} before any work, "
            f"found {format_bytes(each)}; give at least 1GiB"
        )
    n = settings.workers or max(1, min(cores, free // (each or 2 * _GIB)))
    each = each or min(free // n, 8 * _GIB)
    if n * each > psutil.virtual_memory().total:
        raise BudgetError(
            f"--workers {n} x --memory {format_bytes(each)} is more than this machine's "
            f"{format_bytes(psutil.virtual_memory().total)}; lower one of them"
        )
    return n, each


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Keep a Ctrl-C until the block ends; processes and threads that it starts never see one.

    A terminal sends the signal to the workers too. They are stopped by the process that started
    them, which says so in one message.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python gives interrupts to the main thread only
        return
    seen: list[int] = []
    resource_tracker.ensure_running()  # started later, it would let interrupts through again
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    handler = signal.signal(signal.SIGINT, lambda number, _frame: seen.append(number))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler or signal.default_int_handler)
    if seen:
        raise KeyboardInterrupt


@contextmanager
def _local(settings: ClusterSettings) -> Iterator[Workers]:
    """Start workers on this machine."""
    from distributed import Client, LocalCluster
    from distributed.gc import disable_gc_diagnosis

    if (plan := plan_local(settings)) is not None:
        with _local_with_gpus(plan) as workers:
            yield workers
        return
    n, each = plan_workers(settings)
    threads = settings.kind == "threads"
    options: dict[str, Any] = {} if threads else {"env": SINGLE_THREADED}
    options |= {"n_workers": n, "threads_per_worker": 1, "processes": not threads}
    options |= {"memory_limit": 0 if threads else each, "dashboard_address": ":0"}
    with ExitStack() as stack:
        try:
            with interrupts_held(), environment_kept():
                cluster = stack.enter_context(LocalCluster(**options))
        except (RuntimeError, OSError, TimeoutError) as error:
            raise ClusterError(
                f"--cluster local: expected {n} workers to start, found: {error}; use fewer "
                '--workers, and in a script call this below `if __name__ == "__main__":`'
            ) from error
        client = stack.enter_context(Client(cluster))
        # Its callback would swallow a Ctrl-C that arrives while garbage is collected.
        disable_gc_diagnosis(force=True)
        keep_flat(client)
        link = None if find_spec("bokeh") is None else cluster.dashboard_link
        yield Workers(client, n, each, cluster.scheduler_address, link)


@contextmanager
def _local_with_gpus(plan: WorkerPlan) -> Iterator[Workers]:
    """Start the workers of a plan on this machine."""
    from distributed import Client, Scheduler, SpecCluster
    from distributed.gc import disable_gc_diagnosis

    scheduler = {"cls": Scheduler, "options": {"dashboard_address": ":0", "host": "127.0.0.1"}}
    with ExitStack() as stack:
        try:
            with interrupts_held(), environment_kept():
                cluster = stack.enter_context(SpecCluster(worker_specs(plan), scheduler))
        except (RuntimeError, OSError, TimeoutError) as error:
            raise ClusterError(
                f"--cluster local: expected {len(plan)} workers to start, found: {error}"
            ) from error
        client = stack.enter_context(Client(cluster))
        disable_gc_diagnosis(force=True)  # as in `_local`
        keep_flat(client)
        kinds = frozenset(kind for _, _, resources in plan.values() for kind in resources)
        least = {kind: task_bytes(plan, kind) for kind in kinds}
        at_once = next(int(places["GPU"]) for _, _, places in plan.values() if "GPU" in places)
        yield Workers(
            client, len(plan), min(least.values()), cluster.scheduler_address, kinds=kinds,
            gpu_bytes=least["GPU"], tasks_per_gpu=at_once,
        )  # fmt: skip


def keep_flat(client: Any) -> None:
    """Let the scheduler forget what a million tasks would leave behind.

    A scheduler that somebody else runs may lack this package or have another Dask: then its memory
    grows by some 0.5 kB per task, which is no reason to refuse the work.
    """
    from .flat_scheduler import FlatScheduler

    try:
        client.register_plugin(FlatScheduler())
    except Exception as error:
        log.info("the scheduler keeps notes of finished tasks: %r", error)


def _where(kind: str) -> dict[str, str]:
    """Return how a client is told of a scheduler: by address, or by the file that has it."""
    name, _, path = kind.partition(":")
    if name != "scheduler-file":
        return {"address": kind}
    if not Path(path).is_file():
        raise ClusterError(
            f"{path}: expected a file written by `dask scheduler --scheduler-file {path}`, found "
            "none; start the scheduler first, and give a path that this machine sees"
        )
    return {"scheduler_file": path}


@contextmanager
def _remote(settings: ClusterSettings) -> Iterator[Workers]:
    """Reach a scheduler that somebody else runs."""
    from distributed import Client

    try:
        client = Client(**_where(settings.kind), timeout="20s")
    except (OSError, TimeoutError, ValueError, KeyError) as error:
        raise ClusterError(
            f"{settings.kind}: expected a Dask scheduler, found none ({type(error).__name__}); "
            "start one with `dask scheduler`, and workers with `dask worker ADDRESS --nthreads 1`"
        ) from error
    with client:
        keep_flat(client)
        wanted = settings.workers or 1
        try:
            client.wait_for_workers(wanted, timeout=60)
        except TimeoutError as error:
            found = len(client.scheduler_info(n_workers=-1)["workers"])
            raise ClusterError(
                f"{settings.kind}: expected {wanted} workers, found {found} after 60 s; "
                "start workers with `dask worker ADDRESS --nthreads 1 --memory-limit 4GiB`"
            ) from error
        known = client.scheduler_info(n_workers=-1)["workers"].values()
        limits = [w["memory_limit"] // max(1, w["nthreads"]) for w in known if w["memory_limit"]]
        least = min(limits, default=settings.memory_bytes or 2 * _GIB)
        if settings.memory_bytes is not None:
            least = min(least, settings.memory_bytes)
        address = client.scheduler.address
        elsewhere = settings.kind.startswith("scheduler-file:")
        with told_when_alone(client, address):
            yield Workers(
                client, len(known), least, address, client.dashboard_link, elsewhere=elsewhere
            )
