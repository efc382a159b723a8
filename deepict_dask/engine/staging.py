"""An output appears under its name only when it is finished.

Work goes to ``NAME.partial``. When all of it is written the partial output is renamed, which is one
step of the file system: a kill at any moment leaves either the finished output or none. A second
run with the same request key finds the partial output and continues it; another key starts afresh.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ..core.errors import LedgerError, OutputExistsError, WorkFailedError
from .ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ..core.geometry import Grid

__all__ = ["FOLDER_MARKS", "ZARR_MARKS", "StagedOutput", "remove", "request_key"]

FOLDER_MARKS = ("run.json",)
"""Files that tell a finished folder of results from a folder of somebody else."""
ZARR_MARKS = ("zarr.json", ".zgroup", ".zarray", ".zattrs", "0/zarr.json")
"""Files that tell a Zarr store."""

_log = logging.getLogger(__name__)
_HALF_A_CHUNK = re.compile(r"\.[0-9a-f]{32}\.partial$")
_ABANDONED: set[Path] = set()
"""Partial folders that were removed while tasks may still have been writing to them."""


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


def remove(path: Path) -> None:
    """Remove a file or folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _remove_leftovers(folder: Path) -> None:
    """Remove the chunks that workers were writing when they were killed (zarr's ``_put``)."""
    for path in folder.rglob("*.partial"):
        if _HALF_A_CHUNK.search(path.name):
            path.unlink(missing_ok=True)


@contextmanager
def swept() -> Iterator[None]:
    """Remove abandoned partial folders for good, once the workers are gone.

    One with a note is another run's, which has begun there since.
    """
    try:
        yield
    finally:
        while _ABANDONED:
            partial = _ABANDONED.pop()
            if not (partial / ".request").exists():
                shutil.rmtree(partial, ignore_errors=True)


