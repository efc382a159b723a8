"""Arrays that tasks hand to one another through a folder, and that nobody sees afterwards.

A task that reads from one scratch array writes to another: it may be run twice, where its worker
dies, and must not find its own result as its input.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ..core.errors import WorkFailedError
from ..core.geometry import Grid
from ..io.disk import full_disk_text, is_full
from ..io.zarr_array import DECODE_ERRORS, open_array
from .patience import patiently

if TYPE_CHECKING:
    from ..core.geometry import Box, Vec

__all__ = ["ScratchArray"]


@dataclass(frozen=True)
class ScratchArray:
    """An uncompressed Zarr array of floats or complex numbers; picklable.

    Tasks write boxes of whole chunks and read any box.

    Examples
    --------
    >>> import tempfile
    >>> from deepict_dask.core.geometry import Box
    >>> path = tempfile.mkdtemp() + "/a"
    >>> array = ScratchArray(path, (1, 3, 4), (1, 2, 4), "complex64").create()
    >>> array.write(Box((0, 2, 0), (1, 3, 4)), np.ones((1, 1, 4)))
    >>> complex(array.read(Box((0, 2, 1), (1, 3, 2)))[0, 0, 0])
    (1+0j)
    """

    path: str
    shape: Vec
    chunk: Vec
    dtype: str

    @property
    def n_bytes(self) -> int:
        """Bytes on disk; chunks at the far ends are stored whole."""
        return Grid(self.shape, self.chunk).n_blocks * self.chunk_bytes

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk."""
        return math.prod(self.chunk) * np.dtype(self.dtype).itemsize

    def create(self) -> Self:
        """Make the array, in the place of one that an earlier attempt left."""
        import zarr

        try:
            zarr.create_array(
                self.path,
                shape=self.shape,
                chunks=self.chunk,
                dtype=self.dtype,
                compressors=None,
                fill_value=np.nan,
                overwrite=True,
            )
        except OSError as error:
            raise self._failed("made", error) from error
        return self

    def write(self, box: Box, array: Any) -> None:
        """Write a box of whole chunks (fewer at the far end).

        Raises
        ------
        WorkFailedError
            The disk is full or gone.
        """
        target = open_array(self.path, writable=True)
        try:
            patiently(lambda: target.__setitem__(box.slices, array), f"writing {self.path}")
        except OSError as error:
            if is_full(error):
                raise WorkFailedError(full_disk_text(self.path, self.n_bytes)) from error
            raise self._failed("written", error) from error

    def read(self, box: Box) -> np.ndarray[Any, Any]:
        """Return a new array of a box.

        Raises
        ------
        WorkFailedError
            Some of it was never written, or is gone.
        """
        try:
            data = np.asarray(
                patiently(lambda: open_array(self.path)[box.slices], f"reading {self.path}")
            )
        except DECODE_ERRORS as error:
            raise self._failed("read", error) from error
        # What was not written reads as NaN, which no finite tomogram gives.
        if np.isnan(data[tuple(slice(-a % c, None, c) for a, c in self._steps(box))]).any():
            raise self._failed("read", "a part of it is missing")
        return data

    def _steps(self, box: Box) -> list[tuple[int, int]]:
        """Return where a box starts and the chunk's size on each axis."""
        return [*zip(box.start, self.chunk, strict=True)]

    def _failed(self, what: str, why: object) -> WorkFailedError:
        reason = getattr(why, "strerror", None) or why
        return WorkFailedError(
            f"{self.path}: expected scratch space, which cannot be {what} ({reason}); "
            "free some space and run again"
        )

    def remove(self) -> None:
        """Give the disk back."""
        shutil.rmtree(self.path, ignore_errors=True)
