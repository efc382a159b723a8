"""Skeleton voxels to ordered pieces of line.

Which voxels follow one another? Voxels are numbered in raster order in a volume that is one voxel
larger on every side, so that each of the 26 neighbours is at a fixed difference of numbers and none
wraps round an edge. A voxel with three or more neighbours is a branch point. Without the branch
points every voxel has at most two neighbours: what is left are lines and closed loops.

`prune` first removes what thinning adds to filaments that are rough or that cross:

1. *spurs*: pieces from a branch point to a free end, shorter than the thickest filament's radius,
   the shortest at each branch point first, until none is left that has two others to go on with;
   of branch points that then have two arms only the shortest way from arm to arm stays;
2. *handles*: of two pieces between the same branch points, both shorter than a diameter, the longer
   one, and a piece as short that returns to where it began: they go round a hole in the mask;
3. *bridges*: where two filaments cross, thinning makes them share a stretch between two branch
   points. Such a stretch, shorter than a diameter, goes with its branch points, and the four arms
   are left to be linked.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..core.geometry import Vec

__all__ = ["Piece", "Pieces", "cut_pieces", "decode", "encode", "neighbour_pairs", "prune"]

Integers = np.ndarray[Any, np.dtype[np.int64]]

_BRANCH = 3
"""Neighbours of a branch point, at least."""


def _strides(shape: Vec) -> tuple[int, int]:
    return (shape[1] + 2) * (shape[2] + 2), shape[2] + 2


def encode(zyx: Any, shape: Vec) -> Integers:
    """Return the numbers of voxels, in raster order.

    Examples
    --------
    >>> encode([[0, 0, 0], [0, 0, 1]], (4, 5, 6)).tolist()
    [65, 66]
    """
    z, y, x = np.asarray(zyx, np.int64).reshape(-1, 3).T + 1
    plane, row = _strides(shape)
    found: Integers = z * plane + y * row + x
    return found


def decode(voxels: Integers, shape: Vec) -> Integers:
    """Return the positions of voxels, (n, 3), zyx.

    Examples
    --------
    >>> decode(encode([[3, 0, 5]], (4, 5, 6)), (4, 5, 6)).tolist()
    [[3, 0, 5]]
    """
    plane, row = _strides(shape)
    z, rest = np.divmod(voxels, plane)
    y, x = np.divmod(rest, row)
    return np.stack([z, y, x], axis=-1) - 1


def neighbour_steps(shape: Vec) -> list[int]:
    """Return by how much the numbers of the 26 neighbours of a voxel differ from its own.

    Examples
    --------
    >>> neighbour_steps((4, 5, 6))[:3]
    [-65, -64, -63]
    """
    plane, row = _strides(shape)
    steps = (z * plane + y * row + x for z, y, x in itertools.product((-1, 0, 1), repeat=3))
    return sorted(step for step in steps if step)


def neighbour_pairs(voxels: Integers, shape: Vec) -> Integers:
    """Return the pairs of 26-neighbours among sorted voxels, as places in the list, (n, 2).

    Examples
    --------
    >>> neighbour_pairs(encode([[0, 0, 0], [0, 0, 1], [1, 1, 2]], (4, 5, 6)), (4, 5, 6)).tolist()
    [[0, 1], [1, 2]]
    """
    if len(voxels) == 0:
        return np.zeros((0, 2), np.int64)
    found = []
    for difference in neighbour_steps(shape)[13:]:
        at = np.minimum(np.searchsorted(voxels, voxels + difference), len(voxels) - 1)
        first = np.flatnonzero(voxels[at] == voxels + difference)
        found.append(np.stack([first, at[first]], axis=-1))
    return np.concatenate(found)


@dataclass(frozen=True)
class Piece:
    """A line of skeleton voxels between branch points or free ends.

    Examples
    --------
    >>> Piece(np.array([65, 66, 67]), ends=(None, 0)).is_spur
    True
    """

    voxels: Integers
    """Numbers of its voxels, in order; a loop begins at its first voxel in raster order."""
    ends: tuple[int | None, int | None] = (None, None)
    """The groups of branch points at its first and last voxel; None where an end is free."""
    closed: bool = False

    @property
    def is_spur(self) -> bool:
        """Whether one end is free and the other at a branch point."""
        return (self.ends[0] is None) != (self.ends[1] is None)

    @property
    def is_bridge(self) -> bool:
        """Whether it leads from one group of branch points to another."""
        return None not in self.ends and self.ends[0] != self.ends[1]


@dataclass(frozen=True)
class Pieces:
    """A skeleton taken apart."""

    pieces: list[Piece]
    """In the order of their first voxels in raster order."""
    branch_voxels: Integers
    """The branch points."""
    groups: Integers
    """For each branch point the group of touching ones it belongs to."""

    def n_arms(self) -> dict[int, int]:
        """Return how many ends of pieces meet at each group of branch points."""
        arms: dict[int, int] = {}
        for piece in self.pieces:
            for end in piece.ends:
                if end is not None:
                    arms[end] = arms.get(end, 0) + 1
        return arms


def cut_pieces(voxels: Integers, shape: Vec) -> Pieces:
    """Take a skeleton apart at its branch points.

    Parameters
    ----------
    voxels
        Numbers of the skeleton's voxels, sorted.
    shape
        Of the volume.

    Examples
    --------
    >>> line = encode([[0, 0, x] for x in range(5)], (1, 2, 5))
    >>> [len(p.voxels) for p in cut_pieces(line, (1, 2, 5)).pieces]
    [5]
    """
    pairs = neighbour_pairs(voxels, shape)
    degree = np.bincount(pairs.ravel(), minlength=len(voxels))
    is_branch = degree >= _BRANCH
    branch = np.flatnonzero(is_branch)
    groups = np.full(len(voxels), -1, np.int64)
    groups[branch] = _components(pairs[is_branch[pairs].all(axis=1)], len(voxels))[branch]
    neighbours = _neighbour_lists(pairs[~is_branch[pairs].any(axis=1)])
    touching = _touched_groups(pairs, is_branch, groups)
    pieces = []
    for line, closed in ordered_lines(np.flatnonzero(~is_branch), neighbours):
        ends = _ends(line, touching) if not closed else (None, None)
        pieces.append(Piece(voxels[line], ends, closed))
    return Pieces(pieces, voxels[branch], groups[branch])


def _components(pairs: Integers, n: int) -> Integers:
    """Return the number of each node's connected component."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return np.asarray(connected_components(links, directed=False)[1], np.int64)


