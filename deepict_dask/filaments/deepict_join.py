"""Which lines the published script joins, and how.

An end's candidates are all ends of other lines within a distance whose directions agree, up to
their sign, within an angle with each other and with the line between the two ends (one of the two
suffices). An end joins if it has one candidate, whose FIRST candidate it is. Lines are then walked
in order, first from their start, then from their end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["join_lines"]

Points = np.ndarray[Any, np.dtype[np.float64]]


def join_lines(
    lines: Sequence[Points], max_distance: float, max_angle_degrees: float
) -> list[Points]:
    """Return lines joined at ends that the script takes for partners.

    Parameters
    ----------
    lines
        (n, 3) points each, at least 3.
    max_distance
        Largest distance of two ends, in the unit of the points.
    max_angle_degrees
        Largest angle.

    Examples
    --------
    >>> a = np.array([[0.0, 0, x] for x in range(0, 20, 5)])
    >>> [len(line) for line in join_lines([a, a + [0, 0, 20]], 10, 20)]
    [8]
    """
    if not lines:
        return []
    partners = _partners(*_ends(lines), max_distance, max_angle_degrees)
    joined, used = [], set()
    for first in range(len(lines)):
        if first in used:
            continue
        walked = {first}
        back = _walk(2 * first, partners, walked)
        forth = _walk(2 * first + 1, partners, walked)
        used |= walked
        parts = [_facing(lines, end, towards_end=True) for end in reversed(back)]
        parts += [lines[first], *(_facing(lines, end, towards_end=False) for end in forth)]
        joined.append(np.concatenate(parts))
    return joined


def _ends(lines: Sequence[Points]) -> tuple[Points, Points]:
    """Return the ends of all lines and unit vectors along the lines there."""
    points, vectors = [], []
    for line in lines:
        points += [line[0], line[-1]]
        vectors += [line[2] - line[0], line[-1] - line[-3]]
    directions = np.array(vectors)
    return np.array(points), directions / np.linalg.norm(directions, axis=1, keepdims=True)


def _angles(directions: Points, direction: Points) -> Points:
    """Return the angles, 0 to 90 degrees, between directions without a sign."""
    angles = np.degrees(np.arccos(np.clip(directions @ direction, -1.0, 1.0)))
    found: Points = np.where(angles > 90, 180 - angles, angles)
    return found


def _partners(
    points: Points, directions: Points, max_distance: float, max_angle: float
) -> dict[int, int]:
    """Return the one partner of each end that has one."""
    candidates = []
    for end, (point, direction) in enumerate(zip(points, directions, strict=True)):
        away = point - points
        distance = np.linalg.norm(away, axis=1)
        near = (distance <= max_distance) & (distance > 0)
        near[end ^ 1] = False
        places = np.flatnonzero(near & (_angles(directions, direction) <= max_angle))
        between = away[places] / distance[places, None]
        along = (_angles(between, direction) <= max_angle) | (
            _rowwise(between, directions[places]) <= max_angle
        )
        candidates.append(places[along])
    return {
        end: int(found[0])
        for end, found in enumerate(candidates)
        if len(found) == 1 and candidates[found[0]][0] == end
    }


def _rowwise(one: Points, other: Points) -> Points:
    """Return the angle between each two rows, 0 to 90 degrees."""
    angles = np.degrees(np.arccos(np.clip((one * other).sum(axis=1), -1.0, 1.0)))
    found: Points = np.where(angles > 90, 180 - angles, angles)
    return found


def _walk(end: int, partners: dict[int, int], walked: set[int]) -> list[int]:
    """Return the ends by which lines are entered on the way out of an end."""
    entered = []
    while end in partners and partners[end] // 2 not in walked:
        entered.append(partners[end])
        walked.add(partners[end] // 2)
        end = partners[end] ^ 1
    return entered


def _facing(lines: Sequence[Points], entered: int, *, towards_end: bool) -> Points:
    """Return a line's points in the order in which they are joined."""
    line = lines[entered // 2]
    is_end = entered % 2 == 1
    return line if is_end == towards_end else line[::-1]
