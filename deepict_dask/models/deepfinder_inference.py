"""DeepFinder's network for prediction: the finest level in slabs, and only where it is wanted.

The finest level has 80 channels where two results are joined, which would be most of the memory of
a window, and half of its work. So

1. slabs of a few planes go through the finest encoder, and only what pooling leaves is kept;
2. the two lower levels, with an eighth and a 64th of the voxels, hold the whole window;
3. slabs of the voxels that are wanted go through the finest decoder, for which their encoder is
   computed again. What wants no score, the halo, is not decoded.

Zeros are padded round the window only, never round a slab, so the scores are those of the network
as far as float32 goes. Channels are innermost, for which oneDNN's convolutions are twice as fast.

Of 96 x 96 x 96 voxels, all wanted, it takes 4.0 CPU seconds and 165 MiB, the plain network 4.4 and
900; of 128 x 128 x 128, of which 56 x 56 x 56 are wanted, 3.5 and 310 beside 9.8 and 1890 (one
thread). Slabs of a million voxels take as long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from ..core.geometry import ceil_to, floor_to

if TYPE_CHECKING:
    from ..core.geometry import Box, Vec
    from .deepfinder import DeepFinder, DeepFinderSettings

__all__ = ["InferenceDeepFinder", "deepfinder_bytes"]

VOXELS_AT_ONCE = {"cpu": 128 * 1024, "cuda": 4 * 1024 * 1024}
"""A slab has about as many voxels, or eight planes."""
ENCODER_REACH = 2
"""Voxels that the finest encoder sees on either side."""
DECODER_REACH = 2
"""Voxels that the finest decoder's 3x3x3 convolutions see on either side."""
HOLES = 1.25
"""For what the C library's heap keeps beyond what the arrays need."""


class _Conv:
    """A convolution and a ReLU."""

    def __init__(self, layer: nn.Conv3d, *, relu: bool = True) -> None:
        assert layer.bias is not None
        self.weight = layer.weight.contiguous(memory_format=torch.channels_last_3d)
        self.bias, self.relu = layer.bias, relu

    def __call__(self, x: torch.Tensor, padding: int | tuple[int, int, int] = 1) -> torch.Tensor:
        if x.shape[1] == 1 and x.device.type == "cpu" and torch.backends.mkldnn.is_available():
            # PyTorch's own choice for one channel is ten times slower
            pads = [padding] * 3 if isinstance(padding, int) else list(padding)
            ones = [1, 1, 1]
            y = torch.mkldnn_convolution(x, self.weight, self.bias, pads, ones, ones, 1)
            y = y.contiguous(memory_format=torch.channels_last_3d)
        else:
            y = functional.conv3d(x, self.weight, self.bias, padding=padding)
        return y.relu_() if self.relu else y


