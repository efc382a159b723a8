"""The tables people get: one row per cluster, one row per pick."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.tables import BoundingBoxColumns, ClusterRows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

__all__ = ["centroids", "cluster_table", "picks_table"]


def centroids(rows: ClusterRows) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the mean voxel position of each cluster, shape (n, 3), zyx.

    Examples
    --------
    >>> from deepict_dask.core.tables import empty_rows
    >>> rows = empty_rows(1)
    >>> rows["n_voxels"], rows["sum_x"] = 2, 5
    >>> centroids(rows).tolist()
    [[0.0, 0.0, 2.5]]
    """
    sums = np.stack([rows[f"sum_{axis}"] for axis in "zyx"], axis=1)
    return sums / rows["n_voxels"][:, None]


def cluster_table(
    rows: ClusterRows,
    *,
    score_unit: float,
    regions: Sequence[str] = (),
    columns: Mapping[str, Any] | None = None,
    first_label: int = 1,
) -> pd.DataFrame:
    """Return the cluster table in raster order of the clusters' first voxels.

    Parameters
    ----------
    rows
        Cluster rows in raster order; their labels are ``first_label`` and those that follow.
    score_unit
        Unit of the rows' score sums.
    regions
        Names of the regions whose voxels the rows count, in their order.
    columns
        Further columns by name, one value per row.
    first_label
        Label of the first row, for a part of a table.

    Returns
    -------
    pandas.DataFrame
        ``label, n_voxels, z, y, x`` (centroid, voxels), ``z_min`` to ``x_max`` (inclusive voxels),
        ``score_sum, score_mean, score_max``, ``n_in_<region>`` (voxels) and the further columns.

    Examples
    --------
    >>> from deepict_dask.core.tables import empty_rows
    >>> rows = empty_rows(1)
    >>> rows["n_voxels"], rows["score_sum"] = 4, 3
    >>> cluster_table(rows, score_unit=1.0)["score_mean"].tolist()
    [0.75]
    >>> rows = empty_rows(1, n_regions=2)
    >>> rows["n_voxels"], rows["n_in_region"] = 4, [[1, 4]]
    >>> cluster_table(rows, score_unit=1.0, regions=("er", "cytosol"))["n_in_cytosol"].tolist()
    [4]
    """
    import pandas as pd

    score_sum = rows["score_sum"] * score_unit
    positions = centroids(rows)
    table: dict[str, Any] = {
        "label": np.arange(first_label, first_label + len(rows), dtype=np.int64),
        "n_voxels": rows["n_voxels"],
        **{axis: positions[:, i] for i, axis in enumerate("zyx")},
        **{name: rows[name] for name in BoundingBoxColumns},
        "score_sum": score_sum,
        "score_mean": score_sum / rows["n_voxels"],
        "score_max": rows["score_max"],
        **{f"n_in_{name}": rows["n_in_region"][:, i] for i, name in enumerate(regions)},
        **(columns or {}),
    }
    return pd.DataFrame(table)


def picks_table(clusters: pd.DataFrame, class_name: str | None = None) -> pd.DataFrame:
    """Return one pick per cluster: its centroid, with its mean score and distances to regions.

    Examples
    --------
    >>> from deepict_dask.core.tables import empty_rows
    >>> rows = empty_rows(1)
    >>> rows["n_voxels"] = 4
    >>> list(picks_table(cluster_table(rows, score_unit=1.0), "ribosome").columns)
    ['z', 'y', 'x', 'score', 'n_voxels', 'label', 'class_name']
    """
    distances = [str(name) for name in clusters.columns if str(name).startswith("distance_")]
    picks = clusters[["z", "y", "x", "score_mean", "n_voxels", "label", *distances]].rename(
        columns={"score_mean": "score"}
    )
    if class_name is not None:
        picks = picks.assign(class_name=class_name)
    return picks
