"""Ordered voxels to a smooth curve, and equally spaced points on it.

The voxels of a skeleton jump by whole voxels about the true centreline and follow the roughness of
the mask. A curve through all of them would be too long (a diagonal step counts 1.7) and its
tangents would wobble. So each coordinate is a natural cubic smoothing spline of the chord length,
with the penalty (w / 2 pi)^4 on the squared second derivative: waves of length w are halved,
shorter ones vanish (their amplitude falls with the fourth power). Voxels that lie off the first
fits count less in the next (Cauchy weights). Points on straight lines bridge gaps and hardly count;
loops are fitted with a part of the loop repeated on both sides.

Points are placed by arc length. The remainder of an open curve is shared by its two ends, so that
the points are the same whichever way it is walked; on a loop the step is the nearest to the wanted
one that divides the length.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .link import Line

__all__ = ["Curve", "fit_curve", "resample"]

Floats = np.ndarray[Any, np.dtype[np.float64]]

_SAMPLES_PER_VOXEL = 10
_N_FITS = 4
_BRIDGE_WEIGHT = 1e-3


@dataclass(frozen=True)
class Curve:
    """A densely sampled curve.

    Examples
    --------
    >>> from deepict_dask.filaments.link import Line
    >>> round(fit_curve(Line(np.array([[0.0, 0, x] for x in range(11)]))).length, 6)
    10.0
    """

    points: Floats
    """(n, 3), zyx, voxels."""
    tangents: Floats
    """(n, 3), zyx, unit vectors."""
    arc: Floats
    """(n,) distance from the first point along the curve, voxels."""
    closed: bool = False

    @property
    def length(self) -> float:
        """Length in voxels."""
        return float(self.arc[-1])


def fit_curve(line: Line, wave: float = 30.0) -> Curve:
    """Fit a smooth curve to ordered points.

    Parameters
    ----------
    line
        At least 5 points.
    wave
        Length of the waves that are halved, voxels.
    """
    points, weights = _bridged(line)
    chord = _chords(points)
    first, last = 0.0, float(chord[-1])
    if line.closed:
        points, weights, chord = _unrolled(points, weights, chord, wave)
    splines = _robust_fit(chord, points, weights, wave)
    at = np.linspace(first, last, max(2, math.ceil(last * _SAMPLES_PER_VOXEL) + 1))
    dense, tangents = (np.stack([s(at, order) for s in splines], axis=-1) for order in (0, 1))
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    return Curve(dense, tangents, _chords(dense), line.closed)


def _chords(points: Floats) -> Floats:
    """Return the distance of each point from the first, along straight lines."""
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    return np.concatenate([[0.0], np.cumsum(steps, dtype=np.float64)])


def _bridged(line: Line) -> tuple[Floats, Floats]:
    """Return the points, with more on straight lines over gaps, and their weights."""
    points = np.vstack([line.points, line.points[:1]]) if line.closed else line.points
    parts, weights = [points[:1]], [np.ones(1)]
    for start, end in itertools.pairwise(points):
        n = max(1, round(float(np.linalg.norm(end - start))))
        parts.append(start + (end - start) * np.arange(1, n + 1)[:, None] / n)
        weights.append(np.append(np.full(n - 1, _BRIDGE_WEIGHT), 1.0))
    return np.concatenate(parts), np.concatenate(weights)


def _unrolled(
    points: Floats, weights: Floats, chord: Floats, extra: float
) -> tuple[Floats, Floats, Floats]:
    """Return a loop's points with a part of the loop repeated before and after."""
    turn = chord[-1]
    before, after = chord[:-1] > turn - extra, (chord <= extra) & (chord > 0)
    before = np.append(before, False)
    return (
        np.concatenate([points[before], points, points[after]]),
        np.concatenate([weights[before], weights, weights[after]]),
        np.concatenate([chord[before] - turn, chord, chord[after] + turn]),
    )


def _robust_fit(at: Floats, points: Floats, weights: Floats, wave: float) -> tuple[Any, ...]:
    """Return the splines z, y, x that smooth weighted points."""
    from scipy.interpolate import make_smoothing_spline

    penalty = (wave / (2 * math.pi)) ** 4
    trust = np.ones(len(points))
    for _ in range(_N_FITS):
        splines = tuple(
            make_smoothing_spline(at, axis, weights * trust, lam=penalty) for axis in points.T
        )
        off = np.linalg.norm(np.stack([s(at) for s in splines], axis=-1) - points, axis=1)
        trust = 1 / (1 + off**2)
    return splines


def resample(curve: Curve, step: float) -> tuple[Floats, Floats, Floats]:
    """Return equally spaced points, their tangents and their distances along the curve.

    Parameters
    ----------
    curve
        A curve.
    step
        Distance along the curve, voxels.

    Examples
    --------
    >>> from deepict_dask.filaments.link import Line
    >>> curve = fit_curve(Line(np.array([[0.0, 0, x] for x in range(11)])))
    >>> resample(curve, 4.0)[0][:, 2].round(6).tolist()
    [1.0, 5.0, 9.0]
    """
    if curve.closed:
        n = max(1, round(curve.length / step))
        arc = np.arange(n, dtype=np.float64) * (curve.length / n)
    else:
        n = math.floor(curve.length / step + 1e-9) + 1
        arc = np.arange(n, dtype=np.float64) * step + max(0.0, curve.length - (n - 1) * step) / 2
    points, tangents = _at(arc, curve.arc, curve.points), _at(arc, curve.arc, curve.tangents)
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    return points, tangents, arc


def _at(arc: Floats, samples: Floats, vectors: Floats) -> Floats:
    """Return vectors at distances along a curve, between the samples."""
    return np.stack([np.interp(arc, samples, axis) for axis in vectors.T], axis=-1)
