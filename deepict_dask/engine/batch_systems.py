"""What differs between batch systems: how they are asked for a job, and what they say of it.

The scripts are made, submitted and cancelled by dask-jobqueue. What it leaves open is here: the
memory of the nanny beside the workers, GPUs, and whether a job is still in the queue.
"""

from __future__ import annotations

import getpass
import importlib
import importlib.util
import math
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core.errors import BudgetError, ClusterError, ConfigError
from .budget import BASELINE_BYTES, format_bytes, parse_bytes
from .worker_settings import job_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..config.profile import ClusterProfile

__all__ = ["BATCH_SYSTEMS", "BatchSystem", "job_settings", "make_job", "worker_bytes"]

_NANNY_BYTES = 160 << 20
"""Resident bytes of the process that starts a job's workers and looks after them."""
_MIB = 1 << 20


def worker_bytes(profile: ClusterProfile) -> int:
    """Return what one worker of a job may use: its share of what the nanny leaves.

    Raises
    ------
    BudgetError
        That is less than a worker needs before any work.

    Examples
    --------
    >>> from deepict_dask.config.profile import ClusterProfile
    >>> profile = ClusterProfile(memory_per_job="8GiB", workers_per_job=2, walltime="01:00:00")
    >>> worker_bytes(profile) >> 20
    4016
    """
    each = (parse_bytes(profile.memory_per_job) - _NANNY_BYTES) // profile.workers_per_job
    if each < BASELINE_BYTES:
        raise BudgetError(
            f"memory_per_job: expected {format_bytes(BASELINE_BYTES)} for each of "
            f"{profile.workers_per_job} workers and {format_bytes(_NANNY_BYTES)} beside them, "
            f"found {profile.memory_per_job}; give more, or fewer workers_per_job"
        )
    return each


def _mebibytes(profile: ClusterProfile) -> int:
    """Return the memory of a job in MiB, rounded up."""
    return math.ceil(parse_bytes(profile.memory_per_job) / _MIB)


def _ask_slurm(profile: ClusterProfile) -> dict[str, Any]:
    """Return what Slurm is asked; a requeued job would meet the one that replaces it."""
    lines = ["--no-requeue"]
    if profile.gpus_per_job:
        kind = f":{profile.gpu_type}" if profile.gpu_type else ""
        lines.append(f"--gres=gpu{kind}:{profile.gpus_per_job}")
    return {
        "account": profile.account,
        "walltime": profile.walltime,
        "job_cpu": profile.cores,
        "job_mem": f"{_mebibytes(profile)}M",
        "job_extra_directives": lines,
    }


def _ask_pbs(profile: ClusterProfile) -> dict[str, Any]:
    """Return what PBS is asked: one chunk with all cores."""
    chunk = f"select=1:ncpus={profile.cores}:mem={_mebibytes(profile)}mb"
    if profile.gpus_per_job:
        chunk += f":ngpus={profile.gpus_per_job}"
        chunk += f":gpu_type={profile.gpu_type}" if profile.gpu_type else ""
    return {
        "account": profile.account,
        "walltime": profile.walltime,
        "resource_spec": profile.resource_spec or chunk,
        "job_extra_directives": ["-r n"],
    }


def _ask_lsf(profile: ClusterProfile) -> dict[str, Any]:
    """Return what LSF is asked; its times are hours and minutes."""
    lines = ["-rn"]
    if profile.gpus_per_job:
        kind = f":gmodel={profile.gpu_type}" if profile.gpu_type else ""
        lines.append(f'-gpu "num={profile.gpus_per_job}{kind}"')
    return {
        "project": profile.account,
        "walltime": profile.walltime.rsplit(":", 1)[0],
        "ncpus": profile.cores,
        "mem": parse_bytes(profile.memory_per_job),
        "job_extra_directives": lines,
    }


def _ask_sge(profile: ClusterProfile) -> dict[str, Any]:
    """Return what Grid Engine is asked; what sites name differently must be given."""
    if profile.resource_spec is None:
        raise ConfigError(
            "resource_spec: is required for sge, as sites name memory differently, found nothing; "
            f"give what your site wants for {profile.memory_per_job}, such as h_vmem=8G"
        )
    lines = profile.directives
    if profile.cores > 1 and not any(line.startswith("-pe ") for line in lines):
        raise ConfigError(
            f"directives: expected one such as '-pe smp {profile.cores}' for sge jobs of "
            f"{profile.cores} cores, found none"
        )
    return {
        "project": profile.account,
        "walltime": profile.walltime,
        "resource_spec": profile.resource_spec,
        # many sites start jobs with csh, which cannot read the script
        "job_extra_directives": ["-r n", "-S /bin/bash"],
    }


def _slurm_states(text: str) -> dict[str, str]:
    """Return what squeue says of each job, such as "PENDING (Resources)"."""
    found = {}
    for line in text.splitlines():
        number, _, rest = line.strip().partition("|")
        state, _, reason = rest.partition("|")
        if state not in ("COMPLETING", "COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", ""):
            found[number] = state if reason in ("", "None") else f"{state} ({reason})"
    return found


