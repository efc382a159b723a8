"""Apply a network to a volume of any size, window by window, exactly.

What is the exact result? The whole volume is normalised, padded at its far end to a multiple of
2**depth (by reflection, or by repeating the last voxel where an axis is too short to reflect), and
the network is applied to it once. Windows give the same numbers to 1e-5, because

1. a window holds every voxel that its write box depends on: the halo is derived from the network;
2. windows start on multiples of 2**depth, so that poolings group the same voxels;
3. only at the volume's own far end is a window padded, with the voxels the whole would get there.

How large a window is: see `deepict_dask.segmentation.window_choice`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..backend import from_dlpack, is_on_device, namespace_of
from ..core.errors import ModelFileError, VoxelValueError
from ..core.geometry import Box, as_vec, ceil_to
from ..core.ops import ChunkOp
from ..models.inference import InferenceUNet3D, planes_at_once
from ..models.registry import inference_network, loaded_unet3d
from ..models.unet3d import UNet3D, UNet3DSettings
from .flips import add_mean_over_flips

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..core.geometry import Block, Vec
    from ..models.inference import Precision
    from ..models.registry import PinnedModel

__all__ = [
    "SegmentOp",
    "network_bytes",
    "normalise",
    "pad_far_end",
    "predict_window",
]

Array = np.ndarray[Any, Any]

FIXED_BYTES = 250 << 20
"""Resident bytes after torch, a small model and one small window (measured: 225-249 MiB)."""
DEVICE_PIECE_BYTES = 100 << 24
"""At most, of the voxels that are measured at a time on a GPU (`labelling.device_measure`)."""
WORKED_ON = 15
"""Most slabs of a level that are alive beside those its skip connection holds."""


def normalise(volume: Array, mean: float, std: float) -> Array:
    """Return ``(volume - mean) / std`` in float32.

    Parameters
    ----------
    volume
        zyx, any real type, NumPy or CuPy; not changed.
    mean, std
        Of the whole tomogram; rounded to float32 first, so that their last digits do not matter.

    Raises
    ------
    VoxelValueError
        ``std`` is zero or not finite.

    Examples
    --------
    >>> normalise(np.array([[[1, 3]]], dtype="int16"), mean=2.0, std=2.0).tolist()
    [[[-0.5, 0.5]]]
    """
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise VoxelValueError(
            f"tomogram: expected a finite mean and a standard deviation above 0, found mean {mean} "
            f"and standard deviation {std}; a constant volume cannot be segmented"
        )
    xp = namespace_of(volume)
    normalised = xp.subtract(volume, np.float32(mean), dtype=np.float32)
    normalised /= np.float32(std)
    return normalised


def pad_far_end(window: Array, align: int) -> Array:
    """Return a window whose axes are multiples of ``align``; itself where they already are.

    Parameters
    ----------
    window
        zyx. New voxels at the far ends mirror the last ones (without repeating the last); an axis
        too short for that repeats its last voxel.
    align
        Of the network: 2**depth, or more.

    Examples
    --------
    >>> pad_far_end(np.array([[[1, 2, 3, 4, 5, 6]]]), 4)[0, 0].tolist()
    [1, 2, 3, 4, 5, 6, 5, 4]
    >>> pad_far_end(np.array([[[1, 2]]]), 4)[3, 3].tolist()
    [1, 2, 2, 2]
    """
    shape = as_vec(window.shape)
    full = as_vec([ceil_to(n, align) for n in shape])
    if full == shape:
        return window
    xp = namespace_of(window)
    padded = xp.empty(full, dtype=window.dtype)
    padded[tuple(slice(n) for n in shape)] = window
    for axis, (n, to) in enumerate(zip(shape, full, strict=True)):
        # what a plane copies from an axis not yet padded is overwritten when its turn comes
        planes = xp.moveaxis(padded, axis, 0)
        for i in range(to - n):
            planes[n + i] = planes[n - 2 - i if to - n < n else n - 1]
    return padded


def predict_window(
    network: UNet3D | InferenceUNet3D, window: Array, wanted: Box | None = None, *,
    average_flips: bool = False,
) -> Array:  # fmt: skip
    """Return the scores of one normalised window.

    The number of threads is left to the caller (a worker process has one).

    Parameters
    ----------
    network
        In eval mode. Pass an `InferenceUNet3D` where many windows follow.
    window
        float32 zyx, normalised, of any shape, NumPy or CuPy.
    wanted
        Voxels of the window to compute; all of them by default.
    average_flips
        Return the mean over the window and its seven mirror images, each turned back.

    Returns
    -------
    array
        float32 czyx scores, 0..1, of the window's shape, where the window is; zeros where none are
        wanted.

    Examples
    --------
    >>> network = UNet3D(UNet3DSettings(depth=1, initial_features=2, n_classes=3)).eval()
    >>> predict_window(network, np.zeros((5, 6, 7), dtype="float32")).shape
    (3, 5, 6, 7)
    """
    arranged = InferenceUNet3D(network) if isinstance(network, UNet3D) else network
    wanted = wanted or Box.whole(as_vec(window.shape))
    padded = pad_far_end(window, arranged.settings.align)
    shape = (arranged.settings.n_classes, *window.shape)
    if is_on_device(window):  # memory is shared with PyTorch, not copied
        on_device = torch.zeros(shape, dtype=torch.float32, device=arranged.device)
        _put_scores(
            arranged, torch.utils.dlpack.from_dlpack(padded), wanted, on_device,
            average_flips=average_flips,
        )  # fmt: skip
        return from_dlpack(on_device)
    # pages of zeros that nothing is written to take no memory
    scores = np.zeros(shape, dtype=np.float32)
    tensor = torch.from_numpy(np.ascontiguousarray(padded)).to(arranged.device)
    _put_scores(arranged, tensor, wanted, torch.from_numpy(scores), average_flips=average_flips)
    return scores


def _put_scores(
    network: InferenceUNet3D, window: torch.Tensor, wanted: Box, scores: torch.Tensor, *,
    average_flips: bool,
) -> None:  # fmt: skip
    """Write the wanted scores of a window, zero so far, into an array of its unpadded shape."""
    out = scores[(slice(None), *wanted.slices)]
    if not average_flips:
        network.scores(window, wanted, out=out)
        return
    part = torch.empty(out.shape, dtype=torch.float32, device=network.device)

    def scores_of(image: torch.Tensor, box: Box) -> torch.Tensor:
        network.scores(image, box, out=part)
        return part

    add_mean_over_flips(scores_of, window, wanted, out)


def network_bytes(settings: UNet3DSettings, window_shape: Vec, device: str = "cpu") -> int:
    """Return an upper bound of the bytes that predicting one window allocates at its peak.

    At each level some slabs, of two planes more than they stand for, are worked on, and the skip
    connection holds as many as the levels below are behind; never more than the window has. A
    tenth is for the holes that the C library's heap is left with. Scores are not counted.

    Measured in fresh processes, as the growth of the peak resident size: 0.6 to 0.97 of this.

    Examples
    --------
    >>> network_bytes(UNet3DSettings(depth=2, initial_features=4), (64, 64, 64)) // 10**6
    33
    >>> network_bytes(UNet3DSettings(depth=2, initial_features=4), (256, 256, 256)) // 10**6
    189
    """
    edge = settings.space_to_depth
    z, y, x = (ceil_to(size, settings.align) // edge for size in window_shape)
    planes = planes_at_once(settings, (z, y, x), device)
    n_slabs = -(-z // planes)
    copies = 1 if edge == 1 else 2  # voxels and positions, while one becomes the other
    arrays = copies * (1 + settings.n_classes)
    total = 4 * planes * y * x * settings.channels_of_position * arrays
    for level in range(settings.depth + 1):
        plane = 4 * settings.initial_features * y * x >> level  # twice the features, a quarter
        slab = planes >> level
        behind = 4 * (settings.depth - level) - 1
        total += plane * slab * max(0, min(behind, n_slabs))
        total += plane * (slab + 2) * min(WORKED_ON, 3 + n_slabs)
    return total * 11 // 10


@dataclass(frozen=True)
class SegmentOp(ChunkOp):
    """A network's scores of a tomogram.

    The one source is the tomogram. The result is float32: zyx for one class, czyx for all.

    Examples
    --------
    >>> op = SegmentOp("ribosome.safetensors", mean=0.0, std=1.0, class_index=0)
    >>> op.name, op.dtype
    ('segment', 'float32')
    """

    model_path: str | PinnedModel
    mean: float
    """Of the whole tomogram."""
    std: float
    """Of the whole tomogram."""
    class_index: int | None = None
    """Channel to return; all of them for None."""
    device: str = "cpu"
    """"cpu", "cuda" or "cuda:N"; must be there."""
    precision: Precision = "float32"
    """Of the network's weights and features; the scores are float32."""
    average_flips: bool = False
    """The mean over the eight mirror images of each window: as exact, since a window's halo is
    alike on all sides and its padded shape a whole number of pooling cells."""
    name: str = "segment"
    dtype: str = "float32"

    @property
    def settings(self) -> UNet3DSettings:
        """The network's architecture; loads the model on first use."""
        return loaded_unet3d(self.model_path).settings

    @property
    def n_classes(self) -> int:
        """Channels of the network."""
        return self.settings.n_classes

    @property
    def halo(self) -> Vec:
        """Voxels a window needs on every side, derived from the network."""
        return as_vec(self.settings.halo)

    @property
    def align(self) -> int:
        """Windows start on multiples of this."""
        return self.settings.align

    def apply(self, block: Block, *windows: Any) -> Array:
        """Return the scores over ``block.read``; outside ``block.write`` there are zeros."""
        return self.scores(block, normalise(windows[0], self.mean, self.std))

    def scores(self, block: Block, normalised: Array) -> Array:
        """Return the same of a window that is normalised already, where that is."""
        network = inference_network(self.model_path, self.device, self.precision)
        scores = predict_window(
            network, normalised, write_box(block), average_flips=self.average_flips
        )
        return chosen_class(scores, self.class_index)

    def bytes_needed(self, window_shape: Vec) -> int:
        """Return the peak bytes of one window: as read, normalised, padded, scores, network.

        Measured in fresh processes: an upper bound, at most 1.6 times the peak.
        """
        return window_bytes(window_shape, [self], self.align)

    @property
    def fixed_bytes(self) -> int:
        """Resident bytes of a process before its first window: torch, and this model's weights."""
        # as loaded, and arranged for prediction with up to four times as many numbers
        return FIXED_BYTES + 5 * 4 * _n_parameters(self.settings)


