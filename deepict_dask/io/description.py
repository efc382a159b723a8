"""What a file says about its volume, and what of that can be believed.

A `VolumeDescription` holds what was written, and in plain language what is odd about it. The voxel
spacing is settled by one rule for all formats:

1. Three values that agree within 0.1 % (noise of float32 headers) are one spacing.
2. A single section needs no z spacing.
3. A header that calls the whole cell one sampling interval (MRC's mz = 1) is repaired, if z then
   agrees with x and y.
4. Anything else is a problem to be solved by the user: zero, infinite, unequal.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..core.geometry import Vec

__all__ = ["Spacing", "VolumeDescription", "angstrom_per", "settle_spacing"]

Triple = tuple[float, float, float]
TOLERANCE = 1e-3
UNITS = {
    1.0: ("angstrom", "angstroms", "ångström", "ångstrom", "å", "a"),
    10.0: ("nanometer", "nanometers", "nanometre", "nm"),
    1e4: ("micrometer", "micrometers", "micrometre", "micron", "microns", "um", "µm", "μm"),
    1e7: ("millimeter", "millimetre", "mm"),
    1e10: ("meter", "metre", "m"),
    1e-2: ("picometer", "picometre", "pm"),
}


@dataclass(frozen=True)
class Spacing:
    """A settled voxel spacing, or the reason why there is none."""

    angstrom: float | None
    """Edge of a voxel in Å; None where it could not be settled."""
    problem: str = ""
    """Why there is none."""
    oddity: str = ""
    """What was odd about a spacing that was accepted."""


@dataclass(frozen=True)
class VolumeDescription:
    """What a volume's file says about it.

    Examples
    --------
    >>> VolumeDescription("a.em", "EM", (1, 2, 3), "float32", "type 5").as_dict()["shape"]
    [1, 2, 3]
    """

    path: str
    format: str
    """MRC, OME-Zarr 0.5, Zarr, EM, TIFF."""
    shape: Vec
    """Voxels on z, y, x."""
    dtype: str
    stored_as: str
    """Mode, byte order, chunks: how the voxels lie on disk."""
    voxel_spacing_angstrom: float | None = None
    spacing_as_written: Triple | None = None
    """Å on z, y, x, before any repair; None where the file has no place for it."""
    spacing_problem: str = ""
    origin_angstrom: Triple = (0.0, 0.0, 0.0)
    header_minimum: float | None = None
    header_maximum: float | None = None
    class_names: tuple[str, ...] = ()
    oddities: tuple[str, ...] = ()
    """What is odd, one sentence each."""
    warnings: tuple[str, ...] = ()
    """Those of the oddities that can change results if the file is wrong."""

    def with_warning(self, text: str) -> VolumeDescription:
        """Return the description with one more oddity that can change results."""
        return replace(self, oddities=(*self.oddities, text), warnings=(*self.warnings, text))

    def with_spacing(self, spacing: Spacing) -> VolumeDescription:
        """Return the description with a settled spacing and what was odd about it."""
        settled = replace(
            self, voxel_spacing_angstrom=spacing.angstrom, spacing_problem=spacing.problem
        )
        text = spacing.problem or spacing.oddity
        return settled.with_warning(text) if text else settled

    def as_dict(self) -> dict[str, Any]:
        """Return the description as values that JSON can hold; infinite numbers become null."""
        return {key: _plain(value) for key, value in asdict(self).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def settle_spacing(zyx: Triple | None, shape: Vec, *, whole_cell_z: bool = False) -> Spacing:
    """Return one voxel spacing from what a file says.

    Parameters
    ----------
    zyx
        Å on z, y, x as written; 0, infinite or NaN where not set; None where there is no place.
    shape
        Voxels on z, y, x.
    whole_cell_z
        The z value spans all sections (MRC's mz = 1 with more than one section).

    Returns
    -------
    Spacing
        The spacing, rounded to the digits that float32 holds, or the problem.

    Examples
    --------
    >>> settle_spacing((13.48, 13.4799995, 13.48), (4, 4, 4)).angstrom
    13.48
    >>> settle_spacing((13.52, 13.48, 13.48), (4, 4, 4)).problem
    'voxel spacing differs per axis (13.52, 13.48, 13.48 Å, zyx)'
    """
    if zyx is None or not any(_is_set(value) for value in zyx):
        return Spacing(None, "the file gives no voxel spacing")
    z, y, x = zyx
    if whole_cell_z and not _agree((z, y, x)) and _agree((z / shape[0], y, x)):
        note = "the header counts all sections as one interval in z (mz = 1); z spacing repaired"
        return Spacing(_rounded(x), oddity=note)
    if shape[0] == 1 and not _agree((z, y, x)) and _agree((x, y, x)):
        note = f"z spacing {z:g} Å ignored for a single section"
        return Spacing(_rounded(x), oddity=note)
    if not _agree(zyx):
        values = ", ".join(f"{value:.6g}" for value in zyx)
        return Spacing(None, f"voxel spacing differs per axis ({values} Å, zyx)")
    if _agree((x, 1.0, 1.0)):
        note = "a voxel spacing of 1 Å is what many programs write when they do not know it"
        return Spacing(1.0, oddity=note)
    return Spacing(_rounded(x))


def origin_of(first_voxel: Triple, spacing: Triple) -> Triple:
    """Return where the first voxel lies in Å, zyx; 0 where the spacing is not known.

    Examples
    --------
    >>> origin_of((-4.0, -6.0, -8.0), (8.0, 8.0, math.inf))
    (-32.0, -48.0, 0.0)
    """
    z, y, x = (
        first * edge if math.isfinite(edge) else 0.0
        for first, edge in zip(first_voxel, spacing, strict=True)
    )
    return (z, y, x)


def angstrom_per(unit: str | None) -> float | None:
    """Return how many Å a unit of length has; None where the unit is missing or not known.

    Examples
    --------
    >>> angstrom_per("nanometer"), angstrom_per("pixel")
    (10.0, None)
    """
    name = (unit or "").strip().lower().replace("\\u00b5", "µ").replace("\\u00c5", "å")
    return next((size for size, names in UNITS.items() if name in names), None)


def _is_set(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _agree(values: Triple) -> bool:
    """Say whether three spacings are set and equal within the tolerance."""
    if not all(_is_set(value) for value in values):
        return False
    return max(values) - min(values) <= TOLERANCE * max(values)


def _rounded(value: float) -> float:
    """Drop the digits that a float32 cell edge does not hold."""
    return float(f"{value:.6g}")
