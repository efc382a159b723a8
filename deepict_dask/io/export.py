"""Stream a volume of any format into a file of any format.

1. Choose the voxel type (for MRC integers: in one pass that finds the range).
2. Make ``PATH.partial``.
3. Copy boxes no larger than the memory allowed: whole chunks of the source where it is chunked, so
   that no chunk is decoded twice; whole chunks or shards of the target where that is chunked.
4. Complete the header and rename. Until then the final name does not exist.
"""

from __future__ import annotations

import itertools
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import OutputExistsError, VolumeFormatError
from ..core.geometry import Box, Vec, as_vec, ceil_to
from .em import create_em
from .endings import kind_of
from .mrc_write import SAME, create_mrc, mrc_dtype
from .ome_metadata import is_zarr
from .ome_zarr_write import ZarrWriter, create_ome_zarr
from .raw_write import RawWriter, partial_name, refuse_existing
from .tiff import create_tiff

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..core.volume import VolumeHeader, VolumeReader

__all__ = ["boxes_of", "create_volume", "export_volume"]

Array = np.ndarray[Any, Any]
CHUNKS: Vec = (128, 128, 128)


def create_volume(
    path: str | os.PathLike[str],
    header: VolumeHeader,
    *,
    chunks: Vec = CHUNKS,
    shards: Vec | None = None,
    overwrite: bool = False,
) -> RawWriter | ZarrWriter:
    """Make a volume to be written box by box; its ending picks the format.

    Parameters
    ----------
    path
        ``.zarr``, or ``.mrc`` and its other endings, ``.em``, ``.tif``.
    header
        Shape (zyx), type, spacing and origin (Å), class names (Zarr only).
    chunks, shards
        Of a Zarr store, zyx.
    overwrite
        Replace what is there.

    Returns
    -------
    VolumeWriter
        Call its ``finish()`` once at the end: only then do files (not Zarr) take their final name.

    Raises
    ------
    VolumeFormatError
        If no format has this ending.
    OutputExistsError
        If the output is there and may not be replaced.

    Examples
    --------
    >>> import tempfile
    >>> from deepict_dask.core.volume import VolumeHeader
    >>> header = VolumeHeader((64, 96, 96), "uint8", 13.48)
    >>> create_volume(tempfile.mkdtemp() + "/mask.zarr", header, chunks=(32, 32, 32)).write_shape
    (32, 32, 32)
    """
    kind = kind_of(path)
    if kind == "zarr":
        return create_ome_zarr(path, header, chunks=chunks, shards=shards, overwrite=overwrite)
    makers = {"mrc": create_mrc, "em": create_em, "tiff": create_tiff}
    if kind not in makers:
        raise VolumeFormatError(
            f"{path}: no volume can be written with this ending; use .zarr, .mrc, .em or .tif"
        )
    return makers[kind](path, header, overwrite=overwrite)


def export_volume(
    reader: VolumeReader,
    path: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    overwrite: bool = False,
    slab_bytes: int = 64 << 20,
    chunks: Vec = CHUNKS,
    shards: Vec | None = None,
) -> VolumeHeader:
    """Copy a volume into a file; its ending picks the format.

    Parameters
    ----------
    reader
        The volume.
    path
        The file to make; it appears when it is complete.
    dtype
        NumPy name of the voxel type to write; the volume's own, or the smallest that the format has
        for it, when None.
    overwrite
        Replace what is there.
    slab_bytes
        Bytes of a box that is copied at once; one chunk or shard is the least.
    chunks, shards
        Of a Zarr store, zyx.

    Returns
    -------
    VolumeHeader
        Shape, type and spacing as written.

    Raises
    ------
    VolumeFormatError
        If no format has this ending, or the source is damaged.
    VoxelValueError
        If values do not fit the voxel type.
    OutputExistsError
        If the output is there and may not be replaced.

    Examples
    --------
    >>> import tempfile, mrcfile
    >>> from deepict_dask.io.array import ArrayReader
    >>> path = tempfile.mkdtemp() + "/labels.mrc"
    >>> export_volume(ArrayReader(np.full((2, 3, 4), 300), 13.48), path).dtype
    'int16'
    >>> mrcfile.read(path).max()
    np.int16(300)
    """
    name = os.fspath(path)
    _refuse(name, overwrite=overwrite)
    stored = _stored_type(reader, name, dtype, slab_bytes)
    writer = _create(name, replace(reader.header, dtype=stored), chunks, shards)
    _copy(reader, writer, name, slab_bytes)
    return writer.header


