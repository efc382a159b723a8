"""Where the networks of a run would be computed, found out without starting a worker.

1. Workers of a batch system look for their GPU themselves: nothing of it is known here.
2. Elsewhere the device is what a run started here would take: `backend.resolve_device`.
3. Of a GPU that works here, what is free now may be planned with. Where ``cuda`` was asked for and
   does not work here (a login node), that is said, and nothing of a GPU is guessed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..backend import count_gpus, device_budget, free_device_bytes, resolve_device
from ..core.errors import DeviceError
from ..engine.batch_systems import BATCH_SYSTEMS
from ..engine.budget import format_bytes
from ..engine.cluster import plan_workers
from ..engine.cluster_jobs import profiles_of
from ..engine.gpu_workers import plan_local, task_bytes, visible_gpus

if TYPE_CHECKING:
    from ..engine import ClusterSettings

__all__ = ["PlannedPlace", "planned_place"]


@dataclass(frozen=True)
class PlannedPlace:
    """Workers, and the GPU of each that has one.

    Examples
    --------
    >>> PlannedPlace(2, 4 << 30, 4 << 30).lines("1 tomograms")
    ['plan: 1 tomograms on 2 workers of 4.0 GiB']
    """

    n_workers: int
    worker_bytes: int
    """Memory of the smallest worker."""
    network_bytes: int
    """Memory of a task that runs a 3D network: where workers have a GPU, theirs."""
    device: str = "cpu"
    device_bytes: int | None = None
    """What a task may hold of a GPU; None on the CPU, and where it is not known here."""
    told: str = ""
    """Which GPU, or why nothing is known of it."""

    @property
    def is_unknown(self) -> bool:
        """Whether 3D networks would run on a GPU of which nothing is known here."""
        return self.device == "cuda" and self.device_bytes is None

    def lines(self, what: str) -> list[str]:
        """Return the plan's first lines: what is to be done, and where."""
        head = f"plan: {what} on {self.n_workers} workers of {format_bytes(self.worker_bytes)}"
        return [head, f"GPU: {self.told}"] if self.told else [head]


def planned_place(settings: ClusterSettings, device: str) -> PlannedPlace:
    """Return where a run would compute.

    Parameters
    ----------
    settings
        Of its cluster.
    device
        ``auto``, ``cpu`` or ``cuda``, as asked for.

    Raises
    ------
    BudgetError
        The workers do not fit this machine.
    DeviceError
        A GPU works here, but leaves too little memory for its worker.

    Examples
    --------
    >>> from deepict_dask.engine import ClusterSettings
    >>> planned_place(ClusterSettings(workers=1, memory="1GiB"), "cpu").device_bytes is None
    True
    """
    if ":" in settings.kind and "://" not in settings.kind:  # as `cli.options.open_session`
        return _elsewhere(settings, device)
    try:
        found = resolve_device(device)
    except DeviceError as error:
        n, each = plan_workers(settings)
        told = (
            "none works here, so that its free memory is not known and windows of 3D networks are "
            f"not planned. Started here, the run would be refused: {error}"
        )
        return PlannedPlace(n, each, each, "cuda", told=told)
    if not found.is_gpu:
        n, each = plan_workers(settings)
        return PlannedPlace(n, each, each)
    n, each, network = _here(settings)
    free = device_budget(free_device_bytes())
    told = f"{found.description}, of which {format_bytes(free)} may be planned with now"
    return PlannedPlace(n, each, network, "cuda", free, told)


def _here(settings: ClusterSettings) -> tuple[int, int, int]:
    """Return the workers of a machine with a GPU, the least memory, and that with a GPU."""
    gpus = tuple(visible_gpus(count_gpus())) if settings.kind == "local" else ()
    plan = plan_local(replace(settings, gpus=gpus))
    if plan is None:
        n, each = plan_workers(settings)
        return n, each, each
    with_gpu, without = (task_bytes(plan, kind) for kind in ("GPU", "CPU"))
    return len(plan), min(with_gpu, without), with_gpu


def _elsewhere(settings: ClusterSettings, device: str) -> PlannedPlace:
    """Return the place of workers on other machines."""
    n, each = plan_workers(settings)
    has_gpus = settings.kind.partition(":")[0] in BATCH_SYSTEMS and any(
        profile.gpus_per_job for profile in profiles_of(settings).values()
    )
    if device == "cpu" or (device == "auto" and not has_gpus):
        return PlannedPlace(n, each, each)
    told = (
        "of the workers' machines; how much of its memory is free is known only there, so that "
        "windows of 3D networks are not planned"
    )
    return PlannedPlace(n, each, each, "cuda", told=told)
