"""What is done for one folder of picks, wherever its scores come from.

`pick.py` reads a stored score map, `predicted.py` predicts the scores. Before: what is
labelled, by which rules (`PickJob.reduction`), and where its voxels are noted
(`PickJob.mask_writer`). After:

1. Merge the clusters in raster order (`clusters.py`). Colocalization, if asked for: clusters
   whose centroid is far from a region are dropped.
2. Where clusters were dropped, label the noted voxels of each chunk again and write those of the
   clusters that were kept (`RelabelOp`); else the noted voxels are the segmentation.
3. Distances of the centroids that are left to the regions (`regions.py`).
4. Tables and particle lists.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.geometry import Grid, Vec, as_vec
from ...engine import SpillFolder, map_chunks
from ...io.export import export_volume
from ...io.ome_zarr_write import create_ome_zarr
from ...io.volumes import open_volume
from ...labelling import LabelReduction, RelabelOp, SelectSettings
from ...labelling.measure import score_unit
from ...labelling.merge import KeepRule
from ...particles.tables import centroids
from .clusters import (
    BATCH_ROWS,
    SEARCH_ROWS,
    ClusterTables,
    gather_clusters,
    store_distances,
)
from .nothing import warn_of_everything, warn_of_nothing
from .outputs import PickReport, write_tables
from .region_search import search_regions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime
    from pathlib import Path

    from ...config import PickSettings
    from ...core.geometry import Block
    from ...core.statistics import VolumeStatistics
    from ...core.tables import ClusterRows
    from ...core.volume import VolumeHeader, VolumeWriter
    from ...engine.runs import RowFile
    from ...labelling.merge import Renames
    from ..session import Session
    from .clusters import ClusterFiles
    from .region_search import Search
    from .regions import RegionMasks

__all__ = ["LabelledVoxels", "PickJob", "SpilledNames", "select_settings"]

Array = np.ndarray[Any, Any]

_SEGMENTATION = "segmentation.zarr"


@dataclass(frozen=True)
class SpilledNames:
    """What became of the labels of a chunk, from the files of the reduction's nodes."""

    nodes: SpillFolder
    counts: Vec
    kept: RowFile
    """Sorted names of the kept clusters."""

    def renames_above(self, block: Block) -> Sequence[Renames]:
        """Return the renames of the nodes above a chunk, from its parent to the root."""
        above = self.nodes.ancestors(block, self.counts)
        loaded = (self.nodes.load(node, "renames") for node in above)
        return [pairs for pairs in loaded if pairs is not None]

    def kept_names(self) -> RowFile:
        """Return the sorted names of the kept clusters: only what is looked up is read."""
        return self.kept


@dataclass(frozen=True)
class LabelledVoxels:
    """What the pass over the scores has left."""

    mask: Path
    """Store of the voxels that were chosen and labelled: 1 there, 0 elsewhere."""
    grid: Grid
    """In which blocks they were labelled."""
    nodes: SpillFolder
    """Files of the nodes of the reduction over ``grid``."""
    n_clusters: int
    """Of any size, wherever they lie."""


