"""DeepFinder's object lists, XML and XLSX.

    <objlist>
      <object tomo_idx="0" obj_id="0" class_label="1" x="12.9" y="10.2" z="9.7" cluster_size="9"/>
    </objlist>

Positions are voxels counted from 0. ``psi``, ``phi``, ``the`` are TOM's angles. An attribute that
is missing in one object is missing in its row. The score of a pick is its ``score``, an attribute
of ours, else ``cluster_size``, by which DeepFinder ranks. The workbook has the same in columns A to
J under a line of titles, without rounding.

Only x, y, z and class_label are asked for, other attributes are kept. A document type, and with it
any entity, is refused before it is expanded. A workbook that unpacks to more than 1 GiB is refused.

Source: files that DeepFinder 0.2 wrote.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from typing import TYPE_CHECKING, Any
from xml.parsers import expat
from xml.sax.saxutils import quoteattr

import numpy as np

from ...core.errors import PicksFormatError
from ..orientation import angles_from_av3, av3_from_angles, has_angles, relion_angles, with_angles
from ..picks_csv import parsed_column
from ..picks_numbers import class_numbers, tomogram_numbers
from ..picks_table import checked_picks, make_picks, named_by_number, whole_numbers
from ..text_table import is_number, significant

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd

    from ..picks_table import TomogramFrame

__all__ = ["dump_deepfinder_xlsx", "dump_deepfinder_xml", "load_deepfinder_xlsx",
           "load_deepfinder_xml"]  # fmt: skip

_ANGLES = ("phi", "psi", "the")
_WRITTEN = ("tomo_idx", "obj_id", "class_label", "x", "y", "z", "psi", "phi", "the", "cluster_size")
_OURS = {"tomo_idx": "tomogram_number", "class_label": "class_number", "cluster_size": "n_voxels"}
_TITLES = ("Tomo IDX", "Object ID", "Class label", "x", "y", "z", "psi", "phi", "theta",
           "Cluster size")  # fmt: skip
_UNPACKED_BYTES = 1 << 30
_DAMAGE = (OSError, ValueError, LookupError, SyntaxError, TypeError, AttributeError, RuntimeError,
           EOFError, OverflowError, zipfile.BadZipFile, zlib.error)  # fmt: skip
"""What zipfile and openpyxl raise for files that are no workbook, or a damaged one."""

Row = tuple[int, dict[str, str]]
"""A line of the file, and its cells by name."""


def load_deepfinder_xml(path: Path, _frame: TomogramFrame) -> pd.DataFrame:
    """Read an object list from XML.

    Raises
    ------
    PicksFormatError
        Where the file is no object list, an object lacks a position, or the file declares a
        document type; the line is named.
    """
    return _picks(_Objects(path).rows(), path)


class _Objects:
    """Collects the objects of a list while it is parsed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: list[Row] = []
        self.depth = 0
        self.parser = expat.ParserCreate()
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.StartDoctypeDeclHandler = self._refuse_doctype

    def rows(self) -> list[Row]:
        try:
            with self.path.open("rb") as file:
                self.parser.ParseFile(file)
        except expat.ExpatError as error:
            raise PicksFormatError(
                f"{self.path}, line {error.lineno}: expected the XML of an object list, found "
                f"{expat.ErrorString(error.code)}; is the file complete?"
            ) from error
        return self.found

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        expected = "objlist" if self.depth == 0 else "object"
        if self.depth > 1 or name != expected:
            raise self._error(f"expected <{expected}>, found <{name[:40]}>; give an object list")
        self.depth += 1
        if name == "object":
            self.found.append((self.parser.CurrentLineNumber, attributes))

    def _end(self, _name: str) -> None:
        self.depth -= 1

    def _refuse_doctype(self, *_declaration: Any) -> None:
        raise self._error("expected no document type, found one; remove <!DOCTYPE ...>")

    def _error(self, text: str) -> PicksFormatError:
        return PicksFormatError(f"{self.path}, line {self.parser.CurrentLineNumber}: {text}")


