"""The radial amplitude spectrum of a volume, estimated from a few boxes of it.

1. Up to 3 x 2 x 2 boxes of at most 128 voxels a side, evenly over the volume.
2. Each loses its mean and is multiplied by a Hann window, so that its faces do not count as edges.
3. Amplitudes are averaged by frequency and divided by the standard deviation of the voxels: the
   unit is that of `deepict_dask.equalization.spectrum`, in which white noise has 0.886.

The transform of a whole tomogram would take minutes and its memory several times; for a picture in
a report, twelve boxes are enough.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.geometry import Box, Vec, as_vec
from ..engine.patience import read_patiently

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..core.spectrum import Spectrum
    from ..core.volume import VolumeReader

__all__ = ["Curve", "estimated_spectrum", "scaled_target"]

Array = np.ndarray[Any, Any]
_EDGE = 128
_BOXES = (3, 2, 2)


@dataclass(frozen=True)
class Curve:
    """Amplitudes by rising frequency."""

    frequency: tuple[float, ...]
    """In 1/Å; in 1/voxel where the voxel spacing is not known."""
    amplitude: tuple[float, ...]
    is_physical: bool = True
    """Whether frequencies are in 1/Å."""


def estimated_spectrum(reader: VolumeReader) -> Curve | None:
    """Estimate a volume's spectrum up to Nyquist; None where no box has contrast.

    Raises
    ------
    DeepictError
        The volume cannot be read.

    Examples
    --------
    >>> from deepict_dask.io.array import ArrayReader
    >>> noise = np.random.default_rng(0).normal(size=(40, 64, 64)).astype("float32")
    >>> curve = estimated_spectrum(ArrayReader(noise, voxel_spacing_angstrom=10.0))
    >>> curve.frequency[-1], round(float(np.mean(curve.amplitude[8:])), 2)
    (0.05, 0.89)
    """
    edge = as_vec([min(_EDGE, n) for n in reader.header.shape])
    n_knots = max(edge) // 2
    if n_knots < 1:
        return None
    window = _window(edge)
    knot = _knots(edge, max(edge), n_knots)
    sums, power, n_boxes = np.zeros(n_knots + 2), 0.0, 0
    for box in _boxes(reader.header.shape, edge):
        voxels = read_patiently(reader, box).astype(np.float32)
        voxels -= voxels.mean()
        variance = float(np.mean(voxels * voxels, dtype=np.float64))
        if not (math.isfinite(variance) and variance > 0):
            continue
        amplitude = np.abs(np.fft.rfftn(voxels * window))
        sums += np.bincount(knot, weights=amplitude.ravel(), minlength=n_knots + 2)
        power, n_boxes = power + variance, n_boxes + 1
    if n_boxes == 0:
        return None
    counts = np.bincount(knot, minlength=n_knots + 2)[1:-1]
    unit = n_boxes * math.sqrt(power / n_boxes) * math.sqrt(float(np.sum(window * window)))
    means = sums[1:-1] / np.maximum(counts, 1) / unit
    spacing = reader.header.voxel_spacing_angstrom
    frequency = np.arange(1, n_knots + 1) / (max(edge) * (spacing or 1.0))
    known = counts > 0
    return Curve(
        tuple(frequency[known].tolist()), tuple(means[known].tolist()), spacing is not None
    )


def _window(edge: Vec) -> Array:
    """Return a Hann window that is nowhere zero."""
    z, y, x = (np.hanning(n + 2)[1:-1].astype(np.float32) for n in edge)
    window: Array = z[:, None, None] * y[:, None] * x
    return window


def _knots(edge: Vec, longest: int, n_knots: int) -> Array:
    """Return the knot of each voxel of the half spectrum; 0 is DC, the last is beyond Nyquist."""
    z, y, x = np.fft.fftfreq(edge[0]), np.fft.fftfreq(edge[1]), np.fft.rfftfreq(edge[2])
    radius = np.sqrt(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2) * longest
    return np.minimum(np.rint(radius).astype(np.int64), n_knots + 1).ravel()


def _boxes(shape: Vec, edge: Vec) -> Iterator[Box]:
    """Yield boxes evenly over a volume, fewer where they would overlap."""
    starts = []
    for size, side, n in zip(shape, edge, _BOXES, strict=True):
        count = min(n, size // side)
        gap = (size - count * side) / (count + 1)
        starts.append([round(gap * (i + 1) + side * i) for i in range(count)])
    for start in itertools.product(*starts):
        yield Box(as_vec(start), as_vec([a + b for a, b in zip(start, edge, strict=True)]))


def scaled_target(target: Spectrum, to: Curve) -> Curve | None:
    """Return a target spectrum at the level of another curve: only its shape counts.

    Parameters
    ----------
    target
        With frequencies in 1/Å; None is returned for one by place only.
    to
        The curve at whose level it is drawn; frequencies in 1/Å.

    Examples
    --------
    >>> from deepict_dask.core.spectrum import Spectrum
    >>> curve = Curve((0.01, 0.02, 0.03), (4.0, 2.0, 1.0))
    >>> scaled_target(Spectrum((8.0, 4.0), (0.01, 0.02)), curve).amplitude
    (4.0, 2.0)
    """
    if target.frequency_per_angstrom is None:
        return None
    frequency = np.asarray(target.frequency_per_angstrom)
    wanted = np.asarray(target.intensity)
    at = np.asarray(to.frequency)
    common = (at >= frequency[0]) & (at <= frequency[-1])
    ours = np.interp(at[common], frequency, wanted)
    theirs = np.asarray(to.amplitude)[common]
    positive = (ours > 0) & (theirs > 0)
    if not positive.any():
        return None
    scale = math.exp(float(np.mean(np.log(theirs[positive] / ours[positive]))))
    shown = frequency <= max(to.frequency)
    return Curve(tuple(frequency[shown].tolist()), tuple((wanted[shown] * scale).tolist()))
