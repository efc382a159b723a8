"""Compare results with the truth: particle lists, score maps and segmentations.

A comparison of two files, or of a table of tomograms. In a table, a tomogram that fails is named
and does not stop the others. Particle lists are read here; volumes are read by the workers, chunk
by chunk, once.
"""

from __future__ import annotations

import logging
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..config import settings_from
from ..core.errors import ConfigError, DeepictError, ShapeMismatchError, VoxelValueError
from ..core.geometry import Grid, as_vec
from ..engine import check_budget, reduce_chunks
from ..evaluate.picks import JudgedPicks, count_picks, judge_picks, pool_picks, same_class
from ..evaluate.report import EvaluatedTomogram, Evaluation
from ..evaluate.segmentation import CompareReduction, Tally, pool_tallies, score_segmentation
from ..evaluate.settings import PicksEvaluation, SegmentationEvaluation
from ..evaluate.table import read_table
from ..io.fitted import FittedReader
from ..io.picks import read_picks
from ..io.picks_table import check_one_tomogram
from ..io.volumes import open_volume

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from ..core.volume import VolumeReader
    from ..evaluate.picks import PicksScore
    from ..evaluate.report import Score
    from ..evaluate.segmentation import SegmentationScore
    from ..evaluate.table import TableRow
    from .session import Session

__all__ = [
    "evaluate_picks",
    "evaluate_picks_table",
    "evaluate_segmentation",
    "evaluate_segmentation_table",
]

_HERE = ("inproc:", "tcp://127.", "tcp://localhost")
"""Addresses of schedulers whose workers share this machine's folders."""
log = logging.getLogger("deepict_dask")
Judged = TypeVar("Judged", JudgedPicks, Tally)
_SPACING_TOLERANCE = 0.01


def evaluate_picks(
    predicted: Path, truth: Path, settings: PicksEvaluation | None = None
) -> PicksScore:
    r"""Compare a particle list with the true one.

    Parameters
    ----------
    predicted, truth
        Particle lists of any format that is read.
    settings
        Radius, class, counting.

    Raises
    ------
    PicksFormatError, SpacingError
        A list cannot be read, or has picks of several tomograms.
    ConfigError
        There are several classes and none was chosen, or a radius in nm without a voxel's size.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     picks, true = Path(folder, "picks.csv"), Path(folder, "true.csv")
    ...     _ = picks.write_text("score,x,y,z\n0.9,1,2,3\n0.8,9,9,9\n"), true.write_text("1,2,4\n")
    ...     score = evaluate_picks(picks, true, PicksEvaluation(radius=2))
    >>> score.precision, score.recall, score.best_f1
    (0.5, 1.0, 1.0)
    """
    return count_picks(_judge_picks(predicted, truth, settings or PicksEvaluation()))


def _judge_picks(predicted: Path, truth: Path, settings: PicksEvaluation) -> JudgedPicks:
    """Read two lists and match them."""
    radius = settings.radius_voxels
    lists = [read_picks(path, **settings.frame) for path in (predicted, truth)]
    for path, picks in zip((predicted, truth), lists, strict=True):
        check_one_tomogram(picks, path, "judge each tomogram in a row of --table (tomogram_name)")
    found, true = same_class(lists[0], lists[1], settings.class_name, settings.true_class)
    places = true[["z", "y", "x"]].to_numpy()
    _warn_of_odd_lists(predicted, truth, len(found), places)
    return judge_picks(
        found[["z", "y", "x"]].to_numpy(),
        places,
        radius,
        scores=found["score"].to_numpy(),
        counting="one-to-one" if settings.compat is None else "deepict",
    )


def _warn_of_odd_lists(predicted: Path, truth: Path, n_found: int, places: Any) -> None:
    """Say what makes figures look odd."""
    for path, n in ((predicted, n_found), (truth, len(places))):
        if n == 0:
            log.warning("%s: holds no particle to compare", path)
    n_double = len(places) - len(np.unique(places, axis=0))
    if n_double:
        log.warning(
            "%s: %d of %d true particles are at the place of another; each counts as one to find",
            truth, n_double, len(places),
        )  # fmt: skip


def evaluate_picks_table(table: Path, settings: PicksEvaluation | None = None) -> Evaluation:
    """Compare the particle lists of several tomograms with the true ones.

    Parameters
    ----------
    table
        CSV with the columns ``name``, ``predicted``, ``truth`` and optionally
        ``voxel_spacing_angstrom``, ``tomogram_shape`` (Z,Y,X in quotes), ``tomogram_name``,
        ``class``, ``true_class``.
    settings
        What holds for all; the table's cells come first.

    Returns
    -------
    Evaluation
        A score or an error for each tomogram, and all picks in one curve, each matched within its
        tomogram.

    Raises
    ------
    ConfigError
        The table cannot be used.
    """
    wanted = settings or PicksEvaluation()
    optional = {"voxel_spacing_angstrom", "tomogram_shape", "tomogram_name", "class", "true_class"}

    def judge(row: TableRow) -> JudgedPicks:
        cells: dict[str, Any] = dict(row.cells)
        if "tomogram_shape" in cells:
            cells["tomogram_shape"] = cells["tomogram_shape"].split(",")
        return _judge_picks(row.predicted, row.truth, _for_row(wanted, cells, table, row))

    return _evaluate_rows(read_table(table, optional), judge, count_picks, pool_picks)


