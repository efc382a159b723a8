"""What every job is given: workers, and how to treat outputs and messages."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..core.geometry import Grid, Vec, as_vec
from ..core.statistics import StatisticsReduction, VolumeStatistics
from ..engine import Progress, check_budget, reduce_chunks, task_budget_bytes

if TYPE_CHECKING:
    from ..core.volume import VolumeReader
    from ..engine import Workers

__all__ = ["Session", "measure_statistics"]

log = logging.getLogger("deepict_dask")


@dataclass(frozen=True)
class Session:
    """Workers and the wishes that hold for all jobs of a command."""

    workers: Workers
    progress: Progress = field(default_factory=lambda: Progress(shown=False))
    chunks: Vec = (128, 128, 128)
    """Chunks of the stores that are written."""
    overwrite: bool = False
    voxel_spacing_angstrom: float | None = None
    """Overrides what the files say."""
    device: str = "cpu"


def measure_statistics(
    session: Session, reader: VolumeReader, *, name: str, blocks: Vec | None = None
) -> VolumeStatistics:
    """Return mean, standard deviation and range of a volume.

    Parameters
    ----------
    session
        Workers and wishes.
    reader
        The volume.
    name
        The stage, as progress bars show it.
    blocks
        Voxels that a task measures; 2 x 2 x 2 chunks by default, and one chunk where that is more
        than a worker can hold. The last digits follow it.

    Raises
    ------
    WorkFailedError
        The volume cannot be read.
    """
    reduction = StatisticsReduction(reader.header.dtype)
    shape, memory = reader.header.shape, session.workers.memory_bytes
    grid = Grid(shape, blocks or as_vec([2 * chunk for chunk in session.chunks]))
    if reduction.bytes_needed(grid.window_shape) > task_budget_bytes(memory):
        grid = Grid(shape, session.chunks)
    check_budget("statistics", reduction.bytes_needed(grid.window_shape), memory)
    with session.progress.stage(name, grid.n_blocks) as advance:
        result: Any = reduce_chunks(session.workers, reduction, [reader], grid, on_done=advance)
    return result
