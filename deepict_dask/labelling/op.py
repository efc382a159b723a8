"""The two passes of labelling, declared for the engine.

Pass 1, `LabelReduction`: label each chunk and merge the chunks' nodes up the tree. Pass 2,
`RelabelOp`: label each chunk again, look up what became of each label, write the segmentation or
the label map. Labels of pass 1 are not stored: labelling a chunk is cheaper than reading it back.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..backend import Device, compute_on, label_components, namespace_of, to_host
from ..core.ops import ChunkOp, TreeReduction
from ..core.tables import cluster_dtype
from .measure import PIECE_VOXELS, first_voxels, measure_components
from .merge import KeepRule, LabelNode, Renames, combine_nodes, rename
from .select import SelectSettings, select_voxels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..core.geometry import Block, Vec
    from ..core.tables import ClusterRows

__all__ = ["ClusterNames", "LabelReduction", "RelabelOp", "SelectSettings"]

Array = np.ndarray[Any, Any]

_LABEL_BYTES_PER_VOXEL = 22
"""Reading, choosing and labelling (measured: 13 for float32, 17 for float64 scores)."""
_PIECE_BYTES = 100 * PIECE_VOXELS
_NAME_BYTES = 40
"""A cluster's name, and its number among the kept ones (measured: 36)."""


