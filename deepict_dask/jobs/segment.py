"""A tomogram and a model to a score map."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError, ModelFileError
from ..engine import check_budget, fingerprint, map_chunks, request_key, task_budget_bytes
from ..engine.budget import BASELINE_TORCH_BYTES
from ..engine.spectral import run_whole
from ..io.fitted import FittedReader
from ..io.volumes import open_volume
from .session import measure_statistics
from .volume_output import volume_output

if TYPE_CHECKING:
    from pathlib import Path

    from ..config import SegmentSettings
    from ..core.geometry import Grid, Vec
    from ..core.volume import VolumeHeader, VolumeReader
    from ..segmentation.windows import SegmentOp
    from .session import Session

__all__ = ["segment_volume"]

log = logging.getLogger("deepict_dask")

_SPACING_TOLERANCE = 0.05
_LARGEST_WINDOW_BYTES = 2 << 30
_WORKERS_TO_FEED = 4
"""A small tomogram is cut into at least this many windows where that costs little."""
COMPAT_CHUNKS = (120, 120, 120)
"""Chunks of a published-style score map: whole inner cubes of 40 voxels."""


def segment_volume(
    session: Session,
    source: Path,
    target: Path,
    settings: SegmentSettings,
    *,
    region: Path | None = None,
) -> Path:
    """Predict a score map, exact to 1e-5 whatever the windows.

    Parameters
    ----------
    session
        Workers and wishes.
    source
        Tomogram.
    target
        Score map: float32, zyx for one class, czyx for several.
    settings
        Model and classes.
    region
        With ``compat: deepict``: patches that do not touch this mask are not predicted.

    Raises
    ------
    ModelFileError
        The file is no model, or lacks a class.
    VoxelValueError
        The tomogram has NaN or infinite voxels, or no contrast.
    BudgetError
        No window fits a worker.
    """
    from ..models.registry import loaded_model, resolve_model

    source = source.absolute()  # workers may run in another folder
    region = region and region.absolute()
    model_path = resolve_model(settings.model).absolute()
    model = loaded_model(str(model_path), session.device)
    chosen = chosen_class(model.class_names, settings.classes, settings.model)
    if region is not None and settings.compat is None:
        raise ConfigError(
            "segment: expected --region-mask together with --compat deepict only, found it alone; "
            "restrict the picks instead: deepict-dask pick --region-mask"
        )
    request = {
        "job": "segment", "input": fingerprint(source), "model": model.sha256, "class": chosen,
        "compat": settings.compat, "region": region and fingerprint(region),
        "chunks": session.chunks, "spacing": session.voxel_spacing_angstrom,
    }  # fmt: skip
    with volume_output(session, target, request_key(request)) as output:
        reader = open_volume(
            source,
            voxel_spacing_angstrom=session.voxel_spacing_angstrom,
            scratch=output.scratch,
            spacing_required=settings.compat is None,
        )
        check_spacing(reader.header, model.voxel_spacing_angstrom, settings.model)
        mask = None
        if region is not None and settings.compat is not None:
            mask = open_volume(region, scratch=output.scratch, spacing_required=False)
        op, grid, sources = plan_segment(
            session, reader, mask, model_path=str(model_path), chosen=chosen, settings=settings
        )
        names = () if chosen is not None or len(model.class_names) < 2 else model.class_names
        header = replace(reader.header, dtype="float32", class_names=names)
        sink = output.sink(header, COMPAT_CHUNKS if settings.compat else session.chunks)
        with (
            output.ledger(grid) as ledger,
            session.progress.stage("segment", grid.n_blocks, ledger.n_resumed) as advance,
        ):
            map_chunks(session.workers, op, sources, sink, grid, ledger=ledger, on_done=advance)
    return target


def chosen_class(names: tuple[str, ...], wanted: tuple[str, ...] | None, model: str) -> int | None:
    """Return the channel of the one class that is wanted, None for all.

    Raises
    ------
    ModelFileError
        The model has no such class.

    Examples
    --------
    >>> chosen_class(("ribosome", "fas"), ("fas",), "m.pth")
    1
    """
    if wanted is None or tuple(wanted) == tuple(names):
        return 0 if len(names) <= 1 else None
    missing = [name for name in wanted if name not in names]
    if missing or len(wanted) != 1:
        raise ModelFileError(
            f"{model}: expected one of the classes {', '.join(names)} (or all of them), "
            f"found {', '.join(wanted)}"
        )
    return names.index(wanted[0])


def check_spacing(header: VolumeHeader, trained_at: float | None, model: str) -> None:
    """Warn where the voxel spacing is far from what the model was trained at."""
    found = header.voxel_spacing_angstrom
    if trained_at is None or found is None:
        return
    if abs(found / trained_at - 1) > _SPACING_TOLERANCE:
        log.warning(
            "%s was trained at %.4g Å per voxel, but the tomogram has %.4g Å: expect poor or "
            "empty results; rescale the tomogram, or give the true spacing with "
            "--voxel-spacing-angstrom",
            model, trained_at, found,
        )  # fmt: skip


def choose_grid(op: SegmentOp, shape: Vec, chunks: Vec, worker_bytes: int) -> Grid:
    """Return the windows of a tomogram, the same for any number of workers.

    Scores of two grids may differ in the last digit, so a grid that followed the number of workers
    would too. Windows beyond 2 GiB save little, so most memory limits share a grid as well.

    Raises
    ------
    BudgetError
        Not even one chunk fits.
    """
    from ..segmentation.windows import choose_window

    heavy = max(0, op.fixed_bytes - BASELINE_TORCH_BYTES)  # weights of a large model
    budget = task_budget_bytes(worker_bytes - heavy, torch=True)
    budget = min(budget, _LARGEST_WINDOW_BYTES)
    return choose_window(shape, chunks, op, budget, n_workers=_WORKERS_TO_FEED)


def plan_segment(
    session: Session,
    reader: VolumeReader,
    region: VolumeReader | None,
    *,
    model_path: str,
    chosen: int | None,
    settings: SegmentSettings,
) -> tuple[Any, Grid, list[VolumeReader]]:
    """Measure the tomogram; choose the op, its windows and its sources."""
    from ..segmentation.deepict_compat import CompatSegmentOp, compat_grid
    from ..segmentation.deepict_statistics import statistics_of
    from ..segmentation.windows import SegmentOp

    statistics = measure_statistics(session, reader, name="statistics")
    statistics.require_finite(reader.path)
    statistics.require_contrast(reader.path)
    mean, std, shape = statistics.mean, statistics.std, reader.header.shape
    if settings.compat is None:
        op = SegmentOp(model_path, mean, std, chosen, session.device)
        grid = choose_grid(op, shape, session.chunks, session.workers.memory_bytes)
        return op, grid, [reader]
    mean, std = run_whole(session.workers, "statistics", reader.path, statistics_of, reader)
    mask_shape = None if region is None else region.header.shape
    compat = CompatSegmentOp(
        model_path, mean, std, shape, mask_shape, chosen, device=session.device
    )
    grid = compat_grid(shape, COMPAT_CHUNKS, compat)
    needed = compat.bytes_needed(grid.window_shape)
    check_budget("segment", needed, session.workers.memory_bytes, torch=True)
    sources = [reader] if region is None else [reader, FittedReader(region, shape)]
    return compat, grid, sources
