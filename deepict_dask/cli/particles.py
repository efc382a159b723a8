"""Commands on particle lists: picks convert, picks merge, picks to-mask."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.errors import ConfigError
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
    three,
)

ShapeOption = Annotated[
    str | None, typer.Option("--tomogram-shape", metavar="Z,Y,X", help="Voxels")
]
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="Of OUT, if not by name: csv, motl, motl-deepict, em, star (RELION 5), relion4, "
        "relion3.1, relion3, warp, dynamo, imod, copick, portal, deepfinder, deepfinder-xlsx, "
        "coords or box",
    ),
]
PixelSizeOption = Annotated[
    float | None,
    typer.Option(
        "--pixel-size-angstrom", min=1e-6, help="Of the tilt series (unbinned), for STAR files"
    ),
]
StarCentreOption = Annotated[
    str,
    typer.Option(
        "--star-centre",
        help="Origin of RELION 5's centred Å: half the shape, or half-minus-one pixel.",
    ),
]


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A particle list.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Its ending picks the format.")],
    voxel_spacing_angstrom: SpacingOption = None,
    tomogram_shape: ShapeOption = None,
    tomogram_name: Annotated[
        str | None,
        typer.Option(
            "--tomogram-name",
            help="Only this tomogram's picks, and its name in OUT; by NUMBER or NUMBER=NAME where "
            "IN has numbers (Dynamo, motl).",
        ),
    ] = None,
    class_name: Annotated[
        str | None, typer.Option("--class", help="Only picks of this class, by name or number")
    ] = None,
    pixel_size_angstrom: PixelSizeOption = None,
    star_centre: StarCentreOption = "half",
    file_format: FormatOption = None,
    source_format: Annotated[
        str | None, typer.Option("--from", help="Format of IN, if not by name")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Convert a particle list: .csv .star .tbl .mod .em .json .ndjson .xml .xlsx .coords .box.

    What a position means in each is in docs/coordinates.md. Columns that OUT cannot hold are named.

    Example: deepict-dask picks convert picks.csv picks.star --voxel-spacing-angstrom 13.48
    --tomogram-shape 464,928,928 --tomogram-name TS_001
    """
    from ..core.errors import OutputExistsError
    from ..io.picks import columns_left_out, read_picks, write_picks
    from ..io.picks_table import of_class

    if target.exists() and not overwrite:
        raise OutputExistsError(f"{target}: expected no such output, found one; use --overwrite")
    if star_centre not in ("half", "half-minus-one"):
        raise ConfigError(f"--star-centre: expected half or half-minus-one, found {star_centre!r}")
    frame: dict[str, Any] = {
        "voxel_spacing_angstrom": voxel_spacing_angstrom,
        "tomogram_shape": None if tomogram_shape is None
        else three(tomogram_shape, "--tomogram-shape"),
        "tomogram_name": tomogram_name, "tilt_series_pixel_size_angstrom": pixel_size_angstrom,
        "star_centre": star_centre,
    }  # fmt: skip
    picks = read_picks(source, file_format=source_format, **frame)
    picks = picks[of_class(picks, class_name, source)].reset_index(drop=True)
    write_picks(picks, target, file_format=file_format, **frame)
    lost = columns_left_out(picks, target, file_format)
    say(f"{len(picks)} picks in {target}" + (f", without {', '.join(lost)}" if lost else ""))


def three_lengths(text: str, option: str) -> tuple[float, float, float]:
    """Return three numbers from "Z,Y,X".

    Examples
    --------
    >>> three_lengths("15,9,9.5", "--axes")
    (15.0, 9.0, 9.5)
    """
    try:
        z, y, x = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option}: expected Z,Y,X in voxels, found {text!r}") from None
    return (z, y, x)


