"""TIFF stacks as volumes: pages are sections.

Uncompressed contiguous stacks are read box by box like any raw file. Others are decoded page by
page. The voxel spacing is taken from ImageJ's or tifffile's description, or from OME-XML.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import VolumeFormatError, VoxelValueError
from ..core.geometry import Vec, as_vec
from ..core.volume import VolumeHeader
from .description import VolumeDescription, angstrom_per, settle_spacing
from .raw import RawLayout, RawReader, check_box
from .raw_write import RawWriter, check_free, partial_name, refuse_existing

if TYPE_CHECKING:
    from ..core.geometry import Box

__all__ = ["TiffPageReader", "TiffReader", "create_tiff", "open_tiff"]

Array = np.ndarray[Any, Any]
Triple = tuple[float, float, float]
DAMAGE = (struct.error, ValueError, OSError, RuntimeError, IndexError, KeyError)
CLASSIC_BYTES = 3 << 30
"""Above this a 64-bit TIFF is written."""


@dataclass(frozen=True)
class TiffReader(RawReader):
    """Reads boxes of an uncompressed contiguous TIFF stack; picklable."""


@dataclass(frozen=True)
class TiffPageReader:
    """Reads boxes of a compressed or scattered TIFF stack, one page at a time; picklable."""

    path: str
    header: VolumeHeader
    file: str

    def read(self, box: Box) -> Array:
        """Return a new zyx array of a box.

        Raises
        ------
        VolumeFormatError
            If a page cannot be decoded.
        """
        import tifffile

        check_box(self.path, box, self.header.shape)
        out = np.empty(box.shape, self.header.dtype)
        try:
            with tifffile.TiffFile(self.file) as tiff:
                for place, section in enumerate(range(box.start[0], box.stop[0])):
                    page = tiff.series[0].pages[section]
                    out[place] = page.asarray().reshape(self.header.shape[1:])[box.slices[1:]]
        except (*DAMAGE, tifffile.TiffFileError) as error:
            raise VolumeFormatError(
                f"{self.path}: section {section} cannot be decoded ({error}); copy the file again"
            ) from error
        return out


def open_tiff(
    file: str | os.PathLike[str], path: str | os.PathLike[str] | None = None
) -> tuple[VolumeDescription, TiffReader | TiffPageReader]:
    """Open a TIFF stack without reading its voxels.

    Parameters
    ----------
    file
        The file, not packed in .gz or .bz2.
    path
        The name to show, where the file was unpacked from another one.

    Returns
    -------
    tuple
        What the tags say, and a reader.

    Raises
    ------
    VolumeFormatError
        If the file is truncated, no TIFF, or no grey-level stack.

    Examples
    --------
    >>> import tempfile, tifffile
    >>> name = tempfile.mkdtemp() + "/stack.tif"
    >>> tifffile.imwrite(name, np.zeros((3, 4, 5), "uint8"), photometric="minisblack")
    >>> open_tiff(name)[1].header.shape
    (3, 4, 5)
    """
    import tifffile

    name = os.fspath(path if path is not None else file)
    try:
        with tifffile.TiffFile(file) as tiff:
            return _open(tiff, os.fspath(file), name)
    except VolumeFormatError:
        raise
    except (*DAMAGE, tifffile.TiffFileError) as error:
        raise VolumeFormatError(f"{name}: cannot be read as TIFF ({error})") from error


def _open(tiff: Any, file: str, name: str) -> tuple[VolumeDescription, TiffReader | TiffPageReader]:
    series = tiff.series[0]
    shape = _shape(name, series)
    dtype = np.dtype(series.dtype).newbyteorder(tiff.byteorder)
    written = _spacing(tiff)
    spacing = settle_spacing(written, shape)
    header = VolumeHeader(shape, dtype.newbyteorder("=").name, spacing.angstrom)
    description = VolumeDescription(
        path=name,
        format="TIFF",
        shape=shape,
        dtype=header.dtype,
        stored_as=f"{len(series.pages)} pages, {tiff.pages[0].compression.name.lower()}",
        spacing_as_written=written,
        oddities=_oddities(tiff),
    ).with_spacing(spacing)
    if series.dataoffset is None:
        if len(series.pages) != shape[0]:
            raise VolumeFormatError(f"{name}: its sections are no pages; save it as a plain stack")
        return description, TiffPageReader(name, header, file)
    layout = RawLayout(file, series.dataoffset, dtype.str, shape)
    _check_size(name, layout)
    return description, TiffReader(name, header, layout)


def _check_size(name: str, layout: RawLayout) -> None:
    found = os.path.getsize(layout.file)
    if found < layout.n_bytes:
        raise VolumeFormatError(
            f"{name}: truncated: {layout.shape} voxels (zyx) of {layout.native} need "
            f"{layout.n_bytes:,} bytes, the file has {found:,}; copy it again"
        )


def _oddities(tiff: Any) -> tuple[str, ...]:
    others = len(tiff.series) - 1
    return (f"{others} more series in the file are ignored",) if others else ()


def _shape(name: str, series: Any) -> Vec:
    """Return zyx; pages of any meaning (I, Q, Z, T, C) count as sections."""
    sides = [n for n, axis in zip(series.shape, series.axes, strict=True) if n > 1 or axis in "YX"]
    if "S" in series.axes or len(sides) not in {2, 3} or not series.axes.endswith("YX"):
        raise VolumeFormatError(
            f"{name}: expected a grey-level stack (zyx), found axes {series.axes} of {series.shape}"
        )
    return as_vec([1, *sides][-3:])


def _spacing(tiff: Any) -> Triple | None:
    """Return Å on z, y, x as written."""
    if tiff.is_ome:
        return _ome_spacing(tiff.ome_metadata)
    notes: dict[str, Any] = tiff.imagej_metadata or (tiff.shaped_metadata or ({},))[0]
    factor = angstrom_per(str(notes.get("unit", "")))
    if factor is None:
        return None
    tags = tiff.pages[0].tags
    y, x = (_pixel(tags, name) * factor for name in ("YResolution", "XResolution"))
    return (float(notes.get("spacing", 0.0)) * factor, y, x)


def _pixel(tags: Any, name: str) -> float:
    """Return a pixel's edge from a resolution tag: pixels per unit, as a fraction."""
    pixels, units = tags[name].value if name in tags else (0, 1)
    return float(units / pixels) if pixels else 0.0


