"""Coarser levels of a store in the making, one after the other, each from the one before it.

A task reads what its chunk of a level stands for in the finer level and writes that chunk. Every
level has its own ledger, so that a job which was killed goes on where it was.
"""

from __future__ import annotations

import itertools
import math
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ConfigError
from ..core.geometry import Grid
from ..core.ops import ChunkOp
from ..engine import Ledger, check_budget, map_chunks, request_key
from ..io.ome_zarr import open_ome_zarr
from ..io.ome_zarr_write import PACKING_BYTES, level_writers
from ..io.pyramid import HalvedReader
from ..io.zarr_check import find_whole_blocks

if TYPE_CHECKING:
    from pathlib import Path

    from ..core.geometry import Block, Vec
    from ..core.volume import VolumeHeader
    from ..engine import StagedOutput
    from ..io.ome_zarr_write import ZarrWriter
    from ..io.pyramid import Method
    from .session import Session

__all__ = ["LevelOp", "check_method", "open_marks", "write_levels"]


@dataclass(frozen=True)
class LevelOp(ChunkOp):
    """Hand on what a `HalvedReader` returns.

    Examples
    --------
    >>> block = Grid((1, 1, 2), (1, 1, 2))[0]
    >>> LevelOp("uint8", reading_bytes=100).apply(block, np.ones((1, 1, 2), "uint8"))
    array([[[1, 1]]], dtype=uint8)
    """

    dtype: str
    reading_bytes: int
    """What reading the largest window holds."""
    name: str = "pyramid"

    def apply(self, block: Block, *windows: Any) -> Any:  # noqa: ARG002 - the op's contract
        """Return the window."""
        return windows[0]

    def bytes_needed(self, window_shape: Vec) -> int:
        """Return the bytes of reading, or of the window as it is written and packed."""
        written = 2 * math.prod(window_shape) * np.dtype(self.dtype).itemsize
        return max(self.reading_bytes, written) + PACKING_BYTES


def check_method(method: str | None, dtype: str) -> Method | None:
    """Return how levels are made, if it fits the voxels.

    Raises
    ------
    ConfigError
        It is no method, or a majority of numbers that are not whole.

    Examples
    --------
    >>> check_method("mean", "float32")
    'mean'
    """
    if method is None:
        return None
    if method == "mean":
        return "mean"
    if method != "majority":
        raise ConfigError(
            f"--pyramid: expected mean (densities, scores) or majority (labels, masks), found "
            f"{method!r}"
        )
    if np.dtype(dtype).kind not in "biu":
        raise ConfigError(
            f"--pyramid majority: expected labels (whole numbers), found {dtype}; "
            "take --pyramid mean, or give --dtype uint8"
        )
    return "majority"


def write_levels(
    session: Session,
    staged: StagedOutput,
    store: Path,
    header: VolumeHeader,
    method: Method,
    *,
    shards: Vec | None = None,
) -> None:
    """Write levels 1 and coarser of a store that was made with ``pyramid``; level 0 is whole.

    Parameters
    ----------
    session
        Workers and wishes.
    staged
        The output that the store is part of.
    store
        The store.
    header
        Of level 0.
    method
        ``mean`` or ``majority``.
    shards
        As the store was made.

    Raises
    ------
    BudgetError
        A chunk (or shard) is too large for the workers.
    """
    writers = level_writers(store, header, chunks=session.chunks, shards=shards)
    for finer, sink in itertools.pairwise(writers):
        _, reader = open_ome_zarr(f"{store}/{finer.level}")
        source = HalvedReader(reader, method, reader.chunk_shape)
        grid = Grid(sink.header.shape, sink.write_shape)
        op = LevelOp(header.dtype, source.bytes_needed(grid.window_shape))
        check_budget(op.name, op.bytes_needed(grid.window_shape), session.workers.memory_bytes)
        with (
            open_marks(staged, sink, grid) as ledger,
            session.progress.stage(op.name, grid.n_blocks, ledger.n_resumed) as advance,
        ):
            map_chunks(session.workers, op, [source], sink, grid, ledger=ledger, on_done=advance)


def open_marks(staged: StagedOutput, sink: ZarrWriter, grid: Grid) -> Ledger:
    """Return the marks of a level's finished blocks: those that can be read now."""
    place = f"{sink.path.removeprefix(str(staged.partial))}/{sink.level}"
    key = request_key({"request": staged.key, "level": place, "grid": repr(grid)})
    ledger = Ledger(staged.partial / f".ledger-{key[:12]}", key, grid.n_blocks)
    if ledger.is_new:
        shutil.rmtree(f"{sink.path}/{sink.level}/c", ignore_errors=True)
    else:
        ledger.settle(find_whole_blocks(f"{sink.path}/{sink.level}", grid))
    return ledger
