"""DeePiCt's spectrum and filter, exactly as published, in a quarter of its memory.

Its models were trained on volumes filtered like this (DeePiCt 4a966293, ``spectrum_filter``), so
its deviations from the paper are part of the models' input:

* Radii are counted in voxels of the Fourier box, not in 1/Å, and from a centre that lies half a
  voxel off DC on axes of odd length.
* The spectrum has one place per shell of ``r_max / (longest / 2)`` voxels, the gain is used with
  one place per voxel: a factor of the square root of 3 for cubes.
* The kernel of an even axis is mirrored between two voxels, so it is not Hermitian and the result
  is complex; its modulus is written.
* The spectrum is shifted and never shifted back, which changes phases only, so not the modulus.

How the same numbers come from half spectra: a kernel K is the sum of an even part, whose product
with the volume's transform belongs to a real volume a, and an odd part, whose product belongs to
an imaginary volume i b. The result is sqrt(a^2 + b^2). Without even axes b is zero.

Precision: the mean is taken out before and put back after, so complex64 suffices for the volume:
at most 3e-6 of its standard deviation on DeePiCt's own output and on 540 random volumes, like
complex128 at twice the memory. It passes 1e-5 only where the volume's own amplitudes span more
than 5e5, as after a strong low-pass filter. The spectrum file is measured in complex128.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit

from ..backend import namespace_of
from ..core.geometry import Box
from .deepict_shells import (
    corner_term,
    has_corner_shell,
    has_odd_part,
    shell_means,
    shell_sums,
    times_kernel,
)
from .fourier import (
    half_bytes,
    inverse_planes,
    require_contrast,
    slab_bytes,
    slabs,
    subtract_and_divide,
    to_half_spectrum,
    to_planes,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..core.geometry import Vec

__all__ = [
    "compat_bytes",
    "deepict_equalize",
    "deepict_gain",
    "deepict_spectrum",
    "result_like",
    "to_unit_range",
    "volume_bytes",
]

Array = Any


def deepict_spectrum(volume: Array) -> np.ndarray[Any, Any]:
    """Return DeePiCt's radial spectrum of a volume.

    Parameters
    ----------
    volume
        zyx array of any real type; it is not changed.

    Returns
    -------
    intensity
        float64 of length ``max(shape) // 2`` (one less where rounding merges the last two
        shells), without the shell that holds DC.

    Raises
    ------
    VoxelValueError
        If voxels are not finite, or all equal.

    Examples
    --------
    >>> volume = np.random.default_rng(0).normal(size=(8, 10, 12)).astype("float32")
    >>> deepict_spectrum(volume).shape
    (6,)
    """
    prepare, _ = _unit_range(volume)
    return shell_means(shell_sums(to_half_spectrum(volume, prepare, "complex128"), volume.shape))


def deepict_gain(
    target: np.ndarray[Any, Any],
    own: np.ndarray[Any, Any],
    cutoff: float = 0,
    smoothing: float = 0,
) -> np.ndarray[Any, Any]:
    """Return DeePiCt's gain by place.

    Parameters
    ----------
    target, own
        Spectra by place; the target is cut, or padded with zeros, to the length of the other.
    cutoff
        Place from which frequencies are removed; 0 removes none.
    smoothing
        Width of the removal in places; without a cutoff it does nothing.

    Returns
    -------
    gain
        float64, as long as ``own``; 0 where ``own`` is 0 (DeePiCt divides by zero there).

    Examples
    --------
    >>> deepict_gain(np.ones(2), np.full(4, 2.0)).tolist()
    [0.5, 0.5, 0.0, 0.0]
    """
    n = len(own)
    padded = np.zeros(n)
    padded[: len(target)] = target[:n]
    gain = np.divide(padded, own, out=np.zeros(n), where=own > 0)
    if not cutoff:
        return gain
    if not smoothing:
        gain[math.ceil(cutoff) :] = 0
        return gain
    slope = n / smoothing
    offset = 2 * slope * ((cutoff - n / 2) / n)
    return gain * expit(offset - np.linspace(-slope, slope, n))


def deepict_equalize(
    volume: Array,
    target: np.ndarray[Any, Any],
    cutoff: float = 0,
    smoothing: float = 0,
    dtype: str = "complex64",
) -> Array:
    """Return the volume that DeePiCt's ``match_spectrum`` writes.

    Parameters
    ----------
    volume
        zyx array of any real type; overwritten if it is float32.
    target
        Spectrum by place.
    cutoff, smoothing
        As in `deepict_gain`, in places.
    dtype
        Precision of the transform.

    Returns
    -------
    equalized
        float32 zyx, at least 0.

    Raises
    ------
    VoxelValueError
        If voxels are not finite, or all equal.

    Examples
    --------
    >>> volume = np.random.default_rng(0).normal(size=(8, 10, 12)).astype("float32")
    >>> out = deepict_equalize(volume, deepict_spectrum(volume))
    >>> out.shape, out.dtype, bool(out.min() >= 0)
    ((8, 10, 12), dtype('float32'), True)
    """
    shape = volume.shape
    prepare, mean = _unit_range(volume)
    half = to_half_spectrum(volume, prepare, dtype)
    own = shell_means(shell_sums(half, shape))
    if has_corner_shell(own, shape):
        own[-1] = _corner_modulus(volume, prepare)
    gain = deepict_gain(target, own, cutoff, smoothing)
    out = result_like(volume)
    del volume
    xp = namespace_of(half)
    two_parts = has_odd_part(shape)
    even = times_kernel(half, xp.empty_like(half) if two_parts else half, gain, shape, parity=1)
    for where, slab in inverse_planes(to_planes(even), shape):
        out[where] = slab
        out[where] += np.float32(mean * gain[0])
    del even
    if not two_parts:
        return xp.abs(out, out=out)
    odd = times_kernel(half, half, gain, shape, parity=-1)
    for where, slab in inverse_planes(to_planes(odd), shape):
        out[where] = xp.hypot(out[where], slab)
    return out


def compat_bytes(shape: Vec, dtype: str = "float32") -> int:
    """Return the peak bytes of `deepict_equalize`, its input included.

    12 bytes a voxel for float32 (8 where all axes are odd): the voxels, which become the result,
    and one half spectrum for each part of the kernel. DeePiCt needs 45 to 55.

    Examples
    --------
    >>> round(compat_bytes((512, 512, 512)) / 512**3, 1)
    12.1
    """
    n_halves = 2 if has_odd_part(shape) else 1
    return volume_bytes(shape, dtype) + n_halves * half_bytes(shape) + slab_bytes(shape)


def volume_bytes(shape: Vec, dtype: str) -> int:
    """Return the bytes of the voxels, and of a float32 result where they cannot become it."""
    itemsize = np.dtype(dtype).itemsize
    return math.prod(shape) * (itemsize if dtype == "float32" else itemsize + 4)


def result_like(volume: Array) -> Array:
    """Return the volume itself as the place of the float32 result, or a new array."""
    # CuPy's flags have no writeable: its arrays always are.
    if volume.dtype == np.float32 and getattr(volume.flags, "writeable", True):
        return volume
    return namespace_of(volume).empty(volume.shape, np.float32)


def _unit_range(volume: Array) -> tuple[Callable[[Array], Array], float]:
    """Return `to_unit_range` of a volume's own mean and range."""
    mean, _ = require_contrast(volume)
    return to_unit_range(mean, float(volume.min()), float(volume.max()))


