"""Fetch files of a deposit: what is missing, whether it fits, and what could not be had.

1. find the files (`find_files`) and ask for sizes that no list gives;
2. leave out those that are here already: same size, and same checksum where one is given. A file
   here that differs is refused before anything is fetched, unless it may be overwritten;
3. check the free space for the bytes still missing;
4. download a few at a time; a file that fails does not stop the others.
"""

from __future__ import annotations

import shutil
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..core.errors import OutputExistsError, WorkFailedError
from ..engine.budget import format_bytes
from .download import Part, download
from .empiar import Selection, find_files
from .parallel import each
from .progress import show_bytes
from .remote import FetchError, RemoteFile
from .web import Patience, Stamp, Web

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["FetchReport", "FetchSettings", "Offer", "Survey", "fetch", "survey"]

_SHOWN = 20


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """How to fetch.

    Parameters
    ----------
    selection
        Which files.
    workers
        Files at a time: public archives serve everyone.
    patience
        When to try again.
    overwrite
        Replace files that differ.
    progress
        Show a bar, or lines, on stderr.
    """

    selection: Selection = field(default_factory=Selection)
    workers: int = 4
    patience: Patience = field(default_factory=Patience)
    overwrite: bool = False
    progress: bool = True


@dataclass(frozen=True, slots=True)
class Offer:
    """A file that a server has, and what it says of it.

    Parameters
    ----------
    remote
        Name, URL, announced size and checksum.
    seen
        Answer to HEAD; empty where a list gave the size.
    """

    remote: RemoteFile
    seen: Stamp = field(default_factory=Stamp)

    @property
    def size_bytes(self) -> int | None:
        """Exact size, if anything tells it."""
        exact = self.remote.size_bytes
        return self.seen.size_bytes if exact is None else exact

    @property
    def about_bytes(self) -> int:
        """Size, or the best that is known for it."""
        return self.size_bytes or self.remote.most_bytes or 0


@dataclass(frozen=True, slots=True)
class FetchReport:
    """What a fetch did.

    Parameters
    ----------
    fetched, kept
        Paths that came now, and that were here already.
    failed
        Path -> reason.
    size_bytes
        Of the files fetched.
    unverified
        Paths among the fetched for which no checksum was known.
    """

    fetched: tuple[str, ...]
    kept: tuple[str, ...]
    failed: dict[str, str]
    size_bytes: int
    unverified: tuple[str, ...]

    def check(self) -> None:
        """Raise if a file failed.

        Raises
        ------
        WorkFailedError
            With a table of the files and reasons.

        Examples
        --------
        >>> FetchReport(("a",), (), {"b.rec": "404"}, 1, ()).check()
        Traceback (most recent call last):
        ...
        deepict_dask.core.errors.WorkFailedError: 1 of 2 files could not be fetched; the others \
are whole; run the same command again to continue
          b.rec  404
        """
        n_all = len(self.fetched) + len(self.kept) + len(self.failed)
        _raise_failures(
            f"{len(self.failed)} of {n_all} files could not be fetched; the others are whole; "
            "run the same command again to continue",
            self.failed,
        )


@dataclass(frozen=True, slots=True)
class Survey:
    """What a source offers.

    Parameters
    ----------
    offers
        Files with their sizes, sorted by path.
    failed
        Path -> reason, of files that the server lists but does not give.
    """

    offers: tuple[Offer, ...]
    failed: dict[str, str]

    def check(self) -> None:
        """Raise if the server does not give a file that it lists.

        Raises
        ------
        WorkFailedError
            With a table of the files and reasons.

        Examples
        --------
        >>> Survey((), {}).check()
        """
        n_all = len(self.offers) + len(self.failed)
        _raise_failures(
            f"{len(self.failed)} of {n_all} files are listed but cannot be had", self.failed
        )


def _raise_failures(head: str, failed: dict[str, str]) -> None:
    """Raise with a table of failures, if there are any."""
    if failed:
        width = max(map(len, failed))
        # Reasons open with the path, which the table has already.
        rows = [f"  {p:<{width}}  {why.removeprefix(f'{p}: ')}" for p, why in failed.items()]
        raise WorkFailedError("\n".join([head, *rows]))


def survey(source: str, settings: FetchSettings) -> Survey:
    """Find the wanted files of a source and their sizes; fetch none.

    Parameters
    ----------
    source
        EMPIAR-NNNNN, or the URL of a folder or file.
    settings
        Which files, and how patiently.

    Raises
    ------
    FetchError, NothingMatchesError, ConfigError
        As `find_files`.
    """
    with _web(settings) as web:
        return _survey(web, source, settings)


