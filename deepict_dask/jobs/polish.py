"""A score map to a smoother score map, or to a mask."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..core.errors import ConfigError
from ..core.geometry import Grid, as_vec
from ..engine import check_budget, fingerprint, map_chunks, request_key, task_budget_bytes
from ..io.volumes import open_volume
from ..segmentation.smoothing import SmoothOp, check_smoothing
from .volume_output import volume_output

if TYPE_CHECKING:
    from pathlib import Path

    from ..core.geometry import Vec
    from ..core.volume import VolumeReader
    from .session import Session

__all__ = ["polish_volume", "smoothing_grid"]


def polish_volume(
    session: Session,
    source: Path,
    target: Path,
    *,
    z_sigma: float,
    threshold: float | None,
    class_name: str | None = None,
    compat: str | None = None,
) -> Path:
    """Smooth a score map along z and cut it at a threshold, equal to SciPy on the whole volume.

    Parameters
    ----------
    session
        Workers and wishes.
    source
        Score map.
    target
        Mask, uint8 of 0 and 1; or scores, float32, where there is no threshold.
    z_sigma
        Standard deviation of the Gaussian in voxels; 0 for none.
    threshold
        Voxels above it are 1; None or 0 for scores.
    class_name
        Which class of a score map with several.
    compat
        "deepict" takes NaN for outside, and needs no voxel spacing.

    Raises
    ------
    ConfigError
        ``z_sigma`` is negative, or there are several classes and none is chosen.
    WorkFailedError
        Some of the work failed.
    BudgetError
        Not even one chunk with the slices that smoothing needs fits a worker.
    """
    check_smoothing(z_sigma, threshold)
    source = source.absolute()  # workers may run in another folder
    request = {
        "job": "polish", "input": fingerprint(source), "sigma": z_sigma, "threshold": threshold,
        "class": class_name, "chunks": session.chunks, "compat": compat,
        "spacing": session.voxel_spacing_angstrom,
    }  # fmt: skip
    with volume_output(session, target, request_key(request)) as output:
        reader = _open_scores(session, source, output.scratch, class_name, compat)
        header = reader.header
        op = SmoothOp(z_sigma, threshold, compat is not None, header.dtype)
        sink = output.sink(replace(header, dtype=op.dtype), session.chunks)
        grid = smoothing_grid(header.shape, session.chunks, op, session.workers.memory_bytes)
        with (
            output.ledger(grid) as ledger,
            session.progress.stage(op.name, grid.n_blocks, ledger.n_resumed) as advance,
        ):
            map_chunks(session.workers, op, [reader], sink, grid, ledger=ledger, on_done=advance)
    return target


def _open_scores(
    session: Session, source: Path, scratch: Path, class_name: str | None, compat: str | None
) -> VolumeReader:
    """Open one class of a score map."""
    reader = open_volume(
        source,
        voxel_spacing_angstrom=session.voxel_spacing_angstrom,
        scratch=scratch,
        class_name=class_name,
        spacing_required=compat is None,
    )
    names = reader.header.class_names
    if names:
        raise ConfigError(
            f"{source}: expected one class to polish, found {', '.join(names)}; "
            "choose one with --class"
        )
    return reader


def smoothing_grid(
    shape: Vec, chunks: Vec, op: SmoothOp, worker_bytes: int, *, torch: bool = False
) -> Grid:
    """Return columns of chunks, as long as fit a worker: the longest read the fewest slices twice.

    Parameters
    ----------
    shape
        Voxels of the score map, zyx.
    chunks
        Of the store that is written.
    op
        Smoothing.
    worker_bytes
        Memory of a worker.
    torch
        Whether its process has loaded torch.

    Raises
    ------
    BudgetError
        Not even one chunk with its halo fits.

    Examples
    --------
    >>> smoothing_grid((500, 900, 900), (128, 128, 128), SmoothOp(5.0), 4 << 30).write_shape
    (512, 128, 128)
    """
    budget = task_budget_bytes(worker_bytes, torch=torch)
    in_slice = [min(c, n) for c, n in zip(chunks[1:], shape[1:], strict=True)]
    for n_chunks in range(-(-shape[0] // chunks[0]), 0, -1):
        grid = Grid(shape, as_vec([n_chunks * chunks[0], *in_slice]), op.halo)
        if op.bytes_needed(grid.window_shape) <= budget:
            return grid
    check_budget(op.name, op.bytes_needed(grid.window_shape), worker_bytes, torch=torch)
    return grid
