"""Statistics of the components of one chunk, in one pass over the chosen voxels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend import label_components, to_host
from ..core.errors import VoxelValueError
from ..core.tables import SCORE_UNIT, ClusterRows, empty_rows

if TYPE_CHECKING:
    from ..core.geometry import Box, Vec

__all__ = ["first_voxels", "label_box", "measure_components", "score_unit"]

Labels = np.ndarray[Any, Any]


def label_box(chosen: Any, connectivity: int) -> tuple[Labels, int]:
    """Label one chunk; labels are 1 to n, 0 is background (on the host)."""
    labels, n = label_components(chosen, connectivity)
    return to_host(labels), n


def score_unit(dtype: Any) -> float:
    """Return the unit in which scores of a dtype are summed.

    Examples
    --------
    >>> score_unit("uint8"), score_unit("float32") == SCORE_UNIT
    (1.0, True)
    """
    return SCORE_UNIT if np.dtype(dtype).kind == "f" else 1.0


def _raster_index(flat: Labels, box: Box, shape: Vec) -> tuple[Labels, Labels, Labels, Labels]:
    """Return volume coordinates z, y, x and the volume's raster index of a box's flat indices."""
    _, ny, nx = box.shape
    z, rest = np.divmod(flat, ny * nx)
    y, x = np.divmod(rest, nx)
    z, y, x = z + box.start[0], y + box.start[1], x + box.start[2]
    return z, y, x, (z * shape[1] + y) * shape[2] + x


def first_voxels(labels: Labels, n: int, box: Box, shape: Vec) -> Labels:
    """Return for each label 1..n the volume's raster index of its first voxel (int64).

    Examples
    --------
    >>> from deepict_dask.core.geometry import Box
    >>> first_voxels(np.array([[[0, 2, 1, 2]]]), 2, Box((0, 0, 4), (1, 1, 8)), (1, 1, 8)).tolist()
    [6, 5]
    """
    flat = np.flatnonzero(labels)
    values = labels.ravel()[flat]
    first = np.zeros(n + 1, np.int64)
    first[values[::-1]] = flat[::-1]  # the last assignment wins: the first voxel
    return _raster_index(first[1:], box, shape)[3]


def _summed(values: Labels, weights: Labels, n: int) -> Labels:
    """Sum integers per label exactly: float64 holds integers below 2**53."""
    return np.bincount(values, weights=weights, minlength=n + 1)[1:].astype(np.int64)


def _score_integers(score: Labels, n_voxels_of_volume: int) -> Labels:
    """Return scores as whole multiples of their unit, checked against overflow of the sums."""
    integers = np.rint(score.astype(np.float64) / score_unit(score.dtype))
    largest = float(np.abs(integers).max(initial=0.0))
    if largest * n_voxels_of_volume >= 2.0**62:
        raise VoxelValueError(
            f"score map: expected scores near 0..1, found {largest * score_unit(score.dtype):g}; "
            "give a score map, or a label volume with --label-value"
        )
    return integers


def measure_components(
    labels: Labels, n: int, score: Labels, region: Labels | None, *, box: Box, shape: Vec
) -> ClusterRows:
    """Return one cluster row for each label 1..n of a chunk.

    Parameters
    ----------
    labels
        Integer zyx array over ``box``; 0 is background.
    n
        Largest label.
    score
        zyx scores, same shape.
    region
        zyx region mask, non-zero inside; None without one.
    box, shape
        Where the arrays lie, and the shape of the whole volume.

    Returns
    -------
    ClusterRows
        Rows in the order of the labels, coordinates in voxels of the volume.

    Examples
    --------
    >>> from deepict_dask.core.geometry import Box
    >>> labels = np.array([[[1, 1, 0, 2]]])
    >>> score = np.array([[[0.5, 1.0, 0.0, 0.75]]], dtype="float32")
    >>> rows = measure_components(labels, 2, score, None,
    ...                           box=Box((0, 0, 4), (1, 1, 8)), shape=(1, 1, 8))
    >>> rows["n_voxels"].tolist(), rows["sum_x"].tolist(), rows["score_max"].tolist()
    ([2, 1], [9, 7], [1.0, 0.75])
    """
    flat = np.flatnonzero(labels)
    values = labels.ravel()[flat].astype(np.int64)
    rows = empty_rows(n)
    rows["first_voxel"] = first_voxels(labels, n, box, shape)
    rows["n_voxels"] = np.bincount(values, minlength=n + 1)[1:]
    coordinates = _raster_index(flat, box, shape)[:3]
    for name, coordinate in zip("zyx", coordinates, strict=True):
        rows[f"sum_{name}"] = _summed(values, coordinate, n)
        rows[f"{name}_min"], rows[f"{name}_max"] = _extremes(values, coordinate, n)
    _measure_score(rows, values, score.ravel()[flat], math.prod(shape))
    if region is not None:
        rows["n_in_region"] = _summed(values, region.ravel()[flat] != 0, n)
    return rows


def _extremes(values: Labels, coordinate: Labels, n: int) -> tuple[Labels, Labels]:
    """Return the smallest and largest coordinate of each label."""
    low = np.full(n + 1, np.iinfo(np.int32).max, np.int64)
    high = np.full(n + 1, -1, np.int64)
    np.minimum.at(low, values, coordinate)
    np.maximum.at(high, values, coordinate)
    return low[1:], high[1:]


def _measure_score(
    rows: ClusterRows, values: Labels, scores: Labels, n_voxels_of_volume: int
) -> None:
    """Fill the score columns from the scores of the chosen voxels."""
    n = len(rows)
    rows["score_sum"] = _summed(values, _score_integers(scores, n_voxels_of_volume), n)
    highest = np.full(n + 1, -np.inf)
    np.maximum.at(highest, values, scores.astype(np.float64))
    rows["score_max"] = highest[1:]
