"""The same U-Net, rearranged for prediction: planes flow through it; equal to 1e-6.

What is changed, and why the result stays:

1. The layers take and give slabs of a few planes with the channels innermost (`arranged`).
2. An output plane depends on few input planes, so slabs are streamed: each convolution waits for
   one slab of its input beyond its own, each skip connection holds the slabs that the levels below
   are behind, and no array of the window's size is made but the scores. A third of the time went
   into fresh pages of memory before, and the peak falls from 62 to 20 bytes per voxel.
3. Of a window's halo only the lower levels make use. The decoder of a level therefore computes
   what is wanted and the two voxels round it that its two convolutions need, no more.

Measured for depth 2, 4 features, the whole of a window of 152x280x280, one thread (AVX-512, AMX) of
a busy machine, in million voxels per CPU second: PyTorch 2.6, ONNX Runtime 4.3, OpenVINO 7.6, this
8.2, of which bfloat16 makes 14.5. The float32 convolutions run at 170 of about 190 GFLOP/s.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from ..core.geometry import Box, ceil_to, floor_to
from ..core.heap import give_back_heap, keep_heap
from .arranged import Affine, Conv3, Head, Up, arranged_block, block_convolutions, halve
from .unet3d import depth_to_space, space_to_depth

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ..core.geometry import Vec
    from .unet3d import UNet3D, UNet3DSettings

__all__ = ["InferenceUNet3D", "Precision", "decoded_parts", "planes_at_once"]

Precision = Literal["float32", "bfloat16", "float16"]
DTYPES: dict[Precision, torch.dtype] = {
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16
}  # fmt: skip

SLAB_BYTES = {"cpu": 4 << 20, "cuda": 1 << 30}
"""Largest slab of the outermost level's features, or one pooling cell of planes."""
WINDOW_TO_TRIM = 1 << 21
"""Voxels of a window from which on freed memory is given back: smaller ones leave little."""
DECODER_REACH = 2
"""Voxels that the two convolutions of a decoder level see on either side."""


@dataclass(frozen=True)
class Part:
    """What the decoder of one level computes, in voxels of that level."""

    slabs: range
    """Numbers of the slabs; the same for all levels."""
    box: Box
    """Whole slabs along z."""


