"""Give a tomogram the spectrum of another one.

Networks learn the contrast transfer of the microscope and the filters of the reconstruction along
with the particles. Matching amplitudes to a tomogram of the training set takes much of that away
(de Teresa-Trueba et al., Nature Methods 2023). One Fourier transform, a gain per frequency, one
back: the only step that needs the whole volume.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..backend import Device, compute_on, is_on_device, to_host
from ..core.errors import ConfigError, SpacingError
from ..core.ops import SpectralOp
from .deepict_compat import compat_bytes, deepict_equalize, deepict_gain, result_like, volume_bytes
from .fourier import (
    half_bytes,
    inverse_planes,
    require_contrast,
    slab_bytes,
    subtract_and_divide,
    to_half_spectrum,
    to_planes,
)
from .gain import Beyond, Gain, apply_gain, low_pass, matching_gain
from .pieces import DeepictFilter, PhysicalFilter
from .spectrum import RadialKnots, mean_amplitude

if TYPE_CHECKING:
    from ..core.geometry import Vec
    from ..core.ops import FilteringPieces
    from ..core.spectrum import Spectrum

__all__ = ["EqualizeOp", "Mode"]

Array = Any
Mode = Literal["physical", "deepict"]


@dataclass(frozen=True)
class EqualizeOp(SpectralOp):
    """Amplitude matching of a whole volume.

    Raises
    ------
    ConfigError
        If the target is of the other mode's kind, or cutoff or smoothing are below 0.
    SpacingError
        If the mode is physical and the voxel spacing is missing.

    Examples
    --------
    >>> from deepict_dask.equalization import radial_spectrum
    >>> noise = np.random.default_rng(0).normal(size=(16, 20, 24)).astype("float32")
    >>> op = EqualizeOp(radial_spectrum(noise, 10.0), voxel_spacing_angstrom=10.0)
    >>> bool(np.allclose(op.transform(noise.copy()), noise, atol=1e-5))
    True
    """

    target: Spectrum
    voxel_spacing_angstrom: float | None = None
    """Of the volume to transform, in Å; deepict mode does not use it."""
    mode: Mode = "physical"
    """``physical``: by frequency in 1/Å. ``deepict``: as published, by place."""
    cutoff: float = 0
    """Frequency to remove from, in 1/Å (places in deepict mode); 0 removes none."""
    smoothing: float = 0
    """Width of the removal in the same unit; 0 cuts sharply."""
    beyond: Beyond = "zero"
    """What is left beyond the target's last frequency; deepict mode has ``zero``."""
    source_dtype: str = "float32"
    """NumPy name of the type that ``transform`` is given; for ``bytes_needed`` only."""
    device: str = "cpu"
    """Where arrays of the host are transformed; "cuda" must be there."""
    name: str = field(default="equalize", init=False)

    def __post_init__(self) -> None:
        if self.mode == "deepict":
            _require_places(self.target)
        else:
            _require_frequencies(self.target, self.voxel_spacing_angstrom)
        if min(self.cutoff, self.smoothing) < 0:
            raise ConfigError(
                f"equalize: expected cutoff and smoothing of at least 0, found {self.cutoff} and "
                f"{self.smoothing}; 0 switches them off"
            )

    def transform(self, volume: Array) -> Array:
        """Return the equalized volume.

        Parameters
        ----------
        volume
            zyx array of any real type, NumPy or CuPy; overwritten if it is float32.

        Returns
        -------
        equalized
            float32 zyx in the place of ``volume``, wherever it was computed. Its mean is kept, and
            its power in the target's band (deepict mode: at least 0, on a scale of its own).

        Raises
        ------
        VoxelValueError
            If voxels are not finite, or all equal.
        """
        if is_on_device(volume):
            return self._transformed(volume)
        return to_host(compute_on(Device(self.device), self.name, self._transformed, volume))

    def _transformed(self, volume: Array) -> Array:
        """Return the equalized volume, computed where the volume is."""
        if self.mode == "deepict":
            target = np.asarray(self.target.intensity)
            return deepict_equalize(volume, target, self.cutoff, self.smoothing)
        return self._by_frequency(volume)

    def gain_of(self, knots: RadialKnots, own: Array, n_voxels: Array) -> Gain:
        """Return the physical mode's gain for a volume of this spectrum.

        Parameters
        ----------
        knots
            Where the volume was measured.
        own, n_voxels
            Mean amplitude (on any scale) and Fourier voxels at each knot.
        """
        gain = matching_gain(self.target, knots.frequency_per_angstrom, own, n_voxels, self.beyond)
        return low_pass(gain, self.cutoff, self.smoothing) if self.cutoff else gain

    def gain_by_place(self, own: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the deepict mode's gain for a volume of this spectrum by place."""
        target = np.asarray(self.target.intensity)
        return deepict_gain(target, own, self.cutoff, self.smoothing)

    def in_pieces(self, shape: Vec) -> FilteringPieces:
        """Return the same filter for volumes that do not fit a worker."""
        if self.mode == "deepict":
            return DeepictFilter(shape, self.source_dtype, match=self.gain_by_place)
        spacing = self.voxel_spacing_angstrom
        assert spacing is not None  # checked when the op was made
        return PhysicalFilter(
            shape, self.source_dtype, voxel_spacing_angstrom=spacing, match=self.gain_of
        )

    def _by_frequency(self, volume: Array) -> Array:
        """Match the spectrum by frequency in 1/Å."""
        mean, std = require_contrast(volume)
        assert self.voxel_spacing_angstrom is not None  # checked when the op was made
        knots = RadialKnots(volume.shape, self.voxel_spacing_angstrom)
        half = to_half_spectrum(volume, subtract_and_divide(mean, std))
        apply_gain(half, self.gain_of(knots, *mean_amplitude(half, knots)), knots)
        out = result_like(volume)
        for where, slab in inverse_planes(to_planes(half), knots.shape):
            slab *= np.float32(std)
            slab += np.float32(mean)
            out[where] = slab
        return out

    def bytes_needed(self, shape: Vec) -> int:
        """Return the peak bytes of ``transform``, its input and output included.

        8 bytes a voxel for float32; see `deepict_compat.compat_bytes` for the other mode.
        """
        if self.mode == "deepict":
            return compat_bytes(shape, self.source_dtype)
        return volume_bytes(shape, self.source_dtype) + half_bytes(shape) + slab_bytes(shape)


def _require_places(target: Spectrum) -> None:
    """Refuse a target that was not measured as DeePiCt does."""
    if target.is_physical:
        raise ConfigError(
            "equalize --compat deepict: expected a target by place, as DeePiCt writes it, found "
            "one with frequencies in 1/Å, whose shells are others; make it again with "
            "`deepict-dask spectrum --compat deepict`, or leave out --compat"
        )


def _require_frequencies(target: Spectrum, voxel_spacing_angstrom: float | None) -> None:
    """Refuse a target without frequencies, or a tomogram without a voxel spacing."""
    if not target.is_physical:
        raise ConfigError(
            "equalize: expected a target with frequencies in 1/Å, found one by place only, as "
            "DeePiCt writes it; pass --compat deepict, or make it again with "
            "`deepict-dask spectrum`"
        )
    if voxel_spacing_angstrom is None:
        raise SpacingError(
            "equalize: expected a voxel spacing, found none in the file; pass "
            "--voxel-spacing-angstrom"
        )