def _table_states(text: str, column: int, finished: str) -> dict[str, str]:
    """Return a column of the lines that begin with a job's number."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        number = re.match(r"\d+", words[0]) if words else None
        if number and len(words) > column and words[column] not in finished.split():
            found[number[0]] = words[column]
    return found


@dataclass(frozen=True)
class BatchSystem:
    r"""A kind of batch system.

    Examples
    --------
    >>> BATCH_SYSTEMS["slurm"].read_states("7|PENDING|Resources\n8|RUNNING|None\n9|COMPLETING|")
    {'7': 'PENDING (Resources)', '8': 'RUNNING'}
    >>> BATCH_SYSTEMS["pbs"].read_states("Job id  Name\n12.server  dd  me  00:01 Q normal\n")
    {'12': 'Q'}
    """

    title: str
    job_class: str
    """Name of its class in dask-jobqueue."""
    ask: Callable[[ClusterProfile], dict[str, Any]]
    """Keywords of that class for cores, memory, time and GPUs."""
    list_jobs: str
    """Command that lists the jobs of {user}."""
    read_states: Callable[[str], dict[str, str]]
    """Its output as states by job number; finished jobs are left out."""
    hopeless: str = r"(?!)"
    """States in which a job will never start, as a pattern."""
    without_jobs: str = r"(?!)"
    """Error message of a queue without jobs, as a pattern, where that counts as a failure."""

    def states(self) -> dict[str, str] | None:
        """Return the state of each job in the queue by its number, None where it does not say."""
        command = shlex.split(self.list_jobs.format(user=getpass.getuser()))
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode and re.search(self.without_jobs, done.stderr):
            return {}
        return self.read_states(done.stdout) if done.returncode == 0 else None


BATCH_SYSTEMS = {
    "slurm": BatchSystem(
        "Slurm", "SLURMJob", _ask_slurm, 'squeue -h -u {user} -o "%i|%T|%r"', _slurm_states,
        r"BadConstraints|PartitionNodeLimit|PartitionTimeLimit|PartitionConfig|DependencyNever|"
        r"AccountNotAllowed|InvalidAccount|InvalidQOS|MaxWallDurationPerJob|MaxMemPerLimit|"
        r"Max(Cpu|GRES|Mem|Node|TRES)PerJob|launch failed",
    ),
    "pbs": BatchSystem(
        "PBS", "PBSJob", _ask_pbs, "qstat -u {user}",
        lambda text: _table_states(text, 9 if "Req'd" in text else 4, "C F X"),
    ),
    "lsf": BatchSystem(
        "LSF", "LSFJob", _ask_lsf, 'bjobs -noheader -u {user} -o "jobid stat"',
        lambda text: _table_states(text, 1, "DONE EXIT ZOMBI"),
        without_jobs=r"No (unfinished )?job found",
    ),
    "sge": BatchSystem(
        "Grid Engine", "SGEJob", _ask_sge, "qstat -u {user}",
        lambda text: _table_states(text, 4, "dr"), r"E",
    ),
}  # fmt: skip


def job_settings(system: BatchSystem, profile: ClusterProfile) -> dict[str, Any]:
    """Return the keywords of dask-jobqueue's job for a profile.

    Raises
    ------
    ConfigError
        The system needs a key that the profile lacks.
    BudgetError
        The workers have too little memory.
    """
    asked = system.ask(profile)
    asked["job_extra_directives"] = [*asked["job_extra_directives"], *profile.directives]
    n = profile.workers_per_job
    resource = "GPU" if profile.gpus_per_job else "CPU"
    return asked | {
        "queue": profile.queue,
        # Its own cores and memory are those of the workers: one thread each, without the nanny's.
        "cores": n,
        "processes": n,
        "memory": str(worker_bytes(profile) * n),
        "interface": profile.interface,
        "nanny": profile.nanny,
        "python": profile.python or shlex.quote(sys.executable),
        "local_directory": profile.local_directory,
        "log_directory": str(profile.log_directory.expanduser().absolute()),
        "job_name": profile.job_name,
        "death_timeout": profile.death_timeout_s,
        "job_script_prologue": _prologue(profile),
        "worker_extra_args": [
            *("--resources", f"{resource}=1", "--no-dashboard"),
            *("--lifetime", f"{profile.lifetime_seconds:.0f}s"),
            *("--lifetime-stagger", f"{profile.stagger_seconds:.0f}s"),
        ],
    }


def _prologue(profile: ClusterProfile) -> list[str]:
    """Return the shell lines before the workers: modules, then ours, then the site's own."""
    variables: Mapping[str, str] = job_environment() | profile.environment
    return [
        *(f"module load {name}" for name in profile.modules),
        *(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
        *profile.prologue,
    ]


def make_job(system: BatchSystem, profile: ClusterProfile, address: str, name: str) -> Any:
    """Return dask-jobqueue's job for one job of a profile, not yet submitted.

    Parameters
    ----------
    system
        Whom to ask.
    profile
        For what.
    address
        Of the scheduler.
    name
        Of the worker; several workers of a job are NAME-0, NAME-1 and so on.

    Raises
    ------
    ClusterError
        dask-jobqueue is not installed.
    """
    if importlib.util.find_spec("dask_jobqueue") is None:
        raise ClusterError(
            f"--cluster: {system.title} needs dask-jobqueue, which is not installed; "
            "pip install 'deepict-dask[hpc]'"
        )
    module = importlib.import_module(
        f"dask_jobqueue.{system.job_class.removesuffix('Job').lower()}"
    )
    try:
        return getattr(module, system.job_class)(address, name, **job_settings(system, profile))
    except OSError as error:
        raise ClusterError(
            f"{profile.log_directory}: expected a folder that can be written for the jobs' "
            f"messages, found: {error.strerror}; give another log_directory"
        ) from error
