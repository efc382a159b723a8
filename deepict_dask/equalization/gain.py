"""The gain at each frequency that turns a spectrum into another one.

1. gain = target / own at the knots of the volume's own spectrum, the target interpolated linearly
   in 1/Å. Below the target's first frequency its first amplitude holds.
2. Only the shape of the target counts: the gain is scaled so that the power in the common band
   stays what it was. So boxes, voxel spacings and grey values of the two may all differ.
3. Beyond the target's last frequency nothing is known: ``zero`` removes it, as the paper says
   (a target of larger voxels has nothing there); ``hold`` keeps the last gain.
4. An optional cutoff in 1/Å, sharp or a sigmoid: 1 / (1 + exp(2 (k - cutoff) / smoothing)), the
   slope that DeePiCt's smoothing has.
5. Between knots the gain is linear; DC has gain 1, so the mean stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.special import expit

from ..backend import namespace_of
from ..core.errors import ConfigError
from .fourier import slabs

if TYPE_CHECKING:
    from ..core.spectrum import Spectrum
    from .spectrum import RadialKnots

__all__ = ["Beyond", "Gain", "apply_gain", "low_pass", "matching_gain"]

Array = Any
Beyond = Literal["zero", "hold"]
NOTHING = 1e-6
"""Own amplitudes below this part of the largest are rounding errors, which no gain may amplify."""


@dataclass(frozen=True)
class Gain:
    """A gain at knots, linear between them, held before the first and after the last.

    Examples
    --------
    >>> gain = Gain(np.array([0.25, 0.75]), np.array([1.0, 3.0]))
    >>> gain.at(np.array([0.0, 0.5, 1.0])).tolist()
    [1.0, 2.0, 3.0]
    """

    frequency_per_angstrom: Array
    """float64, rising."""
    values: Array
    """float64."""

    def at(self, frequency: Array) -> Array:
        """Return the gain at frequencies in 1/Å, NumPy or CuPy."""
        xp = namespace_of(frequency)
        return xp.interp(
            frequency, xp.asarray(self.frequency_per_angstrom), xp.asarray(self.values)
        )


def matching_gain(
    target: Spectrum,
    frequency_per_angstrom: Array,
    own: Array,
    n_voxels: Array,
    beyond: Beyond = "zero",
) -> Gain:
    """Return the gain that gives a volume the target's spectrum.

    Parameters
    ----------
    target
        A spectrum with frequencies in 1/Å.
    frequency_per_angstrom, own, n_voxels
        The volume's own knots, amplitudes there (on any scale) and Fourier voxels.
    beyond
        What happens beyond the target's last frequency.

    Raises
    ------
    ConfigError
        If the target has no frequencies, or nothing in the volume's band.

    Examples
    --------
    >>> from deepict_dask.core.spectrum import Spectrum
    >>> target = Spectrum((7.0, 7.0), (0.1, 0.2))
    >>> matching_gain(target, np.array([0.1, 0.2]), np.array([1.0, 1.0]), np.ones(2)).values
    array([1., 1.])
    """
    if target.frequency_per_angstrom is None:
        raise ConfigError(
            "equalize: expected a target with frequencies in 1/Å, found one by place only, as "
            "DeePiCt writes it; pass --compat deepict, or make it again with "
            "`deepict-dask spectrum`"
        )
    wanted = np.interp(frequency_per_angstrom, target.frequency_per_angstrom, target.intensity)
    heard = own > NOTHING * own.max()
    ratio = np.divide(wanted, own, out=np.zeros(len(own)), where=heard)
    # Half a knot of grace: the same frequency may be rounded apart in two files.
    half_a_knot = 0.5 * frequency_per_angstrom[0]
    known = frequency_per_angstrom <= target.frequency_per_angstrom[-1] + half_a_knot
    ratio *= _power_kept(ratio, np.where(known & heard, own, 0), n_voxels)
    ratio[~known] = 0 if beyond == "zero" or not known.any() else ratio[known][-1]
    return Gain(frequency_per_angstrom, ratio)


def low_pass(gain: Gain, cutoff_per_angstrom: float, smoothing_per_angstrom: float = 0) -> Gain:
    """Return the gain with high frequencies removed.

    Parameters
    ----------
    cutoff_per_angstrom
        Frequency at which half of the amplitude is left, in 1/Å.
    smoothing_per_angstrom
        Width of the sigmoid in 1/Å; 0 removes all from the cutoff on.

    Examples
    --------
    >>> low_pass(Gain(np.array([0.1, 0.2]), np.ones(2)), 0.2, 0.01).values.round(3).tolist()
    [1.0, 0.5]
    """
    past = gain.frequency_per_angstrom - cutoff_per_angstrom
    if smoothing_per_angstrom:
        kept = expit(-2 * past / smoothing_per_angstrom)
    else:
        kept = (past < 0).astype(float)
    return Gain(gain.frequency_per_angstrom, gain.values * kept)


def apply_gain(half: Array, gain: Gain, knots: RadialKnots, columns: slice = slice(None)) -> Array:
    """Multiply a half spectrum by a gain, in place; DC is multiplied by 1.

    Parameters
    ----------
    half
        Complex array, NumPy or CuPy, as `fourier.to_half_spectrum` makes it, or some columns of it.
    gain
        What to multiply by.
    knots
        Gives the frequency of each voxel.
    columns
        Which columns of the half spectrum these are.
    """
    xp = namespace_of(half)
    mean = half[0, 0, 0].copy()
    for planes in slabs(half.shape[0], half.shape[1] * half.shape[2], half):
        half[planes] *= gain.at(knots.frequency_of(planes, xp, columns)).astype(half.real.dtype)
    if not columns.start:
        half[0, 0, 0] = mean
    return half


def _power_kept(ratio: Array, own: Array, n_voxels: Array) -> float:
    """Return the factor that leaves the power of the voxels in ``own`` unchanged."""
    before = float(np.sum(n_voxels * own**2))
    after = float(np.sum(n_voxels * (ratio * own) ** 2))
    if not after > 0:
        raise ConfigError(
            "equalize: expected a target with amplitudes in the band of the tomogram, found none; "
            "check the voxel spacings of both"
        )
    return (before / after) ** 0.5