def _neighbour_lists(pairs: Integers) -> dict[int, list[int]]:
    lists: dict[int, list[int]] = {}
    for a, b in pairs.tolist():
        lists.setdefault(a, []).append(b)
        lists.setdefault(b, []).append(a)
    return lists


def _touched_groups(
    pairs: Integers, is_branch: np.ndarray[Any, np.dtype[np.bool_]], groups: Integers
) -> dict[int, set[int]]:
    """Return for each voxel beside branch points the groups of these."""
    touched: dict[int, set[int]] = {}
    for a, b in pairs[is_branch[pairs].sum(axis=1) == 1].tolist():
        voxel, branch = (b, a) if is_branch[a] else (a, b)
        touched.setdefault(voxel, set()).add(int(groups[branch]))
    return touched


def ordered_lines(
    nodes: Integers, neighbours: dict[int, list[int]]
) -> list[tuple[list[int], bool]]:
    """Return lines of nodes that have at most two neighbours, and whether each is closed.

    A line starts at its smaller end, a loop at its smallest node and towards the smaller neighbour.
    """
    lines, seen = [], set()
    ends = [n for n in nodes.tolist() if len(neighbours.get(n, ())) < 2]
    for closed, starts in ((False, ends), (True, nodes.tolist())):
        for start in starts:
            if start not in seen:
                line = _walk(start, neighbours)
                seen.update(line)
                lines.append((line, closed))
    return sorted(lines, key=lambda line: min(line[0]))


def _walk(start: int, neighbours: dict[int, list[int]]) -> list[int]:
    line, seen = [start], {start}
    while True:
        ahead = [n for n in neighbours.get(line[-1], ()) if n not in seen]
        if not ahead:
            return line
        line.append(min(ahead))
        seen.add(line[-1])


def _ends(line: list[int], touching: dict[int, set[int]]) -> tuple[int | None, int | None]:
    """Return the groups at the two ends; a single voxel may have one at either side."""
    first, last = touching.get(line[0], set()), touching.get(line[-1], set())
    if len(line) == 1:
        pair = sorted(first)[:2]
        return (pair[0] if pair else None, pair[1] if len(pair) > 1 else None)
    return (min(first, default=None), min(last, default=None))


