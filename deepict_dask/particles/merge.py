"""Several particle lists into one, without saying a particle twice.

Which picks of several lists are one particle?

1. Picks are taken in order of preference: the first list first, inside a list by falling score
   (with ``by_score`` all lists together by falling score). Equal ones stay in the file's order.
2. A pick is kept if no kept pick is closer than an elliptical distance of 1: with semi-axes A, B, C
   in voxels, ``(dz/A)**2 + (dy/B)**2 + (dx/C)**2 < 1`` makes two picks one. At exactly 1 both stay.
3. Otherwise the nearest kept pick stands for it. So each kept pick knows in how many lists it is.

Picks of different tomograms or classes are different particles. Kept picks lie in a table of cells
as large as the ellipsoid's half: a pick is compared with those of 27 cells, of which each holds
only a few, so the time grows with the number of picks, not with its square.

After DeePiCt's elliptical distance constraint; its own arithmetic is in `deepict_compat`.
"""

from __future__ import annotations

import itertools
import logging
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import PositiveFloat, PositiveInt, model_validator

from ..config.stages import Strict
from ..core.errors import PicksFormatError, SpacingError
from ..io.picks_table import named_by_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

__all__ = ["MergeSettings", "merge_picks", "stand_ins"]

log = logging.getLogger("deepict_dask")
Points = np.ndarray[Any, np.dtype[np.float64]]
Integers = np.ndarray[Any, np.dtype[np.int64]]
_SLACK = 1e-9
"""Rounding of scaled positions must not join picks that are exactly 1 apart."""
_MOST_CELLS = 1 << 62


class MergeSettings(Strict):
    """When two picks are one particle.

    Examples
    --------
    >>> MergeSettings(axes=(15, 9, 9)).semi_axes(None)
    (15.0, 9.0, 9.0)
    >>> MergeSettings(distance_nm=13.48).semi_axes(13.48)
    (10.0, 10.0, 10.0)
    """

    axes: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """Semi-axes of the ellipsoid on z, y, x, in voxels."""
    distance: PositiveFloat | None = None
    """Instead: the radius of a ball in voxels."""
    distance_nm: PositiveFloat | None = None
    """Instead: the radius of a ball in nm."""
    by_score: bool = False
    """Prefer the higher score, whatever list it is in."""
    across_classes: bool = False
    """Picks of different classes can be one particle too."""
    min_lists: PositiveInt = 1
    """Keep picks that are in at least so many of the lists."""
    compat: Literal["deepict"] | None = None
    """Reproduce the published script."""

    @model_validator(mode="after")
    def _one_distance(self) -> MergeSettings:
        given = [v for v in (self.axes, self.distance, self.distance_nm) if v is not None]
        if len(given) != 1:
            raise ValueError(
                f"expected one of axes, distance and distance_nm, found {len(given)} of them"
            )
        if self.compat and (self.by_score or self.across_classes or self.min_lists > 1):
            raise ValueError("by_score, across_classes, min_lists: not with compat deepict")
        return self

    def semi_axes(self, voxel_spacing_angstrom: float | None) -> tuple[float, float, float]:
        """Return the semi-axes on z, y, x in voxels.

        Raises
        ------
        SpacingError
            The distance is in nm and the size of a voxel is not known.
        """
        if self.axes is not None:
            return self.axes
        if self.distance is not None:
            return (self.distance,) * 3
        if voxel_spacing_angstrom is None or self.distance_nm is None:
            raise SpacingError(
                "merge: the distance is in nm and the size of a voxel is not known; "
                "pass --voxel-spacing-angstrom"
            )
        return (10 * self.distance_nm / voxel_spacing_angstrom,) * 3