def _picks(rows: Sequence[Row], path: Path) -> pd.DataFrame:
    """Return a picks table from rows of cells by DeepFinder's names."""
    if not rows:
        return make_picks([])
    zyx = np.column_stack([_numbers(rows, name, path) for name in "zyx"])
    names = list(dict.fromkeys(name for _, cells in rows for name in cells))
    rest = {
        name: whole_numbers(_numbers(rows, name, path, missing=math.nan))
        for name in ("class_label", "tomo_idx", "cluster_size", "score", *_ANGLES)
        if name in names
    }
    score = rest.pop("score", rest.get("cluster_size"))
    picks = make_picks(zyx, score)
    if all(name in rest for name in _ANGLES):
        angles = np.column_stack([rest.pop(name) for name in _ANGLES])
        if np.nan_to_num(angles).any():
            picks = with_angles(picks, angles_from_av3(angles))
    other = [name for name in names if name not in {*rest, *_ANGLES, "x", "y", "z", "score"}]
    texts = {name: [cells.get(name, "") for _, cells in rows] for name in other}
    rest |= {name: parsed_column(name, cells) for name, cells in texts.items()}
    picks = picks.assign(**{_OURS.get(k, k): v for k, v in rest.items()})
    return checked_picks(named_by_number(picks), path)


def _numbers(
    rows: Sequence[Row], name: str, path: Path, missing: float | None = None
) -> list[float]:
    found = []
    for line, cells in rows:
        text = cells.get(name, "")
        if text == "" and missing is not None:
            found.append(missing)
        elif is_number(text):
            found.append(float(text))
        else:
            raise PicksFormatError(
                f"{path}, line {line}: expected a number for {name}, found {text[:40]!r}; "
                "correct the object"
            )
    return found


def dump_deepfinder_xml(table: pd.DataFrame, _frame: TomogramFrame) -> bytes:
    """Return the bytes of an object list as DeepFinder writes it; our own columns follow.

    Examples
    --------
    >>> from deepict_dask.io.picks_table import TomogramFrame, make_picks
    >>> picks = make_picks([[5, 88, 9]], [959], class_number=[2], n_voxels=[959])
    >>> print(dump_deepfinder_xml(picks, TomogramFrame()).decode(), end="")
    <objlist>
      <object class_label="2" x="9.000" y="88.000" z="5.000" cluster_size="959"/>
    </objlist>
    """
    columns = _columns(checked_picks(table))
    texts = {name: _texts(name, values) for name, values in columns.items()}
    objects = []
    for cells in zip(*texts.values(), strict=True):
        known = [
            f"{name}={quoteattr(cell)}" for name, cell in zip(texts, cells, strict=True) if cell
        ]
        objects.append(f"  <object {' '.join(known)}/>\n")
    if not objects:
        return b"<objlist/>\n"
    return f"<objlist>\n{''.join(objects)}</objlist>\n".encode()


def _columns(picks: pd.DataFrame) -> dict[str, Any]:
    """Return the columns of an object list in DeepFinder's order, then ours."""
    import re

    found: dict[str, Any] = {axis: picks[axis].to_numpy() for axis in "xyz"}
    found["class_label"] = class_numbers(picks)
    if "tomogram_number" in picks or len(set(picks.get("tomogram_name", []))) > 1:
        found["tomo_idx"] = tomogram_numbers(picks, 0)
    if "n_voxels" in picks:
        found["cluster_size"] = picks["n_voxels"].to_numpy()
    if "obj_id" in picks:
        found["obj_id"] = picks["obj_id"].to_numpy()
    if has_angles(picks):
        found |= dict(zip(_ANGLES, av3_from_angles(relion_angles(picks)).T, strict=True))
    ordered = {name: found[name] for name in _WRITTEN if name in found}
    score = picks["score"].to_numpy()
    sizes = ordered.get("cluster_size", np.full(len(score), np.nan))
    if not np.array_equal(score, sizes, equal_nan=True):
        ordered["score"] = score
    spent = {*_OURS.values(), "rot_degrees", "tilt_degrees", "psi_degrees", "score", *_WRITTEN}
    if "class_name" in picks and (picks["class_name"] == found["class_label"].astype(str)).all():
        spent.add("class_name")
    own = [str(name) for name in picks.columns if name not in spent]
    # a name of XML has no blanks and begins with a letter
    return ordered | {re.sub(r"^(?=[^A-Za-z_])|[^\w.-]", "_", name): picks[name] for name in own}


def _texts(name: str, values: Any) -> list[str]:
    if name in {"x", "y", "z", *_ANGLES}:
        return ["" if value != value else f"{value:.3f}" for value in values]
    return [_text(value) for value in values]


def _text(value: Any) -> str:
    import pandas as pd

    if pd.isna(value):
        return ""
    return significant(value) if isinstance(value, float) else _printable(str(value))


