"""Does the record of a tomogram's outputs tell what is whole, whenever a run is killed?"""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from deepict_dask.core.errors import WorkFailedError
from deepict_dask.engine import patience
from deepict_dask.jobs.runs.stage_record import StageRecord


@pytest.fixture
def record(tmp_path):
    return StageRecord(tmp_path)


def test_what_is_promised_answers_once_it_has_its_name(record, tmp_path):
    """A kill between the naming of an output and the note that it is finished repeats nothing."""
    record.promise("scores.zarr", "key")
    assert not record.answers("scores.zarr", "key")
    assert record.outputs() == []
    (tmp_path / "scores.zarr").mkdir()
    assert record.answers("scores.zarr", "key")
    assert not record.answers("scores.zarr", "another")


def test_an_output_of_another_request_does_not_answer_what_will_replace_it(record, tmp_path):
    (tmp_path / "scores.zarr").mkdir()
    record.note("scores.zarr", "old")
    record.promise("scores.zarr", "new")
    assert not record.answers("scores.zarr", "new")
    record.note("scores.zarr", "new")
    assert record.answers("scores.zarr", "new")


def test_what_took_the_name_of_an_output_does_not_answer_its_request(record, tmp_path):
    """A kill between the naming of an output and its note: the old one's key is not its key."""
    scores = tmp_path / "scores.zarr"
    scores.mkdir()
    record.note("scores.zarr", "old")
    record.promise("scores.zarr", "new")
    scores.rename(tmp_path / "scores.zarr.replaced")
    scores.mkdir()
    for _ in range(2):  # what is begun again does not change that
        assert not any(record.answers("scores.zarr", key) for key in ("old", "new"))
        record.promise("scores.zarr", "old")
    record.note("scores.zarr", "old")
    assert record.answers("scores.zarr", "old")


def test_an_output_that_was_not_replaced_after_all_answers_its_request(record, tmp_path):
    (tmp_path / "picks").mkdir()
    record.note("picks", "old")
    record.promise("picks", "new")
    assert record.answers("picks", "old")
    record.confirm("picks")
    (tmp_path / "picks" / "notes.txt").touch()
    assert record.answers("picks", "old")


def test_a_promise_is_told_to_nobody(tmp_path):
    told: list[str] = []
    record = StageRecord(tmp_path, told.append)
    record.promise("picks", "key")
    assert told == []
    record.note("picks", "key")
    assert told == ["picks"]


def test_a_kept_promise_is_not_written_again(record, tmp_path):
    """A kill after an output has its name finds no file half written beside it."""
    record.promise("picks", "key")
    (tmp_path / "picks").mkdir()
    before = (tmp_path / "stages.json").stat()
    record.note("picks", "key")
    after = (tmp_path / "stages.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_an_output_remembers_what_was_warned_of_before_it_was_made(record, tmp_path):
    record.note("equalized.zarr", "key")
    record.hear("odd")
    record.hear("odd")
    record.note("scores.zarr", "key")
    later = StageRecord(tmp_path)
    assert [later.warnings_of(name) for name in ("equalized.zarr", "scores.zarr", "picks")] == [
        [], ["odd"], []
    ]  # fmt: skip
    (tmp_path / "scores.zarr").mkdir()
    assert later.outputs() == ["scores.zarr"]
    assert later.answers("scores.zarr", "key")
    later.note("scores.zarr", "another")  # made again, and nothing was odd
    assert later.warnings_of("scores.zarr") == []


@pytest.fixture
def unanswering(monkeypatch):
    """Let files fail to be read as text this many times."""

    def fail(n_times):
        failures = iter(range(n_times))

        def read_text(path, **_options):
            if next(failures, None) is not None:
                raise OSError(errno.ESTALE, "Stale file handle")
            return path.read_bytes().decode()

        monkeypatch.setattr(Path, "read_text", read_text)

    monkeypatch.setattr(patience.time, "sleep", lambda _seconds: None)
    return fail


def test_a_record_that_storage_gives_late_answers(record, tmp_path, unanswering):
    """Else all of a tomogram would be made again after a hiccup of a file server."""
    record.note("picks", "key")
    (tmp_path / "picks").mkdir()
    unanswering(len(patience.PAUSES_S))
    assert record.answers("picks", "key")


def test_a_record_that_storage_never_gives_is_not_taken_for_an_empty_one(record, unanswering):
    record.note("picks", "key")
    unanswering(len(patience.PAUSES_S) + 1)
    with pytest.raises(WorkFailedError, match=r"stages\.json: .*Stale file handle"):
        record.answers("picks", "key")
