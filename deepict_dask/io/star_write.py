"""Picks to a RELION particle STAR file, piece by piece.

What the positions mean is said in `deepict_dask.io.star`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..core.errors import PicksFormatError
from .picks_table import TomogramFrame, checked_picks
from .text_rows import (
    PIECE_ROWS,
    Cells,
    constant,
    fixed_cells,
    lines,
    significant_cells,
    whole_cells,
    words,
)
from .text_table import significant

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import pandas as pd

__all__ = ["centre_xyz", "dump_star", "star_pieces"]

Numbers = np.ndarray[Any, np.dtype[np.float64]]

CENTRED = tuple(f"rlnCenteredCoordinate{axis}Angst" for axis in "XYZ")
UNBINNED = tuple(f"rlnCoordinate{axis}" for axis in "XYZ")
ORIGINS_ANGSTROM = tuple(f"rlnOrigin{axis}Angst" for axis in "XYZ")
ORIGINS_PIXELS = tuple(f"rlnOrigin{axis}" for axis in "XYZ")
TOMOGRAM_NAMES = ("rlnTomoName", "rlnMicrographName")
SCORES = ("rlnAutopickFigureOfMerit", "rlnLCCmax", "ptmLCCmax")
SPENT = {*CENTRED, *UNBINNED, *ORIGINS_ANGSTROM, *ORIGINS_PIXELS, *TOMOGRAM_NAMES, *SCORES}
"""Columns that the picks table holds in another form."""


def dump_star(table: pd.DataFrame, frame: TomogramFrame, *, version: Literal[4, 5] = 5) -> bytes:
    """Return the bytes of a particles STAR file with an optics and a particles block.

    Parameters
    ----------
    table
        Picks. ``tomogram_name``, where it is a column, names each pick's tomogram.
    frame
        Spacing and, for RELION 5, shape of the tomogram; the name where the table has none.
        The tilt series' pixel size is written to the optics block if it is given: RELION divides
        by it, so that the voxel spacing of a binned tomogram must not stand in for it.
    version
        5: centred Å. 4: unbinned pixels, which need the tilt series' pixel size.

    Raises
    ------
    SpacingError, PicksFormatError
        Where the frame lacks what the positions need; says what to pass.

    Examples
    --------
    >>> from deepict_dask.io.picks_table import make_picks
    >>> frame = TomogramFrame(voxel_spacing_angstrom=10.0, shape=(100, 200, 200), name="TS_01")
    >>> text = dump_star(make_picks([[50, 100, 101]], [0.75]), frame).decode()
    >>> text.splitlines()[-2].split()
    ['TS_01', '10.000000', '0.000000', '0.000000', '1', 'TS_01/1', '0.75']
    """
    picks = checked_picks(table)
    scored = bool(picks["score"].notna().all())
    return b"".join(star_pieces([picks], frame, version=version, scored=scored))


def star_pieces(
    tables: Iterable[pd.DataFrame],
    frame: TomogramFrame,
    *,
    version: Literal[4, 5] = 5,
    scored: bool = True,
) -> Iterator[bytes]:
    """Yield the bytes of the file that `dump_star` makes of tables joined in this order.

    Parameters
    ----------
    tables
        Picks: at least one table, which may have no rows, all with the same columns.
    frame, version
        As for `dump_star`.
    scored
        Whether the file has a column of scores, which every pick must have then.

    Raises
    ------
    SpacingError, PicksFormatError
        As for `dump_star`.

    Examples
    --------
    >>> from deepict_dask.io.picks_table import make_picks
    >>> frame = TomogramFrame(voxel_spacing_angstrom=10.0, shape=(100, 200, 200), name="TS_01")
    >>> tables = [make_picks([[50, 100, 101]], [0.75]), make_picks([[50, 100, 99]], [0.5])]
    >>> text = b"".join(star_pieces(tables, frame)).decode()
    >>> [line.split()[-2:] for line in text.splitlines()[-3:-1]]
    [['TS_01/1', '0.75'], ['TS_01/2', '0.5']]
    """
    comment = "# version 50001" if version == 5 else "# version 30001"
    seen: dict[str, int] = {}
    is_first = True
    for table in tables:
        picks = checked_picks(table)
        for start in range(0, max(1, len(picks)), PIECE_ROWS):
            piece = picks.iloc[start : start + PIECE_ROWS]
            columns = _particle_columns(piece, frame, version, seen, scored=scored)
            if is_first:
                optics = _optics_columns(frame)
                head = _head("optics", optics) + lines(list(optics.values()), 1, " ")
                head = f"\n{comment}\n\n{head}\n{comment}\n\n{_head('particles', columns)}"
                yield head.encode()
                is_first = False
            yield lines(list(columns.values()), len(piece), " ").encode()
    yield b"\n"


def _centred_from(picks: pd.DataFrame, frame: TomogramFrame) -> Numbers:
    """Return x, y, z in Å from the tomogram's centre."""
    spacing = frame.need_spacing("STAR file")
    return (picks[["x", "y", "z"]].to_numpy() - centre_xyz(frame, "STAR file")) * spacing


