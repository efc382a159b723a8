"""Write OME-Zarr 0.5: axes (c)zyx, scale in Å; one level, or a pyramid of them (`pyramid`).

Two tasks that write into one chunk or shard would corrupt it (zarr-python issues 3514 and 3682,
dask issue 12583), so a writer takes whole ones only. Every chunk is written, also where it is
empty: a chunk that is missing later is damage and is reported, where Zarr would return zeros.

Floats are stored uncompressed, since noise shrinks by a tenth and costs a third of the speed; masks
and labels shrink a hundredfold with zstd.
"""

from __future__ import annotations

import math
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import OutputExistsError, ShapeMismatchError, WorkFailedError
from ..core.geometry import Vec, as_vec, ceil_to
from .disk import full_disk_text, is_full
from .ome_metadata import image_attributes, is_zarr
from .pyramid import level_factors, level_headers
from .raw import check_box
from .raw_write import as_stored
from .zarr_array import open_array

if TYPE_CHECKING:
    from ..core.geometry import Box
    from ..core.volume import VolumeHeader
    from .pyramid import Method

__all__ = [
    "PACKING_BYTES",
    "ZarrWriter",
    "create_ome_zarr",
    "level_writers",
    "resume_ome_zarr",
]

Array = np.ndarray[Any, Any]
PACKING_BYTES = 1 << 18
"""What packing a chunk takes beside its bytes (measured: 16 KiB)."""


@dataclass(frozen=True)
class ZarrWriter:
    """Writes whole chunks (or shards) of an OME-Zarr image; picklable."""

    path: str
    header: VolumeHeader
    write_shape: Vec
    """The shard's shape where there are shards, else the chunk's."""
    level: int = 0
    """Which level is written; ``header`` has its shape."""

    def write(self, box: Box, array: Array) -> None:
        """Write a zyx array (czyx where there are classes) to a box of whole chunks.

        Raises
        ------
        ShapeMismatchError
            If the box cuts a chunk or shard, or the array has another shape.
        VoxelValueError
            If a value does not fit the volume's type.
        WorkFailedError
            If the store cannot be written.
        """
        self._check(box, array)
        data = as_stored(array, self.header.dtype, self.path)
        selection = (slice(None), *box.slices) if self.header.class_names else box.slices
        target = open_array(f"{self.path}/{self.level}", writable=True)
        try:
            target[selection] = data
        except OSError as error:
            if is_full(error):
                raise WorkFailedError(full_disk_text(self.path, self._whole_bytes)) from error
            raise WorkFailedError(
                f"{self.path}: cannot be written ({error.strerror}); "
                "check the disk and run again to continue"
            ) from error
        self._withdraw_if_late()

    def _withdraw_if_late(self) -> None:
        """Remove what was written to a store that is no longer here.

        It was given its name, or removed, while this was written on a host that everybody had given
        up; Zarr then makes the folders of a chunk again.
        """
        if not Path(self.path, "0", "zarr.json").exists():
            self.discard()
            self._remove_emptied()

    def _remove_emptied(self) -> None:
        """Remove the folders of unfinished work that Zarr made again, if nothing else is there."""
        parents = Path(self.path).parents
        partial = next((n for n, p in enumerate(parents) if p.suffix == ".partial"), -1)
        with suppress(OSError):
            for folder in parents[: partial + 1]:
                folder.rmdir()

    def finish(self) -> None:
        """Do nothing: every written chunk is complete."""

    def discard(self) -> None:
        """Remove the store."""
        shutil.rmtree(self.path, ignore_errors=True)

    @property
    def _whole_bytes(self) -> int:
        """Bytes of all voxels; compressed ones take fewer."""
        n = math.prod(self.header.shape) * max(1, len(self.header.class_names))
        return n * np.dtype(self.header.dtype).itemsize

    def _check(self, box: Box, array: Array) -> None:
        shape = self.header.shape
        check_box(self.path, box, shape)
        for start, stop, step, size in zip(
            box.start, box.stop, self.write_shape, shape, strict=True
        ):
            if start % step or (stop % step and stop != size):
                raise ShapeMismatchError(
                    f"{self.path}: box {box.start} to {box.stop} cuts a chunk or shard; "
                    f"write multiples of {self.write_shape} voxels (zyx)"
                )
        classes = len(self.header.class_names)
        expected = (classes, *box.shape) if classes else box.shape
        if array.shape != expected:
            raise ShapeMismatchError(
                f"{self.path}: expected an array of shape {expected}, found {array.shape}"
            )


def create_ome_zarr(
    path: str | os.PathLike[str],
    header: VolumeHeader,
    *,
    chunks: Vec = (128, 128, 128),
    shards: Vec | None = None,
    overwrite: bool = False,
    pyramid: Method | None = None,
) -> ZarrWriter:
    """Make an OME-Zarr 0.5 image to be written box by box.

    Parameters
    ----------
    path
        The folder, usually ending in ``.zarr``.
    header
        Shape (zyx), type, spacing and origin (Å), class names.
    chunks
        Voxels of a chunk, zyx; clipped to the volume.
    shards
        Voxels of a shard, zyx: multiples of the chunk that share one file; None for none.
    overwrite
        Replace a Zarr store of that name.
    pyramid
        Make coarser levels too, to be written with `level_writers`; None for level 0 alone.

    Raises
    ------
    OutputExistsError
        If something is there and may not be replaced.
    ShapeMismatchError
        If a shard is no multiple of a chunk.
    WorkFailedError
        If the place cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from deepict_dask.core.volume import VolumeHeader
    >>> path = tempfile.mkdtemp() + "/scores.zarr"
    >>> header = VolumeHeader((100, 300, 300), "float32", 13.48, class_names=("ribosome", "fas"))
    >>> create_ome_zarr(path, header, shards=(256, 256, 256)).write_shape
    (100, 256, 256)
    """
    name = os.fspath(path)
    chunk, shard = _fitted(name, header.shape, chunks, shards)
    _make_room(Path(name), overwrite=overwrite)
    try:
        _create(name, header, (chunks, shards), pyramid)
    except OSError as error:
        raise WorkFailedError(
            f"{name}: cannot be made ({error.strerror}); choose another place"
        ) from error
    return ZarrWriter(name, header, shard or chunk)


