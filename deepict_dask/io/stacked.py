"""Several region masks read as one volume of bits.

Bit i of a voxel says whether it lies in region i, so that whatever reads a score map and its
regions sees two windows, however many regions there are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ConfigError, ShapeMismatchError

if TYPE_CHECKING:
    from ..core.geometry import Box
    from ..core.volume import VolumeHeader, VolumeReader

__all__ = ["MAX_REGIONS", "StackedMasks"]

MAX_REGIONS = 64
"""The bits of the widest unsigned integer."""


@dataclass(frozen=True)
class StackedMasks:
    """Masks of one shape as one volume of uint8 (or uint16, 32, 64): bit i is mask i, non-zero.

    Raises
    ------
    ConfigError
        There are no masks, or more than 64.
    ShapeMismatchError
        The masks differ in shape.

    Examples
    --------
    >>> from deepict_dask.core.geometry import Box
    >>> from deepict_dask.io.array import ArrayReader
    >>> masks = [ArrayReader(np.array([[values]])) for values in ([0.0, 0.5, 2.0], [7, 0, 1])]
    >>> stacked = StackedMasks(tuple(masks))
    >>> stacked.header.dtype, stacked.read(Box.whole((1, 1, 3))).tolist()
    ('uint8', [[[2, 1, 3]]])
    """

    masks: tuple[VolumeReader, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.masks) <= MAX_REGIONS:
            raise ConfigError(
                f"regions: expected 1 to {MAX_REGIONS} masks, found {len(self.masks)}; "
                "merge some of them, or pick in two runs"
            )
        first = self.masks[0].header.shape
        for mask in self.masks[1:]:
            if mask.header.shape != first:
                raise ShapeMismatchError(
                    f"{mask.path}: expected a mask of the shape of {self.masks[0].path}, {first} "
                    f"(zyx), found {mask.header.shape}; give masks of one tomogram and binning"
                )

    @property
    def path(self) -> str:
        """Where the masks are."""
        return ", ".join(mask.path for mask in self.masks)

    @property
    def header(self) -> VolumeHeader:
        """The first mask's header with the type of the bits."""
        width = next(bits for bits in (8, 16, 32, 64) if bits >= len(self.masks))
        return replace(self.masks[0].header, dtype=f"uint{width}", class_names=())

    @property
    def read_bytes(self) -> int:
        """Bytes per voxel at the peak of reading: the bits, one mask as stored, what is inside."""
        widest = max(np.dtype(mask.header.dtype).itemsize for mask in self.masks)
        bits = np.dtype(self.header.dtype).itemsize
        return bits + 2 * widest + 1

    def read(self, box: Box) -> np.ndarray[Any, Any]:
        """Return a new zyx array of the box: bit i is set where mask i is not zero."""
        bits = np.zeros(box.shape, self.header.dtype)
        for number, mask in enumerate(self.masks):
            bit = bits.dtype.type(1 << number)
            for plane, voxels in zip(bits, mask.read(box), strict=True):
                np.bitwise_or(plane, bit, out=plane, where=voxels != 0)
        return bits
