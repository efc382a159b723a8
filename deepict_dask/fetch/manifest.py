"""What a list of files says: paths, and sizes and checksums where it has them.

Read by content, not by name: JSON (a list, ``{"files": [...]}`` or path -> entry), the output of
md5sum or sha256sum (also in BSD form), CSV or TSV with a header, and a plain list: a path per line,
perhaps followed by size and checksum behind commas or tabs. ``#`` starts a comment.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from .remote import Checksum, FetchError, RemoteFile, safe_path

if TYPE_CHECKING:
    from .web import Web

__all__ = ["parse_manifest", "read_manifest"]

_SUM_LINE = re.compile(r"(?P<digest>[0-9A-Fa-f]{32,128}) [ *](?P<path>.+)")
_BSD_LINE = re.compile(
    r"(?P<algorithm>[A-Z0-9]+) \((?P<path>.+)\) = (?P<digest>[0-9A-Fa-f]{32,128})"
)
_PATH_NAMES = ("path", "file", "filename", "name")
_SIZE_NAMES = ("size_bytes", "size", "bytes")
_SUM_NAMES = ("checksum", "sha512", "sha256", "sha1", "md5")


def read_manifest(web: Web, source: str, base_url: str) -> list[RemoteFile]:
    """Return the files of a manifest, from a file here or a URL.

    Raises
    ------
    FetchError
        If it is absent, is no manifest, names a path twice or one outside the folder.
    """
    if source.startswith(("http://", "https://")):
        text, _ = web.text(source)
    else:
        try:
            text = Path(source).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise FetchError(f"{source}: expected a list of files in UTF-8: {error}") from error
    return parse_manifest(text, source, base_url)


def parse_manifest(text: str, source: str, base_url: str) -> list[RemoteFile]:
    r"""Return the files that a manifest's text names.

    Parameters
    ----------
    text
        JSON, CSV, TSV, md5sum or sha256sum output, or a plain list.
    source
        Where it is from, for messages.
    base_url
        Ends in "/"; paths are relative to it.

    Raises
    ------
    FetchError
        If it cannot be read, is empty, or names something twice or outside the folder.

    Examples
    --------
    >>> file, = parse_manifest("path,size\nDEF/a b.rec,12\n", "m.csv", "https://x.org/")
    >>> file.url, file.size_bytes
    ('https://x.org/DEF/a%20b.rec', 12)
    >>> parse_manifest("900150983cd24fb0d6963f7d28e17f72  ./abc", "m", "https://x.org/")[0].path
    'abc'
    """
    files: dict[str, RemoteFile] = {}
    for entry in _entries(text.removeprefix("\ufeff"), source):
        file = _file(entry, source, base_url)
        if file.path in files:
            raise FetchError(f"{source}: expected each path once, found {file.path} twice")
        files[file.path] = file
    if not files:
        raise FetchError(f"{source}: expected a list of files, found none in it")
    return [files[path] for path in sorted(files)]


def _entries(text: str, source: str) -> list[dict[str, Any]]:
    """Return the rows of any of the formats, each with at least a path."""
    if text.lstrip()[:1] in ("[", "{"):
        return _json_entries(text, source)
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if lines and (_SUM_LINE.fullmatch(lines[0]) or _BSD_LINE.fullmatch(lines[0])):
        return [_sum_entry(line, source) for line in lines]
    return _table_entries(lines)


def _json_entries(text: str, source: str) -> list[dict[str, Any]]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise FetchError(f"{source}: expected JSON: {error}") from error
    if isinstance(data, dict) and isinstance(data.get("files"), list | dict):
        data = data["files"]
    if isinstance(data, dict):
        data = [
            {"path": path, **(rest if isinstance(rest, dict) else {"checksum": rest})}
            for path, rest in data.items()
        ]
    return [entry if isinstance(entry, dict) else {"path": entry} for entry in data]


def _sum_entry(line: str, source: str) -> dict[str, Any]:
    match = _SUM_LINE.fullmatch(line) or _BSD_LINE.fullmatch(line)
    if match is None:
        raise FetchError(f"{source}: expected a checksum and a path, found {line!r}")
    parts = match.groupdict()
    algorithm = parts.get("algorithm")
    return {
        "path": parts["path"],
        "checksum": f"{algorithm}:{parts['digest']}" if algorithm else parts["digest"],
    }


def _table_entries(lines: list[str]) -> list[dict[str, Any]]:
    if not lines:
        return []
    rows = list(csv.reader(lines, delimiter="\t" if "\t" in lines[0] else ","))
    header = [word.strip().lower() for word in rows[0]]
    if any(name in header for name in _PATH_NAMES):
        rows = rows[1:]
    else:
        header = ["path", "size", "checksum"]
    return [dict(zip(header, (cell.strip() for cell in row), strict=False)) for row in rows]


def _first(entry: dict[str, Any], names: tuple[str, ...]) -> tuple[str, Any]:
    """Return the first of some columns that is filled, and its value."""
    return next(((n, entry[n]) for n in names if entry.get(n) not in (None, "")), ("", None))


def _file(entry: dict[str, Any], source: str, base_url: str) -> RemoteFile:
    _, name = _first(entry, _PATH_NAMES)
    if not isinstance(name, str):
        raise FetchError(f"{source}: expected a path in each entry, found {entry!r}")
    path = safe_path(name, source)
    size = _size(_first(entry, _SIZE_NAMES)[1], path, source)
    kind, digest = _first(entry, _SUM_NAMES)
    if digest is not None and kind != "checksum" and ":" not in str(digest):
        digest = f"{kind}:{digest}"
    checksum = None if digest is None else Checksum.parse(str(digest))
    return RemoteFile(path, base_url + quote(path), size, checksum=checksum)


def _size(value: Any, path: str, source: str) -> int | None:
    if value is None:
        return None
    text = str(value)
    if not (text.isascii() and text.isdigit()):
        raise FetchError(f"{source}: {path}: expected a size in bytes, found {text!r}")
    return int(text)
