"""Commands on score maps and particle lists: pick, picks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.errors import ConfigError
from .options import (
    ChunksOption,
    ClusterOption,
    DeviceOption,
    MemoryOption,
    OverwriteOption,
    ProgressOption,
    SpacingOption,
    WorkersOption,
    open_session,
    say,
    three,
)


def pick(
    score: Annotated[Path, typer.Argument(metavar="SCORE", help="Score map or label volume.")],
    folder: Annotated[Path, typer.Argument(metavar="OUTDIR", help="Folder to make.")],
    threshold: Annotated[float, typer.Option("--threshold", help="Scores above it count.")] = 0.5,
    label_value: Annotated[
        int | None, typer.Option("--label-value", help="Voxels of a label volume equal to this.")
    ] = None,
    min_size: Annotated[int, typer.Option("--min-size", help="Smallest cluster, voxels.")] = 1,
    max_size: Annotated[
        int | None, typer.Option("--max-size", help="Largest cluster, voxels")
    ] = None,
    connectivity: Annotated[int, typer.Option("--connectivity", help="6, 18 or 26.")] = 26,
    border: Annotated[
        str, typer.Option("--border", metavar="Z,Y,X", help="Voxels to leave out at the ends.")
    ] = "0",
    region_mask: Annotated[
        Path | None, typer.Option("--region-mask", help="Lamella, compartment, membrane")
    ] = None,
    contact_mode: Annotated[
        str | None,
        typer.Option("--contact-mode", help="intersection [default], contact or colocalization"),
    ] = None,
    contact_distance: Annotated[
        int, typer.Option("--contact-distance", help="For colocalization: voxels.")
    ] = 10,
    region: Annotated[
        list[str] | None,
        typer.Option("--region", metavar="NAME=FILE", help="A mask to measure; may be repeated"),
    ] = None,
    contact: Annotated[
        list[str] | None,
        typer.Option(
            "--contact",
            metavar="NAME:MODE[:DISTANCE]",
            help="Keep clusters with this contact; DISTANCE as 25nm or 10 (voxels); repeat for all",
        ),
    ] = None,
    distance_limit_nm: Annotated[
        float, typer.Option("--distance-limit-nm", help="Distances to regions are empty beyond.")
    ] = 100.0,
    class_name: Annotated[
        str | None, typer.Option("--class", help="Class of a multi-class score map")
    ] = None,
    method: Annotated[
        str, typer.Option("--method", help="components, mean-shift or mp-nms.")
    ] = "components",
    bandwidth: Annotated[
        float | None, typer.Option("--bandwidth", help="For mean-shift: radius, voxels")
    ] = None,
    diameter: Annotated[
        list[float] | None,
        typer.Option("--diameter", help="For mp-nms: of the particles, voxels; one for each class"),
    ] = None,
    class_min_size: Annotated[
        list[str] | None,
        typer.Option("--class-min-size", metavar="CLASS=N", help="For mean-shift; may be repeated"),
    ] = None,
    label_map: Annotated[bool, typer.Option("--label-map", help="Write it too.")] = False,
    tomogram_name: Annotated[
        str | None,
        typer.Option("--tomogram-name", help="Name in the STAR file [default: SCORE's]"),
    ] = None,
    volume_format: Annotated[str, typer.Option("--format", help="zarr or mrc.")] = "zarr",
    compat: Annotated[
        str | None,
        typer.Option(
            "--compat",
            help="deepict, deepfinder (mean-shift) or deepetpicker (mp-nms): as published.",
        ),
    ] = None,
    device: DeviceOption = "auto",
    voxel_spacing_angstrom: SpacingOption = None,
    chunks: ChunksOption = "128,128,128",
    cluster: ClusterOption = "local",
    workers: WorkersOption = None,
    memory: MemoryOption = None,
    overwrite: OverwriteOption = False,
    progress: ProgressOption = True,
) -> None:
    """Turn a score map into a segmentation, clusters and particle lists.

    Mean-shift and mp-nms find the middles of blobs, and make lists only.

    Example: deepict-dask pick scores.zarr picks --threshold 0.5 --min-size 100
    --region er=er.mrc --contact er:colocalization:25nm
    """
    from ..config import PickSettings, settings_from
    from ..jobs.pick import pick_particles

    regions = _region_files(region_mask, region or [])
    values: dict[str, Any] = {
        "class": class_name, "threshold": threshold, "label_value": label_value,
        "min_size": min_size, "max_size": max_size, "connectivity": connectivity,
        "border": three(border, "--border"), "region": region_mask and "region",
        "contact_mode": contact_mode or "intersection", "contact_distance": contact_distance,
        "contacts": [_contact(text, regions) for text in contact or []],
        "distance_limit_nm": distance_limit_nm, "label_map": label_map, "format": volume_format,
        "compat": compat, "method": method, "bandwidth": bandwidth, "diameters": diameter or (),
        "min_sizes": _sizes(class_min_size or []),
    }  # fmt: skip
    settings = settings_from(PickSettings, values, "pick")
    if contact_mode is not None and region_mask is None:
        raise ConfigError(
            "--contact-mode: expected a --region-mask with it, found none; with --region, give "
            "--contact NAME:MODE"
        )
    with open_session(
        cluster=cluster, workers=workers, memory=memory, chunks=chunks, overwrite=overwrite,
        progress=progress, voxel_spacing_angstrom=voxel_spacing_angstrom,
        device=device if method == "mp-nms" else "cpu",
    ) as session:  # fmt: skip
        report = pick_particles(
            session, score, folder, settings,
            regions=regions, tomogram_name=tomogram_name or score.name.split(".")[0],
        )  # fmt: skip
    say(f"{report.n_picks} picks in {folder}")


def _sizes(texts: list[str]) -> dict[str, int]:
    """Return smallest sizes by class from "CLASS=N".

    Examples
    --------
    >>> _sizes(["1=50", "ribosome=100"])
    {'1': 50, 'ribosome': 100}
    """
    sizes = {}
    for text in texts:
        name, _, size = text.rpartition("=")
        if not (name and size.isascii() and size.isdigit()):
            raise ConfigError(f"--class-min-size: expected CLASS=N, found {text!r}")
        sizes[name] = int(size)
    return sizes


def _region_files(region_mask: Path | None, regions: list[str]) -> dict[str, Path]:
    """Return mask files by the names of their regions; the one of --region-mask is ``region``.

    Examples
    --------
    >>> _region_files(None, ["cytosol=c.mrc"])
    {'cytosol': PosixPath('c.mrc')}
    """
    files = {} if region_mask is None else {"region": region_mask}
    for text in regions:
        name, _, path = text.partition("=")
        if not (re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) and path):
            raise ConfigError(
                "--region: expected NAME=FILE, with a name of letters, digits, _, - and ., "
                f"found {text!r}"
            )
        if name in files:
            other = " (the name of --region-mask)" if files[name] == region_mask else ""
            raise ConfigError(
                f"--region: expected one mask of each name, found two of {name!r}{other}; "
                "give one of them another name"
            )
        files[name] = Path(path)
    return files


def _contact(text: str, known: dict[str, Path]) -> dict[str, Any]:
    """Return the settings of a contact from "NAME:MODE" or "NAME:MODE:DISTANCE".

    Examples
    --------
    >>> _contact("er:colocalization:25nm", {"er": Path("er.mrc")})
    {'region': 'er', 'mode': 'colocalization', 'distance_nm': 25.0}
    """
    name, *rest = text.split(":")
    if not 1 <= len(rest) <= 2 or rest[0] not in ("intersection", "contact", "colocalization"):
        raise ConfigError(
            "--contact: expected NAME:MODE or NAME:MODE:DISTANCE with a mode of intersection, "
            f"contact and colocalization, found {text!r}"
        )
    if name not in known:
        raise ConfigError(
            f"--contact: expected a region that is given ({', '.join(known) or 'none is'}), "
            f"found {name!r}; give its mask with --region {name}=FILE"
        )
    contact = {"region": name, "mode": rest[0]}
    return contact | (_distance(rest[1], text) if len(rest) == 2 else {})


def _distance(text: str, contact: str) -> dict[str, float]:
    """Return a distance in voxels, or in nm where the text says so."""
    if text.isascii() and text.isdigit():
        return {"distance": int(text)}
    if re.fullmatch(r"\d+(\.\d*)?nm", text, re.ASCII):
        return {"distance_nm": float(text.removesuffix("nm"))}
    raise ConfigError(
        f"--contact {contact}: expected a distance such as 25nm, or 10 for voxels, found {text!r}"
    )


def convert_picks(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A particle list.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Its ending picks the format.")],
    voxel_spacing_angstrom: SpacingOption = None,
    tomogram_shape: Annotated[
        str | None, typer.Option("--tomogram-shape", metavar="Z,Y,X", help="Voxels")
    ] = None,
    tomogram_name: Annotated[
        str | None, typer.Option("--tomogram-name", help="Name in STAR files")
    ] = None,
    file_format: Annotated[
        str | None,
        typer.Option(
            "--format", help="csv, motl, motl-deepict, em, star or relion4, if not by name"
        ),
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Convert a particle list: .csv, motl .csv or .em, RELION .star.

    Example: deepict-dask picks convert picks.csv picks.star --voxel-spacing-angstrom 13.48
    --tomogram-shape 464,928,928 --tomogram-name TS_001
    """
    from ..core.errors import OutputExistsError
    from ..io.picks import read_picks, write_picks

    if target.exists() and not overwrite:
        raise OutputExistsError(f"{target}: expected no such output, found one; use --overwrite")
    shape = None if tomogram_shape is None else three(tomogram_shape, "--tomogram-shape")
    frame: dict[str, Any] = {
        "voxel_spacing_angstrom": voxel_spacing_angstrom,
        "tomogram_shape": shape,
        "tomogram_name": tomogram_name,
    }
    picks = read_picks(source, **frame)
    write_picks(picks, target, file_format=file_format, **frame)
    say(f"{len(picks)} picks in {target}")


def register(app: typer.Typer, picks_app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(pick)
    picks_app.command("convert")(convert_picks)
