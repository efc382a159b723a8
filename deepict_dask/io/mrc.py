"""Where the voxels of an MRC file lie, and what its header says.

MRC headers in circulation break their own standard (MRC2014) in many ways, so nothing is believed
that can be checked:

1. Byte order: both are tried. The one with a possible mode and size wins; then the one whose size
   equals the file's; only then the machine stamp, which Gatan exports set wrongly.
2. Mode 0 is int8, or uint8 where IMOD's sign flag is off or absent and the header's range needs it.
3. The size must cover header, extended header and voxels; a shorter file is refused.
4. Axes are brought to z, y, x by mapc, mapr, maps.
5. Voxel spacing is cell / intervals; `settle_spacing` judges it.

Sources: MRC2014 (ccpem.ac.uk/mrc-format), IMOD's mrc_format.txt, and real files that fail in
mrcfile's strict mode (ccpem/mrcfile issues 14, 47, 69).
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from ..core.errors import VolumeFormatError
from ..core.geometry import Vec, as_vec
from ..core.volume import VolumeHeader
from .description import Triple, VolumeDescription, origin_of, settle_spacing
from .raw import RawLayout, RawReader

__all__ = [
    "HEADER",
    "HEADER_BYTES",
    "MODES",
    "MrcHeader",
    "MrcReader",
    "describe_header",
    "open_mrc",
]

HEADER_BYTES = 1024
IMOD_STAMP = 1146047817
MODES = {0: "int8", 1: "int16", 2: "float32", 6: "uint16", 12: "float16"}
OTHER_MODES = {3: "complex int16", 4: "complex float32", 101: "4-bit integers"}
STAMPS = {0x44: "<", 0x11: ">"}
LARGEST_SIDE = 1 << 26

HEADER = np.dtype(
    {
        "names": [
            "n", "mode", "nstart", "m", "cella", "cellb", "mapcrs", "dmin", "dmax", "dmean",
            "ispg", "nsymbt", "exttyp", "nversion", "imod_stamp", "imod_flags", "origin", "map",
            "machst", "rms", "nlabl", "label",
        ],
        "formats": [
            ("i4", 3), "i4", ("i4", 3), ("i4", 3), ("f4", 3), ("f4", 3), ("i4", 3), "f4", "f4",
            "f4", "i4", "i4", "S4", "i4", "i4", "i4", ("f4", 3), "S4", ("u1", 4), "f4", "i4",
            ("S80", 10),
        ],
        "offsets": [
            0, 12, 16, 28, 40, 52, 64, 76, 80, 84, 88, 92, 104, 108, 152, 156, 196, 208, 212, 216,
            220, 224,
        ],
        "itemsize": HEADER_BYTES,
    }
)  # fmt: skip


@dataclass(frozen=True)
class MrcReader(RawReader):
    """Reads boxes of an MRC file; picklable.

    Examples
    --------
    >>> import tempfile, pathlib, mrcfile
    >>> from deepict_dask.core.geometry import Box
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "tomo.mrc"
    >>> mrcfile.write(path, np.arange(8, dtype="int16").reshape(2, 2, 2), voxel_size=13.48)
    >>> description, reader = open_mrc(path)
    >>> reader.header.voxel_spacing_angstrom, reader.read(Box((1, 0, 0), (2, 2, 2))).tolist()
    (13.48, [[[4, 5], [6, 7]]])
    """

    first_voxel: Triple | None = None
    """Index of the first voxel, zyx, where the origin follows from it and the spacing."""


@dataclass(frozen=True)
class MrcHeader:
    """The 1024 bytes of an MRC header in one byte order, and what follows from them."""

    raw: bytes
    byte_order: Literal["<", ">"]
    """``"<"`` or ``">"``."""

    @cached_property
    def fields(self) -> Any:
        """The header's fields, as numbers of this machine."""
        record = np.frombuffer(self.raw, HEADER.newbyteorder(self.byte_order), count=1)
        return record.astype(HEADER)[0]

    @property
    def is_possible(self) -> bool:
        """Say whether mode, sizes and extended header could be meant in this byte order."""
        sides_fit = all(0 < side < LARGEST_SIDE for side in self.file_shape)
        return sides_fit and self.mode in {**MODES, **OTHER_MODES} and self.fields["nsymbt"] >= 0

    @property
    def mode(self) -> int:
        """The MRC mode: which type the voxels have."""
        return int(self.fields["mode"])

    @property
    def file_shape(self) -> Vec:
        """Sections, rows, columns."""
        return as_vec(self.fields["n"][::-1])

    @property
    def axes(self) -> Vec:
        """For z, y and x: which of sections (0), rows (1) and columns (2) it is."""
        crs = [int(axis) for axis in self.fields["mapcrs"]]
        if not self.names_axes:
            return (0, 1, 2)
        return as_vec([2 - crs.index(axis) for axis in (3, 2, 1)])

    @property
    def names_axes(self) -> bool:
        """Say whether mapc, mapr and maps are an order of the three axes."""
        return sorted(int(axis) for axis in self.fields["mapcrs"]) == [1, 2, 3]

    @property
    def is_unsigned(self) -> bool:
        """Say whether mode 0 holds 0..255: no sign flag of IMOD, and the range needs it."""
        fields = self.fields
        signed_by_imod = fields["imod_stamp"] == IMOD_STAMP and fields["imod_flags"] & 1
        return not signed_by_imod and fields["dmin"] >= 0 and fields["dmax"] > 127

    @property
    def dtype(self) -> str:
        """The voxel type as stored, with its byte order."""
        name = "uint8" if self.mode == 0 and self.is_unsigned else MODES[self.mode]
        return np.dtype(name).newbyteorder(self.byte_order).str

    @property
    def n_bytes(self) -> int:
        """Bytes that header, extended header and voxels need together."""
        voxel = np.dtype(MODES.get(self.mode, "i2")).itemsize
        return self.offset + math.prod(self.file_shape) * voxel

    @property
    def offset(self) -> int:
        """Bytes before the first voxel."""
        return HEADER_BYTES + int(self.fields["nsymbt"])

    def layout(self, file: str) -> RawLayout:
        """Return where the voxels lie in a file."""
        return RawLayout(file, self.offset, self.dtype, self.file_shape, self.axes)

    @property
    def spacing_as_written(self) -> Triple:
        """Cell / intervals in Å, zyx; the number of voxels stands in for missing intervals."""
        shape = [self.file_shape[axis] for axis in self.axes]
        cell, intervals = self.fields["cella"][::-1], self.fields["m"][::-1]
        z, y, x = (
            float(edge) / (int(m) if m > 0 else n)
            for edge, m, n in zip(cell, intervals, shape, strict=True)
        )
        return (z, y, x)

    @property
    def origin_field(self) -> Triple | None:
        """The origin in Å, zyx; None where it is not set."""
        z, y, x = (float(value) for value in self.fields["origin"][::-1])
        is_set = (z, y, x) != (0.0, 0.0, 0.0) and all(math.isfinite(v) for v in (z, y, x))
        return (z, y, x) if is_set else None

    @property
    def first_voxel(self) -> Triple:
        """The index of the first voxel, zyx."""
        start = self.fields["nstart"][::-1]
        z, y, x = (float(start[axis]) for axis in self.axes)
        return (z, y, x)

    def origin_angstrom(self, spacing: Triple) -> Triple:
        """Return the origin field in Å, zyx, or the first voxel's index times the spacing."""
        return self.origin_field or origin_of(self.first_voxel, spacing)

    @property
    def range_as_written(self) -> tuple[float | None, float | None]:
        """Minimum and maximum as the header gives them; None where they are not set."""
        low, high = float(self.fields["dmin"]), float(self.fields["dmax"])
        if not (math.isfinite(low) and math.isfinite(high)) or high < low or low == high == 0:
            return (None, None)
        return (low, high)

    def oddities(self, file_bytes: int) -> tuple[str, ...]:
        """Return what is odd about the header, one sentence each."""
        return tuple(text for text in self._oddities(file_bytes) if text)

    def _oddities(self, file_bytes: int) -> list[str]:
        fields = self.fields
        stamp = STAMPS.get(int(fields["machst"][0]))
        spare = file_bytes - self.n_bytes
        return [
            "" if fields["map"].startswith(b"MAP") else "the word MAP is missing from the header",
            "the machine stamp is missing" if stamp is None else "",
            "the machine stamp names the wrong byte order"
            if stamp not in {None, self.byte_order}
            else "",
            "mapc, mapr, maps name no axis order; x, y, z assumed" if not self.names_axes else "",
            f"axes are stored in the order {self._order}; read as zyx" if self._reordered else "",
            "the voxel type is mode 0; read as unsigned, by the header's range"
            if self.mode == 0 and self.is_unsigned
            else "",
            "a stack of volumes; read as one with all sections"
            if 401 <= fields["ispg"] <= 630
            else "",
            f"{spare:,} bytes follow the voxels" if spare > 0 else "",
            "the header gives no minimum and maximum" if self.range_as_written[0] is None else "",
        ]

    @property
    def _reordered(self) -> bool:
        return self.axes != (0, 1, 2)

    @property
    def _order(self) -> str:
        """The axes from the slowest to the fastest."""
        return "".join("zyx"[self.axes.index(axis)] for axis in range(3))


