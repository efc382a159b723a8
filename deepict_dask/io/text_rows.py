"""Columns of numbers and words to lines of text, a thousand lines in one formatting call.

A list of millions of picks is mostly spent on turning numbers into text. So a column is not turned
into cells one by one: it says how its cells are printed, the pattern of a line is repeated, and
Python fills in all values of a piece at once. A column of one value is part of the pattern.

Numbers look as `deepict_dask.io.text_table.fixed` and `significant` write them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "PIECE_ROWS",
    "Cells",
    "constant",
    "fixed_cells",
    "lines",
    "significant_cells",
    "whole_cells",
    "words",
]

PIECE_ROWS = 1 << 13
"""Rows to turn into text at a time: as Python objects they take 20 times the room."""


@dataclass(frozen=True)
class Cells:
    """One column: how a cell is printed, and the values; none where all cells are alike."""

    pattern: str
    values: Sequence[Any] | None = None


def constant(text: str) -> Cells:
    """Return a column of one text."""
    return Cells(text.replace("%", "%%"))


def words(texts: Sequence[str]) -> Cells:
    """Return a column of texts."""
    return Cells("%s", texts)


def fixed_cells(values: Any, decimals: int) -> Cells:
    r"""Return a column of finite numbers with a fixed number of decimals, never a negative zero.

    Examples
    --------
    >>> lines([fixed_cells([-0.0001, 2.5, -0.0006], 3)], 3, ",")
    '0.000\n2.500\n-0.001\n'
    """
    numbers = np.array(values, np.float64)
    pattern = f"%.{decimals}f"
    near_zero = np.flatnonzero(np.signbit(numbers) & (numbers > -(10.0**-decimals)))
    for place in near_zero:
        if float(pattern % numbers[place]) == 0:
            numbers[place] = 0.0
    return _numbers(pattern, numbers)


def significant_cells(values: Any) -> Cells:
    """Return a column of numbers with nine significant digits; whole ones as whole numbers.

    Examples
    --------
    >>> lines([significant_cells([0.1, 959.0, -0.0, float("nan")])], 4, ",").split()
    ['0.1', '959', '0', 'nan']
    """
    return _numbers("%.9g", np.asarray(values, np.float64) + 0.0)  # a negative zero loses its sign


def whole_cells(values: Any) -> Cells:
    """Return a column of integers."""
    return _numbers("%d", np.asarray(values))


def _numbers(pattern: str, values: np.ndarray[Any, Any]) -> Cells:
    if len(values) and (values == values[0]).all():
        return Cells(pattern % values[0])
    return Cells(pattern, values.tolist())


def lines(columns: Sequence[Cells], n: int, separator: str) -> str:
    r"""Return ``n`` lines of text.

    Parameters
    ----------
    columns
        The cells of each column; those with values have ``n``.
    n
        Number of lines.
    separator
        Between cells.

    Examples
    --------
    >>> lines([constant("TS"), whole_cells([3, 4]), fixed_cells([0.5, 2], 1)], 2, " ")
    'TS 3 0.5\nTS 4 2.0\n'
    """
    pattern = separator.join(column.pattern for column in columns) + "\n"
    varying = [column.values for column in columns if column.values is not None]
    cells: list[Any] = [None] * (n * len(varying))
    for place, values in enumerate(varying):
        cells[place :: len(varying)] = values
    return pattern * n % tuple(cells)
