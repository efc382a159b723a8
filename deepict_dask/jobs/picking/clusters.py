"""The clusters that were kept, as files: their number does not change the memory of a job.

1. Workers leave finished clusters in files of the nodes of the tree, each sorted. They are merged
   in raster order, a batch at a time, and those that a last rule drops are left out.
2. Distances to regions are measured a batch at a time, and stored beside the rows.
3. Tables are made of one batch after another, as often as there are files to write.
4. For the list by falling score, batches are sorted and stored, and merged again.

What is held is some tens of thousands of rows, whatever their number.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.tables import cluster_dtype
from ...engine.runs import RowFile, RowWriter, merge_runs, rebatched
from ...particles import cluster_table, picks_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import pandas as pd

    from ...core.tables import ClusterRows

__all__ = [
    "BATCH_ROWS",
    "SEARCH_ROWS",
    "ClusterFiles",
    "ClusterTables",
    "gather_clusters",
    "store_distances",
]

Array = np.ndarray[Any, Any]

BATCH_ROWS = 1 << 15
"""Rows of which tables are made at a time: about 10 MB with all their columns."""
SEARCH_ROWS = 1 << 18
"""Clusters whose distances are measured at a time: fewer would read region masks more often."""


@dataclass(frozen=True)
class ClusterFiles:
    """Kept clusters in raster order."""

    rows: RowFile
    """Cluster rows."""
    names: RowFile
    """Their names alone."""
    n_found: int
    """Clusters within the size limits, before the last rule."""

    def __len__(self) -> int:
        return len(self.rows)


def gather_clusters(
    folder: Path,
    files: Sequence[Path],
    n_regions: int,
    keep: Callable[[ClusterRows], Array] | None = None,
    *,
    batch_rows: int = SEARCH_ROWS,
) -> ClusterFiles:
    """Merge the clusters of all nodes in raster order.

    Parameters
    ----------
    folder
        Where to.
    files
        NumPy files of cluster rows, each sorted by name; they are removed once they are merged.
    n_regions
        Regions whose voxels the rows count.
    keep
        Says of some rows which are kept (bool); by default all are.
    batch_rows
        How many rows ``keep`` is given at a time.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from deepict_dask.core.tables import empty_rows
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> rows = empty_rows(3)
    >>> rows["first_voxel"] = [4, 7, 9]
    >>> np.save(folder / "a.npy", rows[::2])
    >>> np.save(folder / "b.npy", rows[1:2])
    >>> found = gather_clusters(folder, [folder / "a.npy", folder / "b.npy"], 0)
    >>> found.names[:].tolist(), len(found)
    ([4, 7, 9], 3)
    """
    runs = [RowFile.of_npy(path) for path in files]
    merged = merge_runs(runs, lambda rows: rows["first_voxel"], held_rows=BATCH_ROWS)
    with (
        RowWriter(folder / "kept_rows", cluster_dtype(n_regions)) as kept_rows,
        RowWriter(folder / "kept_names", np.dtype(np.int64)) as names,
    ):
        for rows in rebatched(merged, batch_rows):
            kept = rows if keep is None else np.compress(keep(rows), rows)
            kept_rows.append(kept)
            names.append(kept["first_voxel"])
    for path in files:
        path.unlink()
    return ClusterFiles(kept_rows.rows, names.rows, sum(len(run) for run in runs))


def store_distances(
    path: Path, clusters: ClusterFiles, measure: Callable[[Array], Array], n_searches: int
) -> RowFile | None:
    """Measure the distances of clusters to regions, a batch at a time.

    Parameters
    ----------
    path
        The file to write: one row of ``n_searches`` float64 for each cluster.
    clusters
        The clusters.
    measure
        From cluster rows to distances, (n_searches, n).
    n_searches
        How many distances each cluster has; without any there is no file.
    """
    if n_searches == 0:
        return None
    dtype = np.dtype([("distances", np.float64, (n_searches,))])
    with RowWriter(path, dtype) as writer:
        for rows in clusters.rows.batches(SEARCH_ROWS):
            found = np.empty(len(rows), dtype)
            found["distances"] = measure(rows).T
            writer.append(found)
    return writer.rows


@dataclass(frozen=True)
class ClusterTables:
    """The tables of kept clusters, made of one batch after another as often as they are asked for.

    Every iterator yields at least one table, which has no rows where there are no clusters.
    """

    clusters: ClusterFiles
    distances: RowFile | None
    scratch: Path
    """A folder for what is sorted."""
    score_unit: float
    regions: Sequence[str] = ()
    """Names of the regions whose voxels the rows count."""
    columns: Callable[[Array], Mapping[str, Array]] = field(default=lambda _distances: {})
    """From distances (searches, n) to the columns of the tables."""
    class_name: str | None = None
    batch_rows: int = BATCH_ROWS

    def cluster_tables(self) -> Iterator[pd.DataFrame]:
        """Yield the cluster table in raster order."""
        first_label = 1
        for rows in self.clusters.rows.batches(self.batch_rows):
            part = slice(first_label - 1, first_label - 1 + len(rows))
            found = np.empty((0, len(rows)))
            if self.distances is not None:
                found = self.distances[part]["distances"].T
            yield cluster_table(
                rows,
                score_unit=self.score_unit,
                regions=self.regions,
                columns=self.columns(found),
                first_label=first_label,
            )
            first_label += len(rows)

    def picks(self) -> Iterator[pd.DataFrame]:
        """Yield the picks in raster order."""
        for table in self.cluster_tables():
            yield picks_table(table, self.class_name)

    def picks_by_falling_score(self) -> Iterator[pd.DataFrame]:
        """Yield the picks by falling score, ties by label.

        Batches are sorted and stored; merging keeps ties in the order of the batches.
        """
        import pandas as pd

        runs = self._sorted_batches()
        merged = merge_runs(runs, lambda rows: -rows["score"], held_rows=self.batch_rows)
        for rows in rebatched(merged, self.batch_rows) if len(self.clusters) else [runs[0][:]]:
            picks = pd.DataFrame(rows)
            yield picks if self.class_name is None else picks.assign(class_name=self.class_name)

    def _sorted_batches(self) -> list[RowFile]:
        """Store the picks, each batch by falling score; return where each batch lies."""
        batches = (picks_table(table).to_records(index=False) for table in self.cluster_tables())
        first = next(batches)
        stops = [0]
        with RowWriter(self.scratch / "picks", first.dtype) as writer:
            for picks in itertools.chain([first], batches):
                writer.append(np.take(picks, np.argsort(-picks["score"], kind="stable")))
                stops.append(len(writer.rows))
        return [writer.rows.part(*ends) for ends in itertools.pairwise(stops)]
