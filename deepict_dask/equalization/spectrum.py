"""The strength of each frequency of a volume, in 1/Å.

1. The volume loses its mean and is divided by its standard deviation; amplitudes are divided by
   the root of the number of voxels. So white noise has amplitude 0.886 (the mean of a Rayleigh
   distribution) in any box and on any scale of grey values.
2. A frequency is a length in 1/Å, also in boxes of unequal edges: knots lie at multiples of
   1 / (longest edge), and each Fourier voxel counts for the nearest knot.
3. Knots go on beyond Nyquist into the corners of the Fourier box, so that matching a volume to its
   own spectrum changes no voxel of it.

DeePiCt's spectrum, by place instead of frequency, is in `deepict_compat`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend import namespace_of, to_host
from ..core.errors import SpacingError
from ..core.spectrum import Spectrum
from .deepict_compat import deepict_spectrum
from .fourier import (
    half_bytes,
    require_contrast,
    slab_bytes,
    slabs,
    subtract_and_divide,
    to_half_spectrum,
)

if TYPE_CHECKING:
    from ..core.geometry import Vec

__all__ = [
    "RadialKnots",
    "amplitude_sums",
    "mean_amplitude",
    "means_at_knots",
    "radial_spectrum",
    "spectrum_at_knots",
    "spectrum_bytes",
]

Array = Any


@dataclass(frozen=True)
class RadialKnots:
    """The frequencies at which a volume's spectrum is measured.

    Examples
    --------
    >>> knots = RadialKnots((4, 8, 8), 10.0)
    >>> knots.step_per_angstrom, knots.n_knots
    (0.0125, 7)
    """

    shape: Vec
    """Voxels of the volume, zyx."""
    voxel_spacing_angstrom: float

    def __post_init__(self) -> None:
        if not 0 < self.voxel_spacing_angstrom < math.inf:
            raise SpacingError(
                f"spectrum: expected a voxel spacing above 0 Å, found "
                f"{self.voxel_spacing_angstrom}; pass --voxel-spacing-angstrom"
            )

    @property
    def step_per_angstrom(self) -> float:
        """Distance of two knots in 1/Å."""
        return 1 / (max(self.shape) * self.voxel_spacing_angstrom)

    @cached_property
    def n_knots(self) -> int:
        """Knots from 1 step to the corner of the Fourier box; the mean (DC) is none."""
        corner = math.hypot(*(n // 2 / n for n in self.shape)) / self.voxel_spacing_angstrom
        return max(1, round(corner / self.step_per_angstrom))

    @property
    def frequency_per_angstrom(self) -> np.ndarray[Any, Any]:
        """The knots in 1/Å, float64."""
        return np.arange(1, self.n_knots + 1) * self.step_per_angstrom

    def frequency_of(self, planes: slice, xp: Any = np, columns: slice = slice(None)) -> Array:
        """Return the frequency of each voxel of some z planes of the half spectrum.

        Parameters
        ----------
        planes
            Slice along z.
        xp
            ``numpy`` or ``cupy``.
        columns
            Slice along x of the half spectrum.

        Returns
        -------
        frequency
            float32 zyx, in 1/Å.
        """
        spacing = self.voxel_spacing_angstrom
        n_z, n_y, n_x = self.shape
        z, y, x = (
            xp.asarray(axis * axis, dtype=np.float32)
            for axis in (
                np.fft.fftfreq(n_z, spacing)[planes],
                np.fft.fftfreq(n_y, spacing),
                np.fft.rfftfreq(n_x, spacing)[columns],
            )
        )
        return xp.sqrt(z[:, None, None] + y[:, None] + x)


def mean_amplitude(half: Array, knots: RadialKnots) -> tuple[Array, Array]:
    """Return the mean of ``abs(half)`` at each knot.

    Parameters
    ----------
    half
        Half spectrum of a volume, as `fourier.to_half_spectrum` makes it.
    knots
        Where to measure; its shape is the volume's.

    Returns
    -------
    amplitude
        float64, NumPy, one per knot; knots without a voxel take their neighbours' values.
    n_voxels
        float64, Fourier voxels of the full spectrum at each knot.
    """
    return means_at_knots(amplitude_sums(half, knots))


def amplitude_sums(half: Array, knots: RadialKnots, columns: slice = slice(None)) -> Array:
    """Return sums of ``abs(half)``, and numbers of Fourier voxels, at each knot.

    Parameters
    ----------
    half
        Some columns of the half spectrum of a volume.
    knots
        Where to measure; its shape is the volume's.
    columns
        Which columns these are.

    Returns
    -------
    sums
        float64, NumPy, of shape (2, knots + 1): amplitudes and voxels; the first knot is DC.
    """
    xp = namespace_of(half)
    sums = xp.zeros((2, knots.n_knots + 1))
    twice = _weight_of_columns(knots.shape[2], xp)[columns]
    for planes in slabs(half.shape[0], half.shape[1] * half.shape[2], half):
        frequency = knots.frequency_of(planes, xp, columns)
        place = xp.rint(frequency / np.float32(knots.step_per_angstrom))
        place = xp.minimum(place.astype(np.int32), knots.n_knots).ravel()
        weight = xp.broadcast_to(twice, half[planes].shape)
        sums[1] += xp.bincount(place, weights=weight.ravel(), minlength=sums.shape[1])
        weight = xp.abs(half[planes]) * weight
        sums[0] += xp.bincount(place, weights=weight.ravel(), minlength=sums.shape[1])
    return to_host(sums)


def radial_spectrum(
    volume: Array, voxel_spacing_angstrom: float | None, *, compat: bool = False
) -> Spectrum:
    """Measure the radial amplitude spectrum of a volume.

    Parameters
    ----------
    volume
        zyx array of any real type, NumPy or CuPy; it is not changed.
    voxel_spacing_angstrom
        Edge of a voxel in Å; not used with ``compat``.
    compat
        Measure by place, as DeePiCt does.

    Raises
    ------
    SpacingError
        If the spacing is missing or not above 0.
    VoxelValueError
        If voxels are not finite, or all equal.

    Examples
    --------
    >>> noise = np.random.default_rng(0).normal(size=(16, 20, 24)).astype("float32")
    >>> spectrum = radial_spectrum(noise, 10.0)
    >>> len(spectrum), round(float(np.mean(spectrum.intensity[6:14])), 1)
    (21, 0.9)
    """
    if compat:
        return Spectrum(tuple(deepict_spectrum(volume).tolist()), shape=volume.shape)
    if voxel_spacing_angstrom is None:
        raise SpacingError(
            "spectrum: expected a voxel spacing, found none in the file; pass "
            "--voxel-spacing-angstrom"
        )
    mean, std = require_contrast(volume)
    knots = RadialKnots(volume.shape, voxel_spacing_angstrom)
    half = to_half_spectrum(volume, subtract_and_divide(mean, std))
    return spectrum_at_knots(mean_amplitude(half, knots)[0], knots)


def spectrum_at_knots(amplitude: Array, knots: RadialKnots) -> Spectrum:
    """Return mean amplitudes as a spectrum, in units of white noise."""
    scaled = amplitude / math.sqrt(math.prod(knots.shape))
    return Spectrum(
        tuple(scaled.tolist()),
        tuple(knots.frequency_per_angstrom.tolist()),
        knots.shape,
        knots.voxel_spacing_angstrom,
    )


def spectrum_bytes(shape: Vec, *, dtype: str = "float32", compat: bool = False) -> int:
    """Return the peak bytes of `radial_spectrum`, its input included.

    Parameters
    ----------
    shape
        Voxels of the volume, zyx.
    dtype
        NumPy name of the volume's type.
    compat
        As in `radial_spectrum`.

    Examples
    --------
    >>> round(spectrum_bytes((512, 512, 512)) / 512**3, 1)
    8.1
    """
    voxels = math.prod(shape) * np.dtype(dtype).itemsize
    return voxels + half_bytes(shape, "complex128" if compat else "complex64") + slab_bytes(shape)


def _weight_of_columns(n_x: int, xp: Any) -> Array:
    """Return 2 for columns that stand for themselves and their conjugates, 1 for the others."""
    weight = np.full(n_x // 2 + 1, 2.0, np.float32)
    weight[0] = 1
    if n_x % 2 == 0:
        weight[-1] = 1
    return xp.asarray(weight)


def means_at_knots(sums: Array) -> tuple[Array, Array]:
    """Divide sums by counts, filling knots that no voxel is near to.

    Parameters
    ----------
    sums
        What `amplitude_sums` returned for all columns together.

    Returns
    -------
    amplitude, n_voxels
        As `mean_amplitude` returns them.

    Examples
    --------
    >>> amplitude, n_voxels = means_at_knots(np.array([[9.0, 4.0, 0.0, 6.0], [1, 2, 0, 1]]))
    >>> amplitude.tolist(), n_voxels.tolist()
    ([2.0, 4.0, 6.0], [2.0, 0.0, 1.0])
    """
    amplitudes, counts = sums[:, 1:]
    known = np.flatnonzero(counts)
    if known.size == 0:
        return np.zeros_like(amplitudes), counts
    means = amplitudes[known] / counts[known]
    return np.interp(np.arange(counts.size), known, means), counts