def _ome_spacing(xml: str) -> Triple | None:
    """Return the physical sizes of the first image in Å; the unit is micrometre where none is."""
    found = []
    for axis in "ZYX":
        size = re.search(rf'\bPhysicalSize{axis}="([^"]+)"', xml)
        unit = re.search(rf'\bPhysicalSize{axis}Unit="([^"]+)"', xml)
        factor = angstrom_per(unit.group(1) if unit else "µm")
        found.append(float(size.group(1)) * factor if size and factor else 0.0)
    return (found[0], found[1], found[2]) if any(found) else None


def create_tiff(
    path: str | os.PathLike[str],
    header: VolumeHeader,
    dtype: str | None = None,
    *,
    overwrite: bool = False,
) -> RawWriter:
    """Make an uncompressed TIFF stack to be written box by box.

    The voxel spacing goes into tifffile's description (nm) and the resolution tags; ImageJ's own
    description is not written, since it takes stacks of certain shapes for colour images.

    Parameters
    ----------
    path
        The final name.
    header
        Shape (zyx) and voxel spacing (Å).
    dtype
        Type of the voxels; the header's when None. bool becomes uint8.
    overwrite
        Replace a file of that name.

    Raises
    ------
    OutputExistsError
        If the file is there and may not be replaced.
    VoxelValueError
        If the volume has several classes.
    """
    import tifffile

    name = os.fspath(path)
    refuse_existing(name, overwrite=overwrite)
    stored = np.dtype(dtype or header.dtype).name.replace("bool", "uint8")
    if header.class_names:
        raise VoxelValueError(f"{name}: choose one class, or write .zarr")
    header = replace(header, dtype=stored)
    check_free(name, header.n_bytes)
    large = header.n_bytes > CLASSIC_BYTES
    with tifffile.TiffWriter(partial_name(name), bigtiff=large) as writer:
        writer.write(None, shape=header.shape, dtype=stored, **_tags(header))
    with tifffile.TiffFile(partial_name(name)) as tiff:
        place, order = tiff.series[0].dataoffset, tiff.byteorder
    layout = RawLayout(
        partial_name(name), place, np.dtype(stored).newbyteorder(order).str, header.shape
    )
    return RawWriter(name, header, layout)


def _tags(header: VolumeHeader) -> dict[str, Any]:
    tags: dict[str, Any] = {"photometric": "minisblack", "metadata": {"axes": "ZYX"}}
    if header.voxel_spacing_angstrom is not None:
        edge_nm = header.voxel_spacing_angstrom / 10
        tags["metadata"] |= {"spacing": edge_nm, "unit": "nm"}
        tags["resolution"] = (1 / edge_nm, 1 / edge_nm)
    return tags
