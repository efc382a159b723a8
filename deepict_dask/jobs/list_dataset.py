"""Say which tomograms a source names, and what their headers say.

1. The source is read as a run would read it (`deepict_dask.io.dataset`).
2. Of every tomogram the header alone is read, several at a time: files on a server answer slowly.
3. What is odd is said: a tomogram that cannot be read, a further file that is not there, no voxel
   spacing, a header that differs from the source by more than 5 %, one file under two names, and
   tomograms whose voxel spacings differ by more than 5 % from most of the others.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median_low
from typing import TYPE_CHECKING, Any

from ..core.errors import DeepictError
from ..io.dataset import read_dataset
from ..io.datasets.choice import some_of
from ..io.endings import kind_of, plain_name
from ..io.volumes import peek

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from ..core.geometry import Vec
    from ..io.dataset import Dataset, TomogramEntry
    from ..io.description import VolumeDescription

__all__ = ["DatasetReport", "TomogramRow", "dataset_lines", "list_dataset"]

_TOLERANCE = 0.05
_READERS = 8
_LIST_ENDINGS = (".csv", ".tsv", ".txt", ".star", ".json", ".ndjson", ".xml", ".tbl", ".npy")


@dataclass(frozen=True)
class TomogramRow:
    """What is known of one tomogram.

    Examples
    --------
    >>> from pathlib import Path
    >>> from deepict_dask.io.dataset import TomogramEntry
    >>> row = TomogramRow(TomogramEntry("t", Path("t.mrc"), voxel_spacing_angstrom=10.0), (4, 4, 4))
    >>> row.voxel_spacing_angstrom, row.is_readable
    (10.0, True)
    """

    entry: TomogramEntry
    shape: Vec | None = None
    """Voxels on z, y, x; None where the tomogram cannot be read."""
    header_spacing_angstrom: float | None = None
    odd: tuple[str, ...] = ()

    @property
    def is_readable(self) -> bool:
        """Whether there is a header that makes sense."""
        return self.shape is not None

    @property
    def voxel_spacing_angstrom(self) -> float | None:
        """What a run would take: the source's word, or else the header's."""
        return self.entry.voxel_spacing_angstrom or self.header_spacing_angstrom

    def as_dict(self) -> dict[str, Any]:
        """Return values that JSON can hold."""
        return {
            "name": self.entry.name,
            "path": str(self.entry.path),
            "shape": None if self.shape is None else list(self.shape),
            "voxel_spacing_angstrom": self.voxel_spacing_angstrom,
            "header_spacing_angstrom": self.header_spacing_angstrom,
            "source_spacing_angstrom": self.entry.voxel_spacing_angstrom,
            "files": {name: str(path) for name, path in self.entry.files.items()},
            "picks": {name: [str(p) for p in paths] for name, paths in self.entry.picks.items()},
            "readable": self.is_readable,
            "odd": list(self.odd),
        }


@dataclass(frozen=True)
class DatasetReport:
    """The tomograms of a source."""

    source: Path
    kind: str
    rows: tuple[TomogramRow, ...]
    notes: tuple[str, ...]
    """What was taken, skipped and left out."""

    @property
    def unreadable(self) -> list[TomogramRow]:
        """The tomograms that cannot be read."""
        return [row for row in self.rows if not row.is_readable]

    def as_dict(self) -> dict[str, Any]:
        """Return values that JSON can hold."""
        return {
            "source": str(self.source),
            "kind": self.kind,
            "notes": list(self.notes),
            "tomograms": [row.as_dict() for row in self.rows],
        }


def list_dataset(source: Path) -> DatasetReport:
    """Return the tomograms of a source and what their headers say.

    Parameters
    ----------
    source
        What ``tomograms`` of a run may be.

    Raises
    ------
    ConfigError
        The source is not understood, or names no tomogram.

    Examples
    --------
    >>> from pathlib import Path
    >>> [row.odd for row in list_dataset(Path("absent.mrc")).rows]
    [('cannot be read: absent.mrc: no such file; check the path',)]
    """
    found = read_dataset(source)
    with ThreadPoolExecutor(_READERS) as readers:
        rows = tuple(readers.map(_row, found.entries))
    rows = _with_repeats(rows)
    return DatasetReport(source, found.kind, rows, _notes(found, rows))


def _row(entry: TomogramEntry) -> TomogramRow:
    """Read one header."""
    try:
        header = peek(entry.path)
    except (DeepictError, OSError) as error:
        return TomogramRow(entry, odd=(f"cannot be read: {error}", *_absent(entry)))
    odd = (*_spacing_oddities(entry, header), *_other_warnings(header), *_absent(entry))
    return TomogramRow(entry, header.shape, header.voxel_spacing_angstrom, odd)


def _spacing_oddities(entry: TomogramEntry, header: VolumeDescription) -> Iterator[str]:
    written, given = header.voxel_spacing_angstrom, entry.voxel_spacing_angstrom
    if given is None and written is None:
        yield header.spacing_problem or "the file gives no voxel spacing"
    elif given is not None and written is not None and _differ(written, given):
        yield f"the header says {written:g} Å, the source {given:g} Å, which is used"


def _other_warnings(header: VolumeDescription) -> list[str]:
    """Return what can change results, but for the spacing, of which was spoken."""
    return [text for text in header.warnings if text != header.spacing_problem]


def _differ(one: float, two: float) -> bool:
    return abs(one / two - 1) > _TOLERANCE


def _absent(entry: TomogramEntry) -> list[str]:
    """Name further files that are not there; a cell that is no path (such as a number) is none."""
    named = [(name, path) for name, path in entry.files.items() if _is_file_name(path)]
    named += [(name, path) for name, paths in entry.picks.items() for path in paths]
    return [f"{name}: no such file: {path}" for name, path in named if not path.exists()]


def _is_file_name(path: Path) -> bool:
    return bool(kind_of(plain_name(path))) or path.suffix.lower() in _LIST_ENDINGS


def _with_repeats(rows: Sequence[TomogramRow]) -> tuple[TomogramRow, ...]:
    """Say where one file has two names."""
    real = [os.path.realpath(row.entry.path) for row in rows]
    first: dict[str, str] = {}
    for row, path in zip(rows, real, strict=True):
        first.setdefault(path, row.entry.name)
    return tuple(
        row
        if first[path] == row.entry.name
        else TomogramRow(
            row.entry,
            row.shape,
            row.header_spacing_angstrom,
            (*row.odd, f"the same file as {first[path]}"),
        )
        for row, path in zip(rows, real, strict=True)
    )


def _notes(found: Dataset, rows: Iterable[TomogramRow]) -> tuple[str, ...]:
    """Return what was said of the source, and of the tomograms together."""
    known = {r.entry.name: r.voxel_spacing_angstrom for r in rows if r.voxel_spacing_angstrom}
    middle = median_low(known.values()) if known else 1.0
    unlike = [f"{n} ({s:g} Å)" for n, s in known.items() if _differ(s, middle)]
    text = f"voxel spacings differ: most have about {middle:g} Å, not so {some_of(unlike)}"
    return (*found.warnings, *found.notes, *((text,) if unlike else ()))


def dataset_lines(report: DatasetReport) -> list[str]:
    """Return a report as a table for people, and below it what is odd.

    Examples
    --------
    >>> from pathlib import Path
    >>> dataset_lines(list_dataset(Path("absent.mrc")))[0]
    'absent.mrc: volume, 1 tomogram'
    """
    many = "" if len(report.rows) == 1 else "s"
    lines = [f"{report.source}: {report.kind}, {len(report.rows)} tomogram{many}"]
    lines += _aligned([("name", "shape (z y x)", "Å", "files", "picks", "path")]
                      + [_cells(row) for row in report.rows])  # fmt: skip
    by_text: dict[str, list[str]] = {}
    for row in report.rows:
        for text in row.odd:
            by_text.setdefault(text, []).append(row.entry.name)
    lines += [f"odd: {some_of(names)}: {text}" for text, names in by_text.items()]
    return [*lines, *report.notes]


def _cells(row: TomogramRow) -> tuple[str, ...]:
    spacing, header = row.voxel_spacing_angstrom, row.header_spacing_angstrom
    shown = "?" if spacing is None else f"{spacing:g}"
    if spacing is not None and header is not None and _differ(header, spacing):
        shown += f" (header {header:g})"
    return (
        row.entry.name,
        "?" if row.shape is None else " ".join(map(str, row.shape)),
        shown,
        " ".join(row.entry.files) or "-",
        " ".join(row.entry.picks) or "-",
        str(row.entry.path),
    )


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Return rows as lines whose columns stand below one another."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
