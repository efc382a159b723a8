"""How a Fourier transform is done within the memory of a worker: in one piece or in many.

1. In one piece if the volume and its transform fit the budget of one task.
2. Else in pieces. Blocks of rows are whole chunks of the output in z and y, at least 128 voxels
   wide, so that no chunk is written twice. A block is worked on a few planes at a time.
3. Sheets have as many columns as make chunks of the scratch array handy, or as fit.
4. Only if a block of one chunk, or a sheet of one column, does not fit is the request refused.

The scratch arrays have one chunk for each sheet and each few planes of a block: both ways of
going over them read and write whole chunks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.geometry import Box, Grid, Vec
from ..core.ops import FilteringPieces
from .budget import check_budget, format_bytes, task_budget_bytes
from .scratch import ScratchArray

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..core.geometry import Block
    from ..core.ops import MeasuringPieces, SpectralMeasure, SpectralOp

__all__ = [
    "PieceLayout",
    "SpectralPlan",
    "candidate_layouts",
    "choose_layout",
    "plan_spectral",
    "task_bytes",
]

BLOCK_VOXELS = 128
"""Blocks of rows have at least this many voxels in z and in y, where the volume has them."""
CHUNK_BYTES = 2 << 20
"""Scratch chunks are at least as large, where that fits: smaller files cost more than they hold."""
PADDING = 0.125
"""Scratch chunks are stored whole: what they may hold beyond the volume's ends on an axis."""
N_SHEETS = 64
"""Enough for many workers; wider sheets gain nothing."""


