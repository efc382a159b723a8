"""Open any volume by its path.

1. Refuse what is not there, not readable, or macOS's shadow of a file (``._tomo.mrc``).
2. A folder is a Zarr store. A packed file is unpacked to scratch, whatever its name.
3. The first bytes outvote the ending: a TIFF called ``.mrc`` is read as TIFF, and said to be odd.
4. The voxel spacing is the user's, or the file's if it can be settled; else an error says what
   to do.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
from dataclasses import replace
from pathlib import Path

from ..core.errors import SpacingError, VolumeFormatError
from .array import ArrayReader
from .description import VolumeDescription, origin_of
from .em import open_em
from .endings import ENDINGS, PACKED, kind_of, plain_name
from .export import create_volume, export_volume
from .mrc import HEADER_BYTES, MrcReader, describe_header, open_mrc
from .ome_metadata import is_zarr
from .ome_zarr import ZarrReader, count_missing_chunks, open_ome_zarr
from .raw import RawReader
from .tiff import TiffPageReader, open_tiff
from .unpack import compression_of, unpack, unpacked_start

__all__ = [
    "AnyReader",
    "ArrayReader",
    "create_volume",
    "describe",
    "export_volume",
    "is_volume_path",
    "looks_like_volume",
    "open_first_class",
    "open_volume",
    "peek",
]

AnyReader = RawReader | TiffPageReader | ZarrReader
Opened = tuple[VolumeDescription, AnyReader]
log = logging.getLogger(__name__)
_SPACING_TOLERANCE = 0.01

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
FOREIGN = {
    b"\x89HDF": "HDF5; convert it first, e.g. with EMAN2's e2proc3d.py",
    b"PK\x03\x04": "a zip archive; unpack it first",
    b"\x93NUM": "a NumPy array; save it as .mrc",
    b"%PDF": "a PDF",
    b"\xfd7zX": "an xz archive; unpack it first",
    b"\x28\xb5\x2f\xfd": "a zstd archive; unpack it first",
}


def open_volume(
    path: str | os.PathLike[str],
    *,
    voxel_spacing_angstrom: float | None = None,
    scratch: str | os.PathLike[str] | None = None,
    class_name: str | None = None,
    spacing_required: bool = True,
    allow_missing_chunks: bool = False,
) -> AnyReader:
    """Open a volume without reading its voxels.

    Parameters
    ----------
    path
        MRC (``.mrc .rec .map .st .mrcs .ali .preali``), ``.em``, ``.tif``, each also packed with gz
        or bz2, or a Zarr folder.
    voxel_spacing_angstrom
        The spacing to use instead of the file's, Å.
    scratch
        Where packed files are unpacked; every worker must see it.
    class_name
        The class to read from a score map with several.
    spacing_required
        Raise where the spacing is missing or unequal; otherwise the header's spacing is None.
    allow_missing_chunks
        Read missing chunks of a Zarr store as its fill value.

    Returns
    -------
    VolumeReader
        A picklable value with ``path``, ``header`` and ``read(box)``.

    Raises
    ------
    VolumeFormatError
        If there is no such volume, or it is damaged, truncated or of another kind.
    SpacingError
        If the spacing is needed and missing or unequal, or the given one is not positive.

    Examples
    --------
    >>> import tempfile, mrcfile, numpy as np
    >>> path = tempfile.mkdtemp() + "/tomo.mrc"
    >>> mrcfile.write(path, np.zeros((2, 3, 4), "int8"), voxel_size=13.48)
    >>> open_volume(path).header.voxel_spacing_angstrom
    13.48
    """
    description, reader = _open(
        path, scratch, class_name=class_name, allow_missing_chunks=allow_missing_chunks
    )
    _log(description, spacing_given=voxel_spacing_angstrom is not None)
    if voxel_spacing_angstrom is not None:
        return _with_spacing(reader, path, description.path, voxel_spacing_angstrom)
    if spacing_required and description.spacing_problem:
        raise SpacingError(
            f"{description.path}: {description.spacing_problem}; pass --voxel-spacing-angstrom "
            "(in a config or in Python: voxel_spacing_angstrom) to override"
        )
    return reader


def open_first_class(
    path: str | os.PathLike[str], voxel_spacing_angstrom: float | None = None
) -> AnyReader:
    """Open a volume to show it: of a score map with several classes the first, spacing or not.

    Parameters
    ----------
    path, voxel_spacing_angstrom
        As of `open_volume`.
    """
    spacing = voxel_spacing_angstrom
    reader = open_volume(path, spacing_required=False, voxel_spacing_angstrom=spacing)
    if not reader.header.class_names:
        return reader
    first = reader.header.class_names[0]
    return open_volume(
        path, spacing_required=False, voxel_spacing_angstrom=spacing, class_name=first
    )


def _with_spacing(
    reader: AnyReader, path: str | os.PathLike[str], described: str, given: float
) -> AnyReader:
    """Return the reader with the given voxel spacing; say where the file has another one."""
    if not (math.isfinite(given) and given > 0):
        raise SpacingError(
            f"{described}: a voxel spacing of {given} Å was given; it must be positive"
        )
    spacing = float(given)
    written = reader.header.voxel_spacing_angstrom
    if written is not None and abs(written / spacing - 1) > _SPACING_TOLERANCE:
        log.warning(
            "%s: the file says %.4g Å per voxel, %.4g Å is used as given", path, written, spacing
        )
    header = replace(reader.header, voxel_spacing_angstrom=spacing)
    if isinstance(reader, MrcReader) and reader.first_voxel is not None:
        origin = origin_of(reader.first_voxel, (spacing,) * 3)
        header = replace(header, origin_angstrom=origin)
    return replace(reader, header=header)


def describe(
    path: str | os.PathLike[str], *, scratch: str | os.PathLike[str] | None = None
) -> VolumeDescription:
    """Say what a volume's file says about it, and what is odd.

    Parameters
    ----------
    path
        As for `open_volume`.
    scratch
        Where a packed file is unpacked, and stays.

    Raises
    ------
    VolumeFormatError
        If there is no such volume, or it is damaged, truncated or of another kind.

    Examples
    --------
    >>> import tempfile, mrcfile, numpy as np
    >>> path = tempfile.mkdtemp() + "/tomo.mrc"
    >>> mrcfile.write(path, np.zeros((2, 3, 4), "float32"), voxel_size=(8, 8, 9))
    >>> describe(path).oddities[-1]
    'voxel spacing differs per axis (9, 8, 8 Å, zyx)'
    """
    description, reader = _open(path, scratch)
    if isinstance(reader, ZarrReader) and not reader.missing_is_fill:
        return _with_missing_chunks(description, reader, "reading them fails")
    return description


def peek(path: str | os.PathLike[str]) -> VolumeDescription:
    """Say what a volume's header says, without unpacking it or counting its chunks.

    Of a packed MRC file only the first bytes are unpacked, so that its size is not checked. Packed
    files of other kinds are unpacked, and the copy is removed.

    Raises
    ------
    VolumeFormatError
        If there is no such volume, or its header is damaged or of another kind.

    Examples
    --------
    >>> import tempfile, mrcfile, numpy as np
    >>> path = tempfile.mkdtemp() + "/tomo.mrc.gz"
    >>> with mrcfile.new(path, np.zeros((2, 3, 4), "int8"), compression="gzip") as file:
    ...     file.voxel_size = 13.48
    >>> peek(path).shape, peek(path).voxel_spacing_angstrom
    ((2, 3, 4), 13.48)
    """
    place = Path(path)
    _check_there(place)
    if place.is_dir():
        return open_ome_zarr(path)[0]
    if compression_of(place) and kind_of(plain_name(place)) == "mrc":
        return describe_header(unpacked_start(place, HEADER_BYTES), str(place))
    with tempfile.TemporaryDirectory(prefix="deepict-dask-") as scratch:
        return _open_file(place, scratch)[0]


def looks_like_volume(path: str | os.PathLike[str]) -> bool:
    """Say whether a file's first bytes are those of a volume, whatever its name.

    Examples
    --------
    >>> looks_like_volume("/dev/null"), looks_like_volume("absent")
    (False, False)
    """
    place = Path(path)
    if not place.is_file() or not os.access(place, os.R_OK):
        return False
    with open(place, "rb") as file:
        head = file.read(HEADER_BYTES)
    return bool(compression_of(place)) or head.startswith(TIFF_MAGIC) or head[208:211] == b"MAP"


def is_volume_path(path: str | os.PathLike[str]) -> bool:
    """Say whether a name promises a volume; a folder must be a Zarr store.

    Examples
    --------
    >>> is_volume_path("tomo.rec.gz"), is_volume_path("._tomo.mrc"), is_volume_path("picks.star")
    (True, False, False)
    """
    place = Path(path)
    if place.is_dir():
        return is_zarr(place)
    return not place.name.startswith("._") and kind_of(plain_name(path)) != ""


def _open(
    path: str | os.PathLike[str],
    scratch: str | os.PathLike[str] | None,
    *,
    class_name: str | None = None,
    allow_missing_chunks: bool = False,
) -> Opened:
    place = Path(path)
    _check_there(place)
    if place.is_dir():
        description, reader = open_ome_zarr(
            path, class_name=class_name, allow_missing_chunks=allow_missing_chunks
        )
        if reader.missing_is_fill:
            description = _with_missing_chunks(description, reader, "they read as empty")
        return description, reader
    if class_name is not None:
        raise VolumeFormatError(
            f"{path}: expected class {class_name}, but files of this kind have no classes"
        )
    return _open_file(place, scratch)


def _log(description: VolumeDescription, *, spacing_given: bool) -> None:
    """Log what is odd: as a warning where it can change results and the user did not decide."""
    for text in description.oddities:
        decided = text == description.spacing_problem or (spacing_given and "spacing" in text)
        warn = text in description.warnings and not decided
        log.log(logging.WARNING if warn else logging.INFO, "%s: %s", description.path, text)


def _with_missing_chunks(
    description: VolumeDescription, reader: ZarrReader, effect: str
) -> VolumeDescription:
    missing, total = count_missing_chunks(reader)
    if not missing:
        return description
    return description.with_warning(f"{missing} of {total} chunk files are missing; {effect}")


def _check_there(place: Path) -> None:
    """Refuse what cannot be a volume, before looking inside."""
    if not os.path.exists(place):
        broken = "a link to nothing" if place.is_symlink() else "no such file"
        raise VolumeFormatError(f"{place}: {broken}; check the path")
    if not os.access(place, os.R_OK):
        raise VolumeFormatError(f"{place}: may not be read (permission denied)")
    if place.name.startswith("._"):
        raise VolumeFormatError(
            f"{place}: macOS's shadow of a file, not a volume; use {place.name[2:]}"
        )
    if place.is_dir() and not is_zarr(place):
        raise VolumeFormatError(
            f"{place}: a folder without Zarr metadata; expected a file or a .zarr store"
        )
    if not place.is_dir() and not place.is_file():
        raise VolumeFormatError(f"{place}: not a regular file")


def _open_file(place: Path, scratch: str | os.PathLike[str] | None) -> Opened:
    packed = compression_of(place)
    if not packed and place.name.lower().endswith(PACKED):
        raise VolumeFormatError(
            f"{place}: expected a compressed file, found {place.stat().st_size:,} bytes that are "
            "not; check the download or rename it"
        )
    plain = unpack(place, scratch) if packed else place
    promised = kind_of(plain_name(place))
    kind = _kind_inside(plain, place, promised)
    openers = {"mrc": open_mrc, "em": open_em, "tiff": open_tiff}
    description, reader = openers[kind](plain, place)
    if kind != promised:
        note = f"the name does not say that the file is {description.format}"
        description = replace(description, oddities=(*description.oddities, note))
    return description, reader


def _kind_inside(plain: Path, place: Path, promised: str) -> str:
    """Return the format by a file's first bytes, and by its ending where they do not tell."""
    with open(plain, "rb") as file:
        head = file.read(1024)
    for magic, meaning in FOREIGN.items():
        if head.startswith(magic):
            raise VolumeFormatError(
                f"{place}: not a volume that can be read but {meaning}{_as_a_list(place)}"
            )
    if head.startswith(TIFF_MAGIC):
        return "tiff"
    if promised in {"mrc", "em"}:
        return promised
    if head[208:211] == b"MAP":
        return "mrc"
    known = " ".join(end for ends in ENDINGS.values() for end in ends)
    raise VolumeFormatError(
        f"{place}: no format is known for this ending or these first bytes; known: {known}"
        f"{_as_a_list(place)}"
    )


def _as_a_list(place: Path) -> str:
    """Say how a file is read whose ending is one of particle lists; nothing for other endings."""
    from .picks import FORMATS

    ending = Path(plain_name(place)).suffix.lower()
    if not any(ending in kind.endings for kind in FORMATS.values()):
        return ""
    return f". {ending} is an ending of particle lists: `deepict-dask picks convert` reads these"
