"""Particle lists in and out, whatever their format.

1. The ending names the format; a text table of 20 columns is a motl, whatever its ending says.
2. The format's own module turns a file into a picks table, or a table into bytes.
3. Bytes are written under a temporary name in the same folder, which then replaces the file, so
   that a reader sees the old list or the new one, never half of one.

A format is one line in `FORMATS`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import PicksFormatError
from ..core.geometry import as_vec
from .motl import (
    KEPT,
    N_MOTL_COLUMNS,
    dump_motl_csv,
    dump_motl_em,
    load_motl_em,
    motl_csv_pieces,
    motl_from_text,
)
from .orientation import ANGLES
from .picks_csv import dump_picks_csv, picks_csv_pieces, picks_from_text, read_list_text
from .picks_formats.copick import dump_copick, load_copick
from .picks_formats.deepetpicker import dump_box, dump_coords, load_box, load_coords
from .picks_formats.deepfinder import (
    dump_deepfinder_xlsx,
    dump_deepfinder_xml,
    load_deepfinder_xlsx,
    load_deepfinder_xml,
)
from .picks_formats.dynamo import dump_dynamo, load_dynamo
from .picks_formats.imod import dump_imod, load_imod
from .picks_formats.napari import dump_napari, load_napari
from .picks_formats.portal import dump_portal, load_portal
from .picks_numbers import loses_class_names
from .picks_table import TomogramFrame, of_tomogram, warn_of_strays
from .replace import replace_file
from .star import dump_star, load_star, star_pieces

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import pandas as pd

    from .picks_table import Centre
    from .star import StarVersion

__all__ = [
    "FORMATS",
    "PicksFormat",
    "columns_left_out",
    "read_picks",
    "write_pick_batches",
    "write_picks",
]


@dataclass(frozen=True)
class PicksFormat:
    """How one kind of particle list is read and written."""

    load: Callable[[Path, TomogramFrame], pd.DataFrame]
    dump: Callable[[pd.DataFrame, TomogramFrame], bytes]
    endings: tuple[str, ...] = ()
    """Endings that choose this format; a format without any is chosen by name only."""
    pieces: Callable[[Iterable[pd.DataFrame], TomogramFrame], Iterator[bytes]] | None = None
    """Turns tables in the order of the file into its bytes, where a file can grow by its end."""
    holds: frozenset[str] | None = None
    """Columns besides the position that it can hold; None where it holds any."""


def _load_text(path: Path, _frame: TomogramFrame) -> pd.DataFrame:
    """Read a picks.csv, a list of 3 or 4 columns, or a motl of 20."""
    table = read_list_text(path)
    motl = table.n_columns == N_MOTL_COLUMNS and not table.has_header
    return motl_from_text(table) if motl else picks_from_text(table)


def _star(version: StarVersion, *endings: str) -> PicksFormat:
    """Return a STAR format; all are read alike, by their columns."""
    return PicksFormat(
        load_star,
        functools.partial(dump_star, version=version),
        endings,
        functools.partial(star_pieces, version=version),
    )


_CLASSES = frozenset({"class_number", "class_name"})
_TOMOGRAMS = frozenset({"tomogram_number", "tomogram_name"})
_MOTL = frozenset(KEPT) | _CLASSES | _TOMOGRAMS | {"score", "particle_number"}

FORMATS: dict[str, PicksFormat] = {
    "csv": PicksFormat(
        _load_text,
        lambda t, _: dump_picks_csv(t),
        (".csv", ".txt", ".tsv"),
        lambda tables, _: picks_csv_pieces(tables),
    ),
    "motl": PicksFormat(
        _load_text,
        lambda t, _: dump_motl_csv(t),
        pieces=lambda tables, _: motl_csv_pieces(tables),
        holds=_MOTL | {*ANGLES},
    ),
    "motl-deepict": PicksFormat(
        _load_text,
        lambda t, _: dump_motl_csv(t, compat=True),
        pieces=lambda tables, _: motl_csv_pieces(tables, compat=True),
        holds=frozenset({"n_voxels"}),
    ),
    "em": PicksFormat(
        lambda p, _: load_motl_em(p),
        lambda t, _: dump_motl_em(t),
        (".em",),
        holds=_MOTL | {*ANGLES},
    ),
    "star": _star("5", ".star"),
    "relion4": _star("4"),
    "relion3.1": _star("3.1"),
    "relion3": _star("3.0"),
    "warp": _star("warp"),
    "dynamo": PicksFormat(
        load_dynamo,
        dump_dynamo,
        (".tbl",),
        holds=_CLASSES | _TOMOGRAMS | {"score", "particle_number", *ANGLES},
    ),
    "imod": PicksFormat(
        load_imod, dump_imod, (".mod",), holds=_CLASSES | {"imod_contour", "imod_size"}
    ),
    "copick": PicksFormat(load_copick, dump_copick, (".json",)),
    "portal": PicksFormat(load_portal, dump_portal, (".ndjson", ".jsonl")),
    "napari": PicksFormat(load_napari, dump_napari),
    "deepfinder": PicksFormat(load_deepfinder_xml, dump_deepfinder_xml, (".xml",)),
    "deepfinder-xlsx": PicksFormat(load_deepfinder_xlsx, dump_deepfinder_xlsx, (".xlsx",)),
    "coords": PicksFormat(load_coords, dump_coords, (".coords",), holds=_CLASSES | {"score"}),
    "box": PicksFormat(load_box, dump_box, (".box",), holds=frozenset()),
}
"""Every format by name."""

_BARE = (load_dynamo, load_portal, load_coords, load_box)
"""Formats without a header, in which a file without a byte looks like a list without picks."""


def columns_left_out(
    table: pd.DataFrame, path: str | os.PathLike[str], file_format: str | None = None
) -> list[str]:
    """Return the columns of a table that a list in this format cannot hold.

    Examples
    --------
    >>> from deepict_dask.io.picks_table import make_picks
    >>> columns_left_out(make_picks([[5, 88, 9]], [0.75], label=[1]), "a.box")
    ['score', 'label']
    """
    known = _format_of(Path(path), file_format)
    if known.holds is None:
        return []
    own = "dynamo_" if known.dump is dump_dynamo else None
    lost = {"class_name"} if known.dump is not dump_imod and loses_class_names(table) else set()
    return [
        str(name)
        for name in table.columns
        if name not in {"z", "y", "x", *(known.holds - lost)}
        and not (own and str(name).startswith(own))
        and table[name].notna().any()
    ]


def _format_of(path: Path, name: str | None) -> PicksFormat:
    """Return the format that was asked for, or the one of a file's name."""
    if name is None and path.suffix.lower() == ".csv" and path.name.lower().startswith("motl"):
        name = "motl"
    if name is None:
        ending = path.suffix.lower()
        name = next((key for key, kind in FORMATS.items() if ending in kind.endings), ending)
    if name in FORMATS:
        return FORMATS[name]
    if path.suffix.lower() != name:
        meant = next((key for key, kind in FORMATS.items() if f".{name}" in kind.endings), None)
        hint = "" if meant is None else f"; files that end in .{name} are of the format {meant}"
        raise PicksFormatError(
            f"{path}: expected the name of a format, found {name!r}; name one of these "
            f"({', '.join(FORMATS)}){hint}"
        )
    endings = sorted(ending for kind in FORMATS.values() for ending in kind.endings)
    raise PicksFormatError(
        f"{path}: expected a particle list ({', '.join(endings)}), found {name!r}; rename the "
        f"file or name its format ({', '.join(FORMATS)})"
    )


