"""Does a tomogram have the spectrum that a network was trained with? A look at a few cubes of it.

1. At most 27 cubes of up to 64 voxels are spread over the tomogram; each loses its mean and is
   tapered (Hann), so that what crosses its faces does not leak into high frequencies.
2. The power of all cubes is averaged at each frequency in 1/Å. What equalization should have left
   there is the target, less what its low-pass filter takes.
3. Both are compared in up to 8 bands, each as wide in log frequency as the others, on a free scale:
   grey values do not count. Below 3 periods per cube nothing is said. Amplitudes below 5 % of the
   target's largest count as that much, since of what a filter removed only leakage is left.
4. The *departure* is the root mean square, over the bands, of the log ratio, as a factor: 1 is the
   same shape. Above `NOT_EQUALIZED` the tomogram was not equalized to this target.

A whole tomogram's transform would be exact; this takes a second and 20 MB whatever its size.
"""

from __future__ import annotations

from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.geometry import Box
from .gain import Gain, low_pass
from .spectrum import RadialKnots, amplitude_sums, means_at_knots

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..core.geometry import Vec
    from ..core.spectrum import Spectrum

__all__ = ["NOT_EQUALIZED", "departure", "expected_amplitude", "local_amplitude", "sample_boxes"]

Array = Any

NOT_EQUALIZED = 1.4
"""Departures above this are told: equalized cells have 1.02 to 1.1 (`docs/messages.md`)."""
_EDGE = 64
_CUBES_PER_AXIS = 3
_LEAST_EDGE = 16
_LOWEST_PERIODS = 3
_N_BANDS = 8
_FLOOR = 0.05


def sample_boxes(shape: Vec) -> list[Box]:
    """Return the cubes to look at, all of one shape; none where an axis is too short.

    Parameters
    ----------
    shape
        Voxels of the tomogram, zyx.

    Examples
    --------
    >>> len(sample_boxes((464, 928, 928))), sample_boxes((128, 64, 40))[0].shape
    (27, (64, 64, 40))
    >>> sample_boxes((8, 64, 64))
    []
    """
    if min(shape) < _LEAST_EDGE:
        return []
    edges = [min(_EDGE, n) for n in shape]
    starts = [_starts(n, edge) for n, edge in zip(shape, edges, strict=True)]
    return [
        Box((z, y, x), (z + edges[0], y + edges[1], x + edges[2])) for z, y, x in product(*starts)
    ]


def _starts(n: int, edge: int) -> list[int]:
    """Return where cubes begin along an axis: in the middles of its parts, without overlap."""
    parts = min(_CUBES_PER_AXIS, n // edge)
    return [(2 * i + 1) * n // (2 * parts) - edge // 2 for i in range(parts)]


def local_amplitude(cubes: Iterable[Array], knots: RadialKnots) -> Array:
    """Return the root mean square amplitude of some cubes at each knot.

    Parameters
    ----------
    cubes
        zyx arrays, all of the knots' shape and any real type.
    knots
        Frequencies of one cube.

    Returns
    -------
    amplitude
        float64, one per knot, on a scale of its own.

    Examples
    --------
    >>> noise = np.random.default_rng(0).normal(size=(32, 32, 32))
    >>> amplitude = local_amplitude([noise], RadialKnots(noise.shape, 10.0))
    >>> bool(np.ptp(amplitude[3:16]) < 0.3 * amplitude[3:16].mean())
    True
    """
    taper = _taper(knots.shape)
    sums: Array = 0.0
    for cube in cubes:
        voxels = np.asarray(cube, np.float32)
        with np.errstate(invalid="ignore", over="ignore"):  # of infinite voxels, refused later
            half = np.fft.rfftn((voxels - voxels.mean(dtype=np.float64)) * taper)
            sums = sums + amplitude_sums(half * half.conj(), knots)
    return np.sqrt(means_at_knots(np.asarray(sums))[0])


def _taper(shape: Vec) -> Array:
    """Return a Hann window over a cube, float32."""
    z, y, x = (np.hanning(n + 2)[1:-1].astype(np.float32) for n in shape)
    return z[:, None, None] * y[:, None] * x


def expected_amplitude(
    target: Spectrum, frequency_per_angstrom: Array, *, cutoff: float = 0, smoothing: float = 0
) -> Array:
    """Return the amplitudes that equalization leaves, at some frequencies.

    Parameters
    ----------
    target
        With frequencies in 1/Å.
    frequency_per_angstrom
        Where.
    cutoff, smoothing
        Of its low-pass filter in 1/Å; 0 for none.

    Examples
    --------
    >>> from deepict_dask.core.spectrum import Spectrum
    >>> target = Spectrum((4.0, 2.0), (0.01, 0.02))
    >>> expected_amplitude(target, np.array([0.01, 0.015, 0.03]), cutoff=0.012).tolist()
    [4.0, 0.0, 0.0]
    """
    known = target.frequency_per_angstrom
    assert known is not None  # the caller's to look at
    wanted = np.interp(frequency_per_angstrom, known, target.intensity, right=0)
    gain = Gain(frequency_per_angstrom, np.ones_like(frequency_per_angstrom))
    return wanted * low_pass(gain, cutoff, smoothing).values if cutoff else wanted


def departure(amplitude: Array, expected: Array, knots: RadialKnots) -> float | None:
    """Return by which factor the shapes of two spectra differ, 1 for not at all.

    Parameters
    ----------
    amplitude, expected
        What was found, and what was to be found, at each knot.
    knots
        Of the cubes.

    Returns
    -------
    factor
        None where there is nothing to compare, as of an empty tomogram.

    Examples
    --------
    >>> knots = RadialKnots((32, 32, 32), 10.0)
    >>> flat, steep = np.ones(knots.n_knots), 1 / np.arange(1, knots.n_knots + 1)
    >>> round(departure(5 * flat, flat, knots), 6), departure(steep, flat, knots) > 1.5
    (1.0, True)
    """
    bands = _bands(knots)
    found, wanted = (
        np.array([np.sqrt(np.mean(values[band] ** 2)) for band in bands])
        for values in (amplitude, expected)
    )
    if len(bands) < 2 or not found.max() > 0 or not wanted.max() > 0:
        return None
    heard = wanted > _FLOOR * wanted.max()
    if not (found[heard] > 0).all():
        return float("inf")
    found = found / np.exp(np.mean(np.log(found[heard] / wanted[heard])))
    least = _FLOOR * wanted.max()
    ratio = np.log(np.maximum(found, least) / np.maximum(wanted, least))
    return float(np.exp(np.sqrt(np.mean(ratio**2))))


def _bands(knots: RadialKnots) -> list[slice]:
    """Return the knots of each band, from 3 periods in the longest edge to Nyquist."""
    last = max(knots.shape) // 2
    first = -(-_LOWEST_PERIODS * max(knots.shape) // min(knots.shape))
    edges = np.unique(np.rint(np.geomspace(first, last + 1, _N_BANDS + 1)).astype(int))
    return [slice(a - 1, b - 1) for a, b in pairwise(edges)]
