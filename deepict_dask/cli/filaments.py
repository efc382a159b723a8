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

MaskArgument = Annotated[Path, typer.Argument(metavar="MASK", help="Segmentation of filaments.")]
TargetArgument = Annotated[
    Path, typer.Argument(metavar="OUT", help="List to write: .csv or .star.")
]
StepNmOption = Annotated[float, typer.Option("--step-nm", help="Distance of picks.")]
MaxRadiusNmOption = Annotated[
    float, typer.Option("--max-radius-nm", help="Of the thickest filament.")
]
MaxHoleNmOption = Annotated[
    float | None,
    typer.Option("--max-hole-nm", help="Fill holes up to this [default: 2 radii]"),
]
ErodeVoxelsOption = Annotated[
    int, typer.Option("--erode-voxels", help="Edge of a cube to erode with; 1: do not.")
]
MinLengthNmOption = Annotated[
    float, typer.Option("--min-length-nm", help="Drop shorter filaments.")
]
MaxGapNmOption = Annotated[
    float, typer.Option("--max-gap-nm", help="Link ends up to this far apart.")
]
MaxAngleDegreesOption = Annotated[
    float, typer.Option("--max-angle-degrees", help="Largest bend at a link.")
]
SmoothingNmOption = Annotated[
    float, typer.Option("--smoothing-nm", help="Halve waves of this length.")
]
TwistDegreesOption = Annotated[
    float, typer.Option("--twist-degrees", help="Helical twist from pick to pick.")
]
ThresholdOption = Annotated[float, typer.Option("--threshold", help="Voxels above it count.")]
LabelValueOption = Annotated[
    int | None, typer.Option("--label-value", help="Voxels of a label volume equal to this.")
]
TomogramNameOption = Annotated[
    str | None, typer.Option("--tomogram-name", help="Name in a STAR file [default: MASK's]")
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="With --compat: the published script's config.txt."),
]


def filaments(
    mask: MaskArgument,
    target: TargetArgument,
    step_nm: StepNmOption = 8.0,
    max_radius_nm: MaxRadiusNmOption = 15.0,
    max_hole_nm: MaxHoleNmOption = None,
    erode_voxels: ErodeVoxelsOption = 1,
    min_length_nm: MinLengthNmOption = 30.0,
    max_gap_nm: MaxGapNmOption = 30.0,
    max_angle_degrees: MaxAngleDegreesOption = 20.0,
    smoothing_nm: SmoothingNmOption = 40.0,
    twist_degrees: TwistDegreesOption = 0.0,
    threshold: ThresholdOption = 0.5,
    label_value: LabelValueOption = None,
    tomogram_name: TomogramNameOption = None,
    config: ConfigOption = None,
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
