"""picks.csv: one pick per line, ``score,x,y,z`` and what else is known of it.

Positions are voxels, 0-based, three decimals; scores have nine significant digits; rows go by
falling score, ties by label, then in raster order: the same picks give the same bytes.

Read are that file, and the headerless lists that DeePiCt and others write: three columns
``x, y, z`` or four ``score, x, y, z``, separated by commas, semicolons, tabs or blanks.
"""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import PicksFormatError
from .picks_table import by_falling_score, checked_picks, make_picks
from .text_rows import (
    PIECE_ROWS,
    Cells,
    fixed_cells,
    lines,
    significant_cells,
    whole_cells,
    words,
)
from .text_table import TextTable, is_number, read_text_table, significant

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    import pandas as pd

__all__ = [
    "dump_picks_csv",
    "load_picks_csv",
    "parsed_cells",
    "parsed_column",
    "picks_csv_pieces",
    "picks_from_text",
    "read_list_text",
]

_HEADERLESS = {3: ("x", "y", "z"), 4: ("score", "x", "y", "z")}
_FILAMENT = "Filament ID"
"""A column of DeePiCt's lists of filaments."""
_NAMES = ("tomogram_name", "class_name")
"""Columns of text, whatever the cells look like: a tomogram "007" keeps its name."""
_FIRST = ("score", "x", "y", "z", "n_voxels", "label", "class_name")


def _cells(name: str, values: pd.Series[Any]) -> Cells:
    """Return one column as text: positions, floats, then whatever prints."""
    if name in ("z", "y", "x"):
        return fixed_cells(values, 3)
    if values.dtype.kind == "f":
        if not values.isna().any():
            return significant_cells(values)
        return words(["" if np.isnan(value) else significant(value) for value in values])
    if isinstance(values.dtype, np.dtype) and values.dtype.kind in "iu":
        return whole_cells(values)
    texts = ["" if value is None or value != value else str(value) for value in values]
    quoted = {text: _csv_line([text, ""])[:-2] for text in set(texts)}
    return words([quoted[text] for text in texts])


