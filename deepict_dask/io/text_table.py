"""Rows of cells from a small text table, whatever its separator, and numbers as text.

1. Decode, drop empty lines and comments (``#``), keep line numbers for messages.
2. Take the separator from the first line: comma, semicolon, tab, else any run of blanks.
3. All rows must have as many cells as the first.

Numbers are written with a fixed number of digits, so that the same picks give the same bytes.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import PicksFormatError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "TextTable",
    "all_fixed",
    "all_significant",
    "fixed",
    "is_number",
    "read_text_table",
    "significant",
]


@dataclass(frozen=True)
class TextTable:
    """Cells of a text table, each row with its line in the file."""

    path: Path
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]

    @property
    def n_columns(self) -> int:
        """Cells in a row; 0 in an empty file."""
        return len(self.rows[0]) if self.rows else 0

    @property
    def has_header(self) -> bool:
        """Whether the first row holds a word where numbers would be expected."""
        return bool(self.rows) and not all(is_number(cell) for cell in self.rows[0])

    def numbers(self, column: int, *, first_row: int = 0) -> list[float]:
        """Return one column as floats; `PicksFormatError` names the line of a bad cell."""
        cells = [row[column] for row in self.rows[first_row:]]
        for cell, line in zip(cells, self.lines[first_row:], strict=True):
            if not is_number(cell):
                raise PicksFormatError(
                    f"{self.path}, line {line}: expected a number in column {column + 1}, "
                    f"found {cell!r}; correct the line"
                )
        return [float(cell) for cell in cells]


def is_number(cell: str) -> bool:
    """Say whether a cell reads as a number.

    Examples
    --------
    >>> is_number("-1.5e3"), is_number("x"), is_number("2024_06_12")
    (True, False, False)
    """
    if "_" in cell:  # which Python's own numbers may have
        return False
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _separator(line: str) -> str | None:
    return next((mark for mark in ",;\t" if mark in line), None)


def _cells(line: str, separator: str | None) -> tuple[str, ...]:
    if separator is None:
        return tuple(line.split())
    return tuple(cell.strip() for cell in next(csv.reader([line], delimiter=separator)))


def _decoded(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PicksFormatError(
            f"{path}: expected a text file, found bytes that are no text at {error.start}; "
            "give a particle list"
        ) from error


def read_text_table(path: Path) -> TextTable:
    r"""Read a text table.

    Raises
    ------
    PicksFormatError
        Where the file is no text, or a row has more or fewer cells than the first.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "list.txt")
    ...     _ = path.write_text("1 2 3\n4 5 6\n")
    ...     read_text_table(path).rows
    (('1', '2', '3'), ('4', '5', '6'))
    """
    kept = [
        (number, line.strip())
        for number, line in enumerate(_decoded(path).splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    separator = _separator(kept[0][1]) if kept else None
    rows = tuple(_cells(line, separator) for _, line in kept)
    for (number, _), row in zip(kept, rows, strict=True):
        if len(row) != len(rows[0]):
            raise PicksFormatError(
                f"{path}, line {number}: expected {len(rows[0])} columns as in the first line, "
                f"found {len(row)}; correct the line"
            )
    return TextTable(path, rows, tuple(number for number, _ in kept))


def fixed(value: float, decimals: int) -> str:
    """Return a number with a fixed number of decimals, and never a negative zero.

    Examples
    --------
    >>> fixed(-0.0001, 3), fixed(2.5, 3)
    ('0.000', '2.500')
    """
    return f"{round(float(value), decimals) + 0.0:.{decimals}f}"


def significant(value: float) -> str:
    """Return a number with nine significant digits: any float32, any count below 10**9.

    Examples
    --------
    >>> significant(0.1), significant(959.0), significant(1 / 3), significant(float("nan"))
    ('0.1', '959', '0.333333333', 'nan')
    """
    value = float(value)
    whole = math.isfinite(value) and abs(value) < 1e9 and value == int(value)
    return str(int(value)) if whole else f"{value:.9g}"


def all_fixed(values: Any, decimals: int) -> list[str]:
    """Return what `fixed` makes of each number, in a third of the time.

    Examples
    --------
    >>> all_fixed([-0.0001, 2.5], 3)
    ['0.000', '2.500']
    """
    pattern = f"%.{decimals}f"
    zero = pattern % 0.0
    texts = [pattern % value for value in np.asarray(values, np.float64).tolist()]
    return [zero if text == f"-{zero}" else text for text in texts]


def all_significant(values: Any) -> list[str]:
    """Return what `significant` makes of each number; a constant column is formatted once.

    Examples
    --------
    >>> all_significant([0.1, 959.0]), all_significant([1, 1])
    (['0.1', '959'], ['1', '1'])
    """
    numbers = np.asarray(values, np.float64)
    if len(numbers) and (numbers == numbers[0]).all():
        return [significant(numbers[0])] * len(numbers)
    return [significant(value) for value in numbers.tolist()]
