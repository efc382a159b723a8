"""Make a 3D U-Net or DeepETPicker's network see mirror images alike, by tying its weights.

A tilt series about y leaves noise and missing wedge as they were when a volume is mirrored along z,
y or x, and at the resolution of pooled voxels so are particles that lie in all directions. A
network may be told so by mirrored patches, of which it learns eight kernels where one would do; or
its kernels can be tied, so that one is learnt and seven are its mirror images (a group convolution
whose group are the eight mirrorings). The network stays an ordinary one: prediction, its speed and
its file know nothing of it, and its scores of a mirrored volume are the mirrored scores.

1. Channels are taken in groups of eight: ``8 c + 4 z + 2 y + x`` belongs to mirroring ``(z, y, x)``
   of feature ``c``. Mirroring a volume along x exchanges the channels of x = 0 and x = 1, and
   mirrors each; of cells that are channels (``space_to_depth``) it does so by itself. The image
   itself is one channel, which is mirrored only; DeepETPicker's places change their sign.
2. First weights are made symmetric: mean over the eight, times sqrt(8), so that their spread stays.
3. Gradients are made symmetric before the optimizer sees them. Adam and Muon then take symmetric
   steps; so the weights stay symmetric.
4. In the end what rounding moved, and what batch norms measured in each channel, is replaced by its
   mean over the eight.

DeepETPicker doubles sizes by a transposed convolution of 3x3x3, whose middle lies on one of the two
voxels made of one. No such kernel is symmetric but those that are zero at their first place along
each axis, and 2x2x2 without it; tied, they stay so.

Sources: T. Cohen and M. Welling, "Group equivariant convolutional networks" (arXiv:1602.07576); of
3D volumes M. Winkels and T. Cohen (arXiv:1804.04656).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from ..core.errors import ConfigError
from ..models.deepetpicker import N_PLACES, DeepETPicker

if TYPE_CHECKING:
    from ..models.unet3d import UNet3D

__all__ = ["N_MIRRORINGS", "asymmetry", "settle_mirrored", "tie_mirrored"]

N_MIRRORINGS = 8
_LARGEST_ASYMMETRY = 1e-3
"""Of a model to continue from, over the largest number of a tensor."""


@dataclass(frozen=True)
class _Cubes:
    """Channels that are cubes of ``edge`` along z, y, x, which mirroring turns round."""

    n: int
    """Channels."""
    edge: int = 2

    def mirrored(self, tensor: torch.Tensor, dim: int, axis: int) -> torch.Tensor:
        cubes = tensor.unflatten(dim, (-1, *[self.edge] * 3))
        return cubes.flip(dim + 1 + axis).flatten(dim, dim + 3)


class _Places:
    """The places x, y, z of a voxel from the middle, which mirroring gives the other sign."""

    n = N_PLACES

    def mirrored(self, tensor: torch.Tensor, dim: int, axis: int) -> torch.Tensor:
        places = list(tensor.unbind(dim))
        places[N_PLACES - 1 - axis] = -places[N_PLACES - 1 - axis]
        return torch.stack(places, dim)


_Channels = tuple[_Cubes | _Places, ...]


class _Tie:
    """The mean of a kernel, bias or norm over the eight mirrorings, as sums of its own numbers.

    Parameters
    ----------
    shape
        Of the tensor.
    first, second
        What its first and, of a kernel, its second axis are.
    doubles
        A kernel of 3x3x3 that doubles sizes.
    """

    def __init__(
        self, shape: torch.Size, first: _Channels, second: _Channels = (), *, doubles: bool = False
    ) -> None:
        # each number's place and, mirrored, its sign; counted from 1, as 0 has no sign
        numbers = torch.arange(1, shape.numel() + 1).reshape(shape)
        within = numbers[..., 1:, 1:, 1:] if doubles else numbers
        turned = []
        for axis in range(3):
            mirrored = _mirrored(within, 0, first, axis)
            if second:
                mirrored = _mirrored(mirrored, 1, second, axis).flip(2 + axis)
            if doubles:
                mirrored = functional.pad(mirrored, (1, 0) * 3, value=1)
            turned.append(mirrored.flatten())
        self._places = [numbers.abs() - 1 for numbers in turned]
        self._signs = [numbers.sign() if bool((numbers < 0).any()) else None for numbers in turned]
        kept = torch.full(within.shape, 1 / N_MIRRORINGS)
        self._weight = functional.pad(kept, (1, 0) * 3) if doubles else kept

    def symmetric(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return that mean."""
        self._move(tensor.device)
        flat = tensor.flatten()
        for places, signs in zip(self._places, self._signs, strict=True):
            mirrored = flat[places]
            flat = flat + (mirrored if signs is None else mirrored * signs)
        return flat.view(tensor.shape) * self._weight

    def _move(self, device: torch.device) -> None:
        if self._weight.device != device:
            self._weight = self._weight.to(device)
            self._places = [places.to(device) for places in self._places]
            self._signs = [None if s is None else s.to(device) for s in self._signs]


