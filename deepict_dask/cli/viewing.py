"""The command that shows a run: view."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import (
    ChunksOption,
    MemoryOption,
    OverwriteOption,
    ProgressOption,
    SpacingOption,
    WorkersOption,
    open_session,
    say,
)
from .stopping import stopped_cleanly

if TYPE_CHECKING:
    from ..viewing import ExportedScene, Scene


def view(
    run: Annotated[
        Path, typer.Argument(metavar="DIR", help="Output folder of a run, or a folder of picks.")
    ],
    only: Annotated[
        str | None, typer.Option("--only", metavar="NAME", help="One tomogram of the run.")
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option("--export", metavar="FOLDER", help="Where volumes go [default: DIR/viewer]."),
    ] = None,
    export_only: Annotated[
        bool, typer.Option("--export-only", help="Make the volumes and open nothing.")
    ] = False,
    tomogram: Annotated[
        Path | None,
        typer.Option("--tomogram", help="Tomogram to show behind picks, if it is not known."),
    ] = None,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Of the report's server; 0: any.")
    ] = 0,
    voxel_spacing_angstrom: SpacingOption = None,
    chunks: ChunksOption = "128,128,128",
    workers: WorkersOption = None,
    memory: MemoryOption = None,
    overwrite: OverwriteOption = False,
    progress: ProgressOption = True,
) -> None:
    """Show a run in napari, or its report in a browser where napari is not installed.

    For napari each tomogram becomes one OME-Zarr image in DIR/viewer, with coarser levels,
    segmentations and regions as labels, and each list of picks a CSV file of points.

    Example: deepict-dask view results
    """
    from ..viewing import scenes_of
    from ..viewing.napari_window import has_napari, show_in_napari

    if not export_only and not has_napari():
        _refuse_volumes(asked=export is not None or overwrite)
        if only is not None:
            scenes_of(run, only=only, tomogram=tomogram)  # which refuses a name that is not there
        _serve(run, tomogram, port)
        return
    scenes = scenes_of(run, only=only, tomogram=tomogram)
    if not export_only:
        scenes = [_the_one(scenes)]
    with (
        stopped_cleanly(),
        open_session(
            workers=workers, memory=memory, device="cpu", chunks=chunks, overwrite=overwrite,
            progress=progress, voxel_spacing_angstrom=voxel_spacing_angstrom,
        ) as session,
    ):  # fmt: skip
        from ..viewing import export_scene

        made = [export_scene(session, scene, export or run / "viewer") for scene in scenes]
    for one in made:
        _tell(one)
    if not export_only:
        show_in_napari(made[0])


def _refuse_volumes(*, asked: bool) -> None:
    """Refuse options of volumes where there is no napari and only the report is shown."""
    from ..core.errors import ConfigError

    if asked:
        raise ConfigError(
            "view: expected --export-only with --export or --overwrite, as napari is not "
            "installed here and the report needs no volumes; add it"
        )


def _the_one(scenes: list[Scene]) -> Scene:
    """Return the only scene."""
    from ..core.errors import ConfigError

    if len(scenes) > 1:
        names = ", ".join(scene.name for scene in scenes)
        raise ConfigError(f"--only: expected the name of one tomogram to show, found none: {names}")
    return scenes[0]


def _tell(made: ExportedScene) -> None:
    """Say what was made, and what was left out."""
    for note in made.notes:
        typer.echo(f"note: {note}", err=True)
    say(f"wrote {made.store}")
    for path in made.points.values():
        say(f"wrote {path}")


def _serve(run: Path, tomogram: Path | None, port: int) -> None:
    """Serve the report until Ctrl-C; it is written where it is missing or shall show a tomogram."""
    from ..core.errors import ConfigError
    from ..report import write_report
    from ..viewing.serving import open_server, server_lines

    if tomogram is not None or not (run / "report.html").is_file():
        write_report(run, tomogram=tomogram)
    try:
        served = open_server(run, port=port)
    except OSError as error:
        raise ConfigError(
            f"--port {port}: expected a free port, found: {error.strerror}; leave it out, or "
            "give another"
        ) from error
    say("napari is not installed here (pip install 'napari[all]'), so the report is shown")
    for line in server_lines(served):
        say(line)
    served.run()


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(view)
