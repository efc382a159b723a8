"""A score map to segmentation, clusters and picks.

1. Label chunk by chunk and merge up a tree; clusters that fail the size limits are dropped as soon
   as they are finished (`LabelReduction`).
2. Colocalization, if asked for: the distance of each centroid to the region, from chunks of the
   mask that hold centroids.
3. Label each chunk again and write the clusters that were kept (`RelabelOp`).
4. Tables and particle lists.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ConfigError, ShapeMismatchError, VoxelValueError
from ..core.geometry import Grid, Vec, as_vec
from ..engine import (
    SpillFolder,
    StagedOutput,
    check_budget,
    fingerprint,
    map_chunks,
    reduce_chunks,
    request_key,
)
from ..engine.arrays import run_each
from ..io.export import export_volume
from ..io.fitted import FittedReader
from ..io.ome_zarr_write import create_ome_zarr
from ..io.volumes import open_volume
from ..labelling import LabelReduction, RelabelOp, SelectSettings
from ..labelling.measure import score_unit
from ..labelling.merge import KeepRule
from ..labelling.op import sorted_rows
from ..particles import cluster_table
from ..particles.tables import centroids
from ..regions import chessboard_distances, distance_bytes
from .pick_nothing import warn_of_everything, warn_of_nothing
from .pick_outputs import PickReport, write_tables
from .session import measure_statistics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..config import PickSettings
    from ..core.geometry import Block
    from ..core.tables import ClusterRows
    from ..core.volume import VolumeReader
    from ..labelling.merge import Renames
    from .session import Session

__all__ = ["SpilledNames", "pick_particles"]

log = logging.getLogger("deepict_dask")
Array = np.ndarray[Any, Any]
_SPACING_TOLERANCE = 0.01


@dataclass(frozen=True)
class SpilledNames:
    """What became of the labels of a chunk, from the files of the reduction's nodes."""

    spill: SpillFolder
    counts: Vec

    @property
    def kept_path(self) -> Path:
        """Where the names of the kept clusters are."""
        return Path(self.spill.path) / "kept_names.npy"

    def renames_above(self, block: Block) -> Sequence[Renames]:
        """Return the renames of the nodes above a chunk, from its parent to the root."""
        nodes = self.spill.ancestors(block, self.counts)
        loaded = (self.spill.load(node, "renames") for node in nodes)
        return [pairs for pairs in loaded if pairs is not None]

    def kept_names(self) -> Array:
        """Return the sorted names of the kept clusters, mapped: only what is looked up is read."""
        loaded: Array = np.load(self.kept_path, mmap_mode="r")
        return loaded


