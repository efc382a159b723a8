"""What a run would do: blocks, tasks, bytes per worker, disk."""

from __future__ import annotations

import logging
import math
import tempfile
from typing import TYPE_CHECKING

from .core.geometry import Grid, as_vec
from .engine import ClusterSettings, beside_torch, check_budget
from .engine.budget import format_bytes
from .engine.spectral_plan import plan_spectral
from .io.dataset import TomogramEntry, list_tomograms
from .io.volumes import open_volume
from .jobs.equalize import plan_equalize
from .jobs.particle_lists.check import is_from_tiles
from .jobs.picking.pick import label_grid
from .jobs.place import planned_place
from .jobs.polish import smoothing_grid
from .jobs.segmenting.chosen_model import choose_model, class_names_of, is_2d, is_unet3d
from .jobs.segmenting.model_fit import misfits, sampled_amplitude
from .jobs.segmenting.windows import choose_grid, compat_blocks, compat_op, joint_op
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
    from .jobs.place import PlannedPlace
    from .segmentation.joint import JointSegmentOp
    from .segmentation.window_choice import DeviceOp

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
    place = planned_place(settings, where.device)
    lines = place.lines(f"{len(entries)} tomograms")
    for entry in entries:
        lines += _plan_one(config, entry, place, many=are_many(len(entries)))
    return lines


