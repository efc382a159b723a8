"""A stored score map to segmentation, clusters and picks.

Choose voxels, note and label them chunk by chunk, and merge up a tree; clusters that fail the size
limits, or lack the contact with a region that is asked for, are dropped as soon as they are
finished (`LabelReduction`). What follows is in `pick_job.py`.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError
from ..engine import (
    SpillFolder,
    StagedOutput,
    check_budget,
    fingerprint,
    reduce_chunks,
    request_key,
)
from ..io.volumes import open_volume
from .choose_and_label import ChooseAndLabel
from .pick_job import LabelledVoxels, PickJob, select_settings
from .pick_methods import pick_by_method
from .pick_regions import open_regions
from .session import measure_statistics

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..config import PickSettings
    from ..core.volume import VolumeReader
    from ..labelling.merge import LabelNode
    from .pick_outputs import PickReport
    from .session import Session

__all__ = ["pick_particles"]


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
    SpacingError
        The score map does not say its voxel spacing and none was given.
    OutputExistsError
        The folder exists.
    """
    if settings.method != "components":
        return pick_by_method(session, score, target, settings, tomogram_name=tomogram_name)
    started = datetime.now(UTC)
    score = score.absolute()  # workers may run in another folder
    masks = {name: path.absolute() for name, path in (regions or {}).items()}
    request = {
        "job": "pick", "input": fingerprint(score),
        "regions": [[name, fingerprint(path)] for name, path in masks.items()],
        "settings": settings.model_dump(mode="json"), "spacing": session.voxel_spacing_angstrom,
    }  # fmt: skip
    key = request_key(request)
    with StagedOutput(target, key, overwrite=session.overwrite) as staged:
        reader, job = _open_job(session, staged.partial, score, masks, settings)
        voxels = _label(session, reader, job)
        clusters = job.gather(
            voxels, partial(measure_statistics, session, reader, name="score range")
        )
        report = job.finish(
            clusters,
            voxels,
            request={**request, "key": key},
            tomogram_name=tomogram_name or target.name,
            inputs={"score": str(score), "regions": {n: str(path) for n, path in masks.items()}},
            started=started,
        )
        job.clean()
        staged.commit()
    return replace(report, folder=target)


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
    fitted, masks = open_regions(session, whole, regions, settings, scratch=scratch)
    select = select_settings(settings, masks, whole.header.shape, fitted.header.shape)
    return fitted, PickJob(session, folder, settings, fitted.path, fitted.header, masks, select)


def _label(session: Session, score: VolumeReader, job: PickJob) -> LabelledVoxels:
    """Choose voxels, note which, label and measure them."""
    job.make_scratch()
    grid, chosen = job.grid, job.folder / "chosen"
    reduction = ChooseAndLabel(job.reduction(), job.mask_writer(chosen))
    needed = reduction.bytes_needed(grid.window_shape)
    check_budget("label", needed, session.workers.memory_bytes)
    nodes = SpillFolder(str(job.scratch))
    with session.progress.stage("label", grid.n_blocks) as advance:
        root: LabelNode = reduce_chunks(
            session.workers, reduction, [score, *job.masks.stack], grid,
            spill=nodes, on_done=advance,
        )  # fmt: skip
    return LabelledVoxels(Path(reduction.writer.path), grid, nodes, root.n_finished)


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
    if settings.class_name is None:
        raise ConfigError(
            f"{score}: expected one class to pick, found {', '.join(reader.header.class_names)}; "
            "choose one with --class"
        )
    return open_volume(score, class_name=settings.class_name, **options)
