"""Match the radial amplitude spectrum of a tomogram to another's."""

from ..core.spectrum import Spectrum
from .measure import SpectrumOp
from .op import EqualizeOp
from .spectrum import radial_spectrum, spectrum_bytes

__all__ = ["EqualizeOp", "Spectrum", "SpectrumOp", "radial_spectrum", "spectrum_bytes"]
