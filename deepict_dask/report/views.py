"""What of a volume is looked at: slabs along z, and the central planes along y and x, made small.

A picture of n voxels a side has n / factor pixels, each the mean of factor x factor voxels of a
slab that is factor planes thick. The volume is read block by block (whole chunks of a Zarr store,
a few planes of other files) by a few threads, and every block is added to sums of the size of the
pictures: never more than those and one block for each thread is in memory.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.geometry import Box, Vec, as_vec
from ..engine.patience import read_patiently
from ..io.ome_zarr import ZarrReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..core.volume import VolumeReader

__all__ = ["ViewPlan", "Views", "plan_views", "read_views"]

Array = np.ndarray[Any, Any]
Range = tuple[int, int]

MAX_PIXELS = 640
"""Along the longest edge of a picture."""
N_SLICES = 32
"""Along z."""
_BLOCK_BYTES = 8 << 20
_THREADS = 2


@dataclass(frozen=True)
class ViewPlan:
    """Which voxels become which pixels; the same for all volumes of a tomogram.

    Examples
    --------
    >>> plan = plan_views((200, 1000, 900), n_slices=3)
    >>> plan.factor, plan.slabs, plan.central
    (2, ((32, 34), (100, 102), (166, 168)), ((100, 102), (500, 502), (450, 452)))
    """

    shape: Vec
    """Voxels of the volume, zyx."""
    factor: int
    """Voxels along the edge of a pixel, and planes of a slab."""
    slabs: tuple[Range, ...]
    """Planes of each picture along z: first, and one behind the last."""
    central: tuple[Range, Range, Range]
    """Planes in the middle of z, y and x."""

    @property
    def pixels(self) -> Vec:
        """Pixels along z, y and x."""
        return as_vec([-(-n // self.factor) for n in self.shape])

    @property
    def middle(self) -> int:
        """Number of the last slab that begins at or before the middle of z."""
        return max(i for i, (start, _) in enumerate(self.slabs) if start <= self.shape[0] // 2)


@dataclass(frozen=True)
class Views:
    """Pictures of a volume, float32 means of voxels."""

    z: Array
    """Slab, y, x."""
    y: Array
    """z, x."""
    x: Array
    """z, y."""


def plan_views(shape: Vec, *, max_pixels: int = MAX_PIXELS, n_slices: int = N_SLICES) -> ViewPlan:
    """Return which voxels of a volume are looked at.

    Parameters
    ----------
    shape
        Voxels of the volume, zyx.
    max_pixels
        Along the longest edge of a picture.
    n_slices
        Slabs along z, at most; at equal distances, none at the very ends.
    """
    factor = max(1, math.ceil(max(shape) / max_pixels))
    n = min(n_slices, -(-shape[0] // factor))
    slabs = tuple(_slab(shape[0], factor, (i + 0.5) / n) for i in range(n))
    central = (
        _slab(shape[0], factor, 0.5), _slab(shape[1], factor, 0.5), _slab(shape[2], factor, 0.5)
    )  # fmt: skip
    return ViewPlan(shape, factor, slabs, central)


def _slab(size: int, factor: int, part: float) -> Range:
    """Return the planes of a slab at a part of an axis, whole pixels of it."""
    start = min(int(size * part), size - 1) // factor * factor
    return start, min(start + factor, size)


def read_views(
    reader: VolumeReader, plan: ViewPlan, convert: Callable[[Array], Array] = np.asarray
) -> Views:
    """Read the pictures of a volume.

    Parameters
    ----------
    reader
        The volume; its shape is the plan's.
    plan
        Which voxels are looked at.
    convert
        What becomes of the voxels of a block, such as a comparison.

    Raises
    ------
    DeepictError
        The volume is damaged, or its storage does not answer.

    Examples
    --------
    >>> from deepict_dask.io.array import ArrayReader
    >>> volume = np.arange(4 * 6 * 8, dtype="float32").reshape(4, 6, 8)
    >>> views = read_views(ArrayReader(volume), plan_views(volume.shape, max_pixels=4, n_slices=1))
    >>> views.z.shape, views.y.shape, views.z[0, 0, 0] - volume[2:4, :2, :2].mean() == 0.0
    ((1, 3, 4), (2, 4), np.True_)
    """
    sums = _Sums(plan)

    def add(box: Box) -> None:
        sums.add(box, convert(read_patiently(reader, box)))

    boxes = [box for box in _blocks(reader, plan.shape) if sums.needs(box)]
    n_threads = min(_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(n_threads, thread_name_prefix="report") as pool:
        try:
            for _ in pool.map(add, boxes):
                pass
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return sums.means()


def _blocks(reader: VolumeReader, shape: Vec) -> Iterator[Box]:
    """Yield boxes that cover a volume and are cheap to read: whole chunks, or whole planes."""
    itemsize = np.dtype(reader.header.dtype).itemsize
    smallest = reader.chunk_shape if isinstance(reader, ZarrReader) else (1, *shape[1:])
    block = [min(c, n) for c, n in zip(smallest, shape, strict=True)]
    for axis in (2, 1, 0):
        spare = _BLOCK_BYTES // (math.prod(block) * itemsize)
        block[axis] = min(shape[axis], block[axis] * max(1, spare))
    starts = [range(0, n, b) for n, b in zip(shape, block, strict=True)]
    for start in itertools.product(*starts):
        stop = [min(a + b, n) for a, b, n in zip(start, block, shape, strict=True)]
        yield Box(as_vec(start), as_vec(stop))


class _Sums:
    """Sums over the voxels of each pixel, to which blocks are added in any order."""

    def __init__(self, plan: ViewPlan) -> None:
        n_z, n_y, n_x = plan.pixels
        self._plan, self._lock = plan, threading.Lock()
        self._z = np.zeros((len(plan.slabs), n_y, n_x), np.float32)
        self._y = np.zeros((n_z, n_x), np.float32)
        self._x = np.zeros((n_z, n_y), np.float32)

    def _parts(self) -> Iterator[tuple[int, Range, Array]]:
        """Yield axis, planes and sums of each picture."""
        for planes, sums in zip(self._plan.slabs, self._z, strict=True):
            yield 0, planes, sums
        yield 1, self._plan.central[1], self._y
        yield 2, self._plan.central[2], self._x

    def needs(self, box: Box) -> bool:
        """Say whether a box has voxels of a picture."""
        return any(
            box.start[axis] < planes[1] and planes[0] < box.stop[axis]
            for axis, planes, _ in self._parts()
        )

    def add(self, box: Box, data: Array) -> None:
        """Add the voxels of a box."""
        for axis, (first, behind), sums in self._parts():
            start = max(first - box.start[axis], 0)
            stop = min(behind, box.stop[axis]) - box.start[axis]
            if start >= stop:
                continue
            planes = data[(slice(None),) * axis + (slice(start, stop),)]
            image = planes.sum(axis=axis, dtype=np.float32)
            rows, columns = (box.start[other] for other in range(3) if other != axis)
            binned = _binned(image, rows, columns, self._plan.factor)
            top, left = rows // self._plan.factor, columns // self._plan.factor
            with self._lock:
                sums[top : top + binned.shape[0], left : left + binned.shape[1]] += binned

    def means(self) -> Views:
        """Divide the sums by the voxels behind each pixel."""
        for axis, (first, behind), sums in self._parts():
            rows, columns = (self._voxels_of_pixels(other) for other in range(3) if other != axis)
            sums /= (behind - first) * rows[:, None] * columns
        return Views(self._z, self._y, self._x)

    def _voxels_of_pixels(self, axis: int) -> Array:
        """Return how many voxels each pixel has along an axis: fewer at the end."""
        edges = np.minimum(
            np.arange(self._plan.pixels[axis] + 1) * self._plan.factor, self._plan.shape[axis]
        )
        return np.diff(edges).astype(np.float32)


def _binned(image: Array, row: int, column: int, factor: int) -> Array:
    """Sum the voxels of each pixel, where the image starts at a row and column of the volume."""
    if factor == 1:
        return image
    rows = np.arange(row // factor, -(-(row + image.shape[0]) // factor)) * factor - row
    columns = np.arange(column // factor, -(-(column + image.shape[1]) // factor)) * factor - column
    by_rows = np.add.reduceat(image, np.maximum(rows, 0), axis=0)
    summed: Array = np.add.reduceat(by_rows, np.maximum(columns, 0), axis=1)
    return summed
