"""Commands on configs: config upgrade."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from .options import OverwriteOption, check_compat, say

log = logging.getLogger("deepict_dask")


def upgrade(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="A 3D or 2D config of DeePiCt.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Config to write [default: OLD_deepict_dask.yaml]"),
    ] = None,
    compat: Annotated[
        str | None,
        typer.Option("--compat", help="deepict: keep its results, voxel for voxel."),
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Write a config of DeePiCt as one of ours, with the table of its tomograms.

    Example: deepict-dask config upgrade config.yaml -o run.yaml
    """
    from ..deepict_project import upgrade_config

    keep = check_compat(compat) is not None
    made = upgrade_config(old, output, compat=keep, overwrite=overwrite)
    for text in made.warnings:
        log.warning("%s: %s", old, text)
    say(f"wrote {made.config} and {made.table}; try: deepict-dask run {made.config} --dry-run")


def register(config_app: typer.Typer) -> None:
    """Add the commands of this file to the group ``config``."""
    config_app.callback()(_configs)
    config_app.command("upgrade")(upgrade)


def _configs() -> None:
    """Configs of runs."""
