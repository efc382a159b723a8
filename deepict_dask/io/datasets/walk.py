"""Volumes below a folder, or those that a pattern names.

1. Folders are gone through in the order of their names. A Zarr store is one volume; what is inside
   it is not looked at. Links are followed, each folder is visited once.
2. ``*``, ``?`` and ``[...]`` stand for parts of one name, ``**`` for any folders but linked ones.
3. Not taken, and said: other files, tilt series by their endings (a pattern may name them), hidden
   names, folders of results and unfinished outputs.
4. A link to nothing counts as the volume its name promises: opening it will say what is wrong.
"""

from __future__ import annotations

import os
from collections import defaultdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from ..endings import kind_of, plain_name
from ..ome_metadata import is_zarr

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Skipped", "has_magic", "match_volumes", "split_pattern", "subfolders", "walk_volumes"]

STACKS = (".st", ".mrcs", ".ali", ".preali")
_CLOSED = "folders that may not be read"
_RECORD = "stages.json"
"""Lies in every folder of a run's results."""


class Skipped:
    """What was found and not taken, by the reason.

    Examples
    --------
    >>> skipped = Skipped()
    >>> skipped.add("*.txt", Path("d/notes.txt"))
    >>> skipped.add("*.txt", Path("d/more.txt"))
    >>> skipped.notes()
    ['skipped: 2 *.txt (such as d/notes.txt)']
    """

    def __init__(self) -> None:
        self._found: dict[str, list[Path]] = defaultdict(list)
        self._warned: set[str] = set()

    def add(self, reason: str, path: Path, *, warn: bool = False) -> None:
        """Note one path."""
        self._found[reason].append(path)
        if warn:
            self._warned.add(reason)

    def notes(self) -> list[str]:
        """Return one line per reason."""
        return [self._line(reason) for reason in self._found if reason not in self._warned]

    def warnings(self) -> list[str]:
        """Return one line per reason, of what may have been meant."""
        return [self._line(reason) for reason in self._found if reason in self._warned]

    def _line(self, reason: str) -> str:
        paths = self._found[reason]
        return f"skipped: {len(paths)} {reason} (such as {paths[0]})"


def walk_volumes(folder: Path, skipped: Skipped) -> Iterator[Path]:
    """Yield the volumes below a folder, by name.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "a.rec").touch()
    >>> [path.name for path in walk_volumes(folder, Skipped())]
    ['a.rec']
    """
    for path in _walk(folder, skipped):
        if path.name.lower().endswith(STACKS):
            reason = f"tilt series ({' '.join(STACKS)}; name them by a pattern to take them)"
            skipped.add(reason, path, warn=True)
        elif _is_volume(path):
            yield path
        else:
            skipped.add(f"*{path.suffix.lower()}" if path.suffix else "other files", path)


def _walk(folder: Path, skipped: Skipped) -> Iterator[Path]:
    """Yield files and Zarr stores, those of a folder before those of the folders in it."""
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        known = place.stat()
        if (known.st_dev, known.st_ino) in seen:
            continue
        seen.add((known.st_dev, known.st_ino))
        folders, names = _contents(place, skipped)
        waiting += reversed(folders)
        yield from names


def _contents(place: Path, skipped: Skipped) -> tuple[list[Path], list[Path]]:
    """Return the folders to go into, and the files and Zarr stores."""
    folders: list[Path] = []
    names: list[Path] = []
    for item in _items(place, skipped):
        path = Path(item.path)
        if item.name.startswith("."):
            skipped.add("hidden names", path)
        elif item.name.endswith((".partial", ".part")):
            skipped.add("unfinished outputs", path, warn=True)
        else:
            try:
                _sort_in(item, folders, names, skipped)
            except PermissionError:  # of a folder that may be seen, but not entered
                skipped.add(_CLOSED, path, warn=True)
    return folders, names


def _sort_in(
    item: os.DirEntry[str], folders: list[Path], names: list[Path], skipped: Skipped
) -> None:
    """Add a folder to go into, or a file or Zarr store."""
    path = Path(item.path)
    if not item.is_dir() or is_zarr(path) or kind_of(path) == "zarr":
        names.append(path)
    elif (path / _RECORD).is_file():
        skipped.add("folders of results", path)
    else:
        folders.append(path)


def _items(place: Path, skipped: Skipped) -> list[os.DirEntry[str]]:
    try:
        return sorted(os.scandir(place), key=lambda item: item.name)
    except PermissionError:
        skipped.add(_CLOSED, place, warn=True)
        return []


def subfolders(place: Path) -> list[Path]:
    """Return the folders in a folder by name, without hidden ones and Zarr stores."""
    return _contents(place, Skipped())[0]


def _is_volume(path: Path) -> bool:
    return kind_of(plain_name(path)) != "" or is_zarr(path)


def has_magic(text: str) -> bool:
    """Say whether a text is a pattern.

    Examples
    --------
    >>> has_magic("TS_*.rec"), has_magic("TS_001.rec")
    (True, False)
    """
    return any(mark in text for mark in "*?[")


def split_pattern(pattern: Path) -> tuple[Path, tuple[str, ...]]:
    """Return the folder before the first name that is a pattern, and the names from there.

    Examples
    --------
    >>> split_pattern(Path("cells/*/TS_*.rec"))
    (PosixPath('cells'), ('*', 'TS_*.rec'))
    """
    parts = pattern.parts
    first = next((i for i, part in enumerate(parts) if has_magic(part)), len(parts))
    return Path(*parts[:first]), parts[first:]


def match_volumes(folder: Path, parts: Sequence[str], skipped: Skipped) -> list[Path]:
    """Return the volumes that a pattern names, each once.

    Parameters
    ----------
    folder
        Where the pattern starts.
    parts
        Its names, one for each folder on the way.
    skipped
        Receives what matches and is no volume.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "DEF").mkdir()
    >>> (folder / "DEF" / "a.rec").touch()
    >>> [path.name for path in match_volumes(folder, ("**", "*.rec"), Skipped())]
    ['a.rec']
    """
    volumes = []
    for path in dict.fromkeys(_matches(folder, tuple(parts))):
        if _is_volume(path) and not path.name.startswith("._"):
            volumes.append(path)
        else:
            skipped.add("matches that are no volumes", path)
    return volumes


def _matches(folder: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    if not folder.is_dir() or is_zarr(folder):
        return
    first, rest = parts[0], parts[1:]
    if first == "**":
        yield from _matches(folder, rest or ("*",))
        for child in subfolders(folder):
            if not child.is_symlink():  # a link upwards would never end
                yield from _matches(child, parts)
        return
    for item in _items(folder, Skipped()):
        if fnmatchcase(item.name, first) and item.name.startswith(".") <= first.startswith("."):
            path = Path(item.path)
            yield from _matches(path, rest) if rest else (path,)