def pick_particles(
    session: Session,
    score: Path,
    target: Path,
    settings: PickSettings,
    *,
    region: Path | None = None,
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
        Threshold, sizes, connectivity, contact with the region.
    region
        Region mask, non-zero inside.
    tomogram_name
        Name in the STAR file; the folder's by default.

    Raises
    ------
    ShapeMismatchError
        Score map and region mask differ in shape.
    VoxelValueError
        Scores are NaN, or the mask is no mask.
    OutputExistsError
        The folder exists.
    """
    started = datetime.now(UTC)
    score = score.absolute()  # workers may run in another folder
    region = region and region.absolute()
    request = {
        "job": "pick", "input": fingerprint(score), "region": region and fingerprint(region),
        "settings": settings.model_dump(mode="json"), "spacing": session.voxel_spacing_angstrom,
    }  # fmt: skip
    key = request_key(request)
    with StagedOutput(target, key, overwrite=session.overwrite) as staged:
        job = _open_job(session, staged, score, region, settings)
        rows = job.label()
        distances = job.region_distances(rows)
        if settings.contact_mode == "colocalization" and region is not None:
            near = ~np.isnan(distances) | job.keep_all_for_empty_region
            if len(rows) and not near.any():
                warn_of_nothing(session, job.sources[0], settings, n_clusters=len(rows))
            rows, distances = rows[near], distances[near]
        job.write_volumes(rows)
        unit = score_unit(job.sources[0].header.dtype)
        extra = {} if region is None else {"region_distance_voxels": distances}
        clusters = cluster_table(rows, score_unit=unit, **extra)
        report = write_tables(
            staged.partial,
            clusters,
            job.sources[0].header,
            settings,
            request={**request, "key": key},
            tomogram_name=tomogram_name or target.name,
            inputs={"score": str(score), "region": region and str(region)},
            started=started,
        )
        job.clean()
        staged.commit()
    return replace(report, folder=target)


@dataclass(frozen=True)
class _PickJob:
    """Opened inputs and what follows from the settings."""

    session: Session
    staged: StagedOutput
    settings: PickSettings
    sources: list[VolumeReader]
    select: SelectSettings
    keep_all_for_empty_region: bool

    @property
    def shape(self) -> Vec:
        return self.sources[0].header.shape

    @property
    def grid(self) -> Grid:
        chunks = zip(self.session.chunks, self.shape, strict=True)
        return Grid(self.shape, as_vec([min(c, n) for c, n in chunks]))

    @property
    def spill(self) -> SpillFolder:
        return SpillFolder(str(self.staged.partial / "nodes"))

    def label(self) -> ClusterRows:
        """Return the rows of the clusters within the size limits, in raster order."""
        s = self.settings
        rule = KeepRule(
            min_size=s.min_size + (1 if s.compat else 0),
            max_size=s.max_size,
            must_touch_region=s.contact_mode == "contact" and len(self.sources) > 1,
        )
        reduction = LabelReduction(self.shape, self.select, s.connectivity, rule)
        needed = reduction.bytes_needed(self.grid.window_shape)
        check_budget("label", needed, self.session.workers.memory_bytes)
        shutil.rmtree(self.spill.path, ignore_errors=True)  # of a run that was killed
        Path(self.spill.path).mkdir()
        with self.session.progress.stage("label", self.grid.n_blocks) as advance:
            root = reduce_chunks(
                self.session.workers, reduction, self.sources, self.grid,
                spill=self.spill, on_done=advance,
            )  # fmt: skip
        kept = self.spill.load_all("kept")
        rows = sorted_rows(np.concatenate([root.kept, *kept]))
        if len(rows) == 0:
            warn_of_nothing(self.session, self.sources[0], s, n_clusters=root.n_finished)
        warn_of_everything(self.sources[0], rows)
        return rows

    def region_distances(self, rows: ClusterRows) -> Array:
        """Return each centroid's chessboard distance to the region, NaN beyond the limit."""
        found = np.full(len(rows), np.nan)
        if len(self.sources) < 2 or len(rows) == 0:
            return found
        points = np.rint(centroids(rows)).astype(np.int64)
        limit = self.settings.contact_distance
        grid = Grid(self.shape, self.grid.write_shape, halo=(limit, limit, limit))
        needed = distance_bytes(grid.window_shape, self.sources[1].header.dtype)
        check_budget("regions", needed, self.session.workers.memory_bytes)
        owners = np.ravel_multi_index((points // grid.write_shape).T, grid.counts)
        members = {int(number): np.flatnonzero(owners == number) for number in np.unique(owners)}

        def submit(number: int) -> Any:
            return self.session.workers.client.submit(
                _measure_distances, self.sources[1], points[members[number]], grid[number], limit,
                pure=False,
            )  # fmt: skip

        for number, distances in run_each(
            self.session.workers, submit, members, stage="regions", where=self.sources[1].path
        ):
            found[members[number]] = distances
        return found

    def write_volumes(self, rows: ClusterRows) -> None:
        """Write the segmentation, and the label map where asked for."""
        names = SpilledNames(self.spill, self.grid.counts)
        np.save(names.kept_path, rows["first_voxel"])
        self._write("segmentation", names, as_label_map=False)
        if self.settings.label_map:
            self._write("label_map", names, as_label_map=True)

    def _write(self, name: str, names: SpilledNames, *, as_label_map: bool) -> None:
        op = RelabelOp(
            self.shape, self.select, names, self.settings.connectivity, as_label_map, name
        )
        header = replace(self.sources[0].header, dtype=op.dtype, class_names=())
        store = self.staged.partial / f"{name}.zarr"
        sink = create_ome_zarr(store, header, chunks=self.session.chunks, overwrite=True)
        with self.session.progress.stage(name, self.grid.n_blocks) as advance:
            map_chunks(self.session.workers, op, self.sources, sink, self.grid, on_done=advance)
        if self.settings.format == "mrc":
            reader = open_volume(store, spacing_required=False)
            export_volume(reader, self.staged.partial / f"{name}.mrc", overwrite=True)
            sink.discard()

    def clean(self) -> None:
        """Remove what only the job itself needed."""
        for name in ("nodes", "scratch"):
            shutil.rmtree(self.staged.partial / name, ignore_errors=True)


def _measure_distances(source: VolumeReader, points: Array, block: Block, limit: int) -> Array:
    """Read a chunk of the region with its halo and measure: the body of a task."""
    return chessboard_distances(source.read(block.read), points, block.read, limit)


def _open_job(
    session: Session,
    staged: StagedOutput,
    score: Path,
    region: Path | None,
    settings: PickSettings,
) -> _PickJob:
    """Open the inputs and check that they fit together."""
    scratch = staged.partial / "scratch"
    reader = _open_score(session, score, scratch, settings)
    full = reader.header.shape
    sources: list[VolumeReader] = [reader]
    empty = False
    if region is not None:
        mask = open_volume(region, scratch=scratch, spacing_required=False)
        sources = _same_shape(reader, mask, compat=settings.compat is not None)
        empty = _region_is_empty(session, sources[1])
        _check_same_spacing(*sources)
    shape = sources[0].header.shape
    select = SelectSettings(
        threshold=None if settings.label_value is not None else settings.threshold,
        label_value=settings.label_value,
        border=settings.border,
        border_end=as_vec(
            [max(0, b - (n - m)) for b, n, m in zip(settings.border, full, shape, strict=True)]
        ),
        intersect_region=settings.contact_mode == "intersection",
    )
    quirk = empty and settings.compat is not None and settings.contact_mode == "colocalization"
    if empty:
        _warn_of_empty_region(sources[1], keep_all=quirk)
    return _PickJob(session, staged, settings, sources, select, quirk)


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


def _same_shape(score: VolumeReader, mask: VolumeReader, *, compat: bool) -> list[VolumeReader]:
    """Return both volumes if they have one shape; in compat mode cut them to one."""
    a, b = score.header.shape, mask.header.shape
    if a == b:
        return [score, mask]
    if not compat:
        raise ShapeMismatchError(
            f"{mask.path}: expected a region mask of the score map's shape {a} (zyx), found {b}; "
            "give the mask of this tomogram at the same binning"
        )
    common = as_vec([min(m, n) for m, n in zip(a, b, strict=True)])
    log.warning(
        "%s: shape %s differs from the score map's %s: both cut to %s", mask.path, b, a, common
    )
    return [FittedReader(score, common), FittedReader(mask, common)]


def _region_is_empty(session: Session, mask: VolumeReader) -> bool:
    """Say whether a mask has no voxel inside, and refuse what is no mask."""
    statistics = measure_statistics(session, mask, name="region")
    statistics.require_finite(mask.path)
    if statistics.minimum < 0:
        raise VoxelValueError(
            f"{mask.path}: expected a region mask of 0 outside and positive numbers inside, found "
            f"{statistics.minimum:g} to {statistics.maximum:g}; "
            "bytes may have been stored as signed ones: save the mask again as 0 and 1"
        )
    return statistics.maximum == 0


def _warn_of_empty_region(mask: VolumeReader, *, keep_all: bool) -> None:
    """Say what an empty region mask means; DeePiCt's colocalization keeps everything then."""
    outcome = "every cluster is kept, as DeePiCt does" if keep_all else "it keeps no cluster"
    log.warning("%s: the region mask is empty: %s", mask.path, outcome)


def _check_same_spacing(score: VolumeReader, mask: VolumeReader) -> None:
    """Warn where a mask of the same shape claims voxels of another size."""
    ours, theirs = score.header.voxel_spacing_angstrom, mask.header.voxel_spacing_angstrom
    if ours and theirs and abs(ours / theirs - 1) > _SPACING_TOLERANCE:
        log.warning(
            "%s: has voxels of %.4g Å, the score map of %.4g Å: is it the mask of this tomogram?",
            mask.path, theirs, ours,
        )  # fmt: skip
