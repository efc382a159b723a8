"""What may be asked of a synthetic cell, and the numbers of its label volume."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..core.errors import ConfigError

__all__ = [
    "CONTEXT_CELL",
    "DISTRACTOR_NAMES",
    "LABELS",
    "MATRIX_NAMES",
    "PARTICLE_NAMES",
    "CellSettings",
]

PARTICLE_NAMES = ("ribosome", "fas")
"""The particles to be found."""
DISTRACTOR_NAMES = ("ball", "disc", "rod", "tetrahedron")
"""Particles of like size and mass that should not be taken for ribosomes or FAS."""
MATRIX_NAMES = ("mitoribosome", "dehydrogenase")
"""Particles of a large mitochondrion's matrix: like ribosomes and FAS, but not asked for."""
LABELS = {
    "background": 0,
    "ribosome": 1,
    "fas": 2,
    "membrane": 3,
    "organelle": 4,
    "ball": 5,
    "disc": 6,
    "rod": 7,
    "tetrahedron": 8,
    "mitochondrion": 9,
    "mitoribosome": 10,
    "dehydrogenase": 11,
}
"""Value of each class in the label volume; the cytosol's free voxels are background. "organelle" is
the inside of vesicles and of the small mitochondrion, "mitochondrion" that of the large ones."""


@dataclass(frozen=True)
class CellSettings:
    """All that a synthetic cell depends on.

    Raises
    ------
    ConfigError
        If a number is out of its range.

    Examples
    --------
    >>> settings = CellSettings(shape=(64, 96, 96), n_ribosomes=10)
    >>> settings.counts["ribosome"], settings.counts["rod"], settings.max_tilt_degrees
    (10, 90, 60.0)
    """

    shape: tuple[int, int, int] = (128, 256, 256)
    """Voxels on z (the beam), y (the tilt axis), x."""
    voxel_spacing_angstrom: float = 13.48
    """Edge of a voxel in Å; particles have their size in nm, whatever the spacing."""
    n_ribosomes: int = 140
    n_fas: int = 60
    n_distractors_each: int = 90
    """How many of each of the four distractors: their density is near that of the ribosomes."""
    n_vesicles: int = 4
    n_mitochondria: int = 0
    """Large mitochondria, instead of the small one that a cell has otherwise. They follow from a
    random stream of their own: noise, plasma membrane and vesicles do not depend on them."""
    n_mitoribosomes: int = 26
    """In the matrix of the large mitochondria, all together; none where there are none."""
    n_dehydrogenases: int = 12
    """Pyruvate dehydrogenase cores, likewise."""
    signal_to_noise: float = 0.006
    """Variance of the signal over variance of the noise, both in the cytosol's voxels and both as
    they are added in the tomogram, that is, after contrast transfer, wedge and noise colour.
    Infinity gives the signal alone."""
    missing_wedge_degrees: float = 60.0
    """Opening of the missing wedge round the beam; 60 is a tilt series from -60 to 60 degrees."""
    defocus_um: float = 2.5
    """Underfocus in µm."""
    voltage_kv: float = 300.0
    spherical_aberration_mm: float = 2.7
    phase_shift_degrees: float = 90.0
    """Of a phase plate; 90 gives full contrast to low frequencies, 0 is no plate."""
    amplitude_contrast: float = 0.1
    """Part of the contrast that does not depend on defocus, 0 to 1."""
    b_factor_angstrom2: float = 1000.0
    """Fall of the signal with frequency k: exp(-b_factor / 4 * k**2)."""
    detector_blur_angstrom: float = 40.0
    """Noise power falls with frequency k as 1 / (1 + (k * blur)**2)."""
    noise_floor_angstrom: float = 150.0
    """Noise power rises with the distance f from the tilt axis as f + 1 / floor."""
    seed: int = 2023

    def __post_init__(self) -> None:
        self._check_counts()
        self._check_ranges()

    def _check_counts(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 32:
            raise ConfigError(
                f"synthetic cell: shape must be three sizes of at least 32 voxels, found "
                f"{self.shape}; give a larger one"
            )
        for name, value in vars(self).items():
            if (name.startswith("n_") or name == "seed") and value < 0:
                raise ConfigError(f"synthetic cell: {name} must not be negative, found {value}")

    def _check_ranges(self) -> None:
        limits = {
            "voxel_spacing_angstrom": (1.0, 50.0),
            "signal_to_noise": (1e-6, math.inf),
            "missing_wedge_degrees": (0.0, 170.0),
            "defocus_um": (0.0, 20.0),
            "voltage_kv": (10.0, 1000.0),
            "spherical_aberration_mm": (0.0, 10.0),
            "phase_shift_degrees": (0.0, 180.0),
            "amplitude_contrast": (0.0, 1.0),
            "b_factor_angstrom2": (0.0, 1e6),
            "detector_blur_angstrom": (0.0, 1e4),
            "noise_floor_angstrom": (1.0, 1e6),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(
                    f"synthetic cell: {name} must be from {low:g} to {high:g}, found {value}"
                )

    @property
    def counts(self) -> dict[str, int]:
        """How many particles of each class in the cytosol, distractors included."""
        wanted = {"ribosome": self.n_ribosomes, "fas": self.n_fas}
        return wanted | dict.fromkeys(DISTRACTOR_NAMES, self.n_distractors_each)

    @property
    def matrix_counts(self) -> dict[str, int]:
        """How many particles of each class in the matrix of large mitochondria."""
        if not self.n_mitochondria:
            return {}
        counts = (self.n_mitoribosomes, self.n_dehydrogenases)
        return dict(zip(MATRIX_NAMES, counts, strict=True))

    @property
    def max_tilt_degrees(self) -> float:
        """Largest tilt of the series that leaves this wedge."""
        return 90.0 - self.missing_wedge_degrees / 2


CONTEXT_CELL = CellSettings(n_distractors_each=70, n_mitochondria=1)
"""The cell of ``deepict-dask demo``. Its mitochondrion leaves 86 % of the cytosol of a cell without
one, so it has fewer distractors; ribosomes and FAS are as many."""
