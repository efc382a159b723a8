"""The radial amplitude spectrum of a volume, as a value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import ConfigError

if TYPE_CHECKING:
    from .geometry import Vec

__all__ = ["Spectrum"]


@dataclass(frozen=True)
class Spectrum:
    """Mean Fourier amplitude at each frequency.

    Two kinds exist, and one never stands in for the other: with frequencies in 1/Å (ours), and by
    place only, as DeePiCt writes it, where the place depends on the box of the volume measured.

    Examples
    --------
    >>> Spectrum(intensity=(2.0, 1.0), frequency_per_angstrom=(0.01, 0.02)).is_physical
    True
    """

    intensity: tuple[float, ...]
    """Amplitudes by rising frequency, without the mean (DC)."""
    frequency_per_angstrom: tuple[float, ...] | None = None
    """Frequency of each amplitude in 1/Å; None for a spectrum by place only."""
    shape: Vec | None = None
    """Voxels (zyx) of the volume it was measured on; None where a file does not say."""
    voxel_spacing_angstrom: float | None = None
    """Voxel spacing of that volume in Å."""

    def __post_init__(self) -> None:
        if not self.intensity or not all(0 <= a < math.inf for a in self.intensity):
            raise ConfigError(
                "spectrum: expected finite amplitudes of at least 0; measure it again"
            )
        frequency = self.frequency_per_angstrom
        if frequency is not None and not _rises(frequency, len(self.intensity)):
            raise ConfigError(
                f"spectrum: expected {len(self.intensity)} rising frequencies above 0 in 1/Å, "
                f"found {len(frequency)} from {min(frequency, default=0)}; measure it again"
            )

    def __len__(self) -> int:
        return len(self.intensity)

    @property
    def is_physical(self) -> bool:
        """Whether the frequencies are known in 1/Å."""
        return self.frequency_per_angstrom is not None


def _rises(frequency: tuple[float, ...], n: int) -> bool:
    """Say whether there are n finite frequencies, each above the one before and above 0."""
    steps = zip((0.0, *frequency), frequency, strict=False)
    return len(frequency) == n and all(a < b < math.inf for a, b in steps)
