"""Choose a model and its classes, and see whether it fits the tomogram."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...core.errors import ConfigError, ModelFileError

if TYPE_CHECKING:
    from ...config import SegmentSettings
    from ...core.volume import VolumeHeader
    from ...models.architecture import NetworkKind
    from ...models.registry import PinnedModel

__all__ = [
    "BACKGROUND",
    "ChosenModel",
    "check_3d_options",
    "check_argmax",
    "choose_model",
    "chosen_class",
    "class_names_of",
    "is_2d",
    "is_unet3d",
    "kind_of_model",
]

BACKGROUND = "background"
"""The class of a softmax that is no class of particles."""


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
    writes_labels: bool = False
    """Whether the output is a label volume."""

    @property
    def pinned(self) -> PinnedModel:
        """The file for workers, who refuse another one at its path."""
        from ...models.registry import PinnedModel

        return PinnedModel(self.path, self.sha256)

    def header(self, tomogram: VolumeHeader) -> VolumeHeader:
        """Return the header of the score map, or of the label volume."""
        if self.writes_labels:
            return replace(tomogram, dtype="uint8", class_names=())
        return replace(tomogram, dtype="float32", class_names=self.class_names)


def choose_model(settings: SegmentSettings, device: str = "cpu") -> ChosenModel:
    """Find and load a model, and choose its classes.

    The driver asks with "cpu": only the workers need the device on which the network runs.

    Raises
    ------
    ModelFileError
        The file is no model, or lacks a class.
    """
    from ...models.registry import loaded_model, resolve_model

    path = str(resolve_model(settings.model).absolute())
    model = loaded_model(path, device)
    all_names = class_names_of(settings)
    chosen = chosen_class(all_names, settings.classes, settings.model)
    names = () if chosen is not None or len(all_names) < 2 else all_names
    spacing = model.voxel_spacing_angstrom
    return ChosenModel(settings.model, path, model.sha256, chosen, names, spacing, settings.argmax)


def class_names_of(settings: SegmentSettings) -> tuple[str, ...]:
    """Return the names of a model's channels: those that are given, or the file's.

    Where classes exclude each other (a softmax) the first is the background, whatever its name.

    Raises
    ------
    ConfigError
        Names are given, but not one for each channel, or one twice, or without ``background``.
    """
    from ...models.architecture import ends_in_softmax
    from ...models.checkpoint import model_info
    from ...models.registry import resolve_model

    info = model_info(resolve_model(settings.model))
    known, given = info.class_names, settings.class_names
    excluding = ends_in_softmax(info.settings)
    if given is None:
        return (BACKGROUND, *known[1:]) if excluding else known
    wanted = f"{len(known)} different names" + (f", {BACKGROUND} first" if excluding else "")
    fits = len(given) == len(set(given)) == len(known)
    if not fits or (excluding and given[0] != BACKGROUND):
        raise ConfigError(
            f"{settings.model}: class_names: expected {wanted}, found {', '.join(given)}"
        )
    return given


def check_argmax(settings: SegmentSettings) -> None:
    """Refuse labels of a network whose classes do not exclude each other.

    Raises
    ------
    ConfigError
        The model has one class, or no background among its classes.
    """
    from ...models.architecture import ends_in_softmax
    from ...models.checkpoint import model_info
    from ...models.registry import resolve_model

    if settings.argmax and not ends_in_softmax(model_info(resolve_model(settings.model)).settings):
        raise ConfigError(
            f"{settings.model}: argmax: expected a DeepFinder or DeepETPicker model of several "
            "classes, of which a voxel has one; found another model: its scores are compared "
            "with a threshold each"
        )


def is_2d(model: str) -> bool:
    """Say whether a model file (or a bundled model) holds a 2D network."""
    return kind_of_model(model) == "unet2d"


def is_unet3d(model: str) -> bool:
    """Say whether a model file holds DeePiCt's 3D network, several of which can share windows."""
    return kind_of_model(model) == "unet3d"


def kind_of_model(model: str) -> NetworkKind:
    """Return which network a model file (or a bundled model) holds."""
    from ...models.checkpoint import model_info
    from ...models.registry import resolve_model

    return model_info(resolve_model(model)).kind


def check_3d_options(settings: SegmentSettings) -> None:
    """Refuse what only 3D networks know.

    Raises
    ------
    ConfigError
        Another precision than float32, or the mean over flips, for a 2D network.
    """
    if settings.average_flips and is_2d(settings.model):
        raise ConfigError(
            f"{settings.model}: average_flips: expected a 3D network, found a 2D one; leave it out"
        )
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
