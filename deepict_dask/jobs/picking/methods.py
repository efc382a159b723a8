"""A stored score map or label volume to picks, by mean shift or mean-pooling suppression.

Opening, lists and record are here; the methods are in `mean_shift` and `mean_pool`.
"""

from __future__ import annotations

import logging
import shutil
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ...engine import StagedOutput, fingerprint, request_key
from ...io.picks import write_picks
from ...io.picks_table import by_falling_score
from ...particles.class_labels import ClassLabels
from ...particles.deepetpicker_compat import TileSearch
from ...particles.mean_pool_nms import MeanPoolReduction, MeanPoolSettings
from ...particles.mean_shift import ModeReduction
from ..session import measure_statistics
from .mean_pool import mean_pool_picks
from .mean_shift import mean_shift_picks
from .method_sources import BACKGROUND, MethodSources, method_grid
from .nothing import warn_of_nothing
from .outputs import PICK_FILES, PickReport, write_record
from .point_regions import picks_by_regions

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pandas as pd

    from ...config import PickSettings
    from ...core.geometry import Vec
    from ...core.ops import TreeReduction
    from ...core.volume import VolumeHeader
    from ..session import Session

__all__ = ["finish_lists", "frame_of", "pick_by_method", "plan_method"]

log = logging.getLogger("deepict_dask")
_METHODS = {"mean-shift": mean_shift_picks, "mp-nms": mean_pool_picks}


def pick_by_method(
    session: Session,
    score: Path,
    target: Path,
    settings: PickSettings,
    *,
    regions: Mapping[str, Path] | None = None,
    tomogram_name: str | None = None,
) -> PickReport:
    """Turn a score map or a label volume into particle lists.

    Parameters
    ----------
    session
        Workers and wishes.
    score
        Score map, of one class or several (softmax, a class ``background`` is left out), or a
        volume of whole numbers: with mean shift its labels are the classes.
    target
        Folder to make: ``picks.star``, ``picks.csv``, ``motl.csv``, ``run.json``.
    settings
        With a method other than ``components``.
    regions
        Mask files by the names of their regions, as of `pick_particles`.
    tomogram_name
        Name in the STAR file; the folder's by default.

    Raises
    ------
    ConfigError
        The method is another one, or a setting does not fit the volume.
    VoxelValueError
        Scores are NaN, or labels are no labels.
    BudgetError
        A task would need more memory than a worker has.
    OutputExistsError
        The folder exists.
    """
    started = datetime.now(UTC)
    score = score.absolute()
    masks = {name: path.absolute() for name, path in (regions or {}).items()}
    request = {
        "job": "pick", "input": fingerprint(score),
        "regions": [[name, fingerprint(path)] for name, path in masks.items()],
        "settings": settings.model_dump(mode="json"), "spacing": session.voxel_spacing_angstrom,
    }  # fmt: skip
    key = request_key(request)
    with StagedOutput(target, key, overwrite=session.overwrite, own=PICK_FILES) as staged:
        scratch = staged.folder / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        job = MethodSources.open(session, score, scratch, settings)
        picks = _METHODS[settings.method](job)
        n_found = len(picks)
        picks = picks_by_regions(job, picks, masks)
        if n_found == 0:
            _say_why_nothing(job, score)
        elif len(picks) == 0:
            log.warning("%s: no picks: none of %d meets the contact asked for", score, n_found)
        finish_lists(
            staged.folder, picks, job.header, tomogram_name or target.name,
            inputs={"score": str(score), "regions": {n: str(path) for n, path in masks.items()}},
            request={**request, "key": key}, started=started,
        )  # fmt: skip
        shutil.rmtree(scratch)
        staged.commit()
    return PickReport(target, len(picks))


def _say_why_nothing(job: MethodSources, score: Path) -> None:
    """Warn that nothing was found, with the scores of the class that comes nearest to it."""
    ranges = [
        (measure_statistics(job.session, source, name="score range"), threshold)
        for source, name, threshold in zip(
            job.sources, job.names or ("",), job.thresholds(), strict=True
        )
        if name != BACKGROUND
    ]
    found, threshold = max(ranges, key=lambda pair: pair[0].maximum - pair[1])
    settings = job.settings.model_copy(update={"threshold": threshold})
    warn_of_nothing(str(score), found, settings, n_clusters=0)


def plan_method(settings: PickSettings, shape: Vec, chunks: Vec, n_sources: int) -> tuple[int, int]:
    """Return how many blocks a method has for a score map, and the bytes of one.

    Parameters
    ----------
    settings
        With a method other than ``components``.
    shape, chunks
        Of the score map, zyx.
    n_sources
        Classes of the score map; 1 for a label volume.
    """
    if settings.method == "mean-shift":
        labels = ClassLabels(bytes_per_voxel=4 * n_sources + 12)
        op: TreeReduction[Any, Any] = ModeReduction(shape, labels, settings.bandwidth or 1.0)
    else:
        rules = MeanPoolSettings.of_diameters(settings.diameters)
        if settings.compat:
            search = TileSearch(shape, rules)
            return search.n_tiles, search.bytes_needed
        op = MeanPoolReduction(rules, n_windows=n_sources)
    grid = method_grid(op, shape, chunks)
    return grid.n_blocks, op.bytes_needed(grid.window_shape)


def frame_of(header: VolumeHeader, name: str) -> dict[str, Any]:
    """Return what the writers of lists want to know of a tomogram."""
    return {
        "voxel_spacing_angstrom": header.voxel_spacing_angstrom,
        "tomogram_shape": header.shape,
        "tomogram_name": name,
    }


def finish_lists(
    folder: Path,
    picks: pd.DataFrame,
    header: VolumeHeader,
    name: str,
    *,
    inputs: dict[str, Any],
    request: dict[str, Any],
    started: datetime,
    **counts: int,
) -> None:
    """Write the particle lists (picks.csv by falling score, the others by label) and the record."""
    _write_lists(folder, picks, header, name)
    counts = {"n_picks": len(picks), **counts}
    write_record(folder, header, inputs=inputs, request=request, started=started, **counts)


def _write_lists(folder: Path, picks: pd.DataFrame, header: VolumeHeader, name: str) -> None:
    """Write the particle lists."""
    frame = frame_of(header, name)
    write_picks(by_falling_score(picks), folder / "picks.csv", **frame)
    write_picks(picks, folder / "motl.csv", **frame)
    if header.voxel_spacing_angstrom is None:
        log.warning(
            "%s: no voxel spacing is known, so picks.star (in Å) is not written; "
            "give --voxel-spacing-angstrom (in a config: voxel_spacing_angstrom)", name,
        )  # fmt: skip
    else:
        write_picks(picks, folder / "picks.star", **frame)
