"""Grow a plain file box by box without ever looking finished.

A writer owns ``PATH.partial``, which has its full size from the start. Boxes are written where
they belong; `RawWriter.finish` completes the header, flushes to disk and renames. A process killed
before that leaves no file under the final name.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import (
    OutputExistsError,
    ShapeMismatchError,
    VoxelValueError,
    WorkFailedError,
)

if TYPE_CHECKING:
    from ..core.geometry import Box, Vec
    from ..core.volume import VolumeHeader
    from .raw import RawLayout

__all__ = ["RawWriter", "allocate", "as_stored", "check_free", "partial_name", "refuse_existing"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class RawWriter:
    """Writes boxes of an uncompressed file; picklable. Call `finish` once, at the end.

    Boxes may have any shape, and boxes that do not overlap share no byte. Tasks on several machines
    should own whole sections, since network file systems exchange pages.
    """

    path: str
    """The final name; until `finish`, the voxels are in ``path + ".partial"``."""
    header: VolumeHeader
    layout: RawLayout

    @property
    def write_shape(self) -> Vec:
        """One whole section."""
        return (1, self.header.shape[1], self.header.shape[2])

    def write(self, box: Box, array: Array) -> None:
        """Write a zyx array to a box.

        Raises
        ------
        ShapeMismatchError
            If the array has another shape than the box.
        VoxelValueError
            If a value does not fit the file's voxel type.
        WorkFailedError
            If the disk is full or the file cannot be written.
        """
        if array.shape != box.shape:
            raise ShapeMismatchError(
                f"{self.path}: an array of {array.shape} voxels was given for a box of {box.shape}"
            )
        self.layout.write(box, as_stored(array, self.layout.dtype, self.path))

    def finish(self) -> None:
        """Complete the header, flush to disk and take the final name."""
        self._complete_header()
        with open(self.layout.file, "rb") as file:
            os.fsync(file.fileno())
        os.replace(self.layout.file, self.path)

    def discard(self) -> None:
        """Remove what was written so far."""
        Path(self.layout.file).unlink(missing_ok=True)

    def _complete_header(self) -> None:
        """Fill in what is known only now; nothing for most formats."""


def partial_name(path: str | os.PathLike[str]) -> str:
    """Return the name of a file that is not finished.

    Examples
    --------
    >>> partial_name("map.mrc")
    'map.mrc.partial'
    """
    return f"{os.fspath(path)}.partial"


def refuse_existing(path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Raise `OutputExistsError` if an output is there and may not be replaced."""
    if not overwrite and os.path.lexists(path):
        raise OutputExistsError(f"{path}: already exists; choose another name or --overwrite")
    if not Path(path).absolute().parent.is_dir():
        raise WorkFailedError(f"{path}: its folder does not exist; make it first")


def check_free(path: str | os.PathLike[str], n_bytes: int) -> None:
    """Raise `WorkFailedError` if the disk cannot hold a file."""
    free = shutil.disk_usage(Path(path).absolute().parent).free
    if free < n_bytes:
        raise WorkFailedError(
            f"{path}: needs {n_bytes:,} bytes, {free:,} are free; free some or choose another place"
        )


def allocate(path: str, head: bytes, n_bytes: int) -> None:
    """Make ``PATH.partial`` with a header and its full size."""
    check_free(path, n_bytes)
    try:
        with open(partial_name(path), "wb") as file:
            file.write(head)
            file.truncate(n_bytes)
    except OSError as error:
        raise WorkFailedError(
            f"{path}: cannot be written ({error.strerror}); choose another place"
        ) from error


def as_stored(array: Array, dtype: str, where: str) -> Array:
    """Return an array in the type of a file, refusing values that would change.

    Floats may lose digits (float64 to float32), never become infinite.

    Raises
    ------
    VoxelValueError
        If a value does not fit.

    Examples
    --------
    >>> as_stored(np.array([0, 200]), "<i2", "map.mrc").tolist()
    [0, 200]
    >>> as_stored(np.array([0, 200]), "|i1", "map.mrc")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    deepict_dask.core.errors.VoxelValueError: map.mrc: values 0 to 200 do not fit int8; ...
    """
    target = np.dtype(dtype)
    if array.size and not np.can_cast(array.dtype, target, "safe") and not _fits(array, target):
        low, high = array.min(), array.max()
        raise VoxelValueError(
            f"{where}: values {low} to {high} do not fit {target.name}; choose another voxel type"
        )
    return array.astype(target, copy=False)


def _fits(array: Array, target: np.dtype[Any]) -> bool:
    if target.kind in "iu":
        return _fits_integer(array, target)
    limit = float(np.finfo(target).max)
    if array.dtype.kind in "iu":
        limit = min(limit, 2.0 ** (np.finfo(target).nmant + 1))
    finite = array[np.isfinite(array)]
    return not finite.size or (finite.min() >= -limit and finite.max() <= limit)


def _fits_integer(array: Array, target: np.dtype[Any]) -> bool:
    if array.dtype.kind == "f" and not np.array_equal(array, np.trunc(array)):
        return False
    info = np.iinfo(target)
    return bool(array.min() >= info.min and array.max() <= info.max)