def _copy(reader: VolumeReader, writer: RawWriter | ZarrWriter, name: str, slab_bytes: int) -> None:
    """Write all boxes and give the file its name; leave nothing where that does not succeed."""
    try:
        grain = writer.write_shape if isinstance(writer, ZarrWriter) else _grain(reader)
        for box in boxes_of(reader.header, grain, slab_bytes):
            writer.write(box, _read(reader, box))
        _finish(writer, name)
    except BaseException:  # an interrupted copy leaves nothing behind either
        writer.discard()
        raise


def _refuse(name: str, *, overwrite: bool) -> None:
    refuse_existing(name, overwrite=overwrite)
    if os.path.isdir(name) and not is_zarr(Path(name)):
        raise OutputExistsError(f"{name}: is a folder; choose another name")


def _create(
    name: str, header: VolumeHeader, chunks: Vec, shards: Vec | None
) -> RawWriter | ZarrWriter:
    """Make the unfinished output; a half-written one of the same name is replaced."""
    if kind_of(name) != "zarr":
        return create_volume(name, header, overwrite=True)
    partial = partial_name(name)
    shutil.rmtree(partial, ignore_errors=True)
    return create_ome_zarr(partial, header, chunks=chunks, shards=shards)


def _finish(writer: RawWriter | ZarrWriter, name: str) -> None:
    if isinstance(writer, RawWriter):
        writer.finish()
        return
    if os.path.lexists(name):
        shutil.rmtree(name)
    os.replace(writer.path, name)


def _read(reader: VolumeReader, box: Box) -> Array:
    """Read a box, of all classes where there are several."""
    if reader.header.class_names:
        channels: Array = reader.read_channels(box)  # type: ignore[attr-defined]
        return channels
    return reader.read(box)


def _grain(reader: VolumeReader) -> Vec:
    """Return the source's chunk, or one row."""
    return getattr(reader, "chunk_shape", (1, 1, reader.header.shape[2]))


def _stored_type(reader: VolumeReader, name: str, dtype: str | None, slab_bytes: int) -> str:
    """Return the type to write; for MRC, integers without a mode of their own need the range."""
    wanted = np.dtype(dtype or reader.header.dtype)
    needs_range = wanted.kind in "iu" and wanted.name not in SAME
    if kind_of(name) != "mrc" or not needs_range or reader.header.class_names:
        return wanted.name
    low, high = _range(reader, slab_bytes)
    return mrc_dtype(wanted.name, low, high)


def _range(reader: VolumeReader, slab_bytes: int) -> tuple[float, float]:
    ends = [_ends(reader, box) for box in boxes_of(reader.header, _grain(reader), slab_bytes)]
    return min(low for low, _ in ends), max(high for _, high in ends)


def _ends(reader: VolumeReader, box: Box) -> tuple[float, float]:
    voxels = reader.read(box)
    return float(voxels.min()), float(voxels.max())


@dataclass(frozen=True)
class _Tiling:
    """Boxes of one size that tile a volume."""

    shape: Vec
    step: Vec

    def __iter__(self) -> Iterator[Box]:
        ranges = (range(0, n, s) for n, s in zip(self.shape, self.step, strict=True))
        for start in itertools.product(*ranges):
            stop = [min(n, a + s) for n, a, s in zip(self.shape, start, self.step, strict=True)]
            yield Box(as_vec(start), as_vec(stop))


def boxes_of(header: VolumeHeader, grain: Vec, box_bytes: int) -> Iterator[Box]:
    """Tile a volume with boxes of whole grains, as large as allowed, longest along x.

    Parameters
    ----------
    header
        Shape (zyx), type and classes of the volume.
    grain
        Voxels of the smallest box, zyx.
    box_bytes
        Bytes a box may have, unless one grain has more.

    Examples
    --------
    >>> from deepict_dask.core.volume import VolumeHeader
    >>> header = VolumeHeader((8, 8, 8), "uint8")
    >>> [box.shape for box in boxes_of(header, (4, 4, 4), 256)]
    [(4, 8, 8), (4, 8, 8)]
    """
    voxel_bytes = np.dtype(header.dtype).itemsize * max(1, len(header.class_names))
    step = list(grain)
    for axis in (2, 1, 0):
        grains = max(1, box_bytes // (voxel_bytes * int(np.prod(step, dtype=np.int64))))
        step[axis] = min(grain[axis] * grains, ceil_to(header.shape[axis], grain[axis]))
    yield from _Tiling(header.shape, as_vec(step))
