"""Model files in, networks out.

1. Name the kind of file from its first bytes; refuse what is no model, saying what it looks like.
2. List its tensors (names and shapes) and what it says of itself, without building weights.
3. Infer the architecture from the shapes; where the file states it too, the two must agree.
4. Build the weights, once, into a network in eval mode.

Two formats are read (see `model_file`): DeePiCt's ``.pth``, of which nothing is run, and our own
``.safetensors``, whose metadata hold one JSON text under the key ``deepict_dask``.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save as save_tensors

from ..core.errors import ModelFileError
from .model_file import METADATA_KEY, understand
from .unet3d import UNet3D, UNet3DSettings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .model_file import ModelFile, Shapes

__all__ = ["LoadedModel", "ModelInfo", "load_checkpoint", "model_info", "save_model"]


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A network that is ready to predict, and what its file says of it."""

    network: UNet3D
    """In eval mode, float32, on the CPU unless moved."""
    settings: UNet3DSettings
    class_names: tuple[str, ...]
    """Semantic classes in channel order."""
    voxel_spacing_angstrom: float | None
    """Spacing of the tomograms it was trained on; None where the file does not say."""
    card: dict[str, Any]
    """Whatever else the file says: training set, epochs, loss, ..."""
    sha256: str
    """Of the whole file."""


@dataclass(frozen=True)
class ModelInfo:
    """What a model file says, without its weights."""

    path: str
    settings: UNet3DSettings
    class_names: tuple[str, ...]
    voxel_spacing_angstrom: float | None
    n_parameters: int
    """Trainable numbers."""
    halo: int
    """Voxels a window needs on every side."""
    align: int
    """Windows start on multiples of this."""
    card: dict[str, Any]
    sha256: str


def load_checkpoint(path: str | os.PathLike[str]) -> LoadedModel:
    """Return the network of a model file.

    Parameters
    ----------
    path
        A DeePiCt ``.pth`` checkpoint or a ``.safetensors`` file of `save_model`.

    Returns
    -------
    LoadedModel
        The network in eval mode and what the file says of it.

    Raises
    ------
    ModelFileError
        The file is of another kind, damaged, names code to run, or its tensors do not fit a 3D
        U-Net.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = Path(folder.name) / "tiny.safetensors"
    >>> network = UNet3D(UNet3DSettings(depth=1, initial_features=2))
    >>> save_model(path, network, class_names=["ribosome"], voxel_spacing_angstrom=13.48)
    >>> model = load_checkpoint(path)
    >>> model.class_names, model.settings.depth, model.network.training
    (('ribosome',), 1, False)
    >>> folder.cleanup()
    """
    data = _read(path)
    with _located(path):
        file = understand(data)
        settings = _settings(file)
        network = _network(settings, file.weights())
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
            n_parameters=sum(math.prod(s) for n, s in file.shapes.items() if _is_trainable(n)),
            halo=settings.halo,
            align=settings.align,
            card=file.card,
            sha256=hashlib.sha256(data).hexdigest(),
        )


def save_model(
    path: str | os.PathLike[str],
    network: UNet3D,
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
        Any `UNet3D`.
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
        "kind": "unet3d",
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
    _replace(Path(path), save_tensors(tensors, {METADATA_KEY: text}))


def _replace(path: Path, data: bytes) -> None:
    """Write a file beside its final place and move it there."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


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


def _settings(file: ModelFile) -> UNet3DSettings:
    """Infer the architecture from the shapes; check it against what the file states."""
    inferred = _inferred(file.shapes)
    for name, value in inferred.items():
        if name in file.stated and file.stated[name] != value:
            raise ModelFileError(
                f"the file says {name} = {file.stated[name]}, but its tensors have {value}; "
                "the file is inconsistent, so train or export the model again"
            )
    dropouts = {k: v for k, v in file.stated.items() if k.endswith("_dropout")}
    settings = UNet3DSettings(**inferred, **dropouts)
    _check_shapes(file.shapes, UNet3D.state_shapes(settings))
    return settings


def _inferred(shapes: Shapes) -> dict[str, Any]:
    """Read depth, channels, classes and normalisation off the tensor names and shapes."""
    first, last = shapes.get("encoder.0.0.weight", ()), shapes.get("out_conv.weight", ())
    if len(first) != 5 or len(last) != 5:
        raise ModelFileError(
            "expected the tensors of a 3D U-Net (encoder.0.0.weight, out_conv.weight), found "
            f"{', '.join(sorted(shapes)[:4]) or 'none'}"
        )
    levels = {name.split(".")[1] for name in shapes if name.startswith("encoder.")}
    return {
        "depth": len(levels),
        "initial_features": first[0],
        "n_classes": last[0],
        "batch_norm": "encoder.0.2.running_mean" in shapes,
    }


def _check_shapes(found: Shapes, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse tensors that are missing, unknown or of another shape."""
    problems = [
        f"{name} is missing" for name in expected if name not in found | _counters(expected)
    ]
    problems += [f"{name} is not known" for name in found if name not in expected]
    problems += [
        f"{name} has shape {found[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ModelFileError(f"not the tensors of a 3D U-Net: {'; '.join(problems[:3])}{more}")


def _counters(shapes: Mapping[str, tuple[int, ...]]) -> Shapes:
    """Return the batch counters, which old checkpoints lack and prediction does not use."""
    return {name: s for name, s in shapes.items() if name.endswith("num_batches_tracked")}


def _is_trainable(name: str) -> bool:
    """Say whether a tensor is a parameter rather than a running statistic."""
    return not name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def _network(settings: UNet3DSettings, weights: Mapping[str, torch.Tensor]) -> UNet3D:
    """Return the network with these weights, allocated once."""
    with torch.device("meta"):
        network = UNet3D(settings)
    state = {
        name: torch.zeros(shape, dtype=torch.int64)
        for name, shape in _counters(UNet3D.state_shapes(settings)).items()
    }
    for name, tensor in weights.items():
        state[name] = tensor if name in state else tensor.to(torch.float32)
    network.load_state_dict(state, assign=True)
    return network.eval()


def _class_names(file: ModelFile, settings: UNet3DSettings) -> tuple[str, ...]:
    """Return one name per channel; numbered where the file does not name them all."""
    if file.class_names is not None and len(file.class_names) == settings.n_classes:
        return file.class_names
    return tuple(f"class_{channel}" for channel in range(settings.n_classes))
