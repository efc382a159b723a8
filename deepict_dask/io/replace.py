"""Write a file so that a reader sees the old one or the new one, never half of one."""

from __future__ import annotations

import glob
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["replace_file"]

_HOST = platform.node()


def replace_file(path: str | os.PathLike[str], content: bytes | str | Iterable[bytes]) -> None:
    """Write a file under a temporary name beside it, on the disk, then give it its name.

    Parameters
    ----------
    path
        The file; its folder must be there.
    content
        Bytes, text to be written as UTF-8, or pieces of the file, each of which is written before
        the next is asked for. An error of theirs leaves an old file as it was.

    Raises
    ------
    OSError
        The disk is full, or the folder may not be written; an old file is left as it was.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     replace_file(Path(folder, "a.csv"), "x,y,z")
    ...     Path(folder, "a.csv").read_bytes()
    b'x,y,z'
    """
    target = Path(path)
    _remove_leftovers(target)
    temporary = target.with_name(f".{target.name}.{_HOST}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            if isinstance(content, bytes | str):
                file.write(content.encode() if isinstance(content, str) else content)
            else:
                file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_leftovers(target: Path) -> None:
    """Remove what programs of this machine left that were killed while they wrote the file."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.{glob.escape(_HOST)}.*.tmp"):
        number = path.name.split(".")[-2]
        if number.isdecimal() and not psutil.pid_exists(int(number)):
            path.unlink(missing_ok=True)
