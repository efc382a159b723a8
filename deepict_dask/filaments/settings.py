"""Settings of filament tracing: nanometres outside, voxels inside.

Which lengths follow from the thickest filament? The halo of the thinning, the longest spur that a
rough surface can make, and the longest stretch over which two crossing filaments share a skeleton.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic import model_validator as validator

from ..config.stages import Strict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..core.geometry import Vec

__all__ = ["FilamentSettings", "VoxelLengths"]

_REACH_RADII = 3
_REACH_MARGIN = 4
"""How far a cut through a filament can change its skeleton: 3 radii and 4 voxels.

Measured, not proven: of 2,088 cuts through rough and smooth tubes of 1 to 9 voxels radius, crossing
and touching, none reached further (2 radii and 4 voxels would have failed for 2); with this halo
618 chunkings of such scenes, 2,914 planes of chunk faces in all, gave the skeleton of the whole.
"""


_NOT_PUBLISHED = ("threshold", "label_value", "max_radius_nm", "max_hole_nm", "smoothing_nm")


class FilamentSettings(Strict):
    """How a mask of filaments becomes picks.

    Examples
    --------
    >>> FilamentSettings(max_radius_nm=12.5).voxels(13.48).radius
    10
    """

    step_nm: PositiveFloat = 8.0
    """Distance of neighbouring picks along a filament."""
    max_radius_nm: PositiveFloat = 15.0
    """Half the thickness of the thickest filament in the mask; the halo follows from it."""
    max_hole_nm: NonNegativeFloat | None = None
    """Holes up to this wide are filled, slice by slice; twice the largest radius by default."""
    erode_voxels: PositiveInt = 1
    """Edge of the cube to erode the mask with, to part filaments that touch; 1: do not erode."""
    min_length_nm: NonNegativeFloat = 30.0
    """Shorter filaments are dropped, after linking."""
    max_gap_nm: NonNegativeFloat = 30.0
    """Ends up to this far apart may be linked; 0 links across branch points only."""
    max_angle_degrees: Annotated[float, Field(ge=0, le=90)] = 20.0
    """Largest bend at a link."""
    smoothing_nm: PositiveFloat = 40.0
    """Waves of this length are halved in a centreline, shorter ones smoothed away."""
    twist_degrees: float = 0.0
    """Turn of the particle from one pick to the next, right-handed about the filament."""
    threshold: float = 0.5
    """Voxels above this are filament."""
    label_value: int | None = None
    """Voxels of a label volume equal to this are filament, instead of ``threshold``."""
    compat: Literal["deepict"] | None = None
    """Reproduce the published script, which takes every voxel above 0."""

    @validator(mode="after")
    def _not_ours(self) -> FilamentSettings:
        if self.compat is not None and (ours := self.changed(_NOT_PUBLISHED)):
            raise ValueError(
                f"expected compat {self.compat} without {', '.join(ours)}, which the published "
                "script does not have; leave them out"
            )
        return self

    def changed(self, names: Iterable[str]) -> list[str]:
        """Return those of the settings that have another value than by default.

        Examples
        --------
        >>> FilamentSettings(step_nm=4).changed(["step_nm", "threshold"])
        ['step_nm']
        """
        fields = type(self).model_fields
        return [name for name in names if getattr(self, name) != fields[name].default]

    def voxels(self, voxel_spacing_angstrom: float) -> VoxelLengths:
        """Return the lengths in voxels of this size."""
        per_nm = 10.0 / voxel_spacing_angstrom
        radius = max(1, math.ceil(self.max_radius_nm * per_nm))
        hole = 2 * radius
        if self.max_hole_nm is not None:
            hole = math.ceil(self.max_hole_nm * per_nm)
        return VoxelLengths(
            step=self.step_nm * per_nm,
            radius=radius,
            hole=hole,
            erode=self.erode_voxels,
            min_length=self.min_length_nm * per_nm,
            max_gap=self.max_gap_nm * per_nm,
            smoothing=self.smoothing_nm * per_nm,
        )


@dataclass(frozen=True)
class VoxelLengths:
    """The lengths of the settings in voxels.

    Examples
    --------
    >>> VoxelLengths(radius=10, hole=20).halo
    (55, 55, 55)
    """

    step: float = 6.0
    radius: int = 11
    """Half the thickness of the thickest filament."""
    hole: int = 22
    """Widest hole that is filled; 0 fills none."""
    erode: int = 1
    """Edge of the erosion's cube."""
    min_length: float = 22.0
    max_gap: float = 22.0
    smoothing: float = 30.0
    """Length of the waves that are halved."""

    @property
    def halo(self) -> Vec:
        """Voxels needed around a voxel to know whether it is of the skeleton."""
        fill = self.hole + 1 if self.hole else 0
        reach = fill + self.erode // 2 + _REACH_RADII * self.radius + _REACH_MARGIN
        return (reach, reach, reach)
