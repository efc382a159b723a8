"""Boxes of a tomogram as a network sees them: (v - mean) / std of the whole, read where they lie.

A box may reach over the end of a part of the tomogram: there the part is mirrored (the last voxel
is not repeated), so that nothing outside the part is ever read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.geometry import Box, Grid, as_vec

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..core.volume import VolumeHeader, VolumeReader

__all__ = ["PIECE", "KeptVolume", "NormalisedTomogram", "read_mirrored"]

Array = np.ndarray[Any, Any]
Floats = np.ndarray[Any, np.dtype[np.float32]]

PIECE = (64, 512, 512)
"""Voxels (zyx) read at a time of a whole tomogram: whole chunks of our stores."""


@dataclass(frozen=True)
class NormalisedTomogram:
    """Reads normalised boxes; picklable.

    Examples
    --------
    >>> from deepict_dask.io.array import ArrayReader
    >>> voxels = NormalisedTomogram(ArrayReader(np.array([[[1, 3]]])), 2.0, 0.5)
    >>> voxels.read(Box.whole((1, 1, 2))).tolist()
    [[[-2.0, 2.0]]]
    """

    reader: VolumeReader
    mean: float
    """Of all its voxels, as prediction measures them."""
    std: float

    @property
    def path(self) -> str:
        """Where the tomogram is."""
        return self.reader.path

    @property
    def header(self) -> VolumeHeader:
        """The tomogram's header, with the type of what is read."""
        return replace(self.reader.header, dtype="float32")

    def read(self, box: Box) -> Floats:
        """Return a box of the tomogram, float32 zyx."""
        from ..segmentation.windows import normalise

        found: Floats = normalise(self.reader.read(box), self.mean, self.std)
        return found


class KeptVolume:
    """A volume that is read whole at the first box, and stays in memory; picklable without it.

    Parameters
    ----------
    source
        Reads the volume, piece by piece.

    Examples
    --------
    >>> from deepict_dask.io.array import ArrayReader
    >>> KeptVolume(ArrayReader(np.array([[[1, 3]]]))).read(Box((0, 0, 1), (1, 1, 2))).tolist()
    [[[3]]]
    """

    def __init__(self, source: VolumeReader) -> None:
        self.source = source
        self._kept: Array | None = None
        self._loading = Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _kept=None, _loading=Lock())

    @property
    def path(self) -> str:
        """Where the volume is."""
        return self.source.path

    @property
    def header(self) -> VolumeHeader:
        """The volume's header."""
        return self.source.header

    def read(self, box: Box) -> Array:
        """Return a box, zyx: a view of what is kept, not to be written to."""
        with self._loading:  # batches are made beside validation
            if self._kept is None:
                self._kept = self._read_whole()
        return self._kept[box.slices]

    def _read_whole(self) -> Array:
        voxels = np.empty(self.header.shape, self.header.dtype)
        for block in Grid(self.header.shape, PIECE):
            voxels[block.write.slices] = self.source.read(block.write)
        voxels.flags.writeable = False
        return voxels


def read_mirrored(read: Callable[[Box], Array], box: Box, part: Box) -> Array:
    """Return a box, mirrored where it leaves a part.

    Parameters
    ----------
    read
        Reads a box inside the part: an array (..., z, y, x).
    box
        What is wanted; it may begin below 0.
    part
        What may be read.

    Examples
    --------
    >>> voxels = np.arange(4).reshape(1, 1, 4)
    >>> part = Box((0, 0, 0), (1, 1, 3))
    >>> read_mirrored(lambda b: voxels[b.slices], Box((0, 0, -2), (1, 1, 6)), part)[0, 0].tolist()
    [2, 1, 0, 1, 2, 1, 0, 1]
    """
    if part.holds(box):
        return read(box)
    ranges = zip(box.start, box.stop, part.start, part.stop, strict=True)
    places = [_mirrored(*numbers) for numbers in ranges]
    needed = Box(
        as_vec([axis.min() for axis in places]), as_vec([axis.max() + 1 for axis in places])
    )
    inside = [axis - start for axis, start in zip(places, needed.start, strict=True)]
    z, y, x = np.ix_(*inside)
    found: Array = read(needed)[..., z, y, x]
    return found


def _mirrored(start: int, stop: int, low: int, high: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the places from ``start`` to ``stop``, folded into ``low`` to ``high``."""
    period = max(1, 2 * (high - low - 1))
    away = np.arange(start - low, stop - low) % period
    return low + np.minimum(away, period - away) if high - low > 1 else 0 * away + low
