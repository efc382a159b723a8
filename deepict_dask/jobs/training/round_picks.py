"""What a round of annotation makes of one tomogram: predicted, picked, merged with what is given.

1. The model's scores are made and picked by the ordinary jobs, class by class; the scores go then.
2. New picks are merged among themselves (`particles.merge`) and with the given list, by elliptical
   distance: every given pick stays as it is, even where two are close, and is confirmed by a new
   one of which it is the nearest; a new pick that no given one stands for is added.
3. Merging always starts from the given list, so a wrong pick of one round does not stay for ever.

Finished tomograms have a note of what was asked for and are not predicted again.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...config import PickSettings, SegmentSettings
from ...engine import fingerprint, request_key
from ...io.picks import read_picks, write_picks
from ...io.picks_table import make_picks
from ...io.replace import replace_file
from ...particles.merge import merge_picks
from ..picking.pick import pick_particles
from ..segmenting.segment import segment_volume

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from ...core.geometry import Vec
    from ..session import Session

__all__ = ["Counts", "RoundClass", "RoundTomogram", "merged_picks", "picks_of_round", "predicted"]

Points = np.ndarray[Any, np.dtype[np.float64]]
LEAST_PART = 0.1
"""By default a cluster is picked if it has this part of a particle's voxels."""
_SLACK = 1e-9
"""As in `particles.merge`: at a distance of exactly 1 both picks stay."""


@dataclass(frozen=True)
class RoundClass:
    """How a class of particles is picked, and when two picks are one."""

    name: str
    axes: tuple[float, float, float]
    """Semi-axes on z, y, x, voxels."""
    settings: PickSettings
    radius: float = 0.0
    """Of what is painted for a particle, voxels."""

    @classmethod
    def of_radius(
        cls, name: str, radius: float, axes: tuple[float, float, float] | None,
        settings: PickSettings | None, threshold: float | None,
    ) -> RoundClass:  # fmt: skip
        """Return a class, with what is not said by the radius of its particles in voxels.

        Examples
        --------
        >>> one = RoundClass.of_radius("fas", 3.0, None, None, 0.4)
        >>> one.axes, one.settings.threshold, one.settings.min_size
        ((3.0, 3.0, 3.0), 0.4, 11)
        """
        if settings is None:
            least = int(LEAST_PART * 4 / 3 * math.pi * radius**3)
            settings = PickSettings(threshold=threshold or 0.5, min_size=max(1, least))
        settings = settings.model_copy(update={"class_name": name})
        return cls(name, axes or (radius,) * 3, settings, radius)


@dataclass(frozen=True)
class RoundTomogram:
    """A tomogram to predict."""

    name: str
    path: Path
    shape: Vec
    voxel_spacing_angstrom: float | None
    given: Mapping[str, Path]
    """By class, the list that was given; classes without one have none."""
    held_out_from: tuple[int, float] | None = None
    """Axis and voxel from which on the tomogram is for validation: nothing is added there."""


@dataclass(frozen=True)
class Counts:
    """Picks of a class in a tomogram."""

    given: int
    predicted: int
    confirmed: int
    """Given picks that were predicted too."""
    new: int

    @property
    def after(self) -> int:
        """Picks of the merged list."""
        return self.given + self.new


def merged_picks(given: Points, found: Any, axes: tuple[float, float, float]) -> tuple[Any, Counts]:
    """Merge new picks with the given ones.

    Parameters
    ----------
    given
        Positions (n, 3), zyx voxels; all are kept.
    found
        Picks table.
    axes
        Semi-axes on z, y, x in voxels within which two picks are one.

    Returns
    -------
    DataFrame, Counts
        ``z, y, x, score`` (NaN for given picks), ``source`` (given or predicted).

    Examples
    --------
    >>> given, found = np.array([[5.0, 5, 5]]), make_picks([[5, 5, 6], [9, 9, 9]], [0.9, 0.8])
    >>> table, counts = merged_picks(given, found, (2, 2, 2))
    >>> table[["z", "y", "x"]].to_numpy().tolist()
    [[5.0, 5.0, 5.0], [9.0, 9.0, 9.0]]
    >>> counts
    Counts(given=1, predicted=2, confirmed=1, new=1)
    """
    from scipy.spatial import KDTree

    new = merge_picks([found[["z", "y", "x", "score"]]], axes)
    points = new[["z", "y", "x"]].to_numpy(np.float64) / axes
    if len(given) == 0 or len(new) == 0:
        stood_for = np.zeros(len(new), np.bool_)
        confirmed = 0
    else:
        distance, nearest = KDTree(given / axes).query(points)
        stood_for = distance < 1 - _SLACK
        confirmed = len(np.unique(nearest[stood_for]))
    kept = new[~stood_for]
    zyx = np.concatenate([given, kept[["z", "y", "x"]].to_numpy(np.float64)])
    scores = np.concatenate([np.full(len(given), np.nan), kept["score"].to_numpy(np.float64)])
    source = np.repeat(["given", "predicted"], [len(given), len(kept)])
    table = make_picks(zyx, scores, source=source)
    return table, Counts(len(given), len(found), confirmed, len(kept))


