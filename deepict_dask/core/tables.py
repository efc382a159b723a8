"""The cluster table: one row per cluster, mergeable columns only.

Every column is a sum, a minimum or a maximum over voxels, so two rows of one cluster, measured in
two chunks, merge exactly. Scores are summed as integers (units of 2**-24 for floating-point scores,
1 for integer volumes), because floating-point sums would depend on the chunking. Where there are
region masks, each row counts its voxels in every one of them.

A cluster is named by its first voxel in raster order (z, then y, then x): the name is unique over
the volume, known to every chunk without talking to others, and sorting by it numbers clusters as
`skimage.measure.label` does.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = [
    "CLUSTER_DTYPE",
    "SCORE_UNIT",
    "BoundingBoxColumns",
    "ClusterRows",
    "cluster_dtype",
    "empty_rows",
    "merge_rows",
]

SCORE_UNIT = 2.0**-24
"""Scores of floating-point volumes are summed as multiples of this; float32 in 0.5..1 is exact."""

BoundingBoxColumns = ("z_min", "y_min", "x_min", "z_max", "y_max", "x_max")

_SUMS = ("n_voxels", "sum_z", "sum_y", "sum_x", "score_sum")
_MINIMA = ("first_voxel", "z_min", "y_min", "x_min")
_MAXIMA = ("z_max", "y_max", "x_max", "score_max")

CLUSTER_DTYPE = np.dtype(
    [
        ("first_voxel", np.int64),
        ("n_voxels", np.int64),
        ("sum_z", np.int64),
        ("sum_y", np.int64),
        ("sum_x", np.int64),
        ("z_min", np.int32),
        ("y_min", np.int32),
        ("x_min", np.int32),
        ("z_max", np.int32),
        ("y_max", np.int32),
        ("x_max", np.int32),
        ("score_sum", np.int64),
        ("score_max", np.float64),
    ]
)
"""Columns of a cluster row; bounding boxes are inclusive voxels, scores in units of the table."""

ClusterRows = np.ndarray[Any, np.dtype[np.void]]


def cluster_dtype(n_regions: int = 0) -> np.dtype[np.void]:
    """Return the columns of a cluster row that counts its voxels in some regions.

    The counts are one column ``n_in_region`` of ``n_regions`` integers, absent without regions.

    Examples
    --------
    >>> cluster_dtype() == CLUSTER_DTYPE, cluster_dtype(3)["n_in_region"].shape
    (True, (3,))
    """
    if n_regions == 0:
        return CLUSTER_DTYPE
    fields = [(name, CLUSTER_DTYPE[name]) for name in CLUSTER_DTYPE.names or ()]
    return np.dtype([*fields, ("n_in_region", np.int64, (n_regions,))])


def empty_rows(n: int = 0, n_regions: int = 0) -> ClusterRows:
    """Return ``n`` zeroed cluster rows.

    Examples
    --------
    >>> empty_rows(2).shape, empty_rows(2, n_regions=3)["n_in_region"].shape
    ((2,), (2, 3))
    """
    return np.zeros(n, cluster_dtype(n_regions))


def merge_rows(rows: ClusterRows, group: np.ndarray[Any, Any], n_groups: int) -> ClusterRows:
    """Merge rows that belong to one cluster.

    Parameters
    ----------
    rows
        Cluster rows, with or without counts in regions.
    group
        For each row the number of its cluster, 0 to ``n_groups - 1``; every number occurs.
    n_groups
        Number of clusters.

    Returns
    -------
    ClusterRows
        One row per cluster, in the order of the numbers.

    Examples
    --------
    >>> rows = empty_rows(3)
    >>> rows["n_voxels"] = [1, 2, 3]
    >>> merge_rows(rows, np.array([0, 1, 0]), 2)["n_voxels"].tolist()
    [4, 2]
    """
    merged = np.zeros(n_groups, rows.dtype)
    if n_groups == 0:
        return merged
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(n_groups))
    ordered = rows[order]
    for names, reduce in ((_SUMS, np.add), (_MINIMA, np.minimum), (_MAXIMA, np.maximum)):
        for name in names:
            merged[name] = reduce.reduceat(ordered[name], starts)
    if "n_in_region" in (rows.dtype.names or ()):
        merged["n_in_region"] = np.add.reduceat(ordered["n_in_region"], starts, axis=0)
    return merged
