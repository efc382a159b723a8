"""Rows in files: more of them than memory should hold, read by parts and merged in order.

How are many sorted files merged in bounded memory?

1. Of each run (a sorted stretch of rows) the next few rows are held.
2. The smallest of the runs' last held keys is the bound: rows up to it are all held by now. They
   are sorted together and given out; runs that gave rows read more.
3. Equal keys keep the order of the runs: of the runs behind the one that sets the bound, rows that
   equal it wait.

A run is opened for one row first, and for more only when its turn comes, so that runs that lie
behind one another cost nothing while they wait. Files are read by ``pread``: mapped pages would
count as memory of the process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import WorkFailedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

__all__ = ["RowFile", "RowWriter", "merge_runs", "rebatched"]

Rows = np.ndarray[Any, Any]

_LEAST_ROWS_HELD = 256
"""Fewer rows of a run are not worth a read."""


@dataclass(frozen=True)
class RowFile:
    """Rows of one type in a file, or a stretch of them; picklable, and read where it is used.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "names.npy")
    >>> np.save(path, np.arange(10))
    >>> names = RowFile.of_npy(path)
    >>> len(names), int(names[3]), names[7:].tolist()
    (10, 3, [7, 8, 9])
    """

    path: str
    dtype: np.dtype[Any]
    n: int
    offset: int = 0
    """Bytes before the first row."""

    @classmethod
    def of_npy(cls, path: Path) -> RowFile:
        """Return the rows of a NumPy file of one axis."""
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0
            if version > (1, 0):
                read = np.lib.format.read_array_header_2_0
            (n,), _, dtype = read(file)
            return cls(str(path), dtype, n, file.tell())

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, part: int | slice) -> Any:
        """Return one row, or a new array of the rows of a slice without a step."""
        if isinstance(part, slice):
            start, stop, _ = part.indices(self.n)
            return self._read(start, max(start, stop))
        if not 0 <= part < self.n:
            raise IndexError(part)
        return self._read(part, part + 1)[0]

    def _read(self, start: int, stop: int) -> Rows:
        place = self.offset + start * self.dtype.itemsize
        if start == stop:
            return np.empty(0, self.dtype)
        rows = np.fromfile(self.path, self.dtype, stop - start, offset=place)
        if len(rows) < stop - start:
            raise WorkFailedError(
                f"{self.path}: expected {self.n} rows, found fewer; something else changed this "
                "file while it was in use: run the same command again"
            )
        return rows

    def part(self, start: int, stop: int) -> RowFile:
        """Return a stretch of the rows."""
        place = self.offset + start * self.dtype.itemsize
        return RowFile(self.path, self.dtype, stop - start, place)

    def batches(self, n: int) -> Iterator[Rows]:
        """Yield the rows, at most ``n`` at a time; one empty batch where there are none."""
        for start in range(0, max(self.n, 1), n):
            yield self[start : start + n]


class RowWriter:
    """Writes rows one batch after another; a context manager.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with RowWriter(pathlib.Path(tempfile.mkdtemp(), "rows"), np.dtype(np.int64)) as writer:
    ...     writer.append(np.array([1, 2]))
    ...     writer.append(np.array([3]))
    >>> writer.rows[:].tolist()
    [1, 2, 3]
    """

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self._path, self._dtype, self._n = path, dtype, 0
        self._file = path.open("wb")

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def append(self, rows: Rows) -> None:
        """Write some rows behind the others."""
        self._file.write(np.ascontiguousarray(rows, self._dtype).data)
        self._n += len(rows)

    @property
    def rows(self) -> RowFile:
        """The rows written so far; whole once the writer is closed."""
        return RowFile(str(self._path), self._dtype, self._n)


class _Run:
    """A sorted run and the rows of it that are held."""

    def __init__(self, rows: RowFile, key: Callable[[Rows], Rows]) -> None:
        self._file, self._key, self._next = rows, key, 0
        self.rows = rows[:0]
        self.keys = key(self.rows)
        self.hold(1)

    def hold(self, n: int) -> None:
        """Read so that ``n`` rows are held, as far as there are so many, once half are gone."""
        if len(self.rows) > n // 2:
            return
        more = self._file[self._next : self._next + n - len(self.rows)]
        self._next += len(more)
        self.rows = np.concatenate([self.rows, more]) if len(self.rows) else more
        self.keys = self._key(self.rows)

    @property
    def first(self) -> Any:
        """The smallest key that is left."""
        return self.keys[0] if len(self.keys) else _largest(self.keys.dtype)

    @property
    def last(self) -> Any:
        """The key up to which all rows are held."""
        return self.keys[-1] if self._next < len(self._file) else _largest(self.keys.dtype)

    @property
    def is_spent(self) -> bool:
        """Whether all rows were given away."""
        return len(self.rows) == 0 and self._next == len(self._file)

    def take(self, bound: Any, side: str) -> tuple[Rows, Rows]:
        """Give away the rows up to a key, with or without those that equal it."""
        end = int(np.searchsorted(self.keys, bound, side=side))  # type: ignore[call-overload]
        taken = self.rows[:end], self.keys[:end]
        self.rows, self.keys = self.rows[end:], self.keys[end:]
        return taken


def _largest(dtype: np.dtype[Any]) -> Any:
    """Return a key that no row has."""
    return np.inf if dtype.kind == "f" else np.iinfo(dtype).max


def merge_runs(
    runs: Sequence[RowFile], key: Callable[[Rows], Rows], *, held_rows: int = 1 << 16
) -> Iterator[Rows]:
    """Merge sorted runs.

    Parameters
    ----------
    runs
        Rows sorted by their key, each run for itself, and of one type.
    key
        Returns the keys of rows: integers below the type's largest, or finite floats.
    held_rows
        About how many rows to hold, of all runs together (256 of each are held in any case).

    Yields
    ------
    array
        Rows, sorted over all batches; rows of equal keys in the order of their runs. Batches are of
        any size up to about ``held_rows``.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> runs = []
    >>> for name, values in (("a", [1, 4, 9]), ("b", [2, 3, 11])):
    ...     with RowWriter(pathlib.Path(tempfile.mkdtemp(), name), np.dtype(np.int64)) as writer:
    ...         writer.append(np.array(values))
    ...     runs.append(writer.rows)
    >>> np.concatenate(list(merge_runs(runs, lambda rows: rows))).tolist()
    [1, 2, 3, 4, 9, 11]
    """
    held = max(_LEAST_ROWS_HELD, held_rows // max(1, len(runs)))
    waiting = [run for run in runs if len(run)]
    first = np.array([key(run[:1])[0] for run in waiting])
    last = first.copy()
    is_spent = np.zeros(len(waiting), bool)
    opened: dict[int, _Run] = {}
    left = sum(len(run) for run in waiting)
    while left:
        leading = int(np.argmin(last))  # the first of those that share the bound
        bound = last[leading]
        touched = np.flatnonzero((first <= bound) & ~is_spent).tolist()
        taken = []
        for i in touched:
            if i not in opened:
                opened[i] = _Run(waiting[i], key)
            taken.append(opened[i].take(bound, "right" if i <= leading else "left"))
        rows, keys = (np.concatenate(parts) for parts in zip(*taken, strict=True))
        left -= len(rows)
        yield np.take(rows, np.argsort(keys, kind="stable"))
        for i in touched:
            opened[i].hold(held)
            first[i], last[i] = opened[i].first, opened[i].last
            is_spent[i] = opened[i].is_spent
            if is_spent[i]:
                del opened[i]


def rebatched(parts: Iterable[Rows], n: int) -> Iterator[Rows]:
    """Join small batches and cut large ones, so that all but the last have ``n`` rows.

    Examples
    --------
    >>> [part.tolist() for part in rebatched([np.arange(3), np.arange(4)], 5)]
    [[0, 1, 2, 0, 1], [2, 3]]
    """
    held: list[Rows] = []
    n_held = 0
    for part in parts:
        rest = part
        while n_held + len(rest) >= n:
            room = n - n_held
            yield np.concatenate([*held, rest[:room]])
            held, n_held, rest = [], 0, rest[room:]
        if len(rest):
            held.append(rest)
            n_held += len(rest)
    if held:
        yield np.concatenate(held)
