"""A stored score map to segmentation, clusters and picks.

Choose voxels, note and label them chunk by chunk, and merge up a tree; clusters that fail the size
limits, or lack the contact with a region that is asked for, are dropped as soon as they are
finished (`LabelReduction`). What follows is in `job.py`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import ConfigError
from ...core.geometry import Grid, as_vec
from ...engine import (
    SpillFolder,
    StagedOutput,
    check_budget,
    fingerprint,
    reduce_chunks,
    request_key,
    task_budget_bytes,
)
from ...io.volumes import open_volume
from ...particles.label_range import LabelRange, LabelRangeReduction
from ..session import measure_statistics
from .choose_and_label import ChooseAndLabel
from .job import LabelledVoxels, PickJob, select_settings
from .method_sources import holds_labels, method_grid, of_label_volume, refuse_background
from .methods import pick_by_method
from .outputs import PICK_FILES, PickReport
from .regions import open_regions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ...config import PickSettings
    from ...core.geometry import Vec
    from ...core.ops import TreeReduction
    from ...core.volume import VolumeReader
    from ...labelling.merge import LabelNode
    from ..session import Session

__all__ = ["label_grid", "pick_particles"]

_BLOCK_VOXELS = 128**3
"""Chunks smaller than this share a task, which costs as much as labelling some 100 000 voxels."""
_BLOCKS_AT_LEAST = 4
"""So many workers have something to label in a small tomogram too."""


def pick_particles(
    session: Session,
    score: Path,
    target: Path,
    settings: PickSettings,
    *,
    regions: Mapping[str, Path] | None = None,
    tomogram_name: str | None = None,
) -> PickReport:
    """Turn a score map into a segmentation, a cluster table and particle lists.

    Parameters
    ----------
    session
        Workers and wishes.
    score
        Score map (or label volume).
    target
        Folder to make: ``segmentation``, ``picks.star``, ``picks.csv``, ``motl.csv``,
        ``clusters.parquet``, ``run.json``, and the label map where asked for.
    settings
        Threshold, sizes, connectivity, contacts with regions.
    regions
        Mask files by the names of their regions, non-zero inside. A contact with a region that is
        not among them does not restrict the picks, which is said in a warning.
    tomogram_name
        Name in the STAR file; the folder's by default.

    Raises
    ------
    ShapeMismatchError
        Score map and region mask differ in shape.
    VoxelValueError
        Scores are NaN, or a mask is no mask.
    ConfigError
        There are several classes or labels, and none was chosen.
    SpacingError
        The score map does not say its voxel spacing and none was given.
    OutputExistsError
        The folder exists.
    """
    settings = of_label_volume(settings)
    if settings.method != "components":
        return pick_by_method(
            session, score, target, settings, regions=regions, tomogram_name=tomogram_name
        )
    started = datetime.now(UTC)
    score = score.absolute()  # workers may run in another folder
    masks = {name: path.absolute() for name, path in (regions or {}).items()}
    request = _request(session, score, masks, settings)
    with StagedOutput(
        target, request["key"], overwrite=session.overwrite, own=PICK_FILES
    ) as staged:
        reader, job = _open_job(session, staged.folder, score, masks, settings)
        voxels = _label(session, reader, job)
        clusters = job.gather(
            voxels, partial(measure_statistics, session, reader, name="score range")
        )
        report = job.finish(
            clusters, voxels, request=request, started=started,
            tomogram_name=tomogram_name or target.name,
            inputs={"score": str(score), "regions": {n: str(path) for n, path in masks.items()}},
        )  # fmt: skip
        job.clean()
        staged.commit()
    return replace(report, folder=target)


def _request(
    session: Session, score: Path, regions: Mapping[str, Path], settings: PickSettings
) -> dict[str, Any]:
    """Return all that the result depends on, and its key."""
    request = {
        "job": "pick", "input": fingerprint(score),
        "regions": [[name, fingerprint(path)] for name, path in regions.items()],
        "settings": settings.model_dump(mode="json"), "spacing": session.voxel_spacing_angstrom,
    }  # fmt: skip
    return {**request, "key": request_key(request)}


def _open_job(
    session: Session,
    folder: Path,
    score: Path,
    regions: Mapping[str, Path],
    settings: PickSettings,
) -> tuple[VolumeReader, PickJob]:
    """Open the inputs and check that they fit together."""
    scratch = folder / "scratch"
    whole = _open_score(session, score, scratch, settings)
    _refuse_several_labels(session, whole, settings)
    fitted, masks = open_regions(session, whole, regions, settings, scratch=scratch)
    select = select_settings(settings, masks, whole.header.shape, fitted.header.shape)
    return fitted, PickJob(
        session, folder, settings, fitted.path, fitted.header, masks, select, whole.header.shape
    )


def _label(session: Session, score: VolumeReader, job: PickJob) -> LabelledVoxels:
    """Choose voxels, note which, label and measure them."""
    job.make_scratch()
    writer = job.mask_writer(job.folder / "chosen")
    reduction = ChooseAndLabel(job.reduction(), writer, device=job.session.device)
    shape, memory = job.header.shape, session.workers.memory_bytes
    grid = label_grid(shape, session.chunks, reduction, memory)
    check_budget("label", reduction.bytes_needed(grid.window_shape), memory)
    nodes = SpillFolder(str(job.scratch))
    with session.progress.stage("label", grid.n_blocks) as advance:
        root: LabelNode = reduce_chunks(
            session.workers, reduction, [score, *job.masks.stack], grid,
            spill=nodes, on_done=advance,
        )  # fmt: skip
    return LabelledVoxels(Path(reduction.writer.path), grid, nodes, root.n_finished)


def label_grid(
    shape: Vec, chunks: Vec, reduction: TreeReduction[Any, Any], worker_bytes: int
) -> Grid:
    """Return the blocks of a score map: one for each chunk, or for 2, 4 or 8 small neighbours.

    Clusters and picks are the same for any blocks.
    """
    budget = task_budget_bytes(worker_bytes)
    for several in ((2, 2, 2), (1, 2, 2), (1, 1, 2)):
        block = as_vec([n * chunk for n, chunk in zip(several, chunks, strict=True)])
        grid = Grid(shape, as_vec(map(min, block, shape)))
        fits = math.prod(block) <= _BLOCK_VOXELS and reduction.bytes_needed(block) <= budget
        if fits and grid.n_blocks >= _BLOCKS_AT_LEAST:
            return grid
    return Grid(shape, as_vec(map(min, chunks, shape)))


def _open_score(
    session: Session, score: Path, scratch: Path, settings: PickSettings
) -> VolumeReader:
    """Open one class of a score map; a map without classes is of the class that is asked for."""
    options: dict[str, Any] = {
        "voxel_spacing_angstrom": session.voxel_spacing_angstrom,
        "scratch": scratch,
        "spacing_required": settings.compat is None,
    }
    reader: VolumeReader = open_volume(score, **options)
    if not reader.header.class_names:
        return reader
    refuse_background(settings, str(score))
    if settings.class_name is None:
        raise ConfigError(
            f"{score}: expected one class to pick, found {', '.join(reader.header.class_names)}; "
            "choose one with --class"
        )
    return open_volume(score, class_name=settings.class_name, **options)


def _refuse_several_labels(session: Session, reader: VolumeReader, settings: PickSettings) -> None:
    """Refuse a volume of several labels, whose clusters would run together."""
    chosen = settings.label_value is not None or settings.compat is not None
    if chosen or not holds_labels(reader.header, settings):
        return
    op = LabelRangeReduction()
    grid = method_grid(op, reader.header.shape, session.chunks)
    with session.progress.stage(op.name, grid.n_blocks) as advance:
        found: LabelRange = reduce_chunks(session.workers, op, [reader], grid, on_done=advance)
    if found.has_several:
        raise ConfigError(
            f"{reader.path}: expected scores or one label, found labels from {found.lowest} to "
            f"{found.highest}, whose clusters would run together; choose one with --label-value "
            "(or --class and --class-names), or pick all with --method mean-shift or mp-nms"
        )
