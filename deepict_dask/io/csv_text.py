"""Small tables as the text of a CSV file, with commas and plain line ends."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["csv_of_dicts", "csv_of_rows"]


def csv_of_rows(rows: Iterable[Sequence[Any]]) -> str:
    r"""Return rows of cells as CSV.

    Examples
    --------
    >>> csv_of_rows([["name", "n"], ["a, b", 1]])
    'name,n\n"a, b",1\n'
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def csv_of_dicts(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> str:
    r"""Return rows by column as CSV; by default with a column for everything that any row has.

    Examples
    --------
    >>> csv_of_dicts([{"name": "a"}, {"name": "b", "n": 1}])
    'name,n\na,\nb,1\n'
    """
    names = columns or list(dict.fromkeys(name for row in rows for name in row))
    return csv_of_rows([names, *([row.get(name, "") for name in names] for row in rows)])