def read_picks(
    path: str | os.PathLike[str],
    *,
    voxel_spacing_angstrom: float | None = None,
    tomogram_shape: Sequence[int] | None = None,
    tomogram_name: str | None = None,
    tilt_series_pixel_size_angstrom: float | None = None,
    star_centre: Centre = "half",
    file_format: str | None = None,
) -> pd.DataFrame:
    r"""Read a particle list.

    Parameters
    ----------
    path
        ``.csv .txt .tsv`` (picks.csv; x,y,z; score,x,y,z; motl), ``.em`` (motl), ``.star``,
        ``.tbl`` (Dynamo), ``.mod`` (IMOD), ``.json`` (copick), ``.ndjson`` (CryoET Data Portal),
        ``.xml .xlsx`` (DeepFinder), ``.coords`` (DeepETPicker), ``.box`` (EMAN2).
    voxel_spacing_angstrom
        Edge of a voxel of the tomogram, Å. STAR files need it; copick's files say it.
    tomogram_shape
        Voxels of the tomogram, zyx. STAR files with centred coordinates need it; where it is
        given, picks outside the tomogram are counted in a warning.
    tomogram_name
        Keep only the particles of this tomogram, where the list names tomograms, whatever folder
        and ending it gives them.
    tilt_series_pixel_size_angstrom
        Size of the pixels in which uncentred STAR coordinates count, where the file is silent or
        wrong about it.
    star_centre
        Origin of centred coordinates; see `deepict_dask.io.star`.
    file_format
        A key of `FORMATS`, where the ending does not tell.

    Returns
    -------
    DataFrame
        ``z, y, x`` float64 voxels, 0-based; ``score`` float64, NaN where the list has none;
        other columns as the format gives them. In the file's order.

    Raises
    ------
    PicksFormatError
        Where there is no such file, or it is no particle list.
    SpacingError
        Where the voxel spacing is needed and unknown.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "true.csv")
    ...     _ = path.write_text("110,60,88\n")
    ...     read_picks(path)[["z", "y", "x"]].to_numpy().tolist()
    [[88.0, 60.0, 110.0]]
    """
    path = Path(path)
    if not path.is_file():
        raise PicksFormatError(f"{path}: expected a particle list, found no file; check the path")
    frame = TomogramFrame(
        voxel_spacing_angstrom=voxel_spacing_angstrom,
        shape=None if tomogram_shape is None else as_vec(tomogram_shape),
        name=tomogram_name,
        tilt_series_pixel_size_angstrom=tilt_series_pixel_size_angstrom,
        centre=star_centre,
    )
    known = _format_of(path, file_format)
    if known.load in _BARE and path.stat().st_size == 0:
        raise PicksFormatError(
            f"{path}: expected a particle list, found an empty file (0 bytes); make it again"
        )
    picks = known.load(path, frame)
    picks = of_tomogram(picks, frame.name, path)
    warn_of_strays(picks, frame, path)
    return picks


