"""Statistics of the components of one chunk on a GPU, to the last bit those of `measure`.

What is summed are whole numbers, so the order of atomic additions leaves no trace. CUDA adds 64-bit
numbers without sign only: sums are kept so, and read as numbers with a sign at the end, which
modulo 2**64 are the same. CuPy compares 64-bit floats as 32-bit ones in atomic operations: the
highest score is looked for among whole numbers of the same order. Only the rows leave the device.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend import namespace_of, to_host
from ..core.tables import ClusterRows, empty_rows
from .scores import refuse_large_scores, score_unit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..core.geometry import Box, Vec

__all__ = ["first_voxels_on_device", "measure_on_device"]

Array = Any

DEVICE_PIECE_VOXELS = 1 << 24
"""Voxels measured at a time; their temporaries take up to about 100 bytes each."""
_SIGN = np.uint64(1 << 63)
_SUMS = ("n_voxels", "sum_z", "sum_y", "sum_x", "score_sum")


def measure_on_device(
    labels: Array,
    n: int,
    score: Array,
    regions: Array | None,
    *,
    box: Box,
    shape: Vec,
    n_regions: int,
) -> ClusterRows:
    """Return one cluster row for each label 1..n of a chunk; parameters as of `measure_components`.

    Every array is in one place, which need not be a GPU: the lines are the same.
    """
    xp = namespace_of(*(each for each in (labels, score, regions) if each is not None))
    columns = _columns(xp, n)
    counts = xp.zeros((n_regions, n), np.uint64)
    scores, bits = score.ravel(), None if regions is None else regions.ravel()
    for flat, place in _pieces(xp, labels):
        _add_places(xp, columns, place, _coordinates(xp, flat, box), shape)
        _add_scores(xp, columns, place, scores[flat], math.prod(shape))
        if bits is not None:
            _count_in_regions(xp, counts, place, bits[flat])
    return _rows(columns, counts)


def first_voxels_on_device(labels: Array, n: int, box: Box, shape: Vec) -> np.ndarray[Any, Any]:
    """Return what `measure.first_voxels` does, on the host."""
    xp = namespace_of(labels)
    first = xp.full(n, np.iinfo(np.int64).max, np.uint64)
    for flat, place in _pieces(xp, labels):
        z, y, x = _coordinates(xp, flat, box)
        xp.minimum.at(first, place, ((z * shape[1] + y) * shape[2] + x).view(np.uint64))
    return to_host(first).view(np.int64)


def _columns(xp: Any, n: int) -> dict[str, Array]:
    """Return columns whose minima and maxima any voxel replaces."""
    columns = {name: xp.zeros(n, np.uint64) for name in _SUMS}
    columns["first_voxel"] = xp.full(n, np.iinfo(np.int64).max, np.uint64)
    for axis in "zyx":
        columns[f"{axis}_min"] = xp.full(n, np.iinfo(np.int32).max, np.int32)
        columns[f"{axis}_max"] = xp.full(n, -1, np.int32)
    columns["score_max"] = xp.zeros(n, np.uint64)
    return columns


def _ordered(xp: Any, values: Array) -> Array:
    """Return whole numbers without sign that are in the order of float64 numbers."""
    bits = values.view(np.uint64)
    return xp.where((bits & _SIGN) != 0, ~bits, bits | _SIGN)


def _in_order(ordered: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the float64 numbers of which `_ordered` made these.

    >>> _in_order(_ordered(np, np.array([-2.5, 0.1]))).tolist()
    [-2.5, 0.1]
    """
    return np.where((ordered & _SIGN) != 0, ordered ^ _SIGN, ~ordered).view(np.float64)


def _pieces(xp: Any, labels: Array) -> Iterator[tuple[Array, Array]]:
    """Yield flat indices of labelled voxels, and their labels less one."""
    values = labels.ravel()
    for start in range(0, values.size, DEVICE_PIECE_VOXELS):
        piece = values[start : start + DEVICE_PIECE_VOXELS]
        inside = xp.flatnonzero(piece)
        if inside.size:
            yield inside + start, piece[inside] - 1


def _coordinates(xp: Any, flat: Array, box: Box) -> tuple[Array, Array, Array]:
    """Return volume coordinates z, y, x (int64) of a box's flat indices."""
    _, ny, nx = box.shape
    rows = xp.floor_divide(flat, nx)
    z = xp.floor_divide(rows, ny)
    return z + box.start[0], rows - z * ny + box.start[1], flat - rows * nx + box.start[2]


def _add_places(
    xp: Any, columns: dict[str, Array], place: Array, zyx: tuple[Array, Array, Array], shape: Vec
) -> None:
    """Add the coordinates of some voxels to the columns."""
    z, y, x = zyx
    first = ((z * shape[1] + y) * shape[2] + x).view(np.uint64)
    xp.minimum.at(columns["first_voxel"], place, first)
    xp.add.at(columns["n_voxels"], place, xp.ones(place.shape, np.uint64))
    for axis, values in zip("zyx", zyx, strict=True):
        xp.add.at(columns[f"sum_{axis}"], place, values.view(np.uint64))
        narrow = values.astype(np.int32)
        xp.minimum.at(columns[f"{axis}_min"], place, narrow)
        xp.maximum.at(columns[f"{axis}_max"], place, narrow)


def _add_scores(
    xp: Any, columns: dict[str, Array], place: Array, scores: Array, n_voxels_of_volume: int
) -> None:
    """Add the scores of some voxels to the columns."""
    unit = score_unit(scores.dtype)
    exact = scores.astype(np.float64)
    integers = xp.rint(exact / unit)
    refuse_large_scores(float(xp.abs(integers).max()), unit, n_voxels_of_volume)
    xp.add.at(columns["score_sum"], place, integers.astype(np.int64).view(np.uint64))
    xp.maximum.at(columns["score_max"], place, _ordered(xp, exact))


def _count_in_regions(xp: Any, counts: Array, place: Array, bits: Array) -> None:
    """Count some voxels in the regions whose bits they have."""
    for region, column in enumerate(counts):
        inside = place[((bits >> region) & 1) != 0]
        xp.add.at(column, inside, xp.ones(inside.shape, np.uint64))


def _rows(columns: dict[str, Array], counts: Array) -> ClusterRows:
    """Bring the columns to the host, as rows."""
    rows = empty_rows(len(columns["n_voxels"]), len(counts))
    for name, column in columns.items():
        there = to_host(column)
        if name == "score_max":
            there = _in_order(there)
        rows[name] = there.view(np.int64) if there.dtype == np.uint64 else there
    if len(counts):
        rows["n_in_region"] = to_host(counts).view(np.int64).T
    return rows
