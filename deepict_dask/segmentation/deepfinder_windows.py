"""DeepFinder's network over a volume of any size, window by window, exactly.

What the exact result is, and why windows give the same numbers to 1e-5: see `windows`. The
published program averages overlapping patches instead: see `deepfinder_compat`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..core.geometry import as_vec, ceil_to
from ..models.deepfinder_inference import deepfinder_bytes
from ..models.registry import inference_deepfinder, loaded_deepfinder
from .class_scores import ClassScoresOp
from .device_windows import Halving, scores_that_fit
from .flips import add_mean_over_flips
from .windows import chosen_class, normalise, pad_far_end, write_box

if TYPE_CHECKING:
    from ..core.geometry import Block, Box, Grid, Vec
    from ..models.deepfinder import DeepFinderSettings
    from ..models.deepfinder_inference import InferenceDeepFinder

__all__ = ["DeepFinderOp", "predicted"]

Array = np.ndarray[Any, Any]

FIXED_BYTES = 410 << 20
"""Resident bytes after torch, this network and one small window, and what the heap keeps of windows
whose arrays are too small to be mapped one by one (measured, both together: 180 to 455 MiB)."""
_LEARNT = Halving()
"""A window of this network takes several times what one of a U-Net does."""


@dataclass(frozen=True)
class DeepFinderOp(ClassScoresOp):
    """DeepFinder's scores of a tomogram.

    The one source is the tomogram. The result is float32: zyx for one class, czyx for all, the
    background first.

    Examples
    --------
    >>> op = DeepFinderOp("net_weights_FINAL.h5", mean=0.0, std=1.0)
    >>> op.name, op.dtype
    ('segment', 'float32')
    """

    average_flips: bool = False
    """The mean over the eight mirror images of each window, as exact as one."""

    @property
    def settings(self) -> DeepFinderSettings:
        """The network's architecture; loads the model on first use."""
        return loaded_deepfinder(self.model_path).settings

    @property
    def halo(self) -> Vec:
        """Voxels a window needs on every side, derived from the network."""
        return as_vec(self.settings.halo)

    @property
    def align(self) -> int:
        """Windows start on multiples of this."""
        return self.settings.align

    def apply(self, block: Block, *windows: Any) -> Array:
        """Return the scores over ``block.read``; outside ``block.write`` there are zeros.

        A window that does not fit a GPU goes in parts.
        """
        if self.device == "cpu":
            scores = self._scores(block, windows[0])
        else:
            scores = self._empty(block)
            found = scores_that_fit(self, self._scores, block, windows[0], _LEARNT)
            block.crop(scores)[...] = found
        return chosen_class(scores, self.class_index)

    def _scores(self, block: Block, window: Array) -> Array:
        """Return the scores of all classes over ``block.read``."""
        window = pad_far_end(normalise(window, self.mean, self.std), self.align)
        scores, wanted = self._empty(block), write_box(block)
        network = inference_deepfinder(self.model_path, self.device)
        scores[(..., *wanted.slices)] = predicted(
            network, window, wanted, average_flips=self.average_flips
        )
        return scores

    def _empty(self, block: Block) -> Array:
        """Return zeros over ``block.read``: pages that nothing is written to take no memory."""
        return np.zeros((self.settings.n_classes, *block.read.shape), dtype=np.float32)

    def bytes_needed(self, window_shape: Vec) -> int:
        """Return the peak bytes of one window: as read, normalised, padded, scores, network."""
        padded = as_vec([ceil_to(size, self.align) for size in window_shape])
        arrays = 2 + (padded != window_shape) + 2 * self.settings.n_classes
        if self.average_flips:  # a mirror image, its scores, and these turned back
            arrays += 1 + 2 * self.settings.n_classes
        return 4 * math.prod(padded) * arrays + deepfinder_bytes(self.settings, window_shape)

    def bytes_of(self, grid: Grid) -> int:
        """Return the peak bytes of one window of a grid."""
        return self.bytes_needed(grid.window_shape)

    @property
    def fixed_bytes(self) -> int:
        """Resident bytes of a process before its first window: torch, and this model's weights."""
        network = loaded_deepfinder(self.model_path)
        return FIXED_BYTES + 3 * sum(4 * p.numel() for p in network.parameters())


def predicted(
    network: InferenceDeepFinder, window: Array, wanted: Box, *, average_flips: bool = False
) -> Array:
    """Return the scores of a box of one normalised window.

    Parameters
    ----------
    network
        Arranged for prediction.
    window
        float32 zyx; each axis a multiple of four.
    wanted
        Voxels of the window.
    average_flips
        Return the mean over the window and its seven mirror images, each turned back.

    Returns
    -------
    numpy.ndarray
        float32 czyx, 0..1, of the box.
    """
    on_device = torch.from_numpy(np.ascontiguousarray(window)).to(network.device)
    if not average_flips:
        scores: Array = network.scores(on_device, wanted).cpu().numpy()
        return scores
    mean = torch.zeros((network.settings.n_classes, *wanted.shape), device=network.device)
    add_mean_over_flips(network.scores, on_device, wanted, mean)
    return mean.cpu().numpy()
