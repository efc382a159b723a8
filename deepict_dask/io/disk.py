"""Which disk is full, what is free on it, and what it would have to hold."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

__all__ = ["disk_of", "full_disk_text", "is_full"]


def is_full(error: OSError) -> bool:
    """Say whether a disk, a quota or the limit of a file's size is reached.

    NumPy's writer says so only by what it could not write.

    Examples
    --------
    >>> is_full(OSError(errno.ENOSPC, "No space left on device")), is_full(OSError("gone"))
    (True, False)
    """
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return error.errno in full or "requested and" in str(error)


def disk_of(path: str | os.PathLike[str]) -> Path:
    """Return where the disk of a path is mounted; the path itself need not be there.

    Examples
    --------
    >>> disk_of("/proc/none/such").as_posix()
    '/proc'
    """
    place = Path(path).absolute()
    return next(p for p in (place, *place.parents) if os.path.ismount(p))


def full_disk_text(path: str | os.PathLike[str], needed_bytes: int) -> str:
    """Return in words that a disk is full: which, what is free, what is needed.

    Parameters
    ----------
    path
        The output.
    needed_bytes
        What the output needs when it is finished, of which some may be there already.

    Examples
    --------
    >>> full_disk_text("/proc/a.zarr", 3 << 30).split(";")[0]
    '/proc/a.zarr: the disk is full: /proc has 0 bytes free, another 3221225472 bytes are needed'
    """
    disk = disk_of(path)
    missing = max(0, needed_bytes - _used_bytes(Path(path)))
    return (
        f"{path}: the disk is full: {disk} has {shutil.disk_usage(disk).free} bytes free, another "
        f"{missing} bytes are needed; free some space and run the same command again to continue"
    )


def _used_bytes(path: Path) -> int:
    """Return the bytes of the files of an output in the making."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
