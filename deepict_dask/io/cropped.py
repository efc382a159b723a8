"""A volume cut to a smaller shape from its origin, as the published tools do on unequal shapes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from ..core.geometry import Box, Vec
    from ..core.volume import VolumeHeader, VolumeReader

__all__ = ["CroppedReader"]


@dataclass(frozen=True)
class CroppedReader:
    """Reads the corner of a volume that starts at voxel (0, 0, 0).

    Examples
    --------
    >>> import numpy as np
    >>> from deepict_dask.io.array import ArrayReader
    >>> CroppedReader(ArrayReader(np.zeros((4, 4, 4))), (2, 4, 4)).header.shape
    (2, 4, 4)
    """

    whole: VolumeReader
    shape: Vec

    @property
    def path(self) -> str:
        """Where the whole volume is."""
        return self.whole.path

    @property
    def header(self) -> VolumeHeader:
        """The whole volume's header with the smaller shape."""
        return replace(self.whole.header, shape=self.shape)

    def read(self, box: Box) -> np.ndarray[Any, Any]:
        """Return a new zyx array of the box."""
        return self.whole.read(box)
