"""Sums over the labelled voxels of balls, from running sums along x.

A ball is a stack of rows along x. With the running count of labelled voxels before each voxel, and
the running sum of their x, the count and sum in a row are the difference of two look-ups: a ball of
radius 5 costs 81 rows, not 515 voxels. Both run in one integer, the count in its upper half.

Where a row begins and ends follows from a square root; where that is a whole number but for
rounding, the squared distance itself decides, as in a search tree. Sums are whole numbers, so they
are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from ..core.geometry import Box

__all__ = ["BYTES_PER_ROW", "RowSums"]

Array = np.ndarray[Any, Any]

BYTES_PER_ROW = 160
"""Peak bytes that `RowSums.of_balls` holds for each row of each ball."""
_COUNT_SHIFT = 32
_LOW_BITS = (1 << _COUNT_SHIFT) - 1
_NEAR = 1e-6
"""Ends of rows this close to a whole number are decided by the voxel's distance itself."""


@dataclass(frozen=True)
class RowSums:
    """Labelled voxels of a window as running sums along x.

    Examples
    --------
    >>> from deepict_dask.core.geometry import Box
    >>> rows = RowSums.of(np.ones((9, 9, 9), bool), Box.whole((9, 9, 9)))
    >>> sums, counts = rows.of_balls(np.array([[4.0, 4.0, 4.0]]), 1.0)
    >>> sums.tolist(), counts.tolist()
    ([[28, 28, 28]], [7])
    """

    packed: Array
    """int64 (z, y, x + 1): voxels before x in the upper half, the sum of their x in the lower."""
    box: Box
    """The voxels that the window covers."""

    @classmethod
    def of(cls, labelled: Array, box: Box) -> RowSums:
        """Sum a bool zyx window over a box."""
        nz, ny, nx = labelled.shape
        packed = np.zeros((nz, ny, nx + 1), np.int64)
        steps = (1 << _COUNT_SHIFT) + np.arange(nx, dtype=np.int64)
        np.multiply(labelled, steps, out=packed[:, :, 1:])
        np.cumsum(packed, axis=2, out=packed)
        return cls(packed, box)

    def of_balls(self, points: Array, radius: float) -> tuple[Array, Array]:
        """Sum the positions of the labelled voxels within a radius of points, and count them.

        Parameters
        ----------
        points
            (n, 3) float64 zyx in the volume. Voxels outside the window count as not labelled.
        radius
            In voxels; a voxel at exactly this distance is in the ball.

        Returns
        -------
        sums
            (n, 3) int64, zyx.
        counts
            (n,) int64.
        """
        rows = _rows_of(points, radius, self.box)
        line = self.packed.shape[2]
        flat = self.packed.reshape(-1)
        found = flat.take(rows.base * line + rows.stop) - flat.take(rows.base * line + rows.start)
        in_rows = found >> _COUNT_SHIFT
        x_sums = (found & _LOW_BITS).sum(axis=(1, 2))
        in_planes = in_rows.sum(axis=2)
        counts = in_planes.sum(axis=1)
        z_sums = (in_planes * rows.z).sum(axis=1)
        y_sums = (in_rows.sum(axis=1) * rows.y).sum(axis=1)
        x_sums += counts * self.box.start[2]
        return np.stack([z_sums, y_sums, x_sums], axis=1), counts


class _Rows(NamedTuple):
    """The rows of balls: n balls of k x k rows."""

    z: Array
    """(n, k) voxels."""
    y: Array
    base: Array
    """(n, k, k): the row's number in the window."""
    start: Array
    """(n, k, k): its first voxel in the window."""
    stop: Array


def _rows_of(points: Array, radius: float, box: Box) -> _Rows:
    """Return which voxels of each row of a window lie in each ball."""
    steps = np.arange(int(2 * radius) + 1)
    z, y = (np.ceil(points[:, i, None] - radius).astype(np.int64) + steps for i in (0, 1))
    squares = np.square(z - points[:, :1])[:, :, None] + np.square(y - points[:, 1:2])[:, None, :]
    limit = radius * radius
    start, stop = _row_ends(squares, points[:, 2, None, None], limit)
    (z0, y0, x0), (nz, ny, nx) = box.start, box.shape
    z_in, y_in = z - z0, y - y0
    z_ok, y_ok = (z_in >= 0) & (z_in < nz), (y_in >= 0) & (y_in < ny)
    usable = (squares <= limit) & z_ok[:, :, None] & y_ok[:, None, :]
    start = np.clip(start - x0, 0, nx)
    stop = np.where(usable, np.clip(stop - x0, start, nx), start)
    base = np.clip(z_in, 0, nz - 1)[:, :, None] * ny + np.clip(y_in, 0, ny - 1)[:, None, :]
    return _Rows(z, y, base, start, stop)


def _row_ends(squares: Array, x: Array, limit: float) -> tuple[Array, Array]:
    """Return the first voxel inside and the first behind, of rows at squared distances from x."""
    reach = np.sqrt(np.maximum(limit - squares, 0))
    ends = []
    for edge, rounded, beyond in (
        (x - reach, np.ceil, 1),
        (x + reach, np.floor, -1),
    ):
        found = rounded(edge)
        nearest = np.rint(edge)
        unsure = np.nonzero(np.abs(edge - nearest) < _NEAR)
        voxel = nearest[unsure]
        inside = squares[unsure] + np.square(voxel - x[unsure[0], 0, 0]) <= limit
        found[unsure] = np.where(inside, voxel, voxel + beyond)
        ends.append(found.astype(np.int64))
    first, last = ends
    return first, last + 1
