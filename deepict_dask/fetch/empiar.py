"""Where what the user named lies, and which files are there.

``EMPIAR-NNNNN`` is the folder ``NNNNN/data/`` of the archive or of a mirror. A URL is a folder if
it ends in "/" or the server adds one, else a single file. With a manifest nothing is listed: its
paths are relative to the folder.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from ..core.errors import ConfigError, DeepictError
from .listing import list_folder
from .manifest import read_manifest
from .match import matches
from .remote import FetchError, RemoteFile, safe_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .web import Web

__all__ = ["EMPIAR_URL", "NothingMatchesError", "Selection", "entry_url", "find_files"]

EMPIAR_URL = "https://ftp.ebi.ac.uk/empiar/world_availability/"
"""EMBL-EBI's copy of the archive over HTTPS."""

_SHOWN = 12


class NothingMatchesError(DeepictError, LookupError):
    """A pattern means no file of the source."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What the user wants of a source.

    Parameters
    ----------
    patterns
        Globs on the path relative to the folder; none mean every file.
    manifest
        File or URL that lists the files, instead of the server's folder pages.
    checksums
        File or URL that adds checksums (and sizes) to them.
    empiar_url
        Archive or mirror that holds the folders of EMPIAR entries.
    """

    patterns: tuple[str, ...] = ()
    manifest: str | None = None
    checksums: str | None = None
    empiar_url: str = EMPIAR_URL


def entry_url(source: str, empiar_url: str = EMPIAR_URL) -> str:
    """Return the URL that a source names.

    Raises
    ------
    ConfigError
        If it is neither an EMPIAR entry nor an HTTP(S) URL.

    Examples
    --------
    >>> entry_url("EMPIAR-10988")
    'https://ftp.ebi.ac.uk/empiar/world_availability/10988/data/'
    >>> entry_url("empiar-10988", "https://mirror.org/empiar")
    'https://mirror.org/empiar/10988/data/'
    """
    entry = re.fullmatch(r"EMPIAR-(\d{5,})", source.strip(), re.IGNORECASE | re.ASCII)
    url = f"{empiar_url.rstrip('/')}/{entry[1]}/data/" if entry else source
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigError(
            f"{source}: expected an entry such as EMPIAR-10988 or an http(s) URL, found {url!r}"
        )
    return url


def find_files(web: Web, source: str, selection: Selection) -> list[RemoteFile]:
    """Return the wanted files of a source, sorted by path.

    Raises
    ------
    NothingMatchesError
        If a pattern means no file; the message says what is there.
    FetchError
        If the source cannot be listed or names a path outside its folder.
    ConfigError
        If the source is not one.
    """
    url = entry_url(source, selection.empiar_url)
    files, skipped = _all_files(web, url, selection)
    wanted = _wanted(files, skipped, selection.patterns, source)
    _refuse_clashes(wanted, source)
    if selection.checksums is not None:
        wanted = _with_checksums(wanted, read_manifest(web, selection.checksums, url))
    return wanted


def _all_files(web: Web, url: str, selection: Selection) -> tuple[list[RemoteFile], list[str]]:
    """Return the files of a manifest, of a folder, or the one file; and folders not entered."""
    if selection.manifest is not None:
        return read_manifest(web, selection.manifest, f"{url.rstrip('/')}/"), []
    if not urlsplit(url).path.endswith("/"):
        _, final = web.head(url)
        if not urlsplit(final).path.endswith("/"):
            name = unquote(urlsplit(url).path.rpartition("/")[2])
            return [RemoteFile(safe_path(name, url), url)], []
        url = final
    found, _ = list_folder(web, url, selection.patterns)
    return found.files, found.skipped


def _wanted(
    files: list[RemoteFile], skipped: list[str], patterns: Sequence[str], source: str
) -> list[RemoteFile]:
    for pattern in patterns or ("**",):
        if not any(matches(file.path, pattern) for file in files):
            raise NothingMatchesError(
                f"{source}: --match {pattern!r} means no file; {_what_is_there(files, skipped)}"
            )
    return [f for f in files if not patterns or any(matches(f.path, p) for p in patterns)]


def _what_is_there(files: list[RemoteFile], skipped: list[str]) -> str:
    names = [*skipped, *(file.path for file in files)]
    if not names:
        return "the folder is empty"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"there are {', '.join(names[:_SHOWN])}{more}"


def _refuse_clashes(files: list[RemoteFile], source: str) -> None:
    """Refuse names that would be written over one another, or over our own notes."""
    paths = {file.path for file in files}
    for path in sorted(paths):
        parts = path.split("/")
        above = {"/".join(parts[:n]) for n in range(1, len(parts))}
        clash = (above | {f"{path}.part", f"{path}.part.json"}) & paths
        if clash:
            raise FetchError(
                f"{source}: {path} and {min(clash)} cannot be fetched together; narrow --match"
            )


def _with_checksums(files: list[RemoteFile], listed: list[RemoteFile]) -> list[RemoteFile]:
    """Give files the checksums and sizes that a list has for them."""
    known = {file.path.removeprefix("data/"): file for file in listed}
    known |= {file.path: file for file in listed}
    if not any(file.path in known for file in files):
        raise FetchError(
            f"--checksums: expected some of the {len(files)} files, such as {files[0].path}; found "
            f"others, such as {listed[0].path}"
        )
    return [_completed(file, known[file.path]) if file.path in known else file for file in files]


def _completed(file: RemoteFile, listed: RemoteFile) -> RemoteFile:
    """Give a file what a list knows of it."""
    size = file.size_bytes if listed.size_bytes is None else listed.size_bytes
    return replace(file, checksum=listed.checksum or file.checksum, size_bytes=size)
