"""Map a ChunkOp over a volume: one task per block, from store to store.

A task reads its windows, computes, crops and writes whole chunks, and returns nothing. Tasks are
submitted as others end, so a plan of any length keeps the scheduler's memory flat. A block is
marked in the ledger after its data are written.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from ..core.errors import DeepictError, ShapeMismatchError, VoxelValueError, WorkFailedError
from ..io.disk import disk_of, is_full
from .budget import check_source_chunks
from .device_part import device_part, ready_for_upload
from .patience import read_patiently, write_patiently

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ..core.geometry import Block, Grid
    from ..core.ops import ChunkOp
    from ..core.volume import VolumeReader, VolumeWriter
    from .cluster import Workers
    from .ledger import JointLedger, Ledger

__all__ = ["explain", "map_chunks", "naming", "run_each"]

Item = TypeVar("Item")


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Add the file to what a kernel says of its voxels: kernels know arrays, not files.

    Examples
    --------
    >>> with naming("a.mrc"):
    ...     raise VoxelValueError("expected numbers, found NaN")
    Traceback (most recent call last):
    ...
    deepict_dask.core.errors.VoxelValueError: a.mrc: expected numbers, found NaN
    """
    try:
        yield
    except VoxelValueError as error:
        raise VoxelValueError(f"{path}: {error}") from None


@lru_cache(maxsize=1)
def _read_chunk_by_chunk() -> None:
    """Let Zarr decode one chunk at a time in this process: ten at once take six times the memory.

    Workers that are started here are told so by their environment; others only by this. Workers
    with a GPU are told of more: they have cores for it (`gpu_workers`).
    """
    import zarr

    at_once = int(os.environ.get("ZARR_ASYNC__CONCURRENCY", "1"))
    zarr.config.set({"async.concurrency": at_once, "threading.max_workers": at_once})


def read_windows(sources: Sequence[VolumeReader], block: Block) -> list[Any]:
    """Read a block's windows in a worker."""
    _read_chunk_by_chunk()
    return [read_patiently(source, block.read) for source in sources]


def run_block(
    op: ChunkOp, sources: Sequence[VolumeReader], sink: VolumeWriter, block: Block
) -> None:
    """Read, compute, crop and write one block: the body of every map task.

    Where the op computes on a GPU, other threads of the worker read and write meanwhile.
    """
    windows = ready_for_upload(op, read_windows(sources, block))
    with naming(sources[0].path), device_part(op):
        result = op.apply(block, *windows)
    del windows  # not needed while the result is written
    write_patiently(sink, block.write, block.crop(result))


def map_chunks(
    workers: Workers,
    op: ChunkOp,
    sources: Sequence[VolumeReader],
    sink: VolumeWriter,
    grid: Grid,
    *,
    ledger: Ledger | JointLedger | None = None,
    on_done: Callable[[int], None] | None = None,
) -> None:
    """Apply an op to every block of a grid.

    Parameters
    ----------
    workers
        Where the tasks run.
    op
        What is computed.
    sources
        Volumes of one shape, read with the op's halo.
    sink
        Where it is written; its write shape must divide the grid's.
    grid
        The blocks.
    ledger
        Marks finished blocks; those marked already are skipped.
    on_done
        Called with the number of blocks that ended, each time some do.

    Raises
    ------
    ShapeMismatchError
        The grid would let two tasks write one chunk of the sink.
    WorkFailedError
        A task failed; finished blocks are kept and marked.

    Examples
    --------
    See `deepict_dask.jobs.segmenting.segment` for a call.
    """
    _check_ownership(grid, sink)
    check_source_chunks(sources, workers.memory_of(op))
    todo = range(grid.n_blocks) if ledger is None else ledger.unfinished()

    def submit(number: int) -> Any:
        return workers.client.submit(
            run_block, op, sources, sink, grid[number],
            pure=False, key=task_key(op.name, number), **workers.placed(op),
        )  # fmt: skip

    for number, _ in run_each(workers, submit, todo, stage=op.name, where=sink.path):
        if ledger is not None:
            ledger.mark(number)
        if on_done is not None:
            on_done(1)


def _check_ownership(grid: Grid, sink: VolumeWriter) -> None:
    """Refuse grids in which two tasks would write to one chunk or shard."""
    for have, unit, size in zip(grid.write_shape, sink.write_shape, grid.shape, strict=True):
        if have % unit and have < size:
            raise ShapeMismatchError(
                f"{sink.path}: write boxes of {grid.write_shape} are not whole chunks of "
                f"{sink.write_shape}"
            )