def _printable(text: str) -> str:
    """Return a text that XML can hold."""
    if any(ord(sign) < 32 and sign not in "\t\n\r" for sign in text):
        raise PicksFormatError(
            f"object list: expected texts without control characters, found {text!r}; rename it"
        )
    return text


def load_deepfinder_xlsx(path: Path, _frame: TomogramFrame) -> pd.DataFrame:
    """Read an object list from an Excel workbook's first sheet.

    Raises
    ------
    PicksFormatError
        Where the file is no workbook, lacks the titles x, y, z, or a row its numbers.
    """
    rows = _sheet(path)
    titles = [_title(cell) for cell in rows[0]] if rows else []
    if not {"x", "y", "z"} <= set(titles):
        raise PicksFormatError(
            f"{path}, row 1: expected the titles x, y, z of an object list, found {titles}; give "
            "a workbook of DeepFinder"
        )
    named = [
        (line, {n: _cell_text(c) for n, c in zip(titles, row, strict=False) if n and c is not None})
        for line, row in enumerate(rows[1:], 2)
    ]
    return _picks([row for row in named if row[1]], path)


def _title(cell: Any) -> str:
    names = dict(zip(_TITLES, _WRITTEN, strict=True))
    return names.get(str(cell).strip(), "" if cell is None else str(cell).strip())


def _cell_text(cell: Any) -> str:
    return repr(float(cell)) if isinstance(cell, float) else str(cell)


def _sheet(path: Path) -> list[tuple[Any, ...]]:
    """Return the cells of the first sheet, after checking what the file unpacks to."""
    import openpyxl
    from openpyxl.utils.exceptions import InvalidFileException

    try:
        _refuse_bombs(path)
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        rows = list(book.worksheets[0].iter_rows(values_only=True))
        book.close()
    except PicksFormatError:
        raise
    except (*_DAMAGE, InvalidFileException) as error:
        raise PicksFormatError(
            f"{path}: expected an Excel workbook, found something else ({error}); is the file "
            "complete?"
        ) from error
    return rows


def _refuse_bombs(path: Path) -> None:
    """Refuse a workbook that unpacks to more than any list needs."""
    with zipfile.ZipFile(path) as packed:
        unpacked = sum(part.file_size for part in packed.infolist())
    if unpacked > _UNPACKED_BYTES:
        raise PicksFormatError(
            f"{path}: expected a workbook below 1 GiB unpacked, found {unpacked:,} bytes; "
            "give the list as XML or CSV"
        )


def dump_deepfinder_xlsx(table: pd.DataFrame, _frame: TomogramFrame) -> bytes:
    """Return the bytes of an object list as a workbook with DeepFinder's titles, then ours.

    The dates in it are those of 1980, so that the same picks give the same bytes.
    """
    import openpyxl

    columns = _columns(checked_picks(table))
    blank = np.full(len(table), None)
    columns = {name: columns.get(name, blank) for name in _WRITTEN} | columns
    titles = dict(zip(_WRITTEN, _TITLES, strict=True))
    rows = [[_plain(cell) for cell in cells] for cells in zip(*columns.values(), strict=True)]
    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("Sheet")
    for row in ([titles.get(name, name) for name in columns], *rows):
        sheet.append(row)
    return _without_dates(book)


def _plain(cell: Any) -> Any:
    """Return a cell that openpyxl takes, texts never as formulas."""
    import pandas as pd

    if pd.isna(cell):
        return None
    value = cell.item() if isinstance(cell, np.generic) else cell
    if not isinstance(value, str):
        return value
    return f" {value}" if value.startswith("=") else _printable(value)


def _without_dates(book: Any) -> bytes:
    """Save a workbook with one date for all its parts."""
    from datetime import datetime

    from openpyxl.xml.functions import tostring

    dated, plain = io.BytesIO(), io.BytesIO()
    book.save(dated)  # which notes the present time as that of the last change
    book.properties.created = book.properties.modified = datetime(1980, 1, 1)
    replaced = {"docProps/core.xml": tostring(book.properties.to_tree())}
    with zipfile.ZipFile(dated) as source, zipfile.ZipFile(plain, "w") as target:
        for part in source.infolist():
            held = zipfile.ZipInfo(part.filename)
            held.compress_type = zipfile.ZIP_DEFLATED
            target.writestr(held, replaced.get(part.filename) or source.read(part))
    return plain.getvalue()
