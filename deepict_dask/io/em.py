"""Where the voxels of an .em file lie.

The format of TOM, AV3 and Artiatomi: 512 bytes of header, then voxels with x fastest. Byte 0 names
the machine, byte 3 the voxel type, and three int32 from byte 4 the size x, y, z. The byte order is
the one in which the size fits the file. The header has no agreed place for the voxel spacing.

Source: the layout as read by emfile 0.3 and checked on real files.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ..core.errors import VolumeFormatError, VoxelValueError
from ..core.geometry import Vec, as_vec
from ..core.volume import VolumeHeader
from .description import VolumeDescription, settle_spacing
from .raw import RawLayout, RawReader
from .raw_write import RawWriter, allocate, partial_name, refuse_existing

__all__ = ["EmReader", "create_em", "open_em"]

HEADER_BYTES = 512
TYPES = {1: "int8", 2: "int16", 4: "int32", 5: "float32", 9: "float64"}
WIDER = {"bool": "int8", "uint8": "int16", "uint16": "int32", "float16": "float32"}


@dataclass(frozen=True)
class EmReader(RawReader):
    """Reads boxes of an .em file; picklable."""


def open_em(
    file: str | os.PathLike[str], path: str | os.PathLike[str] | None = None
) -> tuple[VolumeDescription, EmReader]:
    """Open an .em file without reading its voxels.

    Parameters
    ----------
    file
        The file, not compressed.
    path
        The name to show, where the file was unpacked from another one.

    Returns
    -------
    tuple
        What the header says, and a reader.

    Raises
    ------
    VolumeFormatError
        If the file is truncated or no .em volume of real numbers.

    Examples
    --------
    >>> import tempfile, pathlib, emfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "map.em"
    >>> emfile.write(str(path), np.zeros((2, 3, 4), "float32"))
    >>> open_em(path)[1].header.shape
    (2, 3, 4)
    """
    name = os.fspath(path if path is not None else file)
    with open(file, "rb") as stream:
        head = stream.read(HEADER_BYTES)
    layout = _layout(head, os.fspath(file), name)
    description = VolumeDescription(
        path=name,
        format="EM",
        shape=layout.shape,
        dtype=layout.native,
        stored_as=f"type {head[3]}, machine {head[0]}",
        oddities=_oddities(layout.shape),
    ).with_spacing(settle_spacing(None, layout.shape))
    return description, EmReader(name, VolumeHeader(layout.shape, layout.native), layout)


def _oddities(shape: Vec) -> tuple[str, ...]:
    if shape[0] == 1 and shape[2] == 20:
        return ("20 columns in one section: this looks like a motive list, not a volume",)
    return ()


def _layout(head: bytes, file: str, name: str) -> RawLayout:
    file_bytes = os.path.getsize(file)
    if len(head) < HEADER_BYTES:
        raise VolumeFormatError(
            f"{name}: an .em header has {HEADER_BYTES} bytes, the file has {file_bytes:,}; "
            "it was cut short or is no .em file"
        )
    if head[3] not in TYPES:
        raise VolumeFormatError(
            f"{name}: .em voxel type {head[3]} cannot be read; expected one of {sorted(TYPES)}"
        )
    layouts = [_in_order(head, file, "<"), _in_order(head, file, ">")]
    layout = next((found for found in layouts if found.n_bytes == file_bytes), None)
    if layout is None:
        layout = min(layouts, key=lambda found: abs(found.n_bytes - file_bytes))
    if layout.n_bytes > file_bytes or min(layout.shape) < 1:
        raise VolumeFormatError(
            f"{name}: truncated: {layout.shape} voxels (zyx) of {layout.native} need "
            f"{layout.n_bytes:,} bytes, the file has {file_bytes:,}; copy it again"
        )
    return layout


def _in_order(head: bytes, file: str, order: Literal["<", ">"]) -> RawLayout:
    size = np.frombuffer(head, f"{order}i4", count=3, offset=4)
    dtype = np.dtype(TYPES[head[3]]).newbyteorder(order)
    return RawLayout(file, HEADER_BYTES, dtype.str, as_vec(size[::-1]))


def create_em(
    path: str | os.PathLike[str],
    header: VolumeHeader,
    dtype: str | None = None,
    *,
    overwrite: bool = False,
) -> RawWriter:
    """Make an .em file to be written box by box; the voxel spacing has no place in it.

    Parameters
    ----------
    path
        The final name.
    header
        Shape (zyx) and type.
    dtype
        Type of the voxels; the header's when None. Unsigned and half types are widened.
    overwrite
        Replace a file of that name.

    Raises
    ------
    OutputExistsError
        If the file is there and may not be replaced.
    VoxelValueError
        If .em has no such type, or for several classes.
    """
    name = os.fspath(path)
    refuse_existing(name, overwrite=overwrite)
    stored = np.dtype(dtype or header.dtype).name
    stored = WIDER.get(stored, stored)
    if stored not in TYPES.values() or header.class_names:
        raise VoxelValueError(f"{name}: .em cannot hold {stored} voxels or classes; write .zarr")
    kind = next(code for code, known in TYPES.items() if known == stored)
    size = np.array(header.shape[::-1], "<i4").tobytes()
    head = (bytes([6, 0, 0, kind]) + size).ljust(HEADER_BYTES, b"\0")
    layout = RawLayout(
        partial_name(name), HEADER_BYTES, np.dtype(stored).newbyteorder("<").str, header.shape
    )
    allocate(name, head, HEADER_BYTES + math.prod(header.shape) * np.dtype(stored).itemsize)
    return RawWriter(name, replace(header, dtype=stored), layout)
