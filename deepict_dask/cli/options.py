"""Options that many commands share, and what they become."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.errors import ConfigError
from .messages import is_quiet, news, progress_of, say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..jobs.session import Session

__all__ = [
    "ChunksOption",
    "ClusterOption",
    "CompatOption",
    "DeviceOption",
    "MemoryOption",
    "OverwriteOption",
    "ProgressOption",
    "SpacingOption",
    "WorkersOption",
    "check_compat",
    "open_session",
    "pair",
    "say",
    "three",
]

ClusterOption = Annotated[
    str,
    typer.Option(
        "--cluster",
        help="local; slurm:PROFILE.yaml (also pbs:, lsf:, sge:); tcp://HOST:PORT or "
        "scheduler-file:PATH of a running Dask scheduler.",
    ),
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, help="Number of workers [default: by cores]")
]
MemoryOption = Annotated[
    str | None, typer.Option("--memory", help="Memory of each worker, such as 4GiB")
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
SpacingOption = Annotated[
    float | None,
    typer.Option(
        "--voxel-spacing-angstrom", min=1e-6, help="Edge of a voxel in Å; overrides the file"
    ),
]
ChunksOption = Annotated[
    str, typer.Option("--chunks", metavar="Z,Y,X", help="Chunks of the stores that are written.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an output.")]
ProgressOption = Annotated[
    bool,
    typer.Option(
        "--progress/--no-progress", help="Show progress.",
        callback=lambda shown: shown and not is_quiet(),
    ),
]  # fmt: skip
CompatOption = Annotated[
    str | None, typer.Option("--compat", help="deepict: reproduce the published program.")
]


def three(text: str, option: str) -> tuple[int, int, int]:
    """Return three integers from "Z,Y,X" or one from "N".

    Examples
    --------
    >>> three("64", "--chunks"), three("1,2,3", "--border")
    ((64, 64, 64), (1, 2, 3))
    """
    parts = text.split(",")
    if len(parts) in (1, 3) and all(p.strip().isdigit() for p in parts):
        z, y, x = (int(p) for p in (parts * 3 if len(parts) == 1 else parts))
        return (z, y, x)
    raise ConfigError(f"{option}: expected Z,Y,X or one whole number, found {text!r}")


def pair(text: str, option: str) -> tuple[int, int]:
    """Return two integers from "A,B" or one from "N".

    Examples
    --------
    >>> pair("288", "--tile"), pair("3,5", "--tiles")
    ((288, 288), (3, 5))
    """
    parts = text.split(",")
    if len(parts) in (1, 2) and all(p.strip().isdigit() for p in parts):
        return (int(parts[0]), int(parts[-1]))
    raise ConfigError(f"{option}: expected two whole numbers or one, found {text!r}")


@contextmanager
def open_session(
    *,
    cluster: str = "local",
    workers: int | None = None,
    memory: str | None = None,
    device: str = "cpu",
    chunks: str = "128,128,128",
    overwrite: bool = False,
    progress: bool = True,
    voxel_spacing_angstrom: float | None = None,
) -> Iterator[Session]:
    """Start or reach workers with the common options of a command."""
    from ..backend import count_gpus, resolve_device
    from ..engine import ClusterSettings, connect
    from ..engine.gpu_workers import visible_gpus
    from ..jobs.session import Session

    shape = three(chunks, "--chunks")
    if min(shape) < 1:
        raise ConfigError(f"--chunks: expected at least 1 voxel on each axis, found {chunks}")
    elsewhere = ":" in cluster and "://" not in cluster  # jobs of a batch system, most of all
    found = resolve_device("cpu" if elsewhere and device in ("auto", "cuda") else device)
    gpus: tuple[str, ...] = ()
    if found.is_gpu and cluster == "local":
        gpus = tuple(visible_gpus(count_gpus()))
    with connect(ClusterSettings(cluster, workers, memory, gpus)) as connected:
        hint = connected.hint
        if hint is None and progress and connected.dashboard is not None:
            hint = f"dashboard: {connected.dashboard}"
        if hint is not None:
            news(hint)
        yield Session(
            connected,
            progress_of(connected, shown=progress),
            shape,
            overwrite,
            voxel_spacing_angstrom,
            connected.device(device) if elsewhere else found.name,
        )


def check_compat(compat: str | None) -> str | None:
    """Return the compat mode if it is one."""
    if compat not in (None, "deepict"):
        raise ConfigError(f"--compat: expected deepict, found {compat!r}")
    return compat
