"""Reduce a volume in a tree of neighbouring boxes.

The leaves are the blocks of a grid; a node of level k joins up to 2 x 2 x 2 nodes of level k - 1,
first along x, then y, then z, in one task. The tree follows the grid alone, so any number of
workers gives the same bytes.

1. Leaves are submitted in the order of the tree, a bounded number at a time.
2. A node is submitted when its last child has ended, and goes before the leaves: finished subtrees
   collapse while later leaves have not been read.
3. What ends is handed to its parent packed (see ``handover.py``), and the scheduler forgets it. A
   few results for each level wait in the driver, however many leaves there are.

With a `SpillFolder`, what a node's parents do not need is written to a file of that node, results
too large to travel wait in files, and all that travels stays small.
"""

from __future__ import annotations

import itertools
import uuid
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.geometry import Block, Grid, Vec, as_vec
from .arrays import naming, read_windows, run_each, task_key
from .budget import check_source_chunks
from .device_part import device_part, ready_for_upload
from .handover import HandedOver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..core.ops import TreeReduction
    from ..core.volume import VolumeReader
    from .cluster import Workers

__all__ = ["SpillFolder", "TreeNode", "reduce_chunks", "tree_nodes"]


@dataclass(frozen=True)
class TreeNode:
    """A node of the reduction tree: level 0 is a block.

    Examples
    --------
    >>> TreeNode(0, (3, 2, 5)).parent
    TreeNode(level=1, index=(1, 1, 2))
    """

    level: int
    index: Vec

    @property
    def parent(self) -> TreeNode:
        """The node that joins this one with its neighbours."""
        return TreeNode(self.level + 1, as_vec([i // 2 for i in self.index]))

    @property
    def name(self) -> str:
        """A name for files."""
        return f"L{self.level}_{'_'.join(map(str, self.index))}"


def _counts(counts: Vec, level: int) -> Vec:
    """Return how many nodes a level has on each axis."""
    return as_vec([-(-n // 2**level) for n in counts])


def n_levels(counts: Vec) -> int:
    """Return the level of the root.

    Examples
    --------
    >>> n_levels((1, 1, 1)), n_levels((4, 1, 5))
    (0, 3)
    """
    return max(max(counts) - 1, 0).bit_length()


def tree_nodes(counts: Vec) -> Iterator[tuple[TreeNode, list[TreeNode]]]:
    """Yield every node with its children, children first, subtree by subtree.

    Examples
    --------
    >>> [(node.name, len(children)) for node, children in tree_nodes((1, 1, 2))]
    [('L0_0_0_0', 0), ('L0_0_0_1', 0), ('L1_0_0_0', 2)]
    """
    yield from _subtree(TreeNode(n_levels(counts), (0, 0, 0)), counts)


def _children(node: TreeNode, counts: Vec) -> list[TreeNode]:
    """Return up to eight nodes of the level below, none for a leaf."""
    if node.level == 0:
        return []
    below = _counts(counts, node.level - 1)
    ranges = [range(2 * i, min(2 * i + 2, n)) for i, n in zip(node.index, below, strict=True)]
    return [TreeNode(node.level - 1, as_vec(index)) for index in itertools.product(*ranges)]


def _subtree(node: TreeNode, counts: Vec) -> Iterator[tuple[TreeNode, list[TreeNode]]]:
    children = _children(node, counts)
    for child in children:
        yield from _subtree(child, counts)
    yield node, children


@dataclass(frozen=True)
class SpillFolder:
    """Files of what the nodes above do not need; on a file system that all workers share."""

    path: str

    def save(self, node: TreeNode, arrays: dict[str, Any]) -> None:
        """Write a node's arrays; doing it twice, even at once, leaves the same file.

        A worker that was given up may still be at it when another does it in its place.
        """
        for name, array in arrays.items():
            if len(array):
                temporary = Path(self.path) / f".{node.name}.{name}.{uuid.uuid4().hex}.tmp.npy"
                np.save(temporary, array)
                temporary.replace(Path(self.path) / f"{node.name}.{name}.npy")

    def load(self, node: TreeNode, name: str) -> np.ndarray[Any, Any] | None:
        """Return an array of a node, None where it was empty."""
        path = Path(self.path) / f"{node.name}.{name}.npy"
        return np.load(path) if path.exists() else None

    def result_path(self, node: TreeNode) -> Path:
        """Return where a node's result waits for its parent, if it is too large to travel."""
        return Path(self.path) / f"{node.name}.result"

    def files(self, name: str) -> list[Path]:
        """Return the files of all nodes under one name, in the order of their names."""
        return sorted(Path(self.path).glob(f"L*.{name}.npy"))

    def load_all(self, name: str) -> list[np.ndarray[Any, Any]]:
        """Return the arrays of all nodes under one name, in the order of the file names."""
        return [np.load(path) for path in self.files(name)]

    def ancestors(self, block: Block, counts: Vec) -> list[TreeNode]:
        """Return the nodes above a block, its parent first."""
        nodes = [TreeNode(0, block.index)]
        for _ in range(n_levels(counts)):
            nodes.append(nodes[-1].parent)
        return nodes[1:]


def _spilled(node: TreeNode, partial: Any, spill: SpillFolder | None) -> Any:
    """Store what the parents do not need."""
    if spill is None:
        return partial
    light, arrays = partial.spill()
    spill.save(node, arrays)
    return light


def measure_leaf(
    reduction: TreeReduction[Any, Any],
    sources: Sequence[VolumeReader],
    block: Block,
    node: TreeNode,
    spill: SpillFolder | None,
) -> Any:
    """Read and measure one block; what it puts off (`backend.after_turn`) is done by then."""
    windows = ready_for_upload(reduction, read_windows(sources, block))
    with naming(sources[0].path), device_part(reduction):
        partial = reduction.measure(block, *windows)
    return _spilled(node, partial, spill)


def combine_children(
    reduction: TreeReduction[Any, Any],
    node: TreeNode,
    places: Sequence[Vec],
    children: Sequence[Any],
    spill: SpillFolder | None,
    *,
    unpack: Callable[[Any], Any] = lambda child: child,
) -> Any:
    """Join up to eight neighbours along x, then y, then z; each is unpacked when its turn comes."""
    parts = dict(zip(places, children, strict=True))
    return _spilled(node, _joined(reduction, parts, unpack), spill)


def _joined(
    reduction: TreeReduction[Any, Any],
    parts: dict[Vec, Any],
    unpack: Callable[[Any], Any],
    axis: int = 0,
) -> Any:
    """Join both halves of the neighbours along an axis, once each half is joined along the next.

    So one half is a single node, with the faces of its outside only, before the other is unpacked.
    """
    if len(parts) == 1:
        (child,) = parts.values()
        return unpack(child)
    low = {place: child for place, child in parts.items() if place[axis] % 2 == 0}
    high = {place: child for place, child in parts.items() if place[axis] % 2 == 1}
    if not (low and high):
        return _joined(reduction, low or high, unpack, axis + 1)
    first = _joined(reduction, low, unpack, axis + 1)
    return reduction.combine(first, _joined(reduction, high, unpack, axis + 1))


def _handed_over(node: TreeNode, partial: Any, spill: SpillFolder | None) -> HandedOver:
    return HandedOver.pack(partial, None if spill is None else spill.result_path(node))


def _leaf_task(
    reduction: TreeReduction[Any, Any],
    sources: Sequence[VolumeReader],
    block: Block,
    node: TreeNode,
    spill: SpillFolder | None,
) -> HandedOver:
    """Measure one block: the body of a leaf task."""
    return _handed_over(node, measure_leaf(reduction, sources, block, node, spill), spill)


def _node_task(
    reduction: TreeReduction[Any, Any],
    node: TreeNode,
    places: Sequence[Vec],
    children: Sequence[HandedOver],
    spill: SpillFolder | None,
) -> HandedOver:
    """Join neighbours: the body of a node task."""
    joined = combine_children(reduction, node, places, children, spill, unpack=HandedOver.unpack)
    return _handed_over(node, joined, spill)


def reduce_chunks(
    workers: Workers,
    reduction: TreeReduction[Any, Any],
    sources: Sequence[VolumeReader],
    grid: Grid,
    *,
    spill: SpillFolder | None = None,
    on_done: Callable[[int], None] | None = None,
) -> Any:
    """Reduce a volume to one value.

    Parameters
    ----------
    workers
        Where the tasks run.
    reduction
        What is measured and how results are combined.
    sources
        Volumes of one shape.
    grid
        The blocks; the tree follows them.
    spill
        Where nodes leave what their parents do not need (their partial results must have a method
        ``spill``).
    on_done
        Called with the number of leaves that ended, each time some do.

    Returns
    -------
    object
        What ``reduction.finalize`` makes of the root.

    Raises
    ------
    WorkFailedError
        A task failed.

    Examples
    --------
    See `deepict_dask.jobs.picking.pick` for a call.
    """
    check_source_chunks(sources, workers.memory_of(reduction))
    where = sources[0].path if spill is None else f"{spill.path}, from {sources[0].path}"
    tree = _Tree(grid.counts)
    numbers = itertools.count()

    def submit(node: TreeNode) -> Any:
        task: tuple[Any, ...] = (_leaf_task, reduction, sources, grid.at(node.index), node, spill)
        if node.level > 0:
            task = (_node_task, reduction, node, *tree.children(node), spill)
        key = task_key(f"{reduction.name}_L{node.level}", next(numbers))
        place = workers.placed(reduction) if node.level == 0 else workers.placed()
        return workers.client.submit(*task, pure=False, key=key, priority=node.level, **place)

    for node, result in run_each(
        workers, submit, tree.startable(), stage=reduction.name, where=where
    ):
        tree.finish(node, result)
        if node.level == 0 and on_done is not None:
            on_done(1)
    root = tree.root.unpack()
    tree.root.discard()
    return reduction.finalize(root)


class _Tree:
    """Which nodes can be computed, and the results that wait for those of their neighbours."""

    def __init__(self, counts: Vec) -> None:
        self._counts = counts
        self._results: dict[TreeNode, dict[TreeNode, HandedOver]] = {}
        """Of the children that have ended, by the node they wait for."""
        self._ready: deque[TreeNode] = deque()

    def startable(self) -> Iterator[TreeNode | None]:
        """Yield nodes whose children have ended, else the next leaf; None where there is none."""
        for leaf, children in tree_nodes(self._counts):
            while self._ready:
                yield self._ready.popleft()
            if not children:
                yield leaf
        while True:
            yield self._ready.popleft() if self._ready else None

    def children(self, node: TreeNode) -> tuple[list[Vec], list[HandedOver]]:
        """Return the places and results of a node's children."""
        results = self._results[node]
        return [child.index for child in results], list(results.values())

    def finish(self, node: TreeNode, result: HandedOver) -> None:
        """Note a node's result; those of its children are no longer needed."""
        for used in self._results.pop(node, {}).values():
            used.discard()
        siblings = self._results.setdefault(node.parent, {})
        siblings[node] = result
        is_root = node.level == n_levels(self._counts)
        if not is_root and len(siblings) == len(_children(node.parent, self._counts)):
            self._ready.append(node.parent)

    @property
    def root(self) -> HandedOver:
        """The last result."""
        ((root,),) = (results.values() for results in self._results.values())
        return root