def _csv_line(cells: Sequence[str]) -> str:
    """Return cells as a line, in quotes where they need some."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def picks_csv_pieces(tables: Iterable[pd.DataFrame]) -> Iterator[bytes]:
    """Yield the bytes of the file that `dump_picks_csv` makes of tables joined in this order.

    Parameters
    ----------
    tables
        Picks by falling score, ties by label: at least one table, which may have no rows, all with
        the same columns.

    Examples
    --------
    >>> some, more = make_picks([[5, 88, 9]], [0.75]), make_picks([[1, 2, 3]], [0.5])
    >>> print(b"".join(picks_csv_pieces([some, more])).decode(), end="")
    score,x,y,z
    0.75,9.000,88.000,5.000
    0.5,3.000,2.000,1.000
    """
    names: list[str] = []
    for table in tables:
        picks = checked_picks(table)
        if not names:
            names = [name for name in _FIRST if name in picks.columns]
            names += [name for name in picks.columns if name not in names]
            yield _csv_line(names).encode()
        for start in range(0, len(picks), PIECE_ROWS):
            piece = picks.iloc[start : start + PIECE_ROWS]
            yield lines([_cells(name, piece[name]) for name in names], len(piece), ",").encode()


def dump_picks_csv(table: pd.DataFrame) -> bytes:
    """Return the bytes of a picks.csv, by falling score.

    Where no pick has a score, as of points along a drawn line, rows stay in their order.

    Examples
    --------
    >>> picks = make_picks([[5, 88.5, 9], [1, 2, 3]], [0.5, 0.75], n_voxels=[120, 7])
    >>> print(dump_picks_csv(picks).decode(), end="")
    score,x,y,z,n_voxels
    0.75,3.000,2.000,1.000,7
    0.5,9.000,88.500,5.000,120
    """
    picks = checked_picks(table)
    if picks["score"].notna().any():
        picks = by_falling_score(picks)
    return b"".join(picks_csv_pieces([picks]))


def _names_of(table: TextTable) -> Sequence[str]:
    """Return the column names from the header or the number of columns."""
    if not table.has_header:
        if table.n_columns not in _HEADERLESS:
            raise PicksFormatError(
                f"{table.path}: expected 3 columns (x, y, z), 4 (score, x, y, z), 20 (motl) or a "
                f"header, found {table.n_columns} columns; add a header line such as score,x,y,z"
            )
        return _HEADERLESS[table.n_columns]
    known = {"x", "y", "z", "score"}
    names = [name.lower() if name.lower() in known else name for name in table.rows[0]]
    if "axis-0" in names:
        raise PicksFormatError(
            f"{table.path}: expected positions in voxels, found points that napari saved; give "
            "--from napari where they are in Å (a layer of `view`), or call axis-0, axis-1, axis-2 "
            "z, y, x where they are in voxels (a layer drawn anew)"
        )
    if not {"x", "y", "z"} <= set(names) or len(set(names)) < len(names):
        raise PicksFormatError(
            f"{table.path}: expected a header that names x, y and z once, found {names}; "
            "rename the columns"
        )
    if _FILAMENT in names:
        raise _no_filaments(table.path)
    return names


def _no_filaments(path: Path) -> PicksFormatError:
    return PicksFormatError(
        f"{path}: expected positions in voxels, found DeePiCt's list of filaments, whose positions "
        "are in Å; `deepict-dask filaments MASK OUT` makes picks along the filaments of a mask"
    )


def read_list_text(path: Path) -> TextTable:
    r"""Read the rows of a list, as `read_text_table` does.

    DeePiCt's lists of filaments have a cell more in each row than in the header; they are refused
    for what they are, not for that.

    Raises
    ------
    PicksFormatError
        Where the rows differ in length, or the file is a list of filaments.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "list.csv")
    ...     _ = path.write_text("110,60,88\n")
    ...     read_list_text(path).n_columns
    3
    """
    try:
        return read_text_table(path)
    except PicksFormatError:
        with path.open(encoding="utf-8", errors="replace") as file:
            if _FILAMENT in file.readline():
                raise _no_filaments(path) from None
        raise


def parsed_cells(cells: list[str]) -> Any:
    """Return a column as integers or floats where all cells are numbers or empty, else as text.

    Examples
    --------
    >>> parsed_cells(["1", "2"]).tolist(), parsed_cells(["1", "a"])
    ([1, 2], ['1', 'a'])
    """
    import pandas as pd

    if not any(cells) or not all(is_number(cell) for cell in cells if cell):
        return cells
    known = [None if cell.lower() in ("", "nan") else cell for cell in cells]
    return pd.to_numeric(pd.Series(known, dtype=object))


def parsed_column(name: str, cells: list[str]) -> Any:
    """Return a column by its name: those of names stay texts, others as `parsed_cells`.

    Examples
    --------
    >>> parsed_column("class_name", ["01"]), parsed_column("size", ["01"]).tolist()
    (['01'], [1])
    """
    return cells if name in _NAMES else parsed_cells(cells)


def picks_from_text(table: TextTable) -> pd.DataFrame:
    """Return the picks of a text table with a header, or with 3 or 4 columns."""
    if not table.rows:
        return make_picks([])
    names = list(_names_of(table))
    first = 1 if table.has_header else 0
    place = {name: table.numbers(names.index(name), first_row=first) for name in ("z", "y", "x")}
    score = [row[names.index("score")] for row in table.rows[first:]] if "score" in names else None
    rest = {
        name: parsed_column(name, [row[column] for row in table.rows[first:]])
        for column, name in enumerate(names)
        if name not in ("z", "y", "x", "score")
    }
    zyx = np.column_stack([place["z"], place["y"], place["x"]])
    picks = make_picks(zyx, None, **rest)
    if score is not None:
        picks["score"] = [cell or "nan" for cell in score]
    return checked_picks(picks, table.path)


def load_picks_csv(path: Path) -> pd.DataFrame:
    r"""Read a picks.csv or a list of 3 or 4 columns.

    Parameters
    ----------
    path
        The file; positions are taken as voxels, 0-based.

    Raises
    ------
    PicksFormatError
        Where the columns are not known, or a cell is no number; the line is named.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "list.txt")
    ...     _ = path.write_text("9 88 5\n")
    ...     load_picks_csv(path)[["z", "y", "x"]].to_numpy().tolist()
    [[5.0, 88.0, 9.0]]
    """
    return picks_from_text(read_text_table(path))
