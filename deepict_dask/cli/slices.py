"""Commands on score maps of slices: polish."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import (
    ChunksOption,
    ClusterOption,
    CompatOption,
    MemoryOption,
    OverwriteOption,
    ProgressOption,
    SpacingOption,
    WorkersOption,
    check_compat,
    open_session,
    say,
)


def polish(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A score map.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Mask of 0 and 1, uint8.")],
    z_sigma: Annotated[
        float, typer.Option("--z-sigma", help="Gaussian along z, in voxels; 0 for none.")
    ] = 5.0,
    threshold: Annotated[
        float, typer.Option("--threshold", help="Voxels above it are 1; 0 writes the scores.")
    ] = 0.5,
    class_name: Annotated[
        str | None, typer.Option("--class", help="Class of a score map with several")
    ] = None,
    compat: CompatOption = None,
    voxel_spacing_angstrom: SpacingOption = None,
    chunks: ChunksOption = "128,128,128",
    cluster: ClusterOption = "local",
    workers: WorkersOption = None,
    memory: MemoryOption = None,
    overwrite: OverwriteOption = False,
    progress: ProgressOption = True,
) -> None:
    """Smooth a score map along z and cut it at a threshold.

    Example: deepict-dask polish scores.zarr cytosol.zarr --z-sigma 5 --threshold 0.5
    """
    from ..jobs.polish import polish_volume

    with open_session(
        cluster=cluster, workers=workers, memory=memory, chunks=chunks, overwrite=overwrite,
        progress=progress, voxel_spacing_angstrom=voxel_spacing_angstrom,
    ) as session:  # fmt: skip
        polish_volume(
            session, source, target, z_sigma=z_sigma, threshold=threshold,
            class_name=class_name, compat=check_compat(compat),
        )  # fmt: skip
    say(f"wrote {target}")


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(polish)