def _plan_one(
    config: RunConfig, entry: TomogramEntry, place: PlannedPlace, *, many: bool
) -> list[str]:
    """Plan the stages of one tomogram."""
    worker_bytes = place.worker_bytes
    with tempfile.TemporaryDirectory(prefix="deepict-dask-") as scratch:
        spacing = entry.told_spacing(config.voxel_spacing_angstrom)
        reader = open_volume(
            entry.path, scratch=scratch, voxel_spacing_angstrom=spacing,
            spacing_required=_needs_spacing(config),
        )  # fmt: skip
        _warn_of_misfits(config, entry, reader)
    header = reader.header
    shape, map_bytes = header.shape, 4 * header.n_voxels
    size = header.voxel_spacing_angstrom
    of_size = "of unknown size" if size is None else f"of {size:.4g} Å"
    lines = [f"{entry.name}: {shape} voxels (zyx) {of_size}"]
    light_bytes = beside_torch(worker_bytes)  # for stages without a network
    if config.equalize is not None:
        op = plan_equalize(config.equalize, reader, place.device)
        plan = plan_spectral(op, shape, config.chunks, beside_torch(place.network_bytes))
        blocks = 1 if plan.layout is None else plan.layout.rows.n_blocks
        disk = map_bytes + plan.scratch_bytes
        lines.append(_line(EQUALIZED, blocks, plan.n_tasks, plan.task_bytes, disk) + f", {plan}")
    lines += _plan_models(config, shape, place, many=many)
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
        reduction = _planned_labelling(config, pick, shape)
        if pick.method != "components":
            lines.append(_plan_method(config, i, pick, shape, worker_bytes))
        elif model in unstored:
            predicted.append((name, model, reduction))
        else:
            grid = label_grid(shape, config.chunks, reduction, light_bytes)
            needed, n = reduction.bytes_needed(grid.window_shape), grid.n_blocks
            lines.append(_line(name, n, 3 * n, needed, map_bytes // 4))
    if predicted:
        lines.append(_plan_one_pass(predicted, config.chunks, shape, place, many=many))
    return lines


def _planned_labelling(config: RunConfig, pick: PickSettings, shape: Vec) -> LabelReduction:
    """Return how a pick section labels, with the masks it may need at a byte a voxel each."""
    needed = {contact.region for contact in pick.all_contacts}
    needed |= set(pick.distances or ())
    if pick.distances is None:
        needed |= {region.name for region in config.regions}
    return LabelReduction(
        shape,
        SelectSettings(threshold=pick.threshold),
        pick.connectivity,
        n_regions=len(needed),
        region_bytes=len(needed),
    )


def _needs_spacing(config: RunConfig) -> bool:
    """Say whether a stage asks for the voxel spacing: those of published results do not."""
    stages = [*models_of(config), *config.pick, *([config.equalize] if config.equalize else ())]
    return any(stage.compat is None for stage in stages)


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
    place: PlannedPlace,
    *,
    many: bool,
) -> str:
    """Plan the folders of picks that are made without a stored score map."""
    from .jobs.picking.predict_and_label import LabelledChannel, PredictAndLabel

    op = _joint_op([model for _, model, _ in sections], place.device)
    channels = tuple(LabelledChannel(0, label) for _, _, label in sections)
    chunk = as_vec([min(c, n) for c, n in zip(chunks, shape, strict=True)])
    both = PredictAndLabel(op, channels, chunk)
    names = ", ".join(name for name, _, _ in sections)
    disk = 2 * math.prod(shape) * len(sections)
    return _plan_3d(
        names, both, place, shape=shape, chunks=chunks, disk=disk, many=many,
        n_passes=1 + len(sections), how="in one pass, ",
    )  # fmt: skip


def _plan_models(config: RunConfig, shape: Vec, place: PlannedPlace, *, many: bool) -> list[str]:
    """Plan all score maps: DeePiCt's 3D models share their windows, others have their own."""
    models = stored_models(config)
    solid = [one for one in models if is_unet3d(one.model) and one.compat is None]
    lines = [
        _plan_one_model(settings, config.chunks, shape, place.worker_bytes)
        for settings in models
        if settings not in solid
    ]
    if solid:
        op = _joint_op(solid, place.device)
        names = ", ".join(score_map_of(settings) for settings in solid)
        disk = 4 * op.n_classes * math.prod(shape)
        chunks = config.chunks
        lines.append(_plan_3d(names, op, place, shape=shape, chunks=chunks, disk=disk, many=many))
    return lines


def _plan_one_model(settings: SegmentSettings, chunks: Vec, shape: Vec, worker_bytes: int) -> str:
    """Plan the score map of a model that has its windows for itself."""
    if is_2d(settings.model):
        return _plan_slices(settings, chunks, shape, worker_bytes)
    if not is_unet3d(settings.model):
        return _plan_tiles(settings, chunks, shape, worker_bytes)
    model = choose_model(settings, "cpu")
    op = compat_op(model, settings, shape, "cpu")
    grid, _ = compat_blocks(op, worker_bytes)
    disk = 4 * max(1, len(model.class_names)) * math.prod(shape)
    return _plan_windows(score_map_of(settings), op, grid, disk)


def _joint_op(models: list[SegmentSettings], device: str) -> JointSegmentOp:
    """Return the op of several 3D models, which says what windows need."""
    return joint_op({settings: choose_model(settings, "cpu") for settings in models}, device)


def _plan_3d(
    name: str, op: DeviceOp, place: PlannedPlace, *, shape: Vec, chunks: Vec, disk: int,
    many: bool, n_passes: int = 1, how: str = "",
) -> str:  # fmt: skip
    """Say how 3D networks go over a tomogram, in the memory of a worker and of its GPU.

    Of a GPU that is not known here the least and the most are said: windows of a chunk, and one.
    """
    free = 0 if place.is_unknown else place.device_bytes
    grid = choose_grid(
        op, shape, chunks, place.network_bytes, many_tomograms=many, device_bytes=free
    )
    if place.is_unknown:
        whole = Grid(shape, shape, op.halo, op.align, one_shape=True)
        return (
            f"  {name}: {how}windows by the GPU's free memory: one of "
            f"{_by(whole.window_shape)} holds {format_bytes(op.device_bytes_of(whole))} of it, "
            f"each of {grid.n_blocks} of {_by(grid.window_shape)} holds "
            f"{format_bytes(op.device_bytes_of(grid))}, up to {format_bytes(disk)} on disk"
        )
    n = grid.n_blocks
    line = _line(name, n, n_passes * n, op.bytes_of(grid), disk)
    line += f", {how}windows of {_by(grid.window_shape)}"
    if free is None:
        return line
    held = op.device_bytes_of(grid)
    halved = "" if held <= free else ", more than may be planned with: halved as they come"
    return f"{line}, {format_bytes(held)} of the GPU each{halved}"


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
    needed = op.bytes_needed(grid.window_shape)
    line = _line(name, grid.n_blocks, grid.n_blocks, needed, disk)
    return f"{line}, windows of {_by(grid.window_shape)}"


def _by(shape: Vec) -> str:
    return " x ".join(map(str, shape))


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
