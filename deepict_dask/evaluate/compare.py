"""What do two pickers agree on? Neither list is the truth.

1. Picks of one class (and tomogram) within a distance are candidates for a pair. Where a list has
   no classes, all picks are of one.
2. Pairs are made nearest first, each pick in at most one; equally near ones in raster order. So the
   pairs of A and B are those of B and A, whatever the order of the lists.
3. Picks in pairs are the intersection, the others the two differences.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import PicksFormatError
from ..io.picks_table import texts_of
from .matching import points_of

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Comparison", "compare_picks", "pair_nearest"]

Floats = np.ndarray[Any, np.dtype[np.float64]]
Integers = np.ndarray[Any, np.dtype[np.int64]]


def pair_nearest(first: Any, second: Any, distance: float) -> tuple[Integers, Floats]:
    """Pair the points of two lists, nearest first.

    Parameters
    ----------
    first, second
        Positions in voxels, (n, 3) and (m, 3), zyx.
    distance
        Largest distance of a pair in voxels; a pair at exactly this distance counts.

    Returns
    -------
    partner
        For each point of the first list the row of its partner in the second; -1 where it has none.
    distances
        To the partner; infinite where there is none.

    Raises
    ------
    PicksFormatError
        Where positions are not (n, 3) or not finite, or the distance is negative.

    Examples
    --------
    >>> pair_nearest([[0, 0, 0], [0, 0, 4]], [[0, 0, 3], [9, 9, 9]], 5)[0].tolist()
    [-1, 0]
    """
    one, other = points_of(first, "first list"), points_of(second, "second list")
    if not distance >= 0:
        raise PicksFormatError(f"distance: expected 0 voxels or more, found {distance}; correct it")
    partner, distances = np.full(len(one), -1, np.int64), np.full(len(one), np.inf)
    taken = np.zeros(len(other), np.bool_)
    for i, j, apart in _candidates(one, other, distance):
        if partner[i] < 0 and not taken[j]:
            partner[i], distances[i], taken[j] = j, apart, True
    return partner, distances


def _candidates(one: Floats, other: Floats, distance: float) -> list[tuple[int, int, float]]:
    """Return all pairs within a distance, nearest first, ties by the raster order of their middle.

    The middle of a pair, and how its ends lie to each other, are the same for both orders of lists.
    """
    from scipy.spatial import KDTree

    if len(one) == 0 or len(other) == 0:
        return []
    near = KDTree(other).query_ball_point(one, distance * (1 + 1e-9) + 1e-9)
    i = np.repeat(np.arange(len(one)), [len(rows) for rows in near])
    j = np.concatenate([np.asarray(rows, np.int64) for rows in near])
    apart = np.linalg.norm(one[i] - other[j], axis=1)
    middle, ends = one[i] + other[j], np.abs(one[i] - other[j])
    keys = (j, i, *ends.T[::-1], *middle.T[::-1], apart)
    order = np.lexsort(keys)
    order = order[apart[order] <= distance]
    return list(zip(i[order].tolist(), j[order].tolist(), apart[order].tolist(), strict=True))


@dataclass(frozen=True)
class Comparison:
    """Two lists, split."""

    both: pd.DataFrame
    """Picks of the first list with a partner: their columns, and the partner's ``other_z``,
    ``other_y``, ``other_x``, ``other_score`` and the ``distance`` in voxels."""
    only_first: pd.DataFrame
    only_second: pd.DataFrame
    table: pd.DataFrame
    """One row for each class and one for ``all``: ``class_name, n_first, n_second, n_both,
    n_only_first, n_only_second, f1`` (twice both by the sum of the lists), ``mean_distance``."""


def compare_picks(first: pd.DataFrame, second: pd.DataFrame, distance: float) -> Comparison:
    """Compare two picks tables.

    Parameters
    ----------
    first, second
        Picks tables; compared class by class, and tomogram by tomogram, where both say them.
    distance
        Largest distance of a pair in voxels.

    Raises
    ------
    PicksFormatError
        One list is of several tomograms and the other does not name its own.

    Examples
    --------
    >>> from deepict_dask.io.picks_table import make_picks
    >>> mine = make_picks([[5, 5, 5], [9, 9, 9]], class_name=["a", "b"])
    >>> yours = make_picks([[5, 5, 6], [9, 9, 9]], class_name=["a", "a"])
    >>> compare_picks(mine, yours, 2).table[["class_name", "n_both", "f1"]].to_numpy().tolist()
    [['a', 1, 0.6666666666666666], ['b', 0, 0.0], ['all', 1, 0.5]]
    """
    partner, distances = np.full(len(first), -1, np.int64), np.full(len(first), np.inf)
    groups_one, groups_other = _groups(first, second)
    for group in np.unique(groups_one):
        rows, others = np.flatnonzero(groups_one == group), np.flatnonzero(groups_other == group)
        found, apart = pair_nearest(_points(first, rows), _points(second, others), distance)
        paired = found >= 0
        partner[rows[paired]] = others[found[paired]]
        distances[rows] = apart
    has_one = partner >= 0
    is_taken = np.zeros(len(second), np.bool_)
    is_taken[partner[has_one]] = True
    return Comparison(
        _both(first[has_one], second.iloc[partner[has_one]], distances[has_one]),
        first[~has_one].reset_index(drop=True),
        second[~is_taken].reset_index(drop=True),
        _table(_classes(first, second), (has_one, is_taken), distances),
    )


def _points(table: pd.DataFrame, rows: Integers) -> Floats:
    return table[["z", "y", "x"]].to_numpy(np.float64)[rows]


def _both(first: pd.DataFrame, second: pd.DataFrame, distances: Floats) -> pd.DataFrame:
    """Return paired rows side by side."""
    partner = {f"other_{name}": second[name].to_numpy() for name in ("z", "y", "x", "score")}
    return first.reset_index(drop=True).assign(**partner, distance=distances)


def _said(table: pd.DataFrame, name: str) -> Any:
    """Return a column as texts, None where there are picks that do not have it."""
    if len(table) == 0:
        return np.zeros(0, object)
    if name not in table.columns or table[name].isna().all():
        return None
    texts = np.array(texts_of(table[name]), object)
    return texts if (texts != "").any() else None


def _groups(first: pd.DataFrame, second: pd.DataFrame) -> tuple[Any, Any]:
    """Return a text for each row of both lists: only rows of equal texts can be pairs."""
    tomograms, classes = _tomograms(first, second), _classes(first, second)
    one, other = (a + "\n" + b for a, b in zip(tomograms, classes, strict=True))
    return one, other


def _tomograms(first: pd.DataFrame, second: pd.DataFrame) -> tuple[Any, Any]:
    """Return the tomograms of the rows of both lists, by name or number, empty where there is one.

    Raises
    ------
    PicksFormatError
        Picks of several tomograms beside picks that do not say theirs.
    """
    for name in ("tomogram_name", "tomogram_number"):
        one, other = _said(first, name), _said(second, name)
        if one is not None and other is not None:
            return one, other
    for table, name in itertools.product((first, second), ("tomogram_name", "tomogram_number")):
        said = _said(table, name)
        if said is not None and (n := len(np.unique(said))) > 1:
            raise PicksFormatError(
                f"compare: expected every list to name its tomograms, found one of {n} tomograms "
                "and one that names none; choose one with --tomogram-name"
            )
    return np.full(len(first), "", object), np.full(len(second), "", object)


def _classes(first: pd.DataFrame, second: pd.DataFrame) -> tuple[Any, Any]:
    """Return the classes of the rows of both lists, empty where one does not have any."""
    one, other = _said(first, "class_name"), _said(second, "class_name")
    if one is None or other is None:
        one, other = np.full(len(first), "", object), np.full(len(second), "", object)
    return one, other


def _table(classes: tuple[Any, Any], paired: tuple[Any, Any], distances: Floats) -> pd.DataFrame:
    """Count, class by class and in all."""
    import pandas as pd

    names = sorted({*classes[0].tolist(), *classes[1].tolist()} - {""})
    chosen = [(name, classes[0] == name, classes[1] == name) for name in names]
    everything = ("all", np.ones(len(classes[0]), np.bool_), np.ones(len(classes[1]), np.bool_))
    rows = [_row(*which, paired, distances) for which in [*chosen, everything]]
    return pd.DataFrame(rows)


def _row(
    name: str, first: Any, second: Any, paired: tuple[Any, Any], distances: Floats
) -> dict[str, Any]:
    """Count what is chosen of the two lists."""
    n_first, n_second = int(first.sum()), int(second.sum())
    both = first & paired[0]
    n_both = int(both.sum())
    return {
        "class_name": name,
        "n_first": n_first,
        "n_second": n_second,
        "n_both": n_both,
        "n_only_first": n_first - n_both,
        "n_only_second": n_second - int((second & paired[1]).sum()),
        "f1": 2 * n_both / (n_first + n_second) if n_first + n_second else float("nan"),
        "mean_distance": float(distances[both].mean()) if n_both else float("nan"),
    }
