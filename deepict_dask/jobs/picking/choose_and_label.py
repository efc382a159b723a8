"""From a chunk of a score map to labelled, measured clusters, in one task.

The task also writes which voxels it chose. They are the segmentation if no cluster is dropped; else
they are what is labelled again to write it, read at a fraction of the cost of the scores and masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ...backend import Device, after_turn, compute_on, to_host
from ...core.ops import TreeReduction
from ...engine.patience import write_patiently
from ...labelling.merge import LabelNode
from ...labelling.select import select_voxels

if TYPE_CHECKING:
    from ...core.geometry import Block, Vec
    from ...core.volume import VolumeWriter
    from ...labelling import LabelReduction

__all__ = ["ChooseAndLabel"]


@dataclass(frozen=True)
class ChooseAndLabel(TreeReduction[LabelNode, LabelNode]):
    """Choose voxels, write which, label and measure them; sources are those of the labelling."""

    label: LabelReduction
    writer: VolumeWriter
    """Of uint8: 1 where a voxel was chosen, 0 elsewhere."""
    name: str = "label"
    device: str = "cpu"
    """Where voxels are labelled; "cuda" must be there."""

    def measure(self, block: Block, *windows: Any) -> LabelNode:
        """Return the node of one chunk; the voxels that were chosen are written on the way.

        On a GPU they are written after its turn.
        """
        work = partial(self._measured, block)
        node: LabelNode = compute_on(Device(self.device), self.name, work, *windows)
        return node

    def _measured(self, block: Block, score: Any, regions: Any | None = None) -> LabelNode:
        """Return the node of one chunk, made where its voxels are."""
        label = self.label
        chosen = select_voxels(score, regions, block.write, label.shape, label.select)
        after_turn(
            partial(write_patiently, self.writer, block.write, to_host(chosen).view(np.uint8))
        )
        return label.measure_chosen(block, chosen, score, regions)

    def combine(self, left: LabelNode, right: LabelNode) -> LabelNode:
        """Merge two neighbouring nodes, given in either order."""
        return self.label.combine(left, right)

    def finalize(self, partial: LabelNode) -> LabelNode:
        """Return the root: all clusters are finished."""
        return partial

    def bytes_needed(self, window_shape: Vec) -> int:
        """Return the peak bytes of one chunk: labels are made once the mask is written."""
        return self.label.bytes_needed(window_shape)
