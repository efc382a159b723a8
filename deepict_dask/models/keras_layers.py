"""The layers of a Keras HDF5 file, with h5py alone: names, kernels, biases, in the file's order.

How are layers matched to a network? By their order, never by their names: Keras numbers layers
through a whole process, so the same network may start at ``conv2d``, ``conv2d_1`` or ``conv2d_20``.
The file lists them in an attribute of ``model_weights`` (a saved model) or of the root (a file of
weights only). Layers without weights are passed over.

A kernel is stored as (z, y, x, in, out), without z in 2D, that of a transposed convolution as
(..., out, in); both become what PyTorch wants by moving the last two axes, in reverse, to the
front.
"""

from __future__ import annotations

import io
import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import torch

from ..core.errors import ModelFileError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "KerasLayer",
    "Source",
    "activations",
    "description",
    "mentioned",
    "opened",
    "text",
    "weight_layers",
]

Source = bytes | str | Path

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
class KerasLayer:
    """The weights of one layer, not yet read."""

    name: str
    parts: dict[str, Any]
    """``kernel`` and ``bias``, as a rule."""

    @property
    def is_convolution(self) -> bool:
        """Say whether there are a kernel of a 2D or 3D convolution and a bias."""
        return self.parts.keys() == {"kernel", "bias"} and self.n_axes in {4, 5}

    @property
    def n_axes(self) -> int:
        """Axes of the kernel: 4 in 2D, 5 in 3D."""
        return len(self.parts["kernel"].shape) if "kernel" in self.parts else 0

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of the kernel as PyTorch has it."""
        return tuple(int(self.parts["kernel"].shape[axis]) for axis in self._torch_axes)

    @property
    def bias_shape(self) -> tuple[int, ...]:
        """Shape of the bias."""
        return tuple(int(n) for n in self.parts["bias"].shape)

    @property
    def shapes(self) -> str:
        """The parts and their shapes as the file has them, for messages."""
        return ", ".join(f"{key} {value.shape}" for key, value in self.parts.items())

    @property
    def _torch_axes(self) -> tuple[int, ...]:
        """Where each axis of a PyTorch kernel is in Keras' kernel."""
        n = self.n_axes
        return (n - 1, n - 2, *range(n - 2))

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return kernel and bias as PyTorch wants them, float32."""
        kernel = np.asarray(self.parts["kernel"][()], dtype=np.float32).transpose(self._torch_axes)
        bias = np.array(self.parts["bias"][()], dtype=np.float32)
        return torch.from_numpy(np.ascontiguousarray(kernel)), torch.from_numpy(bias)


@contextmanager
def opened(source: Source) -> Iterator[Any]:
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


def weight_layers(file: Any) -> list[KerasLayer]:
    """Return the layers that have weights, in the file's own order.

    Raises
    ------
    ModelFileError
        The file lists no layers, or a weight is no float.

    Examples
    --------
    >>> with h5py.File(io.BytesIO(), "w") as file:
    ...     file.attrs["layer_names"] = ["img", "conv3d"]
    ...     file.create_group("img").attrs["weight_names"] = []
    ...     group = file.create_group("conv3d")
    ...     group.attrs["weight_names"] = ["k/kernel:0", "k/bias:0"]
    ...     group["k/kernel:0"], group["k/bias:0"] = np.zeros((3, 3, 3, 1, 8)), np.zeros(8)
    ...     [(layer.name, layer.kernel_shape) for layer in weight_layers(file)]
    [('conv3d', (8, 1, 3, 3, 3))]
    """
    root = file.get("model_weights", file)
    if "layer_names" not in root.attrs:
        raise ModelFileError(_without_layers(file))
    groups = [(name, root[name]) for name in map(text, root.attrs["layer_names"])]
    return [_layer(name, group) for name, group in groups if len(group.attrs["weight_names"])]


def _layer(name: str, group: Any) -> KerasLayer:
    """Return one layer; refuse weights that are no floats."""
    parts = {
        text(path).rsplit("/", 1)[-1].split(":")[0]: group[text(path)]
        for path in group.attrs["weight_names"]
    }
    for key, value in parts.items():
        if value.dtype.kind != "f":
            raise ModelFileError(f"layer {name}: expected a {key} of floats, found {value.dtype}")
    return KerasLayer(name, parts)


def text(value: object) -> str:
    """Return an attribute's text; h5py gives str or bytes, as Keras wrote it.

    Examples
    --------
    >>> text(b"conv3d"), text("conv3d")
    ('conv3d', 'conv3d')
    """
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


def description(file: Any) -> list[dict[str, Any]]:
    """Return the layers as ``model_config`` describes them; none in a file of weights only."""
    described = file.attrs.get("model_config")
    return [] if described is None else json.loads(text(described))["config"]["layers"]


def activations(layer: dict[str, Any]) -> Iterator[str]:
    """Yield the activation a described layer applies, where it applies one."""
    activation = "relu" if layer["class_name"] == "ReLU" else layer["config"].get("activation")
    if activation not in {None, "linear"}:
        yield str(activation)


def mentioned(node: Any, names: dict[str, str]) -> Iterator[str]:
    """Yield the layers that a layer's inputs name, in order; Keras 2 and 3 nest them otherwise."""
    if isinstance(node, str) and node in names:
        yield node
    elif isinstance(node, list | dict):
        for part in node.values() if isinstance(node, dict) else node:
            yield from mentioned(part, names)
