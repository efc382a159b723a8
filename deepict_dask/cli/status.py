"""The command that shows how far a run is: status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .options import say


def status(
    output: Annotated[Path, typer.Argument(metavar="DIR", help="Output folder of a run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Show how far a run is, tomogram by tomogram; it may be at work, over or killed.

    Example: deepict-dask status results
    """
    from ..jobs.runs.status import read_status, status_lines

    found = read_status(output)
    if as_json:
        say(json.dumps(found.as_json(), indent=2, default=str))
        return
    for line in status_lines(found):
        say(line)


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(status)
