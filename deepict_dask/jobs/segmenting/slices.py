"""A tomogram and a 2D model to a score map, or to the mask of an organelle.

Exactly: one pass, smoothing and threshold included. As DeePiCt does: its tiles first; smoothing and
threshold, if asked for, in a second pass over a score map that is kept until then.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...config import SliceTiling
from ...core.errors import ConfigError
from ...engine import check_budget, fingerprint, map_chunks, request_key, task_budget_bytes
from ...engine.budget import BASELINE_TORCH_BYTES
from ...engine.spectral import run_whole
from ...io.volumes import open_volume
from ...segmentation.smoothing import SmoothOp, check_smoothing
from ..polish import smoothing_grid
from ..session import measure_statistics
from ..volume_output import volume_output
from .chosen_model import choose_model
from .model_fit import warn_of_misfits

if TYPE_CHECKING:
    from pathlib import Path

    from ...config import SegmentSettings
    from ...core.geometry import Grid, Vec
    from ...core.volume import VolumeHeader, VolumeReader
    from ...segmentation.deepict_slices import CompatSlices
    from ...segmentation.slices import SliceSegmentOp
    from ..session import Session
    from ..volume_output import VolumeOutput
    from .chosen_model import ChosenModel

__all__ = ["choose_slice_grid", "segment_slices_volume"]

log = logging.getLogger("deepict_dask")

_LARGEST_WINDOW_BYTES = 2 << 30
_WORKERS_TO_FEED = 4
"""A small tomogram is cut into at least this many windows where that costs little."""
COMPAT_SLICES = 16
"""Slices of a slab, and of a chunk, of a published-style score map."""


@dataclass(frozen=True)
class _Request:
    """What is asked for, with the model looked up."""

    session: Session
    source: Path
    settings: SegmentSettings
    model: ChosenModel
    z_sigma: float
    threshold: float | None

    @property
    def tiling(self) -> SliceTiling | None:
        """Tiles of the published way; None for the exact one."""
        if self.settings.compat is None:
            return None
        return self.settings.tiling or SliceTiling()

    @property
    def is_polished(self) -> bool:
        """Whether scores are smoothed or cut."""
        return bool(self.z_sigma or self.threshold)

    @property
    def key(self) -> str:
        """Digest of the request."""
        return request_key({
            "job": "segment slices", "input": fingerprint(self.source), "class": self.model.chosen,
            "names": self.model.class_names, "model": self.model.sha256,
            "z_sigma": self.z_sigma, "threshold": self.threshold,
            "tiling": self.tiling and self.tiling.model_dump(mode="json"),
            "chunks": self.session.chunks, "spacing": self.session.voxel_spacing_angstrom,
        })  # fmt: skip


def segment_slices_volume(
    session: Session,
    source: Path,
    target: Path,
    settings: SegmentSettings,
    *,
    z_sigma: float = 0.0,
    threshold: float | None = None,
) -> Path:
    """Predict a score map slice by slice, exact to 1e-5 whatever the windows.

    Parameters
    ----------
    session
        Workers and wishes.
    source
        Tomogram.
    target
        Score map: float32, zyx for one class, czyx for several; or a mask, uint8.
    settings
        A 2D model, its classes, and the tiles of ``compat: deepict``.
    z_sigma
        Standard deviation, in voxels, of a Gaussian along z over the scores; 0 for none.
    threshold
        Make a mask: 1 where the (smoothed) score is above this. None or 0 for scores.

    Raises
    ------
    ModelFileError
        The file is no 2D model, or lacks a class.
    VoxelValueError
        The tomogram has NaN or infinite voxels, or no contrast.
    ShapeMismatchError
        With ``compat: deepict``: DeePiCt's tiles do not fit the slices.
    BudgetError
        No window fits a worker.
    ConfigError
        ``z_sigma`` is negative.
    """
    from ...models.registry import loaded_unet2d

    check_smoothing(z_sigma, threshold)
    model = choose_model(settings)
    loaded_unet2d(model.path)  # refuses a 3D model
    # workers may run in another folder
    request = _Request(session, source.absolute(), settings, model, z_sigma, threshold)
    with volume_output(session, target, request.key) as output:
        reader = open_volume(
            request.source,
            voxel_spacing_angstrom=session.voxel_spacing_angstrom,
            scratch=output.scratch,
            spacing_required=settings.compat is None,
        )
        warn_of_misfits(session, request.source, reader, [request.model])
        _predict(request, reader, output)
    return target


def _predict(request: _Request, reader: VolumeReader, output: VolumeOutput) -> None:
    if request.tiling is None:
        _predict_exactly(request, reader, output)
    elif request.is_polished:
        _predict_then_polish(request, reader, output)
    else:
        _predict_as_deepict(request, reader, output)


def _predict_exactly(request: _Request, reader: VolumeReader, output: VolumeOutput) -> None:
    """Predict, smooth and cut in one pass over the tomogram."""
    from ...segmentation.slices import SliceSegmentOp

    session = request.session
    statistics = measure_statistics(session, reader, name="statistics")
    statistics.require_finite(reader.path)
    statistics.require_contrast(reader.path)
    op = SliceSegmentOp(
        request.model.pinned, statistics.mean, statistics.std, request.model.chosen, session.device,
        request.z_sigma, request.threshold, reader.header.dtype,
    )  # fmt: skip
    grid = choose_slice_grid(op, reader.header.shape, session.chunks, session.workers.memory_bytes)
    header = replace(reader.header, dtype=op.dtype, class_names=request.model.class_names)
    _run(session, op, reader, output, header=header, chunks=session.chunks, grid=grid)


def choose_slice_grid(op: SliceSegmentOp, shape: Vec, chunks: Vec, worker_bytes: int) -> Grid:
    """Return the windows of a tomogram, the same for any number of workers.

    Windows beyond 2 GiB save little, so most memory limits share a grid as well.

    Raises
    ------
    BudgetError
        Not even one chunk fits.
    """
    from ...segmentation.slices import choose_slice_window

    budget = task_budget_bytes(worker_bytes - _heavy_bytes(op), torch=True)
    budget = min(budget, _LARGEST_WINDOW_BYTES)
    return choose_slice_window(shape, chunks, op, budget, n_workers=_WORKERS_TO_FEED)


def _heavy_bytes(op: Any) -> int:
    """Return what the weights of a large model take beyond a worker's baseline."""
    return max(0, op.fixed_bytes - BASELINE_TORCH_BYTES)


