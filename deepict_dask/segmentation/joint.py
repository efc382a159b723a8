"""Several networks over one tomogram, each window read and normalised once.

The window is the one that the farthest-seeing network needs, so each network gives the same scores
as alone, to 1e-5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend import Device, namespace_of, to_device, to_host
from ..core.geometry import as_vec
from ..core.ops import ChunkOp
from .device_windows import scores_that_fit
from .windows import FIXED_BYTES, SegmentOp, device_window_bytes, normalise, window_bytes

if TYPE_CHECKING:
    from ..core.geometry import Block, Grid, Vec

__all__ = ["JointSegmentOp"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class JointSegmentOp(ChunkOp):
    """The scores of several networks, stacked along the channels in the order of ``ops``.

    The one source is the tomogram. The result is float32, czyx; `channels` says whose are which.

    Examples
    --------
    >>> ribosome = SegmentOp("ribosome.safetensors", mean=0.0, std=1.0, class_index=0)
    >>> membrane = SegmentOp("membrane.safetensors", mean=0.0, std=1.0, class_index=0)
    >>> JointSegmentOp((ribosome, membrane)).name
    'segment'
    """

    ops: tuple[SegmentOp, ...]
    """At least one; all of the same tomogram, so of the same mean and standard deviation."""
    name: str = "segment"
    dtype: str = "float32"

    @property
    def halo(self) -> Vec:
        """Voxels a window needs on every side: the most that any network needs."""
        return as_vec(np.max([op.halo for op in self.ops], axis=0))

    @property
    def align(self) -> int:
        """Windows start on multiples of this, which every network's pooling cells divide."""
        return math.lcm(*(op.align for op in self.ops))

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each network, in the order of ``ops``."""
        return tuple(1 if op.class_index is not None else op.n_classes for op in self.ops)

    @property
    def n_classes(self) -> int:
        """Channels of all networks."""
        return sum(self.channels)

    def measured(self, mean: float, std: float) -> JointSegmentOp:
        """Return the same for a tomogram of this mean and standard deviation."""
        return replace(self, ops=tuple(replace(op, mean=mean, std=std) for op in self.ops))

    def apply(self, block: Block, *windows: Any) -> Array:
        """Return the scores over ``block.read``; outside ``block.write`` there are zeros."""
        if not self.device.is_gpu:
            return self._scores(block, windows[0])
        scores = np.zeros((self.n_classes, *block.read.shape), dtype=np.float32)
        block.crop(scores)[...] = to_host(self.written_scores(block, windows[0]))
        return scores

    @property
    def device(self) -> Device:
        """Where the networks run."""
        return Device(self.ops[0].device.partition(":")[0])

    @property
    def uploads(self) -> bool:
        """Whether windows go to a GPU as they were read."""
        return self.device.is_gpu

    def written_scores(self, block: Block, window: Array) -> Array:
        """Return the scores over ``block.write``, left on the GPU where the networks run there.

        A window that does not fit the GPU goes in parts, whose scores are on the host.
        """
        if not self.device.is_gpu:
            return block.crop(self._scores(block, window))
        return scores_that_fit(self, self._scores, block, window)

    def _scores(self, block: Block, window: Array) -> Array:
        """Return the scores over ``block.read``, in the place of the device."""
        window = normalise(to_device(window, self.device), self.ops[0].mean, self.ops[0].std)
        if len(self.ops) == 1:
            return self.ops[0].scores(block, window).reshape(-1, *window.shape)
        xp = namespace_of(window)
        scores = xp.zeros((self.n_classes, *window.shape), dtype=np.float32)
        first = 0
        for op, n in zip(self.ops, self.channels, strict=True):
            block.crop(scores[first : first + n])[...] = block.crop(op.scores(block, window))
            first += n
        return scores

    def bytes_needed(self, window_shape: Vec) -> int:
        """Return the peak bytes of one window: as read, normalised, all scores, one network's."""
        if self.device.is_gpu:
            # as read and page-locked, and scores, which are put together of parts at the worst
            return 4 * math.prod(window_shape) * (2 + 2 * self.n_classes)
        joint = self.n_classes if len(self.ops) > 1 else 0
        return window_bytes(window_shape, self.ops, self.align, joint)

    def device_bytes_of(self, grid: Grid) -> int:
        """Return the bytes of a GPU that the largest window of a grid takes."""
        joint = self.n_classes if len(self.ops) > 1 else 0
        return device_window_bytes(grid.window_shape, self.ops, self.align, joint)

    @property
    def fixed_bytes(self) -> int:
        """Resident bytes of a process before its first window: torch, and all weights."""
        return FIXED_BYTES + sum(op.fixed_bytes - FIXED_BYTES for op in self.ops)
