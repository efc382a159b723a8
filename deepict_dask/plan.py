"""What a run would do: blocks, tasks, bytes per worker, disk; and what it made before."""

from __future__ import annotations

import shutil
import tempfile
from typing import TYPE_CHECKING

from .core.geometry import Grid, as_vec
from .engine import ClusterSettings, check_budget
from .engine.budget import format_bytes
from .engine.cluster import plan_workers
from .io.dataset import TomogramEntry, list_tomograms
from .io.volumes import open_volume
from .jobs.equalize import plan_equalize
from .jobs.segment import choose_grid
from .labelling import LabelReduction, SelectSettings
from .models.checkpoint import model_info
from .models.registry import resolve_model
from .pipeline import check_config, pick_folder_of, score_map_of

if TYPE_CHECKING:
    from .config import RunConfig, SegmentSettings
    from .core.geometry import Vec

__all__ = ["plan_run", "remove_results"]


def remove_results(config: RunConfig) -> None:
    """Remove what earlier runs of a config made for its tomograms.

    Raises
    ------
    OutputExistsError
        A folder holds other files.
    """
    entries = list_tomograms(config.tomograms)
    check_config(config, entries)
    for entry in entries:
        shutil.rmtree(config.output / entry.name, ignore_errors=True)


def plan_run(
    config: RunConfig, *, workers: int | None = None, memory: str | None = None
) -> list[str]:
    """Return the plan of a run as lines, without starting a worker.

    Raises
    ------
    BudgetError
        A stage would not fit a worker.
    """
    entries = list_tomograms(config.tomograms)
    check_config(config, entries)
    n, each = plan_workers(ClusterSettings(workers=workers, memory=memory))
    lines = [f"plan: {len(entries)} tomograms on {n} workers of {format_bytes(each)}"]
    for entry in entries:
        lines += _plan_one(config, entry, each)
    return lines


def _plan_one(config: RunConfig, entry: TomogramEntry, worker_bytes: int) -> list[str]:
    """Plan the stages of one tomogram."""
    with tempfile.TemporaryDirectory(prefix="deepict-dask-") as scratch:
        reader = open_volume(
            entry.path, scratch=scratch, voxel_spacing_angstrom=config.voxel_spacing_angstrom
        )
    header = reader.header
    shape, map_bytes = header.shape, 4 * header.n_voxels
    lines = [f"{entry.name}: {shape} voxels (zyx) of {header.voxel_spacing_angstrom:.4g} Å"]
    if config.equalize is not None:
        needed = plan_equalize(config.equalize, reader).bytes_needed(shape)
        check_budget("equalize", needed, worker_bytes)
        lines.append(_line("equalized.zarr", 1, 1, needed, map_bytes))
    chunks = as_vec([min(c, s) for c, s in zip(config.chunks, shape, strict=True)])
    lines += [
        _plan_segment(segment, config.chunks, shape, worker_bytes) for segment in config.segment
    ]
    for i, pick in enumerate(config.pick):
        reduction = LabelReduction(shape, SelectSettings(threshold=pick.threshold))
        blocks = Grid(shape, chunks).n_blocks
        needed = reduction.bytes_needed(chunks)
        lines.append(_line(pick_folder_of(pick, i), blocks, 3 * blocks, needed, map_bytes // 4))
    return lines


def _plan_segment(segment: SegmentSettings, chunks: Vec, shape: Vec, worker_bytes: int) -> str:
    """Plan one model."""
    from .segmentation.windows import SegmentOp

    path = resolve_model(segment.model)
    op = SegmentOp(str(path), 0.0, 1.0)
    grid = choose_grid(op, shape, chunks, worker_bytes)
    n_classes = len(model_info(path).class_names)
    disk = 4 * n_classes * shape[0] * shape[1] * shape[2]
    window = " x ".join(map(str, grid.window_shape))
    needed = op.bytes_needed(grid.window_shape)
    name = score_map_of(segment)
    return _line(name, grid.n_blocks, grid.n_blocks, needed, disk) + f", windows of {window}"


def _line(name: str, blocks: int, tasks: int, needed: int, disk: int) -> str:
    return (
        f"  {name}: {blocks} blocks, about {tasks} tasks, {format_bytes(needed)} per task, "
        f"up to {format_bytes(disk)} on disk"
    )
