"""Merge the labels of neighbouring boxes: a node holds a surface, never a volume.

1. A `LabelNode` is a box, the labels on those of its six faces that lie inside the volume, and one
   row for every cluster that touches such a face (an *open* cluster).
2. Two nodes that share a face are combined: labels that touch across it are united, rows merged.
3. A cluster that touches no face of the combined box is finished: it can never grow again. It is
   kept if its size (and region contact) passes, and dropped from the node either way.
4. Where a cluster takes another name (its first voxel moved), the pair (old name, new name) is
   noted, so that a second pass can find the final name of any label of any chunk.

Corner and edge neighbours (18- and 26-connectivity) are found because faces of combined boxes are
whole: the neighbour diagonal across four boxes lies on the shared face of two pairs of boxes.
Finishing early is what Isenburg and Shewchuk's streaming labelling does along one axis.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend import to_host
from ..core.errors import ShapeMismatchError
from ..core.geometry import Box, Vec
from ..core.tables import ClusterRows, empty_rows, merge_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["KeepRule", "LabelNode", "Renames", "combine_nodes", "no_renames", "rename"]

Array = np.ndarray[Any, Any]
Face = tuple[int, int]
"""An axis and a side: 0 where the axis starts, 1 where it ends."""
Renames = np.ndarray[Any, np.dtype[np.int64]]
"""Pairs (old name, new name), shape (n, 2), sorted by old name."""

BAND_VOXELS = 1 << 16
"""Voxels of a face that are looked at together."""

_IN_PLANE: dict[int, list[tuple[int, int]]] = {
    6: [(0, 0)],
    18: [(0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)],
    26: [(i, j) for i in (0, 1, -1) for j in (0, 1, -1)],
}


def no_renames() -> Renames:
    """Return an empty list of pairs."""
    return np.empty((0, 2), np.int64)


def rename(names: Array, pairs: Renames) -> Array:
    """Return names with the pairs applied once.

    Examples
    --------
    >>> rename(np.array([5, 7, 9]), np.array([[7, 2]])).tolist()
    [5, 2, 9]
    """
    if len(pairs) == 0 or len(names) == 0:
        return names
    at = np.minimum(np.searchsorted(pairs[:, 0], names), len(pairs) - 1)
    return np.where(pairs[at, 0] == names, pairs[at, 1], names)


@dataclass(frozen=True)
class KeepRule:
    """Which finished clusters are kept.

    Examples
    --------
    >>> rows = empty_rows(2)
    >>> rows["n_voxels"] = [3, 9]
    >>> KeepRule(min_size=4).apply(rows)["n_voxels"].tolist()
    [9]
    """

    min_size: int = 1
    """Smallest number of voxels, inclusive."""
    max_size: int | None = None
    """Largest number of voxels, inclusive."""
    must_touch: tuple[int, ...] = ()
    """Numbers of the regions with each of which a cluster must share a voxel (mode "contact")."""

    def apply(self, rows: ClusterRows) -> ClusterRows:
        """Return the rows that are kept."""
        return rows[self.passes(rows)]

    def passes(self, rows: ClusterRows) -> Array:
        """Say of each row whether it is kept (bool)."""
        kept: Array = rows["n_voxels"] >= self.min_size
        if self.max_size is not None:
            kept &= rows["n_voxels"] <= self.max_size
        for region in self.must_touch:
            kept &= rows["n_in_region"][:, region] > 0
        return kept


@dataclass(frozen=True)
class LabelNode:
    """The clusters of a box, as far as its neighbours need to know them."""

    box: Box
    faces: dict[Face, Array]
    """For faces inside the volume: 2D, 1-based places in ``open_rows``, 0 is background."""
    open_rows: ClusterRows
    """Clusters that touch one of ``faces``, sorted by name."""
    kept: ClusterRows = field(default_factory=empty_rows)
    """Finished clusters that passed, in no order; sorted by name where they are stored."""
    renames: Renames = field(default_factory=no_renames)
    """Names given up inside this box since the last spill."""
    n_finished: int = 0
    """How many clusters finished in this box, kept or not."""

    def spill(self) -> tuple[LabelNode, dict[str, Array]]:
        """Return the node without what nobody above needs, and that as arrays to store."""
        light = replace(self, kept=self.kept[:0], renames=no_renames())
        kept, names = self.kept, self.kept["first_voxel"]
        if (names[1:] < names[:-1]).any():  # most chunks have them in order
            kept = np.take(kept, np.argsort(names))
        return light, {"kept": kept, "renames": self.renames}

    @classmethod
    def of_labels(
        cls, labels: Array, rows: ClusterRows, box: Box, shape: Vec, rule: KeepRule
    ) -> LabelNode:
        """Make the node of one labelled chunk; label ``i`` is ``rows[i - 1]``.

        ``labels`` may be on a GPU: only their faces come to the host.

        Examples
        --------
        >>> rows = empty_rows(2)
        >>> rows["first_voxel"], rows["n_voxels"] = [0, 3], [2, 1]
        >>> node = LabelNode.of_labels(np.array([[[1, 1, 0, 2]]]), rows, Box((0, 0, 0), (1, 1, 4)),
        ...                            (1, 1, 8), KeepRule())
        >>> node.faces, node.open_rows["first_voxel"].tolist(), node.kept["first_voxel"].tolist()
        ({(2, 1): array([[1]], dtype=int32)}, [3], [0])
        """
        faces = {
            (axis, side): to_host(labels.take(-1 if side else 0, axis=axis))
            for axis in range(3)
            for side in (0, 1)
            if (box.stop[axis] < shape[axis] if side else box.start[axis] > 0)
        }
        pieces = {key: [(face, 0)] for key, face in faces.items()}
        table = np.arange(len(rows) + 1, dtype=np.int32)
        return _close(box, _Faces(pieces, {}, (table,)), rows, rule)


def _close(box: Box, faces: _Faces, rows: ClusterRows, rule: KeepRule) -> LabelNode:
    """Finish the clusters that no face shows, and renumber the faces to the rest, by name."""
    is_open = faces.shown(len(rows))
    places = np.flatnonzero(is_open)
    places = places[np.argsort(rows["first_voxel"][places])]
    new_place = np.zeros(len(rows) + 1, np.int32)
    new_place[places + 1] = np.arange(1, len(places) + 1)
    finished = ~is_open
    return LabelNode(
        box=box,
        faces=faces.renumbered(new_place),
        open_rows=np.take(rows, places),  # of whole rows: many times faster than an index
        kept=np.take(rows, np.flatnonzero(finished & rule.passes(rows))),
        n_finished=int(np.count_nonzero(finished)),
    )


@dataclass(frozen=True)
class _Faces:
    """The faces of a box, each in one piece or two, and what their labels stand for.

    Label ``i`` of a piece is row ``tables[piece's side][i] - 1``. Labels are looked up when the new
    faces are made, some planes at a time, so that no face is held in between.
    """

    pieces: dict[Face, list[tuple[Array, int]]]
    """Each with the number of its table."""
    joined_along: dict[Face, int]
    """The axis of a face, of two, along which its pieces follow one another."""
    tables: tuple[Array, ...]
    """Int32; element 0, the background, is 0."""

    def shown(self, n_rows: int) -> Array:
        """Say of each row whether a face shows it (bool)."""
        seen = [np.zeros(len(table), bool) for table in self.tables]
        for piece, side in itertools.chain.from_iterable(self.pieces.values()):
            for some in _bands(piece):
                seen[side][some] = True
        shown = np.zeros(n_rows + 1, bool)
        for table, of_table in zip(self.tables, seen, strict=True):
            shown[table[of_table]] = True
        return shown[1:]

    def renumbered(self, new_place: Array) -> dict[Face, Array]:
        """Return the faces with each row's new place (int32)."""
        tables = [new_place[table] for table in self.tables]
        faces = {}
        for key, pieces in self.pieces.items():
            along = self.joined_along.get(key, 0)
            shape = list(pieces[0][0].shape)
            shape[along] = sum(piece.shape[along] for piece, _ in pieces)
            face = np.empty(shape, np.int32)
            start = 0
            for piece, side in pieces:
                stop = start + piece.shape[along]
                part = face[start:stop] if along == 0 else face[:, start:stop]
                for target, some in zip(_bands(part), _bands(piece), strict=True):
                    target[...] = tables[side][some]
                start = stop
            faces[key] = face
        return faces


def _bands(face: Array) -> Iterator[Array]:
    """Yield some rows of a face at a time: NumPy widens whatever is used as an index."""
    step = max(BAND_VOXELS // max(face.shape[1], 1), 1)
    for start in range(0, len(face), step):
        yield face[start : start + step]


def touching_pairs(left: Array, right: Array, connectivity: int) -> Array:
    """Return the pairs of labels that touch across a shared face.

    Parameters
    ----------
    left, right
        2D integer arrays of one shape: the last plane of one box and the first of the next.
    connectivity
        6, 18 or 26.

    Returns
    -------
    array
        Shape (n, 2), unique rows.

    Examples
    --------
    >>> touching_pairs(np.array([[1, 0], [0, 2]]), np.array([[3, 3], [0, 0]]), 6).tolist()
    [[1, 3]]
    >>> touching_pairs(np.array([[1, 0], [0, 2]]), np.array([[3, 3], [0, 0]]), 26).tolist()
    [[1, 3], [2, 3]]
    """
    base = int(right.max(initial=0)) + 1
    codes = []
    for shift in _IN_PLANE[connectivity]:
        cut = [_shifted(face, shift, side) for side, face in enumerate((left, right))]
        for a, b in zip(*map(_bands, cut), strict=True):
            both = (a > 0) & (b > 0)
            codes.append(np.unique(a[both].astype(np.int64) * base + b[both]))
    unique = np.unique(np.concatenate(codes)) if codes else np.empty(0, np.int64)
    return np.stack(np.divmod(unique, base), axis=1)


def _shifted(face: Array, shift: tuple[int, int], side: int) -> Array:
    """Cut a face so that element (i, j) of the left meets (i, j) + shift of the right."""
    cut = []
    for step in shift:
        skip = max(step, 0) if side else max(-step, 0)
        drop = max(-step, 0) if side else max(step, 0)
        cut.append(slice(skip, -drop if drop else None))
    return face[tuple(cut)]


def _shared_axis(left: Box, right: Box) -> int:
    """Return the axis on which the right box follows the left one."""
    for axis in range(3):
        others = [i for i in range(3) if i != axis]
        if left.stop[axis] == right.start[axis] and all(
            (left.start[i], left.stop[i]) == (right.start[i], right.stop[i]) for i in others
        ):
            return axis
    raise ShapeMismatchError(f"cannot merge labels of {left} and {right}: they share no whole face")


def _joined_faces(left: LabelNode, right: LabelNode, axis: int, group: Array) -> _Faces:
    """Return the faces of the union; ``group`` has the new row of each row, left ones first."""
    place = (group + 1).astype(np.int32)
    parts = (place[: len(left.open_rows)], place[len(left.open_rows) :])
    pieces: dict[Face, list[tuple[Array, int]]] = {}
    if (axis, 0) in left.faces:
        pieces[axis, 0] = [(left.faces[axis, 0], 0)]
    if (axis, 1) in right.faces:
        pieces[axis, 1] = [(right.faces[axis, 1], 1)]
    along = {}
    for key in left.faces:
        if key[0] != axis:
            pieces[key] = [(left.faces[key], 0), (right.faces[key], 1)]
            along[key] = [i for i in range(3) if i != key[0]].index(axis)
    tables = tuple(np.concatenate([np.zeros(1, np.int32), part]) for part in parts)
    return _Faces(pieces, along, tables)


def combine_nodes(
    left: LabelNode, right: LabelNode, *, connectivity: int, rule: KeepRule
) -> LabelNode:
    """Merge two nodes whose boxes share a whole face.

    Parameters
    ----------
    left, right
        Nodes; the right box follows the left one on one axis.
    connectivity
        6, 18 or 26 neighbours.
    rule
        Which finished clusters are kept.

    Returns
    -------
    LabelNode
        The node of the union of the two boxes.

    Raises
    ------
    ShapeMismatchError
        The boxes share no whole face.

    Examples
    --------
    >>> def node(x, first):
    ...     rows = empty_rows(1)
    ...     rows["first_voxel"], rows["n_voxels"] = first, 1
    ...     box = Box((0, 0, x), (1, 1, x + 1))
    ...     return LabelNode.of_labels(np.ones((1, 1, 1), int), rows, box, (1, 1, 2), KeepRule())
    >>> root = combine_nodes(node(0, 0), node(1, 1), connectivity=6, rule=KeepRule())
    >>> root.kept["n_voxels"].tolist(), root.renames.tolist()
    ([2], [[1, 0]])
    """
    axis = _shared_axis(left.box, right.box)
    rows = np.concatenate([left.open_rows, right.open_rows])
    pairs = touching_pairs(left.faces[axis, 1], right.faces[axis, 0], connectivity)
    places = pairs + np.array([-1, len(left.open_rows) - 1])  # of 1-based labels among the rows
    group, n_groups = _groups(places, len(rows))
    merged = merge_rows(rows, group, n_groups)
    faces = _joined_faces(left, right, axis, group)
    node = _close(Box(left.box.start, right.box.stop), faces, merged, rule)
    changed = _pairs_of(rows["first_voxel"], merged["first_voxel"][group])
    return replace(
        node,
        kept=np.concatenate([left.kept, right.kept, node.kept]),
        renames=_joined_renames([left.renames, right.renames], changed),
        n_finished=left.n_finished + right.n_finished + node.n_finished,
    )


def _groups(pairs: Array, n: int) -> tuple[Array, int]:
    """Return the connected component of each of ``n`` rows under the pairs, and their number."""
    if len(pairs) == 0:
        return np.arange(n), n
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    n_groups, group = connected_components(links, directed=False)
    return group, n_groups


def _pairs_of(old: Array, new: Array) -> Renames:
    """Return the sorted pairs of names that changed."""
    changed = old != new
    pairs = np.stack([old[changed], new[changed]], axis=1)
    return pairs[np.argsort(pairs[:, 0])]


def _joined_renames(earlier: list[Renames], latest: Renames) -> Renames:
    """Chain pairs: what was renamed before may be renamed again."""
    before = np.concatenate(earlier)
    before[:, 1] = rename(before[:, 1], latest)
    pairs = np.concatenate([before, latest])
    return pairs[np.argsort(pairs[:, 0])]