@lru_cache(maxsize=64)
def _n_parameters(settings: UNet3DSettings) -> int:
    return sum(math.prod(shape) for shape in UNet3D.state_shapes(settings).values())


def window_bytes(
    window_shape: Vec, ops: Sequence[SegmentOp], align: int, joint_channels: int = 0
) -> int:
    """Return the peak bytes of a window that one network after the other is applied to.

    ``joint_channels`` are those of an array that takes the scores of all.
    """
    padded = as_vec([ceil_to(size, align) for size in window_shape])
    # as read, normalised, all scores, padded
    arrays = 2 + joint_channels + (padded != window_shape)
    return max(
        4 * math.prod(padded) * (arrays + _score_arrays(op))
        + network_bytes(op.settings, window_shape)
        for op in ops
    )


def _score_arrays(op: SegmentOp) -> int:
    """Return how many volumes are held for the scores: for flips, a window and twice its scores."""
    return 1 + 3 * op.n_classes if op.average_flips else op.n_classes


def device_window_bytes(
    window_shape: Vec, ops: Sequence[SegmentOp], align: int, joint_channels: int = 0
) -> int:
    """Return the bytes of a GPU that a window takes, labelled there afterwards.

    A plan, not a bound: what cuDNN takes depends on the GPU. `backend.device_budget` leaves room,
    and a window that does not fit after all is halved (`device_windows`).

    Examples
    --------
    >>> from ..models.registry import resolve_model
    >>> op = SegmentOp(str(resolve_model("demo_ribosome_fas")), 0.0, 1.0)  # 2 classes
    >>> device_window_bytes((464, 928, 928), [op], op.align) >> 30
    25
    """
    padded = as_vec([ceil_to(size, align) for size in window_shape])
    n_scores = max(op.n_classes for op in ops) + joint_channels
    # as read, normalised, padded, all scores
    held = 3 + max(map(_score_arrays, ops)) + joint_channels
    predicting = 4 * math.prod(padded) * held + max(
        network_bytes(op.settings, window_shape, "cuda") for op in ops
    )
    # as read, all scores, chosen, labels and what cuCIM makes them of
    pieces = min(100 * math.prod(padded), DEVICE_PIECE_BYTES)
    labelling = math.prod(padded) * (4 + 4 * n_scores + 1 + 12) + pieces
    return max(predicting, labelling)


def write_box(block: Block) -> Box:
    """Return the voxels a block writes, counted from the first that it reads."""
    inner = block.write.slices_in(block.read)
    return Box(as_vec([axis.start for axis in inner]), as_vec([axis.stop for axis in inner]))


def chosen_class(scores: Array, class_index: int | None) -> Array:
    """Return one class (zyx) of a czyx array, or all of them.

    Raises
    ------
    ModelFileError
        There is no such class.
    """
    if class_index is None:
        return scores
    if not 0 <= class_index < len(scores):
        raise ModelFileError(
            f"class {class_index}: the model has {len(scores)} classes, counted from 0"
        )
    return scores[class_index]
