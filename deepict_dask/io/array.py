"""A NumPy array with the face of a volume file.

`ArrayReader` gives an array in memory the face of a volume, for notebooks and tests.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ShapeMismatchError
from ..core.geometry import as_vec
from ..core.volume import VolumeHeader
from .raw import check_box

if TYPE_CHECKING:
    from ..core.geometry import Box

__all__ = ["ArrayReader"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ArrayReader:
    """Reads boxes of a zyx array; picklable, at the price of its voxels.

    Raises
    ------
    ShapeMismatchError
        If the array has not three axes.

    Examples
    --------
    >>> from deepict_dask.core.geometry import Box
    >>> reader = ArrayReader(np.arange(8).reshape(2, 2, 2), voxel_spacing_angstrom=10.0)
    >>> reader.header.dtype, reader.read(Box((1, 1, 0), (2, 2, 2))).tolist()
    ('int64', [[[6, 7]]])
    """

    array: Array = field(repr=False, compare=False)
    """Voxels, zyx."""
    voxel_spacing_angstrom: float | None = None
    path: str = "array in memory"
    origin_angstrom: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        if self.array.ndim != 3:
            raise ShapeMismatchError(
                f"{self.path}: expected three axes (zyx), found shape {self.array.shape}"
            )

    @property
    def header(self) -> VolumeHeader:
        """Shape, type and spacing."""
        return VolumeHeader(
            as_vec(self.array.shape),
            self.array.dtype.newbyteorder("=").name,
            self.voxel_spacing_angstrom,
            self.origin_angstrom,
        )

    def read(self, box: Box) -> Array:
        """Return a copy of a box, zyx."""
        check_box(self.path, box, self.header.shape)
        return np.array(self.array[box.slices], dtype=self.header.dtype, order="C")
