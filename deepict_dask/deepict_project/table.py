"""DeePiCt's metadata table: one row per tomogram, columns that the config names.

The table itself is read by `deepict_dask.io.metadata_table`. Paths in cells are relative to the
same folder as the paths of the config, see `base_folder`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import ConfigError
from ..io.datasets.names import stays_inside
from ..io.metadata_table import cell_text, read_metadata_csv

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .findings import Findings

__all__ = ["ProjectTable", "base_folder", "check_name", "read_project_table"]


@dataclass(frozen=True)
class ProjectTable:
    """A metadata table.

    Examples
    --------
    >>> row = {"tomo_name": "TS_001", "lamella_file": "nan"}
    >>> table = ProjectTable(Path("metadata.csv"), Path("."), tuple(row), (row,))
    >>> table.cell(row, "lamella_file") is None
    True
    """

    path: Path
    base: Path
    """Folder from which relative paths count."""
    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]

    def cell(self, row: dict[str, str], column: str) -> str | None:
        """Return the text of a cell, None where it is empty."""
        return cell_text(row, column)

    def file(self, row: dict[str, str], column: str, name: str, findings: Findings) -> Path | None:
        """Return the file of a cell, None where the cell is empty; note what is not there."""
        text = self.cell(row, column)
        if text is None:
            return None
        path = self.base / text
        if not path.exists():
            findings.absent(
                f"{self.path}: row {name}, column {column}: expected a file, found none: {path}"
            )
        return path

    def has(self, column: str, why: str, findings: Findings) -> bool:
        """Say whether a column is there; note where it is not."""
        if column not in self.columns:
            findings.error(
                f"{self.path}: expected the column {column} ({why}), "
                f"found {', '.join(self.columns)}"
            )
        return column in self.columns


def read_project_table(path: Path, base: Path, needed: Sequence[str]) -> ProjectTable:
    r"""Read a metadata table.

    Parameters
    ----------
    path
        CSV with a header line.
    base
        Folder from which its relative paths count.
    needed
        Columns without which nothing can be done.

    Raises
    ------
    ConfigError
        There is no such table, it has no rows, or a needed column is missing.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "metadata.csv")
    >>> _ = path.write_text("tomo_name,tomo\nTS_001,TS_001.rec\n")
    >>> read_project_table(path, path.parent, ["tomo_name"]).rows
    ({'tomo_name': 'TS_001', 'tomo': 'TS_001.rec'},)
    """
    table = read_metadata_csv(path)
    for column in needed:
        if column not in table.columns:
            found = ", ".join(table.columns) or "nothing"
            raise ConfigError(
                f"{path}: expected the column {column}, found {found}; "
                "columns are separated by commas"
            )
    if not table.rows:
        raise ConfigError(f"{path}: expected at least one row below the header, found none")
    return ProjectTable(path, base, table.columns, table.rows)


def check_name(name: str, where: str, findings: Findings) -> None:
    """Note a name that would lead out of the folder of results."""
    if not stays_inside(name):
        findings.error(f"{where}: expected a name for folders and files, found {name}")


def base_folder(config: Path, relative: str) -> Path:
    """Return the folder from which a project's relative paths count.

    DeePiCt takes them from the folder it is started in. So do we where the given file is there;
    else the config's own folder is tried, so that a project runs from anywhere.

    Raises
    ------
    ConfigError
        The file is in neither.
    """
    here, beside = Path.cwd(), config.absolute().parent
    for base in (here, beside):
        if (base / relative).exists():
            return base
    places = f"{here / relative}" + (f" nor {beside / relative}" if beside != here else "")
    raise ConfigError(f"{config}: expected the table {relative}, found no {places}")
