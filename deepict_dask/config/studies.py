"""Settings of what takes several trainings: cross-validation, search, rounds of annotation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from .stages import PickSettings, Strict

__all__ = ["CrossValidationSettings", "RoundsSettings", "SearchSettings"]

Dropout = Annotated[float, Field(ge=0, lt=1)]


class CrossValidationSettings(Strict):
    """K-fold over tomograms.

    Examples
    --------
    >>> CrossValidationSettings(folds=3).final
    False
    """

    folds: Annotated[int, Field(ge=2)] | None = None
    """Number of folds; tomograms are shared out by the seed."""
    table: Path | None = None
    """Instead: DeePiCt's ``cv_data.csv``, which names the tomograms of each fold."""
    final: bool = False
    """Train on all tomograms too, in the folder ``final``."""

    @model_validator(mode="after")
    def _one_way(self) -> CrossValidationSettings:
        if (self.folds is None) == (self.table is None):
            raise ValueError("expected either folds (a number) or table (a cv_data.csv)")
        return self

    def relative_to(self, folder: Path) -> CrossValidationSettings:
        """Return the settings with the table taken from the config's folder."""
        if self.table is None:
            return self
        return self.model_copy(update={"table": folder / self.table})


class SearchSettings(Strict):
    """Incremental search for a network: one setting after another, the best of each is kept.

    An empty list leaves a setting as the config has it. Source: the paper of DeePiCt (de
    Teresa-Trueba et al. 2023), which searched in this order.

    Examples
    --------
    >>> SearchSettings().initial_features, SearchSettings(depth=()).depth
    ((4, 8, 16), ())
    """

    initial_features: tuple[PositiveInt, ...] = (4, 8, 16)
    depth: tuple[PositiveInt, ...] = (2, 3, 4)
    batch_norm: tuple[bool, ...] = (False, True)
    encoder_dropout: tuple[Dropout, ...] = (0.0, 0.2)
    decoder_dropout: tuple[Dropout, ...] = (0.0, 0.2)
    metric: Literal["dice", "f1", "loss"] = "dice"
    """Of the validation: mean Dice or voxel F1 of the classes (highest), or the loss (lowest)."""
    epochs: PositiveInt | None = None
    """Of a trial; those of the config by default."""


class RoundsSettings(Strict):
    """Rounds of annotation: what is predicted, and when two picks are one.

    Examples
    --------
    >>> RoundsSettings(picks={"ribosome": {"min_size": 50}}).picks["ribosome"].threshold
    0.5
    """

    tomograms: tuple[str, ...] = ()
    """Names to predict; all that are not held out by default, those without lists among them."""
    picks: dict[str, PickSettings] = Field(default_factory=dict)
    """How each class is picked; where it is not named, with the threshold that the model's card
    recommends and a tenth of a particle's voxels."""
    axes: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """Semi-axes on z, y, x in voxels within which two picks are one; by default the radius of the
    class's particles."""
