"""Which files lie below a URL, by the folder pages that web servers make.

1. read the links of a page (Apache's table or plain form, nginx, lighttpd, Python's server);
2. keep those that name something directly in this folder: sort links, the parent and links of page
   headers and footers lead elsewhere and are never followed;
3. a link that ends in "/" is a folder: enter it if ``--match`` can reach something in it.

Apache rounds sizes (1.2G); what that allows is kept as a range and held against the true size.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urljoin, urlsplit

from .match import may_hold
from .remote import FetchError, RemoteFile, safe_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .web import Web

__all__ = ["Found", "Link", "list_folder", "read_links"]

_DEEPEST = 32
_SIZE_AFTER_DATE = re.compile(
    r"(?:\d{4}-\d{2}-\d{2}|\d{1,2}-[A-Za-z]{3}-\d{4})\s+\d{1,2}:\d{2}(?::\d{2})?\s+"
    r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[KMGTP]?)(?:i?B)?(?=\s|$)"
)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}


@dataclass(frozen=True, slots=True)
class Link:
    """A link of a folder page and the text that follows it."""

    href: str
    text: str


@dataclass
class Found:
    """What a walk has seen: files, and folders that were not entered."""

    files: list[RemoteFile] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


class _Links(HTMLParser):
    """Collects links, each with the text up to the end of its row or line."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.links: list[list[str]] = []
        self._open = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href")
        if tag == "a" and href is not None:
            self.links.append([href, ""])
            self._open = True
        elif tag in ("td", "tr", "li"):
            self._add(" ", last=tag != "td")

    def handle_data(self, data: str) -> None:
        line, newline, _ = data.partition("\n")
        self._add(line, last=bool(newline))

    def _add(self, text: str, *, last: bool) -> None:
        if self._open:
            self.links[-1][1] += text
            self._open = not last


def read_links(page: str) -> list[Link]:
    """Return the links of an HTML page in order, with the text behind each.

    Examples
    --------
    >>> read_links('<a href="a.rec">a.rec</a>   2021-03-04 10:11  1.2G')
    [Link(href='a.rec', text='a.rec   2021-03-04 10:11  1.2G')]
    """
    parser = _Links()
    parser.feed(page)
    parser.close()
    return [Link(href, text) for href, text in parser.links]


def list_folder(web: Web, url: str, patterns: Sequence[str]) -> tuple[Found, str]:
    """Walk the folder pages below a URL.

    Parameters
    ----------
    web
        Connections.
    url
        Of a folder.
    patterns
        Globs; folders that none can reach are skipped. None at all reach everything.

    Returns
    -------
    tuple
        What there is, sorted by path, and the URL of the folder after redirects.

    Raises
    ------
    FetchError
        If a page is not a listing, or holds a name that climbs out of its folder.
    """
    page, root = web.text(_as_folder(url))
    root = _as_folder(root)
    walk = _Walk(web, root, tuple(patterns))
    walk.add(page, root)
    walk.found.files.sort(key=lambda file: file.path)
    return walk.found, root


def _as_folder(url: str) -> str:
    bare = urlsplit(url)._replace(query="", fragment="")
    return bare._replace(path=f"{bare.path.rstrip('/')}/").geturl()


@dataclass
class _Walk:
    """Goes through the folders below ``root`` and gathers what they hold."""

    web: Web
    root: str
    patterns: tuple[str, ...]
    found: Found = field(default_factory=Found)

    def add(self, page: str, url: str) -> None:
        """Add the entries of one page, and of the folders it names."""
        folder = unquote(url[len(self.root) :])
        for name, text in _entries(page, url).items():
            path = safe_path(folder + name.rstrip("/"), url)
            if not name.endswith("/"):
                self.found.files.append(_file(path, self.root, text))
            elif self.patterns and not any(may_hold(path, p) for p in self.patterns):
                self.found.skipped.append(f"{path}/")
            else:
                self._enter(path)

    def _enter(self, path: str) -> None:
        """Read the page of a folder."""
        url = self.root + quote(f"{path}/")
        if path.count("/") >= _DEEPEST:
            raise FetchError(f"{url}: folders lie deeper than {_DEEPEST}; is the server in a loop?")
        page, final = self.web.text(url)
        if not final.startswith(self.root):
            raise FetchError(f"{url}: the server leads to {final}, out of {self.root}; refused")
        self.add(page, url)


def _entries(page: str, url: str) -> dict[str, str]:
    """Return name -> text of the entries of a folder page; folders end in "/"."""
    links = read_links(page)
    if not links and "<pre" not in page.lower() and "index of" not in page.lower():
        raise FetchError(
            f"{url}: expected a page that lists a folder, found one without links; give the URL of "
            "a file or of a folder, or --manifest"
        )
    entries: dict[str, str] = {}
    for link in links:
        name = _entry_name(link.href, url)
        if name is not None:
            # Apache links the icon as well as the name: the size stands behind the second.
            entries[name] = entries.get(name, "") + " " + link.text
    return entries


def _entry_name(href: str, url: str) -> str | None:
    """Return what a link names in this folder, or None where it leads elsewhere.

    Examples
    --------
    >>> here = "https://x.org/10988/data/"
    >>> [_entry_name(h, here) for h in ("a%20b.rec", "DEF/", "/10988/data/c.rec", "?C=N;O=D")]
    ['a b.rec', 'DEF/', 'c.rec', None]
    >>> [_entry_name(h, here) for h in ("../", "/10988/", "https://y.org/10988/data/a.rec")]
    [None, None, None]
    """
    try:
        target = urlsplit(urljoin(url, href.strip()))
    except ValueError:
        return None
    here = urlsplit(url)
    prefix = unquote(here.path)
    if (target.scheme, target.netloc) != (here.scheme, here.netloc) or target.query:
        return None
    # A dot segment that was packed as %2e%2e survives the join: it must not pass for a name.
    path = unquote(target.path)
    if not path.startswith(prefix) or path == prefix:
        return None
    name = path[len(prefix) :]
    inside = name.rstrip("/")
    return name if "/" not in inside or ".." in inside.split("/") else None


def _file(path: str, root: str, text: str) -> RemoteFile:
    least, most = size_range(text)
    exact = least if least == most else None
    return RemoteFile(path, root + quote(path), exact, least, most)


def size_range(text: str) -> tuple[int | None, int | None]:
    """Return the smallest and largest size that the text behind a link allows, in bytes.

    One unit of the last digit is allowed each way, and K may be 1000 or 1024.

    Examples
    --------
    >>> size_range("a.rec  2021-03-04 10:11  1.5K"), size_range("a  04-Mar-2021 10:11  1234")
    ((1400, 1639), (1234, 1234))
    >>> size_range("b/  2021-03-04 10:11    -")
    (None, None)
    """
    match = _SIZE_AFTER_DATE.search(text)
    if match is None:
        return None, None
    number, power = match["number"], _POWERS[match["unit"]]
    if not power and "." not in number:
        return int(number), int(number)
    step = 10.0 ** -len(number.partition(".")[2])
    least, most = (float(number) - step) * 1000.0**power, (float(number) + step) * 1024.0**power
    return max(round(least), 0), int(most) + 1
