"""Histograms of one column of a folder of picks, in batches: memory does not grow with the table.

The column is gone through twice: for its range, then for the counts. Clusters are in
``clusters.parquet``; where a method makes none (mean shift, mean-pooling suppression), the same
columns are looked for in ``picks.csv``.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Histogram", "column_names", "histogram_of", "picks_drawn"]

Array = np.ndarray[Any, Any]
_BATCH_ROWS = 200_000
_BINS = 40
_TABLE, _LIST = "clusters.parquet", "picks.csv"


@dataclass(frozen=True)
class Histogram:
    """How often values occur."""

    edges: tuple[float, ...]
    """One more than there are counts."""
    counts: tuple[int, ...]
    mean: float
    n_missing: int = 0
    """Rows without a value."""

    @property
    def n(self) -> int:
        """Rows with a value."""
        return sum(self.counts)


def column_names(folder: Path) -> list[str]:
    """Return the columns that a folder of picks has, nothing where there is no table."""
    if (folder / _TABLE).is_file():
        import pyarrow.parquet

        return list(pyarrow.parquet.read_schema(folder / _TABLE).names)
    if (folder / _LIST).is_file():
        with (folder / _LIST).open() as lines:
            return lines.readline().strip().split(",")
    return []


def histogram_of(
    folder: Path, column: str, *, logarithmic: bool = False, include: tuple[float, ...] = ()
) -> Histogram | None:
    r"""Return the histogram of a column, None where it has no value.

    Parameters
    ----------
    folder
        A folder of picks.
    column
        Of its cluster table.
    logarithmic
        Bins grow by a factor; for values above 0.
    include
        Values that the bins reach, such as limits that were chosen.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "picks.csv").write_text("score,x\n0.5,1\n0.7,2\n,3\n")
    >>> found = histogram_of(folder, "score", include=(0.0, 1.0))
    >>> found.n, found.n_missing, round(found.mean, 2), found.edges[0], found.edges[-1]
    (2, 1, 0.6, 0.0, 1.0)
    """
    n, n_missing, total, low, high = 0, 0, 0.0, np.inf, -np.inf
    for values in _batches(folder, column):
        known = values[np.isfinite(values)]
        n, n_missing = n + known.size, n_missing + values.size - known.size
        total += float(known.sum())
        low, high = min(low, known.min(initial=low)), max(high, known.max(initial=high))
    if n == 0:
        return None
    edges = _edges(min(low, *include, np.inf), max(high, *include, -np.inf), logarithmic)
    counts = np.zeros(_BINS, np.int64)
    for values in _batches(folder, column):
        counts += np.histogram(values[np.isfinite(values)], edges)[0]
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()), total / n, n_missing)


def _edges(low: float, high: float, logarithmic: bool) -> Array:  # noqa: FBT001 - private
    if high <= low:
        low, high = (low / 2, low * 2) if logarithmic and low > 0 else (low - 0.5, low + 0.5)
    if not logarithmic or low <= 0:
        return np.linspace(low, high, _BINS + 1)
    edges = np.geomspace(low, high, _BINS + 1)
    edges[0], edges[-1] = low, high  # the logarithm's last digits must not leave the ends out
    return edges


def _batches(folder: Path, column: str) -> Iterator[Array]:
    """Yield a column in pieces, float64; what is no number is NaN."""
    if (folder / _TABLE).is_file():
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(folder / _TABLE) as table:
            for batch in table.iter_batches(_BATCH_ROWS, columns=[column]):
                yield batch.column(0).to_numpy(zero_copy_only=False).astype(np.float64)
        return
    with (folder / _LIST).open(newline="") as file:
        rows = csv.DictReader(file)
        while values := [_number(row.get(column)) for row in islice(rows, _BATCH_ROWS)]:
            yield np.asarray(values)


def _number(text: str | None) -> float:
    """Return the number in a cell, NaN where there is none."""
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def picks_drawn(folder: Path, limit: int) -> list[list[float]]:
    r"""Return z, y, x and radius in voxels of the best picks, to be drawn as circles.

    Parameters
    ----------
    folder
        A folder of picks; its ``picks.csv`` is by falling score.
    limit
        So many at most.

    Returns
    -------
    list
        The radius is that of a ball with as many voxels as the cluster has; 0 where unknown.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "picks.csv").write_text("score,x,y,z,n_voxels\n0.5,3,2,1,4189\n")
    >>> picks_drawn(folder, 10)
    [[1.0, 2.0, 3.0, 10.0]]
    """
    points = []
    with (folder / _LIST).open(newline="") as file:
        for row in islice(csv.DictReader(file), limit):
            n_voxels = _number(row.get("n_voxels"))
            radius = math.cbrt(3 * n_voxels / (4 * math.pi)) if n_voxels > 0 else 0.0
            points.append([round(v, 1) for v in (*(_number(row.get(a)) for a in "zyx"), radius)])
    return [point for point in points if all(map(math.isfinite, point))]
