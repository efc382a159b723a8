"""The command that writes a report: report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import MemoryOption, WorkersOption, open_session, say


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Output folder of a run, or a folder of picks.")
    ],
    tomogram: Annotated[
        Path | None,
        typer.Option("--tomogram", help="Tomogram to show behind picks, if it is not known."),
    ] = None,
    workers: WorkersOption = None,
    memory: MemoryOption = None,
) -> None:
    """Write report.html: slices with picks, histograms, what failed. Open it in a browser.

    `deepict-dask run` does this at its end; here it is done again, or for a run that was killed.

    Example: deepict-dask report results
    """
    from ..report import write_report

    if workers is None:
        path = write_report(folder, tomogram=tomogram)
    else:
        with open_session(workers=workers, memory=memory) as session:
            path = write_report(folder, tomogram=tomogram, workers=session.workers)
    say(f"report in {path}")


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(report)
