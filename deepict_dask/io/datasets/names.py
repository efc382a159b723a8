"""Names of tomograms: of their folders of results, so each must be a folder's name and its own.

1. A file's name up to its first dot is the name of its tomogram, that of Warp's reconstructions up
   to the voxel size (``TS_1_10.00Apx.mrc``: ``TS_1``), as it calls the tilt series.
2. Files that would share one take the whole name without its ending (``a.b.mrc``: ``a.b``).
3. Those that still share one take the folders below the source before it (``DEF_TS_001``).
4. What is left is one tomogram twice, or cannot be told apart: an error.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.errors import ConfigError
from ..endings import ENDINGS, WARP_VOXEL_SIZE, plain_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .entry import TomogramEntry

__all__ = [
    "as_file_name",
    "check_names",
    "distinct_names",
    "is_folder_name",
    "lists_by_key",
    "short_name",
    "shortest_keys",
    "stays_inside",
    "stem_of",
]


_VOXEL_SIZE = re.compile(f"(?<=.){WARP_VOXEL_SIZE}")


def short_name(path: Path) -> str:
    """Return a file's name up to the first dot, or to the voxel size that Warp appends.

    Examples
    --------
    >>> short_name(Path("cells/TS_001.rec.gz")), short_name(Path("TS_001_10.00Apx.mrc"))
    ('TS_001', 'TS_001')
    """
    return _VOXEL_SIZE.split(path.name)[0].split(".")[0] or path.name


def stem_of(path: Path) -> str:
    """Return a file's name without the endings that name its format.

    Examples
    --------
    >>> stem_of(Path("cells/bin4_13.48A.MRC.gz"))
    'bin4_13.48A'
    """
    name = plain_name(path)
    endings = [end for ends in ENDINGS.values() for end in ends if name.lower().endswith(end)]
    return name[: len(name) - max(map(len, endings), default=0)] or name


def distinct_names(paths: Sequence[Path], root: Path) -> tuple[list[str], str]:
    """Name tomograms by their files, and say so where the short name was not enough.

    Parameters
    ----------
    paths
        Files or Zarr stores.
    root
        The folder below which they were found.

    Returns
    -------
    list of str
        One name for each path. Two may still be equal; see `check_names`.
    str
        What to tell the user; empty where every name is short.

    Examples
    --------
    >>> paths = [Path("d/a/t.mrc"), Path("d/b/t.mrc"), Path("d/b/s.mrc")]
    >>> distinct_names(paths, Path("d"))[0]
    ['a_t', 'b_t', 's']
    """

    def with_folders(path: Path) -> str:
        return "_".join([*_below(path, root), stem_of(path)])

    names = {path: short_name(path) for path in paths}
    for longer in (stem_of, with_folders):
        names |= {path: longer(path) for path in _sharing(names)}
    found = [names[path] for path in paths]
    return found, _renamed(paths, found)


def _below(path: Path, root: Path) -> tuple[str, ...]:
    return path.relative_to(root).parent.parts if path.is_relative_to(root) else ()


def _sharing(names: dict[Path, str]) -> list[Path]:
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path, name in names.items():
        by_name[name].append(path)
    return [path for paths in by_name.values() if len(paths) > 1 for path in paths]


def _renamed(paths: Sequence[Path], names: list[str]) -> str:
    longer = [name for path, name in zip(paths, names, strict=True) if name != short_name(path)]
    if not longer:
        return ""
    return f"{len(longer)} tomograms have longer names, to tell them apart, such as {longer[0]}"


def stays_inside(name: str) -> bool:
    """Say whether a name stays in the folder of results; DeePiCt's may be of folders in folders.

    Examples
    --------
    >>> stays_inside("180426/004"), stays_inside("../TS_001"), stays_inside("/TS_001")
    (True, False, False)
    """
    path = Path(name)
    inside = bool(path.parts) and not path.is_absolute() and ".." not in path.parts
    return inside and name.isprintable()


def is_folder_name(name: str) -> bool:
    """Say whether a name is that of one folder, in the folder of results.

    Examples
    --------
    >>> is_folder_name("TS_001"), is_folder_name("../TS_001"), is_folder_name("a/TS_001")
    (True, False, False)
    """
    return stays_inside(name) and len(Path(name).parts) == 1


def as_file_name(name: str) -> str:
    """Return a tomogram's name for a file: DeePiCt's may be of folders in folders.

    Examples
    --------
    >>> as_file_name("180426/004")
    '180426_004'
    """
    return name.replace("/", "_")


def check_names(source: object, entries: Iterable[TomogramEntry]) -> None:
    """Refuse names that are no folder's, and two tomograms of one name.

    Raises
    ------
    ConfigError
        With the name, and the files that share it.
    """
    by_name: dict[str, Path] = {}
    for entry in entries:
        if not is_folder_name(entry.name):
            raise ConfigError(
                f"{source}: expected names for folders, without /, found {entry.name!r} "
                f"({entry.path})"
            )
        if entry.name in by_name:
            raise ConfigError(
                f"{source}: expected one tomogram of each name, found two of {entry.name}: "
                f"{by_name[entry.name]} and {entry.path}"
            )
        by_name[entry.name] = entry.path


def shortest_keys(found: Iterable[tuple[str, str, Path]]) -> dict[str, Path]:
    """Return files by short names; those that share one are kept by their long names.

    Parameters
    ----------
    found
        Short name, long name and file. Of two with one long name the first is kept.

    Examples
    --------
    >>> files = [("fas", "ann_1_fas", Path("a")), ("fas", "bob_1_fas", Path("b"))]
    >>> sorted(shortest_keys(files))
    ['ann_1_fas', 'bob_1_fas']
    """
    by_long: dict[str, tuple[str, Path]] = {}
    for short, long, path in found:
        by_long.setdefault(long, (short, path))
    counts = Counter(short for short, _ in by_long.values())
    return {short if counts[short] == 1 else long: path for long, (short, path) in by_long.items()}


def lists_by_key(
    found: Mapping[str, Sequence[tuple[str, str, Path]]],
) -> dict[str, dict[str, tuple[Path, ...]]]:
    """Return each tomogram's particle lists by the names of their objects.

    Lists of one object are of several people or programs and may hold the same particles: where a
    tomogram has more than one, all tomograms have those of this object by their long names.

    Parameters
    ----------
    found
        By tomogram: short name, long name and file of each list.

    Examples
    --------
    >>> ann, bob = ("fas", "ann_1_fas", Path("a")), ("fas", "bob_1_fas", Path("b"))
    >>> lists_by_key({"TS_1": [ann, bob], "TS_2": [ann]})["TS_2"]
    {'ann_1_fas': (PosixPath('a'),)}
    >>> lists_by_key({"TS_1": [ann]})["TS_1"]
    {'fas': (PosixPath('a'),)}
    """
    several = {
        short
        for lists in found.values()
        for short, n in Counter(short for short, _, _ in lists).items()
        if n > 1
    }
    keyed: dict[str, dict[str, tuple[Path, ...]]] = {}
    for tomogram, lists in found.items():
        of_one = keyed[tomogram] = {}
        for short, long, path in lists:
            key = long if short in several else short
            of_one[key] = (*of_one.get(key, ()), path)
    return keyed
