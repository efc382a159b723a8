"""From a window of a tomogram to labelled, measured clusters, in one task.

`deepict_dask.segmentation` and `deepict_dask.labelling` do not know of one another; this reduction
calls both. Its leaf is a network window, labelled where it writes, chunk by chunk, so that labels
take no more memory than in a pass of their own; its nodes hold one label node for each pick
section.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from ...backend import Device, after_turn, compute_on, is_on_device, to_host
from ...core.geometry import Block, Box, as_vec
from ...core.ops import TreeReduction
from ...core.statistics import StatisticsReduction
from ...engine import SpillFolder
from ...engine.patience import write_patiently
from ...labelling.op import relabel_bytes
from ...labelling.select import select_voxels
from .score_range import score_range

if TYPE_CHECKING:
    from pathlib import Path

    from ...core.geometry import Grid, Vec
    from ...core.statistics import StatisticsPartial
    from ...core.volume import VolumeWriter
    from ...engine.reduce import TreeNode
    from ...labelling import LabelReduction
    from ...labelling.merge import LabelNode
    from ...segmentation.joint import JointSegmentOp

__all__ = ["LabelledChannel", "PredictAndLabel", "PredictedNodes", "SectionNodes"]

Array = np.ndarray[Any, Any]

_MOST_LABELS = 1 << 31
_WRITTEN_BYTES = 18
"""Of a voxel that was predicted on a GPU: as chosen, or labelled again, and packed."""


@dataclass(frozen=True)
class LabelledChannel:
    """What one pick section takes from the networks, and what is measured of it."""

    channel: int
    """Of the networks' scores."""
    label: LabelReduction
    regions: int | None = None
    """Which source holds the bits of its regions; none without regions."""


@dataclass(frozen=True)
class PredictedNodes:
    """Of some windows, for each section."""

    nodes: tuple[LabelNode, ...]
    ranges: tuple[StatisticsPartial, ...]
    """Of all scores, chosen or not."""

    def spill(self) -> tuple[PredictedNodes, dict[str, Array]]:
        """Return the nodes without what nobody above needs, and that as arrays to store."""
        light: list[LabelNode] = []
        arrays: dict[str, Array] = {}
        for i, node in enumerate(self.nodes):
            lighter, stored = node.spill()
            light.append(lighter)
            arrays |= {_name_of(i, name): array for name, array in stored.items()}
        return PredictedNodes(tuple(light), self.ranges), arrays


@dataclass(frozen=True)
class SectionNodes(SpillFolder):
    """The files of one section, of nodes that hold those of all."""

    section: int = 0

    def load(self, node: TreeNode, name: str) -> Array | None:
        """Return an array of this section, None where it was empty."""
        return super().load(node, _name_of(self.section, name))

    def files(self, name: str) -> list[Path]:
        """Return this section's files of all nodes."""
        return super().files(_name_of(self.section, name))


def _name_of(section: int, name: str) -> str:
    """Return the name of a section's array among those of a node."""
    return f"{section}_{name}"


