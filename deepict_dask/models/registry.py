"""Where models are found, and how a worker process loads each of them once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from ..core.errors import DeviceError, ModelFileError
from .architecture import kind_of
from .checkpoint import load_checkpoint
from .deepetpicker import DeepETPicker
from .deepfinder import DeepFinder
from .deepfinder_inference import InferenceDeepFinder
from .inference import InferenceUNet3D
from .inference2d import InferenceUNet2D
from .unet2d import UNet2D
from .unet3d import UNet3D

if TYPE_CHECKING:
    from .architecture import Network
    from .checkpoint import LoadedModel
    from .inference import Precision

__all__ = [
    "PinnedModel",
    "bundled_models",
    "inference_deepfinder",
    "inference_network",
    "inference_network_2d",
    "loaded_deepetpicker",
    "loaded_deepfinder",
    "loaded_model",
    "loaded_unet2d",
    "loaded_unet3d",
    "resolve_model",
]

Kind = TypeVar("Kind", UNet2D, UNet3D, DeepFinder, DeepETPicker)
BUNDLED_FOLDER = Path(__file__).parent / "bundled"
MODELS_KEPT = 4
"""Models a process keeps; a pipeline uses one to three."""


@dataclass(frozen=True)
class PinnedModel(os.PathLike[str]):
    """A model file of known content: loading it is refused once the path holds another.

    A model that is trained anew while a tomogram is predicted would make half of the scores.

    Examples
    --------
    >>> import os
    >>> os.fspath(PinnedModel("ribosome.safetensors", sha256="0" * 64))
    'ribosome.safetensors'
    """

    path: str
    sha256: str

    def __fspath__(self) -> str:
        return self.path

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True)
class _FileState:
    """Tells a file from a later one at the same path."""

    path: str
    mtime_ns: int
    n_bytes: int


_DIGESTS: dict[_FileState, str] = {}
"""SHA-256 of the files that were loaded: a model that has made room for others has it still."""


def loaded_model(path: str | os.PathLike[str], device: str = "cpu") -> LoadedModel:
    """Return a model, loaded at most once per process while its file does not change.

    Parameters
    ----------
    path
        A model file.
    device
        "cpu", "cuda" or "cuda:N".

    Raises
    ------
    ModelFileError
        The file is absent or no model, or another one than was pinned.
    DeviceError
        The device is not there.
    """
    return _load(_state(path, device), device)


def _loaded(path: str | os.PathLike[str], device: str, kind: type[Kind], called: str) -> Kind:
    """Return a model's network, of the kind that is asked for."""
    network = loaded_model(path, device).network
    if not isinstance(network, kind):
        raise ModelFileError(_wrong_kind(path, called, network))
    return network


def loaded_unet3d(path: str | os.PathLike[str], device: str = "cpu") -> UNet3D:
    """Return the network of a 3D model; cached as `loaded_model`.

    Raises
    ------
    ModelFileError
        As `loaded_model`, and where the model is a 2D one.
    """
    return _loaded(path, device, UNet3D, "3D")


def loaded_unet2d(path: str | os.PathLike[str], device: str = "cpu") -> UNet2D:
    """Return the network of a 2D model; cached as `loaded_model`.

    Raises
    ------
    ModelFileError
        As `loaded_model`, and where the model is a 3D one.
    """
    return _loaded(path, device, UNet2D, "2D")


def loaded_deepfinder(path: str | os.PathLike[str], device: str = "cpu") -> DeepFinder:
    """Return DeepFinder's network; cached as `loaded_model`.

    Raises
    ------
    ModelFileError
        As `loaded_model`, and where the model is another one.
    """
    return _loaded(path, device, DeepFinder, "DeepFinder")


def loaded_deepetpicker(path: str | os.PathLike[str], device: str = "cpu") -> DeepETPicker:
    """Return DeepETPicker's network; cached as `loaded_model`.

    Raises
    ------
    ModelFileError
        As `loaded_model`, and where the model is another one.
    """
    return _loaded(path, device, DeepETPicker, "DeepETPicker")


