"""The ``tomograms.star`` of RELION 5.

1. The block with ``rlnTomoName`` and a column ``rlnTomoReconstructedTomogram...`` is the table,
   whatever it is called. A tilt-series list, or Warp's list for matching, names no tomogram.
2. Reconstructions are labelled ``reconstructed``, ``denoised``, ``half1`` and ``half2``. A half is
   taken only where it is asked for.
3. The voxel spacing is ``rlnTomoTiltSeriesPixelSize`` times ``rlnTomoTomogramBinning``. It
   overrides the header.
4. Paths are relative to the RELION project: the first folder above the file in which one of the
   tomograms is there.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.errors import ConfigError, PicksFormatError
from ..metadata_table import cell_text
from ..star import read_star_blocks
from .choice import Candidate, choose
from .entry import Dataset, TomogramEntry

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["read_star_source"]

NAME = "rlnTomoName"
_TOMOGRAM = "rlnTomoReconstructedTomogram"
_LABELS = {
    _TOMOGRAM: "reconstructed",
    f"{_TOMOGRAM}Denoised": "denoised",
    f"{_TOMOGRAM}Half1": "half1",
    f"{_TOMOGRAM}Half2": "half2",
}
Row = dict[str, str]


def read_star_source(path: Path, wanted: str) -> Dataset:
    r"""Return the tomograms of a RELION 5 project.

    Parameters
    ----------
    path
        ``tomograms.star``.
    wanted
        ``reconstructed``, ``denoised``, ``half1`` or ``half2``; empty where there is one only.

    Raises
    ------
    ConfigError
        The file names no tomograms, or several of each and none was chosen.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "tomograms.star")
    >>> _ = path.write_text(
    ...     "data_global\nloop_\n_rlnTomoName #1\n_rlnTomoTiltSeriesPixelSize #2\n"
    ...     "_rlnTomoTomogramBinning #3\n_rlnTomoReconstructedTomogram #4\nTS_01 1.35 4 rec.mrc\n"
    ... )
    >>> read_star_source(path, "").entries[0].voxel_spacing_angstrom
    5.4
    """
    rows = _rows(path)
    base = _project_of(path, rows)
    runs = {}
    for row in rows:
        name = cell_text(row, NAME)
        if not name or name in runs:
            raise ConfigError(
                f"{path}: expected one row for each {NAME}, "
                f"found {'two of ' + name if name else 'one without a name'}"
            )
        runs[name] = list(_candidates(row, base))
    chosen = choose(path, runs, wanted)
    entries = tuple(
        TomogramEntry(
            name,
            taken.path,
            {other.label: other.path for other in runs[name] if other is not taken},
            taken.voxel_spacing_angstrom,
        )
        for name, taken in chosen.of_run.items()
    )
    return Dataset("RELION star", entries, chosen.notes, chosen.warnings)


def _rows(path: Path) -> list[Row]:
    """Return the rows of the block that names tomograms."""
    try:
        blocks = read_star_blocks(path)
    except (OSError, UnicodeDecodeError, PicksFormatError) as error:
        raise ConfigError(f"{path}: expected a tomograms.star, found: {error}") from None
    for block in blocks.values():
        if NAME in block.columns and any(column in block.columns for column in _LABELS):
            records = block.to_dict("records")
            return [{str(key): str(value) for key, value in row.items()} for row in records]
    columns = [str(column) for block in blocks.values() for column in block.columns]
    raise ConfigError(
        f"{path}: expected the columns {NAME} and {_TOMOGRAM}, "
        f"found {', '.join(dict.fromkeys(columns)) or 'none'}; give the tomograms.star of the job "
        "that reconstructs tomograms"
    )


def _project_of(path: Path, rows: list[Row]) -> Path:
    """Return the folder from which paths count."""
    above = path.absolute().parents
    cells = [cell for row in rows for column in _LABELS if (cell := cell_text(row, column))]
    for base in (*above, Path.cwd()):
        if any((base / cell).exists() for cell in cells):
            return base
    # Nothing is there: take the folder that the paths themselves point at, for messages
    tops = {Path(cell).parts[0] for cell in cells}
    return next((base for base in above if any((base / top).is_dir() for top in tops)), above[0])


def _candidates(row: Row, base: Path) -> Iterator[Candidate]:
    for column, label in _LABELS.items():
        cell = cell_text(row, column)
        if cell is not None:
            yield Candidate((label,), base / cell, _spacing(row), label.startswith("half"))


def _spacing(row: Row) -> float | None:
    """Return pixel size times binning in Å, None where one is missing or makes no sense."""
    try:
        pixel = float(row["rlnTomoTiltSeriesPixelSize"])
        spacing = pixel * float(row["rlnTomoTomogramBinning"])
    except (KeyError, ValueError):
        return None
    return float(f"{spacing:.6g}") if math.isfinite(spacing) and spacing > 0 else None