def task_key(name: str, number: int) -> str:
    """Return a task key that shows its stage on the dashboard and is never reused."""
    import uuid

    return f"{name.replace(' ', '_')}-{number}-{uuid.uuid4().hex}"


def run_each(
    workers: Workers,
    submit: Callable[[Item], Any],
    items: Iterable[Item | None],
    *,
    stage: str,
    where: str,
) -> Iterator[tuple[Item, Any]]:
    """Keep a bounded number of tasks in flight; yield (item, result) as they end.

    Parameters
    ----------
    workers
        Where the tasks run.
    submit
        Starts the task of an item and returns its future.
    items
        What there is to do: numbers of blocks, which messages then name, or anything else. They
        are taken one by one, as there is room. None says that there is nothing to start before
        another task has ended.
    stage, where
        For messages.

    Yields
    ------
    item, result
        In any order. Tasks that have ended by then are fetched at once and forgotten.

    Raises
    ------
    WorkFailedError
        A task failed; the others in flight are cancelled.
    """
    from distributed import as_completed

    pending: dict[Any, Item] = {}
    waiting = iter(items)
    completed = as_completed([])

    def refill() -> None:
        while len(pending) < workers.in_flight():
            item = next(waiting, None)
            if item is None:
                return
            future = submit(item)
            pending[future] = item
            completed.add(future)

    refill()
    try:
        for batch in completed.batches():
            yield from _fetched(workers, batch, pending, stage, where)
            refill()
    finally:
        # An interrupt or a failure must not leave work behind on a cluster that others share.
        # Without a scheduler there is none, and asking would wait for one.
        if workers.client.status == "running":
            with suppress(Exception):
                workers.client.cancel(list(pending))


def _fetched(
    workers: Workers, batch: list[Any], pending: dict[Any, Item], stage: str, where: str
) -> Iterator[tuple[Item, Any]]:
    """Yield what tasks returned; raise in words what went wrong with one of them.

    ``batch`` is emptied before: what nobody refers to is forgotten by the scheduler.
    """
    failed = [future for future in batch if future.status != "finished"]
    finished = [future for future in batch if future.status == "finished"]
    batch.clear()
    items = [pending.pop(future) for future in finished]
    with _explained(stage, where, items):
        results = workers.client.gather(finished)
    finished.clear()
    yield from zip(items, results, strict=True)
    for future in failed:
        item = pending.pop(future)
        with _explained(stage, where, [item]):
            result = future.result()  # the worker that had it was lost: it is computed again
        yield item, result


@contextmanager
def _explained(stage: str, where: str, items: Sequence[Any]) -> Iterator[None]:
    """Raise in words what went wrong with the task of an item, or of one of several."""
    try:
        yield
    except Exception as error:
        is_block = len(items) == 1 and isinstance(items[0], int)
        what = f"{stage}, block {items[0]}" if is_block else stage
        raise explain(error, what, where) from error


def explain(error: BaseException, what: str, where: str) -> DeepictError:
    """Return an error of a task as a message: where, what was found, what to do.

    Examples
    --------
    >>> explain(OSError(28, "No space left on device"), "segment, block 3", "out.zarr").exit_code
    1
    """
    from distributed import KilledWorker
    from distributed.client import FutureCancelledError

    if isinstance(error, DeepictError):
        return error
    if isinstance(error, OSError) and is_full(error):
        hint = (
            f"the disk is full; free some space on {disk_of(where)} and run the same command "
            "again to continue"
        )
    elif isinstance(error, KilledWorker):
        hint = (
            "its worker died again and again, most likely for lack of memory; "
            "give workers more with --memory or use fewer with --workers, then run again"
        )
    elif isinstance(error, FutureCancelledError):
        hint = "the connection to the workers was lost; start them and run again to continue"
    elif isinstance(error, MemoryError):
        hint = "out of memory; use smaller --chunks or more --memory, then run again"
    elif isinstance(error, OSError) and error.strerror:
        place = f" ({error.filename})" if error.filename and str(error.filename) != where else ""
        hint = f"{error.strerror}{place}; check the path and the disk, then run again to continue"
    else:
        hint = f"{type(error).__name__}: {error}; finished blocks are kept, run again to continue"
    return WorkFailedError(f"{where}: {what} failed: {hint}")
