"""A table that need not fit the memory to a Parquet file, row group by row group.

The bytes are those of ``pandas.DataFrame.to_parquet(index=False)`` of the whole table. A row group
is held at once, because a file has its columns one after another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import pandas as pd
    import pyarrow as pa

__all__ = ["GROUP_ROWS", "write_parquet"]

GROUP_ROWS = 1 << 20
"""Rows of a group, as Arrow writes by default."""


def write_parquet(
    tables: Iterable[pd.DataFrame], path: Path, *, group_rows: int = GROUP_ROWS
) -> int:
    """Write tables of numbers as one.

    Parameters
    ----------
    tables
        At least one, which may have no rows; all of the same columns of integers and floats.
    path
        The file.
    group_rows
        Rows of a group.

    Returns
    -------
    int
        Rows written.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import pandas as pd
    >>> whole = pd.DataFrame({"label": [1, 2, 3], "score": [0.5, float("nan"), 0.75]})
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> write_parquet([whole[:1], whole[1:]], folder / "parts")
    3
    >>> whole.to_parquet(folder / "whole", index=False)
    >>> (folder / "parts").read_bytes() == (folder / "whole").read_bytes()
    True
    """
    import pyarrow.parquet as pq

    n_rows = 0
    writer = None
    try:
        for group in _groups(tables, group_rows):
            writer = writer or pq.ParquetWriter(path, group.schema, compression="snappy")
            writer.write_table(group, row_group_size=group_rows)
            n_rows += group.num_rows
    finally:
        if writer is not None:
            writer.close()
    return n_rows


def _groups(tables: Iterable[pd.DataFrame], group_rows: int) -> Iterator[pa.Table]:
    """Yield row groups; each is to be written before the next is asked for."""
    group = None
    n_groups = 0
    for table in tables:
        group = group or _Group(table, group_rows)
        start = 0
        while start < len(table):
            start += group.fill(table[start:])
            if group.n == group_rows:
                yield group.emptied()
                n_groups += 1
    if group is not None and (group.n or n_groups == 0):
        yield group.emptied()


class _Group:
    """Room for a row group, one whole array per column: pieces would give other pages."""

    def __init__(self, like: pd.DataFrame, group_rows: int) -> None:
        import pyarrow as pa

        self.n = 0
        self._schema = pa.Table.from_pandas(like, preserve_index=False).schema
        # what is not filled takes no memory
        self._columns = [np.empty(group_rows, like[name].to_numpy().dtype) for name in like.columns]

    def fill(self, table: pd.DataFrame) -> int:
        """Take as many rows as there is room for; return their number."""
        n = min(len(table), len(self._columns[0]) - self.n)
        for values, name in zip(self._columns, table.columns, strict=True):
            values[self.n : self.n + n] = table[name].iloc[:n]
        self.n += n
        return n

    def emptied(self) -> pa.Table:
        """Return the rows; the arrays are used again."""
        import pyarrow as pa

        n, self.n = self.n, 0
        columns = [pa.array(values[:n], from_pandas=True) for values in self._columns]
        return pa.Table.from_arrays(columns, schema=self._schema)