class InferenceUNet3D:
    """A `UNet3D` in eval mode, rearranged; predicts one window at a time.

    Parameters
    ----------
    network
        The network; its weights are copied to its present device in the new arrangement.
    precision
        Of weights and features. Sums, the first convolution, the last one and the scores are
        float32. "bfloat16" moves the scores of a trained network by 7e-5 on average and 0.05 at
        most; of one whose logits reach hundreds by up to 1, as PyTorch's own bfloat16 does.
        "float16" is eight times finer, and for GPUs: the CPU computes it in float32.

    Examples
    --------
    >>> from deepict_dask.models.unet3d import UNet3D, UNet3DSettings
    >>> network = UNet3D(UNet3DSettings(depth=1, initial_features=2)).eval()
    >>> window = torch.rand(8, 6, 10)
    >>> with torch.inference_mode():
    ...     expected = network(window[None, None])[0].sigmoid()
    >>> scores = InferenceUNet3D(network).scores(window)
    >>> bool(torch.allclose(scores, expected, atol=1e-6))
    True
    """

    def __init__(self, network: UNet3D, precision: Precision = "float32") -> None:
        self.settings = network.settings
        self.device = network.out_conv.weight.device
        self.dtype = DTYPES[precision]
        if self.device.type == "cpu":
            keep_heap()
        with torch.inference_mode():
            self._arrange(network)

    def _arrange(self, network: UNet3D) -> None:
        """Copy the weights into the new arrangement."""
        depth, dtype = self.settings.depth, self.dtype
        # the width at a level is a multiple of 2**(depth - level), which bounds the neighbours
        self.encoder = [
            arranged_block(block, 2 ** (depth - level), dtype=dtype)
            for level, block in enumerate(network.encoder)
        ]
        self.base = arranged_block(network.base, 1, dtype=dtype)
        before = Affine.identity(block_convolutions(network.base)[-1][0].weight[:, 0, 0, 0, 0])
        self.up: list[Up] = []
        self.decoder: list[list[Conv3]] = []
        for i, block in enumerate(network.decoder):
            layer = network.upsamplers[i]
            assert isinstance(layer, nn.ConvTranspose3d)
            self.up.append(Up(layer, before, dtype=dtype))
            self.decoder.append(arranged_block(block, 2 ** (i + 1), dtype=dtype, decodes=True))
            before = block_convolutions(block)[-1][1]
        bias = network.out_conv.bias
        assert bias is not None
        self.head = Head(network.out_conv.weight.flatten(1), bias, before)

    @torch.inference_mode()
    def scores(
        self, window: torch.Tensor, wanted: Box | None = None, *, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return scores 0..1 of a window, or of a box in it.

        Parameters
        ----------
        window
            float32 zyx on the network's device, normalised; each axis a multiple of
            ``settings.align``.
        wanted
            Voxels of the window to return; all of them by default.
        out
            Where to write the scores: (classes, *wanted.shape), of any strides and on any device.

        Returns
        -------
        torch.Tensor
            float32, (classes, z, y, x).
        """
        edge = self.settings.space_to_depth
        wanted = wanted or Box.whole(_vec([*window.shape]))
        if out is None:
            out = torch.empty((self.settings.n_classes, *wanted.shape), device=self.device)
        # from here on positions, which are voxels unless cells of them are folded into channels
        z, y, x = (size // edge for size in window.shape)
        planes = planes_at_once(self.settings, (z, y, x), self.device.type)
        parts = decoded_parts(_positions(wanted, edge), (z, y, x), self.settings.depth, planes)
        # "enabled" is False by default there: without it a GPU would not use cuDNN at all
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False, deterministic=True):
            cut = _cut(window, planes, edge, self.encoder[0][0].kernel.dtype)
            slabs = self._level(cut, 0, parts)
            box = _voxels(parts[0].box, edge)
            for number, rows in zip(parts[0].slabs, slabs, strict=True):
                scores = depth_to_space(self.head(rows)[None], edge)[0]
                _put(out, wanted, scores, box, number * planes * edge)
        if self.device.type == "cpu" and window.numel() >= WINDOW_TO_TRIM:
            del slabs, rows
            give_back_heap()
        return out

    def _level(
        self, slabs: Iterable[torch.Tensor], level: int, parts: Sequence[Part]
    ) -> Iterator[torch.Tensor]:
        """Apply the network from one level downwards and back up to it; yield planes."""
        if level == self.settings.depth:
            return _planes(self.base[-1], self._slabs(self.base[:-1], slabs))
        begun: dict[int, torch.Tensor] = {}
        below = self._level(self._encoded(slabs, level, parts[level], begun), level + 1, parts)
        decoder = self.decoder[-1 - level]
        joined = self._joined(below, level, parts, begun)
        return _planes(decoder[-1], self._slabs(decoder[1:-1], joined))

    def _slabs(
        self, convs: Sequence[Conv3], slabs: Iterable[torch.Tensor]
    ) -> Iterable[torch.Tensor]:
        """Apply convolutions to slabs; the outermost planes are yet to be filled."""
        for conv in convs:
            slabs = map(partial(conv.slab, dtype=self.dtype), _with_neighbours(slabs))
        return slabs

    def _encoded(
        self, slabs: Iterable[torch.Tensor], level: int, part: Part, begun: dict[int, torch.Tensor]
    ) -> Iterator[torch.Tensor]:
        """Apply a level's encoder and halve; put what its decoder needs into ``begun``."""
        encoder, join = self.encoder[level], self.decoder[-1 - level][0]
        _, ys, xs = part.box.slices
        seam = _Seam()
        for number, rows in enumerate(_planes(encoder[-1], self._slabs(encoder[:-1], slabs))):
            if number in part.slabs and seam.add(_room(rows[:, ys, xs])):
                begun[number - 1] = join.begun(seam.pop())
            if number == part.slabs.stop - 1:
                seam.end()
                begun[number] = join.begun(seam.pop())
            half = _halved(rows)
            del rows  # here and below: what is suspended must not keep slabs that are done with
            yield half

    def _joined(
        self,
        below: Iterator[torch.Tensor],
        level: int,
        parts: Sequence[Part],
        begun: dict[int, torch.Tensor],
    ) -> Iterator[torch.Tensor]:
        """Yield slabs of the convolution of what was kept and what comes up from below."""
        join = self.decoder[-1 - level][0]
        slabs = _with_neighbours(self._raised(below, level, parts))
        for number in parts[level].slabs:
            yield join.slab(next(slabs), self.dtype, begun.pop(number))

    def _raised(
        self, below: Iterator[torch.Tensor], level: int, parts: Sequence[Part]
    ) -> Iterator[torch.Tensor]:
        """Yield slabs of what comes up from below, where this level's decoder needs it."""
        up, part, outer = self.up[-1 - level], parts[level], parts[level + 1]
        (y, x), (y0, x0) = part.box.start[1:], outer.box.start[1:]
        _, height, width = part.box.shape
        ys = slice(y // 2 - y0, (y + height) // 2 - y0)
        xs = slice(x // 2 - x0, (x + width) // 2 - x0)
        for number in outer.slabs:
            rows = next(below)
            if number in part.slabs:
                slab = rows.new_empty((2 * len(rows) + 2, height, width, up.outputs))
                up.into(slab[1:-1], rows[:, ys, xs])
                del rows
                yield slab


def planes_at_once(settings: UNet3DSettings, shape: Vec, device: str = "cpu") -> int:
    """Return how many planes a slab of the outermost level has: whole pooling cells.

    ``shape`` is the window's, in positions.

    Examples
    --------
    >>> from deepict_dask.models.unet3d import UNet3DSettings
    >>> planes_at_once(UNet3DSettings(depth=2), (160, 280, 280))
    4
    """
    plane_bytes = 4 * settings.initial_features * shape[1] * shape[2]
    planes = floor_to(SLAB_BYTES[device] // plane_bytes, settings.pooling_cell)
    return min(max(settings.pooling_cell, planes), shape[0])


def decoded_parts(wanted: Box, shape: Vec, depth: int, planes: int) -> list[Part]:
    """Return what the decoder of each level must compute, outermost first, and all of the base.

    Parameters
    ----------
    wanted
        Positions whose scores are asked for.
    shape
        Of the window, in positions.
    depth
        Of the network.
    planes
        Of a slab of the outermost level.

    Examples
    --------
    >>> parts = decoded_parts(Box((24, 24, 24), (56, 56, 56)), (80, 80, 80), depth=1, planes=8)
    >>> parts[0].slabs, parts[0].box
    (range(2, 8), Box(start=(16, 22, 22), stop=(64, 58, 58)))
    """
    parts = []
    low, high = wanted.start, wanted.stop
    n_slabs = -(-shape[0] // planes)
    for level in range(depth):
        cell = 2 ** (depth - level)
        units = (planes >> level, cell, cell)
        starts, stops = [], []
        for a, b, n, unit in zip(low, high, shape, units, strict=True):
            starts.append(max(0, floor_to(a - DECODER_REACH, unit)))
            stops.append(min(n >> level, ceil_to(b + DECODER_REACH, unit)))
        box = Box(_vec(starts), _vec(stops))
        slabs = range(box.start[0] // units[0], -(-box.stop[0] // units[0]))
        parts.append(Part(slabs, box))
        low, high = _vec([a // 2 for a in starts]), _vec([b // 2 for b in stops])
    base = Box.whole(_vec([n >> depth for n in shape]))
    return [*parts, Part(range(n_slabs), base)]


def _vec(values: list[int]) -> Vec:
    z, y, x = values
    return (z, y, x)


def _positions(box: Box, edge: int) -> Box:
    """Return the cells that a box of voxels reaches into."""
    start, stop = ([n // edge for n in box.start], [-(-n // edge) for n in box.stop])
    return Box(_vec(start), _vec(stop))


def _voxels(box: Box, edge: int) -> Box:
    """Return the voxels of a box of cells."""
    start, stop = ([n * edge for n in corner] for corner in (box.start, box.stop))
    return Box(_vec(start), _vec(stop))


def _cut(
    window: torch.Tensor, planes: int, edge: int, dtype: torch.dtype
) -> Iterator[torch.Tensor]:
    """Yield a window as slabs, each position with the voxels of its cell as channels."""
    for part in window.split(planes * edge):
        positions = space_to_depth(part[None, None], edge)[0]
        channels, z, y, x = positions.shape
        slab = part.new_empty((z + 2, y, x, channels), dtype=dtype)
        slab[1:-1] = positions.permute(1, 2, 3, 0)
        yield slab


def _planes(conv: Conv3, slabs: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Apply a block's last convolution; yield planes without the outermost two."""
    return map(conv, _with_neighbours(slabs))


def _halved(rows: torch.Tensor) -> torch.Tensor:
    """Return planes of half the size as a slab."""
    z, y, x, features = rows.shape
    slab = rows.new_empty((z // 2 + 2, y // 2, x // 2, features))
    halve(rows, slab[1:-1])
    return slab


def _room(rows: torch.Tensor) -> torch.Tensor:
    """Return planes as a slab."""
    slab = rows.new_empty((len(rows) + 2, *rows.shape[1:]))
    slab[1:-1] = rows
    return slab


class _Seam:
    """Fills the outermost planes of slabs from the slabs before and behind, at the ends with zeros.

    A convolution pads with zeros. Where a part of a window ends the zeros are wrong, which is why
    parts are larger than what is wanted.
    """

    def __init__(self) -> None:
        self.before: torch.Tensor | None = None
        self.ready: torch.Tensor | None = None

    def add(self, slab: torch.Tensor) -> bool:
        """Take a slab; say whether there is one before it, which now is ready."""
        before, self.before = self.before, slab
        if before is None:
            slab[0] = 0
        else:
            before[-1], slab[0] = slab[1], before[-2]
        self.ready = before
        return before is not None

    def end(self) -> None:
        """Make the last slab ready."""
        assert self.before is not None
        self.before[-1] = 0
        self.ready, self.before = self.before, None

    def pop(self) -> torch.Tensor:
        """Return the slab that is ready, and let go of it."""
        ready, self.ready = self.ready, None
        assert ready is not None
        return ready


def _with_neighbours(slabs: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield slabs with their outermost planes filled, each when the next is known."""
    seam = _Seam()
    for slab in slabs:
        if seam.add(slab):
            yield seam.pop()
    seam.end()
    del slab
    yield seam.pop()


def _put(out: torch.Tensor, wanted: Box, scores: torch.Tensor, box: Box, z: int) -> None:
    """Write the wanted voxels of a slab of scores that starts at plane ``z`` and fills ``box``."""
    first, last = max(z, wanted.start[0]), min(z + scores.shape[1], wanted.stop[0])
    ys, xs = (
        slice(a - start, b - start)
        for a, b, start in zip(wanted.start[1:], wanted.stop[1:], box.start[1:], strict=True)
    )
    if first < last:
        a = wanted.start[0]
        out[:, first - a : last - a] = scores[:, first - z : last - z, ys, xs]
