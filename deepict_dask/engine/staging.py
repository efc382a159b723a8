"""An output appears under its name only when it is finished.

Work goes to ``NAME.partial``. When all of it is written the partial output is renamed, which is one
step of the file system: a kill at any moment leaves either the finished output or none. A second
run with the same request key finds the partial output and continues it; another key starts afresh.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ..core.errors import LedgerError, OutputExistsError, VolumeFormatError
from .ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["StagedOutput", "fingerprint", "remove", "request_key"]

_SAMPLE_BYTES = 1 << 16
_N_SAMPLES = 64


def request_key(request: Mapping[str, Any]) -> str:
    """Return a hex digest of what is asked for: settings, model hash, input fingerprints.

    Examples
    --------
    >>> request_key({"threshold": 0.5}) == request_key({"threshold": 0.5})
    True
    >>> request_key({"threshold": 0.5}) == request_key({"threshold": 0.6})
    False
    """
    text = json.dumps(request, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint(path: str | Path) -> str:
    """Return a digest of a file or Zarr store that changes when its content does.

    Sizes, modification times and samples of the bytes (the first and last 64 KiB and 62 places
    between) are hashed; a Zarr store by its metadata and the sizes and times of its files.

    Raises
    ------
    VolumeFormatError
        There is nothing at the path.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "a"
    >>> _ = path.write_bytes(b"one")
    >>> before = fingerprint(path)
    >>> _ = path.write_bytes(b"two!")
    >>> fingerprint(path) == before
    False
    """
    path = Path(path)
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            status = file.stat()
            digest.update(
                f"{file.relative_to(path)} {status.st_size} {status.st_mtime_ns}".encode()
            )
            if file.name in ("zarr.json", ".zarray", ".zattrs", ".zgroup"):
                digest.update(file.read_bytes())
        return digest.hexdigest()
    if not path.exists():
        raise VolumeFormatError(f"{path}: expected a file, found nothing")
    status = path.stat()
    digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
    with path.open("rb") as opened:
        step = max(_SAMPLE_BYTES, (status.st_size - _SAMPLE_BYTES) // (_N_SAMPLES - 1))
        for offset in range(0, status.st_size, step):
            opened.seek(offset)
            digest.update(opened.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def remove(path: Path) -> None:
    """Remove a file or folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class StagedOutput:
    """Where an output is made, and its step into being; a lock while it is being made.

    Parameters
    ----------
    path
        The finished output: a folder (a Zarr store is one) or a file.
    key
        Hex digest of the request.
    overwrite
        Replace a finished output.

    Raises
    ------
    OutputExistsError
        The output exists and may not be replaced.
    LedgerError
        Another living run is making this output.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> with StagedOutput(pathlib.Path(tempfile.mkdtemp()) / "picks", key="0" * 64) as output:
    ...     _ = (output.partial / "picks.csv").write_text("score,x,y,z")
    ...     output.commit()
    >>> sorted(p.name for p in output.path.iterdir()), output.partial.exists()
    (['picks.csv'], False)
    """

    def __init__(self, path: Path, key: str, *, overwrite: bool = False) -> None:
        self.path = Path(path)
        self.key = key
        self.overwrite = overwrite
        self.resumed = False
        """Whether unfinished work of the same request was found."""
        self._lock = -1
        self._worth_keeping = False

    @property
    def partial(self) -> Path:
        """The folder it is made in."""
        return self.path.with_name(self.path.name + ".partial")

    def open_ledger(self, n_blocks: int) -> Ledger:
        """Return the marks of finished blocks; from now on unfinished work is worth keeping."""
        self._worth_keeping = True
        return Ledger(self.partial / ".ledger", self.key, n_blocks)

    def forget_marks(self) -> None:
        """Start afresh: no block is finished."""
        (self.partial / ".ledger").unlink(missing_ok=True)

    def __enter__(self) -> Self:
        if self.path.exists() and not self.overwrite:
            raise OutputExistsError(
                f"{self.path}: expected no such output, found one; "
                "give another name, or --overwrite to replace it"
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._acquire()
        note = self.partial / ".request"
        self.resumed = note.is_file() and note.read_text() == self.key
        if not self.resumed:
            remove(self.partial)
            self.partial.mkdir()
            note.write_text(self.key)
        return self

    def __exit__(self, *exc: object) -> None:
        if not self._worth_keeping:
            remove(self.partial)
        os.close(self._lock)
        self._lock_path.unlink(missing_ok=True)

    @property
    def _lock_path(self) -> Path:
        return self.path.with_name(self.path.name + ".lock")

    def _acquire(self) -> None:
        self._lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise LedgerError(
                f"{self.path}: expected to make this output alone, found another run making it; "
                "wait for it to end, or give another name"
            ) from None

    def commit(self, inner: str | None = None) -> None:
        """Give the finished output its name.

        Parameters
        ----------
        inner
            Name of the file in the partial folder that is the output; by default the folder is.
        """
        made = self.partial if inner is None else self.partial / inner
        if self.path.exists():
            aside = self.path.with_name(self.path.name + ".replaced")
            remove(aside)
            os.replace(self.path, aside)
            os.replace(made, self.path)
            remove(aside)
        else:
            os.replace(made, self.path)
        if inner is None:
            for name in (".ledger", ".request"):
                (self.path / name).unlink(missing_ok=True)
        remove(self.partial)
