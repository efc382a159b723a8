"""A 2D config of DeePiCt as lines of ours: its organelle becomes a region."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ..core.errors import ConfigError
from ..io.datasets.names import as_file_name
from .upgrade3d import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .project2d import Project2D

__all__ = ["lines_2d", "rows_2d"]


def rows_2d(project: Project2D, here: Callable[[Path, str], str]) -> list[dict[str, str]]:
    """Return the rows of our table.

    Parameters
    ----------
    project
        The old config.
    here
        Writes a path of the old config for the new one.
    """
    return [
        {"name": as_file_name(tomogram.name), "tomogram": here(project.base, str(tomogram.path))}
        for tomogram in project.tomograms
    ]


def lines_2d(
    project: Project2D, here: Callable[[Path, str], str], *, compat: bool
) -> Iterator[str]:
    """Yield the lines of our config after ``tomograms``.

    Parameters
    ----------
    project
        The old config.
    here
        Writes a path of the old config for the new one.
    compat
        Ask for DeePiCt's own results.

    Raises
    ------
    ConfigError
        The old config names no model.
    """
    if project["prediction.model"] is None:
        raise ConfigError(
            f"{project.path}: prediction.model: is required, found nothing; name the model"
        )
    yield f"output: {quoted(here(project.base, project['data.output_dir'] + '/deepict_dask'))}"
    yield "# voxel_spacing_angstrom: 13.48  # where the tomograms' files do not say"
    if project.filtering:
        yield from _equalize(project, here)
    model = quoted(here(project.base, project["prediction.model"]))
    if project.polish and project["postprocessing.threshold"] is not None:
        yield "regions:"
        yield f"  - name: {_name_of(project.model)}  # the mask is region_<name>.zarr"
        yield f"    model: {model}"
        yield f"    threshold: {project['postprocessing.threshold']}"
        yield f"    z_sigma: {project['postprocessing.sigma']}"
    else:
        yield "segment:"
        yield f"  - model: {model}"
    yield from _tiling(project, compat=compat)
    yield from _dropped(project)


def _name_of(model: Path) -> str:
    """Return a region's name from its model's file."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", model.stem).lstrip("_.-")
    return quoted(name or "organelle")


def _equalize(project: Project2D, here: Callable[[Path, str], str]) -> Iterator[str]:
    """Yield the section of the spectrum; a table of DeePiCt is understood in its own way only."""
    section = "preprocessing.filtering"
    yield "equalize:"
    yield f"  target: {quoted(here(project.base, project[f'{section}.target_spectrum']))}"
    yield f"  cutoff: {project[f'{section}.lowpass_cutoff']}"
    yield f"  smoothing: {project[f'{section}.smoothen_cutoff']}"
    yield "  compat: deepict  # the table counts in bins; for 1/Å make one with `spectrum`"


def _tiling(project: Project2D, *, compat: bool) -> Iterator[str]:
    """Yield the published tiles; without them windows are derived and every slice is predicted."""
    off = "" if compat else "# "
    if not compat:
        yield "    # DeePiCt's own tiles and slices:"
    yield f"    {off}compat: deepict"
    yield f"    {off}tiling:"
    yield f"    {off}  tile: {quoted(project['prediction.patch_size'])}"
    yield f"    {off}  tiles: {quoted(project['prediction.patch_dim'])}"
    for key in ("crop", "z_cutoff", "normalize", "compensate_crop"):
        yield f"    {off}  {key}: {quoted(project[f'prediction.{key}'])}"


def _dropped(project: Project2D) -> Iterator[str]:
    """Yield what has no place in our config."""
    yield ""
    yield "# Not taken over:"
    if project["prediction.z_cutoff"]:
        yield "# - prediction.z_cutoff: every slice is predicted (but not with compat)"
    if not project["prediction.normalize"]:
        yield "# - prediction.normalize False: every tomogram is normalized (but not with compat)"
    if project.polish and project["postprocessing.threshold"] is None:
        sigma = project["postprocessing.sigma"]
        yield "# - postprocessing without a threshold: smooth the score map with"
        yield f"#   deepict-dask polish SCORES OUT --z-sigma {sigma}"
    for name in ("evaluation", "production"):
        if project[f"training.{name}.active"]:
            yield f"# - training.{name}: `deepict-dask train` does it, on the old config too"
    for text in project.findings.notes:
        yield f"# - {text}"
