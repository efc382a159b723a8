"""One file arrives whole, whatever the server and the line do.

1. bytes go to NAME.part; NAME.part.json notes the server's ETag, date and size (RFC 9110);
2. a later attempt asks for the rest with Range, under If-Range: a file that has changed since comes
   from its start. Without a validator or a checksum nothing could tell old bytes from new ones, so
   the part is dropped;
3. 206 must begin where the part ends and have the same total; 200 (no ranges here) starts afresh;
   416 means that the part is whole, or nonsense;
4. size and checksum are compared, then NAME.part becomes NAME in one rename.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, BinaryIO

from .remote import FetchError
from .web import Attempts, PassingError, Stamp, StoppedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import httpx

    from .remote import RemoteFile
    from .web import Web

__all__ = ["Part", "download"]

_PROGRESS_BYTES = 1 << 20
_PACKED_NAMES = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".Z")
_CONTENT_RANGE = re.compile(r"bytes (?:(?P<start>\d+)-\d+|\*)/(?P<total>\d+|\*)")


class Part:
    """The unfinished bytes of a file, and what the server said of them.

    Parameters
    ----------
    target
        Where the whole file will be.
    url
        Where it comes from; a part of another URL is not continued.
    """

    def __init__(self, target: Path, url: str) -> None:
        self.target, self.url = target, url
        self.path = target.with_name(f"{target.name}.part")
        self.note = target.with_name(f"{target.name}.part.json")
        self.stamp = self._read_note()

    def _read_note(self) -> Stamp:
        """Return the stamp noted beside the part, or an empty one."""
        with suppress(OSError, ValueError, TypeError, LookupError, AttributeError):
            known = json.loads(self.note.read_text())
            if known.pop("url") == self.url:
                return Stamp(**known)
        return Stamp()

    @property
    def size_bytes(self) -> int:
        """How many bytes are here."""
        return self.path.stat().st_size if self.path.exists() else 0

    def begin(self, stamp: Stamp) -> None:
        """Empty the part and note what is to come, in this order: never new note, old bytes."""
        with self.path.open("r+b" if self.path.exists() else "wb") as file:
            file.truncate(0)
        self.stamp = stamp
        self.note.write_text(json.dumps({"url": self.url, **asdict(stamp)}))

    def finish(self) -> None:
        """Make the part the file, safely on disk."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        self.path.replace(self.target)
        self.note.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other programs from writing the same part."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise FetchError(
                    f"{self.target}: another program is fetching it; wait for that one"
                ) from error
            except OSError:
                # Some network file systems have no locks; one fetch per folder is then on the user.
                pass
            try:
                yield
            finally:
                self._drop_if_empty()

    def _drop_if_empty(self) -> None:
        """Leave no empty part behind, as after a 404."""
        if self.path.exists() and not self.size_bytes:
            self.path.unlink()
            self.note.unlink(missing_ok=True)


def download(
    web: Web,
    remote: RemoteFile,
    target: Path,
    *,
    seen: Stamp | None = None,
    report: Callable[[int], None] = lambda _size: None,
) -> int:
    """Fetch one file, continuing what an earlier attempt or run left.

    Parameters
    ----------
    web
        Connections, and the patience of retries.
    remote
        What to fetch; its size and checksum, where given, must hold.
    target
        Where to; replaced in one step when all bytes are here and right.
    seen
        What the server said of the file before (HEAD): it may not contradict itself.
    report
        Called with the number of bytes here, whenever it changes.

    Returns
    -------
    int
        Size in bytes.

    Raises
    ------
    FetchError
        If it cannot be had, or is not what was announced. Good bytes stay in NAME.part.
    StoppedError
        If the run was stopped.
    """
    part, seen = Part(target, remote.url), seen or Stamp()
    attempts, most = Attempts(web, remote.path), part.size_bytes
    with part.locked():
        if part.size_bytes and seen.differs(part.stamp):
            part.begin(Stamp())
        report(part.size_bytes)
        while True:
            try:
                _attempt(web, remote, part, seen, report)
                return _finished(remote, part)
            except PassingError as error:
                if part.size_bytes >= most + _PROGRESS_BYTES:
                    attempts.renew()
                most = max(most, part.size_bytes)
                attempts.failed(error)