def evaluate_segmentation(
    session: Session,
    predicted: Path,
    truth: Path,
    settings: SegmentationEvaluation | None = None,
    *,
    region_mask: Path | None = None,
) -> SegmentationScore:
    """Compare a score map or a segmentation with the true one, voxel by voxel.

    Parameters
    ----------
    session
        Workers; its chunks are those that are read, and do not change the result.
    predicted
        Score map (floating point), or segmentation (whole numbers).
    truth
        Mask or label volume of the same shape.
    settings
        Threshold, label, class, sample.
    region_mask
        Non-zero where voxels count.

    Raises
    ------
    ShapeMismatchError
        Shapes differ (``compat="deepict"`` cuts all to the smallest).
    VoxelValueError
        A volume holds NaN, or what the settings do not allow.
    ConfigError
        There are several classes and none was chosen.
    BudgetError
        A task would not fit a worker.

    Examples
    --------
    See docs/evaluation.md; `deepict_dask.evaluate.segmentation` is the same on arrays.
    """
    wanted = settings or SegmentationEvaluation()
    tally = _compare(session, predicted, truth, wanted, region_mask)
    return score_segmentation(tally, published=wanted.compat is not None)


def evaluate_segmentation_table(
    session: Session,
    table: Path,
    settings: SegmentationEvaluation | None = None,
    *,
    region_mask: Path | None = None,
) -> Evaluation:
    """Compare the score maps or segmentations of several tomograms with the true ones.

    Parameters
    ----------
    session
        Workers and wishes.
    table
        CSV with the columns ``name``, ``predicted``, ``truth`` and optionally ``region_mask``,
        ``class``, ``label_value``, ``predicted_label_value``.
    settings
        What holds for all; the table's cells come first.
    region_mask
        Of tomograms whose cell is empty.

    Returns
    -------
    Evaluation
        A score or an error for each tomogram, and all of them as one: counts are added up, sampled
        voxels ranked together.

    Raises
    ------
    ConfigError
        The table cannot be used.
    """
    wanted = settings or SegmentationEvaluation()

    def judge(row: TableRow) -> Tally:
        cells = dict(row.cells)
        own = cells.pop("region_mask", None)
        region = region_mask if own is None else table.parent / own
        chosen = _for_row(wanted, cells, table, row)
        return _compare(session, row.predicted, row.truth, chosen, region)

    def score(tally: Tally) -> SegmentationScore:
        return score_segmentation(tally, published=wanted.compat is not None)

    rows = read_table(table, {"region_mask", "class", "label_value", "predicted_label_value"})
    return _evaluate_rows(rows, judge, score, pool_tallies)


def _for_row(settings: Any, cells: dict[str, Any], table: Path, row: TableRow) -> Any:
    """Return the settings of one tomogram."""
    if not cells:
        return settings
    values = settings.model_dump(by_alias=True) | cells
    return settings_from(type(settings), values, f"{table}, {row.name}")


def _evaluate_rows(
    rows: Sequence[TableRow],
    judge: Callable[[TableRow], Judged],
    score: Callable[[Judged], Score],
    pool: Callable[[Sequence[Judged]], Judged],
) -> Evaluation:
    """Judge tomogram after tomogram; keep going where one fails."""
    tomograms, judged = [], []
    for row in rows:
        try:
            one = judge(row)
        except (DeepictError, OSError) as error:
            tomograms.append(EvaluatedTomogram(row.name, None, str(error)))
        else:
            judged.append(one)
            tomograms.append(EvaluatedTomogram(row.name, score(one)))
    return Evaluation(tuple(tomograms), score(pool(judged)) if judged else None)