def predicted(
    session: Session, model: Path, tomogram: RoundTomogram, classes: Mapping[str, RoundClass],
    folder: Path,
) -> dict[str, Any]:  # fmt: skip
    """Segment a tomogram and pick each class by the ordinary jobs; return a picks table of each.

    Raises
    ------
    DeepictError
        As `deepict_dask.jobs.segmenting.segment.segment_volume` and
        `deepict_dask.jobs.picking.pick.pick_particles`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spacing = tomogram.voxel_spacing_angstrom
    session = replace(session, overwrite=True, voxel_spacing_angstrom=spacing)
    scores = folder / "scores.zarr"
    segment_volume(session, tomogram.path, scores, SegmentSettings(model=str(model)))
    tables = {}
    for name, one in classes.items():
        made = folder / f"picks_{name}"
        pick_particles(session, scores, made, one.settings, tomogram_name=tomogram.name)
        tables[name] = read_picks(made / "picks.csv")
    shutil.rmtree(folder, ignore_errors=True)
    return tables


def picks_of_round(
    session: Session,
    model: Path,
    tomogram: RoundTomogram,
    classes: Mapping[str, RoundClass],
    *,
    folder: Path,
    predict: Callable[..., dict[str, Any]] = predicted,
) -> dict[str, tuple[Path, Counts]]:
    """Return the merged list and the counts of each class; made unless they are there.

    Parameters
    ----------
    session
        Workers and wishes.
    model
        The round's model.
    tomogram
        What to predict.
    classes
        How to pick, by class.
    folder
        Of the round's picks: ``CLASS/TOMOGRAM.csv`` and ``TOMOGRAM.json`` are written.
    predict
        Makes a picks table for each class, as `predicted` does.
    """
    lists = {name: folder / name / f"{tomogram.name}.csv" for name in classes}
    note = folder / f"{tomogram.name}.json"
    key = _key(model, tomogram, classes)
    known = json.loads(note.read_text()) if note.is_file() else {}
    if known.get("key") == key and all(path.is_file() for path in lists.values()):
        return {name: (lists[name], Counts(**known["counts"][name])) for name in classes}
    tables = predict(session, model, tomogram, classes, folder / f"{tomogram.name}.work")
    counts = {}
    for name, one in classes.items():
        given = _points(tomogram.given.get(name))
        found = _without_held_out(tables[name], tomogram.held_out_from, one)
        table, counts[name] = merged_picks(given, found, one.axes)
        lists[name].parent.mkdir(parents=True, exist_ok=True)
        write_picks(table, lists[name])
    said = {name: asdict(one) for name, one in counts.items()}
    replace_file(note, json.dumps({"key": key, "counts": said}, indent=1))
    return {name: (lists[name], counts[name]) for name in classes}


def _points(path: Path | None) -> Points:
    """Return the positions of a list; none where there is no list."""
    if path is None:
        return np.empty((0, 3))
    points: Points = read_picks(path)[["z", "y", "x"]].to_numpy(np.float64)
    return points


def _without_held_out(table: Any, held_out_from: tuple[int, float] | None, one: RoundClass) -> Any:
    """Leave out picks whose particles would reach into what is kept for validation."""
    if held_out_from is None:
        return table
    axis, border = held_out_from
    reach = max(one.radius, one.axes[axis])
    return table[table["zyx"[axis]] + reach < border].reset_index(drop=True)


def _key(model: Path, tomogram: RoundTomogram, classes: Mapping[str, RoundClass]) -> str:
    given = {name: fingerprint(path) for name, path in tomogram.given.items()}
    return request_key({
        "model": fingerprint(model), "tomogram": fingerprint(tomogram.path), "given": given,
        "held_out_from": tomogram.held_out_from, "spacing": tomogram.voxel_spacing_angstrom,
        "classes": {
            name: [one.axes, one.radius, one.settings.model_dump(mode="json")]
            for name, one in classes.items()
        },
    })  # fmt: skip
