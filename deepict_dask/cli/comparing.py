"""Command on lists of several pickers: picks compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import OverwriteOption, SpacingOption, say, three

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = ("first", "second", "class_name", "n_both", "n_only_first", "n_only_second", "f1")


def compare(
    lists: Annotated[list[Path], typer.Argument(metavar="LISTS...", help="Two lists or more.")],
    distance: Annotated[
        float, typer.Option("--distance", min=0, help="Picks this close are one, voxels")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="Folder of lists to make")
    ] = None,
    voxel_spacing_angstrom: SpacingOption = None,
    tomogram_shape: Annotated[
        str | None, typer.Option("--tomogram-shape", metavar="Z,Y,X", help="Voxels")
    ] = None,
    tomogram_name: Annotated[
        str | None, typer.Option("--tomogram-name", help="Only this tomogram's picks")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Show what lists have in common, class by class, and in how many lists each particle is.

    Example: deepict-dask picks compare deepict.csv deepfinder.csv --distance 5 --output agreement
    """
    from ..jobs.particle_lists.compare import compare_lists

    shape = None if tomogram_shape is None else three(tomogram_shape, "--tomogram-shape")
    compared = compare_lists(
        lists, distance, output, voxel_spacing_angstrom=voxel_spacing_angstrom,
        tomogram_shape=shape, tomogram_name=tomogram_name, overwrite=overwrite,
    )  # fmt: skip
    for line in _lines(compared.table):
        say(line)
    for n_lists, n in compared.counts.items():
        say(f"{n} particles in {n_lists} of {len(lists)} lists")


def _lines(table: pd.DataFrame) -> list[str]:
    """Return a table as lines with columns one below the other."""
    shown = table[list(_COLUMNS)].rename(columns=lambda name: name.removeprefix("n_"))
    return shown.to_string(index=False, float_format="{:.3f}".format).splitlines()


def register(picks_app: typer.Typer) -> None:
    """Add the command of this file."""
    picks_app.command("compare")(compare)
