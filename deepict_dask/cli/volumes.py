"""Commands on volumes: info, convert, spectrum, equalize."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

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
    check_compat,
    open_session,
    say,
    three,
)


def info(
    file: Annotated[Path, typer.Argument(help="A volume.")],
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    statistics: Annotated[
        bool, typer.Option("--statistics/--no-statistics", help="Read the voxels too.")
    ] = True,
) -> None:
    """Show shape, type, voxel spacing and statistics of a volume, and what is odd about it.

    Example: deepict-dask info TS_001.rec
    """
    from ..jobs.info import describe_volume, info_lines

    found = describe_volume(file, statistics=statistics)
    say(json.dumps(found, indent=2) if as_json else "\n".join(info_lines(found)))


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A volume.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Its ending picks the format.")],
    voxel_spacing_angstrom: SpacingOption = None,
    chunks: ChunksOption = "128,128,128",
    shards: Annotated[
        str | None, typer.Option("--shards", metavar="Z,Y,X", help="Voxels of a shard file.")
    ] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="Voxel type of the output.")] = None,
    fill_nonfinite: Annotated[
        float | None, typer.Option("--fill-nonfinite", help="Replace NaN and infinite voxels.")
    ] = None,
    class_name: Annotated[
        str | None, typer.Option("--class", help="Class of a score map with several")
    ] = None,
    pyramid: Annotated[
        str | None,
        typer.Option(
            "--pyramid",
            metavar="METHOD",
            help="Add coarser levels for viewers: mean (densities) or majority (labels).",
        ),
    ] = None,
    allow_missing_chunks: Annotated[
        bool,
        typer.Option(
            "--allow-missing-chunks", help="Of a Zarr store that leaves out empty chunks."
        ),
    ] = False,
    cluster: ClusterOption = "local",
    workers: WorkersOption = None,
    memory: MemoryOption = None,
    overwrite: OverwriteOption = False,
    progress: ProgressOption = True,
) -> None:
    """Convert any volume to any volume, a few chunks at a time.

    Example: deepict-dask convert TS_001.rec TS_001.zarr --voxel-spacing-angstrom 13.48
    """
    from ..jobs.convert import convert_volume

    with open_session(
        cluster=cluster, workers=workers, memory=memory, chunks=chunks, overwrite=overwrite,
        progress=progress, voxel_spacing_angstrom=voxel_spacing_angstrom,
    ) as session:  # fmt: skip
        shape = None if shards is None else three(shards, "--shards")
        convert_volume(
            session, source, target, dtype=dtype, shards=shape,
            fill_nonfinite=fill_nonfinite, class_name=class_name, pyramid=pyramid,
            allow_missing_chunks=allow_missing_chunks,
        )  # fmt: skip
    say(f"wrote {target}")


def spectrum(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A tomogram.")],
    target: Annotated[Path, typer.Argument(metavar="OUT.tsv", help="Table to write.")],
    voxel_spacing_angstrom: SpacingOption = None,
    compat: CompatOption = None,
    cluster: ClusterOption = "local",
    workers: WorkersOption = 1,
    memory: MemoryOption = None,
    overwrite: OverwriteOption = False,
    progress: ProgressOption = True,
) -> None:
    """Measure the radial amplitude spectrum of a tomogram.

    Example: deepict-dask spectrum TS_001.rec target.tsv
    """
    from ..jobs.equalize import measure_spectrum

    with open_session(
        cluster=cluster, workers=workers, memory=memory, overwrite=overwrite, progress=progress,
        voxel_spacing_angstrom=voxel_spacing_angstrom,
    ) as session:  # fmt: skip
        measure_spectrum(session, source, target, compat=check_compat(compat) is not None)
    say(f"wrote {target}")


def equalize(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A tomogram.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Equalized tomogram, float32.")],
    spectrum_file: Annotated[
        Path,
        typer.Option("--target", help="Spectrum to match (.tsv), or a model whose card has one."),
    ],
    cutoff: Annotated[
        float | None, typer.Option("--cutoff", help="Low-pass in 1/Å (bins with --compat).")
    ] = None,
    smoothing: Annotated[float, typer.Option("--smoothing", help="Width of the cut-off.")] = 0.0,
    compat: CompatOption = None,
    voxel_spacing_angstrom: SpacingOption = None,
    chunks: ChunksOption = "128,128,128",
    cluster: ClusterOption = "local",
    workers: WorkersOption = 1,
    memory: MemoryOption = None,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    progress: ProgressOption = True,
) -> None:
    """Match the amplitudes of a tomogram to a spectrum.

    Example: deepict-dask equalize TS_002.rec TS_002_eq.zarr --target target.tsv
    """
    from ..config import EqualizeSettings, settings_from
    from ..jobs.equalize import equalize_volume

    settings = settings_from(
        EqualizeSettings,
        {"target": spectrum_file, "cutoff": cutoff, "smoothing": smoothing, "compat": compat},
        "equalize",
    )
    with open_session(
        cluster=cluster, workers=workers, memory=memory, device=device, chunks=chunks,
        overwrite=overwrite, progress=progress, voxel_spacing_angstrom=voxel_spacing_angstrom,
    ) as session:  # fmt: skip
        equalize_volume(session, source, target, settings)
    say(f"wrote {target}")


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    for command in (info, convert, spectrum, equalize):
        app.command()(command)
