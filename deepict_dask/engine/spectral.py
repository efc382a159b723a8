"""Run a SpectralOp or a SpectralMeasure: whole if one worker can hold it, else in pieces."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, TypeVar

from ..core.geometry import Box, Grid, as_vec
from .arrays import explain, naming, task_key
from .device_part import device_part
from .patience import read_patiently, write_patiently
from .progress import Progress
from .spectral_pieces import PiecewiseTransform
from .spectral_plan import BLOCK_VOXELS, SpectralPlan, plan_spectral

if TYPE_CHECKING:
    from pathlib import Path

    from ..core.ops import SpectralMeasure, SpectralOp
    from ..core.statistics import VolumeStatistics
    from ..core.volume import VolumeReader, VolumeWriter
    from .cluster import Workers

__all__ = ["SpectralPlan", "measure_volume", "plan_spectral", "run_whole", "transform_volume"]

log = logging.getLogger("deepict_dask")
Result = TypeVar("Result")


def _transform(op: SpectralOp, source: VolumeReader, sink: VolumeWriter) -> None:
    """Read, transform and write a whole volume: the body of the task."""
    volume = read_patiently(source, Box.whole(source.header.shape))
    with naming(source.path), device_part(op):
        volume = op.transform(volume)
    for block in Grid(source.header.shape, sink.write_shape):
        write_patiently(sink, block.write, volume[block.write.slices])


def _measure(op: SpectralMeasure[Result], source: VolumeReader) -> Result:
    """Read and measure a whole volume: the body of the task."""
    volume = read_patiently(source, Box.whole(source.header.shape))
    with naming(source.path), device_part(op):
        return op.measure(volume)


def run_whole(workers: Workers, name: str, where: str, function: Any, *arguments: Any) -> Any:
    """Run one function as one task and return its result.

    It may take all the memory of its worker: where that has a GPU, no other task runs beside it.

    Raises
    ------
    WorkFailedError
        The task failed.
    """
    future = workers.client.submit(
        function,
        *arguments,
        **({"pure": False, "key": task_key(name, 0)} | workers.placed(*arguments, alone=True)),
    )
    try:
        return future.result()
    except Exception as error:
        raise explain(error, name, where) from error


def transform_volume(
    workers: Workers,
    op: SpectralOp,
    source: VolumeReader,
    sink: VolumeWriter,
    *,
    statistics: VolumeStatistics,
    scratch: Path,
    progress: Progress | None = None,
) -> SpectralPlan:
    """Transform a volume.

    Parameters
    ----------
    workers
        Where the tasks run.
    op
        What is computed.
    source, sink
        The volume, and where the result goes, float32.
    statistics
        Of the source; finite and with contrast.
    scratch
        Folder for scratch arrays, made where needed and removed at the end; all workers must
        reach it.
    progress
        Shows one stage, or four where the volume goes in pieces.

    Returns
    -------
    plan
        The way that was taken.

    Raises
    ------
    BudgetError
        Not even the smallest pieces fit a worker.
    WorkFailedError
        A task failed.

    Examples
    --------
    See `deepict_dask.jobs.equalize` for a call.
    """
    progress = progress or Progress(shown=False)
    memory = workers.memory_of(op, alone=True)
    plan = plan_spectral(op, source.header.shape, sink.write_shape, memory)
    if plan.layout is not None:  # pieces are for workers of any kind
        plan = plan_spectral(op, source.header.shape, sink.write_shape, workers.memory_bytes)
    log.info("%s: %s: %s", source.path, op.name, plan)
    if plan.layout is None:
        with progress.stage(op.name, 1) as advance:
            run_whole(workers, op.name, source.path, _transform, op, source, sink)
            advance(1)
        return plan
    pieces = op.in_pieces(source.header.shape)
    PiecewiseTransform(
        workers, op.name, progress, pieces, plan.layout, source, statistics, scratch
    ).transform(sink)
    return plan


def measure_volume(
    workers: Workers,
    op: SpectralMeasure[Result],
    source: VolumeReader,
    *,
    statistics: VolumeStatistics,
    scratch: Path,
    progress: Progress | None = None,
) -> Result:
    """Measure a volume's Fourier transform; parameters and errors as in `transform_volume`."""
    progress = progress or Progress(shown=False)
    shape = source.header.shape
    plan = plan_spectral(op, shape, as_vec(BLOCK_VOXELS), workers.memory_bytes)
    log.info("%s: %s: %s", source.path, op.name, plan)
    if plan.layout is None:
        with progress.stage(op.name, 1) as advance:
            result: Result = run_whole(workers, op.name, source.path, _measure, op, source)
            advance(1)
        return result
    pieces = op.in_pieces(shape)
    answer: Result = PiecewiseTransform(
        workers, op.name, progress, pieces, plan.layout, source, statistics, scratch
    ).measure()
    return answer