def open_mrc(
    file: str | os.PathLike[str], path: str | os.PathLike[str] | None = None
) -> tuple[VolumeDescription, MrcReader]:
    """Open a plain MRC file without reading its voxels.

    Parameters
    ----------
    file
        The file, not compressed.
    path
        The name to show and to hash, where the file was unpacked from another one.

    Returns
    -------
    tuple
        What the header says, and a reader whose spacing is None where it could not be settled.

    Raises
    ------
    VolumeFormatError
        If the file is empty, text, truncated, or no MRC volume that can be read.
    """
    name = os.fspath(path if path is not None else file)
    header = read_header(file, name)
    description = _describe(header, name, os.path.getsize(file))
    volume = VolumeHeader(
        description.shape,
        description.dtype,
        description.voxel_spacing_angstrom,
        description.origin_angstrom,
    )
    first = None if header.origin_field else header.first_voxel
    return description, MrcReader(name, volume, header.layout(os.fspath(file)), first)


def describe_header(raw: bytes, name: str) -> VolumeDescription:
    """Describe a volume of which only the header is at hand, so that its size is not checked.

    Raises
    ------
    VolumeFormatError
        If it is no header of MRC.

    Examples
    --------
    >>> describe_header(b"not a header", "a.mrc")
    Traceback (most recent call last):
    ...
    deepict_dask.core.errors.VolumeFormatError: a.mrc: expected an MRC volume, found text ...
    """
    _check_start(raw, name, len(raw))
    header = _choose_byte_order(raw, 0)
    whole = header.n_bytes if header.is_possible else 0
    _check_header(header, name, whole)
    return _describe(header, name, whole)


