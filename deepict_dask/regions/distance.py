"""Distance of points to the nearest voxel of a region, up to a limit.

1. The region's parts (``occupancy.py``) are visited in the order of their distance to the points.
   A part that is farther than what is found already is not read; a full one needs no reading.
2. Of a part, only what lies within the distance found so far is read. A point on a voxel of the
   region has distance 0.
3. For other points the nearest voxel is one of the region's surface: a voxel with six neighbours
   inside has one that is nearer. Surface voxels go into k-d trees, a bounded number at a time, and
   the points are looked up.

Squared distances between voxels are whole numbers, so the answer has no rounding that could depend
on the chunks. Distances are between voxel centres, as in `scipy.ndimage.distance_transform_edt`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..core.geometry import Box, as_vec

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..core.geometry import Vec

__all__ = ["Metric", "distance_bytes", "nearest_distances", "parts_in_reach"]

Array = np.ndarray[Any, Any]
Metric = Literal["euclidean", "chessboard"]

TREE_VOXELS = 1 << 16
"""Surface voxels in one k-d tree."""
_TREE_BYTES = 160 * TREE_VOXELS
"""Their coordinates, the tree and its nodes (measured: 115 bytes a voxel)."""
_POINT_BYTES = 256
"""A point, what is found of it and what is left to search (measured: 230)."""
_POWER = {"euclidean": 2.0, "chessboard": math.inf}


def distance_bytes(part_shape: Vec, dtype: str, n_points: int) -> int:
    """Return the peak bytes of `nearest_distances`, for parts no larger than this shape.

    A voxel takes its mask (as stored and as read), three bytes of what is inside and on the
    surface, and eight for its place among the surface voxels, which all voxels may be.

    Examples
    --------
    >>> distance_bytes((128, 128, 128), "uint8", 1000) >> 20
    36
    """
    per_voxel = 2 * np.dtype(dtype).itemsize + 3 + 8
    return math.prod(part_shape) * per_voxel + _TREE_BYTES + n_points * _POINT_BYTES


def nearest_distances(
    read: Callable[[Box], Array],
    parts: Array,
    points: Array,
    limit: float,
    metric: Metric = "euclidean",
) -> Array:
    """Return the distance of each point to the nearest voxel of a region.

    Parameters
    ----------
    read
        Returns the zyx mask of a box, non-zero inside.
    parts
        Where the region lies: `PART_DTYPE`, any order; those out of reach may be left out.
    points
        Integer voxel positions, shape (n, 3), zyx in the volume.
    limit
        Largest distance of interest, in voxels, inclusive.
    metric
        Euclidean, or chessboard: the largest of the three axis distances.

    Returns
    -------
    array
        float64, shape (n,), voxels; infinite where the region is farther than the limit.

    Examples
    --------
    >>> from deepict_dask.regions.occupancy import PART_DTYPE
    >>> mask = np.zeros((1, 5, 9), "uint8"); mask[0, :2, 0] = 1
    >>> parts = np.array([((0, 0, 0), (1, 2, 1), True)], PART_DTYPE)
    >>> points = np.array([[0, 1, 0], [0, 4, 4], [0, 0, 8]])
    >>> nearest_distances(lambda box: mask[box.slices], parts, points, limit=6)
    array([ 0.,  5., inf])
    """
    points, bound = points.astype(np.float64), _just_above(limit)
    best = np.full(len(points), bound)
    for part in _nearest_first(parts, points, metric):
        reach = _length(_gap(part["start"], part["stop"], points, points), metric)
        active = np.flatnonzero(reach < best)
        if len(active) == 0:
            continue
        if part["full"]:
            found = reach[active]
        else:
            found = _search(read, part, points[active], best[active].max(), metric)
        best[active] = np.minimum(best[active], found)
    return np.where(best < bound, best, np.inf)


def _just_above(limit: float) -> float:
    """Return a bound that a distance equal to the limit is below, whatever its last digit is."""
    return float(limit) * (1 + 1e-9) + 1e-9


def parts_in_reach(parts: Array, points: Array, limit: float) -> Array:
    """Return the parts that may be within a distance of some of the points (n, 3; at least one).

    Examples
    --------
    >>> from deepict_dask.regions.occupancy import PART_DTYPE
    >>> parts = np.array([((0, 0, 0), (4, 4, 4), True), ((0, 0, 9), (4, 4, 12), True)], PART_DTYPE)
    >>> parts_in_reach(parts, np.array([[0, 0, 5], [2, 0, 5]]), limit=2)["start"].tolist()
    [[0, 0, 0]]
    """
    gap = _gap(parts["start"], parts["stop"], points.min(axis=0), points.max(axis=0))
    reached: Array = parts[gap.max(axis=1) <= limit]
    return reached


def _gap(start: Array, stop: Array, low: Array, high: Array) -> Array:
    """Return how many voxels lie, on each axis, between boxes and points from low to high."""
    return np.maximum(np.maximum(start - high, low - (stop - 1)), 0)


def _length(gap: Array, metric: Metric) -> Array:
    """Return the distance of each row of axis distances."""
    if metric == "chessboard":
        return gap.max(axis=-1).astype(np.float64)
    squares: Array = np.square(gap, dtype=np.float64)
    return np.sqrt(squares.sum(axis=-1))


def _nearest_first(parts: Array, points: Array, metric: Metric) -> Array:
    """Return the parts by their distance to the points' bounding box."""
    if len(points) == 0:
        return parts[:0]
    gap = _gap(parts["start"], parts["stop"], points.min(axis=0), points.max(axis=0))
    ordered: Array = parts[np.argsort(_length(gap, metric), kind="stable")]
    return ordered