def _compare(
    session: Session,
    predicted: Path,
    truth: Path,
    settings: SegmentationEvaluation,
    region_mask: Path | None,
) -> Tally:
    """Open two or three volumes and compare them chunk by chunk."""
    with _opened(session, predicted, truth, region_mask, settings) as sources:
        shape = sources[0].header.shape
        if unsaid := settings.unsaid_label(sources[0].header.dtype):
            log.warning("%s: %s", sources[0].path, unsaid)
        compare = CompareReduction(
            shape,
            threshold=settings.threshold,
            label_value=settings.label_value,
            predicted_label_value=settings.predicted_label_value,
            sample=settings.sample,
            seed=settings.seed,
            published=settings.compat is not None,
            dtypes=tuple(source.header.dtype for source in sources),
        )
        chunks = zip(session.chunks, shape, strict=True)
        grid = Grid(shape, as_vec([min(c, n) for c, n in chunks]))
        needed = compare.bytes_needed(grid.window_shape)
        check_budget(compare.name, needed, session.workers.memory_bytes)
        with session.progress.stage(compare.name, grid.n_blocks) as advance:
            tally: Tally = reduce_chunks(session.workers, compare, sources, grid, on_done=advance)
    _refuse_bad_voxels(sources, compare, tally)
    _warn_of_empty_volumes(sources, tally)
    return tally


@contextmanager
def _opened(
    session: Session,
    predicted: Path,
    truth: Path,
    region_mask: Path | None,
    settings: SegmentationEvaluation,
) -> Iterator[list[VolumeReader]]:
    """Open the volumes at one shape; packed ones are unpacked to a folder that is then removed.

    For workers that may be on other machines that folder is beside the first, where they see it.
    """
    paths = [path.absolute() for path in (predicted, truth, region_mask) if path is not None]
    here = session.workers.address.startswith(_HERE)
    seen_by_all = None if here else predicted.absolute().parent
    with tempfile.TemporaryDirectory(prefix=".deepict-dask-", dir=seen_by_all) as scratch:
        classes = (settings.class_name, settings.class_name, None)
        sources = [
            _open_class(path, name, scratch) for path, name in zip(paths, classes, strict=False)
        ]
        yield _same_shape(sources, compat=settings.compat is not None)


def _open_class(path: Path, class_name: str | None, scratch: str) -> VolumeReader:
    """Open a volume, or one class of a score map; one without classes is of the class asked for."""
    reader: VolumeReader = open_volume(path, scratch=scratch, spacing_required=False)
    if not reader.header.class_names:
        return reader
    if class_name is None:
        raise ConfigError(
            f"{path}: expected one class to compare, found "
            f"{', '.join(reader.header.class_names)}; choose one with --class"
        )
    return open_volume(path, scratch=scratch, spacing_required=False, class_name=class_name)


def _same_shape(sources: list[VolumeReader], *, compat: bool) -> list[VolumeReader]:
    """Return volumes of one shape, or refuse; in compat mode cut them to one."""
    first, *others = sources
    spacing = first.header.voxel_spacing_angstrom
    for other in others:
        theirs = other.header.voxel_spacing_angstrom
        if spacing and theirs and abs(theirs / spacing - 1) > _SPACING_TOLERANCE:
            log.warning(
                "%s: has voxels of %.4g Å, %s of %.4g Å: are they of one tomogram?",
                other.path, theirs, first.path, spacing,
            )  # fmt: skip
    shapes = [source.header.shape for source in sources]
    if len(set(shapes)) == 1:
        return sources
    if compat:
        common = as_vec(np.min(shapes, axis=0))
        log.warning("%s: shapes %s differ: all cut to %s (zyx)", first.path, shapes, common)
        return [FittedReader(source, common) for source in sources]
    odd = next(source for source in others if source.header.shape != shapes[0])
    raise ShapeMismatchError(
        f"{odd.path}: expected the shape {shapes[0]} (zyx) of {first.path}, found "
        f"{odd.header.shape}; give volumes of one tomogram at one binning"
    )


def _refuse_bad_voxels(
    sources: Sequence[VolumeReader], compare: CompareReduction, tally: Tally
) -> None:
    """Name the volume with voxels that cannot be compared, and the first of them."""
    for number, (source, bad) in enumerate(zip(sources, tally.bad, strict=True)):
        if bad.n_bad:
            expected, remedy = compare.what_is_expected(number)
            z, y, x = (int(i) for i in np.unravel_index(int(bad.first), compare.shape))
            raise VoxelValueError(
                f"{source.path}: expected {expected}, found {bad.n_bad} other voxels, the first "
                f"at zyx ({z}, {y}, {x}); {remedy}"
            )


def _warn_of_empty_volumes(sources: Sequence[VolumeReader], tally: Tally) -> None:
    """Say what makes figures 0 or unknown."""
    n = tally.counts
    if n.voxels == 0:
        log.warning("%s: the region has no voxel: nothing is compared", sources[-1].path)
    elif n.true == 0:
        log.warning(
            "%s: no voxel is true: recall and Dice are 0, AUPRC is unknown", sources[1].path
        )
    elif tally.histogram is None and not tally.sample.true.any():
        log.warning(
            "%s: none of the %d sampled voxels is true: AUPRC is unknown; take a larger --sample, "
            "or 0 for all voxels", sources[1].path, len(tally.sample.true),
        )  # fmt: skip
    if n.voxels and n.predicted == 0:
        log.warning("%s: no voxel is above the threshold", sources[0].path)