@dataclass(frozen=True)
class PredictAndLabel(TreeReduction[PredictedNodes, PredictedNodes]):
    """Run the networks on a window, choose voxels, label and measure them.

    Sources are the tomogram and the bits of the regions of those sections that have some.
    """

    op: JointSegmentOp
    sections: tuple[LabelledChannel, ...]
    chunk: Vec
    """Voxels that are labelled at a time."""
    writers: tuple[VolumeWriter, ...] = ()
    """Of each section, for 1 where a voxel was chosen and 0 elsewhere; none while planning."""
    name: str = "segment and label"

    @property
    def shape(self) -> Vec:
        """Voxels of the volume."""
        return self.sections[0].label.shape

    @property
    def halo(self) -> Vec:
        """Voxels a window needs on every side."""
        return self.op.halo

    @property
    def align(self) -> int:
        """Windows start on multiples of this."""
        return self.op.align

    @property
    def n_classes(self) -> int:
        """Channels of all networks."""
        return self.op.n_classes

    @property
    def fixed_bytes(self) -> int:
        """Resident bytes of a process before its first window."""
        return self.op.fixed_bytes

    @property
    def uploads(self) -> bool:
        """Whether windows go to a GPU as they were read."""
        return self.op.uploads

    def measure(self, block: Block, *windows: Any) -> PredictedNodes:
        """Return the nodes of one window; the voxels that were chosen are written on the way.

        On a GPU they are written after its turn.
        """
        scores = self.op.written_scores(block, windows[0])
        device = Device("cuda" if is_on_device(scores) else "cpu")
        inner = Block(block.number, block.index, block.write, block.write)
        nodes, ranges = [], []
        for section, writer in zip(self.sections, self.writers, strict=True):
            bits = None if section.regions is None else block.crop(windows[section.regions])
            work = partial(self._section, section, writer, inner)
            node, found = compute_on(device, self.name, work, scores[section.channel], bits)
            nodes.append(node)
            ranges.append(found)
        return PredictedNodes(tuple(nodes), tuple(ranges))

    def _section(
        self, section: LabelledChannel, writer: VolumeWriter, block: Block,
        score: Array, bits: Array | None,
    ) -> tuple[LabelNode, StatisticsPartial]:  # fmt: skip
        """Choose, label and measure voxels where the scores are; write which were chosen."""
        chosen = select_voxels(score, bits, block.write, self.shape, section.label.select)
        after_turn(partial(write_patiently, writer, block.write, to_host(chosen.astype(np.uint8))))
        chunk = block.write.shape if self._labels_at_once(score) else self.chunk
        node = label_by_chunks(section.label, block, chunk, chosen=chosen, score=score, bits=bits)
        return node, score_range(block, score)

    def _labels_at_once(self, score: Array) -> bool:
        """Say whether a window is labelled in one piece: on a GPU, whose labels are of 32 bits."""
        return is_on_device(score) and score.size < _MOST_LABELS

    def combine(self, left: PredictedNodes, right: PredictedNodes) -> PredictedNodes:
        """Merge two neighbours, section by section."""
        statistics = StatisticsReduction()
        pairs = zip(self.sections, left.nodes, right.nodes, strict=True)
        ranges = zip(left.ranges, right.ranges, strict=True)
        return PredictedNodes(
            tuple(section.label.combine(a, b) for section, a, b in pairs),
            tuple(statistics.combine(a, b) for a, b in ranges),
        )

    def finalize(self, partial: PredictedNodes) -> PredictedNodes:
        """Return the root: all clusters are finished."""
        return partial

    def bytes_needed(self, window_shape: Vec) -> int:
        """Return the peak bytes of a window that is written as a whole."""
        return self._bytes(window_shape, window_shape)

    def bytes_of(self, grid: Grid) -> int:
        """Return the peak bytes of the largest window of a grid."""
        written = as_vec(map(min, grid.write_shape, grid.shape))
        return self._bytes(grid.window_shape, written)

    def device_bytes_of(self, grid: Grid) -> int:
        """Return the bytes of a GPU that the largest window of a grid takes."""
        return self.op.device_bytes_of(grid)

    def _bytes(self, window_shape: Vec, write_shape: Vec) -> int:
        """Return the bytes of a window's networks, of labelling their scores, or of doing it again.

        Of every section the rows stay until the task ends; the rest of what labelling needs is that
        of one chunk of one section. The pass that writes the segmentation (`RelabelOp`) labels what
        a window has written in one piece.
        """
        n = math.prod(window_shape)
        labels = [section.label for section in self.sections]
        if self.op.device.is_gpu:
            rows = sum(label.row_bytes_needed(write_shape) for label in labels)
            # a byte of each section waits to be written; as read, and page-locked
            held = n * (8 + len(labels) + sum(label.region_bytes for label in labels))
            return held + rows + _WRITTEN_BYTES * math.prod(write_shape)
        # one class of a network is a part of the array of all
        n_scores = max(self.op.n_classes, *(op.n_classes for op in self.op.ops))
        held = n * (4 + 4 * n_scores + 2)  # the tomogram, scores, what is chosen
        held += n * sum(label.region_bytes for label in labels)
        held += sum(label.row_bytes_needed(write_shape) for label in labels)
        chunk = max(label.bytes_needed(self.chunk) for label in labels)
        again = max(relabel_bytes(write_shape, label.connectivity, "int64") for label in labels)
        return max(self.op.bytes_needed(window_shape), held + chunk, again)


def label_by_chunks(
    label: LabelReduction,
    block: Block,
    chunk: Vec,
    *,
    chosen: Array,
    score: Array,
    bits: Array | None,
) -> LabelNode:
    """Return the node of a block, made of those of its chunks: along x, then y, then z."""

    def node_of(start: Vec) -> LabelNode:
        ends = zip(start, chunk, block.write.stop, strict=True)
        box = Box(start, as_vec([min(a + size, stop) for a, size, stop in ends]))
        at = box.slices_in(block.write)
        part = Block(block.number, block.index, box, box)
        return label.measure_chosen(part, chosen[at], score[at], None if bits is None else bits[at])

    zs, ys, xs = (
        range(a, b, size)
        for a, b, size in zip(block.write.start, block.write.stop, chunk, strict=True)
    )
    planes = (
        reduce(label.combine, (reduce(label.combine, (node_of((z, y, x)) for x in xs)) for y in ys))
        for z in zs
    )
    return reduce(label.combine, planes)
