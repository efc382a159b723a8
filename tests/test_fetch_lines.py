"""Fetching: whatever a server or a line does, a file arrives whole or is named as failed."""

from __future__ import annotations

import httpx
import pytest
from fetch_server import (
    QUICK,
    Handler,
    announce,
    busy,
    change,
    drop,
    end_early,
    one,
    settings,
    some_bytes,
    tree,
    wrong_range,
)

from deepict_dask.core.errors import WorkFailedError
from deepict_dask.fetch import (
    FetchError,
    FetchSettings,
    Patience,
    Web,
    fetch,
)
from deepict_dask.fetch.web import check_status

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
    again = one(archive, tmp_path)  # of what came whole nothing tells whether it is the same now
    again.check()
    assert (again.fetched, again.kept) == ((), ("f.bin",))


def test_one_missing_file_does_not_stop_the_others(deposit, tmp_path):
    path = "/10988/data/DEF/tomograms/TS_026.rec"
    deposit.fail(path, busy(404))
    report = fetch("EMPIAR-10988", tmp_path, settings("*.rec", empiar_url=deposit.url))
    assert list(tree(tmp_path)) == ["DEF/tomograms/TS 027.rec"]
    with pytest.raises(
        WorkFailedError, match=r"1 of 2 files could not be fetched(.|\n)*TS_026\.rec"
    ):
        report.check()
