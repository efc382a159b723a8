"""Fetching: what a source offers, what of it is meant, what it is compared with."""

from __future__ import annotations

import hashlib

import pytest
from fetch_server import (
    QUICK,
    SUM,
    one,
    settings,
    some_bytes,
    tree,
)

from deepict_dask.core.errors import ConfigError
from deepict_dask.fetch import (
    FetchError,
    NothingMatchesError,
    Selection,
    fetch,
    survey,
)
from deepict_dask.fetch.empiar import entry_url
from deepict_dask.fetch.listing import read_links, size_range
from deepict_dask.fetch.manifest import parse_manifest
from deepict_dask.fetch.match import matches, may_hold
from deepict_dask.fetch.remote import safe_path

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
