"""Picks to a RELION particle STAR file, piece by piece.

What the positions mean is said in `deepict_dask.io.star`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..core.errors import PicksFormatError
from .orientation import ANGLES, has_angles, relion_angles
from .picks_table import TomogramFrame, checked_picks
from .star_optics import (
    GROUP,
    OPTICS,
    TILT_SERIES_PIXEL,
    completed_optics,
    gathered_optics,
    pixel_sizes,
)
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

__all__ = ["StarVersion", "centre_xyz", "dump_star", "star_pieces"]

Numbers = np.ndarray[Any, np.dtype[np.float64]]

CENTRED = tuple(f"rlnCenteredCoordinate{axis}Angst" for axis in "XYZ")
UNBINNED = tuple(f"rlnCoordinate{axis}" for axis in "XYZ")
ORIGINS_ANGSTROM = tuple(f"rlnOrigin{axis}Angst" for axis in "XYZ")
ORIGINS_PIXELS = tuple(f"rlnOrigin{axis}" for axis in "XYZ")
STAR_ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
TOMOGRAM_NAMES = ("rlnTomoName", "rlnMicrographName")
StarVersion = Literal["5", "4", "3.1", "3.0", "warp"]
"""RELION's version, or Warp's and M's names for RELION 4."""

_SCORE = "rlnAutopickFigureOfMerit"
_PARTICLE = "rlnTomoParticleName"
_WHOLE = {"class_number": "rlnClassNumber"}
_SPENT = {*CENTRED, *UNBINNED, *ORIGINS_ANGSTROM, *ORIGINS_PIXELS, *ANGLES, *_WHOLE, _SCORE,
          "z", "y", "x", "score", "tomogram_name"}  # fmt: skip
"""Columns that are written in another form."""
_DETECTOR = ("rlnDetectorPixelSize", "rlnMagnification")
_PIXELS_SAID: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "4": ((TILT_SERIES_PIXEL,), ()),
    "warp": ((TILT_SERIES_PIXEL,), ()),
    "3.1": (("rlnImagePixelSize",), (TILT_SERIES_PIXEL, *_DETECTOR)),
    "3.0": ((*_DETECTOR, "rlnPixelSize"), (TILT_SERIES_PIXEL, "rlnImagePixelSize")),
}
"""How a version says the size of its pixels, and what would be believed before that."""


def dump_star(table: pd.DataFrame, frame: TomogramFrame, *, version: StarVersion = "5") -> bytes:
    """Return the bytes of a particles STAR file.

    Parameters
    ----------
    table
        Picks. ``tomogram_name``, where it is a column, names each pick's tomogram; columns of
        optics go to the optics block.
    frame
        Spacing and, for RELION 5, shape of the tomogram; the name where the table has none.
        The tilt series' pixel size is written to the optics block if it is given: RELION divides
        by it, so that the voxel spacing of a binned tomogram must not stand in for it.
    version
        5: centred Å. Others: unbinned pixels, which need the tilt series' pixel size, here or in
        the table's columns of optics. 3.0 has one block and no optics, 3.1 names micrographs,
        warp has names that end in ``.tomostar``.

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
    names = picks.get(_PARTICLE)
    if names is not None and not (names.is_unique and names.fillna("").astype(bool).all()):
        picks = picks.drop(columns=_PARTICLE)  # of merged lists; particles are counted anew
    scored = picks.empty or bool(picks["score"].notna().any())
    return b"".join(star_pieces([picks], frame, version=version, scored=scored))


def star_pieces(
    tables: Iterable[pd.DataFrame],
    frame: TomogramFrame,
    *,
    version: StarVersion = "5",
    scored: bool = True,
) -> Iterator[bytes]:
    """Yield the bytes of the file that `dump_star` makes of tables joined in this order.

    Parameters
    ----------
    tables
        Picks: at least one table, which may have no rows, all with the same columns. Only one
        table may have columns of optics.
    frame, version
        As for `dump_star`.
    scored
        Whether the file has a column of scores; it is nan where a pick has none.

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
    writer = _Writer(frame, version, scored=scored)
    for table in tables:
        picks = writer.prepared(checked_picks(table))
        for start in range(0, max(1, len(picks)), PIECE_ROWS):
            piece = picks.iloc[start : start + PIECE_ROWS]
            columns = writer.columns(piece)
            if not writer.has_begun:
                yield writer.head(columns).encode()
            yield lines(list(columns.values()), len(piece), " ").encode()
    yield b"\n"


