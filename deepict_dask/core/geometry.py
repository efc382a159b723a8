"""Chunk geometry as plain immutable values.

Which voxels does one task read, and which does it write?

1. A `Box` is a half-open range of voxels on the axes z, y, x.
2. A `Block` pairs the box a task reads with the box it writes; the second lies in the first.
3. A `Grid` cuts a volume into blocks whose write boxes tile it exactly once. Write boxes are whole
   chunks (or whole shards) of the store, so two tasks never touch one file.
4. For a network that pools, read boxes (windows) start on multiples of ``align`` and all have one
   shape: at the volume's borders they are moved inwards, so that the volume's edge is the window's.

The one shortcut: a window may be clipped by the far end of the volume when the volume's size is no
multiple of ``align``; the kernel pads it there.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .errors import ShapeMismatchError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Block", "Box", "Grid", "Vec", "as_vec", "ceil_to", "floor_to"]

Vec = tuple[int, int, int]
"""Three integers on the axes z, y, x."""


def as_vec(values: Any) -> Vec:
    """Return three integers from an integer or a sequence of three.

    Examples
    --------
    >>> as_vec(4)
    (4, 4, 4)
    """
    if isinstance(values, int):
        return (values, values, values)
    z, y, x = (int(value) for value in values)
    return (z, y, x)


def floor_to(value: int, multiple: int) -> int:
    """Return the largest multiple that is not above ``value``.

    Examples
    --------
    >>> floor_to(-3, 4), floor_to(7, 4)
    (-4, 4)
    """
    return value // multiple * multiple


def ceil_to(value: int, multiple: int) -> int:
    """Return the smallest multiple that is not below ``value``.

    Examples
    --------
    >>> ceil_to(5, 4), ceil_to(8, 4)
    (8, 8)
    """
    return -(-value // multiple) * multiple


@dataclass(frozen=True, order=True)
class Box:
    """A half-open range of voxels on the axes z, y, x.

    Examples
    --------
    >>> box = Box((0, 2, 4), (4, 6, 8))
    >>> box.shape, box.n_voxels
    ((4, 4, 4), 64)
    >>> box.grow((1, 1, 1), within=(5, 5, 9))
    Box(start=(0, 1, 3), stop=(5, 5, 9))
    """

    start: Vec
    """First voxel on each axis."""
    stop: Vec
    """One past the last voxel on each axis."""

    def __post_init__(self) -> None:
        if any(b < a for a, b in zip(self.start, self.stop, strict=True)):
            raise ShapeMismatchError(f"box stops before it starts: {self.start} to {self.stop}")

    @classmethod
    def whole(cls, shape: Vec) -> Box:
        """Return the box of a whole volume."""
        return cls((0, 0, 0), as_vec(shape))

    @property
    def shape(self) -> Vec:
        """Number of voxels on each axis."""
        return as_vec([b - a for a, b in zip(self.start, self.stop, strict=True)])

    @property
    def n_voxels(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The box as three slices, for an array that starts at voxel (0, 0, 0)."""
        z, y, x = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return (z, y, x)

    def slices_in(self, outer: Box) -> tuple[slice, slice, slice]:
        """Return three slices that cut this box out of an array covering ``outer``."""
        return self.shift(as_vec([-a for a in outer.start])).slices

    def shift(self, offset: Vec) -> Box:
        """Return the box moved by an offset in voxels."""
        return Box(
            as_vec([a + d for a, d in zip(self.start, offset, strict=True)]),
            as_vec([b + d for b, d in zip(self.stop, offset, strict=True)]),
        )

    def grow(self, halo: Vec, within: Vec) -> Box:
        """Return the box grown by a halo on every side, clipped to a volume's shape."""
        return Box(
            as_vec([max(0, a - h) for a, h in zip(self.start, halo, strict=True)]),
            as_vec([min(n, b + h) for b, h, n in zip(self.stop, halo, within, strict=True)]),
        )

    def holds(self, other: Box) -> bool:
        """Say whether another box lies inside this one."""
        return all(a <= c for a, c in zip(self.start, other.start, strict=True)) and all(
            b >= d for b, d in zip(self.stop, other.stop, strict=True)
        )


