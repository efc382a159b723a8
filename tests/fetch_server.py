"""A small HTTP server that misbehaves on request, for the tests of fetching."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote, urlsplit

import pytest

from deepict_dask.fetch import (
    FetchSettings,
    Patience,
    Selection,
    fetch,
)

DATE = "Wed, 03 Mar 2021 10:11:12 GMT"
SUM = hashlib.md5(b"abc", usedforsecurity=False).hexdigest()
QUICK = Patience(retries=2, first_wait_s=0.0)


def some_bytes(n, seed=1):
    block = hashlib.sha512(str(seed).encode()).digest()
    return (block * (n // len(block) + 1))[:n]


class Archive:
    """Files and pages of a server, and what goes wrong with each next GET."""

    def __init__(self):
        self.files, self.pages, self.faults, self.asked = {}, {}, {}, []
        self.encodings = set()
        self.ranges = self.etags = self.dates = self.heads = True
        self.bare_ranges = False  # 206 without ETag and date
        self.url = ""

    def put(self, path, body):
        self.files[path] = body
        return body

    def fail(self, path, *faults):
        self.faults[path] = list(faults)

    def gets(self, path):
        """The Range headers of the GETs of a path."""
        return [rng for method, p, rng in self.asked if (method, p) == ("GET", path)]

    def etag(self, path):
        return f'"{hashlib.md5(self.files[path], usedforsecurity=False).hexdigest()}"'

    def page(self, folder):
        """A folder page as Apache makes it, sizes rounded."""
        if folder in self.pages:
            return self.pages[folder]
        names = {p[len(folder) :].partition("/") for p in self.files if p.startswith(folder)}
        if not names:
            return None
        rows = [f'<a href="{folder.rstrip("/").rpartition("/")[0]}/">Parent Directory</a> - ']
        for name, slash, _ in sorted(names):
            size = "-" if slash else apache_size(len(self.files[folder + name]))
            link = quote(name + slash)
            rows.append(
                f'<tr><td><a href="{link}"><img src="/i.png"></a></td><td><a href="{link}">{name}'
                f"</a></td><td>2021-03-03 10:11  </td><td>{size}</td><td>&nbsp;</td></tr>"
            )
        sorts = '<a href="?C=M;O=A">Last modified</a> <a href="?C=S;O=A">Size</a>'
        foot = '<a href="https://www.ebi.ac.uk/about/terms">Terms of use</a>'
        return f"<html><table>{sorts}\n{chr(10).join(rows)}</table>{foot}</html>"


def apache_size(n):
    if n < 973:
        return str(n)
    size, unit = n / 1024, "K"
    if size >= 973:
        size, unit = size / 1024, "M"
    return f"{size:.1f}{unit}" if size < 9.95 else f"{size:.0f}{unit}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def archive(self):
        return self.server.archive

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", length=None, headers=()):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
        self.wfile.flush()

    def do_HEAD(self):
        if self.archive.heads:
            self.do_GET()
        else:
            self.answer(405)

    def do_GET(self):
        archive, path = self.archive, unquote(urlsplit(self.path).path)
        archive.asked.append((self.command, path, self.headers.get("Range")))
        archive.encodings.add(self.headers.get("Accept-Encoding"))
        faults = archive.faults.get(path)
        if self.command == "GET" and faults:
            faults.pop(0)(self, path)
        elif path in archive.files:
            self.serve(path)
        elif path.endswith("/") and (page := archive.page(path)) is not None:
            self.answer(200, page.encode(), headers=[("Content-Type", "text/html;charset=UTF-8")])
        elif archive.page(f"{path}/") is not None:
            self.answer(301, headers=[("Location", f"{self.path}/")])
        else:
            self.answer(404)

    def stamp(self, path):
        tags = [("ETag", self.archive.etag(path))] if self.archive.etags else []
        return tags + ([("Last-Modified", DATE)] if self.archive.dates else [])

    def serve(self, path, limit=None):
        """Serve a file as a server should, or only its first ``limit`` bytes."""
        body, start = self.archive.files[path], self.range_start(path)
        total = len(body)
        if start is not None and start >= total:
            tell = [("Content-Range", f"bytes */{total}")]
            self.answer(416, headers=tell + self.stamp(path))
            return
        rest = body[start or 0 :]
        part = [] if start is None else [("Content-Range", f"bytes {start}-{total - 1}/{total}")]
        status = 200 if start is None else 206
        if status == 200 or not self.archive.bare_ranges:
            part += self.stamp(path)
        self.answer(status, rest[:limit], len(rest), part)

    def range_start(self, path):
        asked, condition = self.headers.get("Range"), self.headers.get("If-Range")
        fits = condition in (None, *(value for _, value in self.stamp(path)))
        if asked is None or not self.archive.ranges or not fits:
            return None
        return int(asked.removeprefix("bytes=").removesuffix("-"))


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that hangs up is what these tests are about."""


def drop(after):
    """Send some bytes of what was announced, then cut the line."""

    def fault(handler, path):
        handler.serve(path, limit=after)
        handler.close_connection = True

    return fault


def busy(status=503, wait=None):
    def fault(handler, _path):
        handler.answer(status, headers=[] if wait is None else [("Retry-After", wait)])

    return fault


def announce(n_more):
    """Announce more bytes than there are (or fewer), send what there is, and close."""

    def fault(handler, path):
        body = handler.archive.files[path]
        length = len(body) + n_more
        handler.answer(200, body[:length], length, handler.stamp(path))
        handler.close_connection = True

    return fault


def change(new, after=None):
    """Serve as usual, and replace the file afterwards."""

    def fault(handler, path):
        handler.serve(path, limit=after)
        handler.close_connection = True
        handler.archive.files[path] = new

    return fault


def wrong_range(handler, path):
    """Answer a range with bytes from elsewhere."""
    body = handler.archive.files[path]
    n_left = len(body) - int(handler.headers["Range"][6:-1])
    tell = [("Content-Range", f"bytes 0-{n_left - 1}/{len(body)}")]
    handler.answer(206, body[:n_left], headers=tell + handler.stamp(path))


def end_early(handler, path):
    """Send half of a file of unsaid length and close, as if that were all."""
    body = handler.archive.files[path]
    handler.send_response(200)
    for name, value in (*handler.stamp(path), ("Connection", "close")):
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])
    handler.close_connection = True


@pytest.fixture
def archive(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("DEEPICT_DASK_EMPIAR_URL", raising=False)
    server = QuietServer(("127.0.0.1", 0), Handler)
    server.archive = found = Archive()
    found.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def deposit(archive):
    """A small copy of an EMPIAR entry."""
    for path in ("DEF/tomograms/TS_026.rec", "DEF/tomograms/TS 027.rec", "VPP/labels/TS_001.mrc"):
        archive.put(f"/10988/data/{path}", some_bytes(30_000, path))
    archive.put("/10988/data/DEF/particle_lists/TS_026_fas.csv", b"1,2,3\n")
    archive.put("/10988/10988.xml", b"<entry/>")
    return archive


def settings(*patterns, **kwargs):
    selection = Selection(tuple(patterns), **kwargs)
    return FetchSettings(selection, workers=2, patience=QUICK, progress=False)


def one(archive, folder, **kwargs):
    """Fetch /f.bin of an archive."""
    chosen = FetchSettings(workers=1, patience=QUICK, progress=False, **kwargs)
    return fetch(f"{archive.url}f.bin", folder, chosen)


def tree(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }
