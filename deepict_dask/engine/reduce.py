"""Reduce a volume in a tree of neighbouring boxes.

The leaves are the blocks of a grid; a node of level k joins up to 2 x 2 x 2 nodes of level k - 1,
first along x, then y, then z, in one task. The tree follows the grid alone, so any number of
workers gives the same bytes. Leaves are submitted in the order of the tree, a bounded number at a
time, so finished subtrees collapse while later leaves have not been read.

With a `SpillFolder`, what a node's parents do not need is written to a file of that node, and the
results that travel stay small.
"""

from __future__ import annotations

import itertools
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.geometry import Block, Grid, Vec, as_vec
from .arrays import explain, naming, read_windows, task_key

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


def _subtree(node: TreeNode, counts: Vec) -> Iterator[tuple[TreeNode, list[TreeNode]]]:
    children = []
    if node.level > 0:
        below = _counts(counts, node.level - 1)
        ranges = [range(2 * i, min(2 * i + 2, n)) for i, n in zip(node.index, below, strict=True)]
        for index in itertools.product(*ranges):
            children.append(TreeNode(node.level - 1, as_vec(index)))
            yield from _subtree(children[-1], counts)
    yield node, children


@dataclass(frozen=True)
class SpillFolder:
    """Files of what the nodes above do not need; on a file system that all workers share."""

    path: str

    def save(self, node: TreeNode, arrays: dict[str, Any]) -> None:
        """Write a node's arrays; doing it twice leaves the same file."""
        for name, array in arrays.items():
            if len(array):
                temporary = Path(self.path) / f".{node.name}.{name}.tmp.npy"
                np.save(temporary, array)
                temporary.replace(Path(self.path) / f"{node.name}.{name}.npy")

    def load(self, node: TreeNode, name: str) -> np.ndarray[Any, Any] | None:
        """Return an array of a node, None where it was empty."""
        path = Path(self.path) / f"{node.name}.{name}.npy"
        return np.load(path) if path.exists() else None

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
    """Read and measure one block: the body of a leaf task."""
    windows = read_windows(sources, block)
    with naming(sources[0].path):
        partial = reduction.measure(block, *windows)
    return _spilled(node, partial, spill)


def combine_children(
    reduction: TreeReduction[Any, Any],
    node: TreeNode,
    places: Sequence[Vec],
    children: Sequence[Any],
    spill: SpillFolder | None,
) -> Any:
    """Join up to eight neighbours, along x, then y, then z: the body of a node task."""
    parts = dict(zip(places, children, strict=True))
    for axis in (2, 1, 0):
        joined: dict[Vec, Any] = {}
        for place in sorted(parts):
            low = as_vec([i - i % 2 if a == axis else i for a, i in enumerate(place)])
            joined[low] = (
                reduction.combine(joined[low], parts[place]) if low in joined else parts[place]
            )
        parts = joined
    (partial,) = parts.values()
    return _spilled(node, partial, spill)


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
    See `deepict_dask.jobs.pick` for a call.
    """
    where = sources[0].path if spill is None else f"{spill.path}, from {sources[0].path}"
    tasks = _TreeTasks(workers, reduction.name, where, on_done)
    try:
        for node, children in tree_nodes(grid.counts):
            if children:
                tasks.join(node, children, combine_children, reduction, spill)
            else:
                block = grid.at(node.index)
                tasks.start(node, measure_leaf, reduction, sources, block, node, spill)
        return reduction.finalize(tasks.root())
    finally:
        tasks.cancel()


class _TreeTasks:
    """The tasks of one reduction that are not yet part of another, a bounded number of leaves."""

    def __init__(
        self,
        workers: Workers,
        stage: str,
        where: str,
        on_done: Callable[[int], None] | None,
    ) -> None:
        from distributed import as_completed

        self._workers, self._stage, self._where = workers, stage, where
        self._on_done = on_done or (lambda _n: None)
        self._futures: dict[TreeNode, Any] = {}
        self._leaves: set[Any] = set()
        self._completed = as_completed([])

    def start(self, node: TreeNode, *task: Any) -> None:
        """Submit a leaf, once there is room for one."""
        while len(self._leaves) >= self._workers.in_flight():
            self._collect()
        self._leaves.add(self._submit(node, *task))

    def join(
        self,
        node: TreeNode,
        children: Sequence[TreeNode],
        function: Any,
        reduction: Any,
        spill: SpillFolder | None,
    ) -> None:
        """Submit a node; its children are then held by it alone."""
        parts = [self._futures.pop(child) for child in children]
        places = [child.index for child in children]
        self._submit(node, function, reduction, node, places, parts, spill)

    def _submit(self, node: TreeNode, *task: Any) -> Any:
        key = task_key(f"{self._stage}_L{node.level}", len(self._futures))
        future = self._workers.client.submit(*task, pure=False, key=key)
        self._futures[node] = future
        self._completed.add(future)
        return future

    def _collect(self) -> None:
        """Wait for one task; raise what it raised."""
        future = next(self._completed)
        if future.status != "finished":
            self._result(future)
        if future in self._leaves:
            self._leaves.remove(future)
            self._on_done(1)

    def _result(self, future: Any) -> Any:
        try:
            return future.result()
        except Exception as error:
            raise explain(error, self._stage, self._where) from error

    def root(self) -> Any:
        """Wait for all tasks and return the last one's result."""
        while self._completed.count():
            self._collect()
        (root,) = self._futures.values()
        return self._result(root)

    def cancel(self) -> None:
        """Leave no work behind on a cluster that others share."""
        with suppress(Exception):
            self._workers.client.cancel([*self._futures.values(), *self._leaves])