def centre_xyz(frame: TomogramFrame, where: object) -> Numbers:
    """Return the voxel that centred coordinates count from, on x, y, z.

    ``where`` names the file in messages: `SpacingError` and `PicksFormatError` where the frame
    lacks something.
    """
    half = np.array(frame.need_shape(where)[::-1], np.float64) / 2
    if frame.centre == "half":
        return half
    return half - frame.need_pixel_size(where) / frame.need_spacing(where)


class _Writer:
    """One STAR file: what its tables have in common, and how far it has come."""

    def __init__(self, frame: TomogramFrame, version: StarVersion, *, scored: bool) -> None:
        self.frame, self.version, self.scored = frame, version, scored
        self.seen: dict[str, int] = {}
        self.optics: pd.DataFrame | None = None
        self.has_begun = False

    def prepared(self, picks: pd.DataFrame) -> pd.DataFrame:
        """Turn positions into RELION's, and gather the optics of a table."""
        picks = completed_optics(picks)
        if self.version == "5":
            picks = picks.assign(**dict(zip(CENTRED, self._centred(picks).T, strict=True)))
        else:
            picks = self._unbinned(picks)
        if self.version == "3.0":
            return picks
        block, groups = gathered_optics(picks, self._own_optics())
        if self.optics is not None and not block.equals(self.optics):
            raise PicksFormatError(
                "STAR file: expected the same optics in all pieces of a list, found others; write "
                "it from one table"
            )
        self.optics = block
        gathered = [name for name in OPTICS if name in picks.columns]
        return picks.drop(columns=gathered).assign(**{GROUP: groups})

    def _own_optics(self) -> dict[str, float]:
        pixel = self.frame.tilt_series_pixel_size_angstrom
        if pixel is None:
            return {}
        return {"rlnImagePixelSize" if self.version == "3.1" else TILT_SERIES_PIXEL: pixel}

    def _centred(self, picks: pd.DataFrame) -> Numbers:
        """Return x, y, z in Å from the tomogram's centre."""
        spacing = self.frame.need_spacing("STAR file")
        return (picks[["x", "y", "z"]].to_numpy() - centre_xyz(self.frame, "STAR file")) * spacing

    def _unbinned(self, picks: pd.DataFrame) -> pd.DataFrame:
        """Add x, y, z in pixels of the tilt series, and the size of these once."""
        pixel = pixel_sizes(picks, self.frame, "STAR file")
        if pixel is None:
            pixel = np.full(len(picks), self.frame.need_pixel_size("STAR file"))
        scale = self.frame.need_spacing("STAR file") / pixel
        xyz = picks[["x", "y", "z"]].to_numpy() * scale[:, None]
        said, stale = _PIXELS_SAID[self.version]
        values = {name: 10_000 if name == "rlnMagnification" else pixel for name in said}
        picks = picks.drop(columns=list(stale), errors="ignore").assign(**values)
        return picks.assign(**dict(zip(UNBINNED, xyz.T, strict=True)))

    def head(self, columns: Iterable[str]) -> str:
        """Return what stands before the first particle."""
        self.has_begun = True
        if self.version == "3.0":
            return f"\n# version 30000\n\n{_head('', columns)}"
        comment = "# version 50001" if self.version == "5" else "# version 30001"
        optics = self.optics
        assert optics is not None  # `prepared` has gathered it
        cells = {str(name): _own_cells(optics[name]) for name in optics.columns}
        block = _head("optics", cells) + lines(list(cells.values()), len(optics), " ")
        return f"\n{comment}\n\n{block}\n{comment}\n\n{_head('particles', columns)}"

    def columns(self, picks: pd.DataFrame) -> dict[str, Cells]:
        """Return particles as columns of text; our own columns come last."""
        tomogram, particle = self._names(picks)
        named_by = "rlnMicrographName" if self.version.startswith("3") else "rlnTomoName"
        columns = {named_by: tomogram}
        for name in CENTRED if self.version == "5" else UNBINNED:
            columns[name] = fixed_cells(picks[name], 6)
        if self.version != "3.0":
            columns[GROUP] = whole_cells(picks[GROUP])
        if not self.version.startswith("3"):
            columns[_PARTICLE] = particle
        if self.scored:
            columns[_SCORE] = significant_cells(picks["score"])
        return columns | self._other_columns(picks, columns)

    def _other_columns(self, picks: pd.DataFrame, written: Iterable[str]) -> dict[str, Cells]:
        """Return angles, whole numbers and what RELION does not know."""
        columns: dict[str, Cells] = {}
        if has_angles(picks):
            angles = np.nan_to_num(relion_angles(picks))
            columns = {n: significant_cells(v) for n, v in zip(STAR_ANGLES, angles.T, strict=True)}
        for name, theirs in _WHOLE.items():
            if name in picks.columns:
                columns[theirs] = significant_cells(np.nan_to_num(picks[name].astype(np.float64)))
        known = {*_SPENT, *columns, *written}
        for name in picks.columns:
            if name not in known:
                columns[re.sub(r"\s+", "_", str(name))] = _own_cells(picks[name])
        return columns

    def _names(self, picks: pd.DataFrame) -> tuple[Cells, Cells]:
        """Return the tomogram's and the particle's name of each pick: NAME, and NAME/1, NAME/2.

        Particles are counted in each tomogram, where they have no names of their own.
        """
        if "tomogram_name" in picks.columns:
            tomograms = [self._named(name) for name in picks["tomogram_name"].fillna("")]
            own = _PARTICLE in picks.columns
            names = [str(name) for name in picks[_PARTICLE]] if own else self._counted(tomograms)
            return _quoted_words(tomograms), _quoted_words(names)
        name = self._named("")
        first = self.seen.get(name, 0) + 1
        self.seen[name] = first + len(picks) - 1
        before, _, after = constant(_quoted(f"{name}/0")).pattern.rpartition("0")
        numbered = Cells(f"{before}%d{after}", range(first, first + len(picks)))
        return constant(_quoted(name)), numbered

    def _named(self, name: Any) -> str:
        """Return a tomogram's name as this version has it; the frame's where a pick has none."""
        name = str(name) or self.frame.name
        if not name:
            raise PicksFormatError(
                "STAR file: each particle names its tomogram and no name is known; "
                "pass tomogram_name (--tomogram-name)"
            )
        if self.version == "warp" and not name.endswith(".tomostar"):
            return f"{name}.tomostar"
        return name

    def _counted(self, tomograms: Sequence[str]) -> list[str]:
        names = []
        for tomogram in tomograms:
            self.seen[tomogram] = self.seen.get(tomogram, 0) + 1
            names.append(f"{tomogram}/{self.seen[tomogram]}")
        return names


