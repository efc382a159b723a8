"""A volume seen at another shape, as the published tools do where shapes differ."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.geometry import Box, Vec, as_vec

if TYPE_CHECKING:
    from ..core.volume import VolumeHeader, VolumeReader

__all__ = ["FittedReader"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class FittedReader:
    """A volume seen at another shape: cropped where it is larger, zero where it is smaller.

    DeePiCt crops tomogram and region mask to the smaller of both, from voxel (0, 0, 0). Two volumes
    fitted to one shape can be read alike, block by block.

    Examples
    --------
    >>> from deepict_dask.io.array import ArrayReader
    >>> FittedReader(ArrayReader(np.ones((1, 1, 2))), (1, 1, 3)).read(Box.whole((1, 1, 3))).tolist()
    [[[1.0, 1.0, 0.0]]]
    """

    source: VolumeReader
    shape: Vec

    @property
    def path(self) -> str:
        """Where the volume is."""
        return self.source.path

    @property
    def header(self) -> VolumeHeader:
        """The source's header with the other shape."""
        return replace(self.source.header, shape=self.shape)

    def read(self, box: Box) -> Array:
        """Return a new zyx array of the box."""
        array = np.zeros(box.shape, dtype=self.header.dtype)
        limit = self.source.header.shape
        start = as_vec(np.minimum(box.start, limit))
        there = Box(start, as_vec(np.minimum(box.stop, limit)))
        if there.n_voxels:
            array[there.slices_in(box)] = self.source.read(there)
        return array
