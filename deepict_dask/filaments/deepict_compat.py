"""The published script's filament coordinates, step by step (DeePiCt, additional_scripts).

1. Fill holes of any size in every slice, along z, then y, then x, each on the result of the last.
2. Erode with an n^3 cube (outside the volume is background).
3. Thin; delete every voxel with three or more neighbours; drop pieces of fewer than four voxels.
4. Order each piece: grow a line at both ends, from its first voxel, in sweeps over the voxels.
5. B-spline through all voxels, sampled every 0.1 voxel; the next point is the sample after the
   first one that is at least a step away in a straight line. The last bit is lost.
6. Drop lines with fewer than max(4, floor(min_length / (2 step))) points; join; drop the short;
   step 5 again.

What is odd there and kept: the largest distance of ends and the shortest length count voxels,
though the script's comments call the length nm; an end joins if it has one partner whose FIRST
candidate it is, even where the partner has others, so that a line may be joined twice. What is not
kept: the script fails where lines close into a ring (here the ring is cut where the walk began)
and where no line is left (here the list is empty).

This needs the whole volume at once: holes of any size and thinning are not local.
"""

from __future__ import annotations

import csv
import io
import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .deepict_join import join_lines
from .graph import cut_pieces, decode, encode
from .skeleton import foreground
from .tables import filament_columns, numbered

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from ..core.geometry import Vec

__all__ = [
    "CompatSettings",
    "compat_bytes",
    "compat_filaments",
    "compat_table",
    "dump_coordinates",
]

Array = np.ndarray[Any, Any]
Points = np.ndarray[Any, np.dtype[np.float64]]

_MIN_VOXELS = 4
_SAMPLE = 0.1
_BYTES_PER_VOXEL = 8


@dataclass(frozen=True)
class CompatSettings:
    """The numbers of one line of the script's config.

    Examples
    --------
    >>> CompatSettings(voxel_size_nm=1.348, step_nm=8).step_voxels
    5.9347181008902075
    """

    voxel_size_nm: float
    erode_voxels: int = 3
    min_length: float = 30.0
    """Voxels where lengths are compared, nm where points are counted."""
    step_nm: float = 8.0
    max_distance_voxels: float = 30.0
    max_angle_degrees: float = 20.0

    @property
    def step_voxels(self) -> float:
        """Distance of points."""
        return self.step_nm / self.voxel_size_nm

    @property
    def min_points(self) -> int:
        """Points that a line must have before joining."""
        return max(4, math.floor(self.min_length / (2 * self.step_nm)))


def compat_bytes(shape: Vec, dtype: str) -> int:
    """Return the peak bytes of thinning a whole volume."""
    return math.prod(shape) * (np.dtype(dtype).itemsize + _BYTES_PER_VOXEL)


def fill_all_holes(mask: Array) -> Array:
    """Fill what slices enclose, along z, then y, then x.

    Examples
    --------
    >>> ring = np.array([[[1, 1, 1], [1, 0, 1], [1, 1, 1]]], bool)
    >>> bool(fill_all_holes(ring).all())
    True
    """
    from scipy import ndimage

    filled = mask.copy()
    for axis in range(3):
        for plane in np.moveaxis(filled, axis, 0):
            if plane.any():
                plane[:] = ndimage.binary_fill_holes(plane)
    return filled


def _pieces(mask: Array, erode: int) -> list[Points]:
    """Return the ordered voxels of the pieces of a mask's skeleton."""
    from scipy import ndimage
    from skimage.morphology import skeletonize

    solid = ndimage.binary_erosion(fill_all_holes(mask), np.ones((erode,) * 3, bool))
    shape = (mask.shape[0], mask.shape[1], mask.shape[2])
    voxels = encode(np.argwhere(skeletonize(solid)), shape)
    return [
        decode(grown_order(piece.voxels, closed=piece.closed), shape).astype(np.float64)
        for piece in cut_pieces(voxels, shape).pieces
        if len(piece.voxels) >= _MIN_VOXELS
    ]


def grown_order(voxels: Array, *, closed: bool = False) -> Array:
    """Return the voxels of a line or loop in the order of the script.

    The script sweeps over the voxels that are left, in raster order, and puts a voxel before the
    line's front if they touch, else behind its back if they touch. Each of the two has one voxel
    that could come next, so that a sweep takes the one it meets first.

    Parameters
    ----------
    voxels
        Numbers of the voxels as they follow one another, in either direction.
    closed
        Whether the last and the first touch.

    Examples
    --------
    >>> grown_order(np.array([5, 3, 4, 9])).tolist()
    [9, 4, 3, 5]
    """
    first = int(np.argmin(voxels))
    before, after = voxels[:first][::-1].tolist(), voxels[first + 1 :].tolist()
    if closed:
        after = after + before[::-1]
        before = after[::-1]
    start = last = int(voxels[first])
    # of the two neighbours of the first voxel, the sweep meets the smaller one first
    ahead, behind = sorted(
        (deque(before), deque(after)), key=lambda side: side[0] if side else start
    )
    if not ahead or not behind:
        ahead, behind = (ahead or behind), deque()
    line, n_left = deque([start]), len(voxels) - 1
    while n_left:
        options = [(side[0], side is not ahead) for side in (ahead, behind) if side]
        last, at_back = min([o for o in options if o[0] > last] or options)
        if at_back:
            line.append(behind.popleft())
        else:
            line.appendleft(ahead.popleft())
        n_left -= 1
    return np.array(line, voxels.dtype)


