"""What is in a file or a Zarr store: a digest of every byte, and whether it can all be read.

How is an unchanged tomogram known without reading it again?

1. The digest covers the whole content: of a file its bytes, of a folder the names and the bytes of
   its files. Names of the place, dates and owners do not count: a copy, or a file that was touched,
   has the same digest, and one changed byte has another. To a level of an OME-Zarr image belong the
   metadata of its group, which hold its spacing and class names.
2. What was read is remembered with a stamp: sizes, times of change and inodes. A program can set
   back the time of modification, but not the time of the last change of the inode (ctime). As long
   as the stamp is the same, the remembered digest is returned.
3. A file that changed within two seconds before it was read is not remembered: another change
   within the same tick of the file system's clock would leave the stamp as it is.

Each path has one small file in ``$XDG_CACHE_HOME/deepict-dask/content`` that is replaced in one
step, so that any number of programs may write at once; a cache that cannot be written costs reading
again and nothing else.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import VolumeFormatError
from ..io.ome_metadata import group_files
from ..io.zarr_check import find_damage

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["damage_in", "fingerprint", "note_whole"]

_PIECE_BYTES = 1 << 20
_READERS = 4
"""Files of a store that are read at once: network storage answers several as fast as one."""
SETTLED_NS = 2_000_000_000
"""How long ago the last change must be for a stamp to tell the next one."""


def fingerprint(path: str | Path) -> str:
    """Return a digest of the content of a file or a folder, such as a Zarr store.

    Parameters
    ----------
    path
        A file or a folder. A file is read in pieces of 1 MiB, and not at all where the same file
        was read before and has not changed since.

    Returns
    -------
    str
        A hex digest (SHA-256): equal for equal content wherever it lies and however old it is.

    Raises
    ------
    VolumeFormatError
        There is nothing at the path, or it cannot be read.

    Examples
    --------
    >>> import os, pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "a"
    >>> _ = path.write_bytes(b"one")
    >>> before = fingerprint(path)
    >>> os.utime(path, (0, 0))
    >>> fingerprint(path) == before
    True
    >>> _ = path.write_bytes(b"two")
    >>> fingerprint(path) == before
    False
    """
    path = Path(path).absolute()
    if not path.exists():
        raise VolumeFormatError(f"{path}: expected a file, found nothing; check the path")
    try:
        return _remembered("digest", path, _digest)
    except OSError as error:
        raise VolumeFormatError(
            f"{path}: expected a file that can be read, found: {error.strerror} "
            f"({error.filename or path}); check its permissions and the disk"
        ) from error


def damage_in(path: str | Path) -> str:
    """Return what is wrong with a finished output's Zarr stores; nothing where they are whole.

    Every chunk must be there and decode to what its checksum says. A store that was found whole
    and has not changed since is not read again. Other files count as whole.

    Parameters
    ----------
    path
        A store (``.zarr``), or a folder of results that may hold some.

    Examples
    --------
    >>> import tempfile
    >>> damage_in(tempfile.mkdtemp())
    ''
    """
    path = Path(path).absolute()
    if path.suffix == ".zarr" and path.is_dir():
        return _remembered("damage", path, find_damage)
    return next(filter(None, map(damage_in, sorted(path.glob("*.zarr")))), "")


def note_whole(path: str | Path) -> None:
    """Remember that a store was written whole, chunk by chunk: it need not be read for that."""
    path = Path(path).absolute()
    with suppress(OSError):
        _remember("damage", path, _stamp(path)[0], "")


def _remembered(kind: str, path: Path, find: Callable[[Path], str]) -> str:
    """Return what was found when the path had the same stamp, or find it now."""
    stamp = None
    with suppress(FileNotFoundError):
        stamp, _ = _stamp(path)
        with suppress(OSError, ValueError):
            known, value = _note_of(kind, path).read_text().split("\n", 1)
            if known == stamp:
                return value
    started = time.time_ns()
    found = find(path)
    with suppress(FileNotFoundError):
        now, changed = _stamp(path)
        if now == stamp and changed < started - SETTLED_NS:
            _remember(kind, path, now, found)
    return found


def _remember(kind: str, path: Path, stamp: str, value: str) -> None:
    """Replace the note of a path in one step; without a place for it there is none."""
    note = _note_of(kind, path)
    temporary = note.with_name(f"{note.name}.{uuid.uuid4().hex}")
    with suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(f"{stamp}\n{value}")
            temporary.replace(note)
        finally:
            temporary.unlink(missing_ok=True)


def _note_of(kind: str, path: Path) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    name = hashlib.sha256(f"{kind}\n{path}".encode(errors="surrogateescape")).hexdigest()[:32]
    return Path(base, "deepict-dask", "content", name)


def _files(path: Path) -> list[Path]:
    """Return the files of a folder in the order of their names, or the file itself."""
    if not path.is_dir():
        return [path]
    return sorted(p for p in path.rglob("*") if p.is_file()) + group_files(path)


def _name_in(path: Path, file: Path) -> bytes:
    """Return a file's name, wherever the path lies."""
    return os.path.relpath(file, path).encode(errors="surrogateescape")


def _stamp(path: Path) -> tuple[str, int]:
    """Return a digest of names, sizes, times and inodes, and when the last file changed (ns)."""
    digest, last = hashlib.sha256(), 0
    for file in _files(path):
        found = file.stat()
        numbers = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
        digest.update(_name_in(path, file) + f"\0{numbers}\n".encode())
        last = max(last, found.st_mtime_ns, found.st_ctime_ns)
    return digest.hexdigest(), last


def _digest(path: Path) -> str:
    """Read everything."""
    if not path.is_dir():
        return _digest_of_file(path)
    digest, files = hashlib.sha256(b"folder\n"), _files(path)
    with ThreadPoolExecutor(_READERS) as pool:
        for file, content in zip(files, pool.map(_digest_of_file, files), strict=True):
            digest.update(_name_in(path, file) + f"\0{content}\n".encode())
    return digest.hexdigest()


def _digest_of_file(path: Path) -> str:
    digest, piece = hashlib.sha256(), bytearray(_PIECE_BYTES)
    with path.open("rb", buffering=0) as file:
        while n := file.readinto(piece):
            digest.update(memoryview(piece)[:n])
    return digest.hexdigest()