def to_unit_range(
    mean: float, minimum: float, maximum: float
) -> tuple[Callable[[Array], Array], float]:
    """Return a function that maps a slab to 0..1 less its mean, and that mean.

    The rounding of DeePiCt's two float32 steps is repeated; the mean is only DC, which is in no
    shell of the spectrum and is put back by hand.

    Examples
    --------
    >>> prepare, mean = to_unit_range(2.0, 1.0, 5.0)
    >>> mean, prepare(np.array([1, 5])).tolist()
    (0.25, [-0.25, 0.75])
    """
    low = np.float32(minimum)
    span = np.float32(maximum) - low
    unit_mean = (mean - float(low)) / float(span)
    to_unit = subtract_and_divide(low, span)

    def prepare(slab: Array) -> Array:
        # In float64 the subtraction is exact, so that a complex128 transform loses nothing.
        return to_unit(slab).astype(np.float64) - unit_mean

    return prepare, unit_mean


def _corner_modulus(volume: Array, prepare: Callable[[Array], Array]) -> float:
    """Return the modulus at the corner of the Fourier box, in complex128."""
    shape = volume.shape
    planes = slabs(shape[0], shape[1] * shape[2])
    boxes = [Box((where.start, 0, 0), (where.stop, *shape[1:])) for where in planes]
    terms = (corner_term(prepare(volume[box.slices]), box, shape) for box in boxes)
    return float(abs(sum(terms, start=0j)))
