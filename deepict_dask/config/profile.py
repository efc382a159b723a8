"""The profile of a batch system: what to ask it for, and how its jobs find the driver.

One YAML file for Slurm, PBS, LSF and Grid Engine alike. A misspelt key is refused by its name.
Under ``groups`` there may be several kinds of jobs, such as some with a GPU and some without; what
stands beside ``groups`` holds for all of them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    model_validator,
)

from ..core.errors import ConfigError
from .run import read_config_file, settings_from
from .stages import Strict

__all__ = ["ClusterProfile", "load_profile"]

_CLOSING_S = 60.0
"""What a worker may take to hand its work over and to leave, seconds."""
_DRIVER_KEYS = ("scheduler_interface", "scheduler_port", "dashboard_port", "wait_s", "poll_s")


def _clock(value: Any) -> Any:
    """Return a time as HH:MM:SS; a number is one of seconds."""
    if isinstance(value, int) and not isinstance(value, bool):
        seconds = value
    elif found := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d)(?::(\d\d))?", str(value)):
        days, hours, minutes, rest = (int(part or 0) for part in found.groups())
        seconds = ((days * 24 + hours) * 60 + minutes) * 60 + rest
    else:
        raise ValueError('expected a time such as "04:00:00" or "2-00:00:00"')
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _seconds(clock: str) -> int:
    """Return the seconds of HH:MM:SS."""
    hours, minutes, seconds = (int(part) for part in clock.split(":"))
    return (hours * 60 + minutes) * 60 + seconds


Clock = Annotated[str, BeforeValidator(_clock)]
Size = Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)? ?([kKMGT]i?)?B$")]
Port = Annotated[int, Field(ge=0, le=65535)]


class ClusterProfile(Strict):
    """What one kind of job asks for, and how it finds the driver.

    Examples
    --------
    >>> profile = ClusterProfile(memory_per_job="16GiB", workers_per_job=4, walltime="04:00:00")
    >>> profile.cores, profile.lifetime_seconds, profile.stagger_seconds
    (4, 12960.0, 720.0)
    """

    queue: str | None = None
    """Partition or queue; the system's own default if not given."""
    account: str | None = None
    """What the time is charged to."""
    jobs: PositiveInt = 1
    """Jobs to keep running; a lost one is replaced."""
    workers_per_job: PositiveInt = 1
    """Processes of one thread each; with a GPU they share it."""
    cores_per_job: PositiveInt | None = None
    """Cores of a job; one for each worker if not given."""
    memory_per_job: Size
    """Memory of a job, such as 16GiB; its workers share it."""
    walltime: Clock
    """Time limit of a job, "HH:MM:SS"."""
    gpus_per_job: NonNegativeInt = 0
    """0, or 1 for jobs that run networks on a GPU."""
    gpu_type: str | None = None
    """The site's name of the kind of GPU, such as a100."""
    resource_spec: str | None = None
    """PBS and Grid Engine: the text after ``-l`` in place of the one made of cores and memory."""
    directives: tuple[str, ...] = ()
    """Further lines for the batch system, without its mark: ``--constraint=avx512``."""
    modules: tuple[str, ...] = ()
    """Modules to load in a job, in this order."""
    prologue: tuple[str, ...] = ()
    """Shell lines before the workers start."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Variables of the workers."""
    python: str | None = None
    """What starts Python in a job; that of the driver if not given."""
    interface: str | None = None
    """Network interface of the nodes, such as ib0."""
    local_directory: str | None = None
    """Fast scratch space of a node; shell variables such as $TMPDIR are those of the job."""
    log_directory: Path = Path("deepict-dask-logs")
    """Where the jobs' own messages go; taken from where the command is started."""
    job_name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]+$")] = "deepict-dask"
    """Name of the jobs in the queue."""
    lifetime_s: PositiveFloat | None = None
    """When a worker leaves by itself; a tenth before the time limit if not given."""
    lifetime_stagger_s: PositiveFloat | None = None
    """By how much this differs between workers, so that they do not all leave at once."""
    nanny: bool = True
    """Whether a worker that dies is started again within its job."""
    death_timeout_s: PositiveInt = 120
    """How long a worker looks for the driver before its job ends."""
    scheduler_interface: str | None = None
    """Network interface of the driver; ``interface`` if not given."""
    scheduler_port: Port = 0
    """Port of the driver that workers connect to; any free one if not given."""
    dashboard_port: Port = 8787
    """Port of the driver's dashboard; another one is taken where it is in use."""
    wait_s: PositiveFloat = 4 * 3600.0
    """How long to wait for the first worker."""
    poll_s: PositiveFloat = 10.0
    """How often to look after the jobs."""

    @property
    def cores(self) -> int:
        """Cores of a job."""
        return self.cores_per_job or self.workers_per_job

    @property
    def walltime_seconds(self) -> int:
        """Time limit of a job in seconds."""
        return _seconds(self.walltime)

    @property
    def stagger_seconds(self) -> float:
        """By how much the lifetimes of workers differ, to either side."""
        return self.lifetime_stagger_s or 0.05 * self.walltime_seconds

    @property
    def lifetime_seconds(self) -> float:
        """When workers leave: the last of them has time to do so before the job is killed."""
        if self.lifetime_s is not None:
            return self.lifetime_s
        margin = max(_CLOSING_S, 0.05 * self.walltime_seconds)
        return self.walltime_seconds - self.stagger_seconds - margin

    @model_validator(mode="after")
    def _agrees(self) -> ClusterProfile:
        if self.cores < self.workers_per_job:
            raise ValueError(
                f"cores_per_job: expected at least {self.workers_per_job}, one for each worker, "
                f"found {self.cores}"
            )
        if self.gpus_per_job > 1:
            raise ValueError(
                "gpus_per_job: expected 0 or 1, as the workers of a job share its GPU, found "
                f"{self.gpus_per_job}; ask for more jobs of one GPU each"
            )
        latest = self.lifetime_seconds + self.stagger_seconds
        if self.lifetime_seconds <= self.stagger_seconds or latest > self.walltime_seconds:
            raise ValueError(
                f"walltime: expected time for workers to leave before {self.walltime}, found a "
                f"lifetime of {self.lifetime_seconds:.0f} s with a stagger of "
                f"{self.stagger_seconds:.0f} s; give a longer walltime or a shorter lifetime_s"
            )
        return self


