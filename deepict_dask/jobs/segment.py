"""A tomogram and models to score maps."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..core.errors import ConfigError, ModelFileError
from ..core.geometry import as_vec
from ..engine import check_budget, fingerprint, map_chunks, request_key, task_budget_bytes
from ..engine.budget import BASELINE_TORCH_BYTES
from ..engine.ledger import JointLedger
from ..engine.spectral import run_whole
from ..io.fitted import FittedReader
from ..io.volumes import open_volume
from .session import measure_statistics
from .volume_output import volume_output

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ..config import SegmentSettings
    from ..core.geometry import Grid, Vec
    from ..core.volume import VolumeHeader, VolumeReader
    from ..segmentation.deepict_compat import CompatSegmentOp
    from ..segmentation.joint import JointSegmentOp
    from .session import Session

__all__ = ["is_2d", "segment_together", "segment_volume"]

log = logging.getLogger("deepict_dask")

_SPACING_TOLERANCE = 0.05
_LARGEST_WINDOW_BYTES = 2 << 30
_WORKERS_TO_FEED = 4
"""A small tomogram is cut into at least this many windows where that costs little."""
COMPAT_CHUNK = 120
"""Largest edge of a chunk of a published-style score map, which holds whole inner cubes."""


def segment_volume(
    session: Session,
    source: Path,
    target: Path,
    settings: SegmentSettings,
    *,
    region: Path | None = None,
) -> Path:
    """Predict a score map with a 2D or a 3D network, exact to 1e-5 whatever the windows.

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
        With ``compat: deepict`` and a 3D network: patches that do not touch this mask are not
        predicted.

    Raises
    ------
    ModelFileError
        The file is no model, or lacks a class.
    VoxelValueError
        The tomogram has NaN or infinite voxels, or no contrast.
    BudgetError
        No window fits a worker.
    """
    if is_2d(settings.model):
        from .segment_slices import segment_slices_volume

        if region is not None:
            raise ConfigError(
                f"{settings.model}: expected a 3D network with --region-mask, found a 2D one; "
                "restrict the picks instead: deepict-dask pick --region-mask"
            )
        segment_slices_volume(session, source, target, settings)
    elif settings.compat is not None:
        _segment_compat(session, source, target, settings, region)
    elif region is not None:
        raise ConfigError(
            "segment: expected --region-mask together with --compat deepict only, found it alone; "
            "restrict the picks instead: deepict-dask pick --region-mask"
        )
    else:
        segment_together(session, source, {target: settings})
    return target


def is_2d(model: str) -> bool:
    """Say whether a model file (or a bundled model) holds a 2D network."""
    from ..models.checkpoint import model_info
    from ..models.registry import resolve_model

    return getattr(model_info(resolve_model(model)), "kind", "unet3d") == "unet2d"


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
    from ..io.split_write import SplitWriter

    source = source.absolute()  # workers may run in another folder
    models = {target: _chosen_model(session, settings) for target, settings in wanted.items()}
    with ExitStack() as stack:
        outputs = {
            target: stack.enter_context(
                volume_output(session, target, _request(session, source, settings, models[target]))
            )
            for target, settings in wanted.items()
        }
        scratch = next(iter(outputs.values())).scratch
        reader = _open_tomogram(session, source, scratch, list(models.values()))
        op, grid = plan_segment(session, reader, list(models.values()))
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


@dataclass(frozen=True)
class _ChosenModel:
    """A model file and the classes of it that are wanted."""

    name: str
    path: str
    sha256: str
    chosen: int | None
    class_names: tuple[str, ...]
    """Of the score map: none where it has one class."""
    voxel_spacing_angstrom: float | None

    def header(self, tomogram: VolumeHeader) -> VolumeHeader:
        """Return the header of the score map."""
        return replace(tomogram, dtype="float32", class_names=self.class_names)


def _chosen_model(session: Session, settings: SegmentSettings) -> _ChosenModel:
    """Find and load a model, and choose its classes."""
    from ..models.registry import loaded_model, resolve_model

    path = str(resolve_model(settings.model).absolute())
    model = loaded_model(path, session.device)
    chosen = chosen_class(model.class_names, settings.classes, settings.model)
    names = () if chosen is not None or len(model.class_names) < 2 else model.class_names
    spacing = model.voxel_spacing_angstrom
    return _ChosenModel(settings.model, path, model.sha256, chosen, names, spacing)


def _request(
    session: Session, source: Path, settings: SegmentSettings, model: _ChosenModel,
    region: Path | None = None,
) -> str:  # fmt: skip
    """Return the key of what is asked for."""
    return request_key({
        "job": "segment", "input": fingerprint(source), "model": model.sha256,
        "class": model.chosen, "compat": settings.compat, "box_size": settings.box_size,
        "overlap": settings.overlap, "region": region and fingerprint(region),
        "chunks": session.chunks, "spacing": session.voxel_spacing_angstrom,
    })  # fmt: skip


def _open_tomogram(
    session: Session, source: Path, scratch: Path, models: list[_ChosenModel], *,
    spacing_required: bool = True,
) -> VolumeReader:  # fmt: skip
    """Open the tomogram and compare its voxel spacing with that of the models."""
    reader = open_volume(
        source,
        voxel_spacing_angstrom=session.voxel_spacing_angstrom,
        scratch=scratch,
        spacing_required=spacing_required,
    )
    for model in models:
        check_spacing(reader.header, model.voxel_spacing_angstrom, model.name)
    return reader


def _segment_compat(
    session: Session, source: Path, target: Path, settings: SegmentSettings, region: Path | None
) -> None:
    """Predict a score map as the published program does."""
    source = source.absolute()
    region = region and region.absolute()
    model = _chosen_model(session, settings)
    key = _request(session, source, settings, model, region)
    with volume_output(session, target, key) as output:
        reader = _open_tomogram(session, source, output.scratch, [model], spacing_required=False)
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


def choose_grid(op: JointSegmentOp, shape: Vec, chunks: Vec, worker_bytes: int) -> Grid:
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
    session: Session, reader: VolumeReader, models: list[_ChosenModel]
) -> tuple[JointSegmentOp, Grid]:
    """Measure the tomogram; choose the op and its windows."""
    from ..segmentation.joint import JointSegmentOp
    from ..segmentation.windows import SegmentOp

    mean, std = _measured(session, reader)
    op = JointSegmentOp(
        tuple(SegmentOp(model.path, mean, std, model.chosen, session.device) for model in models)
    )
    shape, each = reader.header.shape, session.workers.memory_bytes
    return op, choose_grid(op, shape, session.chunks, each)


def plan_compat(
    session: Session,
    reader: VolumeReader,
    region: VolumeReader | None,
    model: _ChosenModel,
    settings: SegmentSettings,
) -> tuple[CompatSegmentOp, Grid, Vec]:
    """Measure the tomogram as the published program does; choose op, blocks and chunks."""
    from ..segmentation.deepict_compat import CompatSegmentOp, compat_grid
    from ..segmentation.deepict_statistics import statistics_of

    _measured(session, reader)
    mean, std = run_whole(session.workers, "statistics", reader.path, statistics_of, reader)
    shape = reader.header.shape
    mask_shape = None if region is None else region.header.shape
    op = CompatSegmentOp(
        model.path, mean, std, shape, mask_shape, model.chosen,
        settings.box_size, settings.overlap, device=session.device,
    )  # fmt: skip
    inner = op.tiling.inner
    chunks = as_vec([inner * max(1, COMPAT_CHUNK // inner)] * 3)
    grid = compat_grid(shape, chunks, op)
    needed = op.bytes_needed(grid.window_shape)
    check_budget("segment", needed, session.workers.memory_bytes, torch=True)
    return op, grid, chunks


def _measured(session: Session, reader: VolumeReader) -> tuple[float, float]:
    """Return mean and standard deviation; refuse volumes that no network can be given."""
    statistics = measure_statistics(session, reader, name="statistics")
    statistics.require_finite(reader.path)
    statistics.require_contrast(reader.path)
    return statistics.mean, statistics.std
