"""Tables with one row per tomogram: CSV files and lists in YAML, ours and DeePiCt's.

A cell that is empty, or what pandas takes for empty, says that a tomogram has no such file.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config.yaml_text import values_of_yaml
from ..core.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["MetadataTable", "cell_text", "read_metadata_csv", "read_metadata_yaml"]

_EMPTY = {"", "nan", "na", "n/a", "null", "none", "#n/a", "<na>"}


@dataclass(frozen=True)
class MetadataTable:
    """A table of texts."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]


def cell_text(row: dict[str, str], column: str) -> str | None:
    """Return the text of a cell, None where it is empty.

    Examples
    --------
    >>> cell_text({"tomo": " a.rec ", "lamella": "NaN"}, "tomo")
    'a.rec'
    >>> cell_text({"tomo": " a.rec ", "lamella": "NaN"}, "lamella") is None
    True
    """
    text = (row.get(column) or "").strip()
    return None if text.lower() in _EMPTY else text


def read_metadata_csv(path: Path) -> MetadataTable:
    r"""Read a CSV with a header line.

    Raises
    ------
    ConfigError
        There is no such file, or it is no CSV.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> path = Path(tempfile.mkdtemp(), "metadata.csv")
    >>> _ = path.write_text("tomo_name,tomo\nTS_001,TS_001.rec\n")
    >>> read_metadata_csv(path).rows
    ({'tomo_name': 'TS_001', 'tomo': 'TS_001.rec'},)
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = [{k.strip(): v for k, v in row.items() if k and v is not None} for row in reader]
            columns = tuple(name.strip() for name in reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path}: expected a metadata table (CSV), found: {reason}") from None
    return MetadataTable(path, columns, tuple(rows))


def read_metadata_yaml(path: Path) -> MetadataTable:
    r"""Read a list of mappings from YAML; their keys are the columns.

    Raises
    ------
    ConfigError
        There is no such file, or it holds something else.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> path = Path(tempfile.mkdtemp(), "tomograms.yaml")
    >>> _ = path.write_text("- {name: TS_001, tomogram: TS_001.rec}\n- {name: TS_002}\n")
    >>> read_metadata_yaml(path).columns
    ('name', 'tomogram')
    """
    import yaml

    try:
        content = values_of_yaml(path.read_text("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: expected a table (YAML), found: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: expected a table (YAML), found: {reason}") from None
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise ConfigError(
            f"{path}: expected a list of mappings (- name: TS_001), "
            f"found {_kind_of(content)}; the config of a run is given to `deepict-dask run`"
        )
    columns = dict.fromkeys(str(key) for row in content for key in row)
    rows = (
        {str(key): _text(value, f"{path}: row {number}: {key}") for key, value in row.items()}
        for number, row in enumerate(content, 1)
    )
    return MetadataTable(path, tuple(columns), tuple(rows))


def _kind_of(content: Any) -> str:
    if isinstance(content, dict):
        return f"one mapping with the keys {', '.join(str(key) for key in content)}"
    if isinstance(content, list):
        return "a list of other things"
    return "nothing" if content is None else type(content).__name__


def _text(value: Any, where: str) -> str:
    """Return a scalar as the text it was written as; YAML turns 001 into 1."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, float) or where.endswith("_angstrom"):
        return str(value)
    raise ConfigError(
        f"{where}: expected text, found {value!r}; put it in quotes (YAML reads 001 as a number)"
    )
