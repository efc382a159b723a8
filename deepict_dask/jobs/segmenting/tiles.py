"""A tomogram and a model of DeepFinder or DeepETPicker to a score map or a label volume."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...core.errors import ConfigError
from ...engine import fingerprint, map_chunks, request_key, task_budget_bytes
from ...engine.budget import BASELINE_TORCH_BYTES
from ..session import measure_statistics
from ..volume_output import volume_output
from .chosen_model import check_argmax, choose_model, kind_of_model
from .windows import choose_grid, open_tomogram

if TYPE_CHECKING:
    from pathlib import Path

    from ...config import SegmentSettings
    from ...core.geometry import Grid, Vec
    from ...segmentation.class_scores import ClassScoresOp, LabelsOp
    from ..session import Session
    from .chosen_model import ChosenModel

    TilesOp = ClassScoresOp | LabelsOp

__all__ = ["PUBLISHED_BOX", "check_tiles", "plan_tiles", "segment_tiles", "tiles_op"]

PUBLISHED_BOX = 192
"""Edge of DeepFinder's patches where nobody says otherwise."""
_WORKERS_TO_FEED = 4
"""A small tomogram is cut into at least this many blocks where that costs little."""


def segment_tiles(session: Session, source: Path, target: Path, settings: SegmentSettings) -> None:
    """Predict a score map with DeepFinder's or DeepETPicker's network.

    Parameters
    ----------
    session
        Workers and wishes.
    source
        Tomogram.
    target
        Score map: float32, zyx for one class, czyx for several, the background first; with
        ``argmax`` a label volume: uint8, zyx, 0 for background.
    settings
        Model and classes; ``compat: deepfinder`` averages overlapping patches.

    Raises
    ------
    ConfigError
        A setting that the network does not know.
    ShapeMismatchError
        The tomogram is too small for the tiles of a model or a published program.
    ModelFileError, VoxelValueError, BudgetError
        As `deepict_dask.jobs.segmenting.segment.segment_volume`.
    """
    check_tiles(settings)
    source = source.absolute()  # workers may run in another folder
    model = choose_model(settings)
    with volume_output(session, target, _request(session, source, settings, model)) as output:
        reader = open_tomogram(session, source, output.scratch, [model])
        shape, each = reader.header.shape, session.workers.memory_bytes
        op, grid = plan_tiles(
            settings, model, shape, session.chunks, worker_bytes=each, device=session.device
        )
        statistics = measure_statistics(session, reader, name="statistics")
        statistics.require_finite(reader.path)
        statistics.require_contrast(reader.path)
        op = op.measured(statistics.mean, statistics.std)
        sink = output.sink(model.header(reader.header), session.chunks)
        with (
            output.ledger(grid) as ledger,
            session.progress.stage("segment", grid.n_blocks, ledger.n_resumed) as advance,
        ):
            map_chunks(session.workers, op, [reader], sink, grid, ledger=ledger, on_done=advance)


def check_tiles(settings: SegmentSettings) -> None:
    """Refuse what only DeePiCt's networks can be asked for, or only the other network.

    Raises
    ------
    ConfigError
        Another ``compat``, or another precision than float32.
    """
    kind = kind_of_model(settings.model)
    check_argmax(settings)
    if settings.compat not in (None, kind):
        raise ConfigError(
            f"{settings.model}: compat: expected {kind} or none for this model, "
            f"found {settings.compat}"
        )
    if settings.precision != "float32":
        raise ConfigError(
            f"{settings.model}: precision: expected float32 for this model, "
            f"found {settings.precision}, which DeePiCt's 3D networks know"
        )
    if settings.compat == "deepetpicker" and settings.box_size is not None:
        raise ConfigError(
            f"{settings.model}: box_size: expected none, since the file says how large its tiles "
            f"are, found {settings.box_size}"
        )


def plan_tiles(
    settings: SegmentSettings,
    model: ChosenModel,
    shape: Vec,
    chunks: Vec,
    *,
    worker_bytes: int,
    device: str = "cpu",
) -> tuple[TilesOp, Grid]:
    """Choose op and blocks for a tomogram that is yet to be measured.

    Raises
    ------
    BudgetError
        Not even one chunk fits.
    """
    from ...segmentation.class_scores import LabelsOp
    from ...segmentation.fixed_tiles import choose_tile_grid

    op: Any = tiles_op(settings, model, shape, device)
    if settings.argmax:
        op = LabelsOp(op)
    if kind_of_model(settings.model) == "deepfinder" and settings.compat is None:
        return op, choose_grid(op, shape, chunks, worker_bytes)
    heavy = max(0, op.fixed_bytes - BASELINE_TORCH_BYTES)
    budget = task_budget_bytes(worker_bytes - heavy, torch=True)
    return op, choose_tile_grid(shape, chunks, op, budget, n_workers=_WORKERS_TO_FEED)


def tiles_op(
    settings: SegmentSettings, model: ChosenModel, shape: Vec, device: str = "cpu"
) -> ClassScoresOp:
    """Return the op of a DeepFinder or DeepETPicker model, for a tomogram yet to be measured."""
    from ...segmentation.deepetpicker_tiles import DeepETPickerOp
    from ...segmentation.deepfinder_compat import CompatDeepFinderOp
    from ...segmentation.deepfinder_windows import DeepFinderOp

    common = (model.pinned, 0.0, 1.0, model.chosen, device)
    if kind_of_model(settings.model) == "deepetpicker":
        return DeepETPickerOp(*common, shape=shape, average_flips=settings.average_flips)
    if settings.compat == "deepfinder":
        return CompatDeepFinderOp(*common, shape=shape, box=settings.box_size or PUBLISHED_BOX)
    return DeepFinderOp(*common, average_flips=settings.average_flips)


def _request(session: Session, source: Path, settings: SegmentSettings, model: ChosenModel) -> str:
    """Return the key of what is asked for."""
    return request_key({
        "job": "segment tiles", "input": fingerprint(source), "model": model.sha256,
        "class": model.chosen, "names": model.class_names, "argmax": settings.argmax,
        "compat": settings.compat, "box_size": settings.box_size,
        "average_flips": settings.average_flips,
        "chunks": session.chunks, "spacing": session.voxel_spacing_angstrom,
    })  # fmt: skip
