"""Commands on score maps and particle lists: pick, picks, evaluate."""

from __future__ import annotations

import json
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
    check_compat,
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
    class_name: Annotated[
        str | None, typer.Option("--class", help="Class of a multi-class score map")
    ] = None,
    label_map: Annotated[bool, typer.Option("--label-map", help="Write it too.")] = False,
    tomogram_name: Annotated[
        str | None,
        typer.Option("--tomogram-name", help="Name in the STAR file [default: SCORE's]"),
    ] = None,
    volume_format: Annotated[str, typer.Option("--format", help="zarr or mrc.")] = "zarr",
    compat: CompatOption = None,
    voxel_spacing_angstrom: SpacingOption = None,
    chunks: ChunksOption = "128,128,128",
    cluster: ClusterOption = "local",
    workers: WorkersOption = None,
    memory: MemoryOption = None,
    overwrite: OverwriteOption = False,
    progress: ProgressOption = True,
) -> None:
    """Turn a score map into a segmentation, clusters and particle lists.

    Example: deepict-dask pick scores.zarr picks --threshold 0.5 --min-size 100
    """
    from ..config import PickSettings, settings_from
    from ..jobs.pick import pick_particles

    values: dict[str, Any] = {
        "class": class_name, "threshold": threshold, "label_value": label_value,
        "min_size": min_size, "max_size": max_size, "connectivity": connectivity,
        "border": three(border, "--border"), "contact_mode": contact_mode or "intersection",
        "contact_distance": contact_distance, "label_map": label_map, "format": volume_format,
        "compat": compat,
    }  # fmt: skip
    settings = settings_from(PickSettings, values, "pick")
    if contact_mode is not None and region_mask is None:
        raise ConfigError("--contact-mode: expected a --region-mask with it, found none")
    with open_session(
        cluster=cluster, workers=workers, memory=memory, chunks=chunks, overwrite=overwrite,
        progress=progress, voxel_spacing_angstrom=voxel_spacing_angstrom,
    ) as session:  # fmt: skip
        report = pick_particles(
            session, score, folder, settings,
            region=region_mask, tomogram_name=tomogram_name or score.name.split(".")[0],
        )  # fmt: skip
    say(f"{report.n_picks} picks in {folder}")


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


def evaluate_picks(
    predicted: Annotated[Path, typer.Argument(metavar="PRED", help="A particle list.")],
    truth: Annotated[Path, typer.Argument(metavar="TRUTH", help="A particle list.")],
    radius: Annotated[float, typer.Option("--radius", help="Largest distance, voxels.")] = 10.0,
    compat: CompatOption = None,
    voxel_spacing_angstrom: SpacingOption = None,
    tomogram_shape: Annotated[
        str | None, typer.Option("--tomogram-shape", metavar="Z,Y,X", help="Voxels")
    ] = None,
    class_name: Annotated[
        str | None, typer.Option("--class", help="Class, where a list has several")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Count true and false picks, matched one to one by falling score.

    Example: deepict-dask evaluate picks picks/picks.csv truth.csv --radius 10
    """
    from ..evaluate.picks import same_class, score_picks
    from ..io.picks import read_picks

    shape = None if tomogram_shape is None else three(tomogram_shape, "--tomogram-shape")
    frame: dict[str, Any] = {
        "voxel_spacing_angstrom": voxel_spacing_angstrom, "tomogram_shape": shape,
    }  # fmt: skip
    found, true = same_class(read_picks(predicted, **frame), read_picks(truth, **frame), class_name)
    result = score_picks(
        found[["z", "y", "x"]].to_numpy(),
        true[["z", "y", "x"]].to_numpy(),
        radius,
        scores=found["score"].to_numpy(),
        counting="one-to-one" if check_compat(compat) is None else "deepict",
    )
    values = {
        "found": result.n_found, "true": result.n_true, "matched": result.true_positives,
        "precision": result.precision, "recall": result.recall, "f1": result.f1,
        "best_f1": result.best_f1, "auprc": result.auprc,
    }  # fmt: skip
    say(json.dumps(values) if as_json else "\n".join(f"{k:<10} {v:.4g}" for k, v in values.items()))


def register(app: typer.Typer, picks_app: typer.Typer, evaluate_app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(pick)
    picks_app.command("convert")(convert_picks)
    evaluate_app.command("picks")(evaluate_picks)
