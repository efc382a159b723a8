"""Results on their way from one task to the next, small enough for the driver and the scheduler.

Why are they not passed as futures? The scheduler remembers a task as long as it remembers one that
was made of it, so that it could be repeated: a tree of futures is remembered from the root to the
last leaf. A result that was fetched has no such past.

1. The task that makes a result packs it: pickled and compressed, as surfaces are mostly background.
2. A small one travels as it is. A large one is left in a file where there is a folder for it.
3. The task that uses it unpacks it. Once that task has ended, the file is removed.
"""

from __future__ import annotations

import gzip
import io
import pickle
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

__all__ = ["HandedOver"]

TRAVELLING_BYTES = 4096
"""Larger results wait in a file. Schedulers keep some hundred of their last messages."""


@dataclass(frozen=True)
class HandedOver:
    """A packed result, or where it is.

    Examples
    --------
    >>> HandedOver.pack([1, 2, 3]).unpack()
    [1, 2, 3]
    """

    content: bytes = b""
    path: str | None = None

    @classmethod
    def pack(cls, value: Any, path: Path | None = None) -> HandedOver:
        """Pack a value; a large one goes to ``path``, if there is one.

        Doing it twice leaves the same file.

        Examples
        --------
        >>> import os, tempfile
        >>> path = Path(tempfile.mkdtemp(), "node")
        >>> HandedOver.pack([1, 2, 3], path).path is None
        True
        >>> large = HandedOver.pack(os.urandom(10_000), path)
        >>> large.content, len(large.unpack()), path.stat().st_size > 10_000
        (b'', 10000, True)
        >>> large.discard()
        >>> path.exists()
        False
        """
        buffer = io.BytesIO()
        with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1, mtime=0) as packer:
            pickle.dump(value, packer, protocol=5)
        if path is None or buffer.tell() <= TRAVELLING_BYTES:
            return cls(buffer.getvalue())
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        temporary.write_bytes(buffer.getbuffer())
        temporary.replace(path)
        return cls(path=str(path))

    def unpack(self) -> Any:
        """Return the value."""
        with self._opened() as packed, gzip.GzipFile(fileobj=packed) as unpacker:
            return pickle.load(unpacker)

    def _opened(self) -> IO[bytes]:
        return io.BytesIO(self.content) if self.path is None else Path(self.path).open("rb")

    def discard(self) -> None:
        """Remove the file, if there is one."""
        if self.path is not None:
            Path(self.path).unlink(missing_ok=True)
