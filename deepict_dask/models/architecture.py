"""Which network do these tensors belong to? Answered from their names and shapes alone.

DeepFinder's and DeepETPicker's are known by the names of their last convolutions. Of DeePiCt's, the
first convolution's kernel has 5 axes in a 3D U-Net and 4 in a 2D one. The channels of a few
convolutions and the number of levels give the rest. What a file states of itself must agree.
"""

from __future__ import annotations

from dataclasses import fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import torch

from ..core.errors import ModelFileError
from .deepetpicker import DeepETPicker, DeepETPickerSettings
from .deepfinder import DeepFinder, DeepFinderSettings
from .unet2d import UNet2D, UNet2DSettings
from .unet3d import UNet3D, UNet3DSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "NETWORKS",
    "Network",
    "NetworkKind",
    "NetworkSettings",
    "Shapes",
    "built_network",
    "ends_in_softmax",
    "inferred_settings",
    "is_trainable",
    "kind_of",
]

Shapes = dict[str, tuple[int, ...]]
Network = UNet3D | UNet2D | DeepFinder | DeepETPicker
NetworkSettings = UNet3DSettings | UNet2DSettings | DeepFinderSettings | DeepETPickerSettings
NetworkKind = Literal["unet2d", "unet3d", "deepfinder", "deepetpicker"]

NETWORKS: dict[str, tuple[str, type[Any], type[Any]]] = {
    "unet2d": ("2D U-Net", UNet2DSettings, UNet2D),
    "unet3d": ("3D U-Net", UNet3DSettings, UNet3D),
    "deepfinder": ("DeepFinder network", DeepFinderSettings, DeepFinder),
    "deepetpicker": ("DeepETPicker network", DeepETPickerSettings, DeepETPicker),
}
"""By the word that files and messages use: a name for people, its settings, its class."""
NOT_IN_SHAPES = ("encoder_dropout", "decoder_dropout", "block_size", "pad_size")
"""Settings that only the file can tell."""


def kind_of(settings: NetworkSettings) -> NetworkKind:
    """Return the word that files and messages use for a kind of network.

    Examples
    --------
    >>> kind_of(UNet2DSettings())
    'unet2d'
    """
    kinds: dict[type[Any], NetworkKind] = {
        UNet2DSettings: "unet2d",
        UNet3DSettings: "unet3d",
        DeepFinderSettings: "deepfinder",
        DeepETPickerSettings: "deepetpicker",
    }
    return kinds[type(settings)]


def ends_in_softmax(settings: NetworkSettings) -> bool:
    """Say whether a network's classes exclude each other, the first being the background.

    Examples
    --------
    >>> ends_in_softmax(DeepFinderSettings()), ends_in_softmax(UNet3DSettings(n_classes=2))
    (True, False)
    """
    if isinstance(settings, DeepETPickerSettings):
        return settings.n_classes > 1
    return isinstance(settings, DeepFinderSettings)


def inferred_settings(
    shapes: Shapes, stated: Mapping[str, Any], kind: str | None = None
) -> NetworkSettings:
    """Infer the architecture from the shapes; check it against what the file states.

    Parameters
    ----------
    shapes
        Of every tensor, by name.
    stated
        Settings the file states, by the names of the network's settings class; may be empty or
        partial.
    kind
        The kind the file states, if it does.

    Raises
    ------
    ModelFileError
        The tensors are of no network known here, or not of the one that the file states.

    Examples
    --------
    >>> settings = UNet2DSettings(depth=2, initial_features=8, n_classes=3)
    >>> inferred_settings(dict(UNet2D.state_shapes(settings)), {}) == settings
    True
    """
    found, inferred = _inferred(shapes)
    for name, value in {"kind": found, **inferred}.items():
        says = kind if name == "kind" else stated.get(name)
        says = tuple(says) if isinstance(says, list) else says  # JSON knows lists only
        if says is not None and says != value:
            raise ModelFileError(
                f"the file says {name} = {says}, but its tensors have {value}; "
                "the file is inconsistent, so train or export the model again"
            )
    settings_type = NETWORKS[found][1]
    known = {field.name for field in fields(settings_type)}
    told = {k: stated[k] for k in NOT_IN_SHAPES if k in stated and k in known}
    settings: NetworkSettings = settings_type(**inferred, **told)
    _check_shapes(shapes, settings)
    return settings


