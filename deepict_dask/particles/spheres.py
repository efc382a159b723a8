"""Spheres at picks, painted chunk by chunk.

Which voxels belong to a particle, and which picks does a chunk need?

1. A voxel belongs to a particle if its centre is within the radius of the particle's position,
   which may lie between voxels; the radius itself is inside.
2. A voxel of several particles goes to the nearest one, at equal distance to the one that comes
   first in the list. Distances are computed from positions in the volume, never in the chunk, so
   this does not depend on the chunking.
3. The picks lie sorted by their chunk in one file. A chunk reads those of the chunks that its
   spheres can come from: a few stretches of that file. No list travels with the tasks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import PositiveFloat, model_validator

from ..config.stages import Strict
from ..core.errors import PicksFormatError
from ..core.geometry import Vec, as_vec
from ..core.ops import ChunkOp
from .deepict_compat import paint_as_deepict

if TYPE_CHECKING:
    import pandas as pd

    from ..core.geometry import Block, Box, Grid

__all__ = [
    "SPHERE_DTYPE",
    "SphereOp",
    "SphereSettings",
    "paint_nearest",
    "smallest_type",
    "sphere_rows",
    "values_of",
    "write_sphere_table",
]

Array = np.ndarray[Any, Any]
Legend = dict[int, str]
SPHERE_DTYPE = np.dtype(
    [(name, np.float64) for name in ("z", "y", "x", "radius", "value")] + [("number", np.int64)]
)
"""A sphere: centre and radius in voxels, what is painted, place in the list."""
_SLACK = 1e-9
"""A radius that was given in nm and is whole in voxels must stay inclusive."""
_TABLE, _STARTS = "spheres.npy", "starts.npy"


class SphereSettings(Strict):
    """What is painted at a pick.

    Examples
    --------
    >>> SphereSettings(radius=8).value
    1.0
    """

    radius: PositiveFloat | None = None
    """In voxels."""
    radius_nm: PositiveFloat | None = None
    """Instead, in nm."""
    radius_column: str | None = None
    """Instead: the column of the list that holds each pick's radius in voxels."""
    value: PositiveFloat = 1.0
    """What a sphere's voxels become."""
    by_column: str | None = None
    """Instead of a value: a column; texts are numbered from 1 in alphabetical order."""
    numbered: bool = False
    """Instead of a value: the place of the pick in its list, from 1."""
    class_name: str | None = None
    """Only the picks of this class."""
    compat: Literal["deepict"] | None = None
    """Reproduce the published script: its spheres, later over earlier, float32."""

    @model_validator(mode="after")
    def _one_of_each(self) -> SphereSettings:
        radii = [r for r in (self.radius, self.radius_nm, self.radius_column) if r is not None]
        if len(radii) != 1:
            raise ValueError(
                f"expected one of radius, radius_nm and radius_column, found {len(radii)} of them"
            )
        if (self.by_column is not None) + self.numbered + ("value" in self.model_fields_set) > 1:
            raise ValueError("expected one of value, by_column and numbered, found several")
        return self


def sphere_rows(zyx: Array, *, radius: Any, values: Any) -> Array:
    """Return spheres as rows of `SPHERE_DTYPE`.

    Parameters
    ----------
    zyx
        Centres in voxels, (n, 3).
    radius, values
        One number, or one for each sphere.

    Examples
    --------
    >>> sphere_rows(np.zeros((2, 3)), radius=3, values=[1, 2])["value"].tolist()
    [1.0, 2.0]
    """
    rows = np.zeros(len(zyx), SPHERE_DTYPE)
    rows["z"], rows["y"], rows["x"] = zyx.T
    rows["radius"], rows["value"], rows["number"] = radius, values, np.arange(len(zyx))
    return rows