@dataclass(frozen=True)
class PickJob:
    """One folder of picks in the making: opened inputs and what follows from the settings."""

    session: Session
    folder: Path
    settings: PickSettings
    path: str
    """Where the scores come from, for messages."""
    header: VolumeHeader
    """Of the scores."""
    masks: RegionMasks
    select: SelectSettings
    """How voxels are chosen from scores."""
    tomogram_shape: Vec | None = None
    """Of the tomogram, where its scores were cut to a smaller mask (``compat``)."""

    @property
    def scratch(self) -> Path:
        """The folder of what only the job itself needs."""
        return self.folder / "nodes"

    @property
    def grid(self) -> Grid:
        """One block for each chunk."""
        shape = self.header.shape
        chunks = zip(self.session.chunks, shape, strict=True)
        return Grid(shape, as_vec([min(c, n) for c, n in chunks]))

    def reduction(self) -> LabelReduction:
        """Return what is measured of the scores."""
        s = self.settings
        rule = KeepRule(
            min_size=s.min_size + (1 if s.compat else 0),
            max_size=s.max_size,
            must_touch=tuple(self.masks.of_mode("contact")),
        )
        return LabelReduction(
            self.header.shape,
            self.select,
            s.connectivity,
            rule,
            n_regions=len(self.masks.known),
            region_bytes=sum(masks.read_bytes for masks in self.masks.stack),
        )

    def make_scratch(self) -> None:
        """Make an empty folder `scratch`, whatever a run that was killed has left."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir()

    def mask_writer(self, folder: Path) -> VolumeWriter:
        """Make a store in ``folder`` for 1 where a voxel is chosen and 0 elsewhere."""
        return self._create(folder / _SEGMENTATION, "uint8")

    def _create(self, store: Path, dtype: str) -> VolumeWriter:
        header = replace(self.header, dtype=dtype, class_names=())
        return create_ome_zarr(store, header, chunks=self.session.chunks, overwrite=True)

    def gather(
        self, voxels: LabelledVoxels, score_range: Callable[[], VolumeStatistics]
    ) -> ClusterFiles:
        """Return the clusters within the size limits and near their regions, in raster order.

        Parameters
        ----------
        voxels
            What was labelled.
        score_range
            Returns what is known of all scores; called where nothing was picked.
        """
        clusters = gather_clusters(
            self.scratch,
            voxels.nodes.files("kept"),
            len(self.masks.known),
            self._is_near,
            batch_rows=SEARCH_ROWS if self.masks.nearness else BATCH_ROWS,
        )
        if len(clusters) == 0:
            found = clusters.n_found or voxels.n_clusters
            warn_of_nothing(self.path, score_range(), self.settings, n_clusters=found)
        return clusters

    def _is_near(self, rows: ClusterRows) -> Array:
        """Say of clusters whether their centroids are near all regions of colocalization."""
        warn_of_everything(self.path, self.header, rows)
        distances = self._distances(self.masks.nearness, rows)
        near: Array = np.logical_not(np.isnan(distances).any(axis=0))
        return near

    def _distances(self, searches: Sequence[Search], rows: ClusterRows) -> Array:
        """Return distances to regions from the voxels that hold the clusters' centroids."""
        points = np.rint(centroids(rows)).astype(np.int64)
        return search_regions(self.session, searches, points, self.grid)

    def finish(
        self,
        clusters: ClusterFiles,
        voxels: LabelledVoxels,
        *,
        request: dict[str, Any],
        tomogram_name: str,
        inputs: dict[str, Any],
        started: datetime,
    ) -> PickReport:
        """Write the volumes and the tables; the record's parts are as of `write_tables`."""
        if self.settings.label_map:
            self._write("label_map", clusters, voxels, as_label_map=True)
        if len(clusters) == voxels.n_clusters:
            target = self.folder / _SEGMENTATION
            shutil.rmtree(target, ignore_errors=True)  # of a run that was killed
            voxels.mask.replace(target)
        else:
            self._write("segmentation", clusters, voxels, as_label_map=False)
        if self.settings.format == "mrc":
            self._export()
        return write_tables(
            self.folder,
            self._tables(clusters),
            replace(self.header, shape=self.tomogram_shape or self.header.shape),
            self.settings,
            request=request,
            tomogram_name=tomogram_name,
            inputs=inputs,
            started=started,
        )

    def _tables(self, clusters: ClusterFiles) -> ClusterTables:
        """Return the tables, once the distances to the regions are measured."""
        searches = self.masks.measured
        measure = partial(self._distances, searches)
        return ClusterTables(
            clusters,
            store_distances(self.scratch / "distances", clusters, measure, len(searches)),
            self.scratch,
            score_unit(self.header.dtype),
            regions=self.masks.names,
            columns=self.masks.columns,
            class_name=self._class_name,
        )

    @property
    def _class_name(self) -> str | None:
        """The class that is picked: as asked for, or the label's name, else its number."""
        s = self.settings
        if s.class_name is not None or s.label_value is None:
            return s.class_name
        return dict(enumerate(s.class_names)).get(s.label_value, str(s.label_value))

    def _write(
        self, name: str, clusters: ClusterFiles, voxels: LabelledVoxels, *, as_label_map: bool
    ) -> None:
        """Write the segmentation, or the label map."""
        grid = voxels.grid
        op = RelabelOp(
            self.header.shape,
            SelectSettings(label_value=1),
            SpilledNames(voxels.nodes, grid.counts, clusters.names),
            self.settings.connectivity,
            as_label_map,
            name,
            self.session.device,
        )
        mask = open_volume(voxels.mask, spacing_required=False)
        sink = self._create(self.folder / f"{name}.zarr", op.dtype)
        with self.session.progress.stage(name, grid.n_blocks) as advance:
            map_chunks(self.session.workers, op, [mask], sink, grid, on_done=advance)

    def _export(self) -> None:
        """Turn the volumes into files of the format that is asked for."""
        for store in sorted(self.folder.glob("*.zarr")):
            reader = open_volume(store, spacing_required=False)
            export_volume(reader, store.with_suffix(".mrc"), overwrite=True)
            shutil.rmtree(store)

    def clean(self) -> None:
        """Remove what only the job itself needed."""
        for name in ("nodes", "scratch", "chosen"):
            shutil.rmtree(self.folder / name, ignore_errors=True)


def select_settings(
    settings: PickSettings, masks: RegionMasks, whole: Vec, cut: Vec
) -> SelectSettings:
    """Return how voxels are chosen, where compat mode may have cut the volume at its far ends."""
    sizes = zip(settings.border, whole, cut, strict=True)
    return SelectSettings(
        threshold=None if settings.label_value is not None else settings.threshold,
        label_value=settings.label_value,
        border=settings.border,
        border_end=as_vec([max(0, border - (n - m)) for border, n, m in sizes]),
        intersect=masks.intersect,
    )
