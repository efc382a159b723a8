"""Layers of the 3D U-Net, rearranged for prediction on thin slabs with the channels innermost.

A slab is an array (planes + 2, y, x, channels): some planes of a level and one more on either side,
which the layer before leaves free and `deepict_dask.models.inference` fills from the neighbours.

1. Batch normalisation is a scale and a shift. It comes after the ReLU, so a positive scale moves
   into the convolution before it. The shift is added while the result is written: it cannot move
   into the next 3x3x3 convolution, whose zero padding it does not apply to. Before a 1x1x1 or a
   2x2x2 transposed convolution, which do not pad, scale and shift move on into those.
2. oneDNN is called directly. PyTorch's own choice for one thread and few channels unfolds each
   voxel's 27 neighbours in memory and is 4 times slower.
3. The convolution behind a skip connection is a sum over the channels kept and those that come up
   from below. The first part is computed at once, and its sums wait instead of the channels, so
   nothing is concatenated.
4. Few output channels leave vector lanes idle, so one convolution computes several neighbours
   along x: ``k`` shifted copies of a kernel, padded with zeros to width ``k + 2``, with stride
   ``k``, give ``k`` times the channels, which in memory are just ``k`` consecutive voxels.
5. Matrix products per voxel (the transposed convolution with stride 2, the 1x1x1 one) have few rows
   and columns too: a block-diagonal matrix does several voxels at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Affine", "Conv3", "Head", "Up", "arranged_block", "block_convolutions", "halve"]

VECTOR_LANES = 16
"""float32 lanes of one vector register (AVX-512); also good with 8."""
_ONEDNN_OPERATORS = (
    "_convolution_pointwise", "_convolution_pointwise_", "_is_mkldnn_bf16_supported"
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Affine:
    """Per-channel ``x * scale + shift``."""

    scale: torch.Tensor
    shift: torch.Tensor

    @classmethod
    def identity(cls, like: torch.Tensor) -> Affine:
        """Return the map that changes nothing, for as many channels as ``like`` has."""
        return cls(torch.ones_like(like), torch.zeros_like(like))

    @classmethod
    def of(cls, layer: nn.Module, like: torch.Tensor) -> Affine:
        """Return a batch normalisation in eval mode as an affine map, the identity otherwise."""
        if not isinstance(layer, nn.BatchNorm3d):
            return cls.identity(like)
        mean, var = layer.running_mean, layer.running_var
        assert mean is not None and var is not None  # noqa: PT018 - tracked by construction
        scale = layer.weight / torch.sqrt(var + layer.eps)
        return cls(scale, layer.bias - mean * scale)


class _Kernel:
    """A 3x3x3 convolution's numbers, for ``k`` neighbours along x, and how to apply them."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, *, k: int, dtype: torch.dtype
    ) -> None:
        outputs, inputs = weight.shape[:2]
        wide = weight.new_zeros(k, outputs, inputs, 3, 3, k + 2)
        for i in range(k):
            wide[i, ..., i : i + 3] = weight
        self.k, self.outputs, self.dtype = k, outputs, dtype
        self.weight = _channels_inner(wide.reshape(k * outputs, inputs, 3, 3, k + 2).to(dtype))
        self.bias = None if bias is None else bias.repeat(k).to(dtype)

    def __call__(
        self, slab: torch.Tensor, *, onto: torch.Tensor | None = None, relu: bool = True
    ) -> torch.Tensor:
        """Return (planes, y, x, outputs) of a slab; ``onto`` is added, and may be overwritten."""
        n, y, x, inputs = slab.shape
        # said by strides, because one channel alone fits both orders of axes
        strides = (slab.numel(), 1, y * x * inputs, x * inputs, inputs)
        volume = slab.as_strided((1, inputs, n, y, x), strides)
        one_by_one = x == self.k
        if one_by_one or slab.device.type != "cpu" or not _onednn_takes(self.dtype):
            result = self._by_torch(volume, onto, relu=relu, one_by_one=one_by_one)
        else:
            result = self._by_onednn(volume, onto, relu=relu)
        rows = result.permute(0, 2, 3, 4, 1).contiguous()
        return rows.view(n - 2, y, x, self.outputs)

    def _by_onednn(self, x: torch.Tensor, onto: torch.Tensor | None, *, relu: bool) -> torch.Tensor:
        """Return what oneDNN makes of it; groups of channels are neighbours along x."""
        how = ([0, 1, 1], [1, 1, self.k], [1, 1, 1], 1)
        then: tuple[str, list[float], str] = ("relu" if relu else "none", [], "")
        mkldnn = torch.ops.mkldnn
        if onto is None:
            y = mkldnn._convolution_pointwise(x, self.weight, self.bias, *how, *then)
        else:
            n, y_size, x_size, _ = onto.shape
            c = self.k * self.outputs
            shape = (1, c, n, y_size, x_size // self.k)
            sums = onto.as_strided(shape, _inner_strides(shape))
            y = mkldnn._convolution_pointwise_.binary(
                sums, x, self.weight, self.bias, *how, "add", 1.0, *then
            )
        return y

    def _by_torch(
        self, x: torch.Tensor, onto: torch.Tensor | None, *, relu: bool, one_by_one: bool
    ) -> torch.Tensor:
        """Return what PyTorch makes of it, on the CPU with float32 arithmetic.

        Also where a row is one group of neighbours, then voxel by voxel: with one input channel
        oneDNN multiplies memory beyond the row by the kernel's zeros, which is NaN where that
        memory happens to hold one (PyTorch 2.13; rows of two groups and more are right).
        """
        weight, bias, stride = self.weight, self.bias, (1, 1, self.k)
        if one_by_one:
            weight, stride = weight[: self.outputs, ..., :3], (1, 1, 1)
            bias = None if bias is None else bias[: self.outputs]
        if x.device.type == "cpu":
            x, weight = x.float(), weight.float()
            bias = None if bias is None else bias.float()
        y = functional.conv3d(x, weight, bias, stride=stride, padding=(0, 1, 1))
        if onto is not None:
            wide = onto.view(*onto.shape[:2], y.shape[-1], y.shape[1])
            y += wide.permute(3, 0, 1, 2)
        return (y.relu_() if relu else y).to(self.dtype)


class Conv3:
    """A 3x3x3 convolution, ReLU and normalisation, computing ``k`` neighbours along x at once.

    Parameters
    ----------
    layer, after
        The convolution, and the normalisation that follows its ReLU.
    k
        Neighbours; divides the width of every slab.
    dtype
        Of the arithmetic's operands; sums are float32.
    kept
        Leading input channels, if any, that come earlier than the others (`begun`).
    """

    def __init__(
        self, layer: nn.Conv3d, after: Affine, *,
        k: int, dtype: torch.dtype = torch.float32, kept: int = 0,
    ) -> None:  # fmt: skip
        assert layer.bias is not None
        # a scale that is not positive does not commute with the ReLU and stays outside
        commutes = bool((after.scale > 0).all())
        self.late_scale = None if commutes else after.scale.to(dtype)
        scale = after.scale if commutes else torch.ones_like(after.scale)
        weight, bias = layer.weight * scale.view(-1, 1, 1, 1, 1), layer.bias * scale
        self.first = _Kernel(weight[:, :kept], bias, k=k, dtype=dtype) if kept else None
        self.kernel = _Kernel(weight[:, kept:], None if kept else bias, k=k, dtype=dtype)
        self.shift = after.shift if bool(after.shift.any()) else None

    def begun(self, slab: torch.Tensor) -> torch.Tensor:
        """Return the sums over the kept channels, to be given to `slab` later."""
        assert self.first is not None
        return self.first(slab, relu=False)

    def __call__(self, slab: torch.Tensor) -> torch.Tensor:
        """Return the planes between a slab's outermost ones: (planes, y, x, outputs)."""
        rows = self._unshifted(slab, None)
        if self.shift is not None:
            _along_x(rows).add_(self._shift_row(rows))
        return rows

    def slab(
        self, slab: torch.Tensor, dtype: torch.dtype, onto: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the same as a slab of another type: its outermost planes are yet to be filled.

        ``onto`` is what `begun` returned; it is overwritten.
        """
        rows = self._unshifted(slab, onto)
        n, y, x, outputs = rows.shape
        out = torch.empty((n + 2, y, x, outputs), dtype=dtype, device=rows.device)
        if self.shift is None:
            out[1:-1] = rows
        elif dtype == rows.dtype:
            torch.add(_along_x(rows), self._shift_row(rows), out=_along_x(out[1:-1]))
        else:
            out[1:-1] = _along_x(rows).add_(self._shift_row(rows)).view(rows.shape)
        return out

    def _unshifted(self, slab: torch.Tensor, onto: torch.Tensor | None) -> torch.Tensor:
        """Return the result but for the shift."""
        rows = self.kernel(slab, onto=onto)
        return rows if self.late_scale is None else rows.mul_(self.late_scale)

    def _shift_row(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the shift for a whole row: four numbers at a time are three times slower."""
        assert self.shift is not None
        return self.shift.to(rows.dtype).repeat(rows.shape[2])


class Up:
    """A 2x2x2 transposed convolution with stride 2, as matrix products into a given array."""

    def __init__(
        self, layer: nn.ConvTranspose3d, before: Affine, *, dtype: torch.dtype = torch.float32
    ) -> None:
        assert layer.bias is not None
        inputs, outputs = layer.weight.shape[:2]
        by_offset = layer.weight.permute(2, 3, 4, 1, 0)  # z, y, x, out, in
        bias = layer.bias + torch.einsum("zyxoi,i->zyxo", by_offset, before.shift)
        weight = (by_offset * before.scale).reshape(4, 2 * outputs, inputs)
        self.products = [
            _Product(w, b, dtype=dtype)
            for w, b in zip(weight, bias.reshape(4, 2 * outputs), strict=True)
        ]
        self.outputs = outputs

    def into(self, out: torch.Tensor, rows: torch.Tensor) -> None:
        """Fill ``out`` (z, y, x, channels) from ``rows`` (z, y, x, channels) of half the size."""
        z, y, width, _ = rows.shape
        for i, product in enumerate(self.products):
            pairs = product(rows).view(z, y, 2 * width, self.outputs)
            out[i // 2 :: 2, i % 2 :: 2] = pairs


class Head:
    """The 1x1x1 convolution and the sigmoid, in float32."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, before: Affine) -> None:
        self.product = _Product(weight * before.scale, bias + weight @ before.shift)
        self.classes = len(bias)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Return scores (classes, planes, y, x) of rows (planes, y, x, channels)."""
        logits = self.product(rows.float()).view(*rows.shape[:3], self.classes)
        return logits.sigmoid_().permute(3, 0, 1, 2)


class _Product:
    """A matrix applied to the channels of every voxel, to several voxels at once."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor, *, dtype: torch.dtype = torch.float32
    ) -> None:
        self.weights = {}
        for n in (1, _together(weight)):
            blocks = torch.block_diag(*[weight] * n).to(dtype)
            self.weights[n] = (blocks, bias.repeat(n).to(dtype))
        self.outputs = weight.shape[0]

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Return (voxels, outputs), or as many numbers in another shape."""
        flat = rows.reshape(-1, rows.shape[-1])
        n = max(self.weights)
        n = n if len(flat) % n == 0 else 1
        return functional.linear(flat.view(-1, n * flat.shape[1]), *self.weights[n])


def _together(weight: torch.Tensor) -> int:
    """Return how many voxels one product treats: up to 64 numbers in, 16 out; a power of two."""
    if weight.is_cuda:
        return 1
    n = 1
    while 2 * n * weight.shape[0] <= VECTOR_LANES and 2 * n * weight.shape[1] <= 4 * VECTOR_LANES:
        n *= 2
    return n


def halve(rows: torch.Tensor, out: torch.Tensor) -> None:
    """Write the maximum of each cell of 2x2x2 voxels: (z, y, x, channels) to half the size.

    PyTorch's own pooling takes ten times as long with few channels innermost.

    Examples
    --------
    >>> out = torch.empty(1, 1, 2, 1)
    >>> halve(torch.arange(16.0).view(2, 2, 4, 1), out)
    >>> out.flatten().tolist()
    [13.0, 15.0]
    """
    rows = torch.maximum(rows[0::2], rows[1::2])
    rows = torch.maximum(rows[:, 0::2], rows[:, 1::2])
    torch.maximum(rows[:, :, 0::2], rows[:, :, 1::2], out=out)


def block_convolutions(block: nn.Module) -> list[tuple[nn.Conv3d, Affine]]:
    """Return a block's convolutions, each with the normalisation that follows its ReLU."""
    layers = list(block.children())
    return [
        (layer, Affine.of(layers[i + 2], layer.weight[:, 0, 0, 0, 0]))
        for i, layer in enumerate(layers)
        if isinstance(layer, nn.Conv3d)
    ]


def arranged_block(
    block: nn.Module, width: int, *, dtype: torch.dtype = torch.float32, decodes: bool = False
) -> list[Conv3]:
    """Arrange a block's convolutions for rows of a multiple of ``width`` voxels along x.

    Where it ``decodes``, half of the first one's channels come earlier, and the last normalisation
    is left to the layer that follows. A convolution of one channel, the tomogram, stays float32:
    there that is faster than bfloat16.
    """
    pairs = block_convolutions(block)
    kept = pairs[0][0].in_channels // 2 if decodes else 0
    if decodes:
        layer, after = pairs[-1]
        pairs[-1] = (layer, Affine.identity(after.shift))
    return [
        Conv3(
            layer, after, k=_neighbours(layer, width), kept=0 if i else kept,
            dtype=torch.float32 if layer.in_channels == 1 else dtype,
        )
        for i, (layer, after) in enumerate(pairs)
    ]  # fmt: skip


def _neighbours(layer: nn.Conv3d, width: int) -> int:
    """Return how many neighbours along x one convolution computes: a power of two."""
    if layer.weight.is_cuda:
        return 1
    return int(2 ** (min(width, max(1, VECTOR_LANES // layer.out_channels)).bit_length() - 1))


def _onednn_takes(dtype: torch.dtype) -> bool:
    """Say whether oneDNN computes with this type on this processor.

    The operators are PyTorch's own, made for its compiler, and no release promises them: where one
    lacks them, PyTorch computes.
    """
    offered = all(hasattr(torch.ops.mkldnn, name) for name in _ONEDNN_OPERATORS)
    if not offered or not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32  # float16 is for GPUs; few processors have it


def _along_x(rows: torch.Tensor) -> torch.Tensor:
    """Return (z, y, x, channels) seen as (z, y, x * channels)."""
    return rows.view(*rows.shape[:2], -1)


def _channels_inner(x: torch.Tensor) -> torch.Tensor:
    """Return a 5-axis array with its second axis innermost in memory."""
    inner = x.permute(0, 2, 3, 4, 1).contiguous()
    return inner.as_strided(x.shape, _inner_strides(x.shape))


def _inner_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a 5-axis array with its second axis innermost."""
    _, c, z, y, x = shape
    return (z * y * x * c, 1, y * x * c, x * c, c)
