"""Read DeePiCt's 2D network out of a Keras HDF5 file, with h5py alone.

How are layers matched? By their order, never by their names: Keras numbers layers through a whole
process, so the same network may start at ``conv2d``, ``conv2d_1`` or ``conv2d_20``.

1. The file lists its layers in order, in an attribute of ``model_weights`` (a saved model) or of
   the root (a file of weights only). Layers without weights are passed over.
2. A U-Net of ``depth`` poolings has 5 depth + 3 layers with weights (4 depth + 3 convolutions and
   ``depth`` transposed ones), in the order of the data's way through it. Their number gives the
   depth, the first and the last give the channels, and then every shape is known and checked.
3. Where the file holds the network's description too, what shapes cannot show is checked: strides,
   padding, activations, and which input of a concatenation comes first.

A kernel is stored as (y, x, in, out), that of a transposed convolution as (y, x, out, in); both
become what PyTorch wants by moving the last two axes, in reverse, to the front.
"""

from __future__ import annotations

import io
import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import h5py
import numpy as np
import torch

from ..core.errors import ModelFileError
from .unet2d import UNet2D, UNet2DSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["KerasFile", "read_keras_file"]

Source = bytes | str | Path

TORCH_AXES: Final = (3, 2, 0, 1)
"""Where each axis of a PyTorch kernel is in Keras' kernel, transposed convolutions included."""

HARMLESS_LAYERS: Final = {"InputLayer", "Activation", "ReLU", "Dropout", "SpatialDropout2D"}
"""Layers of a description that need no look, beyond the activations."""

EXPECTED_SETTINGS: Final[dict[str, dict[str, Any]]] = {
    "Conv2D": {"strides": [1, 1], "dilation_rate": [1, 1], "data_format": "channels_last"},
    "Conv2DTranspose": {
        "strides": [2, 2],
        "padding": "same",
        "dilation_rate": [1, 1],
        "data_format": "channels_last",
    },
    "MaxPooling2D": {"pool_size": [2, 2], "strides": [2, 2], "data_format": "channels_last"},
    "Concatenate": {},
}
"""What a description must say of a layer, where it says it."""

DAMAGE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What h5py and json raise on bytes that are no whole file."""


@dataclass(frozen=True)
class _Layer:
    """The weights of one layer, not yet read."""

    name: str
    kernel: Any
    bias: Any

    @property
    def torch_shape(self) -> tuple[int, ...]:
        """Shape of the kernel as PyTorch has it."""
        return tuple(int(self.kernel.shape[axis]) for axis in TORCH_AXES)


@dataclass(frozen=True)
class KerasFile:
    """A 2D U-Net in a Keras file, its weights not yet built."""

    source: Source
    settings: UNet2DSettings
    card: dict[str, Any]
    """``tile`` (y, x) of the network's input where it is fixed, and the version of Keras."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of `UNet2D`'s state dict."""
        return dict(UNet2D.state_shapes(self.settings))

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the state dict of `UNet2D`, float32."""
        state: dict[str, torch.Tensor] = {}
        with _opened(self.source) as file:
            for name, layer in zip(_torch_names(self.settings.depth), _layers(file), strict=True):
                kernel = np.asarray(layer.kernel[()], dtype=np.float32).transpose(TORCH_AXES)
                state[f"{name}.weight"] = torch.from_numpy(np.ascontiguousarray(kernel))
                state[f"{name}.bias"] = torch.from_numpy(np.array(layer.bias[()], dtype=np.float32))
        return state


