"""Boxes of a chunked volume: OME-Zarr 0.1 to 0.5 and plain Zarr arrays.

A box is read from the full-resolution level, its axes brought to (c)zyx by name. Zarr returns the
fill value where a chunk's file is missing, which makes an interrupted copy look like a black
region. A missing chunk is therefore an error, but for integers of other programs, which leave out
the empty chunks of masks. Writing is in `ome_zarr_write`.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ShapeMismatchError, VolumeFormatError
from ..core.geometry import Vec, as_vec
from ..core.volume import VolumeHeader
from .description import VolumeDescription, settle_spacing
from .ome_metadata import ZarrImage, find_image
from .ome_zarr_write import ZarrWriter, create_ome_zarr
from .raw import check_box
from .zarr_array import DECODE_ERRORS, open_array

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..core.geometry import Box

__all__ = ["ZarrReader", "ZarrWriter", "count_missing_chunks", "create_ome_zarr", "open_ome_zarr"]

Array = np.ndarray[Any, Any]
CLASS_AXIS_MEANS = "choose one class (--class, or class_name=)"


@dataclass(frozen=True)
class ZarrReader:
    """Reads boxes of a Zarr array; picklable.

    Examples
    --------
    >>> import tempfile
    >>> from deepict_dask.core.geometry import Box
    >>> path = tempfile.mkdtemp() + "/mask.zarr"
    >>> writer = create_ome_zarr(path, VolumeHeader((2, 2, 2), "uint8", 13.48))
    >>> writer.write(Box.whole((2, 2, 2)), np.ones((2, 2, 2), "uint8"))
    >>> description, reader = open_ome_zarr(path)
    >>> reader.read(Box((0, 0, 0), (1, 2, 2))).tolist(), reader.header.voxel_spacing_angstrom
    ([[[1, 1], [1, 1]]], 13.48)
    """

    path: str
    header: VolumeHeader
    """``class_names`` is empty once a class was chosen."""
    array_path: str
    axes: str
    """One letter per stored axis."""
    channel: int | None = None
    """Which class `read` returns; None where the array has no class axis or none was chosen."""
    missing_is_fill: bool = False
    """Missing chunks hold the fill value; otherwise they are damage."""

    @property
    def chunk_shape(self) -> Vec:
        """The smallest box that can be decoded alone, zyx."""
        return self._spatial(open_array(self.array_path).chunks)

    def read(self, box: Box) -> Array:
        """Return a new zyx array of a box.

        Raises
        ------
        ShapeMismatchError
            If the box leaves the volume, or the volume has classes and none was chosen.
        VolumeFormatError
            If a chunk is missing or damaged.
        """
        if self.header.class_names:
            raise ShapeMismatchError(
                f"{self.path}: has classes {', '.join(self.header.class_names)}; {CLASS_AXIS_MEANS}"
            )
        channel = self.channel or 0
        return self._read(box, slice(channel, channel + 1))[0]

    def read_channels(self, box: Box) -> Array:
        """Return a new czyx array of a box, with all classes (one for a volume without classes)."""
        if self.channel is not None:
            return self.read(box)[None]
        return self._read(box, slice(None))

    def _read(self, box: Box, channels: slice) -> Array:
        check_box(self.path, box, self.header.shape)
        by_letter = {"t": slice(0, 1), "c": channels} | dict(zip("zyx", box.slices, strict=True))
        selection = tuple(by_letter[letter] for letter in self.axes)
        array = open_array(self.array_path)
        try:
            if not self.missing_is_fill:
                self._refuse_missing(array, selection)
            data = np.asarray(array[selection])
        except DECODE_ERRORS as error:
            if isinstance(error, VolumeFormatError):
                raise
            raise VolumeFormatError(
                f"{self.path}: a chunk of box {box.start} to {box.stop} cannot be decoded "
                f"({error}); copy the store again, or compute it again"
            ) from error
        return self._as_czyx(data)

    def _as_czyx(self, data: Array) -> Array:
        order = [self.axes.index(letter) for letter in "tczyx" if letter in self.axes]
        ordered = data.transpose(order)
        volumes = ordered[0] if "t" in self.axes else ordered
        czyx = volumes if "c" in self.axes else volumes[None]
        return np.ascontiguousarray(czyx, dtype=self.header.dtype)

    def _refuse_missing(self, array: Any, selection: tuple[slice, ...]) -> None:
        for key in _chunk_keys(array, selection):
            if not _is_there(f"{self.array_path}/{key}"):
                raise VolumeFormatError(
                    f"{self.path}: chunk {key} is missing: the store is not finished or was not "
                    "copied whole; complete it (or, where the program that wrote it leaves out "
                    "empty chunks, deepict-dask convert IN.zarr OUT.zarr --allow-missing-chunks)"
                )

    def _spatial(self, values: tuple[int, ...]) -> Vec:
        return as_vec([values[self.axes.index(letter)] for letter in "zyx"])


def _is_there(path: str) -> bool:
    """Say whether a file is there; a disk that does not answer is no answer."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _chunk_keys(array: Any, selection: tuple[slice, ...]) -> Iterator[str]:
    """Yield the files that hold a selection: shards where there are shards."""
    ranges = []
    for chosen, size, step in zip(
        selection, array.shape, array.shards or array.chunks, strict=True
    ):
        start, stop, _ = chosen.indices(size)
        ranges.append(range(start // step, -(-stop // step)) if stop > start else range(0))
    for index in itertools.product(*ranges):
        yield array.metadata.encode_chunk_key(index)


def count_missing_chunks(reader: ZarrReader) -> tuple[int, int]:
    """Return how many chunk files of a store are missing, and how many there should be."""
    array = open_array(reader.array_path)
    keys = list(_chunk_keys(array, (slice(None),) * array.ndim))
    return sum(not os.path.exists(f"{reader.array_path}/{key}") for key in keys), len(keys)


def open_ome_zarr(
    path: str | os.PathLike[str],
    *,
    class_name: str | None = None,
    allow_missing_chunks: bool = False,
) -> tuple[VolumeDescription, ZarrReader]:
    """Open an OME-Zarr image (0.1 to 0.5) or a plain Zarr array without reading its voxels.

    Parameters
    ----------
    path
        The group, one of its levels, or an array.
    class_name
        The class to read, where there are several.
    allow_missing_chunks
        Read missing chunks as the fill value. That is always done for integers in stores of other
        programs, which leave out the empty chunks of masks.

    Returns
    -------
    tuple
        What the metadata says, and a reader.

    Raises
    ------
    VolumeFormatError
        If the metadata is damaged, the array is no volume, or the class is not there.
    """
    name = os.fspath(path)
    image = find_image(name)
    array = open_array(image.array_path)
    axes = image.axes or _guessed_axes(name, array.shape)
    _check_axes(name, axes, array.shape)
    names = _names(image, axes, array.shape)
    channel = _channel_number(name, names, class_name)
    header = _header(image, axes, array, names if channel is None else ())
    sparse = allow_missing_chunks or (
        not image.every_chunk_written and np.dtype(header.dtype).kind not in "fc"
    )
    reader = ZarrReader(name, header, image.array_path, axes, channel, sparse)
    return _describe(reader, image, array, names), reader


def _guessed_axes(name: str, shape: tuple[int, ...]) -> str:
    if len(shape) not in {3, 4}:
        raise VolumeFormatError(f"{name}: expected 3 axes (zyx) or 4 (czyx), found shape {shape}")
    return "czyx"[-len(shape) :]


def _check_axes(name: str, axes: str, shape: tuple[int, ...]) -> None:
    if len(axes) != len(shape):
        raise VolumeFormatError(f"{name}: axes {axes} do not fit an array of shape {shape}")
    if "t" in axes and shape[axes.index("t")] != 1:
        raise VolumeFormatError(f"{name}: a time series of {shape[axes.index('t')]} volumes")
    if min(shape) < 1:
        raise VolumeFormatError(f"{name}: has no voxels (shape {shape})")


def _names(image: ZarrImage, axes: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Return the class names; numbers where the metadata names none, nothing for one class."""
    count = shape[axes.index("c")] if "c" in axes else 1
    if len(image.class_names) == count and "c" in axes:
        return image.class_names
    return tuple(str(number) for number in range(count)) if count > 1 else ()


def _channel_number(name: str, names: tuple[str, ...], wanted: str | None) -> int | None:
    if wanted is None:
        return 0 if len(names) == 1 else None
    if wanted not in names:
        there = f"has classes {', '.join(names)}" if names else "has no classes"
        raise VolumeFormatError(f"{name}: expected class {wanted}, but it {there}")
    return names.index(wanted)


def _header(image: ZarrImage, axes: str, array: Any, names: tuple[str, ...]) -> VolumeHeader:
    shape = as_vec([array.shape[axes.index(letter)] for letter in "zyx"])
    z, y, x = image.translation
    dtype = np.dtype(array.dtype).newbyteorder("=").name
    spacing = settle_spacing(_triple(image), shape).angstrom
    return VolumeHeader(shape, dtype, spacing, (z, y, x), names)


def _triple(image: ZarrImage) -> tuple[float, float, float] | None:
    if image.scale is None:
        return None
    z, y, x = image.scale
    return (z, y, x)


def _describe(
    reader: ZarrReader, image: ZarrImage, array: Any, names: tuple[str, ...]
) -> VolumeDescription:
    shards = f" in shards of {reader._spatial(array.shards)}" if array.shards else ""
    kind = f"OME-Zarr {image.version}" if image.version else "Zarr"
    return VolumeDescription(
        path=reader.path,
        format=kind,
        shape=reader.header.shape,
        dtype=reader.header.dtype,
        stored_as=f"Zarr v{array.metadata.zarr_format}, chunks of {reader.chunk_shape}{shards}",
        spacing_as_written=_triple(image),
        origin_angstrom=reader.header.origin_angstrom,
        class_names=names,
        oddities=image.oddities,
    ).with_spacing(settle_spacing(_triple(image), reader.header.shape))