def _unbinned_from(picks: pd.DataFrame, frame: TomogramFrame) -> Numbers:
    """Return x, y, z in unbinned pixels."""
    scale = frame.need_spacing("STAR file") / frame.need_pixel_size("STAR file")
    return picks[["x", "y", "z"]].to_numpy() * scale


def centre_xyz(frame: TomogramFrame, where: object) -> Numbers:
    """Return the voxel that centred coordinates count from, on x, y, z.

    ``where`` names the file in messages: `SpacingError` and `PicksFormatError` where the frame
    lacks something.
    """
    half = np.array(frame.need_shape(where)[::-1], np.float64) / 2
    if frame.centre == "half":
        return half
    return half - frame.need_pixel_size(where) / frame.need_spacing(where)


def _particle_columns(
    picks: pd.DataFrame,
    frame: TomogramFrame,
    version: Literal[4, 5],
    seen: dict[str, int],
    *,
    scored: bool,
) -> dict[str, Cells]:
    """Return the particles block as columns of text; our own columns come last.

    ``seen`` counts the particles of each tomogram so far and is brought up to date.
    """
    xyz = _centred_from(picks, frame) if version == 5 else _unbinned_from(picks, frame)
    tomogram, particle = _names_of(picks, frame, seen)
    columns = {"rlnTomoName": tomogram}
    for name, values in zip(CENTRED if version == 5 else UNBINNED, xyz.T, strict=True):
        columns[name] = fixed_cells(values, 6)
    columns["rlnOpticsGroup"] = constant("1")
    columns["rlnTomoParticleName"] = particle
    if scored:
        columns["rlnAutopickFigureOfMerit"] = significant_cells(picks["score"])
    for name in picks.columns:
        if name not in {"z", "y", "x", "score", "tomogram_name", *SPENT}:
            columns[re.sub(r"\s+", "_", name)] = _own_cells(picks[name])
    return columns


def _names_of(
    picks: pd.DataFrame, frame: TomogramFrame, seen: dict[str, int]
) -> tuple[Cells, Cells]:
    """Return the tomogram's and the particle's name of each pick: NAME, and NAME/1, NAME/2, ...

    Particles are counted in each tomogram.
    """
    if "tomogram_name" in picks.columns:
        tomograms = [str(name) for name in picks["tomogram_name"]]
        return _quoted_words(tomograms), _quoted_words(_particle_names(tomograms, seen))
    if frame.name is None:
        raise PicksFormatError(
            "STAR file: each particle names its tomogram and no name is known; "
            "pass tomogram_name (--tomogram-name)"
        )
    first = seen.get(frame.name, 0) + 1
    seen[frame.name] = first + len(picks) - 1
    before, _, after = constant(_quoted(f"{frame.name}/0")).pattern.rpartition("0")
    numbered = Cells(f"{before}%d{after}", range(first, first + len(picks)))
    return constant(_quoted(frame.name)), numbered


def _particle_names(tomograms: Sequence[str], seen: dict[str, int]) -> list[str]:
    names = []
    for tomogram in tomograms:
        seen[tomogram] = seen.get(tomogram, 0) + 1
        names.append(f"{tomogram}/{seen[tomogram]}")
    return names


def _optics_columns(frame: TomogramFrame) -> dict[str, Cells]:
    """Return the optics block: one group."""
    columns = {
        "rlnOpticsGroup": constant("1"),
        "rlnOpticsGroupName": constant("opticsGroup1"),
    }
    if frame.tilt_series_pixel_size_angstrom is not None:
        pixel = significant(frame.tilt_series_pixel_size_angstrom)
        columns["rlnTomoTiltSeriesPixelSize"] = constant(pixel)
    return columns


def _own_cells(values: pd.Series[Any]) -> Cells:
    """Return a column that RELION does not know, as text."""
    if isinstance(values.dtype, np.dtype) and values.dtype.kind in "iu":
        return whole_cells(values)
    if isinstance(values.dtype, np.dtype) and values.dtype.kind == "f":
        return significant_cells(values)
    return _quoted_words([_text(value) for value in values])


def _text(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return significant(float(value))
    return str(value)


def _quoted(cell: str) -> str:
    """Return a cell as one STAR word."""
    is_one_word = cell.split() == [cell] and cell[0] not in "#_'"
    return cell if is_one_word else f'"{cell}"'


def _quoted_words(texts: Sequence[str]) -> Cells:
    """Return a column of STAR words."""
    quoted = {text: _quoted(text) for text in set(texts)}
    return words([quoted[text] for text in texts])


def _head(name: str, columns: Iterable[str]) -> str:
    """Return the lines before a block's rows."""
    header = "\n".join(f"_{column} #{number}" for number, column in enumerate(columns, 1))
    return f"data_{name}\n\nloop_\n{header}\n"
