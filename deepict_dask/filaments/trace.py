"""Skeleton voxels to filaments: prune, cut, link, fit, drop the short ones.

All steps here see the whole skeleton, which is small, and none sees the chunks.

The polarity of a filament cannot be seen in a mask. Each one points along its main axis: the axis
of the volume on which its two ends lie furthest apart. It is arbitrary, but the same for all points
of a filament and for any chunks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .centreline import Curve, fit_curve
from .graph import cut_pieces, decode, prune
from .link import Line, link_lines

if TYPE_CHECKING:
    from ..core.geometry import Vec
    from .settings import VoxelLengths

__all__ = ["Filament", "centrelines"]

Integers = np.ndarray[Any, np.dtype[np.int64]]

_MIN_VOXELS = 5
"""A smoothing spline needs five points; shorter pieces are noise."""


@dataclass(frozen=True)
class Filament:
    """A filament's centreline."""

    curve: Curve
    number: int
    """Counted from 1, by the first voxel in raster order."""


def centrelines(
    voxels: Integers,
    shape: Vec,
    lengths: VoxelLengths,
    *,
    max_angle_degrees: float = 20.0,
) -> list[Filament]:
    """Return the filaments of a skeleton.

    Parameters
    ----------
    voxels
        Numbers of the skeleton's voxels, sorted (see `deepict_dask.filaments.graph.encode`).
    shape
        Of the volume.
    lengths
        Radius, gap, smoothing and shortest length in voxels.
    max_angle_degrees
        Largest bend at a link.

    Examples
    --------
    >>> from deepict_dask.filaments.graph import encode
    >>> from deepict_dask.filaments.settings import VoxelLengths
    >>> voxels = encode([[2, 2, x] for x in range(40)], (5, 5, 40))
    >>> [round(f.curve.length, 3) for f in centrelines(voxels, (5, 5, 40), VoxelLengths())]
    [39.0]
    """
    pieces = cut_pieces(prune(voxels, shape, lengths.radius), shape).pieces
    lines = [
        Line(decode(piece.voxels, shape).astype(np.float64), piece.closed)
        for piece in pieces
        if len(piece.voxels) >= _MIN_VOXELS
    ]
    linked = link_lines(lines, lengths.max_gap, max_angle_degrees, lengths.radius)
    curves = [fit_curve(_oriented(line), lengths.smoothing) for line in linked]
    kept = [curve for curve in curves if curve.length >= lengths.min_length]
    return [Filament(curve, number) for number, curve in enumerate(kept, 1)]


def _oriented(line: Line) -> Line:
    """Return an open line so that it points along its main axis."""
    if line.closed:
        return line
    way = line.points[-1] - line.points[0]
    forward = way[np.argmax(np.abs(way))] >= 0
    return line if forward else Line(np.ascontiguousarray(line.points[::-1]))
