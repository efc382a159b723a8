"""Which tomograms a run is about: a volume, a glob pattern, or a table.

The table is a CSV with the columns ``name`` and ``tomogram`` (a path, relative to the table) and
any further columns, such as region masks. An empty cell means that a tomogram has none.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..core.errors import ConfigError
from .volumes import is_volume_path

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["TomogramEntry", "list_tomograms"]


@dataclass(frozen=True)
class TomogramEntry:
    """One tomogram of a run.

    Examples
    --------
    >>> from pathlib import Path
    >>> TomogramEntry("TS_001", Path("TS_001.rec")).file_of("lamella") is None
    True
    """

    name: str
    """Name of its folder of results."""
    path: Path
    files: dict[str, Path] = field(default_factory=dict)
    """Further files by the table's column names."""

    def file_of(self, column: str) -> Path | None:
        """Return a further file of this tomogram, None where the cell is empty."""
        return self.files.get(column)


def list_tomograms(source: Path) -> list[TomogramEntry]:
    """Return the tomograms of a volume path, a glob pattern or a CSV table.

    Raises
    ------
    ConfigError
        Nothing is found, a column is missing, or two tomograms have one name.

    Examples
    --------
    >>> from pathlib import Path
    >>> list_tomograms(Path("cells/TS_001.rec"))[0].name
    'TS_001'
    """
    if source.suffix.lower() == ".csv":
        entries = _from_table(source)
    elif any(mark in source.name for mark in "*?["):
        entries = [_entry(path) for path in sorted(source.parent.glob(source.name))]
        entries = [entry for entry in entries if is_volume_path(entry.path)]
    else:
        entries = [_entry(source)]
    if not entries:
        raise ConfigError(f"{source}: expected at least one tomogram, found none")
    names = [entry.name for entry in entries]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{source}: expected one tomogram of each name, found two of {twice[0]}")
    return entries


def _entry(path: Path) -> TomogramEntry:
    """Name a tomogram by its file, without the endings."""
    return TomogramEntry(path.name.split(".")[0] or path.name, path)


def _from_table(table: Path) -> list[TomogramEntry]:
    try:
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{table}: expected a CSV table, found: {error}") from None
    for column in ("name", "tomogram"):
        if rows and column not in rows[0]:
            raise ConfigError(
                f"{table}: expected the columns name and tomogram, "
                f"found {', '.join(str(key) for key in rows[0])}"
            )
    return [_from_row(row, table) for row in rows]


def _from_row(row: dict[str, str], table: Path) -> TomogramEntry:
    files = {
        key: table.parent / cell
        for key, cell in row.items()
        if key not in ("name", "tomogram") and cell and cell.strip()
    }
    if not row["name"] or not row["tomogram"]:
        raise ConfigError(f"{table}: expected a name and a tomogram in every row, found {row}")
    return TomogramEntry(row["name"], table.parent / row["tomogram"], files)
