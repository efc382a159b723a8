"""A table with one row per tomogram: ours (CSV or YAML), or DeePiCt's metadata (CSV).

1. The columns say whose table it is: ``name`` and ``tomogram`` (ours), ``tomo_name`` and ``tomo``
   (DeePiCt, 3D), ``data`` and perhaps ``id`` (DeePiCt, 2D). ``TABLE#COLUMN`` takes the tomograms
   from another column, such as ``filtered_tomo``.
2. Any further cell is a file, by its column's name. ``voxel_spacing_angstrom`` is a number that
   overrides the headers. Columns called ``CLASS_motl``, ``path_to_motl_clean_CLASS`` or
   ``picks_CLASS`` are particle lists too.
3. Paths in our tables are relative to the table. DeePiCt takes them from the folder it is started
   in, so that folder counts where the first tomograms are there and not beside the table.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.errors import ConfigError
from ..endings import kind_of, plain_name
from ..metadata_table import cell_text, read_metadata_csv, read_metadata_yaml
from .choice import some_of
from .entry import Dataset, TomogramEntry
from .names import stem_of

if TYPE_CHECKING:
    from ..metadata_table import MetadataTable

__all__ = ["TABLE_ENDINGS", "read_table_source"]

TABLE_ENDINGS = (".csv", ".yaml", ".yml")
SPACING = "voxel_spacing_angstrom"
_PICKS = (r"(.+)_motl", r"path_to_motl_clean_(.+)", r"picks_(.+)", r"(.+)_picks")
_ROWS_TRIED = 20


@dataclass(frozen=True)
class _Dialect:
    """What the columns of a kind of table are called."""

    kind: str
    name: str
    tomogram: str
    is_ours: bool = False


_DIALECTS = (
    _Dialect("table", "name", "tomogram", is_ours=True),
    _Dialect("DeePiCt table", "tomo_name", "tomo"),
    _Dialect("DeePiCt 2D table", "id", "data"),
)


def read_table_source(path: Path, column: str) -> Dataset:
    r"""Return the tomograms of a table.

    Parameters
    ----------
    path
        ``.csv``, ``.yaml`` or ``.yml``.
    column
        Where the paths of the tomograms are; empty for the usual one.

    Raises
    ------
    ConfigError
        It is no table, or a column or a cell is missing.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "tomograms.csv")
    >>> _ = path.write_text("name,tomogram,lamella\nTS_001,TS_001.rec,\n")
    >>> read_table_source(path, "").entries[0].files
    {}
    """
    is_csv = path.suffix.lower() == ".csv"
    table = read_metadata_csv(path) if is_csv else read_metadata_yaml(path)
    dialect = _dialect_of(table, column)
    if column and column not in table.columns:
        raise ConfigError(f"{path}: expected the column {column}, found {', '.join(table.columns)}")
    if column:
        dialect = _Dialect(dialect.kind, dialect.name, column, dialect.is_ours)
    base = path.parent if dialect.is_ours else _base_of(table, dialect)
    found = [_entry(row, table, dialect, base) for row in table.rows]
    empty = [str(number) for number, entry in enumerate(found, 1) if entry is None]
    notes = () if base == path.parent else (f"paths of the table are taken from {base}",)
    left_out = f"left out, without {dialect.tomogram}: rows {some_of(empty)}"
    entries = tuple(entry for entry in found if entry is not None)
    columns = frozenset(table.columns)
    return Dataset(dialect.kind, entries, notes, (left_out,) if empty else (), columns)


def _dialect_of(table: MetadataTable, column: str) -> _Dialect:
    """Return whose table it is by its columns."""
    columns = {*table.columns, *([column] if column else [])}
    for dialect in _DIALECTS:
        tomogram = column or dialect.tomogram
        optional = dialect.name == "id" and "data" in columns
        if tomogram in columns and (dialect.name in columns or optional):
            return dialect
    found = f"found {', '.join(table.columns) or 'nothing'}"
    if "tomo_name" in table.columns:
        raise ConfigError(
            f"{table.path}: expected the column tomo, {found}; say which one holds the tomograms, "
            f"such as {table.path}#{_likely_column(table)}"
        )
    raise ConfigError(
        f"{table.path}: expected the columns name and tomogram, or DeePiCt's tomo_name and tomo, "
        f"{found}; columns are separated by commas"
    )


def _likely_column(table: MetadataTable) -> str:
    """Return the first column that holds volumes."""
    for column in table.columns:
        if any(kind_of(plain_name(row.get(column) or "")) for row in table.rows[:_ROWS_TRIED]):
            return column
    return "COLUMN"


def _base_of(table: MetadataTable, dialect: _Dialect) -> Path:
    """Return the folder from which paths count: the table's, or else the current one."""
    cells = [cell_text(row, dialect.tomogram) for row in table.rows[:_ROWS_TRIED]]
    for base in (table.path.parent, Path.cwd()):
        if any((base / cell).exists() for cell in cells if cell):
            return base
    return table.path.parent


def _entry(
    row: dict[str, str], table: MetadataTable, dialect: _Dialect, base: Path
) -> TomogramEntry | None:
    """Return the tomogram of a row; None where another program's table has none."""
    tomogram, name = cell_text(row, dialect.tomogram), cell_text(row, dialect.name)
    if tomogram and not name and dialect.name == "id":
        name = stem_of(Path(tomogram))
    if not name or (not tomogram and dialect.is_ours):
        raise ConfigError(f"{table.path}: expected a name and a tomogram in every row, found {row}")
    if not tomogram:
        return None
    used = {dialect.name, dialect.tomogram, SPACING}
    cells = {column: cell_text(row, column) for column in table.columns if column not in used}
    files = {column: base / cell for column, cell in cells.items() if cell}
    return TomogramEntry(
        name, base / tomogram, files, _spacing(row, f"{table.path}: {name}"), _picks_among(files)
    )


def _spacing(row: dict[str, str], where: str) -> float | None:
    text = cell_text(row, SPACING)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{where}: {SPACING}: expected a positive number of Å, found {text!r}")
    return value


def _picks_among(files: dict[str, Path]) -> dict[str, tuple[Path, ...]]:
    """Return the columns that hold particle lists, by class."""
    picks: dict[str, tuple[Path, ...]] = {}
    for column, path in files.items():
        found = next((m for p in _PICKS if (m := re.fullmatch(p, column))), None)
        if found is not None:
            picks[found[1]] = (*picks.get(found[1], ()), path)
    return picks
