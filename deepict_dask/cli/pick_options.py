"""Options of `pick`: which scores count, what becomes a pick, and where it must lie."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ScoreArgument = Annotated[Path, typer.Argument(metavar="SCORE", help="Score map or label volume.")]
FolderArgument = Annotated[Path, typer.Argument(metavar="OUTDIR", help="Folder to make.")]
ThresholdOption = Annotated[
    float | None, typer.Option("--threshold", help="Scores above it count [default: 0.5]")
]
LabelValueOption = Annotated[
    int | None, typer.Option("--label-value", help="Voxels of a label volume equal to this.")
]
MinSizeOption = Annotated[int, typer.Option("--min-size", help="Smallest cluster, voxels.")]
MaxSizeOption = Annotated[int | None, typer.Option("--max-size", help="Largest cluster, voxels")]
ConnectivityOption = Annotated[int, typer.Option("--connectivity", help="6, 18 or 26.")]
BorderOption = Annotated[
    str, typer.Option("--border", metavar="Z,Y,X", help="Voxels to leave out at the ends.")
]
RegionMaskOption = Annotated[
    Path | None, typer.Option("--region-mask", help="Lamella, compartment, membrane")
]
ContactModeOption = Annotated[
    str | None,
    typer.Option("--contact-mode", help="intersection [default], contact or colocalization"),
]
ContactDistanceOption = Annotated[
    int, typer.Option("--contact-distance", help="For colocalization: voxels.")
]
RegionOption = Annotated[
    list[str] | None,
    typer.Option("--region", metavar="NAME=FILE", help="A mask to measure; may be repeated"),
]
ContactOption = Annotated[
    list[str] | None,
    typer.Option(
        "--contact",
        metavar="NAME:MODE[:DISTANCE]",
        help="Keep clusters with this contact; DISTANCE as 25nm or 10 (voxels); repeat for all",
    ),
]
DistanceLimitNmOption = Annotated[
    float, typer.Option("--distance-limit-nm", help="Distances to regions are empty beyond.")
]
ClassNameOption = Annotated[
    str | None, typer.Option("--class", help="Class of a multi-class score map")
]
MethodOption = Annotated[str, typer.Option("--method", help="components, mean-shift or mp-nms.")]
BandwidthOption = Annotated[
    float | None, typer.Option("--bandwidth", help="For mean-shift: radius, voxels")
]
DiameterOption = Annotated[
    list[float] | None,
    typer.Option("--diameter", help="For mp-nms: of the particles, voxels; one for each class"),
]
ClassMinSizeOption = Annotated[
    list[str] | None,
    typer.Option("--class-min-size", metavar="CLASS=N", help="For mean-shift; may be repeated"),
]
ClassThresholdOption = Annotated[
    list[str] | None,
    typer.Option("--class-threshold", metavar="CLASS=T", help="Not for components; repeatable"),
]
ArgmaxOption = Annotated[
    bool,
    typer.Option("--argmax", help="Mean-shift: voxels of the highest class, no threshold."),
]
ClassNamesOption = Annotated[
    str | None,
    typer.Option("--class-names", metavar="A,B,..", help="Of labels from 0, or of --model"),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", help="With --compat deepetpicker: search its tiles; SCORE is a tomogram"
    ),
]
LabelMapOption = Annotated[bool, typer.Option("--label-map", help="Write it too.")]
TomogramNameOption = Annotated[
    str | None,
    typer.Option("--tomogram-name", help="Name in the STAR file [default: SCORE's]"),
]
VolumeFormatOption = Annotated[str, typer.Option("--format", help="zarr or mrc.")]
CompatOption = Annotated[
    str | None,
    typer.Option(
        "--compat",
        help="deepict, deepfinder (mean-shift) or deepetpicker (mp-nms): as published.",
    ),
]
