"""Read DeepFinder's network out of a Keras HDF5 file, with h5py alone.

1. The file lists its layers in order (see `keras_layers`); 15 of them have weights, all 3D
   convolutions, in the order of the data's way through the network.
2. The channels of three of them and of the last give the settings; every shape is checked.
3. Where the file holds the network's description too, what shapes cannot show is checked: padding,
   activations, and which input of a concatenation comes first.

The patch that a file was trained on means nothing for its use: the network is fully convolutional.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ..core.errors import ModelFileError
from .deepfinder import CONVOLUTIONS, DeepFinder, DeepFinderSettings
from .keras_layers import activations, description, mentioned, opened, text, weight_layers

if TYPE_CHECKING:
    import torch

    from .keras_layers import KerasLayer, Source

__all__ = ["DeepFinderFile", "has_3d_convolutions", "read_deepfinder_file"]

EXPECTED: Final[dict[str, dict[str, Any]]] = {
    "InputLayer": {},
    "Conv3D": {
        "strides": [1, 1, 1], "padding": "same", "dilation_rate": [1, 1, 1],
        "data_format": "channels_last",
    },
    "MaxPooling3D": {"pool_size": [2, 2, 2], "strides": [2, 2, 2]},
    "UpSampling3D": {"size": [2, 2, 2]},
    "Concatenate": {"axis": -1},
}  # fmt: skip
"""What a description must say of a layer, where it says it."""
JOINED: Final = (("up_mid", "mid.1"), ("up_high", "high.1"))
"""The convolutions whose results a concatenation takes, in this order."""


@dataclass(frozen=True)
class DeepFinderFile:
    """A DeepFinder network in a Keras file, its weights not yet built."""

    source: Source
    settings: DeepFinderSettings
    card: dict[str, Any]
    """The version of Keras."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of `DeepFinder`'s state dict."""
        return dict(DeepFinder.state_shapes(self.settings))

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the state dict of `DeepFinder`, float32."""
        state: dict[str, torch.Tensor] = {}
        with opened(self.source) as file:
            for name, layer in zip(CONVOLUTIONS, weight_layers(file), strict=True):
                state[f"{name}.weight"], state[f"{name}.bias"] = layer.tensors()
        return state


def has_3d_convolutions(source: Source) -> bool:
    """Say whether the first layer with weights of a Keras file is a 3D convolution.

    Raises
    ------
    ModelFileError
        The file is damaged, or no Keras model.
    """
    with opened(source) as file:
        layers = weight_layers(file)
        return bool(layers) and layers[0].n_axes == 5


def read_deepfinder_file(source: Source) -> DeepFinderFile:
    """Return what a Keras HDF5 file of DeepFinder holds, without building its weights.

    Parameters
    ----------
    source
        All bytes of the file, or its path.

    Raises
    ------
    ModelFileError
        The file is damaged, holds no Keras model, or another network than DeepFinder's.

    Examples
    --------
    >>> import io
    >>> import h5py
    >>> stream = io.BytesIO()
    >>> with h5py.File(stream, "w") as file:
    ...     file.attrs["layer_names"] = []
    >>> read_deepfinder_file(stream.getvalue())
    Traceback (most recent call last):
    deepict_dask.core.errors.ModelFileError: expected the 15 3D convolutions of DeepFinder's \
network, found 0 layers with weights
    """
    with opened(source) as file:
        layers = weight_layers(file)
        settings = _settings(layers)
        _check_shapes(layers, settings)
        _check_description(description(file), [layer.name for layer in layers])
        version = file.attrs.get("keras_version")
        card = {} if version is None else {"keras_version": text(version)}
    return DeepFinderFile(source, settings, card)


def _settings(layers: list[KerasLayer]) -> DeepFinderSettings:
    """Read channels and classes off the layers."""
    for layer in layers:
        if not layer.is_convolution or layer.n_axes != 5:
            raise ModelFileError(
                "expected 3D convolutions only (each a kernel of 5 axes and a bias), as in "
                f"DeepFinder's network, found layer {layer.name} with {layer.shapes}"
            )
    if len(layers) != len(CONVOLUTIONS):
        raise ModelFileError(
            f"expected the {len(CONVOLUTIONS)} 3D convolutions of DeepFinder's network, "
            f"found {len(layers)} layers with weights"
        )
    outputs = dict(zip(CONVOLUTIONS, (layer.kernel_shape[0] for layer in layers), strict=True))
    features = (outputs["high.0"], outputs["mid.0"], outputs["low.0"])
    return DeepFinderSettings(n_classes=outputs["out_conv"], features=features)


def _check_shapes(layers: list[KerasLayer], settings: DeepFinderSettings) -> None:
    """Refuse layers whose weights are not those of the network in its order."""
    expected = DeepFinder.state_shapes(settings)
    for layer, name in zip(layers, CONVOLUTIONS, strict=True):
        for part, shape in (("weight", layer.kernel_shape), ("bias", layer.bias_shape)):
            wanted = expected[f"{name}.{part}"]
            if shape != wanted:
                raise ModelFileError(
                    f"not the layers of DeepFinder's network in order: {layer.name} has a {part} "
                    f"of shape {shape}, expected {wanted} (for {name}; channels first)"
                )


def _check_description(described: list[dict[str, Any]], names: list[str]) -> None:
    """Refuse a network that has the right weights but uses them otherwise."""
    if not described:
        return
    for layer in described:
        _check_layer(layer)
    found = [a for layer in described for a in activations(layer)]
    if found != ["relu"] * (len(names) - 1) + ["softmax"]:
        raise ModelFileError(
            "expected a ReLU after each convolution and a softmax at the end, as in DeepFinder's "
            f"network, found the activations {', '.join(found)}"
        )
    _check_joints(described, dict(zip(CONVOLUTIONS, names, strict=True)))


def _check_layer(layer: dict[str, Any]) -> None:
    """Refuse a layer of an unknown class, or with settings the network has not."""
    kind, config = layer["class_name"], layer["config"]
    if kind not in EXPECTED:
        raise ModelFileError(
            f"layer {config['name']}: a {kind} is not part of DeepFinder's network"
        )
    for key, value in EXPECTED[kind].items():
        if config.get(key, value) != value:
            raise ModelFileError(
                f"layer {config['name']}: expected {key} {value}, found {config[key]}"
            )


def _check_joints(described: list[dict[str, Any]], names: dict[str, str]) -> None:
    """Refuse concatenations of other results, or in another order."""
    known = {layer["config"]["name"]: layer["class_name"] for layer in described}
    found = [
        list(mentioned(layer["inbound_nodes"], known))
        for layer in described
        if layer["class_name"] == "Concatenate"
    ]
    expected = [[names[part] for part in joint] for joint in JOINED]
    if found != expected:
        raise ModelFileError(
            f"expected concatenations of {expected} as in DeepFinder's network, found {found}"
        )
