"""DeepETPicker's tiles, which are part of its model, on blocks of any shape.

1. The tomogram is normalised as a whole and continued by zeros.
2. Tiles of ``block_size`` voxels see ``pad_size`` more on each side of the cube they predict; the
   last tile of an axis is moved back to end with the volume, and its scores win where two tiles
   predict a voxel.

The network's coordinate channels make a score depend on where in its tile a voxel lies, so there is
no exact tiling to prefer, and the tiles are always these.

Source: behaviour of github.com/cbmi-group/DeepETPicker at 0b3f8cb.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..core.errors import ShapeMismatchError
from ..core.geometry import Box, as_vec
from ..models.registry import loaded_deepetpicker
from .class_scores import ClassScoresOp
from .fixed_tiles import AxisTile, Tile, cut_tile, tiles_of
from .flips import add_mean_over_flips
from .windows import FIXED_BYTES, chosen_class

if TYPE_CHECKING:
    from ..core.geometry import Block, Vec
    from ..models.deepetpicker import DeepETPicker, DeepETPickerSettings

__all__ = ["DeepETPickerOp", "deepetpicker_axis"]

Array = np.ndarray[Any, Any]

ALIVE_FEATURES = 13
"""Arrays of the first level's channels that a tile holds at its peak (measured: 10.5)."""


