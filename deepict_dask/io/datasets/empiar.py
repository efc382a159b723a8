"""The layout of EMPIAR-10988 and of deposits like it, as `deepict-dask fetch` leaves them.

1. A set is a folder with ``tomograms/`` and, beside it, ``labels/`` or ``particle_lists/``. Sets
   are the source itself, or folders one or two levels below it (``DEF``, ``data/VPP``).
2. A label volume or a list belongs to the tomogram whose name is in its own:
   ``TS_026_membranes.mrc`` and ``180426_TS_026.labels.mrc`` to ``TS_026``. What follows the name
   says what it is. The longest name wins, so ``TS_1_b_fas.csv`` belongs to ``TS_1_b`` where that is
   a tomogram.
3. Sets below the source come before the names (``DEF_TS_026``), whether or not another set has a
   tomogram of that name: so a name does not change when more is fetched.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .choice import some_of
from .entry import Dataset, TomogramEntry
from .names import distinct_names, shortest_keys, stem_of
from .walk import Skipped, subfolders, walk_volumes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

__all__ = ["find_empiar_sets", "read_empiar_source"]

TOMOGRAMS, LABELS, LISTS = "tomograms", "labels", "particle_lists"
_LIST_ENDINGS = (".csv", ".txt", ".tsv", ".star", ".em", ".tbl", ".xml")


def find_empiar_sets(folder: Path) -> list[Path]:
    """Return the folders with ``tomograms/``, if labels or lists lie beside one of them.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "DEF/tomograms").mkdir(parents=True)
    >>> (folder / "DEF/labels").mkdir()
    >>> [found.name for found in find_empiar_sets(folder)]
    ['DEF']
    """
    places = [folder]
    sets: list[Path] = []
    for _ in range(3):
        sets = [place for place in places if (place / TOMOGRAMS).is_dir()]
        if sets:
            break
        places = [child for place in places for child in subfolders(place)]
    known = any((place / beside).is_dir() for place in sets for beside in (LABELS, LISTS))
    return sets if known else []


def read_empiar_source(source: Path, sets: list[Path]) -> Dataset:
    """Return the tomograms of a deposit.

    Parameters
    ----------
    source
        The folder the user gave.
    sets
        See `find_empiar_sets`.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("tomograms/TS_026.rec", "labels/TS_026_membranes.mrc"):
    ...     (folder / "DEF" / name).parent.mkdir(parents=True)
    ...     (folder / "DEF" / name).touch()
    >>> entry = read_empiar_source(folder, [folder / "DEF"]).entries[0]
    >>> entry.name, list(entry.files)
    ('DEF_TS_026', ['membranes'])
    """
    skipped = Skipped()
    entries: list[TomogramEntry] = []
    notes: list[str] = []
    for place in sets:
        found, said = _read_set(place, source, skipped)
        entries += found
        notes += said
    return Dataset("EMPIAR", tuple(entries), (*notes, *skipped.notes()), tuple(skipped.warnings()))


def _read_set(place: Path, source: Path, skipped: Skipped) -> tuple[list[TomogramEntry], list[str]]:
    """Return the tomograms of one set, and what there is to say about it."""
    paths = list(walk_volumes(place / TOMOGRAMS, skipped))
    names, renamed = distinct_names(paths, place / TOMOGRAMS)
    labels = list(walk_volumes(place / LABELS, skipped)) if (place / LABELS).is_dir() else []
    lists = sorted(p for p in (place / LISTS).rglob("*") if p.suffix.lower() in _LIST_ENDINGS)
    by_tomogram = _by_tomogram([*labels, *lists], names)
    prefix = [part for part in place.relative_to(source).parts if part != "data"]
    entries = []
    for name, path in zip(names, paths, strict=True):
        mine = by_tomogram.get(name, [])
        files = shortest_keys((what, p.name, p) for what, p in mine if p in labels)
        picks: dict[str, tuple[Path, ...]] = {}
        for what, p in mine:
            if p not in labels:
                picks[what] = (*picks.get(what, ()), p)
        entries.append(TomogramEntry("_".join([*prefix, name]), path, files, picks=picks))
    nobody = [path.name for _, path in by_tomogram.get(None, [])]
    said = f"{place}: of no tomogram that is here: {some_of(nobody)}" if nobody else ""
    return entries, [text for text in (renamed, said) if text]


def _by_tomogram(
    paths: Iterable[Path], names: Iterable[str]
) -> Mapping[str | None, list[tuple[str, Path]]]:
    """Return what each file is and the file, by the tomogram whose name is in its own."""
    longest = sorted(names, key=len, reverse=True)
    found: dict[str | None, list[tuple[str, Path]]] = {}
    for path in paths:
        owner, what = _owner(stem_of(path.with_suffix("") if _is_list(path) else path), longest)
        found.setdefault(owner, []).append((what, path))
    return found


def _is_list(path: Path) -> bool:
    return path.suffix.lower() in _LIST_ENDINGS


def _owner(stem: str, names: list[str]) -> tuple[str | None, str]:
    """Return the tomogram that a name is about, and what it says of it.

    Examples
    --------
    >>> _owner("TS_10_cyto_ribosomes", ["TS_10", "TS_1"])
    ('TS_10', 'cyto_ribosomes')
    >>> _owner("180426_TS_1.labels", ["TS_10", "TS_1"])
    ('TS_1', 'labels')
    """
    for name in names:
        match = re.search(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", stem)
        if match is not None:
            after, before = stem[match.end() :].strip("_.- "), stem[: match.start()].strip("_.- ")
            return name, after or before or "labels"
    return None, stem
