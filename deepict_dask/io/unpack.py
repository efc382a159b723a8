"""Make a .gz or .bz2 volume readable box by box.

Compressed streams cannot be seeked, so the file is unpacked once, by streaming, to a plain file in
a scratch folder. The plain file's name holds a digest of the source's path, size and time, so that
a changed source is unpacked again and an unchanged one is not. It is written under a temporary name
and renamed when complete: a name without ``.partial`` is always a whole file.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import hashlib
import os
import shutil
import tempfile
import zlib
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ..core.errors import VolumeFormatError, WorkFailedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["compression_of", "default_scratch", "unpack", "unpacked_for_now", "unpacked_start"]

PIECE_BYTES = 4 << 20
MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2"}


def compression_of(path: str | os.PathLike[str]) -> str:
    """Return ``"gzip"``, ``"bzip2"`` or ``""`` by the first bytes of a file.

    Examples
    --------
    >>> path = Path(tempfile.mkdtemp()) / "a.gz"
    >>> _ = path.write_bytes(gzip.compress(b"text"))
    >>> compression_of(path)
    'gzip'
    """
    with open(path, "rb") as file:
        head = file.read(3)
    return next((name for magic, name in MAGIC.items() if head.startswith(magic)), "")


_scratch: ContextVar[Path | None] = ContextVar("scratch", default=None)
"""Where volumes are unpacked for which no place is given."""


def default_scratch() -> Path:
    """Return this user's folder for unpacked volumes under the system's temporary folder.

    Within `unpacked_for_now` its folder instead.
    """
    return _scratch.get() or Path(tempfile.gettempdir()) / f"deepict-dask-{os.getuid()}"


@contextmanager
def unpacked_for_now(beside: str | os.PathLike[str]) -> Iterator[None]:
    """Remove at the end of the block what is unpacked in it and was given no place.

    Parameters
    ----------
    beside
        A folder in which the plain files may lie until then; every worker must see it.

    Examples
    --------
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "a.mrc.gz").write_bytes(gzip.compress(b"voxels")) > 0
    True
    >>> with unpacked_for_now(folder):
    ...     unpack(folder / "a.mrc.gz").read_bytes()
    b'voxels'
    >>> [path.name for path in folder.iterdir()]
    ['a.mrc.gz']
    """
    with tempfile.TemporaryDirectory(dir=beside, prefix=".unpacked-") as folder:
        before = _scratch.set(Path(folder))
        try:
            yield
        finally:
            _scratch.reset(before)


def unpack(path: str | os.PathLike[str], scratch_dir: str | os.PathLike[str] | None = None) -> Path:
    """Unpack a .gz or .bz2 file once and return the plain file.

    Parameters
    ----------
    path
        The compressed file.
    scratch_dir
        Where the plain file goes; every worker must see it. A folder of this user under the
        system's temporary folder when None.

    Returns
    -------
    pathlib.Path
        The plain file; the same one on the next call, as long as the source has not changed.

    Raises
    ------
    VolumeFormatError
        If the stream is truncated or damaged.
    WorkFailedError
        If the scratch folder cannot be written or is full.

    Examples
    --------
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "a.mrc.gz").write_bytes(gzip.compress(b"voxels"))
    >>> unpack(folder / "a.mrc.gz", folder).read_bytes()
    b'voxels'
    """
    source = Path(path)
    scratch = Path(scratch_dir) if scratch_dir is not None else default_scratch()
    target = scratch / _plain_name(source)
    if target.exists():
        return target
    try:
        scratch.mkdir(mode=0o700 if scratch_dir is None else 0o777, parents=True, exist_ok=True)
        _stream(source, target)
    except OSError as error:
        raise _scratch_error(source, scratch, error) from error
    return target


def unpacked_start(path: str | os.PathLike[str], n_bytes: int) -> bytes:
    """Return the first bytes of what is packed in a file; fewer where there are fewer.

    Raises
    ------
    VolumeFormatError
        If the stream is damaged there.

    Examples
    --------
    >>> path = Path(tempfile.mkdtemp()) / "a.gz"
    >>> _ = path.write_bytes(gzip.compress(b"voxels"))
    >>> unpacked_start(path, 3)
    b'vox'
    """
    source = Path(path)
    with _opener(source)(source) as packed:
        try:
            return packed.read(n_bytes)
        except (EOFError, OSError, zlib.error) as error:
            raise VolumeFormatError(
                f"{source}: the compressed stream breaks off at its beginning ({error}); copy or "
                "download the file again"
            ) from error


def _plain_name(source: Path) -> str:
    """Return a name that changes when the source does, with the ending of what is inside."""
    found = source.stat()
    identity = f"{source.resolve()}:{found.st_size}:{found.st_mtime_ns}:{found.st_ino}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    inner = source.with_suffix("") if source.suffix.lower() in {".gz", ".bz2"} else source
    return f"{inner.stem}-{digest}{inner.suffix}"


def _stream(source: Path, target: Path) -> None:
    """Unpack to a temporary name beside the target, then rename."""
    descriptor, partial = tempfile.mkstemp(".partial", f"{target.name}.", target.parent)
    try:
        with os.fdopen(descriptor, "wb") as out, _opener(source)(source) as packed:
            _copy(source, packed, out)
        os.replace(partial, target)
    finally:
        Path(partial).unlink(missing_ok=True)


def _copy(source: Path, packed: IO[bytes], out: IO[bytes]) -> None:
    """Copy a stream piece by piece; damage in the stream becomes a clear message."""
    while True:
        try:
            piece = packed.read(PIECE_BYTES)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise _damaged(source, out, error) from error
        except OSError as error:
            if error.errno is not None:
                raise
            raise _damaged(source, out, error) from error  # bz2: "Invalid data stream"
        if not piece:
            return
        out.write(piece)


def _opener(source: Path) -> Callable[[Path], IO[bytes]]:
    return bz2.open if compression_of(source) == "bzip2" else gzip.open  # type: ignore[return-value]


def _damaged(source: Path, out: IO[bytes], error: Exception) -> VolumeFormatError:
    return VolumeFormatError(
        f"{source}: the compressed stream of {source.stat().st_size:,} bytes breaks off after "
        f"{out.tell():,} unpacked bytes ({error}); copy or download the file again"
    )


def _scratch_error(source: Path, scratch: Path, error: OSError) -> WorkFailedError:
    if error.errno == errno.ENOSPC and scratch.exists():
        free = shutil.disk_usage(scratch).free
        return WorkFailedError(
            f"{source}: no space to unpack it in {scratch} ({free:,} bytes free); "
            "free some, or give another scratch folder"
        )
    return WorkFailedError(
        f"{source}: cannot be unpacked in {scratch} ({error.strerror}); give a scratch folder "
        "that can be written"
    )
