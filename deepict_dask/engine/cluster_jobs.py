"""Workers that are jobs of a batch system: a scheduler in this process, and a pool of jobs."""

from __future__ import annotations

import importlib.util
import logging
import signal
import socket
import threading
import warnings
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..config.profile import load_profile
from ..core.errors import ClusterError, ConfigError
from .batch_systems import BATCH_SYSTEMS, job_settings, worker_bytes
from .cluster import ClusterSettings, Workers, interrupts_held, keep_flat
from .job_pool import JobPool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..config.profile import ClusterProfile

__all__ = ["batch_workers"]

log = logging.getLogger("deepict_dask")


@contextmanager
def batch_workers(settings: ClusterSettings) -> Iterator[Workers]:
    """Send the jobs of a profile, wait for the first worker, and cancel all of them at the end.

    Parameters
    ----------
    settings
        Its kind is SYSTEM:PROFILE.yaml.

    Raises
    ------
    ConfigError
        The profile cannot be meant.
    ClusterError
        The batch system refuses the jobs, no worker comes in time, or all are lost for good.
    """
    from distributed import Client
    from distributed.gc import disable_gc_diagnosis

    system = BATCH_SYSTEMS[settings.kind.partition(":")[0]]
    profiles = profiles_of(settings)
    n, each = plan_jobs(profiles, settings)
    driver = next(iter(profiles.values()))
    with ExitStack() as stack:
        stack.enter_context(_ended_as_interrupted())
        cluster = stack.enter_context(_scheduler(driver))
        client = stack.enter_context(Client(cluster))
        disable_gc_diagnosis(force=True)
        keep_flat(client)
        pool = JobPool(
            system,
            profiles,
            cluster.scheduler_address,
            lambda: {str(each.name) for each in [*cluster.scheduler.workers.values()]},
            # What waits for results must not wait for ever.
            lambda: client.close(timeout=5),
        )
        stack.enter_context(_kept(pool))
        hint = dashboard_hint(cluster.dashboard_link)
        log.info("%s", hint)
        pool.wait()
        kinds = frozenset("GPU" if p.gpus_per_job else "CPU" for p in profiles.values())
        sharing = [p.workers_per_job for p in profiles.values() if p.gpus_per_job]
        yield Workers(
            client, n, each, cluster.scheduler_address, cluster.dashboard_link,
            elsewhere=True, kinds=kinds, hint=hint,
            per_gpu=max(sharing, default=1),
        )  # fmt: skip


def profiles_of(settings: ClusterSettings) -> dict[str, ClusterProfile]:
    """Return the groups of the profile that settings of kind SYSTEM:PROFILE.yaml name.

    Raises
    ------
    ConfigError
        The profile cannot be meant, or lacks what only this batch system needs.
    """
    name, _, path = settings.kind.partition(":")
    profiles = planned(load_profile(Path(path).expanduser()), settings.workers)
    for profile in profiles.values():
        _checked(path, name, profile)
    return profiles


def plan_jobs(profiles: dict[str, ClusterProfile], settings: ClusterSettings) -> tuple[int, int]:
    """Return how many workers there will be and the bytes the smallest may use.

    Examples
    --------
    >>> from deepict_dask.config.profile import ClusterProfile
    >>> profile = ClusterProfile(memory_per_job="8GiB", jobs=3, walltime="01:00:00")
    >>> n, each = plan_jobs({"worker": profile}, ClusterSettings(memory="2GiB"))
    >>> n, each >> 20
    (3, 2048)
    """
    n = sum(profile.jobs * profile.workers_per_job for profile in profiles.values())
    least = min(worker_bytes(profile) for profile in profiles.values())
    return n, min(least, settings.memory_bytes or least)


def planned(profiles: dict[str, ClusterProfile], workers: int | None) -> dict[str, ClusterProfile]:
    """Return profiles with as many jobs as ``--workers`` needs, where it is given.

    Examples
    --------
    >>> from deepict_dask.config.profile import ClusterProfile
    >>> profile = ClusterProfile(memory_per_job="8GiB", workers_per_job=4, walltime="01:00:00")
    >>> planned({"worker": profile}, 10)["worker"].jobs
    3
    """
    if workers is None:
        return profiles
    if len(profiles) > 1:
        raise ConfigError(
            f"--workers: expected none with a profile of several groups, found {workers}; give "
            "jobs for each group in the profile"
        )
    return {
        name: profile.model_copy(update={"jobs": -(-workers // profile.workers_per_job)})
        for name, profile in profiles.items()
    }


def _checked(path: str, name: str, profile: ClusterProfile) -> None:
    """Name the file where a key is missing that only this batch system needs."""
    try:
        job_settings(BATCH_SYSTEMS[name], profile)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


@contextmanager
def _scheduler(profile: ClusterProfile) -> Iterator[Any]:
    """Start a scheduler in this process that the nodes can reach."""
    from distributed import Scheduler, SpecCluster

    interface = profile.scheduler_interface or profile.interface
    options = {"port": profile.scheduler_port, "dashboard_address": f":{profile.dashboard_port}"}
    options |= {"interface": interface} if interface else {}
    try:
        with interrupts_held(), warnings.catch_warnings():
            # The hint names the port that was taken.
            warnings.filterwarnings("ignore", "Port .* is already in use", UserWarning)
            cluster = SpecCluster(scheduler={"cls": Scheduler, "options": options}, workers={})
    except (RuntimeError, OSError, ValueError) as error:
        raise ClusterError(
            f"--cluster: expected to start a scheduler on interface {interface or 'of this host'}, "
            f"port {profile.scheduler_port}, found: {error}; see `ip -brief address` for the "
            "interfaces and give scheduler_interface or scheduler_port in the profile"
        ) from error
    try:
        yield cluster
    finally:
        with interrupts_held(), suppress(TimeoutError):
            cluster.close(timeout=30)


@contextmanager
def _kept(pool: JobPool) -> Iterator[None]:
    """Keep jobs running until the block ends; say why there are no workers where there are none."""
    try:
        with interrupts_held():  # raises at its end: jobs that were sent by then are cancelled
            pool.start()
        yield
    except Exception as error:
        if pool.problem is not None and not isinstance(error, ClusterError):
            raise ClusterError(pool.problem) from error
        raise
    else:
        if pool.problem is not None:  # the block has told what is not finished, but not why
            log.error("%s", pool.problem)
    finally:
        with interrupts_held():
            pool.close()


@contextmanager
def _ended_as_interrupted() -> Iterator[None]:
    """Treat the SIGTERM of a batch system's own time limit as a Ctrl-C: jobs are cancelled.

    A caller that heeds the signal already is left to it.
    """
    heeded = signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    if heeded or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def dashboard_hint(link: str) -> str:
    """Return how to see a dashboard from one's own machine.

    Examples
    --------
    >>> dashboard_hint("http://10.1.2.3:8787/status").partition(" ")[0]
    'dashboard:'
    """
    if importlib.util.find_spec("bokeh") is None:
        return "dashboard: none, as bokeh is not installed; pip install 'deepict-dask[report]'"
    port = urlsplit(link).port
    return (
        f"dashboard: {link}\n"
        f"  from your own machine: ssh -N -L {port}:{socket.gethostname()}:{port} LOGIN_NODE, "
        f"then http://localhost:{port}/status"
    )
