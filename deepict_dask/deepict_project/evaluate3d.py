"""Compare one tomogram's results with the truth, counting as DeePiCt does.

1. Picks are matched in the order of their file, one to one within the radius; a pick whose true
   particles were all taken counts neither as right nor as wrong.
2. Dice is 2 sum(pt) / (sum(pp) + sum(tt)) of the volumes cut to their common shape; with the
   contact mode intersection the region multiplies the prediction.
3. The numbers become rows of ``pp_statistics.csv``; lists of found and missed particles go to
   ``pr_radius_<r>``.
"""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError, DeepictError
from ..evaluate.picks import match_picks, score_picks
from ..evaluate.settings import SegmentationEvaluation
from ..io.picks import read_picks, write_picks
from ..jobs.evaluate import evaluate_segmentation
from .outputs import note_facts, read_note, set_aside
from .statistics import add_rows, arrange_rows, holds_rows, statistics_rows
from .steps import key_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .project3d import Project3D, Tomogram3D
    from .steps import Maker

__all__ = ["arrange_statistics", "evaluate_tomogram"]

log = logging.getLogger("deepict_dask")

_INTERSECTION = ("postprocessing_clustering.contact_mode", "intersection")
_RADIUS = "evaluation.particle_picking.pr_tolerance_radius"


def evaluate_tomogram(maker: Maker, project: Project3D, tomogram: Tomogram3D, folder: Path) -> None:
    """Add a tomogram's rows to ``pp_statistics.csv``, unless they are there.

    Parameters
    ----------
    maker
        Workers and wishes.
    project, tomogram
        What is compared with what.
    folder
        The tomogram's folder of results.

    Raises
    ------
    ConfigError
        There is nothing to evaluate, or not exactly one particle list.
    """
    mask = _mask(folder) if project.evaluate_mask else None
    motl = _only_motl(folder) if project.evaluate_picks else None
    card, table = _model_card(project), project.output / "pp_statistics.csv"
    request: dict[str, Any] = {
        "motl": motl, "true_motl": motl and tomogram.true_motl, "mask": mask,
        "true_mask": mask and tomogram.true_mask, "region": mask and tomogram.region,
        "row": statistics_rows(project, card, tomogram, {"": 0.0}),
    }  # fmt: skip
    key, record = key_of(request), folder / "pp_statistics"
    noted = read_note(record)
    if maker.resume and noted.get("key") == key and holds_rows(table, noted["rows"]):
        maker.say(f"{tomogram.name}: {table.name} is up to date")
        return
    numbers: dict[str, float] = {}
    if motl is not None:
        numbers |= _evaluate_picks(motl, tomogram, project[_RADIUS], folder)
    if mask is not None:
        numbers["dice"] = _dice(maker, project, tomogram, mask)
    rows = statistics_rows(project, card, tomogram, numbers)
    add_rows(table, rows)
    note_facts(record, key, rows=rows)
    figures = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
    maker.say(f"{tomogram.name}: {figures}; wrote {table}")


def arrange_statistics(project: Project3D, folders: Sequence[Path]) -> None:
    """Put the rows of a run's tomograms in the order of the run: they ended in any order.

    Parameters
    ----------
    project
        Whose table it is.
    folders
        The tomograms' folders of results, in the order of the run.
    """
    noted = [read_note(folder / "pp_statistics").get("rows", []) for folder in folders]
    arrange_rows(project.output / "pp_statistics.csv", [row for rows in noted for row in rows])


def _mask(folder: Path) -> Path:
    mask = folder / "post_processed_prediction.mrc"
    if not mask.is_file():
        raise ConfigError(
            f"{mask}: expected a segmentation to evaluate, found none; "
            "set postprocessing_clustering.active to True"
        )
    return mask


def _only_motl(folder: Path) -> Path:
    """Return the one particle list of a folder, as DeePiCt asks for."""
    motls = sorted(folder.glob("motl_*.csv"))
    if len(motls) != 1:
        found = ", ".join(path.name for path in motls) or "none"
        raise ConfigError(
            f"{folder}: expected one particle list motl_<N>.csv to evaluate, found {found}; set "
            "postprocessing_clustering.active and calculate_motl to True, or keep one list there"
        )
    return motls[0]


def _model_card(project: Project3D) -> dict[str, Any]:
    """Return what the checkpoint says of itself; nothing where it is not there any more."""
    from ..models.checkpoint import model_info

    try:
        return dict(model_info(project.model).card)
    except DeepictError as error:
        log.warning("%s; the statistics describe the model by the config alone", error)
        return {}


def _evaluate_picks(
    motl: Path, tomogram: Tomogram3D, radius: float, folder: Path
) -> dict[str, float]:
    """Count picks, and write the lists of found and missed particles."""
    assert tomogram.true_motl is not None  # checked with the table
    predicted, true = read_picks(motl), read_picks(tomogram.true_motl)
    axes = ["z", "y", "x"]
    points = predicted[axes].to_numpy()
    score = score_picks(points, true[axes].to_numpy(), radius, counting="deepict")
    true = true.drop_duplicates(axes)  # particles at one place are one
    matching = match_picks(points, true[axes].to_numpy(), radius)
    taken = matching.true_index
    lists = {
        "detected/in_pred_motl": predicted[taken >= 0],
        "detected/in_true_motl": true.iloc[taken[taken >= 0]],
        "undetected": true[~matching.found],
    }
    target = folder / f"pr_radius_{radius}"
    if target.exists() and not read_note(target):
        set_aside(target)
    shutil.rmtree(target, ignore_errors=True)
    note_facts(target, "lists of ours")
    for name, picks in lists.items():
        (target / name).mkdir(parents=True)
        write_picks(picks, target / name / f"motl_{len(picks)}.csv", file_format="motl")
    return {
        "tp": score.true_positives, "fp": score.false_positives, "fn": score.false_negatives,
        "auPRC": score.auprc, "max_F1": score.best_f1, "F1": score.f1,
    }  # fmt: skip


def _dice(maker: Maker, project: Project3D, tomogram: Tomogram3D, mask: Path) -> float:
    """Return the Dice coefficient of a segmentation."""
    assert tomogram.true_mask is not None  # checked with the table
    key, multiplies = _INTERSECTION
    region = tomogram.region if project[key] == multiplies else None
    settings = SegmentationEvaluation(compat="deepict", sample=0)
    score = evaluate_segmentation(
        maker.session, mask, tomogram.true_mask, settings, region_mask=region
    )
    return score.dice
