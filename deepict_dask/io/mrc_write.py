"""Write an MRC file so that every program reads the same numbers.

Modes are chosen by type: int8 and bool 0, int16 1, float32 and float64 2, uint16 6, float16 12.
Two types have no mode of their own:

* uint8 goes to mode 6 (uint16), as mrcfile does, or to mode 0 where no value exceeds 127, as users
  expect of masks. IMOD's convention of unsigned mode 0 is not written: programs that do not know it
  (mrcfile, RELION) would read 200 as -56 (ccpem/mrcfile issue 69).
* 32- and 64-bit labels go to the smallest mode that holds their largest number: 0, 1, 6, or
  mode 2, which holds integers up to 16,777,216 exactly. Larger numbers are refused.

The minimum, maximum, mean and rms of the header are measured at the end, in one more pass over the
file in slabs. No time is written, so that equal volumes give equal bytes.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import VoxelValueError
from ..core.geometry import Box, Vec
from .mrc import HEADER, HEADER_BYTES, MODES
from .raw import RawLayout
from .raw_write import RawWriter, allocate, partial_name, refuse_existing

if TYPE_CHECKING:
    from ..core.volume import VolumeHeader

__all__ = ["MrcWriter", "create_mrc", "mrc_dtype"]

Array = np.ndarray[Any, Any]
SLAB_BYTES = 32 << 20
SAME = {"int8", "int16", "float32", "uint16", "float16"}
BY_TYPE = {"bool": "int8", "uint8": "uint16", "float64": "float32"}


@dataclass(frozen=True)
class MrcWriter(RawWriter):
    """Writes boxes of an MRC file; picklable. Call `finish` once, at the end."""

    def _complete_header(self) -> None:
        low, high, mean, rms = _statistics(self.layout)
        with open(self.layout.file, "r+b") as file:
            # a view: copying a record would leave garbage in the gaps between its fields
            record = np.frombuffer(bytearray(file.read(HEADER_BYTES)), HEADER_LITTLE)
            record["dmin"], record["dmax"] = low, high
            record["dmean"], record["rms"] = mean, rms
            file.seek(0)
            file.write(record.tobytes())


HEADER_LITTLE = HEADER.newbyteorder("<")


def mrc_dtype(dtype: str, low: float | None = None, high: float | None = None) -> str:
    """Return the type in which MRC stores voxels of a type.

    Parameters
    ----------
    dtype
        NumPy name of the voxels' type.
    low, high
        The range of the voxels, where it is known.

    Raises
    ------
    VoxelValueError
        If no mode holds the numbers, or the range must be known to tell.

    Examples
    --------
    >>> mrc_dtype("uint8"), mrc_dtype("uint8", 0, 1), mrc_dtype("int64", 0, 40000)
    ('uint16', 'int8', 'uint16')
    """
    name = np.dtype(dtype).name
    if name in SAME:
        return name
    if name in {"bool", "float64"}:
        return BY_TYPE[name]
    if np.dtype(name).kind not in "iu":
        raise VoxelValueError(f"MRC has no mode for {name}; choose another type or write .zarr")
    if high is None or low is None:
        if name in BY_TYPE:
            return BY_TYPE[name]
        raise VoxelValueError(
            f"MRC has no mode for {name}; export a finished volume, whose largest number is known, "
            "or write .zarr"
        )
    return _smallest(name, low, high)


def _smallest(name: str, low: float, high: float) -> str:
    candidates = ("int8", "uint16") if name == "uint8" else ("int8", "int16", "uint16")
    for candidate in candidates:
        info = np.iinfo(candidate)
        if info.min <= low and high <= info.max:
            return candidate
    if max(-low, high) <= 2**24:
        return "float32"
    raise VoxelValueError(
        f"no MRC mode holds {name} values from {low:,.0f} to {high:,.0f} exactly; write .zarr"
    )


def create_mrc(
    path: str | os.PathLike[str],
    header: VolumeHeader,
    dtype: str | None = None,
    *,
    overwrite: bool = False,
) -> MrcWriter:
    """Make an MRC file to be written box by box.

    Parameters
    ----------
    path
        The final name; until `MrcWriter.finish` the file is called ``path + ".partial"``.
    header
        Shape (zyx), voxel spacing and origin (Å).
    dtype
        Type of the voxels; the header's when None. See `mrc_dtype`.
    overwrite
        Replace a file of that name.

    Raises
    ------
    OutputExistsError
        If the file is there and may not be replaced.
    VoxelValueError
        If MRC has no mode for the type.
    WorkFailedError
        If the place cannot be written or has no space.

    Examples
    --------
    >>> import tempfile, pathlib, mrcfile
    >>> from deepict_dask.core.volume import VolumeHeader
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "mask.mrc"
    >>> writer = create_mrc(path, VolumeHeader((2, 3, 4), "int8", 13.48))
    >>> writer.write(Box.whole((2, 3, 4)), np.ones((2, 3, 4), "int8"))
    >>> writer.finish()
    >>> mrcfile.read(path).sum()
    np.int64(24)
    """
    name = os.fspath(path)
    refuse_existing(name, overwrite=overwrite)
    if header.class_names:
        raise VoxelValueError(
            f"{name}: MRC holds one volume, not {len(header.class_names)} classes; "
            "choose one class or write .zarr"
        )
    stored = mrc_dtype(dtype or header.dtype)
    layout = RawLayout(partial_name(name), HEADER_BYTES, f"<{_code(stored)}", header.shape)
    allocate(name, _header_bytes(header, stored), layout.n_bytes)
    return MrcWriter(name, replace(header, dtype=stored), layout)


def _code(dtype: str) -> str:
    return np.dtype(dtype).str[1:]


def _header_bytes(header: VolumeHeader, dtype: str) -> bytes:
    """Return a header without statistics."""
    record = np.zeros(1, HEADER_LITTLE)
    size = header.shape[::-1]
    record["n"], record["m"] = size, size
    record["mode"] = next(mode for mode, name in MODES.items() if name == dtype)
    record["cella"] = [n * (header.voxel_spacing_angstrom or 0.0) for n in size]
    record["cellb"] = 90.0
    record["mapcrs"] = (1, 2, 3)
    record["ispg"] = 1
    record["nversion"] = 20141
    record["origin"] = header.origin_angstrom[::-1]
    record["map"] = b"MAP "
    record["machst"] = (0x44, 0x44, 0, 0)
    record["nlabl"] = 1
    record["label"][0, 0] = b"deepict_dask"
    return record.tobytes()


def _statistics(layout: RawLayout) -> tuple[float, float, float, float]:
    """Return minimum, maximum, mean and rms deviation, slab by slab.

    Means and squared deviations of slabs are merged as in Chan, Golub and LeVeque (1979), which
    does not cancel digits as a sum of squares does.
    """
    low, high, mean, squares, count = math.inf, -math.inf, 0.0, 0.0, 0
    for box in _slabs(layout.shape, np.dtype(layout.dtype).itemsize):
        slab = layout.read(box)
        low, high = min(low, float(slab.min())), max(high, float(slab.max()))
        slab_mean = float(slab.mean(dtype=np.float64))
        total = count + slab.size
        shift = slab_mean - mean
        squares += _squares(slab, slab_mean) + shift * shift * count * slab.size / total
        mean += shift * slab.size / total
        count = total
    return low, high, mean, math.sqrt(squares / count)


def _squares(slab: Array, mean: float) -> float:
    """Return the summed squared deviations, section by section to keep memory small."""
    return float(sum(np.square(section - np.float64(mean)).sum() for section in slab))


def _slabs(shape: Vec, itemsize: int) -> list[Box]:
    depth = max(1, SLAB_BYTES // (shape[1] * shape[2] * itemsize))
    starts = range(0, shape[0], depth)
    return [Box((z, 0, 0), (min(shape[0], z + depth), shape[1], shape[2])) for z in starts]
