"""Choose how large the windows of a 3D network are.

Every window computes its halo again, so larger is better until memory ends. `choose_window` takes
the one that needs the least work within the budget, or of those that need hardly more the one that
holds the least memory. Half of the work is the outermost decoder's, which leaves the halo out
(`deepict_dask.models.inference`).
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Protocol

from ..core.errors import BudgetError
from ..core.geometry import Grid, as_vec, ceil_to
from ..models.inference import DECODER_REACH

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..core.geometry import Vec

__all__ = [
    "DeviceOp",
    "WindowedOp",
    "choose_device_window",
    "choose_window",
    "network_work",
    "whole_chunk_shapes",
]

NEARLY_LEAST = 1.04
"""Work, over the least possible, that is not worth more memory."""


class WindowedOp(Protocol):
    """What is applied to windows of a network: alone, with other networks, with what follows."""

    @property
    def name(self) -> str:
        """The stage."""
        ...

    @property
    def halo(self) -> Vec:
        """Voxels a window needs on every side."""
        ...

    @property
    def align(self) -> int:
        """Windows start on multiples of this."""
        ...

    @property
    def n_classes(self) -> int:
        """Channels of all networks."""
        ...

    @property
    def fixed_bytes(self) -> int:
        """Resident bytes of a process before its first window."""
        ...

    def bytes_of(self, grid: Grid, /) -> int:
        """Return the peak bytes of one window of a grid."""
        ...


class DeviceOp(WindowedOp, Protocol):
    """What may be applied on a GPU."""

    def device_bytes_of(self, grid: Grid, /) -> int:
        """Return the bytes of a GPU that one window of a grid takes."""
        ...


class _OnHost:
    """An op on a GPU, of which the window on the host and that on the GPU must fit."""

    def __init__(self, op: DeviceOp, device_bytes: int, worker_bytes: int) -> None:
        self.op, self.device_bytes, self.worker_bytes = op, device_bytes, worker_bytes
        self.name, self.halo, self.align = op.name, op.halo, op.align
        self.n_classes, self.fixed_bytes = op.n_classes, op.fixed_bytes

    def bytes_of(self, grid: Grid, /) -> int:
        """Return the bytes on the host, or as many beyond its budget as the GPU lacks."""
        lacking = self.op.device_bytes_of(grid) - self.device_bytes
        host = self.op.bytes_of(grid)
        return host if lacking <= 0 else max(host, self.worker_bytes + lacking)


def choose_device_window(
    shape: Vec,
    chunk_shape: Vec,
    op: DeviceOp,
    budget_bytes: int,
    *,
    device_bytes: int,
    n_workers: int = 1,
) -> Grid:
    """Return the grid that needs the least work and fits a GPU and the memory of its worker.

    Parameters
    ----------
    shape, chunk_shape, op, budget_bytes, n_workers
        As of `choose_window`.
    device_bytes
        Bytes of a GPU that one task may hold (`deepict_dask.backend.device_budget`).

    Returns
    -------
    Grid
        The whole volume where it fits. Where not even one chunk fits the GPU, that of the host's
        memory: windows that are too large are halved as they come (`device_windows`).

    Raises
    ------
    BudgetError
        Not even one chunk fits the worker.
    """
    both = _OnHost(op, device_bytes, budget_bytes)
    smallest = Grid(shape, chunk_shape, op.halo, op.align, one_shape=True)
    if op.device_bytes_of(smallest) > device_bytes:
        least = min(budget_bytes, op.bytes_of(smallest))
        return choose_window(shape, chunk_shape, op, least, n_workers=n_workers, nearly=1.0)
    return choose_window(shape, chunk_shape, both, budget_bytes, n_workers=n_workers, nearly=1.0)


def network_work(grid: Grid) -> int:
    """Return what a grid's windows cost, in voxels that all layers are applied to.

    Half of the multiplications are the outermost decoder's, and in each window that computes the
    voxels to write and two more on every side; the other layers compute the window.
    """
    decoded = (
        min(w, s + 2 * DECODER_REACH)
        for w, s in zip(grid.window_shape, grid.write_shape, strict=True)
    )
    return grid.n_blocks * (math.prod(grid.window_shape) + math.prod(decoded)) // 2


def choose_window(
    shape: Vec,
    chunk_shape: Vec,
    op: WindowedOp,
    budget_bytes: int,
    *,
    n_workers: int = 1,
    nearly: float = NEARLY_LEAST,
) -> Grid:
    """Return the grid that needs the least work within a budget, or hardly more and less memory.

    Parameters
    ----------
    shape
        Voxels of the volume, zyx.
    chunk_shape
        Chunk (or shard) of the output's store; blocks write whole ones.
    op
        What will be computed.
    budget_bytes
        Bytes one task may hold.
    n_workers
        Blocks are counted in rounds of this many, so that no worker idles while another holds the
        whole volume.
    nearly
        Of grids up to this many times the least work, that of the smallest window is taken. It is
        1 on a GPU, where windows are bound by its memory and few.

    Returns
    -------
    Grid
        With windows of one shape.

    Raises
    ------
    BudgetError
        Not even one chunk fits.
    """

    def work(grid: Grid) -> int:
        rounds = -(-grid.n_blocks // n_workers)
        return rounds * network_work(grid) // grid.n_blocks

    writes = whole_chunk_shapes(shape, chunk_shape)
    grids = [Grid(shape, write, op.halo, op.align, one_shape=True) for write in writes]
    grids.sort(key=lambda grid: (work(grid), grid.n_blocks))
    fitting = (grid for grid in grids if op.bytes_of(grid) <= budget_bytes)
    least = next(fitting, None)
    if least is None:
        raise _does_not_fit(shape, chunk_shape, op, budget_bytes)
    limit = nearly * work(least)
    near = itertools.takewhile(lambda grid: work(grid) < limit, fitting)
    return min([least, *near], key=op.bytes_of)


def whole_chunk_shapes(shape: Vec, chunk_shape: Vec) -> Iterator[Vec]:
    """Yield write shapes of whole chunks: per axis, the smallest for each number of blocks.

    Examples
    --------
    >>> list(whole_chunk_shapes((64, 64, 200), (64, 64, 64)))
    [(64, 64, 64), (64, 64, 128), (64, 64, 256)]
    """
    axes = []
    for size, chunk in zip(shape, chunk_shape, strict=True):
        n_chunks = -(-size // chunk)
        per_block = {-(-n_chunks // n_blocks) for n_blocks in range(1, n_chunks + 1)}
        axes.append([n * chunk for n in sorted(per_block)])
    for write_shape in itertools.product(*axes):
        yield as_vec(write_shape)


def _does_not_fit(shape: Vec, chunk_shape: Vec, op: WindowedOp, budget_bytes: int) -> BudgetError:
    """Say what one chunk needs, and which chunks or budget would do."""

    def needed(chunk: Vec) -> tuple[Vec, int]:
        grid = Grid(shape, chunk, op.halo, op.align, one_shape=True)
        return grid.window_shape, op.bytes_of(grid)

    window, n_bytes = needed(chunk_shape)
    smaller = chunk_shape
    while max(smaller) > op.align and needed(smaller)[1] > budget_bytes:
        smaller = as_vec([max(op.align, ceil_to(-(-c // 2), op.align)) for c in smaller])
    least = needed(smaller)[1]
    advice = f"chunks of {_times(smaller)} would need {_words(least)}"
    if least > budget_bytes:
        advice = f"even {advice}, so give each worker more with --memory"
    classes = f"{op.n_classes} class" + ("es" if op.n_classes > 1 else "")
    return BudgetError(
        f"{op.name} needs {_words(n_bytes)} per task (window {_times(window)}, {classes}, float32) "
        f"but the budget is {_words(budget_bytes)}; {advice}"
    )


def _times(shape: Vec) -> str:
    return "x".join(map(str, shape))


def _words(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MiB"
