"""Fetching: whatever a server or a line does, a file arrives whole or is named as failed."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote, unquote, urlsplit

import httpx
import pytest
import typer
from typer.testing import CliRunner

from deepict_dask.cli import fetching, run_guarded
from deepict_dask.core.errors import ConfigError, OutputExistsError, WorkFailedError
from deepict_dask.fetch import (
    FetchError,
    FetchSettings,
    NothingMatchesError,
    Patience,
    Selection,
    Web,
    fetch,
    survey,
)
from deepict_dask.fetch.empiar import entry_url
from deepict_dask.fetch.listing import read_links, size_range
from deepict_dask.fetch.manifest import parse_manifest
from deepict_dask.fetch.match import matches, may_hold
from deepict_dask.fetch.parallel import each
from deepict_dask.fetch.remote import safe_path
from deepict_dask.fetch.web import check_status

DATE = "Wed, 03 Mar 2021 10:11:12 GMT"
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


# What is there


def test_a_deposit_arrives_with_its_folders_and_nothing_else(deposit, tmp_path):
    report = fetch("EMPIAR-10988", tmp_path, settings(empiar_url=deposit.url))
    expected = {p.removeprefix("/10988/data/"): b for p, b in deposit.files.items()}
    del expected["/10988/10988.xml"]
    assert tree(tmp_path) == expected
    assert set(report.fetched) == set(expected)
    assert report.size_bytes == sum(map(len, expected.values()))
    assert report.failed == {}
    assert deposit.encodings == {"identity"}  # sizes and ranges of the bytes as stored


def test_only_what_matches_comes_and_other_folders_are_not_even_listed(deposit, tmp_path):
    fetch("EMPIAR-10988", tmp_path, settings("DEF/tomograms/*", empiar_url=deposit.url))
    assert set(tree(tmp_path)) == {"DEF/tomograms/TS_026.rec", "DEF/tomograms/TS 027.rec"}
    assert not [path for _, path, _ in deposit.asked if "VPP" in path or "particle" in path]


def test_a_pattern_without_a_match_is_an_error_that_names_what_is_there(deposit, tmp_path):
    with pytest.raises(NothingMatchesError, match=r"'DEF/tomogram/\*' means no file.*VPP/") as told:
        fetch("EMPIAR-10988", tmp_path, settings("*.rec", "DEF/tomogram/*", empiar_url=deposit.url))
    assert "DEF/tomograms/TS_026.rec" in str(told.value)
    assert tree(tmp_path) == {}


def test_a_folder_url_without_its_slash_is_a_folder(deposit, tmp_path):
    fetch(f"{deposit.url}10988/data/VPP", tmp_path, settings())
    assert set(tree(tmp_path)) == {"labels/TS_001.mrc"}


def test_the_sizes_of_a_survey_are_exact_though_the_listing_rounds(deposit):
    found = survey("EMPIAR-10988", settings("DEF/", empiar_url=deposit.url))
    assert [(o.remote.path, o.size_bytes) for o in found.offers] == [
        ("DEF/particle_lists/TS_026_fas.csv", 6),
        ("DEF/tomograms/TS 027.rec", 30_000),
        ("DEF/tomograms/TS_026.rec", 30_000),
    ]
    assert {m for m, p, _ in deposit.asked if not p.endswith("/")} == {"HEAD"}


def test_an_unknown_entry_is_refused_with_what_the_server_says(deposit, tmp_path):
    with pytest.raises(FetchError, match=r"/10989/data/: the server says 404"):
        fetch("EMPIAR-10989", tmp_path, settings(empiar_url=deposit.url))


@pytest.mark.parametrize("source", ["10988", "EMPIAR-x", "ftp://a.org/b/", "/data/b", "http:///a"])
def test_what_is_neither_entry_nor_url_is_refused(source):
    with pytest.raises(ConfigError, match="expected an entry such as EMPIAR-10988"):
        entry_url(source)


def test_links_of_nginx_python_and_apache_pages_are_read_with_their_sizes():
    nginx = (
        '<pre><a href="../">../</a>\n<a href="a.rec">a.rec</a>   03-Mar-2021 10:11   1234\n</pre>'
    )
    plain = '<img alt="[   ]"> <a href="b.rec">b.rec</a>   2021-03-03 10:11  1.2G  \n<hr>'
    python = '<ul><li><a href="c%20d.rec">c d.rec</a></li>\n<li><a href="e/">e/</a></li></ul>'
    rows = [
        (link.href, size_range(link.text)) for t in (nginx, plain, python) for link in read_links(t)
    ]
    assert rows == [
        ("../", (None, None)),
        ("a.rec", (1234, 1234)),
        ("b.rec", (1_100_000_000, 1_395_864_372)),
        ("c%20d.rec", (None, None)),
        ("e/", (None, None)),
    ]


def test_links_that_leave_the_folder_are_never_followed(archive, tmp_path):
    archive.put("/d/good.rec", b"good")
    archive.put("/secret.rec", b"secret")
    archive.pages["/d/"] = (
        '<a href="../secret.rec">x</a><a href="/secret.rec">x</a><a href="//evil.org/d/a.rec">x</a>'
        '<a href="https://evil.org/d/a.rec">x</a><a href="file:///etc/passwd">x</a>'
        '<a href="good.rec">x</a><a href="./">x</a><a href="javascript:x">x</a>'
    )
    fetch(f"{archive.url}d/", tmp_path / "here", settings())
    assert tree(tmp_path) == {"here/good.rec": b"good"}
    assert {p for _, p, _ in archive.asked} == {"/d/", "/d/good.rec"}


@pytest.mark.parametrize(
    "href", ["%2e%2e%2fsecret.rec", "..%5csecret.rec", "a%00b", "a/..%2f..%2fb"]
)
def test_a_packed_name_that_climbs_out_is_refused(archive, tmp_path, href):
    archive.pages["/d/"] = f'<a href="good.rec">x</a><a href="{href}">x</a>'
    with pytest.raises(FetchError, match="expected a path inside the folder"):
        fetch(f"{archive.url}d/", tmp_path, settings())
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    "name", ["../a", "a/../b", "/etc/x", "a//b", "C:\\x", "C:x", "a\nb", "", "."]
)
def test_a_path_of_a_manifest_that_leaves_the_folder_is_refused(name):
    with pytest.raises(FetchError, match=r"m\.csv: expected a path inside the folder"):
        safe_path(name, "m.csv")


def test_a_page_without_links_is_no_listing(archive, tmp_path):
    archive.pages["/d/"] = "<html>Please log in</html>"
    with pytest.raises(FetchError, match="expected a page that lists a folder"):
        fetch(f"{archive.url}d/", tmp_path, settings())


def test_a_server_whose_folders_never_end_is_left(archive, tmp_path):
    archive.page = lambda folder: (
        '<a href="again/">again/</a>' if folder.startswith("/d/") else None
    )
    with pytest.raises(FetchError, match="is the server in a loop"):
        fetch(f"{archive.url}d/", tmp_path, settings())


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("*.rec", {"D/t/a.rec", "b.rec"}),
        ("/D/t/*", {"D/t/a.rec"}),
        ("D/*", {"D/c.mrc"}),
        ("D/", {"D/t/a.rec", "D/c.mrc"}),
        ("**/[ab].rec", {"D/t/a.rec", "b.rec"}),
        ("D/**/c.mrc", {"D/c.mrc"}),
        ("d/*", set()),
    ],
)
def test_a_pattern_means_these_files_and_its_folders_are_entered(pattern, meant):
    paths = {"D/t/a.rec", "D/c.mrc", "b.rec"}
    assert {p for p in paths if matches(p, pattern)} == meant
    for path in meant:
        folders = path.split("/")[:-1]
        assert all(may_hold("/".join(folders[: n + 1]), pattern) for n in range(len(folders)))


# Manifests and checksums

SUM = hashlib.md5(b"abc", usedforsecurity=False).hexdigest()
LONG = hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize(
    "text",
    [
        f"path,size,checksum\nd/a.rec,3,{SUM}\n",
        f"# list\nd/a.rec,3,md5:{SUM}\n",
        f"md5\tbytes\tfile\n{SUM}\t3\td/a.rec\n",
        f'[{{"path": "d/a.rec", "size": 3, "md5": "{SUM}"}}]',
        f'{{"files": [{{"name": "./d/a.rec", "size_bytes": 3, "checksum": "MD5:{SUM}"}}]}}',
        f'{{"d/a.rec": {{"size": "3", "checksum": "{SUM}"}}}}',
    ],
)
def test_every_form_of_manifest_says_the_same(text):
    (file,) = parse_manifest(text, "m", "http://x.org/")
    assert (file.path, file.url, file.size_bytes) == ("d/a.rec", "http://x.org/d/a.rec", 3)
    assert (file.checksum.algorithm, file.checksum.digest) == ("md5", SUM)


@pytest.mark.parametrize(
    "text", [f"{LONG}  a b.rec\n", f"{LONG.upper()} *./a b.rec\n", f"SHA256 (a b.rec) = {LONG}\n"]
)
def test_the_output_of_checksum_programs_is_a_manifest(text):
    (file,) = parse_manifest(text, "m", "http://x.org/")
    assert (file.path, file.url) == ("a b.rec", "http://x.org/a%20b.rec")
    assert file.checksum.digest == LONG


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.rec\na.rec\n", "found a.rec twice"),
        ("\n# nothing\n", "found none in it"),
        ("path,size\na.rec,1.2G\n", "expected a size in bytes, found '1.2G'"),
        (f"{SUM}  a.rec\nnonsense\n", "expected a checksum and a path, found 'nonsense'"),
        ("path,md5\na.rec,12ab\n", "expected md5, sha1, sha256 or sha512"),
        (f"path,sha256\na.rec,{SUM}\n", "expected md5, sha1, sha256 or sha512"),
        ('[{"size": 3}]', "expected a path in each entry"),
        ("{broken", "expected JSON"),
        ("path\n../a.rec\n", "expected a path inside the folder"),
    ],
)
def test_a_manifest_that_says_nonsense_is_refused(text, message):
    with pytest.raises(FetchError, match=message):
        parse_manifest(text, "m", "http://x.org/")


def test_a_manifest_replaces_the_listing_and_its_sizes_save_questions(archive, tmp_path):
    body = archive.put("/d/s/a.rec", some_bytes(5000))
    (tmp_path / "m.csv").write_text(f"path,size\ns/a.rec,{len(body)}\n")
    fetch(f"{archive.url}d", tmp_path / "to", settings(manifest=str(tmp_path / "m.csv")))
    assert tree(tmp_path / "to") == {"s/a.rec": body}
    assert archive.asked == [("GET", "/d/s/a.rec", None)]


def test_a_server_that_contradicts_the_manifest_is_not_asked_twice(archive, tmp_path):
    archive.put("/d/a.rec", some_bytes(5000))
    archive.put("/d/m.csv", b"path,size\na.rec,5001\n")
    report = fetch(f"{archive.url}d/", tmp_path, settings(manifest=f"{archive.url}d/m.csv"))
    assert "expected 5001 bytes as the list says, the server has 5000" in report.failed["a.rec"]
    assert len(archive.gets("/d/a.rec")) == 1
    assert tree(tmp_path) == {}


def test_checksums_are_compared_and_files_without_one_are_named(deposit, tmp_path):
    path = "DEF/tomograms/TS_026.rec"
    digest = hashlib.sha256(deposit.files[f"/10988/data/{path}"]).hexdigest()
    (tmp_path / "sums").write_text(f"{digest}  data/{path}\n")
    chosen = settings("*.rec", empiar_url=deposit.url, checksums=str(tmp_path / "sums"))
    report = fetch("EMPIAR-10988", tmp_path / "to", chosen)
    assert report.unverified == ("DEF/tomograms/TS 027.rec",)


def test_checksums_of_other_files_are_refused(deposit, tmp_path):
    (tmp_path / "sums").write_text(f"{SUM}  other.rec\n")
    chosen = settings("*.rec", empiar_url=deposit.url, checksums=str(tmp_path / "sums"))
    with pytest.raises(FetchError, match=r"--checksums: .*found others, such as other\.rec"):
        fetch("EMPIAR-10988", tmp_path / "to", chosen)


def test_bytes_with_another_checksum_are_never_put_in_place(archive, tmp_path):
    archive.put("/f.bin", b"abd")
    (tmp_path / "sums").write_text(f"{SUM}  f.bin\n")
    report = one(archive, tmp_path / "to", selection=Selection(checksums=str(tmp_path / "sums")))
    assert f"expected md5 {SUM}" in report.failed["f.bin"]
    assert len(archive.gets("/f.bin")) == 1 + QUICK.retries
    assert tree(tmp_path / "to") == {}


# Servers and lines that misbehave


def test_a_dropped_connection_is_continued_where_it_broke(archive, tmp_path):
    body = archive.put("/f.bin", some_bytes(300_000))
    archive.fail("/f.bin", drop(100_000), drop(50_000))
    one(archive, tmp_path).check()
    assert tree(tmp_path) == {"f.bin": body}
    assert archive.gets("/f.bin") == [None, "bytes=100000-", "bytes=150000-"]


def test_a_server_that_ignores_ranges_sends_the_file_anew(archive, tmp_path):
    body = archive.put("/f.bin", some_bytes(300_000))
    archive.ranges = False
    archive.fail("/f.bin", drop(100_000))
    one(archive, tmp_path).check()
    assert tree(tmp_path) == {"f.bin": body}
    assert archive.gets("/f.bin") == [None, "bytes=100000-"]


@pytest.mark.parametrize("etags", [True, False])
def test_a_file_that_changes_between_attempts_is_not_a_mixture(archive, tmp_path, etags):
    archive.put("/f.bin", some_bytes(200_000, "old"))
    new = some_bytes(250_000, "new")
    archive.etags, archive.dates = etags, False
    archive.fail("/f.bin", change(new, after=100_000))
    report = one(archive, tmp_path)
    if etags:
        assert tree(tmp_path) == {"f.bin": new}
    else:  # nothing but the size tells the two apart: the server contradicts itself
        assert "first announced 200000 bytes, and now 250000" in report.failed["f.bin"]
        assert not (tmp_path / "f.bin").exists()
        one(archive, tmp_path).check()
        assert tree(tmp_path) == {"f.bin": new}


@pytest.mark.parametrize("etags", [True, False])
def test_ranges_are_asked_for_under_the_condition_of_an_unchanged_file(archive, tmp_path, etags):
    archive.put("/f.bin", some_bytes(200_000, "old"))
    new = some_bytes(200_000, "new")
    archive.etags, archive.bare_ranges = etags, True
    archive.fail("/f.bin", change(new, after=100_000))
    one(archive, tmp_path).check()
    # Dates of one second cannot tell the two apart: nothing can, and checksums are for that.
    mixture = some_bytes(200_000, "old")[:100_000] + new[100_000:]
    assert tree(tmp_path) == {"f.bin": new if etags else mixture}


def test_without_a_validator_a_part_is_not_continued(archive, tmp_path):
    body = archive.put("/f.bin", some_bytes(200_000))
    archive.etags = archive.dates = False
    archive.fail("/f.bin", drop(100_000))
    one(archive, tmp_path).check()
    assert archive.gets("/f.bin") == [None, None]
    assert tree(tmp_path) == {"f.bin": body}


def test_a_server_that_ignores_if_range_is_found_out_by_its_etag(archive, tmp_path, monkeypatch):
    archive.put("/f.bin", some_bytes(200_000, "old"))
    new = some_bytes(200_000, "new")
    archive.fail("/f.bin", change(new, after=100_000))

    def start(self, _path):
        asked = self.headers.get("Range")
        return int(asked[6:-1]) if asked else None

    monkeypatch.setattr(Handler, "range_start", start)
    one(archive, tmp_path).check()
    assert tree(tmp_path) == {"f.bin": new}


def test_a_range_from_elsewhere_is_not_appended(archive, tmp_path):
    body = archive.put("/f.bin", some_bytes(200_000))
    archive.fail("/f.bin", drop(100_000), wrong_range)
    one(archive, tmp_path).check()
    assert tree(tmp_path) == {"f.bin": body}
    assert archive.gets("/f.bin") == [None, "bytes=100000-", None]


def test_a_server_that_announces_too_much_is_named_with_both_sizes(archive, tmp_path):
    archive.put("/f.bin", some_bytes(5000))
    archive.fail("/f.bin", *[announce(+10)] * 9)
    report = one(archive, tmp_path)
    assert "first announced 5000 bytes, and now 5010 (after 3 attempts)" in report.failed["f.bin"]
    assert tree(tmp_path) == {}


def test_a_server_that_announces_too_little_does_not_shorten_a_file(archive, tmp_path):
    archive.put("/f.bin", some_bytes(5000))
    archive.fail("/f.bin", *[announce(-10)] * 9)
    report = one(archive, tmp_path)
    assert "first announced 5000 bytes, and now 4990" in report.failed["f.bin"]
    assert tree(tmp_path) == {}


def test_a_short_body_under_a_long_length_keeps_its_bytes_for_the_next_run(archive, tmp_path):
    body = archive.put("/f.bin", some_bytes(200_000))
    archive.heads = False
    archive.fail("/f.bin", drop(50_000), *[drop(0)] * 9)
    report = one(archive, tmp_path)
    with pytest.raises(WorkFailedError, match=r"1 of 1 files.*\n  f\.bin  .*after 3 attempts"):
        report.check()
    assert (tmp_path / "f.bin.part").read_bytes() == body[:50_000]
    archive.fail("/f.bin")
    one(archive, tmp_path).check()
    assert archive.gets("/f.bin")[-1] == "bytes=50000-"
    assert tree(tmp_path) == {"f.bin": body}


def test_a_body_that_ends_early_without_a_word_is_continued(archive, tmp_path):
    body = archive.put("/f.bin", some_bytes(200_000))
    archive.fail("/f.bin", end_early)
    one(archive, tmp_path).check()
    assert archive.gets("/f.bin") == [None, "bytes=100000-"]
    assert tree(tmp_path) == {"f.bin": body}


def test_a_whole_part_needs_no_more_bytes(archive, tmp_path):
    body = archive.put("/f.bin", some_bytes(200_000))
    archive.fail("/f.bin", *[drop(50_000)] * 3)
    one(archive, tmp_path)
    (tmp_path / "f.bin.part").write_bytes(body)
    archive.fail("/f.bin")
    one(archive, tmp_path).check()
    assert archive.gets("/f.bin")[-1] == "bytes=200000-"
    assert tree(tmp_path) == {"f.bin": body}


def test_a_part_longer_than_the_file_is_thrown_away(archive, tmp_path):
    body = archive.put("/f.bin", some_bytes(200_000))
    archive.fail("/f.bin", *[drop(50_000)] * 3)
    one(archive, tmp_path)
    (tmp_path / "f.bin.part").write_bytes(body + b"more")
    archive.fail("/f.bin")
    one(archive, tmp_path).check()
    assert tree(tmp_path) == {"f.bin": body}


def test_a_part_of_another_url_is_not_continued(archive, tmp_path):
    archive.put("/f.bin", some_bytes(200_000))
    archive.fail("/f.bin", *[drop(50_000)] * 3)
    one(archive, tmp_path)
    body = archive.put("/x/f.bin", some_bytes(200_000))
    fetch(f"{archive.url}x/f.bin", tmp_path, settings())
    assert archive.gets("/x/f.bin") == [None]
    assert tree(tmp_path) == {"f.bin": body}


def test_a_busy_server_is_left_alone_as_long_as_it_asks(archive, tmp_path, monkeypatch):
    body = archive.put("/f.bin", some_bytes(5000))
    archive.fail("/f.bin", busy(503, "7"), busy(429, "Fri, 31 Dec 1999 23:59:59 GMT"))
    waits = []
    monkeypatch.setattr(Web, "pause", lambda _self, seconds: waits.append(seconds))
    one(archive, tmp_path).check()
    assert waits == [7.0, 0.0]
    assert tree(tmp_path) == {"f.bin": body}


def test_waits_double_up_to_a_limit(archive, tmp_path, monkeypatch):
    archive.put("/f.bin", b"abc")
    archive.fail("/f.bin", *[busy(500)] * 9)
    waits = []
    monkeypatch.setattr(Web, "pause", lambda _self, seconds: waits.append(seconds))
    patience = Patience(retries=5, first_wait_s=1.0, longest_wait_s=4.0)
    report = fetch(
        f"{archive.url}f.bin", tmp_path, FetchSettings(patience=patience, progress=False)
    )
    assert "the server says 500" in report.failed["f.bin"]
    assert [round(wait / full, 0) for wait, full in zip(waits, (1, 2, 4, 4, 4), strict=True)] == [
        1
    ] * 5


def test_a_server_that_asks_for_an_hour_is_given_up_at_once(archive, tmp_path):
    archive.put("/f.bin", b"abc")
    archive.fail("/f.bin", busy(503, "3600"))
    assert "come back in 3600 s" in one(archive, tmp_path).failed["f.bin"]
    assert len(archive.gets("/f.bin")) == 1


def test_progress_renews_the_retries(archive, tmp_path):
    body = archive.put("/f.bin", some_bytes(5 << 20))
    archive.fail("/f.bin", *[drop(1 << 20)] * 4)
    one(archive, tmp_path).check()
    assert QUICK.retries < 4
    assert tree(tmp_path) == {"f.bin": body}


def test_a_way_from_https_to_http_is_refused():
    first = httpx.Response(302, request=httpx.Request("GET", "https://a.org/f"))
    last = httpx.Response(200, request=httpx.Request("GET", "http://a.org/f"), history=[first])
    with pytest.raises(FetchError, match=r"leads from https to http://a\.org/f; refused"):
        check_status(last, "https://a.org/f")


def test_packed_bytes_are_not_taken_for_the_file(archive, tmp_path):
    archive.put("/f.bin", b"abc")
    archive.fail(
        "/f.bin", lambda h, _: h.answer(200, b"abc", headers=[("Content-Encoding", "gzip")])
    )
    assert (
        "expected the bytes as stored, found them in gzip" in one(archive, tmp_path).failed["f.bin"]
    )


def test_a_page_in_place_of_a_tomogram_is_noticed_by_the_size_in_the_listing(archive, tmp_path):
    archive.put("/d/a.rec", b"<html>Please log in</html>")
    archive.pages["/d/"] = '<a href="a.rec">a.rec</a> 2021-03-03 10:11  1.2G'
    report = fetch(f"{archive.url}d/", tmp_path, settings())
    assert "as the listing says, the server announces 26" in report.failed["a.rec"]


def test_a_server_without_head_is_no_hindrance(archive, tmp_path):
    body = archive.put("/f.bin", some_bytes(5000))
    archive.heads = False
    one(archive, tmp_path).check()
    assert tree(tmp_path) == {"f.bin": body}


def test_one_missing_file_does_not_stop_the_others(deposit, tmp_path):
    path = "/10988/data/DEF/tomograms/TS_026.rec"
    deposit.fail(path, busy(404))
    report = fetch("EMPIAR-10988", tmp_path, settings("*.rec", empiar_url=deposit.url))
    assert list(tree(tmp_path)) == ["DEF/tomograms/TS 027.rec"]
    with pytest.raises(
        WorkFailedError, match=r"1 of 2 files could not be fetched(.|\n)*TS_026\.rec"
    ):
        report.check()


# What is here already


def test_a_second_run_fetches_nothing(deposit, tmp_path):
    chosen = settings("*.rec", empiar_url=deposit.url)
    fetch("EMPIAR-10988", tmp_path, chosen)
    before = len([a for a in deposit.asked if a[0] == "GET" and a[1].endswith(".rec")])
    report = fetch("EMPIAR-10988", tmp_path, chosen)
    assert len([a for a in deposit.asked if a[0] == "GET" and a[1].endswith(".rec")]) == before == 2
    assert report.fetched == ()
    assert len(report.kept) == 2


def test_a_different_file_here_is_refused_before_anything_is_fetched(deposit, tmp_path):
    here = tmp_path / "DEF/tomograms/TS_026.rec"
    here.parent.mkdir(parents=True)
    here.write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match=r"TS_026\.rec: 4 bytes here, 30000 on the server"):
        fetch("EMPIAR-10988", tmp_path, settings("*.rec", empiar_url=deposit.url))
    assert tree(tmp_path) == {"DEF/tomograms/TS_026.rec": b"mine"}


def test_a_different_file_here_is_replaced_when_asked(archive, tmp_path):
    body = archive.put("/f.bin", some_bytes(5000))
    (tmp_path / "f.bin").write_bytes(b"mine")
    one(archive, tmp_path, overwrite=True).check()
    assert tree(tmp_path) == {"f.bin": body}


def test_a_file_of_the_right_size_but_another_checksum_is_refused(archive, tmp_path):
    archive.put("/f.bin", b"abc")
    (tmp_path / "f.bin").write_bytes(b"abd")
    (tmp_path / "sums").write_text(f"{SUM}  f.bin\n")
    with pytest.raises(OutputExistsError, match="3 bytes, but another checksum"):
        one(archive, tmp_path, selection=Selection(checksums=str(tmp_path / "sums")))


def test_a_disk_that_is_too_full_is_found_before_anything_is_fetched(
    archive, tmp_path, monkeypatch
):
    archive.put("/f.bin", some_bytes(5000))
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=4999))
    with pytest.raises(FetchError, match=r"expected 4\.9 KiB free for 1 files"):
        one(archive, tmp_path / "not" / "yet")
    assert archive.gets("/f.bin") == []


def test_names_that_would_overwrite_one_another_are_refused(archive, tmp_path):
    archive.put("/d/a.rec", b"a")
    archive.put("/d/a.rec.part", b"b")
    with pytest.raises(FetchError, match=r"a\.rec and a\.rec\.part cannot be fetched together"):
        fetch(f"{archive.url}d/", tmp_path, settings())


def test_a_part_that_another_program_writes_is_left_alone(archive, tmp_path):
    import fcntl

    archive.put("/f.bin", some_bytes(5000))
    with (tmp_path / "f.bin.part").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another program is fetching it" in one(archive, tmp_path).failed["f.bin"]


# The command


@pytest.fixture
def command():
    app = typer.Typer()
    app.callback()(lambda: None)
    fetching.register(app)
    return app


def exit_code(command, *words):
    """Run a command as the program does."""
    with pytest.raises(SystemExit) as left:
        run_guarded(lambda: command(["fetch", *map(str, words)], standalone_mode=False))
    return left.value.code


def test_the_command_lists_files_with_the_sum_of_their_sizes(command, deposit):
    words = ["fetch", "EMPIAR-10988", "--match", "*.rec", "--list", "--base-url", deposit.url]
    result = CliRunner().invoke(command, words)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "          30000  DEF/tomograms/TS 027.rec",
        "          30000  DEF/tomograms/TS_026.rec",
        "2 files, 60000 bytes (58.6 KiB)",
    ]


def test_the_command_fetches_from_the_mirror_of_the_environment(
    command, deposit, tmp_path, monkeypatch
):
    monkeypatch.setenv("DEEPICT_DASK_EMPIAR_URL", deposit.url)
    words = ["fetch", "EMPIAR-10988", str(tmp_path), "--match", "*.csv", "--match", "*.mrc"]
    result = CliRunner().invoke(command, words)
    assert result.exit_code == 0
    assert "2 files (29.3 KiB) fetched" in result.stdout
    assert "2 had no checksum: only their sizes were compared" in result.stdout
    assert len(tree(tmp_path)) == 2


def test_the_command_ends_with_1_and_a_table_when_files_fail(command, deposit, tmp_path, capsys):
    deposit.fail("/10988/data/DEF/tomograms/TS_026.rec", busy(500))
    words = (
        "EMPIAR-10988",
        tmp_path,
        "--match",
        "*.rec",
        "--base-url",
        deposit.url,
        "--retries",
        0,
    )
    assert exit_code(command, *words) == 1
    out, err = capsys.readouterr()
    assert "1 files (29.3 KiB) fetched" in out
    assert "error: 1 of 2 files could not be fetched" in err
    assert "  DEF/tomograms/TS_026.rec  the server says 500" in err


def test_the_command_ends_with_2_when_nothing_matches_or_no_folder_is_named(
    command, deposit, capsys
):
    words = ("EMPIAR-10988", "--base-url", deposit.url)
    assert exit_code(command, *words) == 2
    assert "expected a folder DEST to fill" in capsys.readouterr().err
    assert exit_code(command, *words, "x", "--match", "*.tif") == 2
    assert "'*.tif' means no file; there are DEF/" in capsys.readouterr().err


def test_a_listed_file_that_cannot_be_had_makes_the_list_fail(command, archive, capsys):
    archive.pages["/d/"] = '<a href="gone.rec">gone.rec</a>'
    assert exit_code(command, f"{archive.url}d/", "--list") == 1
    assert "1 of 1 files are listed but cannot be had\n  gone.rec" in capsys.readouterr().err


INTERRUPTED = """
import sys, typer
from deepict_dask.cli import fetching, run_guarded
app = typer.Typer()
app.callback()(lambda: None)
fetching.register(app)
run_guarded(lambda: app(["fetch", *sys.argv[1:]], standalone_mode=False))
"""


@pytest.mark.timeout(120)
def test_an_interrupted_fetch_leaves_a_part_that_the_next_run_continues(archive, tmp_path):
    body = archive.put("/f.bin", some_bytes(400_000))
    halfway, killed = threading.Event(), threading.Event()

    def stall(handler, path):
        handler.serve(path, limit=150_000)
        halfway.set()
        killed.wait(60)
        handler.close_connection = True

    archive.fail("/f.bin", stall)
    words = [sys.executable, "-c", INTERRUPTED, f"{archive.url}f.bin", str(tmp_path)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=os.environ.copy()) as child:
        assert halfway.wait(60)
        part = tmp_path / "f.bin.part"
        while child.poll() is None and not (part.exists() and part.stat().st_size == 150_000):
            threading.Event().wait(0.01)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=60)
    killed.set()
    assert child.returncode == 1
    assert "interrupted; run the same command again to continue" in err
    assert part.read_bytes() == body[:150_000]
    one(archive, tmp_path).check()
    assert archive.gets("/f.bin") == [None, "bytes=150000-"]
    assert tree(tmp_path) == {"f.bin": body}


def test_a_defect_in_one_thread_stops_the_others():
    with Web() as web:
        with pytest.raises(ZeroDivisionError):
            each(web, lambda n: 1 // n, [0, 1, 2], workers=1)
        assert web.stopped


def test_progress_is_lines_on_stderr_where_there_is_no_terminal(
    archive, tmp_path, capsys, monkeypatch
):
    archive.put("/f.bin", some_bytes(2048))
    monkeypatch.setattr("deepict_dask.fetch.progress._SECONDS_BETWEEN_LINES", -1.0)
    fetch(f"{archive.url}f.bin", tmp_path, FetchSettings(patience=QUICK))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == "fetch: 2.0 KiB of 2.0 KiB"


def test_the_package_of_fetching_does_not_load_the_engine():
    code = (
        "import sys, deepict_dask.fetch; print([m for m in ('dask', 'torch') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert said.stdout.strip() == "[]"
    assert Path(fetching.__file__).name == "fetching.py"
