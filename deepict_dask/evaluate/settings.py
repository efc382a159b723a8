"""What a comparison with the truth is asked for: strict, frozen, every default written once."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic import model_validator as validator

from ..config.stages import Strict
from ..core.errors import ConfigError

__all__ = ["DEFAULT_RADIUS", "PicksEvaluation", "SegmentationEvaluation"]

DEFAULT_RADIUS = 10.0
"""Voxels; DeePiCt's ``pr_tolerance_radius``."""
_ANGSTROM_PER_NM = 10.0


class PicksEvaluation(Strict):
    """How to compare particle lists.

    Examples
    --------
    >>> PicksEvaluation().radius_voxels
    10.0
    >>> PicksEvaluation(radius_nm=12, voxel_spacing_angstrom=10).radius_voxels
    12.0
    """

    radius: NonNegativeFloat | None = None
    """Largest distance of a pick from its particle, voxels; 10 where neither is given."""
    radius_nm: NonNegativeFloat | None = None
    """The same in nm; needs the spacing."""
    voxel_spacing_angstrom: PositiveFloat | None = None
    """Edge of a voxel, Å: for a radius in nm, and for lists whose positions are in Å."""
    tomogram_shape: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    """Voxels of the tomogram, zyx: for lists whose positions count from its centre."""
    tomogram_name: str | None = None
    """Which tomogram's particles to take from a list of several (STAR)."""
    class_name: str | None = Field(None, alias="class")
    """Which class to compare, where a list has several."""
    true_class: str | None = None
    """What the true list calls this class, where that is another name."""
    compat: Literal["deepict"] | None = None
    """Count as DeePiCt does."""

    @validator(mode="after")
    def _one_radius(self) -> PicksEvaluation:
        if self.radius is not None and self.radius_nm is not None:
            raise ValueError("expected --radius or --radius-nm, found both; give one")
        return self

    @property
    def radius_voxels(self) -> float:
        """The radius in voxels.

        Raises
        ------
        ConfigError
            It is in nm and the spacing is unknown.
        """
        if self.radius_nm is None:
            return DEFAULT_RADIUS if self.radius is None else self.radius
        if self.voxel_spacing_angstrom is None:
            raise ConfigError(
                f"--radius-nm {self.radius_nm:g}: expected the size of a voxel with it, found "
                "none; give --voxel-spacing-angstrom"
            )
        return self.radius_nm * _ANGSTROM_PER_NM / self.voxel_spacing_angstrom

    @property
    def frame(self) -> dict[str, Any]:
        """What reading a list needs to know of its tomogram."""
        return {
            "voxel_spacing_angstrom": self.voxel_spacing_angstrom,
            "tomogram_shape": self.tomogram_shape,
            "tomogram_name": self.tomogram_name,
        }


class SegmentationEvaluation(Strict):
    """How to compare a score map or a segmentation with the true one.

    Examples
    --------
    >>> SegmentationEvaluation().sample
    5000
    """

    threshold: float = 0.5
    """Scores above it count as predicted."""
    label_value: int | None = None
    """Voxels of the truth equal to it are true; None: those that are not 0."""
    predicted_label_value: int | None = None
    """Voxels of a predicted label volume equal to it are predicted; None: those above
    ``threshold``."""
    class_name: str | None = Field(None, alias="class")
    """Which class of a score map with several."""
    sample: NonNegativeInt = 5000
    """Voxels drawn per tomogram for the precision-recall curve; 0: all, by a histogram."""
    seed: NonNegativeInt = 0
    """Another seed draws other voxels."""
    compat: Literal["deepict"] | None = None
    """DeePiCt's Dice; volumes are cut to one shape, a region multiplies the prediction only."""

    def unsaid_label(self, dtype: str) -> str | None:
        """Return what to say where one label is compared with all of a prediction of labels.

        Examples
        --------
        >>> SegmentationEvaluation(label_value=2).unsaid_label("float32") is None
        True
        >>> SegmentationEvaluation(label_value=2).unsaid_label("uint8")
        'all voxels above 0.5 are compared with label 2 of the truth; if it holds labels too, ...
        """
        if self.label_value is None or self.predicted_label_value is not None:
            return None
        if np.dtype(dtype).kind not in "iu":
            return None
        return (
            f"all voxels above {self.threshold:g} are compared with label {self.label_value} of "
            "the truth; if it holds labels too, choose one with --predicted-label-value"
        )
