"""What is known of a volume, and how a task reads and writes a box of it.

The two protocols state who does what. A reader and a writer are small picklable values (a path and
a few numbers); they open the file in the process that uses them. ``read`` returns a new array that
belongs to the caller. ``write`` takes whole chunks (or shards) only, so that writers need no locks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from .geometry import Box, Vec

__all__ = ["VolumeHeader", "VolumeReader", "VolumeWriter"]


@dataclass(frozen=True)
class VolumeHeader:
    """What is known of a volume without reading its voxels.

    Examples
    --------
    >>> header = VolumeHeader(shape=(4, 5, 6), dtype="float32", voxel_spacing_angstrom=13.48)
    >>> header.n_voxels, header.n_bytes
    (120, 480)
    """

    shape: Vec
    """Voxels on z, y, x."""
    dtype: str
    """NumPy name of the voxel type, native byte order."""
    voxel_spacing_angstrom: float | None = None
    """Edge of a voxel in Å, the same on three axes; None where the file does not say."""
    origin_angstrom: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Position of voxel (0, 0, 0) in Å, zyx."""
    class_names: tuple[str, ...] = ()
    """Semantic classes of a multi-class score map, in channel order; empty for one volume."""

    @property
    def n_voxels(self) -> int:
        """Number of voxels of one channel."""
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Bytes of all channels, uncompressed."""
        return self.n_voxels * np.dtype(self.dtype).itemsize * max(1, len(self.class_names))


class VolumeReader(Protocol):
    """Reads boxes of one volume; picklable."""

    @property
    def path(self) -> str:
        """Where the volume is, for messages and hashes."""
        ...

    @property
    def header(self) -> VolumeHeader:
        """Shape, type and spacing."""
        ...

    def read(self, box: Box) -> np.ndarray[Any, Any]:
        """Return a new zyx array of the box, in the volume's own dtype."""
        ...


class VolumeWriter(Protocol):
    """Writes boxes of one volume; picklable."""

    @property
    def path(self) -> str:
        """Where the volume is."""
        ...

    @property
    def header(self) -> VolumeHeader:
        """Shape, type and spacing."""
        ...

    @property
    def write_shape(self) -> Vec:
        """The smallest box a task may own: a chunk, or a shard where there are shards."""
        ...

    def write(self, box: Box, array: np.ndarray[Any, Any]) -> None:
        """Write a zyx (or czyx) array to a box of whole chunks, clipped at the volume's end."""
        ...
