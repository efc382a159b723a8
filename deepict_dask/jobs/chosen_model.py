"""Choose a model and its classes, and see whether it fits the tomogram."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..core.errors import ConfigError, ModelFileError

if TYPE_CHECKING:
    from ..config import SegmentSettings
    from ..core.volume import VolumeHeader
    from ..models.architecture import NetworkKind

__all__ = [
    "ChosenModel",
    "check_precision",
    "check_spacing",
    "choose_model",
    "chosen_class",
    "is_2d",
    "is_unet3d",
    "kind_of_model",
]

log = logging.getLogger("deepict_dask")

_SPACING_TOLERANCE = 0.05


@dataclass(frozen=True)
class ChosenModel:
    """A model file and the classes of it that are wanted."""

    name: str
    path: str
    sha256: str
    chosen: int | None
    class_names: tuple[str, ...]
    """Of the score map: none where it has one class."""
    voxel_spacing_angstrom: float | None

    def header(self, tomogram: VolumeHeader) -> VolumeHeader:
        """Return the header of the score map."""
        return replace(tomogram, dtype="float32", class_names=self.class_names)


def choose_model(settings: SegmentSettings, device: str = "cpu") -> ChosenModel:
    """Find and load a model, and choose its classes.

    The driver asks with "cpu": only the workers need the device on which the network runs.

    Raises
    ------
    ModelFileError
        The file is no model, or lacks a class.
    """
    from ..models.registry import loaded_model, resolve_model

    path = str(resolve_model(settings.model).absolute())
    model = loaded_model(path, device)
    chosen = chosen_class(model.class_names, settings.classes, settings.model)
    names = () if chosen is not None or len(model.class_names) < 2 else model.class_names
    spacing = model.voxel_spacing_angstrom
    return ChosenModel(settings.model, path, model.sha256, chosen, names, spacing)


def is_2d(model: str) -> bool:
    """Say whether a model file (or a bundled model) holds a 2D network."""
    return kind_of_model(model) == "unet2d"


def is_unet3d(model: str) -> bool:
    """Say whether a model file holds DeePiCt's 3D network, several of which can share windows."""
    return kind_of_model(model) == "unet3d"


def kind_of_model(model: str) -> NetworkKind:
    """Return which network a model file (or a bundled model) holds."""
    from ..models.checkpoint import model_info
    from ..models.registry import resolve_model

    return model_info(resolve_model(model)).kind


def check_precision(settings: SegmentSettings) -> None:
    """Refuse a precision that the model does not know.

    Raises
    ------
    ConfigError
        Another one than float32 for a 2D network.
    """
    if settings.precision != "float32" and is_2d(settings.model):
        raise ConfigError(
            f"{settings.model}: precision: expected float32 for a 2D network, "
            f"found {settings.precision}, which 3D networks know"
        )


def chosen_class(names: tuple[str, ...], wanted: tuple[str, ...] | None, model: str) -> int | None:
    """Return the channel of the one class that is wanted, None for all.

    Raises
    ------
    ModelFileError
        The model has no such class.

    Examples
    --------
    >>> chosen_class(("ribosome", "fas"), ("fas",), "m.pth")
    1
    """
    if wanted is None or tuple(wanted) == tuple(names):
        return 0 if len(names) <= 1 else None
    missing = [name for name in wanted if name not in names]
    if missing or len(wanted) != 1:
        raise ModelFileError(
            f"{model}: expected one of the classes {', '.join(names)} (or all of them), "
            f"found {', '.join(wanted)}"
        )
    return names.index(wanted[0])


def check_spacing(header: VolumeHeader, trained_at: float | None, model: str) -> None:
    """Warn where the voxel spacing is far from what the model was trained at."""
    found = header.voxel_spacing_angstrom
    if trained_at is None or found is None:
        return
    if abs(found / trained_at - 1) > _SPACING_TOLERANCE:
        log.warning(
            "%s was trained at %.4g Å per voxel, but the tomogram has %.4g Å: expect poor or "
            "empty results; rescale the tomogram, or give the true spacing with "
            "--voxel-spacing-angstrom",
            model, trained_at, found,
        )  # fmt: skip
