"""Write a file so that a reader sees the old one or the new one, never half of one."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["replace_file"]


def replace_file(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Write a file under a temporary name beside it, on the disk, then give it its name.

    Parameters
    ----------
    path
        The file; its folder must be there.
    content
        Bytes, or text to be written as UTF-8.

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
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