class StagedOutput:
    """Where an output is made, and its step into being; a lock while it is being made.

    Parameters
    ----------
    path
        The finished output: a folder (a Zarr store is one) or a file.
    key
        Hex digest of the request.
    overwrite
        Replace a finished output of the same kind; never anything else.
    marks
        Files of which a finished folder holds one; none where the output is a file.
    own
        Every name that such an output may have in its folder: others are of the user and go into
        the folder that replaces it. None: all of it is ours.

    Raises
    ------
    OutputExistsError
        The output exists and may not be replaced.
    WorkFailedError
        The place cannot be written.
    LedgerError
        Another living run is making this output.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> with StagedOutput(pathlib.Path(tempfile.mkdtemp()) / "picks", key="0" * 64) as output:
    ...     _ = (output.folder / "picks.csv").write_text("score,x,y,z")
    ...     output.commit()
    >>> sorted(p.name for p in output.path.iterdir()), output.partial.exists()
    (['picks.csv'], False)
    """

    def __init__(
        self,
        path: Path,
        key: str,
        *,
        overwrite: bool = False,
        marks: tuple[str, ...] = FOLDER_MARKS,
        own: frozenset[str] | None = None,
    ) -> None:
        self.path = Path(path).absolute()
        self.key = key
        self.overwrite = overwrite
        self.marks = marks
        self.own = own
        self.resumed = False
        """Whether unfinished work of the same request was found."""
        self._lock = -1
        self._worth_keeping = False

    @property
    def partial(self) -> Path:
        """The folder it is made in."""
        return self.path.with_name(self.path.name + ".partial")

    @property
    def folder(self) -> Path:
        """The folder in it of what tasks write, which becomes the output unless a file does.

        Each request has its own: a task of an earlier one, which somebody else's cluster may still
        be at, finds its folder gone and cannot write into this one.
        """
        return self.partial / self.key[:12]

    def open_ledger(self, grid: Grid) -> Ledger:
        """Return the marks of finished blocks; from now on unfinished work is worth keeping."""
        self._worth_keeping = True
        key = request_key({"request": self.key, "grid": repr(grid)})
        return Ledger(self.partial / ".ledger", key, grid.n_blocks)

    def forget_marks(self) -> None:
        """Start afresh: no block is finished."""
        (self.partial / ".ledger").unlink(missing_ok=True)

    def __enter__(self) -> Self:
        self._refuse_existing()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._acquire()
            _ABANDONED.discard(self.partial)
            self._open_partial()
        except OSError as error:
            if self._lock >= 0 and not self.resumed:
                remove(self.partial)
            self._release()
            raise WorkFailedError(
                f"{self.path}: expected a place that can be written, found: {error.strerror} "
                f"({error.filename or self.partial}); choose another place, or make this one usable"
            ) from error
        return self

    def __exit__(self, *exc: object) -> None:
        if not self._worth_keeping:
            self._abandon()
        self._release()

    def _abandon(self) -> None:
        """Remove the partial folder, as far as tasks that still run let us.

        Without its note it is never taken up again, whatever a dying worker adds to it.
        """
        (self.partial / ".request").unlink(missing_ok=True)
        shutil.rmtree(self.partial, ignore_errors=True)
        _ABANDONED.add(self.partial)

    def _refuse_existing(self) -> None:
        """Refuse to replace what is there, unless it is an old output of this kind."""
        if not self.path.exists():
            return
        if not self.overwrite:
            raise OutputExistsError(
                f"{self.path}: expected no such output, found one; "
                "give another name, or --overwrite to replace it"
            )
        if not self._is_old_output():
            raise OutputExistsError(
                f"{self.path}: expected an earlier output to replace, found something else; "
                "give another name, or remove it yourself"
            )

    def _is_old_output(self) -> bool:
        if not self.path.is_dir():
            return not self.marks
        empty = not any(self.path.iterdir())
        return bool(self.marks) and (empty or any((self.path / m).exists() for m in self.marks))

    def _open_partial(self) -> None:
        """Continue the unfinished work of the same request, or start afresh."""
        note = self.partial / ".request"
        self.resumed = note.is_file() and note.read_text() == self.key
        # What an earlier run finished outlives a run that fails before it finishes more.
        self._worth_keeping = self.resumed and (self.partial / ".ledger").exists()
        if not self.resumed:
            remove(self.partial)
            self.partial.mkdir()
            note.write_text(self.key)
        self.folder.mkdir(exist_ok=True)

    def _release(self) -> None:
        """Give up the lock; its file goes first, so that nobody locks a file that is gone."""
        if self._lock < 0:
            return
        self._lock_path.unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = -1

    @property
    def _lock_path(self) -> Path:
        return self.path.with_name(self.path.name + ".lock")

    @property
    def _aside(self) -> Path:
        """The name an old output has while the new one takes its place."""
        return self.path.with_name(self.path.name + ".replaced")

    def _acquire(self) -> None:
        lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.fstat(lock).st_nlink > 0  # another run may have ended in between
        except BlockingIOError:
            ours = False
        except OSError:  # no such locks on this file system: go on without
            ours = True
        if not ours:
            os.close(lock)
            raise LedgerError(
                f"{self.path}: expected to make this output alone, found another run making it; "
                "wait for it to end, or give another name"
            )
        self._lock = lock

    def commit(self, inner: str | None = None) -> None:
        """Give the finished output its name.

        Parameters
        ----------
        inner
            Name of what in the partial folder is the output; by default `folder` is.

        Raises
        ------
        ValueError
            A file in it is not among the names of such an output: a mistake of the job.
        """
        made = self.folder if inner is None else self.partial / inner
        _remove_leftovers(made)
        if self.own is not None and (others := sorted(set(os.listdir(made)) - self.own)):
            raise ValueError(f"{made}: expected files of {sorted(self.own)}, found {others}")
        self._clear_aside()
        if self.path.is_dir():  # a file is replaced in one step
            os.replace(self.path, self._aside)
        os.replace(made, self.path)
        self._clear_aside()
        remove(self.partial)

    def _clear_aside(self) -> None:
        """Remove the old output; what a user has put into its folder goes into the new one."""
        if self.own is not None and self._aside.is_dir() and self.path.is_dir():
            theirs = [p for p in self._aside.iterdir() if p.name not in self.own]
            for path in theirs:
                if not (self.path / path.name).exists():
                    os.replace(path, self.path / path.name)
            if theirs:
                _log.warning(
                    "%s: made again; files that are not of it were kept: %s",
                    self.path, ", ".join(sorted(path.name for path in theirs)),
                )  # fmt: skip
        remove(self._aside)

    def clear_remains(self) -> None:
        """Remove what stands beside a finished output if its run was killed after naming it.

        Nothing is touched while another run is making this output, or where nothing can be written.
        """
        remains = (self.partial, self._aside, self._lock_path)
        if not any(path.exists() for path in remains):
            return
        with suppress(LedgerError, OSError):
            self._acquire()
            try:
                self._clear_aside()
                remove(self.partial)
            finally:
                self._release()
