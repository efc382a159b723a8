"""Model files in, networks out.

1. Name the kind of file from its first bytes; refuse what is no model, saying what it looks like.
2. List its tensors (names and shapes) and what it says of itself, without building weights.
3. Infer the architecture from the shapes; where the file states it too, the two must agree.
4. Build the weights, once, into a network in eval mode.

These formats are read (see `model_file`): DeePiCt's ``.pth`` (3D) and DeepETPicker's ``.ckpt``, of
which nothing is run, the Keras ``.h5`` of DeePiCt (2D) and of DeepFinder, and our own
``.safetensors`` (all networks), whose metadata hold one JSON text under the key ``deepict_dask``.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save as save_tensors

from ..core.errors import ModelFileError
from ..io.replace import replace_file
from .architecture import built_network, inferred_settings, is_trainable, kind_of
from .model_file import METADATA_KEY, understand

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from .architecture import Network, NetworkKind, NetworkSettings
    from .model_file import ModelFile

__all__ = ["LoadedModel", "ModelInfo", "load_checkpoint", "model_info", "save_model"]


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A network that is ready to predict, and what its file says of it."""

    network: Network
    """In eval mode, float32, on the CPU unless moved."""
    settings: NetworkSettings
    class_names: tuple[str, ...]
    """Semantic classes in channel order."""
    voxel_spacing_angstrom: float | None
    """Spacing of the tomograms it was trained on; None where the file does not say."""
    card: dict[str, Any]
    """Whatever else the file says: training set, epochs, loss, ..."""
    sha256: str
    """Of the whole file."""

    @property
    def kind(self) -> NetworkKind:
        """Say which network it is, and so whether it segments volumes or single slices."""
        return kind_of(self.settings)


@dataclass(frozen=True)
class ModelInfo:
    """What a model file says, without its weights."""

    path: str
    settings: NetworkSettings
    class_names: tuple[str, ...]
    voxel_spacing_angstrom: float | None
    n_parameters: int
    """Trainable numbers."""
    halo: int
    """Voxels a window needs on every side; in y and x only for a 2D network."""
    align: int
    """Windows start on multiples of this; in y and x only for a 2D network."""
    card: dict[str, Any]
    sha256: str

    @property
    def kind(self) -> NetworkKind:
        """Say which network it is, and so whether it segments volumes or single slices."""
        return kind_of(self.settings)


def load_checkpoint(path: str | os.PathLike[str]) -> LoadedModel:
    """Return the network of a model file.

    Parameters
    ----------
    path
        A DeePiCt ``.pth`` (3D) or ``.h5`` (2D), a DeepFinder ``.h5``, a DeepETPicker ``.ckpt``, or
        a ``.safetensors`` file of `save_model`.

    Returns
    -------
    LoadedModel
        The network in eval mode and what the file says of it.

    Raises
    ------
    ModelFileError
        The file is of another kind, damaged, names code to run, or its tensors fit no network.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> from deepict_dask.models.unet3d import UNet3D, UNet3DSettings
    >>> path = Path(folder.name) / "tiny.safetensors"
    >>> network = UNet3D(UNet3DSettings(depth=1, initial_features=2))
    >>> save_model(path, network, class_names=["ribosome"], voxel_spacing_angstrom=13.48)
    >>> model = load_checkpoint(path)
    >>> model.kind, model.class_names, model.settings.depth, model.network.training
    ('unet3d', ('ribosome',), 1, False)
    >>> folder.cleanup()
    """
    data = _read(path)
    with _located(path):
        file = understand(data)
        settings = _settings(file)
        network = built_network(settings, file.weights())
        return LoadedModel(
            network=network,
            settings=settings,
            class_names=_class_names(file, settings),
            voxel_spacing_angstrom=file.voxel_spacing_angstrom,
            card=file.card,
            sha256=hashlib.sha256(data).hexdigest(),
        )


def model_info(path: str | os.PathLike[str]) -> ModelInfo:
    """Return what a model file says, without building its weights.

    Raises
    ------
    ModelFileError
        As `load_checkpoint`.
    """
    data = _read(path)
    with _located(path):
        file = understand(data)
        settings = _settings(file)
        return ModelInfo(
            path=str(path),
            settings=settings,
            class_names=_class_names(file, settings),
            voxel_spacing_angstrom=file.voxel_spacing_angstrom,
            n_parameters=sum(math.prod(s) for n, s in file.shapes.items() if is_trainable(n)),
            halo=settings.halo,
            align=settings.align,
            card=file.card,
            sha256=hashlib.sha256(data).hexdigest(),
        )


def save_model(
    path: str | os.PathLike[str],
    network: Network,
    *,
    class_names: Sequence[str],
    voxel_spacing_angstrom: float | None,
    card: Mapping[str, Any] | None = None,
) -> None:
    """Write a network to a ``.safetensors`` file; the same network gives the same bytes.

    Parameters
    ----------
    path
        The file; replaced whole or not at all.
    network
        Any of `architecture.NETWORKS`.
    class_names
        One name per output channel, in channel order.
    voxel_spacing_angstrom
        Spacing of the training tomograms in Å, or None where unknown.
    card
        Anything JSON can hold.

    Raises
    ------
    ModelFileError
        The number of class names is not the number of output channels, or the card is not JSON.
    """
    settings = network.settings
    if len(class_names) != settings.n_classes:
        raise ModelFileError(
            f"{path}: expected {settings.n_classes} class names, found {list(class_names)}"
        )
    about = {
        "kind": kind_of(settings),
        "settings": asdict(settings),
        "class_names": list(class_names),
        "voxel_spacing_angstrom": voxel_spacing_angstrom,
        "card": dict(card or {}),
    }
    try:
        text = json.dumps(about, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"{path}: the model card cannot be written as JSON: {error}") from None
    tensors = {name: t.detach().cpu().contiguous() for name, t in network.state_dict().items()}
    replace_file(path, save_tensors(tensors, {METADATA_KEY: text}))


class _located:  # noqa: N801 - reads as a statement
    """Put a file's path in front of any ModelFileError."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ModelFileError):
            raise ModelFileError(f"{self.path}: {error}") from error


def _read(path: str | os.PathLike[str]) -> bytes:
    """Return a file's bytes."""
    if Path(path).is_dir():
        raise ModelFileError(f"{path}: expected a model file, found a folder")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot read the model file: {error.strerror}") from error


def _settings(file: ModelFile) -> NetworkSettings:
    """Infer the architecture of a file that was understood."""
    return inferred_settings(file.shapes, file.stated, file.kind)


def _class_names(file: ModelFile, settings: NetworkSettings) -> tuple[str, ...]:
    """Return one name per channel; numbered where the file does not name them all."""
    if file.class_names is not None and len(file.class_names) == settings.n_classes:
        return file.class_names
    return tuple(f"class_{channel}" for channel in range(settings.n_classes))