def _describe(header: MrcHeader, name: str, file_bytes: int) -> VolumeDescription:
    layout = header.layout(name)
    written = header.spacing_as_written
    low, high = header.range_as_written
    order = "little-endian" if header.byte_order == "<" else "big-endian"
    extended = header.offset - HEADER_BYTES
    note = f", extended header of {extended:,} bytes" if extended else ""
    whole_cell = int(header.fields["m"][2]) == 1 and layout.shape[0] > 1
    spacing = settle_spacing(written, layout.shape, whole_cell_z=whole_cell)
    edge = spacing.angstrom
    return VolumeDescription(
        path=name,
        format="MRC",
        shape=layout.shape,
        dtype=layout.native,
        stored_as=f"mode {header.mode}, {order}{note}",
        spacing_as_written=written,
        origin_angstrom=header.origin_angstrom(written if edge is None else (edge,) * 3),
        header_minimum=low,
        header_maximum=high,
        oddities=header.oddities(file_bytes),
    ).with_spacing(spacing)


def read_header(file: str | os.PathLike[str], name: str) -> MrcHeader:
    """Return the checked header of a plain MRC file.

    Raises
    ------
    VolumeFormatError
        If the file is empty, text, truncated, or no MRC volume that can be read.
    """
    with open(file, "rb") as stream:
        raw = stream.read(HEADER_BYTES)
    file_bytes = os.path.getsize(file)
    _check_start(raw, name, file_bytes)
    header = _choose_byte_order(raw, file_bytes)
    _check_header(header, name, file_bytes)
    return header


def _check_start(raw: bytes, name: str, file_bytes: int) -> None:
    if file_bytes == 0:
        raise VolumeFormatError(f"{name}: the file is empty (0 bytes); copy it again")
    if raw.isascii() and not any(byte < 9 for byte in raw):
        raise VolumeFormatError(
            f"{name}: expected an MRC volume, found text ({raw[:30].decode()!r}...); "
            "check the download"
        )
    if len(raw) < HEADER_BYTES:
        raise VolumeFormatError(
            f"{name}: an MRC header has {HEADER_BYTES:,} bytes, the file has {file_bytes:,}; "
            "it was cut short or is no MRC file"
        )


def _choose_byte_order(raw: bytes, file_bytes: int) -> MrcHeader:
    """Return the header in the byte order that fits the file best."""
    stamp = STAMPS.get(raw[212])

    def fitness(header: MrcHeader) -> tuple[bool, bool, bool, bool, bool]:
        return (
            header.is_possible,
            header.is_possible and header.n_bytes == file_bytes,
            header.is_possible and header.n_bytes <= file_bytes,
            header.names_axes,
            header.byte_order == stamp,
        )

    return max(MrcHeader(raw, "<"), MrcHeader(raw, ">"), key=fitness)


def _check_header(header: MrcHeader, name: str, file_bytes: int) -> None:
    sides = "x".join(str(side) for side in reversed(header.file_shape))
    if header.mode in OTHER_MODES and header.is_possible:
        raise VolumeFormatError(
            f"{name}: mode {header.mode} ({OTHER_MODES[header.mode]}) cannot be segmented; "
            "expected mode 0, 1, 2, 6 or 12"
        )
    if not header.is_possible:
        raise VolumeFormatError(
            f"{name}: not an MRC volume: in neither byte order are mode {header.mode} and size "
            f"{sides} (xyz) possible; check what kind of file this is"
        )
    if file_bytes <= header.offset:
        raise VolumeFormatError(
            f"{name}: a header without voxels: {sides} voxels (xyz) of {MODES[header.mode]} need "
            f"{header.n_bytes:,} bytes, the file has {file_bytes:,}; copy the whole file"
        )
    if file_bytes < header.n_bytes:
        raise VolumeFormatError(
            f"{name}: truncated: {sides} voxels (xyz) of {MODES[header.mode]} need "
            f"{header.n_bytes:,} bytes, the file has {file_bytes:,}; copy it again"
        )
