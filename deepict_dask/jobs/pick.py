"""A score map to segmentation, clusters and picks.

1. Label chunk by chunk and merge up a tree; clusters that fail the size limits, or lack the contact
   with a region that is asked for, are dropped as soon as they are finished (`LabelReduction`).
2. Merge the clusters in raster order (`pick_clusters.py`). Colocalization, if asked for: clusters
   whose centroid is far from a region are dropped.
3. Label each chunk again and write the clusters that were kept (`RelabelOp`).
4. Distances of the centroids that are left to the regions (`pick_regions.py`).
5. Tables and particle lists.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ConfigError
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
from ..io.export import export_volume
from ..io.ome_zarr_write import create_ome_zarr
from ..io.volumes import open_volume
from ..labelling import LabelReduction, RelabelOp, SelectSettings
from ..labelling.measure import score_unit
from ..labelling.merge import KeepRule
from ..particles.tables import centroids
from .pick_clusters import (
    BATCH_ROWS,
    SEARCH_ROWS,
    ClusterTables,
    gather_clusters,
    store_distances,
)
from .pick_nothing import warn_of_everything, warn_of_nothing
from .pick_outputs import PickReport, write_tables
from .pick_regions import RegionMasks, open_regions
from .region_search import search_regions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..config import PickSettings
    from ..core.geometry import Block
    from ..core.tables import ClusterRows
    from ..core.volume import VolumeReader
    from ..engine.runs import RowFile
    from ..labelling.merge import Renames
    from .pick_clusters import ClusterFiles
    from .region_search import Search
    from .session import Session

__all__ = ["SpilledNames", "pick_particles"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class SpilledNames:
    """What became of the labels of a chunk, from the files of the reduction's nodes."""

    spill: SpillFolder
    counts: Vec
    kept: RowFile
    """Sorted names of the kept clusters."""

    def renames_above(self, block: Block) -> Sequence[Renames]:
        """Return the renames of the nodes above a chunk, from its parent to the root."""
        nodes = self.spill.ancestors(block, self.counts)
        loaded = (self.spill.load(node, "renames") for node in nodes)
        return [pairs for pairs in loaded if pairs is not None]

    def kept_names(self) -> RowFile:
        """Return the sorted names of the kept clusters: only what is looked up is read."""
        return self.kept


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
        job = _open_job(session, staged, score, masks, settings)
        clusters = job.label()
        job.write_volumes(clusters)
        report = write_tables(
            staged.partial,
            job.tables(clusters),
            job.score.header,
            settings,
            request={**request, "key": key},
            tomogram_name=tomogram_name or target.name,
            inputs={"score": str(score), "regions": {n: str(path) for n, path in masks.items()}},
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
    score: VolumeReader
    masks: RegionMasks
    select: SelectSettings

    @property
    def shape(self) -> Vec:
        return self.score.header.shape

    @property
    def grid(self) -> Grid:
        chunks = zip(self.session.chunks, self.shape, strict=True)
        return Grid(self.shape, as_vec([min(c, n) for c, n in chunks]))

    @property
    def spill(self) -> SpillFolder:
        return SpillFolder(str(self.staged.partial / "nodes"))

    def label(self) -> ClusterFiles:
        """Return the clusters within the size limits and near their regions, in raster order."""
        s = self.settings
        rule = KeepRule(
            min_size=s.min_size + (1 if s.compat else 0),
            max_size=s.max_size,
            must_touch=tuple(self.masks.of_mode("contact")),
        )
        stack = self.masks.stack
        reduction = LabelReduction(
            self.shape,
            self.select,
            s.connectivity,
            rule,
            n_regions=len(self.masks.known),
            region_bytes=sum(masks.read_bytes for masks in stack),
        )
        needed = reduction.bytes_needed(self.grid.window_shape)
        check_budget("label", needed, self.session.workers.memory_bytes)
        shutil.rmtree(self.spill.path, ignore_errors=True)  # of a run that was killed
        Path(self.spill.path).mkdir()
        with self.session.progress.stage("label", self.grid.n_blocks) as advance:
            root = reduce_chunks(
                self.session.workers, reduction, [self.score, *stack], self.grid,
                spill=self.spill, on_done=advance,
            )  # fmt: skip
        clusters = gather_clusters(
            Path(self.spill.path),
            self.spill.files("kept"),
            len(self.masks.known),
            self._is_near,
            batch_rows=SEARCH_ROWS if self.masks.nearness else BATCH_ROWS,
        )
        if len(clusters) == 0:
            n_clusters = clusters.n_found or root.n_finished
            warn_of_nothing(self.session, self.score, s, n_clusters=n_clusters)
        return clusters

    def _is_near(self, rows: ClusterRows) -> Array:
        """Say of clusters whether their centroids are near all regions of colocalization."""
        warn_of_everything(self.score, rows)
        distances = self._distances(self.masks.nearness, rows)
        near: Array = np.logical_not(np.isnan(distances).any(axis=0))
        return near

    def tables(self, clusters: ClusterFiles) -> ClusterTables:
        """Return the tables, once the distances to the regions are measured."""
        scratch = Path(self.spill.path)
        searches = self.masks.measured
        measure = partial(self._distances, searches)
        return ClusterTables(
            clusters,
            store_distances(scratch / "distances", clusters, measure, len(searches)),
            scratch,
            score_unit(self.score.header.dtype),
            regions=self.masks.names,
            columns=self.masks.columns,
            class_name=self.settings.class_name,
        )

    def _distances(self, searches: Sequence[Search], rows: ClusterRows) -> Array:
        """Return distances to regions from the voxels that hold the clusters' centroids."""
        points = np.rint(centroids(rows)).astype(np.int64)
        return search_regions(self.session, searches, points, self.grid)

    def write_volumes(self, clusters: ClusterFiles) -> None:
        """Write the segmentation, and the label map where asked for."""
        names = SpilledNames(self.spill, self.grid.counts, clusters.names)
        self._write("segmentation", names, as_label_map=False)
        if self.settings.label_map:
            self._write("label_map", names, as_label_map=True)

    def _write(self, name: str, names: SpilledNames, *, as_label_map: bool) -> None:
        masks = self.masks.intersecting
        op = RelabelOp(
            self.shape,
            replace(self.select, intersect=sum((1 << len(m.masks)) - 1 for m in masks)),
            names,
            self.settings.connectivity,
            as_label_map,
            name,
            region_bytes=sum(m.read_bytes for m in masks),
        )
        header = replace(self.score.header, dtype=op.dtype, class_names=())
        store = self.staged.partial / f"{name}.zarr"
        sink = create_ome_zarr(store, header, chunks=self.session.chunks, overwrite=True)
        with self.session.progress.stage(name, self.grid.n_blocks) as advance:
            map_chunks(
                self.session.workers, op, [self.score, *masks], sink, self.grid, on_done=advance
            )
        if self.settings.format == "mrc":
            reader = open_volume(store, spacing_required=False)
            export_volume(reader, self.staged.partial / f"{name}.mrc", overwrite=True)
            sink.discard()

    def clean(self) -> None:
        """Remove what only the job itself needed."""
        for name in ("nodes", "scratch"):
            shutil.rmtree(self.staged.partial / name, ignore_errors=True)


def _open_job(
    session: Session,
    staged: StagedOutput,
    score: Path,
    regions: Mapping[str, Path],
    settings: PickSettings,
) -> _PickJob:
    """Open the inputs and check that they fit together."""
    scratch = staged.partial / "scratch"
    whole = _open_score(session, score, scratch, settings)
    fitted, masks = open_regions(session, whole, regions, settings, scratch=scratch)
    sizes = zip(settings.border, whole.header.shape, fitted.header.shape, strict=True)
    select = SelectSettings(
        threshold=None if settings.label_value is not None else settings.threshold,
        label_value=settings.label_value,
        border=settings.border,
        border_end=as_vec([max(0, border - (n - m)) for border, n, m in sizes]),
        intersect=masks.intersect,
    )
    return _PickJob(session, staged, settings, fitted, masks, select)


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