@dataclass(frozen=True)
class Block:
    """What one task reads and what it writes.

    Examples
    --------
    >>> import numpy as np
    >>> block = Block(0, (0, 0, 0), read=Box((0, 0, 0), (6, 6, 6)), write=Box((0, 0, 0), (4, 4, 4)))
    >>> block.crop(np.zeros((6, 6, 6))).shape
    (4, 4, 4)
    """

    number: int
    """Place in the grid's raster order."""
    index: Vec
    """Place in the grid on each axis."""
    read: Box
    write: Box

    def __post_init__(self) -> None:
        if not self.read.holds(self.write):
            raise ShapeMismatchError(f"block reads {self.read} but writes outside it: {self.write}")

    def crop(self, array: Any) -> Any:
        """Cut the write box out of an array over the read box; leading axes are kept."""
        return array[(..., *self.write.slices_in(self.read))]


@dataclass(frozen=True)
class Grid:
    """Blocks that tile a volume.

    Examples
    --------
    >>> grid = Grid(shape=(10, 8, 8), write_shape=(4, 8, 8), halo=(2, 0, 0))
    >>> [block.write.start[0] for block in grid], grid.n_blocks
    ([0, 4, 8], 3)
    >>> grid[1].read
    Box(start=(2, 0, 0), stop=(10, 8, 8))
    """

    shape: Vec
    """Voxels of the volume."""
    write_shape: Vec
    """Voxels each block writes (fewer at the far end): whole chunks or whole shards."""
    halo: Vec = (0, 0, 0)
    """Extra voxels read on every side; derived from the operation."""
    align: int = 1
    """Window starts are multiples of this (2**depth of a U-Net)."""
    one_shape: bool = False
    """Give all windows one shape, moved inwards at the borders."""

    def __post_init__(self) -> None:
        for name in ("shape", "write_shape"):
            if min(getattr(self, name)) < 1:
                raise ShapeMismatchError(f"grid: {name} {getattr(self, name)} must be positive")
        if min(self.halo) < 0 or self.align < 1:
            raise ShapeMismatchError(f"grid: halo {self.halo}, align {self.align} out of range")

    def __len__(self) -> int:
        return self.n_blocks

    def __iter__(self) -> Iterator[Block]:
        for index in itertools.product(*(range(n) for n in self.counts)):
            yield self.at(as_vec(index))

    def __getitem__(self, number: int) -> Block:
        if not 0 <= number < self.n_blocks:
            raise IndexError(number)
        _, ny, nx = self.counts
        return self.at((number // (ny * nx), number // nx % ny, number % nx))

    @cached_property
    def counts(self) -> Vec:
        """Number of blocks on each axis."""
        return as_vec([-(-n // w) for n, w in zip(self.shape, self.write_shape, strict=True)])

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return math.prod(self.counts)

    @cached_property
    def window_shape(self) -> Vec:
        """The one shape of all windows (of the largest window without ``one_shape``).

        It may exceed the volume by less than ``align``: the kernel pads there. A block at an end of
        the volume needs one halo only, so two blocks on an axis have smaller windows than three.
        """
        sides = []
        for axis, n_blocks in enumerate(self.counts):
            needed = (self._needed(axis, i) for i in range(n_blocks))
            sides.append(max(high - low for low, high in needed))
        return as_vec(sides)

    def _needed(self, axis: int, i: int) -> tuple[int, int]:
        """Return where what a block needs starts and stops on one axis, aligned."""
        size, step, halo = self.shape[axis], self.write_shape[axis], self.halo[axis]
        low = floor_to(max(0, i * step - halo), self.align)
        high = ceil_to(min(size, (i + 1) * step + halo), self.align)
        return low, high

    def at(self, index: Vec) -> Block:
        """Return the block at a place in the grid."""
        _, ny, nx = self.counts
        number = (index[0] * ny + index[1]) * nx + index[2]
        z, y, x = (self._axis(axis, i) for axis, i in enumerate(index))
        write = Box((z[0], y[0], x[0]), (z[1], y[1], x[1]))
        read = Box((z[2], y[2], x[2]), (z[3], y[3], x[3]))
        return Block(number, index, read, write)

    def _axis(self, axis: int, i: int) -> tuple[int, int, int, int]:
        """Return write start, write stop, read start and read stop on one axis."""
        size, step = self.shape[axis], self.write_shape[axis]
        low, high = self._needed(axis, i)
        if self.one_shape:
            window = self.window_shape[axis]
            low = max(0, min(low, ceil_to(size, self.align) - window))
            high = low + window
        return i * step, min(size, (i + 1) * step), low, min(size, high)
