"""What a run would do: blocks, tasks, bytes per worker, disk."""

from __future__ import annotations

import logging
import math
import tempfile
from typing import TYPE_CHECKING

from .core.geometry import Grid, as_vec
from .engine import ClusterSettings, beside_torch, check_budget
from .engine.budget import format_bytes
from .engine.cluster import plan_workers
from .engine.spectral_plan import plan_spectral
from .io.dataset import TomogramEntry, list_tomograms
from .io.volumes import open_volume
from .jobs.equalize import plan_equalize
from .jobs.particle_lists.check import is_from_tiles
from .jobs.picking.pick import label_grid
from .jobs.polish import smoothing_grid
from .jobs.segmenting.chosen_model import choose_model, class_names_of, is_2d, is_unet3d
from .jobs.segmenting.model_fit import misfits, sampled_amplitude
from .jobs.segmenting.windows import choose_grid, joint_op
from .labelling import LabelReduction, SelectSettings
from .models.registry import resolve_model
from .run_outputs import (
    EQUALIZED,
    are_many,
    check_config,
    is_mask_at_once,
    model_of_pick,
    model_of_region,
    models_of,
    pick_folder_of,
    region_mask_of,
    remove_results,
    score_map_of,
    stored_models,
    unstored_models,
    warn_of_models,
)

if TYPE_CHECKING:
    from .config import PickSettings, RegionSettings, RunConfig, SegmentSettings
    from .core.geometry import Vec
    from .core.ops import ChunkOp
    from .core.volume import VolumeReader
    from .segmentation.joint import JointSegmentOp

__all__ = ["plan_run", "remove_results"]

log = logging.getLogger("deepict_dask")


def plan_run(
    config: RunConfig, *, workers: int | None = None, memory: str | None = None
) -> list[str]:
    """Return the plan of a run as lines, without starting a worker or sending a job.

    Parameters
    ----------
    config
        What to do, and where: the workers of a profile are those of its jobs.
    workers, memory
        Override what the config says of its cluster.

    Raises
    ------
    BudgetError
        A stage would not fit a worker.
    """
    entries = list_tomograms(config.tomograms)
    check_config(config, entries)
    warn_of_models(config)
    where = config.cluster
    settings = ClusterSettings(where.kind, workers or where.workers, memory or where.memory)
    n, each = plan_workers(settings)
    lines = [f"plan: {len(entries)} tomograms on {n} workers of {format_bytes(each)}"]
    for entry in entries:
        lines += _plan_one(config, entry, each, many=are_many(len(entries)))
    return lines