def paint_nearest(canvas: Array, rows: Array, box: Box) -> None:
    """Paint spheres on a canvas over a box; a voxel goes to the nearest centre.

    Parameters
    ----------
    canvas
        zyx, changed in place.
    rows
        Spheres in any order; those outside the box are passed over.
    box
        The voxels that the canvas covers.

    Examples
    --------
    >>> from deepict_dask.core.geometry import Box
    >>> canvas = np.zeros((1, 1, 6), np.uint8)
    >>> rows = sphere_rows(np.array([[0, 0, 1.0], [0, 0, 3.5]]), radius=2, values=[7, 9])
    >>> paint_nearest(canvas, rows, Box.whole((1, 1, 6)))
    >>> canvas.tolist()
    [[[7, 7, 7, 9, 9, 9]]]
    """
    nearest = np.full(canvas.shape, np.inf)
    for *centre, radius, value, _ in np.sort(rows, order="number").tolist():
        reach = radius * (1 + _SLACK)
        start = [max(math.ceil(c - reach), a) for c, a in zip(centre, box.start, strict=True)]
        stop = [min(math.floor(c + reach) + 1, b) for c, b in zip(centre, box.stop, strict=True)]
        if any(b <= a for a, b in zip(start, stop, strict=True)):
            continue
        dz, dy, dx = (np.arange(a, b) - c for a, b, c in zip(start, stop, centre, strict=True))
        squared = (dz * dz)[:, None, None] + (dy * dy)[:, None] + dx * dx
        part = tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, box.start, strict=True))
        closer = (squared <= reach * reach) & (squared < nearest[part])
        np.copyto(nearest[part], squared, where=closer)
        np.copyto(canvas[part], value, where=closer, casting="unsafe")


def values_of(table: pd.DataFrame, settings: SphereSettings) -> tuple[Array, Legend]:
    """Return what each pick is painted with, and what numbers stand for where they name texts.

    Raises
    ------
    PicksFormatError
        There is no such column, or a number in it is missing.

    Examples
    --------
    >>> from deepict_dask.io.picks_table import make_picks
    >>> picks = make_picks([[0, 0, 0], [1, 1, 1]], class_name=["ribosome", "fas"])
    >>> values_of(picks, SphereSettings(radius=3, by_column="class_name"))
    (array([2., 1.]), {1: 'fas', 2: 'ribosome'})
    """
    if settings.numbered:
        return np.arange(1.0, len(table) + 1), {}
    if settings.by_column is None:
        return np.full(len(table), settings.value), {}
    column = table[_known(table, settings.by_column)]
    if column.dtype.kind in "iufb":
        return _finite(column, settings.by_column), {}
    names, numbers = np.unique(column.astype(str).to_numpy(str), return_inverse=True)
    return numbers + 1.0, {i: str(name) for i, name in enumerate(names, 1)}


def radii_of(table: pd.DataFrame, settings: SphereSettings, radius: float | None) -> Array:
    """Return the radius of each pick in voxels: the one given, or the column's."""
    if radius is not None:
        return np.full(len(table), radius)
    name = _known(table, str(settings.radius_column))
    radii = _finite(table[name], name)
    if (radii <= 0).any():
        raise PicksFormatError(f"{name}: expected positive radii, found {radii.min():g}")
    return radii


def _known(table: pd.DataFrame, name: str) -> str:
    if name not in table.columns:
        raise PicksFormatError(
            f"particle list: expected a column {name!r}, found {', '.join(table.columns)}"
        )
    return name


def _finite(column: pd.Series[Any], name: str) -> Array:
    try:
        values = column.to_numpy(np.float64)
    except (TypeError, ValueError) as error:
        raise PicksFormatError(f"{name}: expected numbers, found {error}") from error
    if not np.isfinite(values).all():
        raise PicksFormatError(
            f"{name}: expected a number for every pick, found "
            f"{int((~np.isfinite(values)).sum())} picks without; fill them in"
        )
    return values


def smallest_type(values: Array) -> str:
    """Return the smallest unsigned type that holds the values, float32 if none does.

    Examples
    --------
    >>> smallest_type(np.array([1.0, 300.0])), smallest_type(np.array([0.5]))
    ('uint16', 'float32')
    """
    whole = (values == np.rint(values)).all() and values.min(initial=0) >= 0
    if not whole or values.max(initial=0) > np.iinfo(np.uint32).max:
        return "float32"
    return np.min_scalar_type(int(values.max(initial=0))).name


