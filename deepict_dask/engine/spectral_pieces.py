"""A Fourier transform of a volume that does not fit a worker, through scratch arrays.

1. Rows: every block is read and transformed along x; the result goes to the first scratch array.
2. Measure: every sheet of it is transformed along y and z and summed up; nothing is written.
3. Filter: every sheet is transformed again (cheaper than to store it), multiplied and transformed
   back; the result goes to other scratch arrays, then the first one is removed.
4. Voxels: every block is transformed back along x and written as whole chunks of the output.

No task writes to what it reads, so a task that is run twice does no harm. Sums are added in the
order of blocks and columns, whichever ends first.
"""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.geometry import Grid
from ..core.ops import FilteringPieces
from .arrays import _read_chunk_by_chunk, naming, run_each, task_key
from .patience import read_patiently, write_patiently

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from ..core.geometry import Block
    from ..core.ops import MeasuringPieces
    from ..core.statistics import VolumeStatistics
    from ..core.volume import VolumeReader, VolumeWriter
    from .cluster import Workers
    from .progress import Progress
    from .scratch import ScratchArray
    from .spectral_plan import PieceLayout

__all__ = ["PiecewiseTransform"]


@dataclass(frozen=True)
class _Work:
    """What every task is given; picklable."""

    pieces: Any
    """`MeasuringPieces`, for filtering `FilteringPieces`."""
    layout: PieceLayout
    source: VolumeReader
    statistics: VolumeStatistics
    rows: ScratchArray
    """Transformed along x."""
    parts: tuple[ScratchArray, ...] = ()
    """The same, filtered."""
    gain: Any = None


def _transform_rows(number: int, work: _Work) -> Any:
    """Transform a block along x; return its note."""
    _read_chunk_by_chunk()
    note = 0j
    for box, place in work.layout.pieces(work.layout.rows[number]):
        with naming(work.source.path):
            half, of_piece = work.pieces.rows(
                box, read_patiently(work.source, box), work.statistics
            )
        note += of_piece
        work.rows.write(place, half.transpose(2, 0, 1))
    return np.array([note])


def _columns(block: Block) -> slice:
    """Return the columns of a sheet."""
    return slice(block.write.start[0], block.write.stop[0])


def _measure_sheet(number: int, work: _Work) -> Any:
    """Transform a sheet along y and z; return sums of each column."""
    _read_chunk_by_chunk()
    block = work.layout.sheets[number]
    return work.pieces.measure(_columns(block), work.rows.read(block.write))


def _filter_sheet(number: int, work: _Work) -> None:
    """Multiply a sheet by the gain."""
    _read_chunk_by_chunk()
    block = work.layout.sheets[number]
    filtered = work.pieces.filter(_columns(block), work.rows.read(block.write), work.gain)
    for store, part in zip(work.parts, filtered, strict=True):
        store.write(block.write, part)


def _write_voxels(number: int, work: _Work, sink: VolumeWriter) -> None:
    """Transform a block back along x and write it, chunk by chunk."""
    _read_chunk_by_chunk()
    block = work.layout.rows[number]
    voxels = np.empty(block.write.shape, np.float32)
    for box, place in work.layout.pieces(block):
        parts = tuple(part.read(place).transpose(1, 2, 0) for part in work.parts)
        out = voxels[box.slices_in(block.write)]
        work.pieces.voxels(parts, work.gain, work.statistics, out)
        del parts
    for chunk in Grid(voxels.shape, sink.write_shape):
        write_patiently(sink, chunk.write.shift(block.write.start), voxels[chunk.write.slices])


@dataclass(frozen=True)
class PiecewiseTransform:
    """One transform in pieces, and where its tasks run.

    Examples
    --------
    See `deepict_dask.engine.spectral` for its use.
    """

    workers: Workers
    name: str
    """The stage, for progress and messages."""
    progress: Progress
    pieces: MeasuringPieces
    layout: PieceLayout
    source: VolumeReader
    statistics: VolumeStatistics
    scratch: Path
    """Folder for the scratch arrays, which all workers can reach; removed at the end."""

    def measure(self) -> Any:
        """Return what ``pieces.finish`` returns.

        Raises
        ------
        WorkFailedError
            A task failed.
        """
        with self._folder():
            return self._measured(self._start())

    def transform(self, sink: VolumeWriter) -> None:
        """Write the filtered volume.

        Raises
        ------
        WorkFailedError
            A task failed.
        """
        assert isinstance(self.pieces, FilteringPieces)  # made by a SpectralOp
        layout = self.layout
        with self._folder():
            work = self._start()
            work = replace(work, gain=self._measured(work), parts=self._parts(self.pieces.n_parts))
            for _ in self._each("filter", layout.sheets.n_blocks, _filter_sheet, work):
                pass
            work.rows.remove()
            for _ in self._each("voxels", layout.rows.n_blocks, _write_voxels, work, sink):
                pass

    @contextmanager
    def _folder(self) -> Iterator[None]:
        """Make room for the scratch arrays, and remove them whatever happens."""
        self.scratch.mkdir(parents=True, exist_ok=True)
        try:
            yield
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)

    def _start(self) -> _Work:
        rows = self.layout.scratch(str(self.scratch / "rows"), self.pieces.scratch_dtype)
        return _Work(self.pieces, self.layout, self.source, self.statistics, rows.create())

    def _parts(self, n_parts: int) -> tuple[ScratchArray, ...]:
        paths = [str(self.scratch / f"part_{number}") for number in range(n_parts)]
        dtype = self.pieces.scratch_dtype
        return tuple(self.layout.scratch(path, dtype).create() for path in paths)

    def _measured(self, work: _Work) -> Any:
        """Fill the first scratch array, and measure it."""
        layout = self.layout
        notes = _sum(self._each("rows", layout.rows.n_blocks, _transform_rows, work))
        sums = _sum(self._each("spectrum", layout.sheets.n_blocks, _measure_sheet, work))
        return self.pieces.finish(complex(notes), sums)

    def _each(self, stage: str, n_tasks: int, task: Any, *arguments: Any) -> Iterator[Any]:
        """Run one task for each block of rows or each sheet; yield results in their order."""
        name = f"{self.name}: {stage}"

        def submit(number: int) -> Any:
            how = {"pure": False, "key": task_key(name, number)} | self.workers.placed()
            return self.workers.client.submit(task, number, *arguments, **how)

        waiting, following = {}, 0
        with self.progress.stage(name, n_tasks) as advance:
            done = run_each(
                self.workers, submit, range(n_tasks), stage=name, where=self.source.path
            )
            for number, result in done:
                waiting[number] = result
                advance(1)
                while following in waiting:
                    yield waiting.pop(following)
                    following += 1


def _sum(results: Iterable[Any]) -> Any:
    """Add the entries of the first axes of arrays, one by one."""
    total: Any = 0
    for result in results:
        for entry in result:
            total = total + entry
    return total