def prune(voxels: Integers, shape: Vec, radius: int) -> Integers:
    """Return a skeleton without spurs and without the bridges of crossing filaments.

    Parameters
    ----------
    voxels
        Numbers of the skeleton's voxels, sorted.
    shape
        Of the volume.
    radius
        Half the thickness of the thickest filament, voxels.

    Examples
    --------
    >>> shape = (1, 12, 21)
    >>> comb = encode([[0, 0, x] for x in range(21)] + [[0, y, 10] for y in range(1, 4)], shape)
    >>> len(prune(np.sort(comb), shape, radius=5))
    21
    """
    while True:
        found = cut_pieces(voxels, shape)
        dropped = _shortest_spurs(found, radius) + _handles(found, 2 * radius)
        if not dropped:
            break
        voxels = np.setdiff1d(voxels, np.concatenate([p.voxels for p in dropped]))
    voxels = np.setdiff1d(voxels, _beside_the_way(found, shape))
    bridges = _bridges(found, 2 * radius)
    if not bridges:
        return voxels
    crossed = {end for piece in bridges for end in piece.ends}
    centres = found.branch_voxels[
        np.isin(found.groups, sorted(e for e in crossed if e is not None))
    ]
    return np.setdiff1d(voxels, np.concatenate([centres, *(p.voxels for p in bridges)]))


def _shortest_spurs(found: Pieces, radius: int) -> list[Piece]:
    """Return the shortest spur at each branch point that would still have two arms."""
    arms = found.n_arms()
    shortest: dict[int, Piece] = {}
    for piece in found.pieces:
        if piece.is_spur and len(piece.voxels) < radius:
            (group,) = (end for end in piece.ends if end is not None)
            best = shortest.get(group)
            if arms[group] > 2 and (best is None or len(piece.voxels) < len(best.voxels)):
                shortest[group] = piece
    return list(shortest.values())


def _handles(found: Pieces, longest: int) -> list[Piece]:
    """Return short pieces that go round a hole: each has another way beside it, or leads back."""
    handles, shorter = [], set()
    arms = found.n_arms()
    for piece in sorted(found.pieces, key=lambda piece: len(piece.voxels)):
        if None in piece.ends or len(piece.voxels) >= longest:
            continue
        ends = frozenset(piece.ends)
        leads_back = len(ends) == 1 and arms[next(iter(ends))] > 2  # type: ignore[index]
        if leads_back or ends in shorter:
            handles.append(piece)
        shorter.add(ends)
    return handles


def _beside_the_way(found: Pieces, shape: Vec) -> Integers:
    """Return the branch points that are not on the way between the two arms that meet there."""
    ends: dict[int, list[int]] = {}
    for piece in found.pieces:
        for group, voxel in zip(piece.ends, piece.voxels[[0, -1]].tolist(), strict=True):
            if group is not None:
                ends.setdefault(group, []).append(voxel)
    pairs = {group: pair for group, pair in ends.items() if len(pair) == 2}
    members: dict[int, set[int]] = {group: set() for group in pairs}
    for voxel, group in zip(found.branch_voxels.tolist(), found.groups.tolist(), strict=True):
        if group in members:
            members[group].add(voxel)
    beside = [
        members[group] - shortest_way(pair[0], pair[1], members[group], neighbour_steps(shape))
        for group, pair in pairs.items()
    ]
    return np.array(sorted(set().union(*beside)), np.int64)


def shortest_way(start: int, end: int, allowed: set[int], steps: list[int]) -> set[int]:
    """Return the voxels between two others on the shortest way through allowed ones.

    Examples
    --------
    >>> shortest_way(0, 3, {1, 2, 7}, [-1, 1])
    {1, 2}
    """
    came_from = {start: start}
    layer = [start]
    while layer and end not in came_from:
        reached = []
        for voxel in layer:
            for step in steps:
                ahead = voxel + step
                if ahead not in came_from and (ahead in allowed or ahead == end):
                    came_from[ahead] = voxel
                    reached.append(ahead)
        layer = reached
    way: set[int] = set()
    voxel = came_from.get(end, start)
    while voxel != start:
        way.add(voxel)
        voxel = came_from[voxel]
    return way


def _bridges(found: Pieces, longest: int) -> list[Piece]:
    """Return short pieces between two branch points that both have two other arms."""
    arms = found.n_arms()
    return [
        piece
        for piece in found.pieces
        if piece.is_bridge
        and len(piece.voxels) < longest
        and all(arms[end] > 2 for end in piece.ends if end is not None)
    ]
