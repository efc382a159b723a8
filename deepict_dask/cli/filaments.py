"""The command that traces filaments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    open_session,
    say,
)


def filaments(
    mask: Annotated[Path, typer.Argument(metavar="MASK", help="Segmentation of filaments.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="List to write: .csv or .star.")],
    step_nm: Annotated[float, typer.Option("--step-nm", help="Distance of picks.")] = 8.0,
    max_radius_nm: Annotated[
        float, typer.Option("--max-radius-nm", help="Of the thickest filament.")
    ] = 15.0,
    max_hole_nm: Annotated[
        float | None,
        typer.Option("--max-hole-nm", help="Fill holes up to this [default: 2 radii]"),
    ] = None,
    erode_voxels: Annotated[
        int, typer.Option("--erode-voxels", help="Edge of a cube to erode with; 1: do not.")
    ] = 1,
    min_length_nm: Annotated[
        float, typer.Option("--min-length-nm", help="Drop shorter filaments.")
    ] = 30.0,
    max_gap_nm: Annotated[
        float, typer.Option("--max-gap-nm", help="Link ends up to this far apart.")
    ] = 30.0,
    max_angle_degrees: Annotated[
        float, typer.Option("--max-angle-degrees", help="Largest bend at a link.")
    ] = 20.0,
    smoothing_nm: Annotated[
        float, typer.Option("--smoothing-nm", help="Halve waves of this length.")
    ] = 40.0,
    twist_degrees: Annotated[
        float, typer.Option("--twist-degrees", help="Helical twist from pick to pick.")
    ] = 0.0,
    threshold: Annotated[float, typer.Option("--threshold", help="Voxels above it count.")] = 0.5,
    label_value: Annotated[
        int | None, typer.Option("--label-value", help="Voxels of a label volume equal to this.")
    ] = None,
    tomogram_name: Annotated[
        str | None, typer.Option("--tomogram-name", help="Name in a STAR file [default: MASK's]")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="With --compat: the published script's config.txt."),
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
    """Turn a mask of filaments into oriented picks along their centrelines.

    Example: deepict-dask filaments microtubules.mrc microtubules.star --step-nm 8.2
    --twist-degrees 27.692
    """
    from ..config import settings_from
    from ..filaments import FilamentSettings
    from ..jobs.filaments import trace_filaments

    values: dict[str, Any] = {
        "step_nm": step_nm, "max_radius_nm": max_radius_nm, "max_hole_nm": max_hole_nm,
        "erode_voxels": erode_voxels, "min_length_nm": min_length_nm, "max_gap_nm": max_gap_nm,
        "max_angle_degrees": max_angle_degrees, "smoothing_nm": smoothing_nm,
        "twist_degrees": twist_degrees, "threshold": threshold, "label_value": label_value,
        "compat": compat,
    }  # fmt: skip
    settings = settings_from(FilamentSettings, values, "filaments")
    with open_session(
        cluster=cluster, workers=workers, memory=memory, chunks=chunks, overwrite=overwrite,
        progress=progress, voxel_spacing_angstrom=voxel_spacing_angstrom,
    ) as session:  # fmt: skip
        report = trace_filaments(
            session, mask, target, settings, tomogram_name=tomogram_name, config=config
        )
    say(
        f"{report.n_points} picks on {report.n_filaments} filaments "
        f"({report.length_nm:.1f} nm) in {target}"
    )


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(filaments)
