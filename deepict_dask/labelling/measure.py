"""Statistics of the components of one chunk, in one pass over the chosen voxels.

Voxels that follow one another on x in one component are a run, whose coordinates are added to its
component in one step; scores are added voxel by voxel.

The voxels are visited in pieces, so that temporaries do not grow with the chunk, and the last piece
first, so that the first voxel of a component is the one that is noted last. Sums are taken in
int64: they are exact, whatever the order.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend import is_on_device
from ..core.tables import ClusterRows, empty_rows
from .device_measure import first_voxels_on_device, measure_on_device
from .scores import refuse_large_scores, score_unit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..core.geometry import Box, Vec

__all__ = ["first_voxels", "measure_components", "score_unit"]

Labels = np.ndarray[Any, Any]

PIECE_VOXELS = 1 << 16
"""Voxels measured at a time; their temporaries take about 100 bytes each and fit a cache."""


def _raster_index(flat: Labels, box: Box, shape: Vec) -> tuple[Labels, Labels, Labels, Labels]:
    """Return volume coordinates z, y, x and the volume's raster index of a box's flat indices."""
    _, ny, nx = box.shape
    z, rest = np.divmod(flat, ny * nx)
    y, x = np.divmod(rest, nx)
    z, y, x = z + box.start[0], y + box.start[1], x + box.start[2]
    return z, y, x, (z * shape[1] + y) * shape[2] + x


def _pieces(labels: Labels) -> Iterator[tuple[Labels, Labels]]:
    """Yield flat indices of labelled voxels and their labels less one, the last piece first."""
    values = labels.ravel()
    for start in reversed(range(0, values.size, PIECE_VOXELS)):
        piece = values[start : start + PIECE_VOXELS]
        inside = np.flatnonzero(piece != 0)  # of bools: twice as fast as of integers
        if len(inside):
            yield inside + start, piece[inside].astype(np.int64) - 1


def first_voxels(labels: Labels, n: int, box: Box, shape: Vec) -> Labels:
    """Return for each label 1..n the volume's raster index of its first voxel (int64, NumPy).

    Examples
    --------
    >>> from deepict_dask.core.geometry import Box
    >>> first_voxels(np.array([[[0, 2, 1, 2]]]), 2, Box((0, 0, 4), (1, 1, 8)), (1, 1, 8)).tolist()
    [6, 5]
    """
    if is_on_device(labels):
        return first_voxels_on_device(labels, n, box, shape)
    first = np.zeros(n, np.int64)
    for flat, place in _pieces(labels):
        first[place[::-1]] = flat[::-1]  # the last assignment wins: the first voxel
    for start in range(0, n, PIECE_VOXELS):
        piece = first[start : start + PIECE_VOXELS]
        piece[:] = _raster_index(piece, box, shape)[3]
    return first


def _score_integers(score: Labels, n_voxels_of_volume: int) -> Labels:
    """Return scores as int64 multiples of their unit, checked against overflow of the sums."""
    integers = np.rint(score.astype(np.float64) / score_unit(score.dtype))
    largest = float(np.abs(integers).max(initial=0.0))
    refuse_large_scores(largest, score_unit(score.dtype), n_voxels_of_volume)
    return integers.astype(np.int64)


def measure_components(
    labels: Labels,
    n: int,
    score: Labels,
    regions: Labels | None = None,
    *,
    box: Box,
    shape: Vec,
    n_regions: int = 0,
) -> ClusterRows:
    """Return one cluster row for each label 1..n of a chunk.

    Parameters
    ----------
    labels
        Integer zyx array over ``box``, NumPy or CuPy; 0 is background.
    n
        Largest label.
    score
        zyx scores, same shape.
    regions
        zyx, unsigned: bit i says whether a voxel is in region i; None without regions.
    box, shape
        Where the arrays lie, and the shape of the whole volume.
    n_regions
        Number of regions, each of which the rows count apart.

    Returns
    -------
    ClusterRows
        Rows in the order of the labels, coordinates in voxels of the volume.

    Examples
    --------
    >>> from deepict_dask.core.geometry import Box
    >>> labels = np.array([[[1, 1, 0, 2]]])
    >>> score = np.array([[[0.5, 1.0, 0.0, 0.75]]], dtype="float32")
    >>> rows = measure_components(labels, 2, score, box=Box((0, 0, 4), (1, 1, 8)), shape=(1, 1, 8))
    >>> rows["n_voxels"].tolist(), rows["sum_x"].tolist(), rows["score_max"].tolist()
    ([2, 1], [9, 7], [1.0, 0.75])
    """
    if is_on_device(labels):
        return measure_on_device(
            labels, n, score, regions, box=box, shape=shape, n_regions=n_regions
        )
    rows = _rows_before_any_voxel(n, n_regions)
    scores, bits = score.ravel(), None if regions is None else regions.ravel()
    for flat, place in _pieces(labels):
        starts = _run_starts(flat, place, box.shape[2])
        lengths = np.diff(starts, append=len(flat))
        _add_runs(rows, place[starts], _raster_index(flat[starts], box, shape), lengths)
        _add_scores(rows, place, scores[flat], math.prod(shape))
        if bits is not None:
            _count_in_regions(rows, place, bits[flat])
    return rows


def _run_starts(flat: Labels, place: Labels, row_length: int) -> Labels:
    """Return where runs start: neighbours on x with one label, never over the end of a row.

    Statistics of runs are a few numbers each, and blobs have several voxels in a run.

    Examples
    --------
    >>> _run_starts(np.array([0, 1, 2, 3, 4, 6]), np.array([0, 0, 0, 0, 5, 5]), 3).tolist()
    [0, 3, 4, 5]
    """
    is_start = np.empty(len(flat), bool)
    is_start[0] = True
    np.not_equal(flat[1:], flat[:-1] + 1, out=is_start[1:])
    is_start[1:] |= place[1:] != place[:-1]
    starts = np.flatnonzero(is_start)
    ends = flat[starts] % row_length + np.diff(starts, append=len(flat))
    if ends.max() > row_length:
        starts = np.flatnonzero(is_start | (flat % row_length == 0))
    return starts


def _add_runs(rows: ClusterRows, place: Labels, start: tuple[Labels, ...], lengths: Labels) -> None:
    """Add the voxels of runs along x, given by their first voxels and lengths."""
    z, y, x, raster = start
    rows["first_voxel"][place[::-1]] = raster[::-1]  # the last assignment wins
    np.add.at(rows["n_voxels"], place, lengths)
    np.add.at(rows["sum_z"], place, z * lengths)
    np.add.at(rows["sum_y"], place, y * lengths)
    np.add.at(rows["sum_x"], place, x * lengths + lengths * (lengths - 1) // 2)
    for name, low, high in (("z", z, z), ("y", y, y), ("x", x, x + lengths - 1)):
        np.minimum.at(rows[f"{name}_min"], place, low.astype(np.int32))
        np.maximum.at(rows[f"{name}_max"], place, high.astype(np.int32))


def _count_in_regions(rows: ClusterRows, place: Labels, bits: Labels) -> None:
    """Count some voxels in the regions whose bits they have."""
    counts = rows["n_in_region"]
    for region in range(counts.shape[1]):
        inside = (bits >> region) & 1
        np.add.at(counts[:, region], place[inside != 0], 1)


def _rows_before_any_voxel(n: int, n_regions: int) -> ClusterRows:
    """Return rows whose minima and maxima any voxel replaces."""
    rows = empty_rows(n, n_regions)
    for axis in "zyx":
        rows[f"{axis}_min"], rows[f"{axis}_max"] = np.iinfo(np.int32).max, -1
    rows["score_max"] = -np.inf
    return rows


def _add_scores(rows: ClusterRows, place: Labels, scores: Labels, n_voxels_of_volume: int) -> None:
    """Add the scores of some voxels to the rows at their places."""
    np.add.at(rows["score_sum"], place, _score_integers(scores, n_voxels_of_volume))
    np.maximum.at(rows["score_max"], place, scores.astype(np.float64))