def _own_cells(values: pd.Series[Any]) -> Cells:
    """Return a column that RELION may not know, as text."""
    if isinstance(values.dtype, np.dtype) and values.dtype.kind in "iu":
        return whole_cells(values)
    if isinstance(values.dtype, np.dtype) and values.dtype.kind == "f":
        return significant_cells(values)
    return _quoted_words([_text(value) for value in values])


def _text(value: Any) -> str:
    """Return a cell; nothing where it is missing (None, NaN, NA)."""
    import pandas as pd

    if value is None or value is pd.NA:
        return ""
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else significant(float(value))
    return str(value)


def _quoted(cell: str) -> str:
    """Return a cell as one STAR word.

    Examples
    --------
    >>> _quoted("TS_1"), _quoted("80S ribosome"), _quoted(""), _quoted("a#b")
    ('TS_1', '"80S ribosome"', '""', '"a#b"')
    """
    if '"' in cell or "'" in cell or "\n" in cell or "\r" in cell:
        raise PicksFormatError(
            f"STAR file: expected names and texts without quotes and line breaks, found {cell!r}; "
            "rename it"
        )
    is_one_word = cell.split() == [cell] and cell[0] != "_" and "#" not in cell
    return cell if is_one_word else f'"{cell}"'


def _quoted_words(texts: Sequence[str]) -> Cells:
    """Return a column of STAR words."""
    quoted = {text: _quoted(text) for text in set(texts)}
    return words([quoted[text] for text in texts])


def _head(name: str, columns: Iterable[str]) -> str:
    """Return the lines before a block's rows."""
    header = "\n".join(f"_{column} #{number}" for number, column in enumerate(columns, 1))
    return f"data_{name}\n\nloop_\n{header}\n"