def read_keras_file(source: Source) -> KerasFile:
    """Return what a Keras HDF5 file holds, without building its weights.

    Parameters
    ----------
    source
        All bytes of the file, or its path.

    Returns
    -------
    KerasFile
        Settings, and weights for when they are wanted.

    Raises
    ------
    ModelFileError
        The file is damaged, holds no Keras model, or another network than the 2D U-Net.

    Examples
    --------
    >>> stream = io.BytesIO()
    >>> with h5py.File(stream, "w") as file:
    ...     file.attrs["layer_names"] = ["dense"]
    ...     _ = file.create_group("dense").attrs["weight_names"] = []
    >>> read_keras_file(stream.getvalue())
    Traceback (most recent call last):
    deepict_dask.core.errors.ModelFileError: expected the 23 layers with weights of DeePiCt's 2D \
U-Net (or 5 per pooling and 3 more), found 0
    """
    with _opened(source) as file:
        layers = _layers(file)
        settings = _settings(layers)
        _check_shapes(layers, settings)
        described = _description(file)
        if described:
            _check_description(described, settings)
        card = _card(file, described)
    return KerasFile(source, settings, card)


@contextmanager
def _opened(source: Source) -> Iterator[Any]:
    """Open an HDF5 file; whatever is wrong with it becomes a ModelFileError."""
    try:
        with h5py.File(io.BytesIO(source) if isinstance(source, bytes) else source, "r") as file:
            yield file
    except ModelFileError:
        raise
    except DAMAGE as error:
        raise ModelFileError(
            f"a damaged or truncated HDF5 file ({error}); copy or download the file again"
        ) from error


def _layers(file: Any) -> list[_Layer]:
    """Return the layers that have weights, in the file's own order."""
    root = file.get("model_weights", file)
    if "layer_names" not in root.attrs:
        raise ModelFileError(_without_layers(file))
    groups = [(name, root[name]) for name in map(_text, root.attrs["layer_names"])]
    return [_layer(name, group) for name, group in groups if len(group.attrs["weight_names"])]


def _layer(name: str, group: Any) -> _Layer:
    """Return one layer's kernel and bias."""
    weights = {
        _text(path).rsplit("/", 1)[-1].split(":")[0]: group[_text(path)]
        for path in group.attrs["weight_names"]
    }
    if weights.keys() != {"kernel", "bias"} or len(weights["kernel"].shape) != 4:
        found = ", ".join(f"{key} {value.shape}" for key, value in weights.items())
        raise ModelFileError(
            "expected 2D convolutions only (each a kernel of 4 axes and a bias), as in DeePiCt's "
            f"2D U-Net, found layer {name} with {found}"
        )
    for key, value in weights.items():
        if value.dtype.kind != "f":
            raise ModelFileError(f"layer {name}: expected a {key} of floats, found {value.dtype}")
    return _Layer(name, weights["kernel"], weights["bias"])


def _text(value: object) -> str:
    """Return an attribute's text; h5py gives str or bytes, as Keras wrote it."""
    return value.decode() if isinstance(value, bytes) else str(value)


def _without_layers(file: Any) -> str:
    """Say what an HDF5 file is that lists no layers."""
    names = sorted(file)
    if {"layers", "_layer_checkpoint_dependencies"} & set(names):
        return (
            "this looks like a .weights.h5 file of Keras 3, which does not keep the layers' order; "
            "load it in Keras and save the model with model.save('model.h5')"
        )
    found = ", ".join(names[:4]) or "nothing"
    return f"expected a Keras model, but this looks like another HDF5 file (it holds {found})"


def _settings(layers: list[_Layer]) -> UNet2DSettings:
    """Read depth, channels and classes off the layers."""
    depth, rest = divmod(len(layers) - 3, 5)
    if depth < 1 or rest:
        raise ModelFileError(
            "expected the 23 layers with weights of DeePiCt's 2D U-Net (or 5 per pooling and 3 "
            f"more), found {len(layers)}"
        )
    return UNet2DSettings(
        depth=depth,
        initial_features=layers[0].torch_shape[0],
        n_classes=layers[-1].torch_shape[0],
    )


def _torch_names(depth: int) -> list[str]:
    """Return where in `UNet2D` each layer belongs, in the order of the data's way through it."""
    falling = [f"encoder.{level}.{i}" for level in range(depth) for i in (0, 2)]
    rising = [
        name
        for step in range(depth)
        for name in (f"upsamplers.{step}", f"decoder.{step}.0", f"decoder.{step}.2")
    ]
    return [*falling, "base.0", "base.2", *rising, "out_conv"]


