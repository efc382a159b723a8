"""What a model file says, before any weights are built.

DeePiCt's ``.pth`` and DeepETPicker's ``.ckpt`` are read without running anything in them (see
`torch_file`), the ``.h5`` of DeePiCt's 2D network and of DeepFinder without Keras (see
`keras_layers`); our ``.safetensors`` carries one JSON text under the
metadata key ``deepict_dask``. Other kinds of file are refused with what they look like.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from ..core.errors import ModelFileError
from .architecture import NETWORKS
from .deepfinder_keras import has_3d_convolutions, read_deepfinder_file
from .file_kinds import HDF5, PICKLE, SAFETENSORS, file_kind
from .keras_file import read_keras_file
from .torch_file import Arguments, Descriptor, TensorPlan, read_torch_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from .architecture import Shapes
    from .torch_file import TorchFile

__all__ = ["METADATA_KEY", "ModelFile", "understand"]

METADATA_KEY = "deepict_dask"


@dataclass(frozen=True, eq=False)
class ModelFile:
    """A model file that was understood but whose weights were not built."""

    shapes: Shapes
    stated: dict[str, Any]
    """Settings the file states, by the names of its network's settings; may be empty or partial."""
    class_names: tuple[str, ...] | None
    voxel_spacing_angstrom: float | None
    card: dict[str, Any]
    weights: Callable[[], Mapping[str, torch.Tensor]] = field(repr=False)
    kind: str | None = None
    """One of `architecture.NETWORKS` where the file states it."""


def understand(data: bytes) -> ModelFile:
    """Return what a file says, by its kind."""
    kind = file_kind(data)
    if kind == PICKLE:
        return _from_pickle(data)
    if kind == SAFETENSORS:
        return _from_safetensors(data)
    if kind == HDF5:
        return _from_keras(data)
    raise ModelFileError(
        "expected a model (DeePiCt .pth or .h5, DeepFinder .h5, DeepETPicker .ckpt, or "
        f"deepict_dask .safetensors), but this looks like {kind}"
    )


def _from_keras(data: bytes) -> ModelFile:
    """Read DeePiCt's 2D network, or DeepFinder's."""
    if has_3d_convolutions(data):
        return _from_deepfinder(data)
    file = read_keras_file(data)
    return ModelFile(
        shapes=file.shapes,
        stated={},
        class_names=None,
        voxel_spacing_angstrom=None,
        card=file.card,
        weights=file.weights,
        kind="unet2d",
    )


def _from_deepfinder(data: bytes) -> ModelFile:
    """Read DeepFinder's network."""
    file = read_deepfinder_file(data)
    return ModelFile(
        shapes=file.shapes,
        stated={},
        class_names=class_names_behind_background(file.settings.n_classes),
        voxel_spacing_angstrom=None,
        card=file.card,
        weights=file.weights,
        kind="deepfinder",
    )


def class_names_behind_background(n_channels: int) -> tuple[str, ...]:
    """Return names for the channels of a softmax, the first of which is the background.

    Examples
    --------
    >>> class_names_behind_background(3)
    ('background', 'class_1', 'class_2')
    """
    return ("background", *(f"class_{number}" for number in range(1, n_channels)))


def _from_pickle(data: bytes) -> ModelFile:
    """Read DeePiCt's checkpoint, DeepETPicker's, or a bare state dict."""
    file = read_torch_file(data)
    content = file.content if isinstance(file.content, dict) else {}
    state = content.get("model_state_dict", content.get("state_dict", content))
    prefix = "model." if "hyper_parameters" in content else "module."
    plans = {
        name.removeprefix(prefix): value
        for name, value in (state.items() if isinstance(state, dict) else ())
        if isinstance(name, str) and isinstance(value, TensorPlan)
    }
    if not plans:
        raise ModelFileError(
            "expected a checkpoint with model_state_dict, found "
            + (f"the keys {sorted(map(str, content))}" if content else type(file.content).__name__)
        )
    if "hyper_parameters" in content:
        return _from_lightning(file, content, plans)
    fields = _descriptor_fields(content.get("model_descriptor"))
    return ModelFile(
        shapes={name: plan.shape for name, plan in plans.items()},
        stated=_stated_by_descriptor(fields),
        class_names=_names(fields.get("semantic_classes")),
        voxel_spacing_angstrom=None,
        card={**fields, **_plain({k: content.get(k) for k in ("epoch", "loss")}, rename="final_")},
        weights=lambda: {name: file.tensor(plan) for name, plan in plans.items()},
    )