def spline_points(points: Points, step: float) -> Points:
    """Return points about one step apart on the B-spline through ordered points.

    Examples
    --------
    >>> line = np.array([[0.0, 0, x] for x in range(11)])
    >>> spline_points(line, 4.0)[1:, 2].round(2).tolist()
    [4.14, 8.28]
    """
    from scipy.interpolate import splev, splprep

    spline, _ = splprep(points.T, s=0)
    samples = np.stack(splev(np.linspace(0, 1, round(length_of(points) / _SAMPLE)), spline), axis=1)
    kept, at = [samples[0]], 0
    while True:
        far = np.sqrt(((samples[at:-1] - kept[-1]) ** 2).sum(axis=1)) >= step
        if not far.any():
            return np.array(kept)
        at += int(np.argmax(far)) + 1
        kept.append(samples[at])


def length_of(points: Points) -> float:
    """Return the length of a line of points, added up from its beginning.

    Examples
    --------
    >>> length_of(np.array([[0.0, 0, 0], [0, 3, 4]]))
    5.0
    """
    steps = np.sqrt((np.diff(points, axis=0) ** 2).sum(axis=1))
    return float(np.add.accumulate(steps)[-1]) if len(steps) else 0.0


def compat_filaments(mask: Array, settings: CompatSettings) -> tuple[list[Points], float]:
    """Return the points of each filament as the published script finds them.

    Parameters
    ----------
    mask
        Whole volume, zyx; every voxel that is not 0 counts.
    settings
        Numbers of the script's config.

    Returns
    -------
    tuple
        One (n, 3) array per filament, zyx, voxels; and the total length before the last
        resampling, in voxels, as in the script's log.

    Examples
    --------
    >>> mask = np.zeros((9, 9, 60), "uint8")
    >>> mask[2:7, 2:7, 2:58] = 1
    >>> filaments, _ = compat_filaments(mask, CompatSettings(1.0, step_nm=8))
    >>> len(filaments), filaments[0][0].round(6).tolist()
    (1, [4.0, 4.0, 55.0])
    """
    pieces = _pieces(foreground(mask, 0.0), settings.erode_voxels)
    lines = [spline_points(piece, settings.step_voxels) for piece in pieces]
    lines = [line for line in lines if len(line) >= settings.min_points]
    joined = join_lines(lines, settings.max_distance_voxels, settings.max_angle_degrees)
    lengths = [length_of(line) for line in joined]
    kept = [i for i, length in enumerate(lengths) if length >= settings.min_length]
    points = [spline_points(joined[i], settings.step_voxels) for i in kept]
    return points, float(sum(lengths[i] for i in kept))


def dump_coordinates(filaments: Sequence[Points], voxel_size_nm: float) -> bytes:
    """Return the bytes of the script's coordinate list.

    Positions are x, y, z times the voxel size; the sixth value of a row, which the header does not
    name, counts the points of a filament.

    Examples
    --------
    >>> print(dump_coordinates([np.array([[1.0, 2.0, 3.0]])], 0.5).decode().splitlines()[1])
    1,1.5,1.0,0.5,1,1
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["Point ID", "X", "Y", "Z", "Filament ID"])
    number = 0
    for filament, points in enumerate(filaments, 1):
        for place, (z, y, x) in enumerate((points * voxel_size_nm).tolist(), 1):
            number += 1
            writer.writerow([number, x, y, z, filament, place])
    return text.getvalue().encode()


def compat_table(
    filaments: Sequence[Points], voxel_spacing_angstrom: float, twist_degrees: float = 0.0
) -> pd.DataFrame:
    """Return the points as a picks table, with directions from each point's neighbours.

    Examples
    --------
    >>> compat_table([np.array([[0.0, 0, 0], [4, 0, 0]])], 10.0).tilt_degrees.tolist()
    [0.0, 0.0]
    """
    import pandas as pd

    tables = [filament_columns(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0), 0, 0.0)]
    for number, points in enumerate(filaments, 1):
        ways = np.gradient(points, axis=0) if len(points) > 1 else np.array([[1.0, 0, 0]])
        tangents = ways / np.linalg.norm(ways, axis=1, keepdims=True)
        steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
        along = np.concatenate([[0.0], steps.cumsum()]) * voxel_spacing_angstrom
        tables.append(filament_columns(points, tangents, along, number, twist_degrees))
    return numbered(pd.concat(tables[1:] or tables, ignore_index=True))
