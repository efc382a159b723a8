"""Write a config of DeePiCt as one of ours, with the same meaning.

DeePiCt's quirks (the published tiling, rounded centroids, ...) are left out, since they lose data;
the lines that ask for them are there as comments, or switched on by ``compat``. What has no place
in our config stands in comments at the end, with the reason.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config import RunConfig, settings_from
from ..config.yaml_text import values_of_yaml
from ..core.errors import OutputExistsError
from ..io.csv_text import csv_of_dicts
from ..io.replace import replace_file
from .project import read_project
from .project3d import Project3D
from .upgrade2d import lines_2d, rows_2d
from .upgrade3d import lines_3d, quoted, rows_3d

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["Upgraded", "upgrade_config"]


@dataclass(frozen=True)
class Upgraded:
    """What an upgrade wrote."""

    config: Path
    table: Path
    warnings: tuple[str, ...]
    """What changes results or surprises."""


def upgrade_config(
    old: Path, new: Path | None = None, *, compat: bool = False, overwrite: bool = False
) -> Upgraded:
    """Write our config, and our table of tomograms, beside each other.

    Parameters
    ----------
    old
        DeePiCt's 3D or 2D config.
    new
        The config to write; ``<old>_deepict_dask.yaml`` by default. The table takes its name with
        ``_tomograms.csv``.
    compat
        Ask for DeePiCt's own results, voxel for voxel.
    overwrite
        Replace files of these names.

    Raises
    ------
    ConfigError
        The old config is none of DeePiCt's, or contradicts itself.
    OutputExistsError
        A file is there and may not be replaced.
    """
    new = new or old.with_name(f"{old.stem}_deepict_dask.yaml")
    table = new.with_name(f"{new.stem}_tomograms.csv")
    for path in (new, table):
        if path.exists() and not overwrite:
            raise OutputExistsError(
                f"{path}: expected no such file, found one; "
                "give another name with -o, or --overwrite"
            )
    project = read_project(old, for_run=False)
    here = _relative_to(new.absolute().parent)
    if isinstance(project, Project3D):
        lines = lines_3d(project, here, compat=compat)
        rows = rows_3d(project, here)
    else:
        lines, rows = lines_2d(project, here, compat=compat), rows_2d(project, here)
    text = "\n".join([*_head(old, table), *lines, *_findings(project.findings.warnings)]) + "\n"
    settings_from(RunConfig, values_of_yaml(text), str(new))  # what we write, we can read
    new.parent.mkdir(parents=True, exist_ok=True)
    replace_file(table, _as_csv(rows))
    replace_file(new, text)
    return Upgraded(new, table, tuple(project.findings.warnings))


def _relative_to(folder: Path) -> Callable[[Path, str], str]:
    """Return how a path of the old config is written: from the new config's folder.

    The function takes the folder from which the old path counts and the old path. A path out of
    that folder is written in full.
    """

    def write(base: Path, path: str) -> str:
        full = base.absolute() / path
        out = os.path.isabs(path) and not full.is_relative_to(base.absolute())
        return path if out else os.path.relpath(full, folder)

    return write


def _head(old: Path, table: Path) -> list[str]:
    return [
        f"# Made from {old.name}, a config of DeePiCt, by `deepict-dask config upgrade`.",
        "# Paths count from the folder of this file.",
        f"tomograms: {quoted(table.name)}",
    ]


def _findings(warnings: Sequence[str]) -> list[str]:
    """Return warnings as comments."""
    if not warnings:
        return []
    return ["", "# Look at these:", *(f"# - {' '.join(text.split())}" for text in warnings)]


def _as_csv(rows: Sequence[dict[str, str]]) -> str:
    """Return a table with a column for everything that any row has."""
    return csv_of_dicts(rows, () if rows else ("name", "tomogram"))