def _predict_as_deepict(request: _Request, reader: VolumeReader, output: VolumeOutput) -> None:
    """Predict the slices and tiles that DeePiCt predicts."""
    from ...segmentation.deepict_slices import CompatSliceOp, SlabReader, compat_slice_grid

    session, plan = request.session, _compat_plan(request, reader)
    op = CompatSliceOp(request.model.pinned, 0.0, 1.0, plan, request.model.chosen, session.device)
    op.check_tile()
    chunks = (min(COMPAT_SLICES, session.chunks[0]), *session.chunks[1:])
    grid = compat_slice_grid(plan, chunks[0])
    worker_bytes = session.workers.memory_bytes - _heavy_bytes(op)
    check_budget("segment", op.bytes_needed(grid.window_shape), worker_bytes, torch=True)
    _warn_of_losses(plan, reader.path)
    mean, std = _compat_statistics(request, reader, plan)
    slab = SlabReader(reader, *plan.written)
    header = replace(slab.header, class_names=request.model.class_names)
    op = replace(op, mean=mean, std=std)
    _run(session, op, slab, output, header=header, chunks=chunks, grid=grid)


def _compat_plan(request: _Request, reader: VolumeReader) -> CompatSlices:
    """Return DeePiCt's slices and tiles."""
    from ...segmentation.deepict_slices import CompatSlices

    assert request.tiling is not None  # asked for by the caller
    return CompatSlices(reader.header.shape, request.tiling)


def _compat_statistics(
    request: _Request, reader: VolumeReader, plan: CompatSlices
) -> tuple[float, float]:
    """Return mean and standard deviation as DeePiCt has them, of the slices that it predicts."""
    from ...segmentation.deepict_slices import SlabReader
    from ...segmentation.deepict_statistics import statistics_of

    statistics = measure_statistics(request.session, reader, name="statistics")
    statistics.require_finite(reader.path)
    statistics.require_contrast(reader.path)
    if not plan.tiling.normalize:
        return 0.0, 1.0
    slab = SlabReader(reader, *plan.predicted)
    found: tuple[float, float] = run_whole(
        request.session.workers, "statistics", reader.path, statistics_of, slab
    )
    return found


def _warn_of_losses(plan: CompatSlices, path: str) -> None:
    """Say what the published way leaves out."""
    n_slices, (first, stop) = plan.shape[0], plan.predicted
    if stop - first < n_slices:
        log.warning(
            "%s: --compat deepict predicts slices %d to %d of %d and writes %d",
            path, first, stop - 1, n_slices, plan.out_shape[0],
        )  # fmt: skip
    for axis in (1, 2):
        gaps = [f"{a} to {b - 1}" for a, b in plan.gaps(axis)]
        if gaps:
            log.warning(
                "%s: --compat deepict: %d tiles of %d do not cover %s %s: the score map is NaN "
                "there; use more --tiles, or leave out --compat deepict",
                path, plan.tiling.tiles[axis - 1], plan.tiling.tile[axis - 1],
                "zyx"[axis], ", ".join(gaps),
            )  # fmt: skip


def _predict_then_polish(request: _Request, reader: VolumeReader, output: VolumeOutput) -> None:
    """Make a score map as DeePiCt does inside the partial folder, then smooth and cut it."""
    from ...segmentation.deepict_slices import SlabReader

    session = request.session
    if request.model.class_names:
        raise ConfigError(
            f"{request.settings.model}: expected one class to smooth or cut, found "
            f"{', '.join(request.model.class_names)}; choose one with --class"
        )
    slab = SlabReader(reader, *_compat_plan(request, reader).written)
    op = SmoothOp(request.z_sigma, request.threshold, keep_nan=True)
    header = replace(slab.header, dtype=op.dtype)
    grid = smoothing_grid(
        header.shape, session.chunks, op, session.workers.memory_bytes, torch=True
    )
    scores = output.staged.partial / "scores.zarr"
    sink = output.sink(header, session.chunks)
    with output.ledger(grid) as ledger:  # from here on unfinished work is kept, also of the scores
        if not scores.exists():
            with volume_output(session, scores, request.key) as inner:
                _predict_as_deepict(request, reader, inner)
        stored = open_volume(scores, spacing_required=False)
        with session.progress.stage(op.name, grid.n_blocks, ledger.n_resumed) as advance:
            map_chunks(session.workers, op, [stored], sink, grid, ledger=ledger, on_done=advance)


def _run(
    session: Session,
    op: Any,
    reader: VolumeReader,
    output: VolumeOutput,
    *,
    header: VolumeHeader,
    chunks: Vec,
    grid: Grid,
) -> None:
    """Apply an op to every block that is not finished."""
    sink = output.sink(header, chunks)
    with (
        output.ledger(grid) as ledger,
        session.progress.stage(op.name, grid.n_blocks, ledger.n_resumed) as advance,
    ):
        map_chunks(session.workers, op, [reader], sink, grid, ledger=ledger, on_done=advance)