def _check_shapes(layers: list[_Layer], settings: UNet2DSettings) -> None:
    """Refuse layers whose weights are not those of the U-Net in its order."""
    expected = UNet2D.state_shapes(settings)
    for layer, name in zip(layers, _torch_names(settings.depth), strict=True):
        for part, shape in (("weight", layer.torch_shape), ("bias", tuple(layer.bias.shape))):
            wanted = expected[f"{name}.{part}"]
            if shape != wanted:
                raise ModelFileError(
                    f"not the layers of a 2D U-Net in order: {layer.name} has a {part} of shape "
                    f"{shape}, expected {wanted} (for {name}; channels first)"
                )


def _description(file: Any) -> list[dict[str, Any]]:
    """Return the layers as ``model_config`` describes them; none in a file of weights only."""
    text = file.attrs.get("model_config")
    return [] if text is None else json.loads(_text(text))["config"]["layers"]


def _check_description(described: list[dict[str, Any]], settings: UNet2DSettings) -> None:
    """Refuse a network that has the right weights but uses them otherwise."""
    classes = {layer["config"]["name"]: layer["class_name"] for layer in described}
    for layer in described:
        _check_layer(layer)
        if layer["class_name"] == "Concatenate":
            inputs = [classes[name] for name in _mentioned(layer["inbound_nodes"], classes)]
            if inputs[0] != "Conv2DTranspose" or "Conv2DTranspose" in inputs[1:]:
                raise ModelFileError(
                    f"layer {layer['config']['name']}: expected the upsampled features before the "
                    f"kept ones, as in DeePiCt's 2D U-Net, found inputs from {inputs}"
                )
    found = [a for layer in described for a in _activations(layer)]
    if found != ["relu"] * (4 * settings.depth + 2) + ["sigmoid"]:
        raise ModelFileError(
            "expected a ReLU after each 3x3 convolution and a sigmoid at the end, as in DeePiCt's "
            f"2D U-Net, found the activations {', '.join(found)}"
        )


def _check_layer(layer: dict[str, Any]) -> None:
    """Refuse a layer of an unknown class, or with settings the U-Net has not."""
    kind, config = layer["class_name"], layer["config"]
    if kind not in HARMLESS_LAYERS | EXPECTED_SETTINGS.keys():
        raise ModelFileError(f"layer {config['name']}: a {kind} is not part of DeePiCt's 2D U-Net")
    expected = dict(EXPECTED_SETTINGS.get(kind, {}))
    if kind == "Conv2D" and config.get("kernel_size") != [1, 1]:
        expected["padding"] = "same"
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise ModelFileError(
                f"layer {config['name']}: expected {key} {value}, found {config[key]}"
            )


def _activations(layer: dict[str, Any]) -> Iterator[str]:
    """Yield the activation a layer applies, where it applies one."""
    activation = "relu" if layer["class_name"] == "ReLU" else layer["config"].get("activation")
    if activation not in {None, "linear"}:
        yield str(activation)


def _mentioned(node: Any, names: dict[str, str]) -> Iterator[str]:
    """Yield the layers that a layer's inputs name, in order; Keras 2 and 3 nest them otherwise."""
    if isinstance(node, str) and node in names:
        yield node
    elif isinstance(node, list | dict):
        for part in node.values() if isinstance(node, dict) else node:
            yield from _mentioned(part, names)


def _card(file: Any, described: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what else the file says."""
    card: dict[str, Any] = {}
    for layer in described:
        config = layer["config"]
        shape = config.get("batch_input_shape") or config.get("batch_shape")
        if shape is not None and None not in shape[1:3]:
            card["tile"] = [int(n) for n in shape[1:3]]
            break
    version = file.attrs.get("keras_version")
    return card if version is None else {**card, "keras_version": _text(version)}
