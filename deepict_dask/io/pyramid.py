"""Coarser levels of a volume, for viewers: each halves the one before it.

1. A voxel of a level stands for 2 x 2 x 2 voxels (z, y, x) of the finer one, fewer at the far end
   of an odd axis. An axis of one voxel is not halved.
2. Densities and scores become the *mean* of these voxels, labels and masks the value that *most* of
   them have; of values that occur equally often the largest wins, so thin structures stay visible.
3. Halving stops where the longest axis has at most 128 voxels.
4. The centre of a voxel of level k lies (2^k - 1) / 2 voxels of level 0 behind the centre of the
   first voxel that it stands for: the translation in an OME-Zarr level.

No voxel of a level depends on others of its level, so the cuts into chunks leave no trace.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..core.geometry import Box, Grid, Vec, as_vec

if TYPE_CHECKING:
    from ..core.volume import VolumeHeader, VolumeReader

__all__ = ["HalvedReader", "Method", "halve", "level_factors", "level_headers"]

Array = np.ndarray[Any, Any]
Method = Literal["mean", "majority"]

COARSEST = 128
"""Voxels along the longest axis of the last level, at most."""
_LEAST_PIECE = 32


def level_factors(shape: Vec) -> tuple[Vec, ...]:
    """Return how many voxels of level 0 a voxel of each level stands for, along z, y and x.

    Parameters
    ----------
    shape
        Voxels of level 0, zyx.

    Examples
    --------
    >>> level_factors((464, 928, 928))
    ((1, 1, 1), (2, 2, 2), (4, 4, 4), (8, 8, 8))
    >>> level_factors((1, 200, 100))
    ((1, 1, 1), (1, 2, 2))
    """
    factors, size = [(1, 1, 1)], shape
    while max(size) > COARSEST:
        step = _step(size)
        factors.append(as_vec([f * s for f, s in zip(factors[-1], step, strict=True)]))
        size = _halved(size, step)
    return tuple(factors)


def level_headers(header: VolumeHeader) -> tuple[VolumeHeader, ...]:
    """Return the headers of all levels of a volume, level 0 first; only the shapes differ."""
    return tuple(
        replace(header, shape=_halved(header.shape, factors))
        for factors in level_factors(header.shape)
    )


def _step(shape: Vec) -> Vec:
    return as_vec([2 if n > 1 else 1 for n in shape])


def _halved(shape: Vec, factors: Vec) -> Vec:
    return as_vec([-(-n // f) for n, f in zip(shape, factors, strict=True)])


def halve(array: Array, method: Method) -> Array:
    """Return a volume of half the size along each axis of more than one voxel.

    Parameters
    ----------
    array
        zyx, of any size; it begins where a voxel of the coarser level does.
    method
        ``mean``, rounded to whole numbers for integers; or ``majority``.

    Returns
    -------
    array
        Of the same type.

    Examples
    --------
    >>> halve(np.array([[[1.0, 2.0, 5.0]]]), "mean")
    array([[[1.5, 5. ]]])
    >>> halve(np.array([[[7, 7, 9], [7, 9, 9]]]), "majority")
    array([[[7, 9]]])
    """
    step = _step(as_vec(array.shape))
    odd = [(0, n % f) for n, f in zip(array.shape, step, strict=True)]
    if any(pad for _, pad in odd):
        # A voxel without a neighbour counts as its own: mean and majority stay those of the rest.
        array = np.pad(array, odd, mode="edge")
    parts = [
        array[tuple(slice(start, None, f) for start, f in zip(offset, step, strict=True))]
        for offset in itertools.product(*(range(f) for f in step))
    ]
    return _mean(parts) if method == "mean" else _majority(parts)


def _mean(parts: list[Array]) -> Array:
    """Return the mean of arrays, which are added in their order; whole numbers exactly."""
    dtype = parts[0].dtype
    if dtype.kind == "b":
        return _majority(parts)
    working = np.promote_types(dtype, np.float32) if dtype.kind == "f" else np.dtype(np.float64)
    total = np.zeros(parts[0].shape, working)
    for part in parts:
        total += part
    total /= len(parts)
    return (total if dtype.kind == "f" else np.rint(total)).astype(dtype, copy=False)


def _majority(parts: list[Array]) -> Array:
    """Return the value that most arrays have, the largest of several."""
    best = parts[0].copy()
    if all(np.array_equal(best, part) for part in parts[1:]):
        return best
    most = np.zeros(best.shape, np.uint8)
    for part in parts:
        n_equal = np.zeros(best.shape, np.uint8)
        for other in parts:
            n_equal += part == other
        wins = (n_equal > most) | ((n_equal == most) & (part > best))
        np.copyto(best, part, where=wins)
        np.copyto(most, n_equal, where=wins)
    return best


@dataclass(frozen=True)
class HalvedReader:
    """Reads a volume as its next coarser level; picklable.

    It reads the finer volume chunk by chunk, so that it never holds more than one of its chunks
    beside what it returns.

    Examples
    --------
    >>> from deepict_dask.io.array import ArrayReader
    >>> source = ArrayReader(np.arange(8, dtype="float32").reshape(2, 2, 2))
    >>> HalvedReader(source, "mean", (2, 2, 2)).read(Box.whole((1, 1, 1))).item()
    3.5
    """

    source: VolumeReader
    method: Method
    chunk_shape: Vec
    """Voxels of the source that are read at a time, at least; zyx."""

    @property
    def path(self) -> str:
        """Where the finer volume is."""
        return self.source.path

    @property
    def header(self) -> VolumeHeader:
        """Of the coarser level but for the spacing, which stays that of the finer one."""
        fine = self.source.header
        return replace(fine, shape=_halved(fine.shape, _step(fine.shape)))

    @property
    def piece(self) -> Vec:
        """Voxels of the coarser level that are made at a time."""
        return as_vec([max(_LEAST_PIECE, n // 2) for n in self.chunk_shape])

    def read(self, box: Box) -> Array:
        """Return a new zyx array of a box of the coarser level."""
        out = np.empty(box.shape, self.header.dtype)
        for part in Grid(box.shape, self.piece):
            fine = self._finer(part.write.shift(box.start))
            out[part.write.slices] = halve(self.source.read(fine), self.method)
        return out

    def _finer(self, box: Box) -> Box:
        """Return the voxels of the finer level that a box stands for."""
        shape = self.source.header.shape
        step = _step(shape)
        start = [a * f for a, f in zip(box.start, step, strict=True)]
        stop = [min(b * f, n) for b, f, n in zip(box.stop, step, shape, strict=True)]
        return Box(as_vec(start), as_vec(stop))

    def bytes_needed(self, window_shape: Vec) -> int:
        """Return the peak bytes of reading a box, with what is returned."""
        out = int(np.prod(window_shape))
        fine = 8 * int(np.prod([min(a, b) for a, b in zip(self.piece, window_shape, strict=True)]))
        itemsize = np.dtype(self.header.dtype).itemsize
        # What is read, its chunk as it is decoded, padding; sums of float64, or counts and masks.
        return out * itemsize + fine * (3 * itemsize + 3)