def fetch(source: str, folder: Path, settings: FetchSettings) -> FetchReport:
    """Fetch the wanted files of a source into a folder.

    Parameters
    ----------
    source
        EMPIAR-NNNNN, or the URL of a folder or file.
    folder
        Where to; the source's folders are kept below it.
    settings
        Which files, and how.

    Returns
    -------
    FetchReport
        Also names files that failed; `FetchReport.check` raises for them.

    Raises
    ------
    OutputExistsError
        If a file here differs from the server's; nothing has been fetched then.
    FetchError, NothingMatchesError, ConfigError
        If the source cannot be listed, or the disk is too full.
    """
    if folder.exists() and not folder.is_dir():
        raise FetchError(f"{folder}: expected a folder to fill, found a file; name another")
    with _web(settings) as web:
        found = _survey(web, source, settings)
        offers = found.offers
        missing = _missing(offers, folder, overwrite=settings.overwrite)
        _check_space(missing, folder)
        results = _download_all(web, missing, folder, settings)
    failures = {o.remote.path: str(r) for o, r in results if isinstance(r, FetchError)}
    came = {o.remote.path: r for o, r in results if isinstance(r, int)}
    wanted = {offer.remote.path for offer in missing}
    return FetchReport(
        fetched=tuple(came),
        kept=tuple(o.remote.path for o in offers if o.remote.path not in wanted),
        failed=found.failed | failures,
        size_bytes=sum(came.values()),
        unverified=tuple(
            o.remote.path for o, _ in results if o.remote.path in came and not o.remote.checksum
        ),
    )


def _web(settings: FetchSettings) -> Web:
    return Web(connections=settings.workers, patience=settings.patience)


def _survey(web: Web, source: str, settings: FetchSettings) -> Survey:
    """Find files and ask for their sizes, a few at a time."""
    files = find_files(web, source, settings.selection)
    answers = each(web, lambda file: _offer(web, file), files, settings.workers)
    failed = {
        file.path: str(answer)
        for file, answer in zip(files, answers, strict=True)
        if isinstance(answer, FetchError)
    }
    return Survey(tuple(answer for answer in answers if isinstance(answer, Offer)), failed)


def _offer(web: Web, file: RemoteFile) -> Offer:
    """Ask for the size of a file, unless a list has told it."""
    if file.size_bytes is not None:
        return Offer(file)
    seen, _ = web.head(file.url)
    if seen.size_bytes is not None and not file.allows(seen.size_bytes):
        raise FetchError(
            f"{file.path}: expected {file.announced()} as the listing says, the server announces "
            f"{seen.size_bytes}"
        )
    return Offer(file, seen)


def _missing(offers: Sequence[Offer], folder: Path, *, overwrite: bool) -> list[Offer]:
    """Return the files that are not here, and refuse those that are here but differ."""
    absent = [offer for offer in offers if not (folder / offer.remote.path).exists()]
    different = [
        offer
        for offer in offers
        if (folder / offer.remote.path).exists() and not _is_whole(offer, folder, again=overwrite)
    ]
    if different and not overwrite:
        head = (
            f"{folder}: {len(different)} files differ from the server's; move them away or use "
            "--overwrite; nothing was fetched"
        )
        rows = [_difference(offer, folder) for offer in different[:_SHOWN]]
        raise OutputExistsError("\n  ".join([head, *rows]))
    wanted = {id(offer) for offer in (*absent, *different)}
    return [offer for offer in offers if id(offer) in wanted]


def _is_whole(offer: Offer, folder: Path, *, again: bool) -> bool:
    """Say whether the file here is the server's, as far as size and checksum tell.

    Where the server tells neither, a file of this name is whole, since it got the name when it was;
    ``again`` fetches it once more.
    """
    path, checksum = folder / offer.remote.path, offer.remote.checksum
    if not path.is_file():
        raise FetchError(f"{path}: expected a file or nothing, found a folder; move it away")
    if offer.size_bytes is None and checksum is None:
        return not again
    same_size = offer.size_bytes in (None, path.stat().st_size)
    return same_size and (checksum is None or checksum.matches(path))


def _difference(offer: Offer, folder: Path) -> str:
    here = (folder / offer.remote.path).stat().st_size
    if offer.size_bytes is None:
        return f"{offer.remote.path}: {here} bytes here, size on the server unknown"
    if here == offer.size_bytes:
        return f"{offer.remote.path}: {here} bytes, but another checksum"
    return f"{offer.remote.path}: {here} bytes here, {offer.size_bytes} on the server"


def _check_space(missing: Sequence[Offer], folder: Path) -> None:
    """Refuse to begin what the disk cannot hold."""
    need = sum(
        max(offer.about_bytes - Part(folder / offer.remote.path, offer.remote.url).size_bytes, 0)
        for offer in missing
    )
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if need > free:
        raise FetchError(
            f"{folder}: expected {format_bytes(need)} free for {len(missing)} files, found "
            f"{format_bytes(free)}; narrow --match or choose another disk; nothing was fetched"
        )


class _Sizes:
    """Bytes here of each file, told by many threads and summed by one."""

    def __init__(self) -> None:
        self._lock, self._sizes = threading.Lock(), dict[str, int]()

    def set(self, path: str, size_bytes: int) -> None:
        with self._lock:
            self._sizes[path] = size_bytes

    def total(self) -> int:
        with self._lock:
            return sum(self._sizes.values())


def _download_all(
    web: Web, offers: Sequence[Offer], folder: Path, settings: FetchSettings
) -> list[tuple[Offer, int | FetchError]]:
    """Download files, a few at a time, under one progress bar."""
    sizes = _Sizes()

    def work(offer: Offer) -> int:
        path = offer.remote.path
        target = folder / path
        return download(
            web, offer.remote, target, seen=offer.seen, report=lambda size: sizes.set(path, size)
        )

    shown = settings.progress and bool(offers)
    with show_bytes(sum(offer.about_bytes for offer in offers), shown=shown) as reached:
        results = each(web, work, offers, settings.workers, tick=lambda: reached(sizes.total()))
    return list(zip(offers, results, strict=True))
