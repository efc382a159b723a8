"""Which tomograms a run is about.

1. A file's ending says what it is: a table (``.csv``, ``.yaml``), a ``tomograms.star``, the config
   of a copick project (``.json``), or else a volume.
2. A folder is known by what is in it: a Zarr store, ``tomograms.star``, a copick project, a folder
   of the CryoET Data Portal, a deposit like EMPIAR-10988, or else any folder with volumes below it.
3. A name with ``*``, ``?`` or ``[`` that is no file's is a pattern; ``**`` stands for any folders.
4. ``SOURCE#LABEL`` chooses one of several tomograms of each run, or the column of a table.

Each kind is one file of `deepict_dask.io.datasets`.
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path

from ..core.errors import ConfigError
from .datasets.copick import find_copick_config, is_copick_folder, read_copick_source
from .datasets.empiar import find_empiar_sets, read_empiar_source
from .datasets.entry import Dataset, TomogramEntry
from .datasets.names import check_names, distinct_names, short_name
from .datasets.portal import find_portal_runs, read_portal_source
from .datasets.relion import read_star_source
from .datasets.tables import TABLE_ENDINGS, read_table_source
from .datasets.walk import Skipped, has_magic, match_volumes, split_pattern, walk_volumes
from .ome_metadata import is_zarr
from .volumes import is_volume_path, looks_like_volume

__all__ = ["Dataset", "TomogramEntry", "list_tomograms", "read_dataset"]

_log = logging.getLogger(__name__)
_DEPOSIT = re.compile(r"(?:EMPIAR-)?(\d{5})", re.IGNORECASE)
_LOOKED_FOR = (
    "a volume, a pattern (TS_*.rec), a table (.csv, .yaml), RELION's tomograms.star, or a folder: "
    "of copick (ExperimentRuns), of the CryoET Data Portal (RUN/Reconstructions/VoxelSpacing*), "
    "of EMPIAR (tomograms beside labels or particle_lists), or with volumes anywhere below it"
)


def list_tomograms(source: Path) -> list[TomogramEntry]:
    """Return the tomograms of a source; what was left out is logged.

    Raises
    ------
    ConfigError
        The source is not understood, names no tomogram, or two of one name.

    Examples
    --------
    >>> list_tomograms(Path("cells/TS_001.rec"))[0].name
    'TS_001'
    """
    found = read_dataset(source)
    for text in found.warnings:
        _log.warning("%s: %s", source, text)
    for text in found.notes:
        _log.info("%s: %s", source, text)
    return list(found.entries)


def read_dataset(source: Path) -> Dataset:
    """Return the tomograms of a source, its kind, and what was taken and left out.

    Parameters
    ----------
    source
        Any source; with ``#LABEL`` where it holds several tomograms of each run.

    Raises
    ------
    ConfigError
        The source is not understood, names no tomogram, or two of one name.

    Examples
    --------
    >>> read_dataset(Path("cells/TS_001.rec")).kind
    'volume'
    """
    place, wanted = _without_label(Path(source))
    found = _read(place, wanted)
    if not found.entries:
        said = "; ".join((*found.warnings, *found.notes))
        raise ConfigError(
            f"{source}: expected at least one tomogram, found none{said and ' (' + said + ')'}; "
            f"looked for {_LOOKED_FOR}"
        )
    check_names(source, found.entries)
    columns = found.columns.union(*(entry.files for entry in found.entries))
    entries = (replace(entry, kind=found.kind, columns=columns) for entry in found.entries)
    return replace(found, entries=tuple(entries), columns=columns)


def _without_label(source: Path) -> tuple[Path, str]:
    """Split ``PLACE#LABEL`` where the place is there; a name may hold the mark itself."""
    text = str(source)
    marks = [number for number, letter in enumerate(text) if letter == "#"]
    for mark in marks if not source.exists() else ():
        if Path(text[:mark]).exists():
            return Path(text[:mark]), text[mark + 1 :]
    return source, ""


def _read(place: Path, wanted: str) -> Dataset:
    ending = place.suffix.lower()
    if has_magic(str(place)) and not place.exists():
        return _from_pattern(place)
    if place.is_dir() and not is_zarr(place):
        return _from_folder(place, wanted)
    if ending in TABLE_ENDINGS:
        return read_table_source(place, wanted)
    if ending == ".star":
        return read_star_source(place, wanted)
    if ending == ".json":
        return read_copick_source(place, wanted)
    _refuse_label(place, wanted)
    if is_volume_path(place) or looks_like_volume(place):
        return Dataset("volume", (TomogramEntry(short_name(place), place),))
    what = "a file of another kind" if place.exists() else "nothing of that name"
    raise ConfigError(f"{place}: found {what}{_fetch_hint(place)}; looked for {_LOOKED_FOR}")


def _fetch_hint(place: Path) -> str:
    """Return how to get a deposit that is named by its number and is not here.

    Examples
    --------
    >>> _fetch_hint(Path("data/10988"))[:40]
    ' (of the deposit EMPIAR-10988: fetch it '
    >>> _fetch_hint(Path("TS_001.rec"))
    ''
    """
    deposit = _DEPOSIT.fullmatch(place.name)
    if deposit is None or place.exists():
        return ""
    name = f"EMPIAR-{deposit[1]}"
    return f" (of the deposit {name}: fetch it with `deepict-dask fetch {name} DEST`, give DEST)"


def _refuse_label(place: Path, wanted: str) -> None:
    if wanted:
        raise ConfigError(
            f"{place}#{wanted}: expected no choice for a source of this kind, found #{wanted}; "
            "it chooses among several tomograms of a run, or columns of a table"
        )


def _from_folder(folder: Path, wanted: str) -> Dataset:
    """Read a folder by what is in it."""
    if (folder / "tomograms.star").is_file():
        return read_star_source(folder / "tomograms.star", wanted)
    if is_copick_folder(folder):
        return read_copick_source(folder, wanted)
    config = find_copick_config(folder)
    if config is not None:
        return read_copick_source(config, wanted)
    runs = find_portal_runs(folder)
    if runs:
        return read_portal_source(folder, runs, wanted)
    _refuse_label(folder, wanted)
    sets = find_empiar_sets(folder)
    if sets:
        return read_empiar_source(folder, sets)
    skipped = Skipped()
    return _named("folder", list(walk_volumes(folder, skipped)), folder, skipped)


def _from_pattern(pattern: Path) -> Dataset:
    folder, parts = split_pattern(pattern)
    skipped = Skipped()
    return _named("pattern", match_volumes(folder, parts, skipped), folder, skipped)


def _named(kind: str, paths: list[Path], root: Path, skipped: Skipped) -> Dataset:
    names, renamed = distinct_names(paths, root)
    entries = tuple(TomogramEntry(*pair) for pair in zip(names, paths, strict=True))
    notes = [*([renamed] if renamed else []), *skipped.notes()]
    return Dataset(kind, entries, tuple(notes), tuple(skipped.warnings()))
