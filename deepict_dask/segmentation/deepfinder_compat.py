"""DeepFinder's own tiling, for those who compare with its results.

1. The tomogram is normalised as a whole and continued by 25 zeros on every side.
2. Patches of ``box`` voxels (even) are predicted every ``box - 54``; the last of an axis is moved
   back to end with the padded volume. 25 voxels are cut off every side of a patch, so neighbours
   overlap by 4.
3. Where patches overlap their scores are added, in the order z, y, x of the patches and in float16,
   and divided by their number, again in float16.

Without this mode windows are exact and no averages are needed: see `deepfinder_windows`.

Source: behaviour of github.com/deep-finder/cryoet-deepfinder at 100d8b4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ShapeMismatchError
from ..core.geometry import Box, as_vec
from ..models.deepfinder_inference import deepfinder_bytes
from ..models.registry import inference_deepfinder, loaded_deepfinder
from .class_scores import ClassScoresOp
from .deepfinder_windows import predicted
from .fixed_tiles import AxisTile, cut_tile, tiles_of
from .windows import FIXED_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..core.geometry import Block, Vec
    from ..models.deepfinder import DeepFinderSettings
    from .fixed_tiles import Tile

__all__ = ["CompatDeepFinderOp", "averaged", "deepfinder_axis"]

Array = np.ndarray[Any, Any]

CUT = 25
"""Zeros before the volume, and voxels cut off a patch."""
OVERLAP = 4
"""Voxels that two neighbours both predict."""


def deepfinder_axis(size: int, box: int) -> list[AxisTile]:
    """Return the patches of an axis.

    Raises
    ------
    ShapeMismatchError
        The patch is too small, odd for the poolings, or does not fit the padded axis.

    Examples
    --------
    >>> [(t.start, t.kept_start, t.kept_stop) for t in deepfinder_axis(96, 96)]
    [(-25, 0, 46), (17, 42, 88), (25, 50, 96)]
    """
    step = box - 2 * CUT - OVERLAP
    if step < 1 or box % 4:
        raise ShapeMismatchError(
            f"--compat deepfinder: expected a box size above {2 * CUT + OVERLAP} and a multiple of "
            f"4, found {box}"
        )
    if size + 2 * CUT <= box:
        raise ShapeMismatchError(
            f"--compat deepfinder: expected a box below the axis and {2 * CUT} zeros round it "
            f"({size} + {2 * CUT}), since the published program fails too, found {box}; give a "
            "smaller --box-size, or leave out --compat"
        )
    starts = list(range(0, size + 2 * CUT - box, step))
    if starts[-1] + box < size + 2 * CUT:
        starts.append(size + 2 * CUT - box)
    return [AxisTile(a - CUT, a - CUT + box, a, a + box - 2 * CUT) for a in starts]


def averaged(
    axes: tuple[list[AxisTile], ...],
    write: Box,
    predict: Callable[[Tile], Array],
    n_classes: int,
) -> Array:
    """Return the mean of all patches over a box, as float16 sums have it.

    Parameters
    ----------
    axes
        The patches of each axis.
    write
        The box.
    predict
        Returns the scores of a patch's kept voxels: float32, czyx.
    n_classes
        Channels.

    Returns
    -------
    numpy.ndarray
        float16 czyx over the box.

    Examples
    --------
    >>> axis = [AxisTile(0, 3, 0, 3), AxisTile(2, 5, 2, 5)]
    >>> one = [AxisTile(0, 1, 0, 1)]
    >>> def predict(tile):
    ...     return np.full((1, 1, 1, 3), tile.kept.start[2] + 1, "float32")
    >>> averaged((one, one, axis), Box((0, 0, 0), (1, 1, 5)), predict, 1)[0, 0, 0].tolist()
    [1.0, 1.0, 2.0, 3.0, 3.0]
    """
    sums = np.zeros((n_classes, *write.shape), dtype=np.float16)
    counts = np.zeros(write.shape, dtype=np.int8)
    for tile in tiles_of(axes, write):
        kept = tile.kept
        shared = Box(
            as_vec(np.maximum(kept.start, write.start)), as_vec(np.minimum(kept.stop, write.stop))
        )
        values = predict(tile)[(..., *shared.slices_in(kept))]
        sums[(..., *shared.slices_in(write))] += values.astype(np.float16)
        counts[shared.slices_in(write)] += 1
    return (sums / counts).astype(np.float16)


@dataclass(frozen=True, kw_only=True)
class CompatDeepFinderOp(ClassScoresOp):
    """DeepFinder's scores of a tomogram as the published program averages them.

    The one source is the tomogram. The result is float32 with float16's values: zyx for one class,
    czyx for all, the background first. Blocks may have any shape; `fixed_tiles.tile_grid` knows the
    halo they need.

    Examples
    --------
    >>> op = CompatDeepFinderOp("net_weights_FINAL.h5", 0.0, 1.0, shape=(200, 400, 400), box=160)
    >>> op.halo, len(op.axes[0])
    ((134, 134, 134), 2)
    """

    shape: Vec
    """Voxels of the tomogram."""
    box: int = 192
    """Edge of a patch."""

    @property
    def settings(self) -> DeepFinderSettings:
        """The network's architecture; loads the model on first use."""
        return loaded_deepfinder(self.model_path).settings

    @cached_property
    def axes(self) -> tuple[list[AxisTile], ...]:
        """The patches of each axis."""
        return tuple(deepfinder_axis(size, self.box) for size in self.shape)

    @property
    def halo(self) -> Vec:
        """The most that a patch reaches out of a block of any shape."""
        return as_vec(self.box - CUT - 1)

    def apply(self, block: Block, *windows: Any) -> Array:
        """Return the scores over ``block.read``; outside ``block.write`` there are zeros."""
        network = inference_deepfinder(self.model_path, self.device)
        channels = slice(None) if self.class_index is None else [self.class_index]

        def predict(tile: Tile) -> Array:
            patch = cut_tile(windows[0], block.read, tile, self.mean, self.std)
            return predicted(network, patch, tile.kept_in_tile)[channels]

        # pages of zeros that nothing is written to take no memory
        scores = np.zeros((self.n_classes, *block.read.shape), dtype=np.float32)
        target = (..., *block.write.slices_in(block.read))
        scores[target] = averaged(self.axes, block.write, predict, self.n_classes)
        return scores if self.class_index is None else scores[0]

    def bytes_needed(self, window_shape: Vec) -> int:
        """Return the peak bytes of one block: its window, sums, scores, and one patch's network."""
        settings = self.settings
        patch = 4 * self.box**3 * (2 + 2 * settings.n_classes)
        network = deepfinder_bytes(settings, as_vec(self.box))
        return math.prod(window_shape) * (5 + 12 * self.n_classes) + patch + network

    @property
    def fixed_bytes(self) -> int:
        """Resident bytes of a process before its first block: torch, and this model's weights."""
        network = loaded_deepfinder(self.model_path)
        return FIXED_BYTES + 3 * sum(4 * p.numel() for p in network.parameters())
