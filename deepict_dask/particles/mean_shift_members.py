"""Which voxels belong to which centre, and what class a centre is of.

1. Each labelled voxel belongs to the nearest centre.
2. Voxels are counted for each centre and label, chunk by chunk; counts are added up the tree.
3. A centre is of the class that most of its voxels have; of equal ones of the first.
4. Its size is the number of all its voxels, and small ones can be left out, class by class.

DeepFinder's program counts the classes 1 to n only, n being how many different classes occur. Where
numbers are missing between them, its objects get wrong classes: ``first_only`` does so too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.ops import TreeReduction
from ..core.tables import SCORE_UNIT
from .mean_shift import find_centres

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..core.geometry import Block, Vec
    from .class_labels import ClassLabels

__all__ = [
    "MEMBER_DTYPE",
    "OBJECT_DTYPE",
    "MemberReduction",
    "find_objects",
    "large_enough",
    "objects_of",
]

Array = np.ndarray[Any, Any]

MEMBER_DTYPE = np.dtype(
    [("centre", "i8"), ("label", "i4"), ("n_voxels", "i8"), ("score_sum", "i8")]
)
"""Voxels of one label that belong to a centre; scores in units of `SCORE_UNIT`."""
OBJECT_DTYPE = np.dtype(
    [
        ("z", "f8"), ("y", "f8"), ("x", "f8"),
        ("label", "i4"), ("n_voxels", "i8"), ("score", "f8"),
    ]
)  # fmt: skip
"""A centre with its class, its voxels, and their mean score (NaN of a label volume)."""

_BATCH_VOXELS = 1 << 16


@lru_cache(maxsize=2)
def _tree_of(path: str) -> Any:
    """Return a search tree of the centres in a file, once for each worker."""
    from scipy.spatial import KDTree

    return KDTree(np.load(path))


@dataclass(frozen=True)
class MemberReduction(TreeReduction[Array, Array]):
    """Count the voxels of each centre and label."""

    labels: ClassLabels
    centres: str
    """NumPy file of the centres, (n, 3) float64 zyx."""
    n_centres: int
    name: str = "members"

    def measure(self, block: Block, *windows: Array) -> Array:
        """Count the voxels of one block."""
        labels, scores = self.labels.scored(windows)
        return _counted(_tree_of(self.centres), labels, scores, block.read.start)

    def combine(self, left: Array, right: Array) -> Array:
        """Add the counts of two boxes."""
        return _added(np.concatenate([left, right]))

    def finalize(self, partial: Array) -> Array:
        """Return the counts of the whole volume."""
        return partial

    def bytes_needed(self, window_shape: Vec) -> int:
        """Return the peak bytes of one task: windows, labels, places of voxels, the centres."""
        tree = self.n_centres * 120
        per_voxel = self.labels.bytes_per_voxel + 8
        return math.prod(window_shape) * per_voxel + _BATCH_VOXELS * 160 + tree


def find_objects(labels: Array, bandwidth: float) -> Array:
    """Return the mean-shift objects of a label volume that fits the memory.

    Parameters
    ----------
    labels
        int zyx, 0 where there is no class.
    bandwidth
        In voxels.

    Returns
    -------
    array
        `OBJECT_DTYPE`, without scores.

    Examples
    --------
    >>> labels = np.zeros((5, 5, 12), int)
    >>> labels[1:4, 1:4, 1:4], labels[1:4, 1:4, 8:11] = 1, 2
    >>> labels[1, 1, 8] = 1
    >>> sorted(find_objects(labels, 3.0)[["n_voxels", "label"]].tolist())
    [(27, 1), (27, 2)]
    """
    from scipy.spatial import KDTree

    centres = find_centres(labels, bandwidth)
    return objects_of(centres, _counted(KDTree(centres), labels, None, (0, 0, 0)))


def _counted(tree: Any, labels: Array, scores: Array | None, start: Vec) -> Array:
    """Return the voxels of each centre and label, as rows; the tree is of the centres."""
    flat = labels.ravel()
    chosen = np.flatnonzero(flat)
    parts = [np.zeros(0, MEMBER_DTYPE)]
    for first in range(0, len(chosen), _BATCH_VOXELS):
        some = chosen[first : first + _BATCH_VOXELS]
        places = np.stack(np.unravel_index(some, labels.shape), axis=1) + start
        rows = np.zeros(len(some), MEMBER_DTYPE)
        rows["centre"] = tree.query(places)[1]
        rows["label"], rows["n_voxels"] = flat[some], 1
        if scores is not None:
            rows["score_sum"] = np.rint(scores.ravel()[some] / SCORE_UNIT)
        parts.append(_added(rows))
    return _added(np.concatenate(parts))


def _added(rows: Array) -> Array:
    """Add up the rows of one centre and label; sorted by both."""
    order = np.lexsort((rows["label"], rows["centre"]))
    rows = rows[order]
    if len(rows) == 0:
        return rows
    same = (rows["centre"][1:] == rows["centre"][:-1]) & (rows["label"][1:] == rows["label"][:-1])
    starts = np.flatnonzero(np.concatenate([[True], ~same]))
    added = rows[starts]
    for name in ("n_voxels", "score_sum"):
        added[name] = np.add.reduceat(rows[name], starts)
    return added


def objects_of(
    centres: Array, members: Array, *, scored: bool = False, first_only: bool = False
) -> Array:
    """Return the objects, in the order of their centres; a centre without voxels is none.

    Parameters
    ----------
    centres
        (n, 3) float64 zyx.
    members
        `MEMBER_DTYPE`, one row for each centre and label.
    scored
        The rows have scores.
    first_only
        Count the classes 1 to n only, as DeepFinder's program does.

    Returns
    -------
    array
        `OBJECT_DTYPE`.

    Examples
    --------
    >>> members = np.zeros(2, MEMBER_DTYPE)
    >>> members["label"], members["n_voxels"] = [1, 3], [4, 9]
    >>> objects_of(np.zeros((1, 3)), members)[["label", "n_voxels"]].tolist()
    [(3, 13)]
    >>> objects_of(np.zeros((1, 3)), members, first_only=True)["label"].tolist()
    [1]
    """
    n = len(centres)
    n_classes = len(np.unique(members["label"]))
    counted = members[members["label"] <= n_classes] if first_only else members
    objects = np.zeros(n, OBJECT_DTYPE)
    objects["z"], objects["y"], objects["x"] = centres.T
    objects["label"] = 1
    order = np.lexsort((-counted["label"], counted["n_voxels"], counted["centre"]))
    objects["label"][counted["centre"][order]] = counted["label"][order]  # the last one stays
    objects["n_voxels"] = _per_centre(members, "n_voxels", n)
    sums = _per_centre(members, "score_sum", n) * SCORE_UNIT
    objects = objects[objects["n_voxels"] > 0]
    objects["score"] = np.nan
    if scored:
        has_voxels = np.unique(members["centre"])
        objects["score"] = sums[has_voxels] / objects["n_voxels"]
    return objects


def _per_centre(members: Array, name: str, n: int) -> Array:
    """Return the sum of a column for each centre."""
    sums = np.zeros(n, np.int64)
    np.add.at(sums, members["centre"], members[name])
    return sums


def large_enough(objects: Array, min_size: int, of_labels: Mapping[int, int]) -> Array:
    """Say of objects whether they have as many voxels as their class needs.

    Parameters
    ----------
    objects
        `OBJECT_DTYPE`.
    min_size
        Smallest size of classes that have none of their own, inclusive.
    of_labels
        Smallest sizes by label.
    """
    least = np.full(len(objects), min_size, np.int64)
    for label, size in of_labels.items():
        least[objects["label"] == label] = size
    kept: Array = objects["n_voxels"] >= least
    return kept
