"""A 3D config of DeePiCt as lines of ours."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from ..io.datasets.names import as_file_name
from .project3d import REGION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .project3d import Project3D

__all__ = ["lines_3d", "quoted", "rows_3d"]

_POST = "postprocessing_clustering"
_PLAIN = re.compile(r"[A-Za-z_./][A-Za-z0-9_./-]*")
_TRUTH_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}


def quoted(value: Any) -> str:
    """Return a value as YAML; text without quotes where that is safe.

    Examples
    --------
    >>> quoted("models/blob.pth"), quoted("190301/001"), quoted((10, 20, 5)), quoted("no")
    ('models/blob.pth', '"190301/001"', '[10, 20, 5]', '"no"')
    """
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _TRUTH_WORDS:
        return value
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def rows_3d(project: Project3D, here: Callable[[Path, str], str]) -> list[dict[str, str]]:
    """Return the rows of our table: the tomograms of ``prediction_list`` and their masks.

    Parameters
    ----------
    project
        The old config.
    here
        Writes a path of the old config for the new one.
    """
    files = {
        project[f"{_POST}.region_mask"]: "region",
        f"{project.class_name}_motl": "true_motl",
        f"{project.class_name}_mask": "true_mask",
    }
    rows = []
    for tomogram in project.tomograms:
        row = {
            "name": as_file_name(tomogram.name),
            "tomogram": here(project.base, str(tomogram.path)),
        }
        for column, field in files.items():
            path = getattr(tomogram, field)
            if any(getattr(other, field) is not None for other in project.tomograms):
                row[column] = "" if path is None else here(project.base, str(path))
        rows.append(row)
    return rows


def lines_3d(
    project: Project3D, here: Callable[[Path, str], str], *, compat: bool
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
    """
    has_region = any(tomogram.region is not None for tomogram in project.tomograms)
    yield f"output: {quoted(here(project.base, project['output_dir'] + '/deepict_dask'))}"
    yield "# voxel_spacing_angstrom: 13.48  # where the tomograms' files do not say"
    if has_region:
        yield "regions:"
        yield f"  - {{name: {REGION}, column: {quoted(project[f'{_POST}.region_mask'])}}}"
    yield from _segment(project, here, compat=compat)
    yield from _pick(project, has_region=has_region, compat=compat)
    yield from _dropped(project)


def _segment(
    project: Project3D, here: Callable[[Path, str], str], *, compat: bool
) -> Iterator[str]:
    """Yield the section of the network."""
    off = "" if compat else "# "
    yield "segment:"
    yield f"  - model: {quoted(here(project.base, project['model_path']))}"
    if project.class_in_model is not None:
        yield f"    classes: [{quoted(project.class_in_model)}]"
    if not compat:
        yield "    # DeePiCt's own tiling, with its seams and the border that it never predicts:"
    yield f"    {off}compat: deepict"
    yield f"    {off}box_size: {project['training.box_size']}"
    yield f"    {off}overlap: {project['training.overlap']}"
    if not project.predict:
        yield "    # prediction.active was False; the score map is made once and kept"


def _pick(project: Project3D, *, has_region: bool, compat: bool) -> Iterator[str]:
    """Yield the section of the clusters; as comments where they were not asked for."""
    off = "" if project.postprocess else "# "
    low = project[f"{_POST}.min_cluster_size"]
    if not project.postprocess:
        yield f"# {_POST}.active was False; to pick as well, take away the #:"
    yield f"{off}pick:"
    yield f"{off}  - threshold: {project[f'{_POST}.threshold']}"
    if project.class_in_model is not None:
        yield f"{off}    class: {quoted(project.class_in_model)}"
    else:
        yield f"{off}    name: {quoted(_as_name(project.class_name))}"
    if compat:
        yield f"{off}    compat: deepict"
        yield f"{off}    min_size: {low}  # sizes above this are kept, with compat"
    else:
        yield f"{off}    # compat: deepict  # rounded centroids, integer motl; then min_size: {low}"
        yield f"{off}    min_size: {low + 1}  # DeePiCt keeps sizes above its min_cluster_size"
    if project[f"{_POST}.max_cluster_size"] is not None:
        yield f"{off}    max_size: {project[f'{_POST}.max_cluster_size']}"
    yield f"{off}    connectivity: {project[f'{_POST}.clustering_connectivity']}"
    yield f"{off}    border: {quoted(project[f'{_POST}.ignore_border_thickness'])}  # z, y, x"
    if has_region:
        yield f"{off}    region: {REGION}"
        yield f"{off}    contact_mode: {project[f'{_POST}.contact_mode']}"
        if project[f"{_POST}.contact_mode"] == "colocalization":
            yield f"{off}    contact_distance: {project[f'{_POST}.contact_distance']}"
    yield f"{off}    format: mrc"


def _as_name(text: str) -> str:
    """Return a text as the name of a folder."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", text).lstrip("_.-") or "picks"


def _dropped(project: Project3D) -> Iterator[str]:
    """Yield what has no place in our config, and what takes its place."""
    yield ""
    yield "# Not taken over:"
    yield "# - work_dir: unfinished work lies beside the results, as *.partial"
    if project[f"{_POST}.region_mask"] is not None:
        yield "# - region_mask at prediction: DeePiCt skips boxes that do not touch the mask;"
        yield "#   deepict-dask predicts everywhere (but not with compat)"
    if not project.calculate_motl:
        yield f"# - {_POST}.calculate_motl False: particle lists are always written"
    if project.evaluate_picks:
        radius = project["evaluation.particle_picking.pr_tolerance_radius"]
        yield "# - evaluation.particle_picking: for each tomogram run"
        yield f"#   deepict-dask evaluate picks PICKS.csv TRUTH --radius {radius} --compat deepict"
    if project.evaluate_mask:
        yield "# - evaluation.segmentation_evaluation: for each tomogram run"
        yield "#   deepict-dask evaluate segmentation SEGMENTATION MASK --compat deepict"
    if project["training.active"]:
        yield "# - training: see `deepict-dask train --help`"
    for text in project.findings.notes:
        yield f"# - {text}"
