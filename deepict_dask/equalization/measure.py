"""The radial spectrum of a volume as work for the engine, in one piece or in many."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..core.ops import MeasuringPieces, SpectralMeasure
from ..core.spectrum import Spectrum
from .pieces import DeepictPieces, PhysicalPieces
from .spectrum import radial_spectrum, spectrum_bytes

if TYPE_CHECKING:
    from ..core.geometry import Vec

__all__ = ["SpectrumOp"]


@dataclass(frozen=True)
class SpectrumOp(SpectralMeasure[Spectrum]):
    """Measure the spectrum of a volume.

    Examples
    --------
    >>> import numpy as np
    >>> noise = np.random.default_rng(0).normal(size=(16, 20, 24)).astype("float32")
    >>> SpectrumOp(10.0).measure(noise).is_physical
    True
    """

    voxel_spacing_angstrom: float | None = None
    """In Å; not used with ``compat``."""
    compat: bool = False
    """By place, as DeePiCt does."""
    source_dtype: str = "float32"
    """NumPy name of the volume's type; for ``bytes_needed`` only."""
    name: str = field(default="spectrum", init=False)

    def measure(self, volume: Any) -> Spectrum:
        """Return the spectrum; errors as in `spectrum.radial_spectrum`."""
        return radial_spectrum(volume, self.voxel_spacing_angstrom, compat=self.compat)

    def bytes_needed(self, shape: Vec) -> int:
        """Return the peak bytes of ``measure``, its input included."""
        return spectrum_bytes(shape, dtype=self.source_dtype, compat=self.compat)

    def in_pieces(self, shape: Vec) -> MeasuringPieces:
        """Return the same measurement for volumes that do not fit a worker."""
        if self.compat:
            return DeepictPieces(shape, self.source_dtype, "complex128")
        spacing = self.voxel_spacing_angstrom
        return PhysicalPieces(
            shape,
            self.source_dtype,
            voxel_spacing_angstrom=math.nan if spacing is None else spacing,
        )
