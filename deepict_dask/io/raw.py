"""Read and write a box of an uncompressed file without touching the rest.

A raw file is a prefix (the header) and then voxels in C order. A box is read section by section:
the rows of one section are fetched with one positioned read of at most 8 MiB, and the columns are
cut from that buffer. Memory stays at the box plus one buffer, whatever the size of the file.

Positioned reads are used rather than a memory map because mapped pages count as the reader's
memory, and because a file that shrinks or a disk that fills up raises an error instead of killing
the process with a bus error.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ShapeMismatchError, VolumeFormatError, WorkFailedError
from ..core.geometry import Box, Vec, as_vec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..core.volume import VolumeHeader

__all__ = ["RawLayout", "RawReader", "check_box", "write_all"]

Array = np.ndarray[Any, Any]
BUFFER_BYTES = 8 << 20
GAP_BYTES = 32 << 10
"""Up to this much of a row is read for nothing rather than with a call for each row (measured: a
64^3 box of rows of 1024 voxels takes 2.7 ms so, 9.6 ms row by row)."""


def check_box(path: str, box: Box, shape: Vec) -> None:
    """Refuse a box that leaves the volume.

    Parameters
    ----------
    path
        Where the volume is, for the message.
    box
        The box, voxels, zyx.
    shape
        The volume's voxels on z, y, x.

    Raises
    ------
    ShapeMismatchError
        If the box leaves the volume.

    Examples
    --------
    >>> check_box("tomo.mrc", Box((0, 0, 0), (2, 2, 2)), (2, 2, 2))
    """
    if not Box.whole(shape).holds(box):
        raise ShapeMismatchError(
            f"{path}: box {box.start} to {box.stop} leaves the volume of {shape} voxels (zyx)"
        )


@dataclass(frozen=True)
class RawLayout:
    """Where the voxels of an uncompressed file lie; picklable.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "voxels.raw"
    >>> _ = path.write_bytes(b"head" + np.arange(24, dtype=">i2").tobytes())
    >>> layout = RawLayout(str(path), offset=4, dtype=">i2", file_shape=(2, 3, 4))
    >>> layout.read(Box((1, 0, 2), (2, 2, 4)))
    array([[[14, 15],
            [18, 19]]], dtype=int16)
    """

    file: str
    """The plain file."""
    offset: int
    """Bytes before the first voxel."""
    dtype: str
    """NumPy type with its byte order, as stored."""
    file_shape: Vec
    """Voxels on the file's axes, slowest first."""
    axes: Vec = (0, 1, 2)
    """For z, y and x: which of the file's axes it is."""

    @property
    def shape(self) -> Vec:
        """Voxels on z, y, x."""
        return as_vec([self.file_shape[axis] for axis in self.axes])

    @property
    def n_bytes(self) -> int:
        """Bytes of the whole file."""
        return self.offset + int(np.prod(self.file_shape, dtype=object)) * self._itemsize

    @property
    def native(self) -> str:
        """The voxel type in this machine's byte order."""
        return np.dtype(self.dtype).newbyteorder("=").name

    @property
    def _itemsize(self) -> int:
        return np.dtype(self.dtype).itemsize

    def read(self, box: Box) -> Array:
        """Return a new zyx array of a box, in native byte order.

        Raises
        ------
        ShapeMismatchError
            If the box leaves the volume.
        VolumeFormatError
            If the file is gone or ends before the box.
        """
        check_box(self.file, box, self.shape)
        stored = self._on_file_axes(box)
        try:
            with open(self.file, "rb", buffering=0) as file:
                array = self._read_sections(file.fileno(), stored)
        except OSError as error:
            raise VolumeFormatError(f"{self.file}: cannot be read ({error.strerror})") from error
        zyx = array.transpose(self.axes)
        return np.ascontiguousarray(zyx, dtype=self.native)

    def write(self, box: Box, array: Array) -> None:
        """Write a zyx array to a box; other bytes stay as they are."""
        check_box(self.file, box, self.shape)
        stored = self._on_file_axes(box)
        order = np.argsort(self.axes)
        data = np.ascontiguousarray(array.transpose(order), dtype=self.dtype)
        try:
            with open(self.file, "r+b", buffering=0) as file:
                for run, place in self._runs(stored):
                    write_all(file.fileno(), data[run], place)
        except OSError as error:
            raise WorkFailedError(
                f"{self.file}: cannot be written ({error.strerror}); free some space or choose "
                "another place"
            ) from error

    def _on_file_axes(self, box: Box) -> Box:
        """Return the box on the file's axes."""
        order = [self.axes.index(axis) for axis in range(3)]
        return Box(
            as_vec([box.start[axis] for axis in order]), as_vec([box.stop[axis] for axis in order])
        )

    def _place(self, section: int, row: int, column: int) -> int:
        """Return the byte at which a voxel lies."""
        _, rows, columns = self.file_shape
        return self.offset + ((section * rows + row) * columns + column) * self._itemsize

    def _read_sections(self, fd: int, box: Box) -> Array:
        out = np.empty(box.shape, self.dtype)
        step = self._rows_per_read(box)
        for section in range(out.shape[0]):
            for row in range(0, out.shape[1], step):
                self._read_rows(fd, box, out[section, row : row + step], (section, row))
        return out

    def _rows_per_read(self, box: Box) -> int:
        """Return how many rows to fetch at once; one where what lies between costs more."""
        width, columns = box.shape[2], self.file_shape[2]
        if (columns - width) * self._itemsize > GAP_BYTES:
            return 1
        return max(1, BUFFER_BYTES // (columns * self._itemsize))

    def _read_rows(self, fd: int, box: Box, out: Array, at: tuple[int, int]) -> None:
        """Fill ``out`` (rows, columns) with the rows of a box that start at a section and row."""
        if not out.size:
            return
        place = self._place(box.start[0] + at[0], box.start[1] + at[1], box.start[2])
        rows, width = out.shape
        columns = self.file_shape[2]
        if rows == 1 or width == columns:
            self._fill(fd, out, place)
            return
        buffer = np.empty((rows, columns), self.dtype)
        self._fill(fd, buffer.reshape(-1)[: (rows - 1) * columns + width], place)
        out[...] = buffer[:, :width]

    def _fill(self, fd: int, out: Array, place: int) -> None:
        """Fill a contiguous array from the file."""
        view = memoryview(out.reshape(-1).view(np.uint8).data)
        while view:
            count = os.preadv(fd, [view], place)
            if count == 0:
                raise VolumeFormatError(
                    f"{self.file}: expected {self.n_bytes:,} bytes, found "
                    f"{os.fstat(fd).st_size:,}; the file was cut short, copy it again"
                )
            view, place = view[count:], place + count

    def _runs(self, box: Box) -> Iterator[tuple[Any, int]]:
        """Yield indices into a box's array whose voxels are contiguous in the file."""
        _, rows, columns = self.file_shape
        z0, y0, x0 = box.start
        whole_rows = box.shape[2] == columns
        if whole_rows and box.shape[1] == rows:
            yield slice(None), self._place(z0, 0, 0)
        elif whole_rows:
            yield from ((z, self._place(z0 + z, y0, 0)) for z in range(box.shape[0]))
        else:
            for z, y in np.ndindex(box.shape[:2]):
                yield (z, y), self._place(z0 + z, y0 + y, x0)


@dataclass(frozen=True)
class RawReader:
    """Reads boxes of an uncompressed file; picklable."""

    path: str
    """The file the user named (the packed one, where it had to be unpacked)."""
    header: VolumeHeader
    layout: RawLayout
    """Where the voxels lie."""

    def read(self, box: Box) -> Array:
        """Return a new zyx array of a box, in native byte order."""
        return self.layout.read(box)


def write_all(fd: int, array: Array, place: int) -> None:
    """Write a contiguous array's bytes at a place of an open file, all of them."""
    view = memoryview(array.reshape(-1).view(np.uint8).data)
    while view:
        count = os.pwrite(fd, view, place)
        view, place = view[count:], place + count