def _attempt(
    web: Web, remote: RemoteFile, part: Part, seen: Stamp, report: Callable[[int], None]
) -> None:
    """Ask once for what is missing and write what comes."""
    wanted = _range(remote, part)
    with web.ask("GET", remote.url, **wanted) as response:
        if response.status_code == 416:
            _judge_416(response, part)
            return
        if response.status_code == 206 and wanted:
            _accept_rest(response, part)
        else:
            _accept_whole(response, remote, part, seen)
        with part.path.open("ab", buffering=0) as file:
            _pour(web, response, file, report)
    _check_size(part)


def _range(remote: RemoteFile, part: Part) -> dict[str, str]:
    """Return the headers that ask for the rest, or none to start afresh."""
    size, validator = part.size_bytes, part.stamp.validator
    if not size or (validator is None and remote.checksum is None):
        return {}
    condition = {} if validator is None else {"If_Range": validator}
    return {"Range": f"bytes={size}-", **condition}


def _judge_416(response: httpx.Response, part: Part) -> None:
    """Nothing lies behind the part: it is whole, or not of this file."""
    total = _content_range(response)[1]
    now = Stamp.of(response.headers, total)
    known = part.stamp.size_bytes if total is None else total
    if known is None or part.size_bytes != known or now.differs(part.stamp):
        size = part.size_bytes
        part.begin(Stamp())
        raise PassingError(f"the {size} bytes here are not the start of the server's {known}")


def _accept_rest(response: httpx.Response, part: Part) -> None:
    """Check that a 206 continues the part; else drop the part."""
    start, total = _content_range(response)
    now = Stamp.of(response.headers, total)
    known = part.stamp.size_bytes
    fits = start == part.size_bytes and (total is None or known is None or total == known)
    if not fits or now.differs(part.stamp):
        asked = part.size_bytes
        part.begin(Stamp())
        raise PassingError(
            f"asked for bytes from {asked} of {known}, found those from {start} of {total} or of a "
            "changed file"
        )


def _content_range(response: httpx.Response) -> tuple[int | None, int | None]:
    """Return first byte and total size of a Content-Range header, where it says them."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", "").strip())
    if match is None:
        return None, None
    start, total = match["start"], match["total"]
    return (None if start is None else int(start)), (None if total == "*" else int(total))


def _accept_whole(response: httpx.Response, remote: RemoteFile, part: Part, seen: Stamp) -> None:
    """Check the head of a whole file, and empty the part for it."""
    packed = response.headers.get("content-encoding", "identity").lower()
    if packed != "identity" and not remote.path.endswith(_PACKED_NAMES):
        raise FetchError(f"{remote.path}: expected the bytes as stored, found them in {packed}")
    stamp = Stamp.of(response.headers)
    if stamp.size_bytes is not None and not remote.allows(stamp.size_bytes):
        raise FetchError(
            f"{remote.path}: expected {remote.announced()} as the list says, the server has "
            f"{stamp.size_bytes}; one of them is wrong or outdated"
        )
    part.begin(_agreed(stamp, seen))


def _agreed(stamp: Stamp, seen: Stamp) -> Stamp:
    """Return a stamp whose size is that seen before, unless the file has changed since."""
    if seen.size_bytes is None or seen.differs(stamp):
        return stamp
    if stamp.size_bytes not in (None, seen.size_bytes):
        raise PassingError(
            f"the server first announced {seen.size_bytes} bytes, and now {stamp.size_bytes}"
        )
    return replace(stamp, size_bytes=seen.size_bytes)


def _pour(
    web: Web, response: httpx.Response, file: BinaryIO, report: Callable[[int], None]
) -> None:
    """Write a body as it comes, so that a cut loses nothing that arrived."""
    size = os.fstat(file.fileno()).st_size
    report(size)
    for piece in response.iter_raw():
        file.write(piece)
        size += len(piece)
        report(size)
        if web.stopped:
            raise StoppedError


def _check_size(part: Part) -> None:
    """Notice a body that ended early without saying so, or ran on."""
    known, size = part.stamp.size_bytes, part.size_bytes
    if known is None or size == known:
        return
    if size > known:
        part.begin(Stamp())
    raise PassingError(f"expected {known} bytes, found {size}")


def _finished(remote: RemoteFile, part: Part) -> int:
    """Compare size and checksum, and put the file in its place."""
    size = part.size_bytes
    if not remote.allows(size):
        part.begin(Stamp())
        raise PassingError(f"expected {remote.announced()}, found {size}")
    if remote.checksum is not None:
        found = remote.checksum.of_file(part.path)
        if found != remote.checksum.digest:
            part.begin(Stamp())
            raise PassingError(
                f"expected {remote.checksum.algorithm} {remote.checksum.digest}, found {found}"
            )
    part.finish()
    return size