def merge(
    lists: Annotated[list[Path], typer.Argument(metavar="LISTS...", help="Particle lists.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Its ending picks the format.")],
    axes: Annotated[
        str | None,
        typer.Option("--axes", metavar="Z,Y,X", help="Semi-axes of an ellipsoid, voxels"),
    ] = None,
    distance: Annotated[
        float | None, typer.Option("--distance", help="Instead: radius of a ball, voxels")
    ] = None,
    distance_nm: Annotated[
        float | None, typer.Option("--distance-nm", help="Instead: radius of a ball, nm")
    ] = None,
    by_score: Annotated[
        bool, typer.Option("--by-score", help="Prefer high scores, not earlier lists.")
    ] = False,
    across_classes: Annotated[
        bool, typer.Option("--across-classes", help="Picks of two classes can be one.")
    ] = False,
    min_lists: Annotated[
        int, typer.Option("--min-lists", help="Keep what so many lists agree on.")
    ] = 1,
    compat: CompatOption = None,
    voxel_spacing_angstrom: SpacingOption = None,
    tomogram_shape: ShapeOption = None,
    tomogram_name: Annotated[
        str | None, typer.Option("--tomogram-name", help="Only this tomogram's picks")
    ] = None,
    pixel_size_angstrom: PixelSizeOption = None,
    file_format: FormatOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Merge particle lists: of picks closer than the distance the preferred one is kept.

    Earlier lists come first, in a list the higher score. DeePiCt's --abc X Y Z is --axes Z,Y,X.

    Example: deepict-dask picks merge curated.csv picks.star all.csv --distance 10
    """
    from ..config import settings_from
    from ..jobs.particle_lists.merge import merge_lists
    from ..particles.merge import MergeSettings

    values = {
        "axes": None if axes is None else three_lengths(axes, "--axes"), "distance": distance,
        "distance_nm": distance_nm, "by_score": by_score, "across_classes": across_classes,
        "min_lists": min_lists, "compat": compat,
    }  # fmt: skip
    shape = None if tomogram_shape is None else three(tomogram_shape, "--tomogram-shape")
    report = merge_lists(
        lists, target, settings_from(MergeSettings, values, "merge"),
        voxel_spacing_angstrom=voxel_spacing_angstrom, tomogram_shape=shape,
        tomogram_name=tomogram_name, pixel_size_angstrom=pixel_size_angstrom,
        file_format=file_format, overwrite=overwrite,
    )  # fmt: skip
    say(f"{report.n_kept} of {report.n_read} picks in {target}")


def to_mask(
    picks: Annotated[Path, typer.Argument(metavar="PICKS", help="A particle list.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Its ending picks the format.")],
    like: Annotated[
        Path | None, typer.Option("--like", help="Volume of the same shape and voxels")
    ] = None,
    shape: Annotated[
        str | None, typer.Option("--shape", metavar="Z,Y,X", help="Instead: voxels")
    ] = None,
    radius: Annotated[float | None, typer.Option("--radius", help="Radius, voxels")] = None,
    radius_nm: Annotated[float | None, typer.Option("--radius-nm", help="Instead: nm")] = None,
    radius_column: Annotated[
        str | None, typer.Option("--radius-column", help="Instead: column of radii in voxels")
    ] = None,
    value: Annotated[
        float | None, typer.Option("--value", help="Value of the spheres [default: 1]")
    ] = None,
    by_column: Annotated[
        str | None, typer.Option("--by-column", help="Column of values or names")
    ] = None,
    numbered: Annotated[
        bool, typer.Option("--numbered", help="Number the picks from 1, in the list's order.")
    ] = False,
    class_name: Annotated[
        str | None, typer.Option("--class", help="Only the picks of this class")
    ] = None,
    tomogram_name: Annotated[
        str | None, typer.Option("--tomogram-name", help="Only this tomogram's picks")
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
    """Paint a sphere at each pick of a list, into any volume format.

    Example: deepict-dask picks to-mask picks.csv mask.mrc --like TS_001.rec --radius-nm 12
    """
    from ..config import settings_from
    from ..jobs.particle_lists.to_mask import paint_picks
    from ..particles.spheres import SphereSettings

    values = {
        "radius": radius, "radius_nm": radius_nm, "radius_column": radius_column,
        "by_column": by_column, "numbered": numbered, "class_name": class_name, "compat": compat,
    } | ({} if value is None else {"value": value})  # fmt: skip
    settings = settings_from(SphereSettings, values, "to-mask")
    with open_session(
        cluster=cluster, workers=workers, memory=memory, chunks=chunks, overwrite=overwrite,
        progress=progress, voxel_spacing_angstrom=voxel_spacing_angstrom,
    ) as session:  # fmt: skip
        report = paint_picks(
            session, picks, target, settings, like=like,
            shape=None if shape is None else three(shape, "--shape"), tomogram_name=tomogram_name,
        )  # fmt: skip
    for number, name in report.legend.items():
        say(f"{number} = {name}")
    say(f"{report.n_picks} picks in {target}")


def register(picks_app: typer.Typer) -> None:
    """Add the commands of this file."""
    picks_app.command("convert")(convert)
    picks_app.command("merge")(merge)
    picks_app.command("to-mask")(to_mask)
