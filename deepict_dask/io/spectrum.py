"""Spectrum tables (.tsv): amplitudes by place, as DeePiCt has them, or by frequency in 1/Å.

* DeePiCt: columns ``freq`` (0, 1, 2, ...) and ``intensity``; its reader goes by the column's name.
* Ours: the same two columns and ``frequency_per_angstrom``, which makes it independent of the box.

Numbers are written as the shortest text that reads back to the same float, as pandas does.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import ConfigError, OutputExistsError, WorkFailedError
from ..core.spectrum import Spectrum

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["read_physical_spectrum", "read_spectrum", "write_spectrum"]

_PLACE, _INTENSITY, _FREQUENCY = "freq", "intensity", "frequency_per_angstrom"
_MAXIMUM_BYTES = 64 << 20
"""A table of more than this is another file (a tomogram given by mistake)."""


def read_spectrum(path: str | os.PathLike[str]) -> Spectrum:
    """Read a spectrum table, DeePiCt's or ours.

    Parameters
    ----------
    path
        A .tsv file with a header line; columns may come in any order.

    Returns
    -------
    spectrum
        With frequencies in 1/Å where the file has them.

    Raises
    ------
    ConfigError
        If the file is absent, is no such table, or holds a cell that is no amplitude.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = write_spectrum(Path(folder) / "a.tsv", Spectrum((2.0, 0.5), (0.01, 0.02)))
    ...     read_spectrum(path).frequency_per_angstrom
    (0.01, 0.02)
    """
    lines = _text(Path(path)).splitlines()
    header = [cell.strip() for cell in lines[0].split("\t")] if lines else []
    if _INTENSITY not in header:
        raise ConfigError(
            f"{path}: expected a spectrum table with a column {_INTENSITY!r}, found the columns "
            f"{', '.join(repr(cell[:40]) for cell in header[:6]) or 'none'}; make one with "
            "`deepict-dask spectrum`"
        )
    rows = list(_rows(path, lines, len(header)))
    if not rows:
        raise ConfigError(f"{path}: expected at least one amplitude, found a header only")
    intensity = _column(path, rows, header.index(_INTENSITY), _INTENSITY)
    frequency = None
    if _FREQUENCY in header:
        frequency = _column(path, rows, header.index(_FREQUENCY), _FREQUENCY)
    try:
        return Spectrum(intensity, frequency)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def read_physical_spectrum(path: str | os.PathLike[str]) -> Spectrum:
    """Read a spectrum table that must have frequencies in 1/Å.

    Raises
    ------
    ConfigError
        As `read_spectrum`, and if the table is DeePiCt's.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = write_spectrum(Path(folder) / "a.tsv", Spectrum((2.0, 0.5)))
    ...     read_physical_spectrum(path)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    deepict_dask.core.errors.ConfigError: ...: expected a column 'frequency_per_angstrom', found ...
    """
    spectrum = read_spectrum(path)
    if not spectrum.is_physical:
        raise ConfigError(
            f"{path}: expected a column {_FREQUENCY!r}, found a spectrum by place only, as "
            "DeePiCt writes it; pass --compat deepict, or make the target again with "
            "`deepict-dask spectrum`"
        )
    return spectrum


def write_spectrum(
    path: str | os.PathLike[str], spectrum: Spectrum, *, overwrite: bool = False
) -> Path:
    r"""Write a spectrum table; it appears whole or not at all.

    Parameters
    ----------
    path
        The .tsv file.
    spectrum
        With frequencies: three columns. Without: DeePiCt's two.
    overwrite
        Replace a file that is there.

    Raises
    ------
    OutputExistsError
        If the file is there and may not be replaced.
    WorkFailedError
        If the place cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_spectrum(Path(folder) / "a.tsv", Spectrum((2.0, 0.5))).read_text()
    'freq\tintensity\n0\t2.0\n1\t0.5\n'
    """
    path = Path(path)
    if not overwrite and path.exists():
        raise OutputExistsError(f"{path}: already exists; choose another name or --overwrite")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text("".join(_table(spectrum)), encoding="ascii", newline="\n")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise WorkFailedError(
            f"{path}: cannot be written ({error.strerror}); free some space or choose another place"
        ) from error
    return path


def _table(spectrum: Spectrum) -> Iterator[str]:
    """Yield the lines of a table."""
    frequency = spectrum.frequency_per_angstrom
    header = [_PLACE, _INTENSITY] + ([_FREQUENCY] if frequency is not None else [])
    yield "\t".join(header) + "\n"
    for place, intensity in enumerate(spectrum.intensity):
        cells = [str(place), repr(float(intensity))]
        if frequency is not None:
            cells.append(repr(float(frequency[place])))
        yield "\t".join(cells) + "\n"


def _text(path: Path) -> str:
    """Return the text of a small file."""
    try:
        size = path.stat().st_size
        if size > _MAXIMUM_BYTES:
            raise ConfigError(
                f"{path}: expected a spectrum table, found a file of {size / 2**20:.0f} MiB; "
                "measure a tomogram with `deepict-dask spectrum TOMOGRAM OUT.tsv` first"
            )
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: expected a spectrum table, found binary data; measure a tomogram with "
            "`deepict-dask spectrum TOMOGRAM OUT.tsv` first"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path}: expected a spectrum table, found: {error.strerror}") from error


def _rows(
    path: str | os.PathLike[str], lines: Sequence[str], n_columns: int
) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and cells of each row below the header."""
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        cells = line.split("\t")
        if len(cells) != n_columns:
            raise ConfigError(
                f"{path}, line {number}: expected {n_columns} cells separated by tabs, found "
                f"{len(cells)}; is the file cut short?"
            )
        yield number, cells


def _column(
    path: str | os.PathLike[str], rows: Sequence[tuple[int, list[str]]], column: int, name: str
) -> tuple[float, ...]:
    """Return one column as numbers."""
    values = []
    for number, cells in rows:
        try:
            values.append(float(cells[column]))
        except ValueError as error:
            raise ConfigError(
                f"{path}, line {number}: expected a number in column {name!r}, found "
                f"{cells[column][:40]!r}; correct the line"
            ) from error
    return tuple(values)