def most_clusters(shape: Vec, connectivity: int) -> int:
    """Return how many clusters a box can hold: voxels that are pairwise no neighbours.

    Examples
    --------
    >>> [most_clusters((4, 4, 4), connectivity) for connectivity in (6, 18, 26)]
    [32, 16, 8]
    """
    corners = math.prod(-(-n // 2) for n in shape)
    return min(math.prod(shape), {6: 4, 18: 2, 26: 1}[connectivity] * corners)


def row_bytes(n_regions: int) -> int:
    """Return the bytes of a cluster's row, as measured and as open or finished, and its place."""
    return 2 * cluster_dtype(n_regions).itemsize + 8


@dataclass(frozen=True)
class LabelReduction(TreeReduction[LabelNode, LabelNode]):
    """Label, measure, merge: a volume to its cluster rows.

    Sources are the score map and, where there are regions, one volume of their bits
    (`deepict_dask.io.stacked`), of the same shape.

    Examples
    --------
    >>> from deepict_dask.core.geometry import Grid
    >>> reduction = LabelReduction((1, 1, 4), SelectSettings(threshold=0.5), connectivity=6)
    >>> left, right = Grid((1, 1, 4), (1, 1, 2))
    >>> score = np.array([[[0, 1, 1, 0]]], dtype="float32")
    >>> nodes = [reduction.measure(b, score[b.read.slices]) for b in (left, right)]
    >>> reduction.finalize(reduction.combine(*nodes)).kept["n_voxels"].tolist()
    [2]
    """

    shape: Vec
    select: SelectSettings
    connectivity: int = 26
    rule: KeepRule = field(default_factory=KeepRule)
    n_regions: int = 0
    """Regions whose voxels the rows count: bits 0 to ``n_regions - 1`` of the second source."""
    region_bytes: int = 0
    """Bytes per voxel that reading the second source takes; only ``bytes_needed`` depends on it."""
    name: str = "label"

    def measure(self, block: Block, *windows: Any) -> LabelNode:
        """Return the node of one chunk."""
        score, regions = windows[0], windows[1] if len(windows) > 1 else None
        return self.measure_chosen(
            block,
            select_voxels(score, regions, block.write, self.shape, self.select),
            score,
            regions,
        )

    def measure_chosen(
        self, block: Block, chosen: Any, score: Any, regions: Any | None = None
    ) -> LabelNode:
        """Return the node of one chunk whose voxels are chosen already (bool, zyx)."""
        labels, n = label_components(chosen, self.connectivity)
        del chosen
        rows = measure_components(
            labels,
            n,
            score,
            regions,
            box=block.write,
            shape=self.shape,
            n_regions=self.n_regions,
        )
        return LabelNode.of_labels(labels, rows, block.write, self.shape, self.rule)

    def combine(self, left: LabelNode, right: LabelNode) -> LabelNode:
        """Merge two neighbouring nodes, given in either order."""
        if right.box < left.box:
            left, right = right, left
        return combine_nodes(left, right, connectivity=self.connectivity, rule=self.rule)

    def finalize(self, partial: LabelNode) -> LabelNode:
        """Return the root: all clusters are finished."""
        return partial

    def bytes_needed(self, window_shape: Vec) -> int:
        """Return the peak bytes of labelling one chunk that holds as many clusters as it can."""
        per_voxel = _LABEL_BYTES_PER_VOXEL + self.region_bytes
        rows = self.row_bytes_needed(window_shape)
        return per_voxel * math.prod(window_shape) + rows + _PIECE_BYTES

    def row_bytes_needed(self, window_shape: Vec) -> int:
        """Return the bytes of the rows of as many clusters as a chunk can hold."""
        return row_bytes(self.n_regions) * most_clusters(window_shape, self.connectivity)


class SortedNames(Protocol):
    """Sorted int64 numbers: an array, or a file of which parts are read."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: Any, /) -> Any:
        """Return one number, or an array of those of a slice."""
        ...


class ClusterNames(Protocol):
    """Finds what became of the labels of a chunk; picklable."""

    def renames_above(self, block: Block) -> Sequence[Renames]:
        """Return the renames of the nodes above a chunk, from its parent to the root."""
        ...

    def kept_names(self) -> SortedNames:
        """Return the sorted names (first voxels) of the clusters that are kept, int64."""
        ...


@dataclass(frozen=True)
class RelabelOp(ChunkOp):
    """Write the clusters that were kept: as a segmentation (0/1) or as a label map (1..n)."""

    shape: Vec
    select: SelectSettings
    names: ClusterNames
    connectivity: int = 26
    as_label_map: bool = False
    name: str = "segmentation"
    device: str = "cpu"
    """Where voxels are labelled; "cuda" must be there."""

    @property
    def dtype(self) -> str:  # type: ignore[override]
        """int64 for a label map, uint8 for a segmentation."""
        return "int64" if self.as_label_map else "uint8"

    def apply(self, block: Block, *windows: Any) -> Array:
        """Return the kept voxels of one chunk."""
        work = partial(self._written, block)
        return to_host(compute_on(Device(self.device), self.name, work, windows[0]))

    def _written(self, block: Block, voxels: Any) -> Any:
        """Return the kept voxels of one chunk where its voxels are."""
        chosen = select_voxels(voxels, None, block.write, self.shape, self.select)
        labels, n = label_components(chosen, self.connectivity)
        names = first_voxels(labels, n, block.write, self.shape)
        for pairs in self.names.renames_above(block):
            names = rename(names, pairs)
        numbers = np.concatenate([[0], final_labels(names, self.names.kept_names())])
        if not self.as_label_map:
            numbers = numbers > 0
        xp = namespace_of(labels)
        numbers = xp.asarray(numbers.astype(self.dtype))
        result = xp.empty(labels.shape, self.dtype)
        for plane, found in zip(result, labels, strict=True):
            plane[:] = numbers[found]  # NumPy widens the indices of one plane, not of all
        return result

    def bytes_needed(self, window_shape: Vec) -> int:
        """Return the peak bytes of labelling one chunk again and of the result, packed too."""
        return relabel_bytes(window_shape, self.connectivity, self.dtype)


def relabel_bytes(shape: Vec, connectivity: int, dtype: str) -> int:
    """Return the peak bytes of `RelabelOp` for a box, its result included.

    Examples
    --------
    >>> relabel_bytes((64, 64, 64), 26, "uint8") < relabel_bytes((64, 64, 64), 26, "int64")
    True
    """
    per_voxel = _LABEL_BYTES_PER_VOXEL + 2 * np.dtype(dtype).itemsize
    names = _NAME_BYTES * most_clusters(shape, connectivity)
    return per_voxel * math.prod(shape) + names + _PIECE_BYTES


def final_labels(names: Array, kept_names: SortedNames) -> Array:
    """Return the number of each name among the kept ones: 1-based, 0 where it was not kept.

    The kept names are visited in pieces, and only those between the smallest and the largest name.

    Examples
    --------
    >>> final_labels(np.array([7, 3, 4]), np.array([3, 7])).tolist()
    [2, 1, 0]
    """
    numbers = np.zeros(len(names), np.int64)
    if len(names) == 0:
        return numbers
    order = np.argsort(names)
    ordered = names[order]
    first = bisect_left(kept_names, ordered[0])
    stop = bisect_right(kept_names, ordered[-1])
    for start in range(first, stop, PIECE_VOXELS):
        kept = kept_names[start : min(start + PIECE_VOXELS, stop)]
        here = slice(*np.searchsorted(ordered, [kept[0], kept[-1] + 1]))
        at = np.searchsorted(kept, ordered[here])
        numbers[order[here]] = np.where(kept[at] == ordered[here], start + at + 1, 0)
    return numbers


def sorted_rows(rows: ClusterRows) -> ClusterRows:
    """Return rows in raster order of their first voxels: the order of the final labels."""
    return np.take(rows, np.argsort(rows["first_voxel"]))