class InferenceDeepFinder:
    """A `DeepFinder` rearranged; predicts windows.

    Parameters
    ----------
    network
        The network, on its device.

    Examples
    --------
    >>> from deepict_dask.core.geometry import Box
    >>> from deepict_dask.models.deepfinder import DeepFinder, DeepFinderSettings
    >>> network = DeepFinder(DeepFinderSettings(3, (4, 4, 4))).eval()
    >>> window = torch.rand(24, 8, 12)
    >>> with torch.inference_mode():
    ...     expected = network(window[None, None]).softmax(dim=1)[0]
    >>> scores = InferenceDeepFinder(network).scores(window, Box.whole((24, 8, 12)))
    >>> bool(torch.allclose(scores, expected, atol=1e-6))
    True
    """

    def __init__(self, network: DeepFinder) -> None:
        self.settings = network.settings
        self.device = network.out_conv.weight.device
        with torch.inference_mode():
            self.high = _arranged(network.high)
            self.mid, self.low = _arranged(network.mid), _arranged(network.low)
            self.up_mid, self.up_high = _Conv(network.up_mid), _Conv(network.up_high)
            self.join_mid = _arranged(network.join_mid)
            self.join_high = _arranged(network.join_high)
            self.out_conv = _Conv(network.out_conv, relu=False)

    @torch.inference_mode()
    def scores(self, window: torch.Tensor, wanted: Box) -> torch.Tensor:
        """Return scores 0..1 of a box of a window.

        Parameters
        ----------
        window
            float32 (z, y, x) on the network's device, normalised; axes are multiples of four.
        wanted
            Voxels of the window whose scores are returned.

        Returns
        -------
        torch.Tensor
            float32, (n_classes, z, y, x) of the box.
        """
        shape = tuple(window.shape)
        step = planes_at_once(self.device.type, (shape[0], shape[1], shape[2]))
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False, deterministic=True):
            below = self._lower_levels(window, step)
            out = torch.empty((self.settings.n_classes, *wanted.shape), device=self.device)
            for start in range(wanted.start[0], wanted.stop[0], step):
                stop = min(wanted.stop[0], start + step)
                first = start - wanted.start[0]
                out[:, first : first + stop - start] = self._decoded(
                    window, below, (start, stop), wanted
                )
        return out

    def _lower_levels(self, window: torch.Tensor, step: int) -> torch.Tensor:
        """Return what goes up to the finest level: (1, channels, z, y, x) of half the size."""
        z, y, x = window.shape
        pooled = torch.empty(
            (1, self.settings.features[0], z // 2, y // 2, x // 2),
            device=self.device,
            memory_format=torch.channels_last_3d,
        )
        for start in range(0, z, step):
            stop = min(z, start + step)
            high = self._high(window[None, None], (start, stop))
            pooled[:, :, start // 2 : stop // 2] = functional.max_pool3d(high, 2)
        mid = _applied(self.mid, pooled)
        del pooled
        low = _applied(self.low, functional.max_pool3d(mid, 2))
        raised = self._raised(self.up_mid, low)
        del low
        return _applied(self.join_mid, torch.cat([raised, mid], dim=1))

    def _high(self, volume: torch.Tensor, planes: tuple[int, int]) -> torch.Tensor:
        """Return some planes of the finest encoder's result."""
        return _planes(self.high, volume, planes, ENCODER_REACH)

    def _raised(self, layer: _Conv, x: torch.Tensor) -> torch.Tensor:
        """Repeat every voxel 2x2x2 times and apply the 2x2x2 convolution."""
        x = functional.interpolate(x, scale_factor=2, mode="nearest")
        return layer(functional.pad(x, (0, 1, 0, 1, 0, 1)), padding=0)

    def _decoded(
        self, window: torch.Tensor, below: torch.Tensor, planes: tuple[int, int], wanted: Box
    ) -> torch.Tensor:
        """Return the scores of some planes of the wanted box."""
        z, y, x = window.shape
        starts = (planes[0], *wanted.start[1:])
        stops = (planes[1], *wanted.stop[1:])
        seen = [  # by the decoder, in whole pooling cells
            (max(0, floor_to(a - DECODER_REACH, 2)), min(n, ceil_to(b + DECODER_REACH, 2)))
            for a, b, n in zip(starts, stops, (z, y, x), strict=True)
        ]
        joined = torch.cat([self._up(below, seen), self._high_box(window, seen)], dim=1)
        features = _applied(self.join_high, joined)
        inner = [(a - s[0], b - s[0]) for a, b, s in zip(starts, stops, seen, strict=True)]
        logits = self.out_conv(_box(features, inner), padding=0)
        return logits[0].softmax(dim=0)

    def _up(self, below: torch.Tensor, seen: list[tuple[int, int]]) -> torch.Tensor:
        """Return a box of what comes up from below, zeros only behind the window's own end."""
        halves = [
            (a // 2, min(n, b // 2 + 1)) for (a, b), n in zip(seen, below.shape[2:], strict=True)
        ]
        raised = self._raised(self.up_high, _box(below, halves))
        return _box(raised, [(0, b - a) for a, b in seen])

    def _high_box(self, window: torch.Tensor, seen: list[tuple[int, int]]) -> torch.Tensor:
        """Return a box of the finest encoder's result."""
        sizes = tuple(window.shape)
        read = [
            (max(0, a - ENCODER_REACH), min(n, b + ENCODER_REACH))
            for (a, b), n in zip(seen, sizes, strict=True)
        ]
        high = _applied(self.high, _box(window, read)[None, None])
        return _box(high, [(a - r, b - r) for (a, b), (r, _) in zip(seen, read, strict=True)])


def planes_at_once(device: str, shape: Vec) -> int:
    """Return the planes of a slab: a multiple of four.

    Examples
    --------
    >>> planes_at_once("cpu", (128, 128, 128)), planes_at_once("cpu", (4, 8, 8))
    (8, 4)
    """
    planes = max(8, floor_to(VOXELS_AT_ONCE[device] // (shape[1] * shape[2]), 4))
    return min(planes, ceil_to(shape[0], 4))


def deepfinder_bytes(settings: DeepFinderSettings, window_shape: Vec, device: str = "cpu") -> int:
    """Return an upper bound of the bytes that predicting one window allocates at its peak.

    The window, its scores and what is read are not counted.

    Examples
    --------
    >>> from deepict_dask.models.deepfinder import DeepFinderSettings
    >>> deepfinder_bytes(DeepFinderSettings(3), (128, 128, 128)) // 10**6
    608
    """
    z, y, x = (ceil_to(n, settings.align) for n in window_shape)
    high, mid, low = settings.features
    # joined, what it is made of and what comes of it
    halved = 4 * z * y * x // 8 * (2 * (low + mid) + mid)
    step = planes_at_once(device, (z, y, x))
    slab = 4 * (step + 8) * y * x * (2 * (mid + high) + high)
    return int(HOLES * (halved + slab))


def _arranged(layers: nn.ModuleList) -> list[_Conv]:
    """Return convolutions that are each followed by a ReLU."""
    return [_Conv(layer) for layer in layers if isinstance(layer, nn.Conv3d)]


def _applied(layers: list[_Conv], x: torch.Tensor) -> torch.Tensor:
    """Apply one convolution after the other."""
    for layer in layers:
        x = layer(x)
    return x


def _box(x: torch.Tensor, ranges: list[tuple[int, int]]) -> torch.Tensor:
    """Return a box of the last three axes."""
    for axis, (start, stop) in zip((-3, -2, -1), ranges, strict=True):
        x = x.narrow(axis, start, stop - start)
    return x


def _planes(
    layers: list[_Conv], volume: torch.Tensor, planes: tuple[int, int], reach: int
) -> torch.Tensor:
    """Return some planes of what convolutions make of a volume."""
    low, high = max(0, planes[0] - reach), min(volume.shape[2], planes[1] + reach)
    result = _applied(layers, volume[:, :, low:high])
    return result[:, :, planes[0] - low : planes[1] - low]
