"""One driver for an output folder: a lock that ends with its process, and who holds it.

1. The lock is the system's own (``flock``; on NFS the kernel asks the server): a process that dies,
   however it dies, holds it no longer, so nothing is ever left to be removed by hand.
2. The file says who holds it, for messages. Its time is renewed while the driver lives.
3. Where a file system has no such locks, or when somebody only wants to know, the holder is looked
   for: a process of this machine by its number and start, one elsewhere by the file's time.
4. Some file systems have locks that other machines do not see (Lustre with ``localflock``, NFS with
   ``local_lock``). So a holder on another machine is given the time of three signs of life.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import logging
import os
import platform
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self

import psutil

from ..core.errors import LedgerError, WorkFailedError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Holder", "OutputLock", "living_holder"]

_BEAT_S = 20.0
_SILENCE_S = 120.0
"""A driver on another machine that has been silent for so long is taken for dead."""
_DEATH_S = 3 * _BEAT_S
"""So is one whose lock could be taken and that gives no sign of life for so long."""
_POLL_S = 1.0

log = logging.getLogger("deepict_dask")


@dataclass(frozen=True)
class Holder:
    """Who drives the work in an output folder."""

    host: str
    pid: int
    user: str
    since: str
    """When the driver began, ISO 8601."""
    process_started: float
    """Seconds since 1970: tells a process from a later one of the same number."""

    @classmethod
    def ours(cls) -> Holder:
        """Return this process."""
        since = datetime.now(UTC).isoformat(timespec="seconds")
        started = psutil.Process().create_time()
        return cls(platform.node(), os.getpid(), _user(), since, started)

    def __str__(self) -> str:
        return f"a run of {self.user} on {self.host} (process {self.pid}, since {self.since})"


def _user() -> str:
    """Return the user's name, or number where there is no name."""
    with suppress(KeyError, OSError):
        return getpass.getuser()
    return str(os.getuid())


def living_holder(path: Path) -> Holder | None:
    """Return who holds a lock, as far as it can be seen; takes no lock and writes nothing.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "lock")
    >>> with OutputLock(path):
    ...     living_holder(path).pid == os.getpid()
    True
    >>> living_holder(path) is None
    True
    """
    try:
        holder = Holder(**json.loads(path.read_text()))
        silent_s = time.time() - path.stat().st_mtime
    except (OSError, ValueError, TypeError):
        return None
    if holder.host != platform.node():
        return holder if silent_s < _SILENCE_S else None
    with suppress(psutil.Error):
        process = psutil.Process(holder.pid)
        same = abs(process.create_time() - holder.process_started) < 1
        if same and process.status() != psutil.STATUS_ZOMBIE:
            return holder
    return None


class OutputLock:
    """Held while a driver works in an output folder; a context manager.

    Parameters
    ----------
    path
        The lock's file; its folder is made.
    wait_s
        How long to wait for another process to give it up.

    Raises
    ------
    LedgerError
        Another living process holds it.
    WorkFailedError
        The place cannot be written.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "lock")
    >>> with OutputLock(path), OutputLock(path):
    ...     pass
    Traceback (most recent call last):
    ...
    deepict_dask.core.errors.LedgerError: ...: expected to work here alone, found a run of ...
    """

    def __init__(self, path: Path, wait_s: float = 0.0) -> None:
        self._path = path
        self._wait_s = wait_s
        self._file = -1
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            is_ours = self._acquire()
            until = time.monotonic() + self._wait_s
            while not is_ours and time.monotonic() < until:
                time.sleep(_POLL_S)
                is_ours = self._acquire()
            if is_ours:
                self._write(json.dumps(asdict(Holder.ours())))
        except OSError as error:
            self._close()
            raise WorkFailedError(
                f"{self._path.parent}: expected a place that can be written, found: "
                f"{error.strerror}; choose another output, or make this one usable"
            ) from error
        if not is_ours:
            self._close()
            who = living_holder(self._path) or "another run"
            raise LedgerError(
                f"{self._path.parent.parent}: expected to work here alone, found {who}; wait for "
                "it to end, stop it, or give another output"
            )
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def _acquire(self) -> bool:
        """Take the lock; say whether nobody else has it."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # no such locks on this file system
            return living_holder(self._path) is None
        return not self._lives_elsewhere()

    def _lives_elsewhere(self) -> bool:
        """Say whether a process of another machine, which sees no lock of ours, works here."""
        holder = living_holder(self._path)
        if holder is None or holder.host == platform.node():
            return False
        log.warning(
            "%s: %s has not ended it; waiting %.0f s for a sign of life",
            self._path.parent.parent, holder, _DEATH_S,
        )  # fmt: skip
        sign, until = self._seen(), time.monotonic() + _DEATH_S
        while time.monotonic() < until:
            time.sleep(_POLL_S)
            if self._seen() != sign:
                return living_holder(self._path) is not None
        return False

    def _seen(self) -> float:
        """Return when the file was last changed; opened anew, so that NFS asks its server."""
        with self._path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime

    def _write(self, text: str) -> None:
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, text.encode(), 0)

    def _beat(self) -> None:
        """Show that this process lives."""
        while not self._ended.wait(_BEAT_S):
            with suppress(OSError):
                os.utime(self._path)

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        with suppress(OSError):
            self._write("")
        self._close()