def load_profile(path: Path) -> dict[str, ClusterProfile]:
    r"""Read a profile: its groups of jobs by name, or one group called "worker".

    Raises
    ------
    ConfigError
        The file is absent, no YAML, or has unknown, missing or contradictory keys.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "slurm.yaml"
    >>> _ = path.write_text("walltime: 12:00:00\nmemory_per_job: 8GiB\njobs: 3\n")
    >>> load_profile(path)["worker"].walltime
    '12:00:00'
    >>> _ = path.write_text(
    ...     "walltime: 1:00:00\nmemory_per_job: 8GiB\n"
    ...     "groups: {gpu: {gpus_per_job: 1}, cpu: {jobs: 4}}\n"
    ... )
    >>> {name: group.jobs for name, group in load_profile(path).items()}
    {'gpu': 1, 'cpu': 4}
    """
    common = read_config_file(path)
    groups = common.pop("groups", None)
    if groups is None:
        return {"worker": settings_from(ClusterProfile, common, str(path))}
    if not isinstance(groups, dict) or not groups or not all(map(_is_name, groups)):
        raise ConfigError(
            f"{path}: groups: expected names of letters, such as gpu and cpu, each with its keys, "
            f"found {groups!r}"
        )
    return {name: _group(path, name, common, own or {}) for name, own in groups.items()}


def _is_name(name: Any) -> bool:
    """Say whether a group may be called so: it becomes part of the workers' names."""
    return isinstance(name, str) and name.isalpha() and name.isascii()


def _group(path: Path, name: str, common: dict[str, Any], own: Any) -> ClusterProfile:
    """Lay a group's keys over those of all groups."""
    where = f"{path}: groups.{name}"
    if not isinstance(own, dict):
        raise ConfigError(f"{where}: expected keys such as jobs and queue, found {own!r}")
    for key in _DRIVER_KEYS:
        if key in own:
            raise ConfigError(f"{where}: {key}: belongs beside groups, as there is one driver")
    profile: ClusterProfile = settings_from(ClusterProfile, {**common, **own}, where)
    return profile
