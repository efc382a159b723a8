"""A score map to segmentation, clusters and picks.

1. Label chunk by chunk and merge up a tree; clusters that fail the size limits, or lack the contact
   with a region that is asked for, are dropped as soon as they are finished (`LabelReduction`).
2. Colocalization, if asked for: clusters whose centroid is far from a region are dropped.
3. Distances of the centroids that are left to the regions (`pick_regions.py`).
4. Label each chunk again and write the clusters that were kept (`RelabelOp`).
5. Tables and particle lists.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime
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
from ..labelling.op import sorted_rows
from ..particles import cluster_table
from ..particles.tables import centroids
from .pick_nothing import warn_of_everything, warn_of_nothing
from .pick_outputs import PickReport, write_tables
from .pick_regions import RegionMasks, open_regions
from .region_search import search_regions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from ..config import PickSettings
    from ..core.geometry import Block
    from ..core.tables import ClusterRows
    from ..core.volume import VolumeReader
    from ..labelling.merge import Renames
    from .region_search import Search
    from .session import Session

__all__ = ["SpilledNames", "pick_particles"]

Array = np.ndarray[Any, Any]


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
        rows = job.near_regions(job.label())
        job.write_volumes(rows)
        report = write_tables(
            staged.partial,
            job.cluster_table(rows),
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

    def label(self) -> ClusterRows:
        """Return the rows of the clusters within the size limits, in raster order."""
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
        kept = self.spill.load_all("kept")
        rows = sorted_rows(np.concatenate([root.kept, *kept]))
        if len(rows) == 0:
            warn_of_nothing(self.session, self.score, s, n_clusters=root.n_finished)
        warn_of_everything(self.score, rows)
        return rows

    def near_regions(self, rows: ClusterRows) -> ClusterRows:
        """Return the rows of clusters with their centroids near all regions of colocalization."""
        near = ~np.isnan(self._distances(self.masks.nearness, rows)).any(axis=0)
        if len(rows) and not near.any():
            warn_of_nothing(self.session, self.score, self.settings, n_clusters=len(rows))
        return rows[near]

    def cluster_table(self, rows: ClusterRows) -> pd.DataFrame:
        """Return the cluster table with the distances to the regions."""
        return cluster_table(
            rows,
            score_unit=score_unit(self.score.header.dtype),
            regions=self.masks.names,
            columns=self.masks.columns(self._distances(self.masks.measured, rows)),
        )

    def _distances(self, searches: Sequence[Search], rows: ClusterRows) -> Array:
        """Return distances to regions from the voxels that hold the clusters' centroids."""
        points = np.rint(centroids(rows)).astype(np.int64)
        return search_regions(self.session, searches, points, self.grid)

    def write_volumes(self, rows: ClusterRows) -> None:
        """Write the segmentation, and the label map where asked for."""
        names = SpilledNames(self.spill, self.grid.counts)
        np.save(names.kept_path, rows["first_voxel"])
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