def merge_picks(
    tables: Sequence[pd.DataFrame],
    axes: tuple[float, float, float],
    *,
    by_score: bool = False,
    across_classes: bool = False,
    min_lists: int = 1,
) -> pd.DataFrame:
    """Merge picks tables.

    Parameters
    ----------
    tables
        Picks tables, in order of preference.
    axes
        Semi-axes on z, y, x, voxels.
    by_score
        Prefer the higher score, whatever list it is in.
    across_classes
        Picks of different classes can be one particle too.
    min_lists
        Keep picks that are in at least so many of the lists.

    Returns
    -------
    DataFrame
        The kept picks in order of preference, with all columns of all tables and with
        ``from_list`` (number of the list it comes from, 1 is the first) and ``n_lists`` (number of
        lists it is in).

    Raises
    ------
    PicksFormatError
        Picks of several tomograms are mixed with picks of unnamed ones, or lie too far apart.

    Examples
    --------
    >>> from deepict_dask.io.picks_table import make_picks
    >>> mine = make_picks([[5, 5, 5], [5, 5, 8]], [0.5, 0.9])
    >>> yours = make_picks([[5, 5, 6], [9, 9, 9]], [0.95, 0.7])
    >>> merged = merge_picks([mine, yours], (2, 2, 2))
    >>> merged[["x", "n_lists"]].to_numpy().tolist()
    [[8.0, 1.0], [5.0, 2.0], [9.0, 1.0]]
    """
    table, source = _joined(tables if across_classes else _with_class_names(tables))
    groups = _groups(table, across_classes=across_classes)
    order = _preference(table["score"].to_numpy(np.float64), source, by_score=by_score)
    table, source, groups = table.iloc[order], source[order], groups[order]
    scaled = table[["z", "y", "x"]].to_numpy(np.float64) / np.asarray(axes, np.float64)
    owners = stand_ins(scaled, groups)
    n_lists = _lists_of_each(owners, source)
    kept = (owners == np.arange(len(owners))) & (n_lists >= min_lists)
    chosen = table[kept].reset_index(drop=True)
    return chosen.assign(from_list=source[kept] + 1, n_lists=n_lists[kept])


def stand_ins(
    points: Points,
    groups: Integers | None = None,
    *,
    stored: Points | None = None,
    limit: float = 1 - _SLACK,
) -> Integers:
    """Return for each point the kept point that stands for it: itself where it is kept.

    Parameters
    ----------
    points
        (n, 3) positions in units of the distance, in order of preference.
    groups
        Only points of one group stand for one another; one group by default.
    stored
        Positions that kept points are compared at; their own by default.
    limit
        Points closer than the root of this are one.

    Examples
    --------
    >>> stand_ins(np.array([[0, 0, 0], [0, 0, 0.5], [0, 0, 1.0]])).tolist()
    [0, 0, 2]
    """
    places = points if stored is None else stored
    n = len(points)
    keys, homes, offsets = _cells(points, places, np.zeros(n, np.int64), groups)
    taken: dict[int, list[int]] = {}
    owners, kept_at = list(range(n)), places.tolist()
    for i, (key, (z, y, x)) in enumerate(zip(keys, points.tolist(), strict=True)):
        nearest = limit
        for offset in offsets:
            for j in taken.get(key + offset, ()):
                pz, py, px = kept_at[j]
                squared = (z - pz) * (z - pz) + (y - py) * (y - py) + (x - px) * (x - px)
                if squared < nearest:
                    nearest, owners[i] = squared, j
        if owners[i] == i:
            taken.setdefault(homes[i], []).append(i)
    return np.array(owners, np.int64)


def _cells(
    points: Points, places: Points, zeros: Integers, groups: Integers | None
) -> tuple[list[int], list[int], list[int]]:
    """Return the cells of points and places as single numbers, and the steps to 27 neighbours.

    Cells are a little larger than 1, so that rounding cannot put close points two cells apart, and
    an empty cell lies between the last of a row and the first of the next.
    """
    both = np.floor(np.stack([points, places]) / (1 + _SLACK))
    low = both.min(axis=(0, 1), initial=0)
    counts = [int(n) + 3 for n in both.max(axis=(0, 1), initial=0) - low]
    number = zeros if groups is None else groups
    if (int(number.max(initial=0)) + 1) * counts[0] * counts[1] * counts[2] > _MOST_CELLS:
        raise PicksFormatError(
            f"merge: expected positions within some billions of the distance, found them over "
            f"{counts} times as much (zyx); give a larger distance or check the positions"
        )
    cells = (both - low).astype(np.int64) + 1
    keys, homes = (
        ((number * counts[0] + c[:, 0]) * counts[1] + c[:, 1]) * counts[2] + c[:, 2] for c in cells
    )
    steps = itertools.product((-1, 0, 1), repeat=3)
    offsets = [(dz * counts[1] + dy) * counts[2] + dx for dz, dy, dx in steps]
    return keys.tolist(), homes.tolist(), offsets