def _plan_one(
    config: RunConfig, entry: TomogramEntry, worker_bytes: int, *, many: bool
) -> list[str]:
    """Plan the stages of one tomogram."""
    with tempfile.TemporaryDirectory(prefix="deepict-dask-") as scratch:
        spacing = config.voxel_spacing_angstrom or entry.voxel_spacing_angstrom
        reader = open_volume(entry.path, scratch=scratch, voxel_spacing_angstrom=spacing)
        _warn_of_misfits(config, entry, reader)
    header = reader.header
    shape, map_bytes = header.shape, 4 * header.n_voxels
    lines = [f"{entry.name}: {shape} voxels (zyx) of {header.voxel_spacing_angstrom:.4g} Å"]
    light_bytes = beside_torch(worker_bytes)  # for stages without a network
    if config.equalize is not None:
        op = plan_equalize(config.equalize, reader)
        plan = plan_spectral(op, shape, config.chunks, light_bytes)
        blocks = 1 if plan.layout is None else plan.layout.rows.n_blocks
        disk = map_bytes + plan.scratch_bytes
        lines.append(_line(EQUALIZED, blocks, plan.n_tasks, plan.task_bytes, disk) + f", {plan}")
    lines += _plan_models(config, shape, worker_bytes, many=many)
    for region in config.regions:
        if is_mask_at_once(config, region):
            model, name = model_of_region(region), region_mask_of(region)
            lines.append(_plan_slices(model, config.chunks, shape, worker_bytes, name=name))
        elif region.model is not None:
            lines.append(_plan_mask(region, config.chunks, shape, light_bytes))
    predicted = []
    unstored = unstored_models(config)
    for i, pick in enumerate(config.pick):
        name, model = pick_folder_of(pick, i), model_of_pick(config, pick)
        reduction = LabelReduction(shape, SelectSettings(threshold=pick.threshold))
        if pick.method != "components":
            lines.append(_plan_method(config, i, pick, shape, worker_bytes))
        elif model in unstored:
            predicted.append((name, model, reduction))
        else:
            grid = label_grid(shape, config.chunks, reduction, light_bytes)
            needed, n = reduction.bytes_needed(grid.window_shape), grid.n_blocks
            lines.append(_line(name, n, 3 * n, needed, map_bytes // 4))
    if predicted:
        lines.append(_plan_one_pass(predicted, config.chunks, shape, worker_bytes, many=many))
    return lines


def _warn_of_misfits(config: RunConfig, entry: TomogramEntry, reader: VolumeReader) -> None:
    """Warn of models that were trained on tomograms of another kind, as the run will."""
    paths = {str(resolve_model(s.model)): s.model for s in models_of(config)}
    equalized = config.equalize is not None
    for text in misfits(entry.path, reader, paths, None if equalized else sampled_amplitude):
        log.warning("%s", text)


def _plan_method(
    config: RunConfig, number: int, pick: PickSettings, shape: Vec, worker_bytes: int
) -> str:
    """Plan a folder of picks by another method than components."""
    from .jobs.picking.methods import plan_method
    from .jobs.picking.tiles import plan_tile_picks

    name, model = pick_folder_of(pick, number), model_of_pick(config, pick)
    tables = 100 << 20
    if is_from_tiles(model, pick):
        n, needed = plan_tile_picks(model, pick, shape)
        check_budget(name, needed, worker_bytes, torch=True)
        return _line(name, n, n, needed, tables) + ", tiles of the network"
    single = model.argmax or pick.class_name is not None or model.classes is not None
    n_sources = 1 if single and not pick.argmax else len(class_names_of(model))
    n, needed = plan_method(pick, shape, config.chunks, n_sources)
    check_budget(name, needed, beside_torch(worker_bytes))
    n_passes = 2 if pick.method == "mean-shift" else 1
    return _line(name, n, n_passes * n, needed, tables)


def _plan_one_pass(
    sections: list[tuple[str, SegmentSettings, LabelReduction]],
    chunks: Vec,
    shape: Vec,
    worker_bytes: int,
    *,
    many: bool,
) -> str:
    """Plan the folders of picks that are made without a stored score map."""
    from .jobs.picking.predict_and_label import LabelledChannel, PredictAndLabel

    op = _joint_op([model for _, model, _ in sections])
    channels = tuple(LabelledChannel(0, label) for _, _, label in sections)
    chunk = as_vec([min(c, n) for c, n in zip(chunks, shape, strict=True)])
    both = PredictAndLabel(op, channels, chunk)
    grid = choose_grid(both, shape, chunks, worker_bytes, many_tomograms=many)
    names = ", ".join(name for name, _, _ in sections)
    needed = both.bytes_of(grid)
    tasks = grid.n_blocks * (1 + len(sections))
    disk = 2 * math.prod(shape) * len(sections)
    window = " x ".join(map(str, grid.window_shape))
    return _line(names, grid.n_blocks, tasks, needed, disk) + f", in one pass, windows of {window}"


def _plan_models(config: RunConfig, shape: Vec, worker_bytes: int, *, many: bool) -> list[str]:
    """Plan all score maps: DeePiCt's 3D models share their windows, others have their own."""
    models = stored_models(config)
    solid = [settings for settings in models if is_unet3d(settings.model)]
    lines = [
        (_plan_slices if is_2d(settings.model) else _plan_tiles)(
            settings, config.chunks, shape, worker_bytes
        )
        for settings in models
        if settings not in solid
    ]
    if solid:
        op = _joint_op(solid)
        grid = choose_grid(op, shape, config.chunks, worker_bytes, many_tomograms=many)
        names = ", ".join(score_map_of(settings) for settings in solid)
        lines.append(_plan_windows(names, op, grid, 4 * op.n_classes * math.prod(shape)))
    return lines


def _joint_op(models: list[SegmentSettings]) -> JointSegmentOp:
    """Return the op of several 3D models, which says what windows need."""
    return joint_op({settings: choose_model(settings, "cpu") for settings in models}, "cpu")


def _plan_slices(
    settings: SegmentSettings,
    chunks: Vec,
    shape: Vec,
    worker_bytes: int,
    *,
    name: str | None = None,
) -> str:
    """Plan one 2D model: its score map, or the mask of the region ``name``."""
    from .jobs.segmenting.slices import choose_slice_grid
    from .segmentation.slices import SliceSegmentOp

    op = SliceSegmentOp(str(resolve_model(settings.model)), 0.0, 1.0)
    grid = choose_slice_grid(op, shape, chunks, worker_bytes)
    if name is not None:
        return _plan_windows(name, op, grid, math.prod(shape))
    disk = 4 * op.settings.n_classes * math.prod(shape)
    return _plan_windows(score_map_of(settings), op, grid, disk)


def _plan_tiles(settings: SegmentSettings, chunks: Vec, shape: Vec, worker_bytes: int) -> str:
    """Plan the score map of a network that is no U-Net of DeePiCt."""
    from .jobs.segmenting.tiles import plan_tiles

    model = choose_model(settings, "cpu")
    op, grid = plan_tiles(settings, model, shape, chunks, worker_bytes=worker_bytes)
    voxel_bytes = op.n_classes * (1 if settings.argmax else 4)
    return _plan_windows(score_map_of(settings), op, grid, voxel_bytes * math.prod(shape))


def _plan_windows(name: str, op: ChunkOp, grid: Grid, disk: int) -> str:
    """Say how a network goes over a tomogram."""
    window = " x ".join(map(str, grid.window_shape))
    needed = op.bytes_needed(grid.window_shape)
    return _line(name, grid.n_blocks, grid.n_blocks, needed, disk) + f", windows of {window}"


def _plan_mask(region: RegionSettings, chunks: Vec, shape: Vec, worker_bytes: int) -> str:
    """Plan the mask of a region that a model makes."""
    from .segmentation.smoothing import SmoothOp

    op = SmoothOp(region.z_sigma, region.threshold)
    grid = smoothing_grid(shape, chunks, op, worker_bytes)
    needed = op.bytes_needed(grid.window_shape)
    return _line(region_mask_of(region), grid.n_blocks, grid.n_blocks, needed, math.prod(shape))


def _line(name: str, blocks: int, tasks: int, needed: int, disk: int) -> str:
    return (
        f"  {name}: {blocks} blocks, about {tasks} tasks, {format_bytes(needed)} per task, "
        f"up to {format_bytes(disk)} on disk"
    )
