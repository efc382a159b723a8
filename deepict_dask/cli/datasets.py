"""Commands on sources of tomograms: dataset list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import WorkFailedError
from .options import say


def list_tomograms(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="Volume, pattern, folder, table, tomograms.star, or a project of copick.",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Show the tomograms that a source names, as `run` would take them, and what is odd.

    Example: deepict-dask dataset list empiar-10988
    """
    from ..jobs.list_dataset import dataset_lines, list_dataset

    found = list_dataset(source)
    say(
        json.dumps(found.as_dict(), indent=2, ensure_ascii=False)
        if as_json
        else "\n".join(dataset_lines(found))
    )
    if found.unreadable:
        raise WorkFailedError(
            f"{source}: {len(found.unreadable)} of {len(found.rows)} tomograms cannot be read, "
            f"the first is {found.unreadable[0].entry.path}"
        )


def register(dataset_app: typer.Typer) -> None:
    """Add the commands of this file to the group ``dataset``."""
    dataset_app.callback()(_datasets)
    dataset_app.command("list")(list_tomograms)


def _datasets() -> None:
    """Look at sources of tomograms."""
