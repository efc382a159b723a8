"""What every job is given: workers, and how to treat outputs and messages."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..backend import device_budget
from ..core.geometry import Grid, Vec, as_vec
from ..core.statistics import StatisticsReduction, VolumeStatistics
from ..engine import Progress, check_budget, reduce_chunks, task_budget_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..core.volume import VolumeReader
    from ..engine import Workers

__all__ = ["Session", "measure_statistics"]

log = logging.getLogger("deepict_dask")


def _warn(text: str) -> None:
    """Say a warning in the log."""
    log.warning("%s", text)


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
    many_tomograms: bool = False
    """Whether enough tomograms follow that a small one need not be cut to feed the workers."""
    warn: Callable[[str], None] = _warn
    """Receives what people should know of an input; a run writes it down with the tomogram."""

    def device_bytes(self) -> int | None:
        """Return the bytes of a GPU that a task may hold, None where networks run on the CPU."""
        if self.device != "cuda":
            return None
        return device_budget(self.workers.free_device_bytes())


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
