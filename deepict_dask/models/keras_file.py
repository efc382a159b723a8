"""Read DeePiCt's 2D network out of a Keras HDF5 file, with h5py alone.

1. The file lists its layers in order (see `keras_layers`), and they are matched by that order.
2. A U-Net of ``depth`` poolings has 5 depth + 3 layers with weights (4 depth + 3 convolutions and
   ``depth`` transposed ones), in the order of the data's way through it. Their number gives the
   depth, the first and the last give the channels, and then every shape is known and checked.
3. Where the file holds the network's description too, what shapes cannot show is checked: strides,
   padding, activations, and which input of a concatenation comes first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ..core.errors import ModelFileError
from .keras_layers import (
    KerasLayer,
    Source,
    activations,
    description,
    mentioned,
    opened,
    text,
    weight_layers,
)
from .unet2d import UNet2D, UNet2DSettings

if TYPE_CHECKING:
    import torch

__all__ = ["KerasFile", "read_keras_file"]

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
        with opened(self.source) as file:
            for name, layer in zip(_torch_names(self.settings.depth), _layers(file), strict=True):
                state[f"{name}.weight"], state[f"{name}.bias"] = layer.tensors()
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
    >>> import io
    >>> import h5py
    >>> stream = io.BytesIO()
    >>> with h5py.File(stream, "w") as file:
    ...     file.attrs["layer_names"] = ["dense"]
    ...     _ = file.create_group("dense").attrs["weight_names"] = []
    >>> read_keras_file(stream.getvalue())
    Traceback (most recent call last):
    deepict_dask.core.errors.ModelFileError: expected the 23 layers with weights of DeePiCt's 2D \
U-Net (or 5 per pooling and 3 more), found 0
    """
    with opened(source) as file:
        layers = _layers(file)
        settings = _settings(layers)
        _check_shapes(layers, settings)
        described = description(file)
        if described:
            _check_description(described, settings)
        card = _card(file, described)
    return KerasFile(source, settings, card)


def _layers(file: Any) -> list[KerasLayer]:
    """Return the layers that have weights; all of them must be 2D convolutions."""
    layers = weight_layers(file)
    for layer in layers:
        if not layer.is_convolution or layer.n_axes != 4:
            raise ModelFileError(
                "expected 2D convolutions only (each a kernel of 4 axes and a bias), as in "
                f"DeePiCt's 2D U-Net, found layer {layer.name} with {layer.shapes}"
            )
    return layers


def _settings(layers: list[KerasLayer]) -> UNet2DSettings:
    """Read depth, channels and classes off the layers."""
    depth, rest = divmod(len(layers) - 3, 5)
    if depth < 1 or rest:
        raise ModelFileError(
            "expected the 23 layers with weights of DeePiCt's 2D U-Net (or 5 per pooling and 3 "
            f"more), found {len(layers)}"
        )
    return UNet2DSettings(
        depth=depth,
        initial_features=layers[0].kernel_shape[0],
        n_classes=layers[-1].kernel_shape[0],
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


def _check_shapes(layers: list[KerasLayer], settings: UNet2DSettings) -> None:
    """Refuse layers whose weights are not those of the U-Net in its order."""
    expected = UNet2D.state_shapes(settings)
    for layer, name in zip(layers, _torch_names(settings.depth), strict=True):
        for part, shape in (("weight", layer.kernel_shape), ("bias", layer.bias_shape)):
            wanted = expected[f"{name}.{part}"]
            if shape != wanted:
                raise ModelFileError(
                    f"not the layers of a 2D U-Net in order: {layer.name} has a {part} of shape "
                    f"{shape}, expected {wanted} (for {name}; channels first)"
                )


def _check_description(described: list[dict[str, Any]], settings: UNet2DSettings) -> None:
    """Refuse a network that has the right weights but uses them otherwise."""
    classes = {layer["config"]["name"]: layer["class_name"] for layer in described}
    for layer in described:
        _check_layer(layer)
        if layer["class_name"] == "Concatenate":
            inputs = [classes[name] for name in mentioned(layer["inbound_nodes"], classes)]
            if inputs[0] != "Conv2DTranspose" or "Conv2DTranspose" in inputs[1:]:
                raise ModelFileError(
                    f"layer {layer['config']['name']}: expected the upsampled features before the "
                    f"kept ones, as in DeePiCt's 2D U-Net, found inputs from {inputs}"
                )
    found = [a for layer in described for a in activations(layer)]
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
    return card if version is None else {**card, "keras_version": text(version)}