def inference_network(
    path: str | os.PathLike[str], device: str = "cpu", precision: Precision = "float32"
) -> InferenceUNet3D:
    """Return a 3D model's network, arranged for prediction; cached as `loaded_model`."""
    return _arrange(_state(path, device), device, precision)


def inference_network_2d(path: str | os.PathLike[str], device: str = "cpu") -> InferenceUNet2D:
    """Return a 2D model's network, arranged for prediction; cached as `loaded_model`."""
    return _arrange_2d(_state(path, device), device)


def inference_deepfinder(path: str | os.PathLike[str], device: str = "cpu") -> InferenceDeepFinder:
    """Return DeepFinder's network, arranged for prediction; cached as `loaded_model`."""
    return _arrange_deepfinder(_state(path, device), device)


def bundled_models() -> dict[str, Path]:
    """Return the models that come with the package, by name.

    Examples
    --------
    >>> all(path.suffix == ".safetensors" for path in bundled_models().values())
    True
    """
    return {path.stem: path for path in sorted(BUNDLED_FOLDER.glob("*.safetensors"))}


def resolve_model(name_or_path: str | os.PathLike[str]) -> Path:
    """Return the file of a model given by path or by the name of a bundled one.

    A file wins over a bundled model of the same name.

    Raises
    ------
    ModelFileError
        Neither a file nor a bundled model.

    Examples
    --------
    >>> resolve_model(__file__).name
    'registry.py'
    """
    path = Path(name_or_path)
    if path.is_file():
        return path.resolve()
    bundled = bundled_models()
    if str(name_or_path) in bundled:
        return bundled[str(name_or_path)]
    raise ModelFileError(
        f"{name_or_path}: no such model file; bundled models: {', '.join(bundled) or 'none'}"
    )


def _state(path: str | os.PathLike[str], device: str) -> _FileState:
    """Return what tells the file from a later one; refuse another than was pinned."""
    try:
        stat = Path(path).stat()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot read the model file: {error.strerror}") from error
    state = _FileState(os.path.realpath(path), stat.st_mtime_ns, stat.st_size)
    if not isinstance(path, PinnedModel):
        return state
    if (_DIGESTS.get(state) or _load(state, device).sha256) != path.sha256:
        raise ModelFileError(
            f"{path}: expected the model that this work began with, found another: the file "
            "was replaced meanwhile; run the same command again"
        )
    return state


@lru_cache(maxsize=MODELS_KEPT)
def _load(state: _FileState, device: str) -> LoadedModel:
    model = load_checkpoint(state.path)
    _DIGESTS[state] = model.sha256
    _check_device(device)
    model.network.to(device)
    return model


@lru_cache(maxsize=MODELS_KEPT)
def _arrange(state: _FileState, device: str, precision: Precision) -> InferenceUNet3D:
    return InferenceUNet3D(loaded_unet3d(state.path, device), precision)


@lru_cache(maxsize=MODELS_KEPT)
def _arrange_2d(state: _FileState, device: str) -> InferenceUNet2D:
    return InferenceUNet2D(loaded_unet2d(state.path, device))


@lru_cache(maxsize=MODELS_KEPT)
def _arrange_deepfinder(state: _FileState, device: str) -> InferenceDeepFinder:
    return InferenceDeepFinder(loaded_deepfinder(state.path, device))


def _wrong_kind(path: str | os.PathLike[str], expected: str, network: Network) -> str:
    found = {"unet2d": "2D", "unet3d": "3D", "deepfinder": "DeepFinder"}.get(
        kind_of(network.settings), "DeepETPicker"
    )
    return (
        f"{path}: expected a {expected} model, found a {found} one (depth "
        f"{network.settings.depth}, {network.settings.initial_features} features)"
    )


def _check_device(device: str) -> None:
    """Refuse a device that is not there."""
    kind = device.split(":")[0]
    if kind not in {"cpu", "cuda"}:
        raise DeviceError(f"device {device!r}: expected cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            f"device {device!r}: PyTorch {torch.__version__} finds no CUDA GPU; "
            "use --device cpu, or install PyTorch for CUDA"
        )
