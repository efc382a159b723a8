"""The table of tomograms to evaluate: one row each.

A CSV with the columns ``name``, ``predicted`` and ``truth`` (paths relative to the table) and some
optional ones. An empty cell says nothing: the setting of the whole evaluation holds.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

__all__ = ["TableRow", "read_table"]

_NEEDED = ("name", "predicted", "truth")
_TOO_MANY = "cells without a column"


@dataclass(frozen=True)
class TableRow:
    """One tomogram: where its result and its truth are."""

    name: str
    predicted: Path
    truth: Path
    cells: dict[str, str] = field(default_factory=dict)
    """What its optional columns say."""


def read_table(table: Path, optional: Collection[str]) -> list[TableRow]:
    r"""Return the rows of a table.

    Parameters
    ----------
    table
        A CSV file.
    optional
        Columns it may have besides ``name``, ``predicted`` and ``truth``.

    Raises
    ------
    ConfigError
        It cannot be read, a column is missing or unknown, a row is incomplete, or a name is there
        twice.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "table.csv")
    ...     _ = path.write_text("name,predicted,truth,class\nTS_1,picks.csv,true.csv,\n")
    ...     rows = read_table(path, {"class"})
    >>> rows[0].name, rows[0].truth.name, rows[0].cells
    ('TS_1', 'true.csv', {})
    """
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey=_TOO_MANY)
            columns = list(reader.fieldnames or ())
            _check_columns(table, columns, optional)
            rows = [_row(table, number, cells) for number, cells in enumerate(reader, 2)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{table}: expected a CSV table, found: {error}") from None
    if not rows:
        raise ConfigError(f"{table}: expected at least one tomogram, found none; add rows")
    names = [row.name for row in rows]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"{table}: expected one row of each name, found several of {', '.join(twice)}; "
            "name them apart"
        )
    return rows


def _check_columns(table: Path, columns: list[str], optional: Collection[str]) -> None:
    known = ", ".join([*_NEEDED, *(f"[{name}]" for name in sorted(optional))])
    strange = [name for name in columns if name not in _NEEDED and name not in optional]
    if strange or not set(_NEEDED) <= set(columns):
        raise ConfigError(
            f"{table}: expected the columns {known}, found {', '.join(columns) or 'none'}; "
            "rename or remove the others"
        )


def _row(table: Path, number: int, cells: dict[str, str]) -> TableRow:
    said = {key: cell.strip() for key, cell in cells.items() if isinstance(cell, str) and cell}
    missing = [key for key in _NEEDED if not said.get(key)]
    if missing or _TOO_MANY in cells:
        raise ConfigError(
            f"{table}, row {number}: expected {', '.join(_NEEDED)} and one cell per column, "
            f"found {', '.join(map(str, cells.values()))}; complete it"
        )
    return TableRow(
        said["name"],
        table.parent / said["predicted"],
        table.parent / said["truth"],
        {key: cell for key, cell in said.items() if key not in _NEEDED and cell},
    )