def write_sphere_table(folder: Path, rows: Array, grid: Grid) -> SphereTable:
    """Write spheres sorted by the chunk their centre is in, and where each chunk's begin.

    Centres outside the volume count to the chunk nearest to them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    step = np.array(grid.write_shape)
    centres = np.stack([rows["z"], rows["y"], rows["x"]], axis=1)
    index = np.clip(np.rint(centres) // step, 0, np.array(grid.counts) - 1).astype(np.int64)
    homes = np.ravel_multi_index(tuple(index.T), grid.counts)
    counts = np.bincount(homes, minlength=grid.n_blocks)
    # One more chunk on each side makes room for the rounding of centres.
    reach = float(rows["radius"].max(initial=0)) + 1
    table = SphereTable(str(folder), grid.counts, as_vec([math.ceil(reach / s) for s in step]))
    np.save(folder / _TABLE, rows[np.argsort(homes, kind="stable")])
    np.save(folder / _STARTS, np.concatenate([[0], np.cumsum(counts)]))
    return table


def meets_box(rows: Array, box: Box) -> Array:
    """Say for each sphere whether its bounding box, with room for rounding, meets a box."""
    meets = np.ones(len(rows), bool)
    for axis, start, stop in zip("zyx", box.start, box.stop, strict=True):
        reach = rows["radius"] + 1
        meets &= (rows[axis] > start - reach) & (rows[axis] < stop - 1 + reach)
    return meets


@dataclass(frozen=True)
class SphereTable:
    """Spheres on disk, sorted by chunk."""

    folder: str
    counts: Vec
    """Chunks on each axis."""
    reach: Vec
    """So many chunks away a sphere's centre can be."""

    def stretches(self, index: Vec) -> list[tuple[int, int]]:
        """Return first and last chunk numbers of the rows of chunks that reach a chunk."""
        low = [max(0, i - r) for i, r in zip(index, self.reach, strict=True)]
        high = [min(n, i + r + 1) for n, i, r in zip(self.counts, index, self.reach, strict=True)]
        _, ny, nx = self.counts
        starts = [(z * ny + y) * nx for z in range(low[0], high[0]) for y in range(low[1], high[1])]
        return [(start + low[2], start + high[2]) for start in starts]

    def rows_for(self, block: Block) -> Array:
        """Return the spheres whose bounding box may meet a block."""
        rows, starts = (np.load(Path(self.folder, n), mmap_mode="r") for n in (_TABLE, _STARTS))
        parts = (np.array(rows[starts[a] : starts[b]]) for a, b in self.stretches(block.index))
        return np.concatenate([part[meets_box(part, block.read)] for part in parts])

    def most_rows(self) -> int:
        """Return the largest number of spheres that any chunk looks at."""
        counts = np.diff(np.load(Path(self.folder, _STARTS))).reshape(self.counts)
        for axis, reach in enumerate(self.reach):
            sums = np.concatenate(
                [np.zeros_like(counts.take([0], axis)), counts.cumsum(axis)], axis
            )
            places = np.arange(self.counts[axis])
            high = sums.take(np.minimum(places + reach + 1, self.counts[axis]), axis)
            counts = high - sums.take(np.maximum(places - reach, 0), axis)
        return int(counts.max())


@dataclass(frozen=True)
class SphereOp(ChunkOp):
    """Paint the spheres of a table on windows that are still empty.

    Examples
    --------
    >>> import tempfile
    >>> from deepict_dask.core.geometry import Grid
    >>> grid = Grid((4, 4, 4), (4, 4, 2))
    >>> rows = sphere_rows(np.array([[1.0, 1, 1]]), radius=1, values=1)
    >>> op = SphereOp(write_sphere_table(Path(tempfile.mkdtemp()), rows, grid), "uint8", n_rows=1)
    >>> [int(op.apply(block, np.zeros(block.read.shape, "uint8")).sum()) for block in grid]
    [6, 1]
    """

    table: SphereTable
    dtype: str
    n_rows: int
    """The largest number of spheres that any chunk looks at."""
    compat: bool = False
    name: str = "paint"

    def apply(self, block: Block, *windows: Array) -> Array:
        """Return the window (zyx, the op's type, 0 everywhere) with its spheres."""
        (canvas,) = windows
        rows = self.table.rows_for(block)
        if len(rows):
            (paint_as_deepict if self.compat else paint_nearest)(canvas, rows, block.read)
        return canvas

    def bytes_needed(self, window_shape: Vec) -> int:
        """Return the bytes of the window, distances of one sphere and of all, and the spheres."""
        per_voxel = np.dtype(self.dtype).itemsize * 2 + 8 + 8 + 8 + 3
        return math.prod(window_shape) * per_voxel + 3 * self.n_rows * SPHERE_DTYPE.itemsize