def _search(
    read: Callable[[Box], Array], part: Any, points: Array, bound: float, metric: Metric
) -> Array:
    """Return the distances of points to the voxels of one part, if they are below a bound."""
    halo = math.floor(bound)
    low = np.maximum(part["start"], points.min(axis=0).astype(np.int64) - halo)
    high = np.minimum(part["stop"], points.max(axis=0).astype(np.int64) + halo + 1)
    inside = read(Box(as_vec(low), as_vec(high))) != 0
    local = points - low
    found = np.where(_on_region(inside, local), 0.0, np.inf)
    (far,) = np.nonzero(found > 0)
    if len(far):
        found[far] = _distance_to_surface(inside, local[far], bound, metric)
    return found


def _on_region(inside: Array, local: Array) -> Array:
    """Say of each point, in voxels of the array, whether it is on a voxel inside."""
    here = ((local >= 0) & (local < inside.shape)).all(axis=1)
    z, y, x = np.where(here[:, None], local, 0).astype(np.int64).T
    answer: Array = here & inside[z, y, x]
    return answer


def _surface(inside: Array) -> Array:
    """Return the flat indices of voxels inside that lack a face neighbour inside the array."""
    core = inside.copy()
    for axis in range(3):
        along, one = np.moveaxis(core, axis, 0), np.moveaxis(inside, axis, 0)
        along[1:] &= one[:-1]
        along[:-1] &= one[1:]
        along[0], along[-1] = False, False
    np.logical_not(core, out=core)
    core &= inside
    return np.flatnonzero(core)


def _distance_to_surface(inside: Array, local: Array, bound: float, metric: Metric) -> Array:
    """Return the distance of each point to the nearest voxel of the surface, if below a bound."""
    from scipy.spatial import cKDTree

    surface = _surface(inside)
    best = np.full(len(local), np.inf)
    for first in range(0, len(surface), TREE_VOXELS):
        places = np.unravel_index(surface[first : first + TREE_VOXELS], inside.shape)
        tree = cKDTree(np.stack(places, axis=1), balanced_tree=False, compact_nodes=False)
        power = _POWER[metric]
        upper = min(bound, float(best.max()))
        found, _ = tree.query(local, p=power, distance_upper_bound=upper)
        np.minimum(best, found, out=best)
    near = np.isfinite(best)
    best[near] = np.rint(best[near]) if metric == "chessboard" else _whole_squares(best[near])
    return best


def _whole_squares(distances: Array) -> Array:
    """Return Euclidean distances between voxels with their squares rounded to whole numbers."""
    squares: Array = np.rint(np.square(distances))
    return np.sqrt(squares)