def _lists_of_each(owners: Integers, source: Integers) -> Integers:
    """Return for each point the number of lists among the points it stands for."""
    pairs = np.unique(np.stack([owners, source], axis=1), axis=0)
    return np.bincount(pairs[:, 0], minlength=len(owners))


def _preference(scores: Points, source: Integers, *, by_score: bool) -> Integers:
    """Return the order of preference; picks without a score come last."""
    rows = np.arange(len(scores))
    keys = (rows, source, -scores) if by_score else (rows, -scores, source)
    return np.lexsort(keys)


def _with_class_names(tables: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """Return the tables with numbers for names where several classes have numbers alone."""
    named = [named_by_number(table) for table in tables]
    if any(new is not old for new, old in zip(named, tables, strict=True)):
        log.warning(
            "merge: classes without names are told apart by their numbers; use --across-classes "
            "where these are no kinds of particles"
        )
    return named


def _joined(tables: Sequence[pd.DataFrame]) -> tuple[pd.DataFrame, Integers]:
    """Return all rows in one table, with the number of the list that each is from."""
    import pandas as pd

    source = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    filled = [table for table in tables if len(table)] or [tables[0]]
    joined = pd.concat(filled, ignore_index=True)
    return _completed(joined), source


def _completed(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with what a row lacks because its list had no such column.

    A tomogram that is the only one named is every row's. RELION wants a particle's name once and
    an optics group everywhere, Dynamo a particle's number once; the writers number particles anew
    where these are missing.
    """
    texts = [name for name in table.columns if table[name].dtype.kind not in "iufb"]
    filled = table.fillna({**dict.fromkeys(texts, ""), "rlnOpticsGroup": 1})
    if "tomogram_name" in filled.columns:
        names = sorted({str(name) for name in filled["tomogram_name"]} - {""})
        if len(names) == 1:
            filled["tomogram_name"] = names[0]
    if "rlnTomoParticleName" in filled.columns:
        particles = filled["rlnTomoParticleName"]
        if not particles.is_unique or (particles == "").any():
            filled = filled.drop(columns="rlnTomoParticleName")
    if "particle_number" in filled.columns and not filled["particle_number"].is_unique:
        filled = filled.drop(columns="particle_number")
    return filled


def _groups(table: pd.DataFrame, *, across_classes: bool) -> Integers:
    """Return one number for each tomogram and class."""
    names = ["tomogram_name", "tomogram_number", *([] if across_classes else ["class_name"])]
    groups = np.zeros(len(table), np.int64)
    for name in names:
        if name in table.columns:
            codes = _codes(table[name], name)
            both = groups * (int(codes.max(initial=0)) + 1) + codes
            _, groups = np.unique(both, return_inverse=True)
    return groups


def _codes(column: pd.Series[Any], name: str) -> Integers:
    """Return one number for each value; where there is but one, rows without it belong to it."""
    unnamed = column.isna().to_numpy() | (column.astype(str) == "").to_numpy()
    values, codes = np.unique(column.astype(str).to_numpy(str), return_inverse=True)
    if not unnamed.any():
        return codes
    n_names = len(values) - len(np.unique(codes[unnamed]))
    if n_names <= 1:
        return np.zeros(len(codes), np.int64)
    if name == "class_name":
        log.warning(
            "merge: %d picks have no class while others have %d: they are compared only among "
            "themselves; use --across-classes to compare all", int(unnamed.sum()), n_names,
        )  # fmt: skip
        return codes
    raise PicksFormatError(
        f"merge: expected every pick to name its tomogram where there are {n_names} tomograms "
        f"({name}), found {int(unnamed.sum())} that do not; choose one with --tomogram-name"
    )
