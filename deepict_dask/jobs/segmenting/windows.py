"""A tomogram and 3D models to score maps: exactly, or as the published program does."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from ...core.geometry import Grid, as_vec
from ...engine import check_budget, fingerprint, map_chunks, request_key, task_budget_bytes
from ...engine.budget import BASELINE_TORCH_BYTES
from ...engine.ledger import JointLedger
from ...engine.spectral import run_whole
from ...io.fitted import FittedReader
from ...io.split_write import SplitWriter
from ...io.volumes import open_volume
from ..session import measure_statistics
from ..volume_output import volume_output
from .chosen_model import choose_model
from .model_fit import warn_of_misfits

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ...config import SegmentSettings
    from ...core.geometry import Vec
    from ...core.volume import VolumeReader
    from ...segmentation.deepict_compat import CompatSegmentOp
    from ...segmentation.joint import JointSegmentOp
    from ...segmentation.window_choice import DeviceOp, WindowedOp
    from ..session import Session
    from .chosen_model import ChosenModel

__all__ = [
    "choose_grid",
    "compat_blocks",
    "compat_op",
    "joint_op",
    "measured_op",
    "open_tomogram",
    "segment_compat",
    "segment_together",
]

_LARGEST_WINDOW_BYTES = 2 << 30
_WORKERS_TO_FEED = 4
"""A small tomogram is cut into at least this many windows where that costs little."""
_SMALL_VOXELS = 4 << 20
"""A network takes about a second for so many. A dataset's tomograms below are one window each:
their neighbours feed the other workers, and cut in three 2.5 million voxels take 1.7 times the work
(halos). More workers would not help either: opening and committing one takes as long."""
COMPAT_CHUNK = 120
"""Largest edge of a chunk of a published-style score map, which holds whole inner cubes."""


def segment_together(
    session: Session, source: Path, wanted: Mapping[Path, SegmentSettings]
) -> None:
    """Predict the score maps of several 3D networks, every window of the tomogram read once.

    Parameters
    ----------
    session
        Workers and wishes.
    source
        Tomogram.
    wanted
        For each score map to make its model and classes, without ``compat``.

    Raises
    ------
    ModelFileError, VoxelValueError, BudgetError
        As `segment_volume`.
    """
    source = source.absolute()  # workers may run in another folder
    models = {target: choose_model(settings) for target, settings in wanted.items()}
    with ExitStack() as stack:
        outputs = {
            target: stack.enter_context(
                volume_output(session, target, _request(session, source, settings, models[target]))
            )
            for target, settings in wanted.items()
        }
        scratch = next(iter(outputs.values())).scratch
        reader = open_tomogram(session, source, scratch, list(models.values()))
        op = joint_op({s: models[target] for target, s in wanted.items()}, session.device)
        shape, each = reader.header.shape, session.workers.memory_of(op)
        many = session.many_tomograms
        free = session.device_bytes()
        grid = choose_grid(op, shape, session.chunks, each, many_tomograms=many, device_bytes=free)
        op = measured_op(session, reader, op, grid)
        sinks = [
            output.sink(models[target].header(reader.header), session.chunks)
            for target, output in outputs.items()
        ]
        sink = SplitWriter(tuple(sinks), op.channels)
        ledger = JointLedger([stack.enter_context(o.ledger(grid)) for o in outputs.values()])
        advance = stack.enter_context(
            session.progress.stage("segment", grid.n_blocks, ledger.n_resumed)
        )
        map_chunks(session.workers, op, [reader], sink, grid, ledger=ledger, on_done=advance)


def _request(
    session: Session, source: Path, settings: SegmentSettings, model: ChosenModel,
    region: Path | None = None,
) -> str:  # fmt: skip
    """Return the key of what is asked for."""
    return request_key({
        "job": "segment", "input": fingerprint(source), "model": model.sha256,
        "class": model.chosen, "names": model.class_names,
        "compat": settings.compat, "box_size": settings.box_size,
        "overlap": settings.overlap, "region": region and fingerprint(region),
        "precision": settings.precision, "average_flips": settings.average_flips,
        "chunks": session.chunks, "spacing": session.voxel_spacing_angstrom,
    })  # fmt: skip


def open_tomogram(
    session: Session, source: Path, scratch: Path, models: list[ChosenModel], *,
    spacing_required: bool = True,
) -> VolumeReader:  # fmt: skip
    """Open the tomogram; warn where it is not of the kind that the models were trained on."""
    reader = open_volume(
        source,
        voxel_spacing_angstrom=session.voxel_spacing_angstrom,
        scratch=scratch,
        spacing_required=spacing_required,
    )
    warn_of_misfits(session, source, reader, models)
    return reader


def segment_compat(
    session: Session, source: Path, target: Path, settings: SegmentSettings, region: Path | None
) -> None:
    """Predict a score map with a 3D network as the published program does.

    Parameters
    ----------
    session, source, target, settings, region
        As of `deepict_dask.jobs.segmenting.segment.segment_volume`.

    Raises
    ------
    ShapeMismatchError
        An axis is so short that the published program predicts nothing.
    """
    source = source.absolute()
    region = region and region.absolute()
    model = choose_model(settings)
    key = _request(session, source, settings, model, region)
    with volume_output(session, target, key) as output:
        reader = open_tomogram(session, source, output.scratch, [model], spacing_required=False)
        mask: VolumeReader | None = None
        if region is not None:
            mask = open_volume(region, scratch=output.scratch, spacing_required=False)
        op, grid, chunks = plan_compat(session, reader, mask, model, settings)
        sources = [reader] if mask is None else [reader, FittedReader(mask, reader.header.shape)]
        sink = output.sink(model.header(reader.header), chunks)
        with (
            output.ledger(grid) as ledger,
            session.progress.stage("segment", grid.n_blocks, ledger.n_resumed) as advance,
        ):
            map_chunks(session.workers, op, sources, sink, grid, ledger=ledger, on_done=advance)


def choose_grid(
    op: WindowedOp, shape: Vec, chunks: Vec, worker_bytes: int, *, many_tomograms: bool = False,
    device_bytes: int | None = None,
) -> Grid:  # fmt: skip
    """Return the windows of a tomogram, the same for any number of workers.

    Scores of two grids may differ in the last digit, so a grid that followed the number of workers
    would too. Windows beyond 2 GiB save little, so most memory limits share a grid as well.

    Parameters
    ----------
    op
        What is applied to the windows.
    shape, chunks
        Of the tomogram and of what is written, zyx.
    worker_bytes
        Memory of a worker.
    many_tomograms
        Whether other tomograms feed the workers, so that a small one is not cut.
    device_bytes
        What a GPU may hold, where the op runs on one; then the whole tomogram is one window if it
        fits, and ``op`` has ``device_bytes_of``.

    Raises
    ------
    BudgetError
        Not even one chunk fits.
    """
    from ...segmentation.window_choice import choose_device_window, choose_window

    heavy = max(0, op.fixed_bytes - BASELINE_TORCH_BYTES)  # weights of a large model
    budget = task_budget_bytes(worker_bytes - heavy, torch=True)
    if device_bytes is not None:
        on_gpu = cast("DeviceOp", op)
        return choose_device_window(shape, chunks, on_gpu, budget, device_bytes=device_bytes)
    budget = min(budget, _LARGEST_WINDOW_BYTES)
    is_alone = not many_tomograms or math.prod(shape) > _SMALL_VOXELS
    return choose_window(shape, chunks, op, budget, n_workers=_WORKERS_TO_FEED if is_alone else 1)


def joint_op(models: Mapping[SegmentSettings, ChosenModel], device: str) -> JointSegmentOp:
    """Return the op of several networks, for a tomogram that is yet to be measured."""
    from ...segmentation.joint import JointSegmentOp
    from ...segmentation.windows import SegmentOp

    return JointSegmentOp(
        tuple(
            SegmentOp(
                model.pinned, 0.0, 1.0, model.chosen, device, settings.precision,
                average_flips=settings.average_flips,
            )
            for settings, model in models.items()
        )
    )  # fmt: skip


def measured_op(
    session: Session, reader: VolumeReader, op: JointSegmentOp, grid: Grid
) -> JointSegmentOp:
    """Measure the tomogram, four windows in a task.

    Raises
    ------
    VoxelValueError
        The tomogram has NaN or infinite voxels, or no contrast.
    """
    return op.measured(*_measured(session, reader, blocks=_measured_at_once(grid)))


def _measured_at_once(grid: Grid) -> Vec | None:
    """Return the voxels whose statistics a task measures: four windows, or fewer of a few.

    Statistics come before everything else: where one task would measure the whole tomogram, all
    workers but one would wait. None, for some chunks, where the whole tomogram is one window.
    """
    if grid.n_blocks == 1:
        return None
    z, y, x = grid.write_shape
    several = ((z, 2 * y, 2 * x), (z, y, 2 * x))
    return next((b for b in several if Grid(grid.shape, b).n_blocks > 1), grid.write_shape)


def plan_compat(
    session: Session,
    reader: VolumeReader,
    region: VolumeReader | None,
    model: ChosenModel,
    settings: SegmentSettings,
) -> tuple[CompatSegmentOp, Grid, Vec]:
    """Measure the tomogram as the published program does; choose op, blocks and chunks."""
    from ...segmentation.deepict_statistics import statistics_of

    _measured(session, reader)
    mean, std = run_whole(session.workers, "statistics", reader.path, statistics_of, reader)
    op = compat_op(model, settings, reader.header.shape, session.device)
    mask_shape = None if region is None else region.header.shape
    op = replace(op, mean=mean, std=std, mask_shape=mask_shape)
    return op, *compat_blocks(op, session.workers.memory_bytes)


def compat_op(
    model: ChosenModel, settings: SegmentSettings, shape: Vec, device: str
) -> CompatSegmentOp:
    """Return the op of published results, for a tomogram that is yet to be measured."""
    from ...segmentation.deepict_compat import CompatSegmentOp

    return CompatSegmentOp(
        model.pinned, 0.0, 1.0, shape, None, model.chosen,
        settings.box_size or CompatSegmentOp.box, settings.overlap, device=device,
    )  # fmt: skip


def compat_blocks(op: CompatSegmentOp, worker_bytes: int) -> tuple[Grid, Vec]:
    """Return the blocks of published results, and the chunks they are written in.

    Raises
    ------
    BudgetError
        A block does not fit a worker.
    """
    from ...segmentation.deepict_compat import compat_grid

    inner = op.tiling.inner
    chunks = as_vec([inner * max(1, COMPAT_CHUNK // inner)] * 3)
    grid = compat_grid(op.shape, chunks, op)
    check_budget("segment", op.bytes_needed(grid.window_shape), worker_bytes, torch=True)
    return grid, chunks


def _measured(
    session: Session, reader: VolumeReader, blocks: Vec | None = None
) -> tuple[float, float]:
    """Return mean and standard deviation; refuse volumes that no network can be given."""
    statistics = measure_statistics(session, reader, name="statistics", blocks=blocks)
    statistics.require_finite(reader.path)
    statistics.require_contrast(reader.path)
    return statistics.mean, statistics.std
