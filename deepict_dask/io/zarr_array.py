"""Open Zarr arrays, once per process.

Opening parses metadata, which costs more than reading a small box; tasks read thousands of boxes.
The cache's key holds the time and inode of the metadata file, so that a store made anew at the same
path is opened anew.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..core.errors import VolumeFormatError

__all__ = ["DECODE_ERRORS", "open_array"]

Stamp = tuple[int, int]
DECODE_ERRORS = (ValueError, RuntimeError, OSError, KeyError, TypeError, EOFError, zlib.error)
"""What Zarr and its codecs raise for damaged metadata and chunks."""


@lru_cache(maxsize=64)
def _opened(array_path: str, _stamp_of_metadata: Stamp, *, writable: bool) -> Any:
    """Open an array; the stamp only makes the key."""
    import zarr

    array = zarr.open_array(array_path, mode="r+" if writable else "r")
    return array.with_config({"write_empty_chunks": True}) if writable else array


def open_array(array_path: str, *, writable: bool = False) -> Any:
    """Return an open array; raise `VolumeFormatError` if its metadata cannot be read."""
    try:
        return _opened(array_path, _stamp(array_path), writable=writable)
    except (*DECODE_ERRORS, AttributeError) as error:
        raise VolumeFormatError(
            f"{array_path}: the Zarr array cannot be opened ({type(error).__name__}: {error}); "
            "copy the whole store again"
        ) from error


def _stamp(array_path: str) -> Stamp:
    """Return time and inode of an array's metadata file."""
    names = (Path(array_path, name) for name in ("zarr.json", ".zarray"))
    file = next((name for name in names if name.is_file()), None)
    if file is None:
        raise FileNotFoundError("no zarr.json or .zarray")
    found = file.stat()
    return (found.st_mtime_ns, found.st_ino)