def deepetpicker_axis(size: int, settings: DeepETPickerSettings) -> list[AxisTile]:
    """Return the tiles of an axis.

    Raises
    ------
    ShapeMismatchError
        The axis is shorter than the cube that a tile predicts.

    Examples
    --------
    >>> from deepict_dask.models.deepetpicker import DeepETPickerSettings
    >>> [(t.start, t.kept_start, t.kept_stop) for t in
    ...  deepetpicker_axis(80, DeepETPickerSettings())]
    [(-12, 0, 48), (20, 32, 80)]
    """
    step, pad = settings.step, settings.pad_size
    if size < step:
        raise ShapeMismatchError(
            f"DeepETPicker: expected {step} voxels or more on every axis (tiles of "
            f"{settings.block_size} with {pad} of context), found {size}; give it a larger volume"
        )
    starts = [min(i * step, size - step) for i in range(-(-size // step))]
    return [AxisTile(a - pad, a + step + pad, a, a + step) for a in starts]


@dataclass(frozen=True, kw_only=True)
class DeepETPickerOp(ClassScoresOp):
    """DeepETPicker's scores of a tomogram.

    The one source is the tomogram. The result is float32: zyx for one class, czyx for all. Blocks
    may have any shape; `fixed_tiles.tile_grid` knows the halo they need.

    Examples
    --------
    >>> op = DeepETPickerOp("ribosome.ckpt", mean=0.0, std=1.0, shape=(200, 400, 400))
    >>> op.name, op.dtype
    ('segment', 'float32')
    """

    shape: Vec
    """Voxels of the tomogram."""
    average_flips: bool = False
    """The mean over the eight mirror images of each tile."""

    @property
    def settings(self) -> DeepETPickerSettings:
        """The network's architecture and tiles; loads the model on first use."""
        return loaded_deepetpicker(self.model_path).settings

    @cached_property
    def axes(self) -> tuple[list[AxisTile], ...]:
        """The tiles of each axis."""
        return tuple(deepetpicker_axis(size, self.settings) for size in self.shape)

    @property
    def halo(self) -> Vec:
        """The most that a tile reaches out of a block of any shape."""
        return as_vec(self.settings.step - 1 + self.settings.pad_size)

    def apply(self, block: Block, *windows: Any) -> Array:
        """Return the scores over ``block.read``; outside ``block.write`` they say nothing."""
        scores = np.zeros((self.n_classes, *block.read.shape), dtype=np.float32)
        # pages of zeros that nothing is written to take no memory
        for tile in tiles_of(self.axes, block.write):
            corner = as_vec([axis.start for axis in tile.axes])
            values = self.cube(windows[0], block.read, corner)[(..., *tile.kept_in_tile.slices)]
            target, inner = _within(tile.kept, block.write)
            scores[(..., *target.slices_in(block.read))] = values[(..., *inner.slices)]
        return scores if self.class_index is None else scores[0]

    def cube(self, window: Array, read: Box, corner: Vec) -> Array:
        """Return all scores of one tile as its network returns them, those of its pads too.

        Parameters
        ----------
        window
            zyx voxels of the tomogram over ``read``, which holds all that the tile sees of it.
        read
            Where the window lies.
        corner
            First voxel of the tile; below 0 where it reaches out of the volume.

        Returns
        -------
        numpy.ndarray
            float32 czyx; each axis has ``settings.block_size`` voxels.
        """
        edge, pad = self.settings.block_size, self.settings.pad_size
        tile = Tile(_axes_of(corner, edge, pad))
        network = loaded_deepetpicker(self.model_path, self.device)
        voxels = cut_tile(window, read, tile, self.mean, self.std)
        values = predicted(network, voxels, average_flips=self.average_flips)
        chosen = chosen_class(values, self.class_index)
        return chosen if self.class_index is None else chosen[None]

    def bytes_needed(self, window_shape: Vec) -> int:
        """Return the peak bytes of one block: its window, its scores, and one tile's network."""
        settings = self.settings
        one_tile = 4 * settings.block_size**3 * (
            ALIVE_FEATURES * settings.features[0] + 3 * settings.n_classes
        )  # fmt: skip
        if self.average_flips:  # a mirror image, its scores, and these turned back
            one_tile += 4 * settings.block_size**3 * (1 + 2 * settings.n_classes)
        return math.prod(window_shape) * 4 * (2 + self.n_classes) + one_tile

    @property
    def fixed_bytes(self) -> int:
        """Resident bytes of a process before its first block: torch, and this model's weights."""
        network = loaded_deepetpicker(self.model_path)
        return FIXED_BYTES + 2 * sum(4 * p.numel() for p in network.parameters())


def _axes_of(corner: Vec, edge: int, pad: int) -> tuple[AxisTile, AxisTile, AxisTile]:
    """Return the axes of a cube that starts at a corner, without its pads on either side."""
    z, y, x = (AxisTile(c, c + edge, c + pad, c + edge - pad) for c in corner)
    return (z, y, x)


def _within(kept: Box, write: Box) -> tuple[Box, Box]:
    """Return the part of a tile's cube that a block writes, in the volume and in the cube."""
    box = type(kept)(
        as_vec(np.maximum(kept.start, write.start)), as_vec(np.minimum(kept.stop, write.stop))
    )
    return box, box.shift(as_vec([-a for a in kept.start]))


@torch.inference_mode()
def predicted(network: DeepETPicker, tile: Array, *, average_flips: bool = False) -> Array:
    """Return the scores of one normalised tile.

    Parameters
    ----------
    network
        In eval mode.
    tile
        float32 zyx; each axis a multiple of ``network.settings.align``.
    average_flips
        Return the mean over the tile and its seven mirror images, each turned back.

    Returns
    -------
    numpy.ndarray
        float32 czyx, 0..1.

    Examples
    --------
    >>> from deepict_dask.models.deepetpicker import DeepETPicker, DeepETPickerSettings
    >>> network = DeepETPicker(DeepETPickerSettings(3, (2, 2), 8, 2)).eval()
    >>> predicted(network, np.zeros((8, 8, 8), "float32")).shape
    (3, 8, 8, 8)
    """
    on_device = torch.from_numpy(tile).to(network.final_conv.weight.device)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False, deterministic=True):
        if not average_flips:
            scores: Array = network.scores(on_device[None, None])[0].cpu().numpy()
            return scores
        mean = on_device.new_zeros((network.settings.n_classes, *tile.shape))
        whole = Box.whole(as_vec(tile.shape))
        add_mean_over_flips(lambda x, _: network.scores(x[None, None])[0], on_device, whole, mean)
    return mean.cpu().numpy()