@dataclass(frozen=True)
class PieceLayout:
    """How a volume is cut into rows and sheets.

    Examples
    --------
    >>> layout = PieceLayout((40, 50, 60), block=(20, 30), planes=10, columns=8)
    >>> layout.rows.n_blocks, layout.sheets.n_blocks, layout.chunk
    (4, 4, (8, 10, 30))
    """

    shape: Vec
    """Voxels of the volume, zyx."""
    block: tuple[int, int]
    """Voxels of a block of rows in z and y."""
    planes: int
    """z planes of a block worked on at a time; divides it."""
    columns: int
    """Columns of a sheet."""
    lines: int = 0
    """Voxels in y of a scratch chunk; divides the block, 0 for all of it."""

    @cached_property
    def rows(self) -> Grid:
        """Blocks of rows, whole along x."""
        return Grid(self.shape, (*self.block, self.shape[2]))

    @cached_property
    def sheets(self) -> Grid:
        """Sheets, on the axes column, z, y."""
        n_z, n_y, n_x = self.shape
        return Grid((n_x // 2 + 1, n_z, n_y), (self.columns, n_z, n_y))

    @property
    def chunk(self) -> Vec:
        """Chunk of a scratch array, on the axes column, z, y."""
        return (self.columns, self.planes, self.lines or self.block[1])

    def pieces(self, block: Block) -> Iterator[tuple[Box, Box]]:
        """Yield the boxes of a block's pieces: of voxels, zyx, and of column, z, y."""
        (start, y0, _), (stop, y1, n_x) = block.write.start, block.write.stop
        n_columns = self.sheets.shape[0]
        for z in range(start, stop, self.planes):
            end = min(stop, z + self.planes)
            yield Box((z, y0, 0), (end, y1, n_x)), Box((0, z, y0), (n_columns, end, y1))

    def scratch(self, path: str, dtype: str) -> ScratchArray:
        """Return a scratch array that is not made yet."""
        return ScratchArray(path, self.sheets.shape, self.chunk, dtype)


def task_bytes(pieces: MeasuringPieces, layout: PieceLayout, write_shape: Vec) -> int:
    """Return the peak bytes of the hungriest task, with the chunks that are read and written."""
    chunk = layout.scratch("", pieces.scratch_dtype).chunk_bytes
    piece = (layout.planes, layout.block[1], layout.shape[2])
    needed = [
        pieces.rows_bytes(piece) + 2 * chunk,
        pieces.sheet_bytes(layout.sheets.write_shape) + 2 * chunk,
    ]
    if isinstance(pieces, FilteringPieces):
        block = 4 * math.prod((*layout.block, layout.shape[2]))
        written = 2 * 4 * math.prod(write_shape)
        needed.append(block + max(pieces.voxels_bytes(piece) + chunk, written))
    return max(needed)


def choose_layout(
    pieces: MeasuringPieces, shape: Vec, write_shape: Vec, budget_bytes: int
) -> PieceLayout:
    """Return the handiest layout that fits; the smallest where none does.

    Parameters
    ----------
    pieces
        What is computed.
    shape
        Voxels of the volume, zyx.
    write_shape
        Chunk of the output, or of any grid where there is none.
    budget_bytes
        Of a task.
    """
    for layout in candidate_layouts(pieces.scratch_dtype, shape, write_shape):
        if task_bytes(pieces, layout, write_shape) <= budget_bytes:
            break
    return layout


def candidate_layouts(dtype: str, shape: Vec, write_shape: Vec) -> Iterator[PieceLayout]:
    """Yield layouts from the handiest to the smallest."""
    n_columns = shape[2] // 2 + 1
    one_chunk = [min(w, n) for w, n in zip(write_shape, shape, strict=True)]
    wide = [min(n, w * -(-BLOCK_VOXELS // w)) for w, n in zip(one_chunk, shape, strict=True)]
    for n_z, n_y in dict.fromkeys([(wide[0], wide[1]), (one_chunk[0], one_chunk[1])]):
        lines = _divisors(n_y, shape[1])[0]
        for planes in _divisors(n_z, shape[0]):
            handy = -(-CHUNK_BYTES // (np.dtype(dtype).itemsize * planes * lines))
            columns = min(n_columns, max(handy, -(-n_columns // N_SHEETS)))
            while columns > 0:
                even = -(-n_columns // -(-n_columns // columns))
                yield PieceLayout(shape, (n_z, n_y), planes, even, lines)
                columns = even // 2


def _divisors(block: int, size: int) -> list[int]:
    """Return divisors of a block, the largest first, whose chunks hardly go beyond the volume.

    Examples
    --------
    >>> _divisors(128, 300)
    [64, 32, 16, 8, 4, 2, 1]
    """
    divisors = [n for n in range(block, 0, -1) if block % n == 0]
    return [n for n in divisors if n == 1 or -(-size // n) * n <= (1 + PADDING) * size]


@dataclass(frozen=True)
class SpectralPlan:
    """Which way a transform goes, and what that takes."""

    layout: PieceLayout | None
    """None for the whole volume as one task."""
    task_bytes: int
    """Peak bytes of the hungriest task."""
    whole_bytes: int
    """Peak bytes of one task that holds the whole volume."""
    n_tasks: int
    scratch_bytes: int
    """Largest size of the scratch arrays on disk."""

    def __str__(self) -> str:
        """Return the plan in words."""
        if self.layout is None:
            return f"whole, 1 task of {format_bytes(self.task_bytes)}"
        rows, sheets = self.layout.rows.n_blocks, self.layout.sheets.n_blocks
        return (
            f"in pieces (whole it would take {format_bytes(self.whole_bytes)}): {rows} blocks of "
            f"rows, {sheets} sheets, {self.n_tasks} tasks of {format_bytes(self.task_bytes)}, "
            f"{format_bytes(self.scratch_bytes)} of scratch space"
        )


def plan_spectral(
    op: SpectralOp | SpectralMeasure[Any], shape: Vec, write_shape: Vec, worker_bytes: int
) -> SpectralPlan:
    """Choose the way of a transform by the memory of a worker.

    Parameters
    ----------
    op
        What is computed.
    shape
        Voxels of the volume, zyx.
    write_shape
        Chunk of the output, or of any grid where there is none.
    worker_bytes
        Memory of a worker.

    Raises
    ------
    BudgetError
        Not even the smallest pieces fit.

    Examples
    --------
    >>> from deepict_dask.equalization import EqualizeOp, Spectrum
    >>> op = EqualizeOp(Spectrum((1.0,), (0.01,)), 10.0)
    >>> print(plan_spectral(op, (512, 512, 512), (128, 128, 128), 4 << 30))
    whole, 1 task of 1.0 GiB
    >>> print(plan_spectral(op, (512, 512, 512), (128, 128, 128), 1 << 29))
    in pieces (whole it would take 1.0 GiB): 16 blocks of rows, 17 sheets, 66 tasks of 80.1 MiB, \
1.1 GiB of scratch space
    """
    whole = op.bytes_needed(shape)
    budget = task_budget_bytes(worker_bytes)
    if whole <= budget:
        return SpectralPlan(None, whole, whole, 1, 0)
    pieces = op.in_pieces(shape)
    layout = choose_layout(pieces, shape, write_shape, budget)
    needed = task_bytes(pieces, layout, write_shape)
    check_budget(op.name, needed, worker_bytes)
    rows, sheets = layout.rows.n_blocks, layout.sheets.n_blocks
    one = layout.scratch("", pieces.scratch_dtype).n_bytes
    if isinstance(pieces, FilteringPieces):
        return SpectralPlan(layout, needed, whole, 2 * (rows + sheets), (1 + pieces.n_parts) * one)
    return SpectralPlan(layout, needed, whole, rows + sheets, one)
