"""Write the channels of one array to several volumes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from ..core.geometry import as_vec

if TYPE_CHECKING:
    import numpy as np

    from ..core.geometry import Box, Vec
    from ..core.volume import VolumeHeader, VolumeWriter

__all__ = ["SplitWriter"]


@dataclass(frozen=True)
class SplitWriter:
    """A volume writer that gives each of several writers its channels of a czyx array.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from deepict_dask.core.geometry import Box
    >>> from deepict_dask.core.volume import VolumeHeader
    >>> from deepict_dask.io.ome_zarr_write import create_ome_zarr
    >>> from deepict_dask.io.volumes import open_volume
    >>> folder = tempfile.mkdtemp()
    >>> header = VolumeHeader((2, 2, 2), "float32", voxel_spacing_angstrom=10.0)
    >>> writers = [create_ome_zarr(f"{folder}/{n}.zarr", header, chunks=(2, 2, 2)) for n in "ab"]
    >>> both = SplitWriter(tuple(writers), (1, 1))
    >>> both.write(Box.whole((2, 2, 2)), np.stack([np.zeros((2, 2, 2)), np.ones((2, 2, 2))]))
    >>> float(open_volume(f"{folder}/b.zarr").read(Box.whole((2, 2, 2))).mean())
    1.0
    """

    writers: tuple[VolumeWriter, ...]
    channels: tuple[int, ...]
    """Channels of each writer; a writer of one channel is given zyx."""

    @property
    def path(self) -> str:
        """Where the first volume is, for messages."""
        return self.writers[0].path

    @property
    def header(self) -> VolumeHeader:
        """Of the first volume."""
        return self.writers[0].header

    @property
    def write_shape(self) -> Vec:
        """The smallest box that is whole chunks of every volume."""
        shapes = zip(*(writer.write_shape for writer in self.writers), strict=True)
        return as_vec([math.lcm(*sizes) for sizes in shapes])

    def write(self, box: Box, array: np.ndarray[Any, Any]) -> None:
        """Write a czyx array to a box of whole chunks, clipped at the volume's end."""
        ends = list(accumulate(self.channels))
        for writer, n, end in zip(self.writers, self.channels, ends, strict=True):
            writer.write(box, array[end - 1] if n == 1 else array[end - n : end])
