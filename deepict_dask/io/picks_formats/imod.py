"""IMOD's models (.mod), binary, version 1.2: the points of all objects.

A file is an identifier, a header of 232 bytes, and chunks: ``OBJT``, ``CONT`` and ``MESH`` with
fixed heads, any other with its length, up to ``IEOF``. Numbers are big-endian. An object is a
class, with its name; contours and sizes of points come back as ``imod_contour`` and ``imod_size``;
meshes, colours and planes are passed over.

IMOD counts from the corner of the first voxel in x and y, and from the middle of the first section
in z: the centre of voxel (0, 0, 0) is at (0.5, 0.5, 0). So

    voxel = (x - 0.5, y - 0.5, z)

Every chunk moves on by at least 8 bytes and is checked against the file's size before it is read,
so that no file can hold the reader: imodmodel 0.1 does not return on some.

Source: IMOD's description of its binary format; imodmodel reads what is written here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.errors import PicksFormatError
from ...core.geometry import as_vec
from ..picks_numbers import class_numbers
from ..picks_table import checked_picks, make_picks, named_by_number

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pandas as pd

    from ..picks_table import TomogramFrame

__all__ = ["dump_imod", "load_imod"]

_MAGIC = b"IMODV1.2"
_HEADER = struct.Struct(">128s4iI4i6f5if2i3f")
_OBJECT = struct.Struct(">64s64siIii3fi8B2i")
_CONTOUR = struct.Struct(">iIii")
_MESH_BYTES = 16
_FLIPPED = 1 << 16
"""The model was drawn on data whose y and z were exchanged."""
_NEW_MODEL_FLAGS = 0xF600
_SCATTERED = 0x208
_NANOMETRES = -9
_CORNER = np.array([0.5, 0.5, 0.0])
"""Where IMOD has the centre of the first voxel, x, y, z."""
_COLOURS = ((0, 1, 0), (1, 0.5, 0), (0, 0.5, 1), (1, 0, 1), (1, 1, 0), (0, 1, 1))


@dataclass
class _Contour:
    xyz: np.ndarray[Any, Any]
    sizes: np.ndarray[Any, Any] | None = None


@dataclass
class _Object:
    name: str
    contours: list[_Contour] = field(default_factory=list)


def load_imod(path: Path, _frame: TomogramFrame) -> pd.DataFrame:
    """Read the points of a model.

    Returns
    -------
    DataFrame
        A picks table with ``class_number`` (the object, from 1), ``class_name`` where an object has
        a name, ``imod_contour`` (from 1 in each object) and ``imod_size``, where points have one.

    Raises
    ------
    PicksFormatError
        Where the file is no such model, is truncated, or was drawn on flipped data.
    """
    objects = _Model(path).objects()
    held = [
        (number, known.name, place, contour)
        for number, known in enumerate(objects, 1)
        for place, contour in enumerate(known.contours, 1)
        if len(contour.xyz)
    ]
    if not held:
        return make_picks([])
    counts = [len(contour.xyz) for *_, contour in held]
    xyz = np.concatenate([contour.xyz for *_, contour in held]).astype(np.float64) - _CORNER
    picks = make_picks(xyz[:, ::-1], None)
    picks["class_number"] = np.repeat([number for number, *_ in held], counts)
    if any(name for _, name, *_ in held):
        picks["class_name"] = np.repeat(np.array([name for _, name, *_ in held], object), counts)
    picks["imod_contour"] = np.repeat([place for *_, place, _ in held], counts)
    if any(contour.sizes is not None for *_, contour in held):
        sizes = [_sizes_of(contour) for *_, contour in held]
        picks["imod_size"] = np.concatenate(sizes)
    return checked_picks(named_by_number(picks), path)


def _sizes_of(contour: _Contour) -> np.ndarray[Any, Any]:
    """Return the radius of each point; NaN where it has that of the object."""
    if contour.sizes is None:
        return np.full(len(contour.xyz), np.nan)
    sizes = contour.sizes.astype(np.float64)
    return np.where(sizes < 0, np.nan, sizes)


class _Model:
    """Walks through the chunks of a file that is held in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = path.read_bytes()
        self.place = 0

    def objects(self) -> list[_Object]:
        if self.data[:8] != _MAGIC:
            raise self._error(
                f"expected an IMOD model of version 1.2, found {self.data[:8]!r}; save it again in "
                "3dmod"
            )
        self.place = len(_MAGIC)
        header = _HEADER.unpack(self._take(_HEADER.size))
        if header[5] & _FLIPPED:
            raise self._error(
                "expected a model of unflipped data, found one whose y and z are exchanged; load "
                "it on the tomogram in 3dmod, flip back, and save it"
            )
        found: list[_Object] = []
        for kind in self._chunks():
            self._read(kind, found)
        return found

    def _chunks(self) -> Iterator[bytes]:
        while self.place < len(self.data):
            kind = self._take(4)
            if kind == b"IEOF":
                return
            yield kind
        raise self._error("expected the mark of the model's end, found none; copy the file again")

    def _read(self, kind: bytes, found: list[_Object]) -> None:
        """Read one chunk, from behind its name."""
        if kind == b"OBJT":
            name = _OBJECT.unpack(self._take(_OBJECT.size))[0]
            found.append(_Object(name.split(b"\0")[0].decode("latin-1").strip()))
        elif kind == b"CONT":
            n_points = _CONTOUR.unpack(self._take(_CONTOUR.size))[0]
            self._owner(found).contours.append(_Contour(self._floats(n_points * 3).reshape(-1, 3)))
        elif kind == b"MESH":
            n_vertices, n_indices = struct.unpack(">2i", self._take(_MESH_BYTES)[:8])
            self._take(n_vertices * 12)
            self._take(n_indices * 4)
        else:
            n_bytes = struct.unpack(">i", self._take(4))[0]
            if kind == b"SIZE":
                self._sizes(n_bytes, self._owner(found))
            else:
                self._take(n_bytes)

    def _sizes(self, n_bytes: int, known: _Object) -> None:
        """Read the sizes of the points of the last contour."""
        if not known.contours or n_bytes != 4 * len(known.contours[-1].xyz):
            raise self._error(f"expected a size for each point of a contour, found {n_bytes} bytes")
        known.contours[-1].sizes = self._floats(n_bytes // 4)

    def _owner(self, found: list[_Object]) -> _Object:
        if not found:
            raise self._error("expected an object before its points, found none")
        return found[-1]

    def _floats(self, n: int) -> np.ndarray[Any, Any]:
        return np.frombuffer(self._take(4 * n), ">f4")

    def _take(self, n_bytes: int) -> bytes:
        """Return the next bytes, which must be there."""
        left = len(self.data) - self.place
        if not 0 <= n_bytes <= left:
            raise self._error(f"expected {n_bytes} more bytes, found {left}; copy the file again")
        self.place += n_bytes
        return self.data[self.place - n_bytes : self.place]

    def _error(self, text: str) -> PicksFormatError:
        return PicksFormatError(f"{self.path}, byte {self.place}: {text}")


def dump_imod(table: pd.DataFrame, frame: TomogramFrame) -> bytes:
    """Return the bytes of a model: an object of scattered points for each class.

    Parameters
    ----------
    table
        Picks. ``imod_contour`` sorts the points of an object into contours, ``imod_size`` is the
        radius at which a point is shown.
    frame
        Shape and voxel spacing of the tomogram, where they are known, for the model's header.

    Examples
    --------
    >>> from deepict_dask.io.picks_table import TomogramFrame, make_picks
    >>> data = dump_imod(make_picks([[5, 88, 9]]), TomogramFrame())
    >>> data[:8], data[-4:], len(data)
    (b'IMODV1.2', b'IEOF', 456)
    """
    picks = checked_picks(table)
    numbers = class_numbers(picks)
    last = int(numbers.max(initial=0))
    if numbers.min(initial=1) < 1 or last > 10_000:
        raise PicksFormatError(
            f"IMOD model: expected classes from 1 to 10000, found {numbers.min()} to {last}; "
            "number the classes from 1"
        )
    objects = [_object_bytes(picks[numbers == number], number) for number in range(1, last + 1)]
    return _MAGIC + _header_bytes(picks, frame, last) + b"".join(objects) + b"IEOF"


def _header_bytes(picks: pd.DataFrame, frame: TomogramFrame, n_objects: int) -> bytes:
    shape = frame.shape
    if shape is None:
        far = picks[["z", "y", "x"]].max().to_numpy() if len(picks) else np.zeros(3)
        shape = as_vec(np.clip(np.ceil(far) + 1, 1, 1 << 30).astype(int))
    pixel, unit = 1.0, 0
    if frame.voxel_spacing_angstrom is not None:
        pixel, unit = frame.voxel_spacing_angstrom / 10, _NANOMETRES
    return _HEADER.pack(
        b"deepict_dask", *shape[::-1], n_objects, _NEW_MODEL_FLAGS, 1, 1, 0, 255,
        0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0, 0, 0, 3, 128, pixel, unit, 0, 0.0, 0.0, 0.0,
    )  # fmt: skip


def _object_bytes(picks: pd.DataFrame, number: int) -> bytes:
    """Return an object with its contours."""
    names: list[str] = []
    if "class_name" in picks:
        names = sorted(set(picks["class_name"].dropna().astype(str)) - {str(number)})
    name = names[0].encode("latin-1", "replace")[:63] if len(names) == 1 else b""
    contours = [picks]
    if "imod_contour" in picks:
        contours = [rows for _, rows in picks.groupby("imod_contour", dropna=False)]
    elif picks.empty:
        contours = []
    colour = _COLOURS[(number - 1) % len(_COLOURS)]
    head = _OBJECT.pack(
        name, b"", len(contours), _SCATTERED, 0, 1, *colour, 4, 1, 3, 1, 1, 0, 0, 0, 0, 0, 0
    )
    return b"OBJT" + head + b"".join(_contour_bytes(rows) for rows in contours)


def _contour_bytes(picks: pd.DataFrame) -> bytes:
    xyz = (picks[["x", "y", "z"]].to_numpy() + _CORNER).astype(">f4")
    data = b"CONT" + _CONTOUR.pack(len(picks), 0, 0, 0) + xyz.tobytes()
    if "imod_size" not in picks:
        return data
    sizes = picks["imod_size"].fillna(-1).to_numpy().astype(">f4").tobytes()
    return data + b"SIZE" + struct.pack(">i", len(sizes)) + sizes
