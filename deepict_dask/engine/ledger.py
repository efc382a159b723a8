"""Which blocks of a stage are finished: one byte each, written after the block's data.

The file starts with the key of the request (what is computed, from what, with which settings), so
marks of another request are never trusted. The process that drives the work is the only writer (see
``staging.py`` for its lock).
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

__all__ = ["JointLedger", "Ledger", "count_finished"]

_MAGIC = b"deepict-dask ledger 1\n"
_PIECE_BLOCKS = 4096


def count_finished(path: Path) -> tuple[int, int] | None:
    """Return how many blocks of how many are marked; None where there is no ledger.

    Nothing is written, and its writer may be at work: what it marks meanwhile may be missing.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "ledger"
    >>> with Ledger(path, "0" * 64, 3) as ledger:
    ...     ledger.mark(1)
    ...     count_finished(path)
    (1, 3)
    """
    try:
        magic, _key, number, marks = path.read_bytes().split(b"\n", 3)
        n_blocks = int(number)
    except (OSError, ValueError):
        return None
    return (marks[:n_blocks].count(1), n_blocks) if magic + b"\n" == _MAGIC else None


class Ledger:
    """Marks of finished blocks.

    Parameters
    ----------
    path
        The ledger's file; made where it is absent or belongs to another request.
    key
        Hex digest of the request (64 characters).
    n_blocks
        Number of blocks.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "ledger"
    >>> with Ledger(path, "0" * 64, 3) as ledger:
    ...     ledger.mark(1)
    >>> with Ledger(path, "0" * 64, 3) as ledger:
    ...     list(ledger.unfinished())
    [0, 2]
    """

    def __init__(self, path: Path, key: str, n_blocks: int) -> None:
        header = _MAGIC + f"{key}\n{n_blocks}\n".encode()
        self._offset = len(header)
        self.path = path
        self.n_blocks = n_blocks
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self.is_new = os.pread(self._file, len(header), 0) != header
        """Whether nothing of the same request and the same blocks was found."""
        if self.is_new:
            os.ftruncate(self._file, 0)
            _write_all(self._file, header + bytes(n_blocks))
        self.n_resumed = self.n_finished

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._file)

    def mark(self, number: int) -> None:
        """Note that a block's data are written."""
        os.pwrite(self._file, b"\x01", self._offset + number)

    def settle(self, found: Iterable[int]) -> int:
        """Mark the blocks that were found on the disk, and no others, before work goes on.

        Returns
        -------
        int
            How many blocks were marked and not found.
        """
        there = np.zeros(self.n_blocks, np.uint8)
        there[[*found]] = 1
        n_lost = int(np.count_nonzero(self._marks() > there))
        os.pwrite(self._file, there.tobytes(), self._offset)
        self.n_resumed = self.n_finished
        return n_lost

    def _marks(self) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        raw = os.pread(self._file, self.n_blocks, self._offset)
        return np.frombuffer(raw.ljust(self.n_blocks, b"\0"), np.uint8)

    def open_blocks(self) -> np.ndarray[tuple[int], np.dtype[np.bool]]:
        """Return for each block whether it is not finished."""
        return self._marks() == 0

    @property
    def n_finished(self) -> int:
        """Number of finished blocks."""
        return int(np.count_nonzero(self._marks()))

    def unfinished(self) -> Iterator[int]:
        """Yield the numbers of the blocks that are not finished now, in order."""
        return _numbers(self.open_blocks())


def _write_all(file: int, content: bytes) -> None:
    """Write a file from its start; the marks to come then need no more room on the disk."""
    if os.pwrite(file, content, 0) < len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class JointLedger:
    """The ledgers of outputs that the same tasks write: a block is done when all say so.

    Parameters
    ----------
    ledgers
        One for each output, all of one grid; opened and closed by whoever made them.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> with Ledger(folder / "a", "0" * 64, 2) as a, Ledger(folder / "b", "1" * 64, 2) as b:
    ...     a.mark(0)
    ...     joint = JointLedger([a, b])
    ...     list(joint.unfinished()), joint.mark(1), list(joint.unfinished())
    ([0, 1], None, [0])
    """

    def __init__(self, ledgers: Sequence[Ledger]) -> None:
        self._ledgers = tuple(ledgers)
        self.n_resumed = ledgers[0].n_blocks - int(np.count_nonzero(self._open_blocks()))

    def mark(self, number: int) -> None:
        """Note that a block's data are written, in every output."""
        for ledger in self._ledgers:
            ledger.mark(number)

    def _open_blocks(self) -> Any:
        return np.any([ledger.open_blocks() for ledger in self._ledgers], axis=0)

    def unfinished(self) -> Iterator[int]:
        """Yield the numbers of the blocks that some output lacks now, in order."""
        return _numbers(self._open_blocks())


def _numbers(chosen: Any) -> Iterator[int]:
    """Yield where an array of truth values is true: a list of a million numbers takes 36 MB."""
    for start in range(0, len(chosen), _PIECE_BLOCKS):
        yield from (start + np.flatnonzero(chosen[start : start + _PIECE_BLOCKS])).tolist()