def _mirrored(tensor: torch.Tensor, dim: int, channels: _Channels, axis: int) -> torch.Tensor:
    parts = tensor.split([part.n for part in channels], dim)
    turned = [of.mirrored(part, dim, axis) for of, part in zip(channels, parts, strict=True)]
    return torch.cat(turned, dim) if len(turned) > 1 else turned[0]


def tie_mirrored(network: UNet3D | DeepETPicker, *, fresh: bool) -> None:
    """Make a network symmetric, and keep it so while it is trained.

    Parameters
    ----------
    network
        Its channels are multiples of eight.
    fresh
        Whether its weights were drawn at random; those of a trained network must be symmetric.

    Raises
    ------
    ConfigError
        Channels that cannot be grouped, or trained weights without symmetry.

    Examples
    --------
    >>> from deepict_dask.models.unet3d import UNet3D, UNet3DSettings
    >>> network = UNet3D(UNet3DSettings(depth=1, initial_features=8)).eval()
    >>> tie_mirrored(network, fresh=True)
    >>> volume = torch.rand(1, 1, 8, 8, 8)
    >>> scores, mirrored = network(volume), network(volume.flip(-1))
    >>> bool((scores.flip(-1) - mirrored).abs().max() < 1e-5)
    True
    """
    uneven = [n for n in network.settings.features if n % N_MIRRORINGS]
    if uneven:
        raise ConfigError(
            "network.mirror_symmetric: expected a multiple of 8 for network.initial_features, "
            f"found {uneven[0]}; give a multiple of 8, or turn it off"
        )
    if not fresh and asymmetry(network) > _LARGEST_ASYMMETRY:
        raise ConfigError(
            "network.mirror_symmetric: the model of network.start_from was not trained with it; "
            "turn it off, or start without a model"
        )
    for name, weight in network.named_parameters():
        tie = _tie(network, name, weight)
        if fresh:
            spread = N_MIRRORINGS**0.5 if weight.ndim > 1 else 1.0
            with torch.no_grad():
                weight.copy_(spread * tie.symmetric(weight))
        # once a step, where gradients have come together, not in each part of a batch
        weight.register_post_accumulate_grad_hook(partial(_tie_gradient, tie=tie))


def _tie_gradient(weight: torch.Tensor, tie: _Tie) -> None:
    if weight.grad is not None:
        weight.grad.copy_(tie.symmetric(weight.grad))


def asymmetry(network: UNet3D | DeepETPicker) -> float:
    """Return how far any weight is from symmetric, over the largest of its tensor.

    What batch norms have measured does not count: it is made symmetric when a training ends.

    Examples
    --------
    >>> from deepict_dask.models.unet3d import UNet3D, UNet3DSettings
    >>> asymmetry(UNet3D(UNet3DSettings(depth=1, initial_features=8))) > 0.5
    True
    """
    worst = 0.0
    for name, weight in network.named_parameters():
        tensor = weight.detach()
        away = (tensor - _tie(network, name, tensor).symmetric(tensor)).abs().max()
        worst = max(worst, float(away / tensor.abs().max().clamp(min=1e-12)))
    return worst


def settle_mirrored(network: UNet3D | DeepETPicker) -> None:
    """Make weights symmetric where rounding moved them, and what batch norms have measured."""
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(_tie(network, name, tensor).symmetric(tensor))


def _tie(network: UNet3D | DeepETPicker, name: str, tensor: torch.Tensor) -> _Tie:
    """Return how a tensor of the state dict is tied."""
    shape = tensor.shape
    if isinstance(network, DeepETPicker):
        second = _inputs_of_deepetpicker(name, shape) if len(shape) > 1 else ()
        doubles = bool(second) and "upsample" in name
        edge = 1 if name.startswith("final_conv.") else 2
    else:
        image = network.settings.space_to_depth
        edge = image if name.startswith("out_conv.") else 2
        of_inputs = image if name == "encoder.0.0.weight" else 2
        second = (_Cubes(shape[1], of_inputs),) if len(shape) > 1 else ()
        doubles = False
    return _Tie(shape, (_Cubes(shape[0], edge),), second, doubles=doubles)


def _inputs_of_deepetpicker(name: str, shape: torch.Size) -> _Channels:
    """Return what the second axis of a kernel is: features, the image, places."""
    if not name.endswith("basic_module.conv1.conv.weight"):
        return (_Cubes(shape[1]),)
    image = (_Cubes(1, edge=1),) if name.startswith("encoders.") else ()
    n_features = shape[1] - len(image) - N_PLACES
    features = (_Cubes(n_features),) if n_features else ()  # the first encoder has none
    return (*features, *image, _Places())