def _from_lightning(
    file: TorchFile, content: Mapping[str, Any], plans: Mapping[str, TensorPlan]
) -> ModelFile:
    """Read DeepETPicker's checkpoint, whose arguments say what tiles it was made for."""
    shapes = {name: plan.shape for name, plan in plans.items()}
    parameters = content["hyper_parameters"]
    found = parameters.get("args") if isinstance(parameters, dict) else None
    arguments = _plain(vars(found)) if isinstance(found, Arguments) else {}
    _check_arguments(arguments)
    tiles = {
        k: arguments[k] for k in ("block_size", "pad_size") if isinstance(arguments.get(k), int)
    }
    n_classes = shapes.get("final_conv.weight", (1,))[0]
    version = {"lightning_version": content.get("pytorch-lightning_version")}
    told = {"epoch": content.get("epoch"), "dataset": arguments.get("dset_name")}
    return ModelFile(
        shapes=shapes,
        stated=tiles,
        class_names=class_names_behind_background(n_classes) if n_classes > 1 else None,
        voxel_spacing_angstrom=None,
        card=_plain({**told, **version}),
        weights=lambda: {name: file.tensor(plan) for name, plan in plans.items()},
        kind="deepetpicker",
    )


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuse variants of the network that have the same tensors, or other layers."""
    expected = {"norm": "bn", "act": "relu", "use_IP": True, "use_coord": True, "use_aspp": False}
    for name, value in expected.items():
        if arguments.get(name, value) != value:
            raise ModelFileError(
                f"DeepETPicker: expected {name} = {value}, as its own programs set it, "
                f"found {arguments[name]}"
            )


def _descriptor_fields(descriptor: object) -> dict[str, Any]:
    """Return the plain fields of DeePiCt's descriptor; any may be missing (DeePiCt issue 9)."""
    return _plain(vars(descriptor)) if isinstance(descriptor, Descriptor) else {}


def _plain(fields: Mapping[str, Any], rename: str = "") -> dict[str, Any]:
    """Keep the fields that JSON can hold."""
    kept: dict[str, Any] = {}
    for name, value in fields.items():
        values = value if isinstance(value, list | tuple) else [value]
        finite = all(not isinstance(v, float) or math.isfinite(v) for v in values)
        if value is not None and finite and all(isinstance(v, str | int | float) for v in values):
            kept[rename + name] = list(value) if isinstance(value, tuple) else value
    return kept


def _stated_by_descriptor(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the architecture a descriptor states."""
    names = {"output_classes": "n_classes"}
    wanted = ("depth", "initial_features", "output_classes", "batch_norm")
    stated = {names.get(k, k): fields[k] for k in wanted if k in fields}
    dropouts = ("encoder_dropout", "decoder_dropout")
    return stated | {
        k: float(fields[k]) for k in dropouts if isinstance(fields.get(k), int | float)
    }


def _names(value: object) -> tuple[str, ...] | None:
    """Return class names, where the value is a list of them."""
    if isinstance(value, list | tuple) and value and all(isinstance(v, str) for v in value):
        return tuple(value)
    return None


def _from_safetensors(data: bytes) -> ModelFile:
    """Read a safetensors file, ours or anyone's with the same tensor names."""
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        about = json.loads(header.pop("__metadata__", {}).get(METADATA_KEY, "{}"))
        if about.get("kind") not in {None, *NETWORKS}:
            kinds = " or ".join(NETWORKS)
            raise ModelFileError(f"expected kind {kinds}, found {about['kind']!r}")
        shapes = {name.removeprefix("module."): tuple(t["shape"]) for name, t in header.items()}
        spacing = about.get("voxel_spacing_angstrom")
        return ModelFile(
            shapes=shapes,
            stated=dict(about.get("settings", {})),
            class_names=_names(about.get("class_names")),
            voxel_spacing_angstrom=None if spacing is None else float(spacing),
            card=dict(about.get("card", {})),
            weights=lambda: _safe_weights(data),
            kind=about.get("kind"),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(
            f"a damaged or truncated safetensors file ({error}); copy the file again"
        ) from error


def _safe_weights(data: bytes) -> Mapping[str, torch.Tensor]:
    """Build the tensors of a safetensors file."""
    try:
        tensors = load_tensors(data)
    except SafetensorError as error:
        raise ModelFileError(
            f"a damaged or truncated safetensors file ({error}); copy the file again"
        ) from error
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
