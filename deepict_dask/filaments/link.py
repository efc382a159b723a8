"""Pieces of line to filaments: join ends that continue one another.

1. An end looks outwards along the straight line through its last voxels: a diameter's worth, but
   without the very last, which bend towards whatever touches the filament there.
2. Two ends are partners if they are near enough, look at each other within the largest angle, and
   each lies on the other's line (within that angle, give or take two voxels: over a gap of a few
   voxels the rounding of positions is larger than any angle).
3. The pair with the smallest cost is joined first; an end is joined once. So an end gets its best
   partner if it is that one's best, too; else it waits for what is left.

A piece whose own ends are partners is a ring.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Line", "link_lines"]

Points = np.ndarray[Any, np.dtype[np.float64]]

_MIN_END_VOXELS = 12
"""Voxels at an end that give its direction, at least."""
_SLACK = 2.0
"""Voxels by which an end may miss another's line, whatever the angle."""


@dataclass(frozen=True)
class Line:
    """Ordered points of a filament."""

    points: Points
    """(n, 3), zyx, voxels."""
    closed: bool = False


@dataclass(frozen=True)
class _Ends:
    """The ends of all lines: numbers 2 i and 2 i + 1 are the first and last point of line i."""

    points: Points
    outward: Points
    """Unit vectors that look out of the line."""


def end_direction(points: Points, radius: int = 1) -> Points:
    """Return the unit vector that looks out of a line at its last point.

    Parameters
    ----------
    points
        Ordered points, (n, 3).
    radius
        Half the thickness of the thickest filament: the direction is that of a diameter's worth
        of points, half a radius away from the end where the line is long enough.

    Examples
    --------
    >>> end_direction(np.array([[0.0, 0, x] for x in range(5)])).tolist()
    [0.0, 0.0, 1.0]
    """
    n, skipped = max(_MIN_END_VOXELS, 2 * radius), radius // 2
    tail = points[-n - skipped : -skipped] if 0 < skipped < len(points) - n else points[-n:]
    centred = tail - tail.mean(axis=0)
    direction = np.linalg.svd(centred, full_matrices=False)[2][0]
    if direction @ (tail[-1] - tail[0]) < 0:
        direction = -direction
    found: Points = direction / np.linalg.norm(direction) + 0.0
    return found


def link_lines(
    lines: Sequence[Line], max_gap: float, max_angle_degrees: float, radius: int = 1
) -> list[Line]:
    """Join lines whose ends continue one another.

    Parameters
    ----------
    lines
        Open and closed lines of at least 2 points.
    max_gap
        Largest distance of two ends, voxels.
    max_angle_degrees
        Largest bend.
    radius
        Half the thickness of the thickest filament, voxels.

    Returns
    -------
    list of Line
        In the order of the first line that each contains.

    Examples
    --------
    >>> a = Line(np.array([[0.0, 0, x] for x in range(8)]))
    >>> b = Line(np.array([[0.0, 0, x] for x in range(12, 20)]))
    >>> [len(line.points) for line in link_lines([a, b], max_gap=6, max_angle_degrees=20)]
    [16]
    """
    if not lines:
        return []
    ends = _ends_of(lines, radius)
    partner = _match(_candidates(lines, ends, max_gap, math.radians(max_angle_degrees)))
    joined: list[Line] = []
    seen: set[int] = set()
    for first in range(len(lines)):
        if first in seen:
            continue
        chain, closed = _chain(first, partner)
        seen.update(end // 2 for end in chain)
        parts = [lines[end // 2].points[:: 1 if end % 2 == 0 else -1] for end in chain]
        joined.append(Line(np.concatenate(parts), closed or lines[first].closed))
    return joined


def _ends_of(lines: Sequence[Line], radius: int) -> _Ends:
    pairs = [(line.points[::-1], line.points) for line in lines]
    sides = [side for pair in pairs for side in pair]
    points = np.array([side[-1] for side in sides], np.float64)
    return _Ends(points, np.array([end_direction(side, radius) for side in sides]))


def _candidates(
    lines: Sequence[Line], ends: _Ends, max_gap: float, max_angle: float
) -> list[tuple[float, int, int]]:
    """Return (cost, end, end) of all possible partners."""
    from scipy.spatial import cKDTree

    reach = max(max_gap, 2 * _SLACK)
    found = []
    for i, j in sorted(cKDTree(ends.points).query_pairs(reach)):
        if lines[i // 2].closed or lines[j // 2].closed or _is_too_short(lines, ends, i, j):
            continue
        cost = _cost(ends, i, j, reach, max_angle)
        if cost is not None:
            found.append((cost, i, j))
    return found


def _is_too_short(lines: Sequence[Line], ends: _Ends, i: int, j: int) -> bool:
    """Say whether two ends of one line are near each other because the line is short."""
    gap = float(np.linalg.norm(ends.points[i] - ends.points[j]))
    return i // 2 == j // 2 and len(lines[i // 2].points) < 3 * max(gap, _SLACK)


def _cost(ends: _Ends, i: int, j: int, reach: float, max_angle: float) -> float | None:
    """Return how bad a link would be, None where it is none."""
    bend = math.acos(float(np.clip(-ends.outward[i] @ ends.outward[j], -1, 1)))
    if bend > max_angle:
        return None
    gap = ends.points[j] - ends.points[i]
    cost = float(np.linalg.norm(gap)) / reach + bend / max(max_angle, 1e-9)
    for direction, way in ((ends.outward[i], gap), (ends.outward[j], -gap)):
        ahead = float(direction @ way)
        aside = float(np.linalg.norm(way - ahead * direction))
        allowed = _SLACK + max(ahead, 0.0) * math.tan(min(max_angle, math.radians(80)))
        if ahead < -_SLACK or aside > allowed:
            return None
        cost += aside / allowed
    return cost


def _match(candidates: list[tuple[float, int, int]]) -> dict[int, int]:
    """Return each joined end's partner, the best pairs first."""
    partner: dict[int, int] = {}
    for _, i, j in sorted(candidates):
        if i not in partner and j not in partner:
            partner[i], partner[j] = j, i
    return partner


def _chain(first: int, partner: dict[int, int]) -> tuple[list[int], bool]:
    """Return the ends at which the lines of a chain are entered, in order, and if it is a ring."""
    start = 2 * first
    while start in partner:  # go back to where the chain begins
        start = partner[start] ^ 1
        if start == 2 * first:
            break
    chain, entered = [], start
    while True:
        chain.append(entered)
        leave = entered ^ 1
        if leave not in partner:
            return chain, False
        entered = partner[leave]
        if entered == start:
            return chain, True
