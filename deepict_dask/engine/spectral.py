"""Run a SpectralOp: a whole volume transformed in one task, if one worker can hold it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core.geometry import Box, Grid
from .arrays import explain, naming, task_key
from .budget import check_budget

if TYPE_CHECKING:
    from ..core.ops import SpectralOp
    from ..core.volume import VolumeReader, VolumeWriter
    from .cluster import Workers

__all__ = ["run_whole", "transform_volume"]


def _transform(op: SpectralOp, source: VolumeReader, sink: VolumeWriter) -> None:
    """Read, transform and write a whole volume: the body of the task."""
    volume = source.read(Box.whole(source.header.shape))
    with naming(source.path):
        volume = op.transform(volume)
    for block in Grid(source.header.shape, sink.write_shape):
        sink.write(block.write, volume[block.write.slices])


def run_whole(workers: Workers, name: str, where: str, function: Any, *arguments: Any) -> Any:
    """Run one function as one task and return its result.

    Raises
    ------
    WorkFailedError
        The task failed.
    """
    future = workers.client.submit(function, *arguments, pure=False, key=task_key(name, 0))
    try:
        return future.result()
    except Exception as error:
        raise explain(error, name, where) from error


def transform_volume(
    workers: Workers, op: SpectralOp, source: VolumeReader, sink: VolumeWriter
) -> None:
    """Transform a volume on one worker.

    Raises
    ------
    BudgetError
        The volume and its transform do not fit one worker.
    WorkFailedError
        The task failed.

    Examples
    --------
    See `deepict_dask.jobs.equalize` for a call.
    """
    check_budget(op.name, op.bytes_needed(source.header.shape), workers.memory_bytes)
    run_whole(workers, op.name, source.path, _transform, op, source, sink)
