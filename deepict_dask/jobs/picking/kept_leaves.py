"""What finished windows of a pass have found, kept in files, so that a pass goes on after a kill.

A reduction has nothing to show before its root. Where its leaves are the work (networks), each one
that is finished leaves a file, once the voxels that it noted are written. A later pass of the same
request reads that file instead of computing: the rest of the tree, which costs little, is made
again from there, so its files and bytes are those of an undisturbed pass.

The disk has the last word, as with ledgers: a leaf counts if its file is whole (gzip's checksum)
and so is every chunk that it wrote (`find_whole_blocks`). Which ones count is decided once, before
the pass: a worker that outlived its driver may still add files to a folder that is used again.
"""

from __future__ import annotations

import gzip
import os
import pickle
import shutil
import uuid
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...backend import after_turn
from ...core.ops import TreeReduction
from ...io.replace import replace_file
from ...io.zarr_check import find_whole_blocks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...core.geometry import Block, Grid, Vec

__all__ = ["KeptLeaves", "open_leaves"]

_PIECE_BYTES = 1 << 20


def open_leaves(folder: Path, key: str, grid: Grid, stores: Sequence[Path]) -> frozenset[int]:
    """Make a folder for leaves, with those that an earlier pass of the same request has left.

    Parameters
    ----------
    folder
        For the files of the leaves; files of another request are removed.
    key
        Of the request.
    grid
        The leaves' blocks.
    stores
        What the leaves have written voxels to.

    Returns
    -------
    set of int
        The numbers of the blocks whose leaves are kept.
    """
    note = folder / "request"
    if not note.is_file() or note.read_text() != key:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        replace_file(note, key)
        return frozenset()
    left = {int(path.stem): path for path in folder.glob("*.leaf")}
    for store in stores if left else ():
        whole = set(find_whole_blocks(store, grid))
        for number in [number for number in left if number not in whole]:
            left.pop(number).unlink()
    return frozenset(left)


@dataclass(frozen=True)
class KeptLeaves(TreeReduction[Any, Any]):
    """A reduction whose finished leaves outlive their driver.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from deepict_dask.core.geometry import Grid
    >>> from deepict_dask.core.statistics import StatisticsReduction
    >>> folder, grid = Path(tempfile.mkdtemp(), "leaves"), Grid((2, 2, 2), (2, 2, 2))
    >>> open_leaves(folder, "key", grid, [])
    frozenset()
    >>> leaves = KeptLeaves(StatisticsReduction(), str(folder))
    >>> first = leaves.measure(grid[0], np.ones((2, 2, 2)))
    >>> kept = open_leaves(folder, "key", grid, [])
    >>> kept
    frozenset({0})
    >>> again = KeptLeaves(StatisticsReduction(), str(folder), kept)
    >>> again.measure(grid[0], np.zeros((2, 2, 2))) == first
    True
    >>> open_leaves(folder, "another key", grid, [])
    frozenset()
    """

    inner: TreeReduction[Any, Any]
    folder: str
    kept: frozenset[int] = frozenset()
    """Numbers of the blocks that were found finished."""

    @property
    def name(self) -> str:  # type: ignore[override]  # of the reduction, which may change it
        """The stage."""
        return self.inner.name

    def measure(self, block: Block, *windows: Any) -> Any:
        """Return what is known of a block, or measure it and keep that."""
        path = Path(self.folder, f"{block.number}.leaf")
        if block.number in self.kept and (found := _load(path)) is not None:
            return found
        found = self.inner.measure(block, *windows)
        after_turn(partial(_save, path, found))  # voxels that were put off come first
        return found

    @property
    def uploads(self) -> bool:
        """Whether windows go to a GPU as they were read."""
        return self.inner.uploads

    def combine(self, left: Any, right: Any) -> Any:
        """Merge two neighbours."""
        return self.inner.combine(left, right)

    def finalize(self, partial: Any) -> Any:
        """Turn the root into the answer."""
        return self.inner.finalize(partial)

    def bytes_needed(self, window_shape: Vec) -> int:
        """Return the peak bytes of a window."""
        return self.inner.bytes_needed(window_shape)


def _save(path: Path, partial: Any) -> None:
    """Write what a leaf has found in one step, piece by piece: rows may be many."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with temporary.open("wb") as file:
        with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1, mtime=0) as packer:
            pickle.dump(partial, packer, protocol=5)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _load(path: Path) -> Any:
    """Return what a leaf has left, None where that is not there or not whole."""
    try:
        with gzip.open(path) as whole:  # the checksum comes last: nothing is believed before it
            while whole.read(_PIECE_BYTES):
                pass
        with gzip.open(path) as packed:
            return pickle.load(packed)
    except (OSError, EOFError, zlib.error):
        return None