def write_picks(
    table: pd.DataFrame,
    path: str | os.PathLike[str],
    *,
    voxel_spacing_angstrom: float | None = None,
    tomogram_shape: Sequence[int] | None = None,
    tomogram_name: str | None = None,
    tilt_series_pixel_size_angstrom: float | None = None,
    star_centre: Centre = "half",
    file_format: str | None = None,
) -> None:
    """Write a particle list; a file of that name is replaced in one step.

    Parameters
    ----------
    table
        A picks table: ``z, y, x`` in voxels, optionally ``score`` and more.
    path
        ``.csv .txt .tsv`` (picks.csv), ``motl*.csv`` (motl), ``.em`` (motl), ``.star`` (RELION 5),
        or another ending of `FORMATS`.
    voxel_spacing_angstrom, tomogram_shape, tomogram_name
        Of the tomogram; STAR files need them (the name only if the table has no
        ``tomogram_name``), copick's files the spacing.
    tilt_series_pixel_size_angstrom
        Unbinned pixel size for the STAR file's optics; ``relion4`` needs it.
    star_centre
        Origin of centred coordinates; see `deepict_dask.io.star`.
    file_format
        A key of `FORMATS`: ``motl-deepict`` for DeePiCt's integers, ``relion4``, ``relion3.1``,
        ``relion3`` and ``warp`` for STAR files in pixels.

    Raises
    ------
    PicksFormatError, SpacingError
        Where the format is unknown or lacks something; nothing is written.

    Examples
    --------
    >>> import tempfile
    >>> from deepict_dask.io.picks_table import make_picks
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "picks.csv")
    ...     write_picks(make_picks([[5, 88, 9]], [0.75]), path)
    ...     path.read_text().splitlines()
    ['score,x,y,z', '0.75,9.000,88.000,5.000']
    """
    path = _in_a_folder(Path(path))
    frame = TomogramFrame(
        voxel_spacing_angstrom=voxel_spacing_angstrom,
        shape=None if tomogram_shape is None else as_vec(tomogram_shape),
        name=tomogram_name,
        tilt_series_pixel_size_angstrom=tilt_series_pixel_size_angstrom,
        centre=star_centre,
    )
    known = _format_of(path, file_format)
    content = known.dump(table, frame)
    if not content and known.load in _BARE:
        content = b"\n"  # a list without picks; one without a byte is refused as cut short
    replace_file(path, content)


def _in_a_folder(path: Path) -> Path:
    """Return a path whose folder is there."""
    if not path.parent.is_dir():
        raise PicksFormatError(
            f"{path}: expected a folder to write into, found none; create {path.parent}"
        )
    return path


def write_pick_batches(
    tables: Iterable[pd.DataFrame],
    path: str | os.PathLike[str],
    frame: TomogramFrame,
    *,
    file_format: str | None = None,
) -> None:
    """Write a particle list that need not fit the memory: the bytes of `write_picks`.

    The file grows as tables come, so it belongs into a folder that nobody reads yet.

    Parameters
    ----------
    tables
        Picks tables of the same columns, at least one, which may have no rows. In the order of the
        file: for picks.csv by falling score, ties by label; for motl and STAR files by label. Each
        pick has a score.
    path
        As for `write_picks`, but of a format with ``pieces``: text, motl, STAR.
    frame
        The tomogram; STAR files need it.
    file_format
        A key of `FORMATS`.

    Raises
    ------
    PicksFormatError, SpacingError
        Where the format is unknown or lacks something.

    Examples
    --------
    >>> import tempfile
    >>> from deepict_dask.io.picks_table import make_picks
    >>> tables = [make_picks([[5, 88, 9]], [0.75]), make_picks([[1, 2, 3]], [0.5])]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "picks.csv")
    ...     write_pick_batches(tables, path, TomogramFrame())
    ...     path.read_text().splitlines()
    ['score,x,y,z', '0.75,9.000,88.000,5.000', '0.5,3.000,2.000,1.000']
    """
    path = _in_a_folder(Path(path))
    pieces = _format_of(path, file_format).pieces
    if pieces is None:
        raise PicksFormatError(
            f"{path}: expected a list that can grow by its end (csv, motl, star), found another; "
            "write it from one table"
        )
    with path.open("wb") as file:
        file.writelines(pieces(tables, frame))
