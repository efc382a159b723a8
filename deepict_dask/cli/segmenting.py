"""The command that runs networks: segment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .messages import plan
from .options import (
    ChunksOption,
    ClusterOption,
    CompatOption,
    DeviceOption,
    MemoryOption,
    OverwriteOption,
    ProgressOption,
    SpacingOption,
    WorkersOption,
    open_session,
    pair,
    say,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

SourceArgument = Annotated[Path, typer.Argument(metavar="IN", help="A tomogram.")]
TargetArgument = Annotated[Path, typer.Argument(metavar="OUT", help="Score map, float32.")]
ModelOption = Annotated[str, typer.Option("--model", help="Model file or bundled model.")]
ClassNameOption = Annotated[
    str | None, typer.Option("--class", help="One class [default: all of the model]")
]
RegionMaskOption = Annotated[
    Path | None,
    typer.Option("--region-mask", help="With --compat: predict patches that touch it."),
]
ZSigmaOption = Annotated[
    float, typer.Option("--z-sigma", min=0, help="2D models: smooth scores along z, voxels.")
]
ThresholdOption = Annotated[
    float | None,
    typer.Option("--threshold", help="2D models: write a mask of (smoothed) scores above it"),
]
ArgmaxOption = Annotated[
    bool, typer.Option("--argmax", help="DeepFinder, DeepETPicker: write labels, not scores.")
]
ClassNamesOption = Annotated[
    str | None,
    typer.Option("--class-names", metavar="A,B,..", help="Of all the model's classes"),
]
BoxSizeOption = Annotated[
    int | None,
    typer.Option("--box-size", min=1, help="3D with --compat [default: 64; DeepFinder 192]"),
]
PrecisionOption = Annotated[
    str, typer.Option("--precision", help="3D models: float32 or bfloat16 (faster, rougher).")
]
FlipsOption = Annotated[
    bool,
    typer.Option("--average-flips", help="3D networks: mean over 8 mirror images (8x the work)."),
]
TileOption = Annotated[
    str | None,
    typer.Option("--tile", metavar="H,W", help="2D with --compat [default: 288,288]"),
]
TilesOption = Annotated[
    str | None, typer.Option("--tiles", metavar="ROWS,COLS", help="... [default: 5,5]")
]
CropOption = Annotated[int | None, typer.Option("--crop", help="... [default: 48]")]
ZCutoffOption = Annotated[
    int | None, typer.Option("--z-cutoff", help="... central slices, 0 all [default: 200]")
]


def segment(
    source: SourceArgument,
    target: TargetArgument,
    model: ModelOption,
    class_name: ClassNameOption = None,
    region_mask: RegionMaskOption = None,
    z_sigma: ZSigmaOption = 0.0,
    threshold: ThresholdOption = None,
    argmax: ArgmaxOption = False,
    class_names: ClassNamesOption = None,
    box_size: BoxSizeOption = None,
    precision: PrecisionOption = "float32",
    average_flips: FlipsOption = False,
    compat: CompatOption = None,
    tile: TileOption = None,
    tiles: TilesOption = None,
    crop: CropOption = None,
    z_cutoff: ZCutoffOption = None,
    voxel_spacing_angstrom: SpacingOption = None,
    chunks: ChunksOption = "128,128,128",
    cluster: ClusterOption = "local",
    workers: WorkersOption = None,
    memory: MemoryOption = None,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    progress: ProgressOption = True,
) -> None:
    """Predict a score map with a network, without seams; the model file says which network.

    DeePiCt's 2D and 3D U-Nets, DeepFinder's and DeepETPicker's are known.

    Example: deepict-dask segment TS_001.zarr scores.zarr --model ribosome.pth

    A mask of a compartment: deepict-dask segment TS_001.zarr cytosol.zarr --model cytosol.h5
    --z-sigma 5 --threshold 0.5
    """
    from ..config import SegmentSettings, settings_from
    from ..jobs.segmenting.segment import segment_volume

    tiling = {
        "tile": tile and pair(tile, "--tile"), "tiles": tiles and pair(tiles, "--tiles"),
        "crop": crop, "z_cutoff": z_cutoff,
    }  # fmt: skip
    given = {name: value for name, value in tiling.items() if value is not None}
    values = {
        "model": model, "compat": compat, "tiling": given or None, "precision": precision,
        "box_size": box_size, "argmax": argmax, "average_flips": average_flips,
        "class_names": None if class_names is None else class_names.split(","),
        "classes": None if class_name is None else (class_name,),
    }  # fmt: skip
    settings = settings_from(SegmentSettings, values, "segment")
    with open_session(
        cluster=cluster, workers=workers, memory=memory, device=device, chunks=chunks,
        overwrite=overwrite, progress=progress, voxel_spacing_angstrom=voxel_spacing_angstrom,
    ) as session:  # fmt: skip
        plan(f"scores of {source} by {model}, to {target}", shown=progress)
        segment_volume(
            session, source, target, settings,
            region=region_mask, z_sigma=z_sigma, threshold=threshold,
        )  # fmt: skip
    if threshold is None and not argmax:
        for line in _recommended(model, class_name):
            say(line)
    say(f"wrote {target}")


def _recommended(model: str, class_name: str | None) -> Iterator[str]:
    """Yield what the model's card says of picking, class by class."""
    from ..models.checkpoint import model_info
    from ..models.registry import resolve_model

    for name, limits in model_info(resolve_model(model)).card.get("recommended", {}).items():
        if class_name in (None, name):
            said = ", ".join(f"{key} {value}" for key, value in limits.items())
            yield f"the model recommends for {name}: {said}"


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(segment)