def built_network(settings: NetworkSettings, weights: Mapping[str, torch.Tensor]) -> Network:
    """Return the network in eval mode with these weights in float32, allocated once.

    Examples
    --------
    >>> network = UNet2D(UNet2DSettings(depth=1, initial_features=2))
    >>> built_network(network.settings, network.state_dict()).training
    False
    """
    with torch.device("meta"):
        network = _empty(settings)
    state = {
        name: torch.zeros(shape, dtype=torch.int64)
        for name, shape in _counters(_state_shapes(settings)).items()
    }
    for name, tensor in weights.items():
        state[name] = tensor if name in state else tensor.to(torch.float32)
    network.load_state_dict(state, assign=True)
    return network.eval()


def is_trainable(name: str) -> bool:
    """Say whether a tensor is a parameter rather than a running statistic."""
    return not name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def _inferred(shapes: Shapes) -> tuple[NetworkKind, dict[str, Any]]:
    """Read kind, depth, channels, classes and normalisation off the tensor names and shapes."""
    if "join_high.0.weight" in shapes and "out_conv.weight" in shapes:
        return "deepfinder", _inferred_deepfinder(shapes)
    if "final_conv.weight" in shapes and "encoders.0.basic_module.conv1.conv.weight" in shapes:
        return "deepetpicker", _inferred_deepetpicker(shapes)
    first, last = shapes.get("encoder.0.0.weight", ()), shapes.get("out_conv.weight", ())
    if len(first) not in {4, 5} or len(last) != len(first):
        raise ModelFileError(
            "expected the tensors of a 3D U-Net or a 2D U-Net (encoder.0.0.weight, "
            "out_conv.weight), of DeepFinder's or of DeepETPicker's network, "
            f"found {', '.join(sorted(shapes)[:4]) or 'none'}"
        )
    levels = {name.split(".")[1] for name in shapes if name.startswith("encoder.")}
    inferred = {"depth": len(levels), "initial_features": first[0], "n_classes": last[0]}
    if len(first) == 4:
        return "unet2d", inferred
    edge = round(first[1] ** (1 / 3))
    return "unet3d", {
        **inferred, "n_classes": last[0] // edge**3, "space_to_depth": edge,
        "batch_norm": "encoder.0.2.running_mean" in shapes,
    }  # fmt: skip


def _inferred_deepfinder(shapes: Shapes) -> dict[str, Any]:
    """Read channels and classes off the shapes of DeepFinder's network."""
    levels = tuple(shapes.get(f"{name}.0.weight", (0,))[0] for name in ("high", "mid", "low"))
    return {"n_classes": shapes["out_conv.weight"][0], "features": levels}


def _inferred_deepetpicker(shapes: Shapes) -> dict[str, Any]:
    """Read channels and classes off the shapes of DeepETPicker's network."""
    last = "basic_module.conv3.conv.weight"
    levels = sum(n.startswith("encoders.") and n.endswith(last) for n in shapes)
    features = tuple(shapes.get(f"encoders.{i}.{last}", (0,))[0] for i in range(levels))
    return {"n_classes": shapes["final_conv.weight"][0], "features": features}


def _check_shapes(found: Shapes, settings: NetworkSettings) -> None:
    """Refuse tensors that are missing, unknown or of another shape."""
    expected = _state_shapes(settings)
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
        which = NETWORKS[kind_of(settings)][0]
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ModelFileError(f"not the tensors of a {which}: {'; '.join(problems[:3])}{more}")


@lru_cache(maxsize=64)  # a run asks for the same few thousands of times
def _state_shapes(settings: NetworkSettings) -> Shapes:
    """Return the name and shape of every tensor, without allocating them."""
    return dict(NETWORKS[kind_of(settings)][2].state_shapes(settings))


def _empty(settings: NetworkSettings) -> Network:
    """Return a network with some weights."""
    network: Network = NETWORKS[kind_of(settings)][2](settings)
    return network


def _counters(shapes: Mapping[str, tuple[int, ...]]) -> Shapes:
    """Return the batch counters, which old checkpoints lack and prediction does not use."""
    return {name: s for name, s in shapes.items() if name.endswith("num_batches_tracked")}
