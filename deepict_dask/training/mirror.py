"""Make a 3D U-Net see mirror images alike, by tying its weights.

A tilt series about y leaves noise and missing wedge as they were when a volume is mirrored along z,
y or x, and at the resolution of pooled voxels so are particles that lie in all directions. A
network may be told so by mirrored patches, of which it learns eight kernels where one would do; or
its kernels can be tied, so that one is learnt and seven are its mirror images (a group convolution
whose group are the eight mirrorings). The network stays an ordinary one: prediction, its speed and
its file know nothing of it, and its scores of a mirrored volume are the mirrored scores.

1. Channels are taken in groups of eight: ``8 c + 4 z + 2 y + x`` belongs to mirroring ``(z, y, x)``
   of feature ``c``. Mirroring a volume along x exchanges the channels of x = 0 and x = 1, and
   mirrors each; of cells that are channels (``space_to_depth``) it does so by itself.
2. First weights are made symmetric: mean over the eight, times sqrt(8), so that their spread stays.
3. Gradients are made symmetric before the optimizer sees them. Adam and Muon then take symmetric
   steps; so the weights stay symmetric.
4. In the end what rounding moved, and what batch norms measured in each channel, is replaced by its
   mean over the eight.

Sources: T. Cohen and M. Welling, "Group equivariant convolutional networks" (arXiv:1602.07576); of
3D volumes M. Winkels and T. Cohen (arXiv:1804.04656).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from ..core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..models.unet3d import UNet3D

__all__ = ["asymmetry", "settle_mirrored", "tie_mirrored"]

N_MIRRORINGS = 8
_LARGEST_ASYMMETRY = 1e-3
"""Of a model to continue from, over the largest number of a tensor."""
_EDGE = 2
"""Of a group of channels, which are two along each axis."""


def tie_mirrored(network: UNet3D, *, fresh: bool) -> None:
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
    if network.settings.initial_features % N_MIRRORINGS:
        raise ConfigError(
            "network.mirror_symmetric: expected a multiple of 8 for network.initial_features, "
            f"found {network.settings.initial_features}; give a multiple of 8, or turn it off"
        )
    if not fresh and asymmetry(network) > _LARGEST_ASYMMETRY:
        raise ConfigError(
            "network.mirror_symmetric: the model of network.start_from was not trained with it; "
            "turn it off, or start without a model"
        )
    for weight, edges in _tensors(network, network.named_parameters()):
        if fresh:
            spread = N_MIRRORINGS**0.5 if weight.ndim > 1 else 1.0
            with torch.no_grad():
                weight.copy_(spread * _symmetric(weight, edges))
        weight.register_hook(partial(_symmetric, edges=edges))


def asymmetry(network: UNet3D) -> float:
    """Return how far any weight is from symmetric, over the largest of its tensor.

    What batch norms have measured does not count: it is made symmetric when a training ends.

    Examples
    --------
    >>> from deepict_dask.models.unet3d import UNet3D, UNet3DSettings
    >>> asymmetry(UNet3D(UNet3DSettings(depth=1, initial_features=8))) > 0.5
    True
    """
    worst = 0.0
    for weight, edges in _tensors(network, network.named_parameters()):
        tensor = weight.detach()
        away = (tensor - _symmetric(tensor, edges)).abs().max()
        worst = max(worst, float(away / tensor.abs().max().clamp(min=1e-12)))
    return worst


def settle_mirrored(network: UNet3D) -> None:
    """Make weights symmetric where rounding moved them, and what batch norms have measured."""
    with torch.no_grad():
        for tensor, edges in _tensors(network, _of_floats(network)):
            tensor.copy_(_symmetric(tensor, edges))


def _of_floats(network: UNet3D) -> Iterator[tuple[str, torch.Tensor]]:
    return ((n, t) for n, t in network.state_dict().items() if t.is_floating_point())


def _tensors(
    network: UNet3D, named: Iterator[tuple[str, torch.Tensor]]
) -> Iterator[tuple[torch.Tensor, tuple[int, int]]]:
    """Yield tensors with the edges of the groups in their first and second axis."""
    image = network.settings.space_to_depth
    for name, tensor in named:
        first = image if name.startswith("out_conv.") else _EDGE
        second = image if name == "encoder.0.0.weight" else _EDGE
        yield tensor, (first, second)


def _symmetric(tensor: torch.Tensor, edges: tuple[int, int]) -> torch.Tensor:
    """Return the mean of a kernel, bias or norm over the eight mirrorings."""
    first, second = edges
    shape = [-1, *[first] * 3]
    if tensor.ndim > 1:
        shape += [tensor.shape[1] // second**3, *[second] * 3, *tensor.shape[2:]]
    grouped = tensor.reshape(shape)
    for axis in range(3):
        # of groups of outputs, groups of inputs, and voxels of the kernel
        mirrored = [start + axis for start in (1, 5, 8)[: 3 if tensor.ndim > 1 else 1]]
        grouped = (grouped + grouped.flip(mirrored)) * 0.5
    return grouped.reshape(tensor.shape)