def resume_ome_zarr(
    path: str | os.PathLike[str],
    header: VolumeHeader,
    *,
    chunks: Vec = (128, 128, 128),
    shards: Vec | None = None,
) -> ZarrWriter:
    """Return the writer of a store that `create_ome_zarr` made with the same arguments.

    Examples
    --------
    >>> import tempfile
    >>> from deepict_dask.core.volume import VolumeHeader
    >>> path = tempfile.mkdtemp() + "/scores.zarr"
    >>> header = VolumeHeader((100, 300, 300), "float32", 13.48)
    >>> create_ome_zarr(path, header) == resume_ome_zarr(path, header)
    True
    """
    name = os.fspath(path)
    chunk, shard = _fitted(name, header.shape, chunks, shards)
    return ZarrWriter(name, header, shard or chunk)


def level_writers(
    path: str | os.PathLike[str],
    header: VolumeHeader,
    *,
    chunks: Vec = (128, 128, 128),
    shards: Vec | None = None,
) -> list[ZarrWriter]:
    """Return the writers of all levels of a store made with ``pyramid``, level 0 first.

    Examples
    --------
    >>> import tempfile
    >>> from deepict_dask.core.volume import VolumeHeader
    >>> path = tempfile.mkdtemp() + "/tomo.zarr"
    >>> header = VolumeHeader((100, 300, 300), "float32", 13.48)
    >>> _ = create_ome_zarr(path, header, pyramid="mean")
    >>> [writer.header.shape for writer in level_writers(path, header)]
    [(100, 300, 300), (50, 150, 150), (25, 75, 75)]
    """
    name = os.fspath(path)
    writers = []
    for level, one in enumerate(level_headers(header)):
        chunk, shard = _fitted(name, one.shape, chunks, shards)
        writers.append(ZarrWriter(name, one, shard or chunk, level))
    return writers


def _create(
    name: str, header: VolumeHeader, layout: tuple[Vec, Vec | None], pyramid: Method | None
) -> None:
    import zarr

    count = (len(header.class_names),) if header.class_names else ()
    title = Path(name).name.removesuffix(".partial").removesuffix(".zarr")
    levels = level_headers(header) if pyramid else (header,)
    factors = level_factors(header.shape)[: len(levels)]
    attributes = image_attributes(title, header, factors, pyramid)
    group = zarr.create_group(name, zarr_format=3, attributes=attributes)
    for level, one in enumerate(levels):
        chunk, shard = _fitted(name, one.shape, *layout)
        lead = (1,) * len(count)
        group.create_array(
            str(level),
            shape=(*count, *one.shape),
            dtype=header.dtype,
            chunks=(*lead, *chunk),
            shards=(*lead, *shard) if shard else None,
            compressors=_compressors(header.dtype),
            fill_value=0,
            dimension_names=tuple("czyx" if lead else "zyx"),
        )


def _compressors(dtype: str) -> list[Any]:
    """Return zstd for masks and labels; nothing for floats (measured: 8 % smaller, 3x slower).

    A checksum is the last step: what a disk or a network changed is refused, not computed with.
    """
    from zarr.codecs import BloscCodec, Crc32cCodec

    if np.dtype(dtype).kind == "f":
        return [Crc32cCodec()]
    return [BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle"), Crc32cCodec()]


def _fitted(name: str, shape: Vec, chunks: Vec, shards: Vec | None) -> tuple[Vec, Vec | None]:
    """Return chunk and shard shapes that are no larger than the volume needs."""
    if min(chunks) < 1 or min(shape) < 1:
        raise ShapeMismatchError(f"{name}: chunks {chunks} of volume {shape} must be positive")
    chunk = as_vec([min(c, n) for c, n in zip(chunks, shape, strict=True)])
    if shards is None:
        return chunk, None
    if any(s % c or s < 1 for s, c in zip(shards, chunks, strict=True)):
        raise ShapeMismatchError(f"{name}: shards {shards} must be multiples of chunks {chunks}")
    fitted = [min(s, ceil_to(n, c)) for s, n, c in zip(shards, shape, chunk, strict=True)]
    return chunk, as_vec(fitted)


def _make_room(path: Path, *, overwrite: bool) -> None:
    """Remove an old store; refuse to remove anything that is not one."""
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise OutputExistsError(f"{path}: already exists; choose another name or --overwrite")
    if path.is_dir() and (is_zarr(path) or not any(path.iterdir())):
        shutil.rmtree(path)
        return
    raise OutputExistsError(f"{path}: exists and is no Zarr store; remove it yourself")
