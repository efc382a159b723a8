"""Nothing half done looks done: outputs in the making, marks of finished blocks, error texts."""

from __future__ import annotations

import errno
import multiprocessing
import os
import time

import numpy as np
import pytest
from distributed import KilledWorker
from distributed.client import FutureCancelledError
from hypothesis import given
from hypothesis import strategies as st
from staging_scenes import ONE_KEY, OTHER_KEY, make

from deepict_dask.core.errors import (
    BudgetError,
    LedgerError,
    OutputExistsError,
    VoxelValueError,
    WorkFailedError,
)
from deepict_dask.core.geometry import Grid
from deepict_dask.engine import Ledger, StagedOutput, fingerprint, request_key
from deepict_dask.engine.arrays import explain, naming
from deepict_dask.engine.budget import format_bytes, parse_bytes
from deepict_dask.engine.staging import ZARR_MARKS

GRID = Grid((4, 4, 4), (2, 2, 2))


class KilledError(Exception):
    """Stands for a process that ends here."""


def leave_unfinished(path, key=ONE_KEY, *, marked=(0, 3), **options):
    """Stop in the middle of the work, after some blocks."""

    def work():
        with StagedOutput(path, key, **options) as staged, staged.open_ledger(GRID) as ledger:
            (staged.partial / "half").write_text("half")
            for number in marked:
                ledger.mark(number)
            raise KilledError

    with pytest.raises(KilledError):
        work()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_output_appears_only_when_it_is_committed(tmp_path):
    path = tmp_path / "deep" / "picks"
    with StagedOutput(path, ONE_KEY) as staged:
        (staged.folder / "picks.csv").write_text("half")
        assert not path.exists()
        staged.commit()
    assert names(path) == ["picks.csv"]
    assert names(path.parent) == ["picks"]


def test_a_failure_before_any_block_leaves_nothing(tmp_path):
    def fail():
        with StagedOutput(tmp_path / "picks", ONE_KEY) as staged:
            (staged.partial / "picks.csv").write_text("half")
            raise KilledError

    with pytest.raises(KilledError):
        fail()
    assert names(tmp_path) == []


def test_finished_blocks_outlive_a_failure_and_the_same_request_continues(tmp_path):
    path = tmp_path / "scores.zarr"
    leave_unfinished(path)
    assert names(tmp_path) == ["scores.zarr.partial"]
    with StagedOutput(path, ONE_KEY) as staged:
        assert staged.resumed
        assert (staged.partial / "half").read_text() == "half"
        with staged.open_ledger(GRID) as ledger:
            assert ledger.n_resumed == 2
            assert list(ledger.unfinished()) == [1, 2, 4, 5, 6, 7]


def test_finished_blocks_outlive_a_second_run_that_fails_before_its_first_block(tmp_path):
    path = tmp_path / "scores.zarr"
    leave_unfinished(path)

    def fail_early():
        with StagedOutput(path, ONE_KEY):
            raise KilledError

    with pytest.raises(KilledError):
        fail_early()
    with StagedOutput(path, ONE_KEY) as staged, staged.open_ledger(GRID) as ledger:
        assert ledger.n_resumed == 2


def test_another_request_starts_afresh(tmp_path):
    path = tmp_path / "scores.zarr"
    leave_unfinished(path)
    with StagedOutput(path, OTHER_KEY) as staged:
        assert not staged.resumed
        assert names(staged.partial) == [".request", OTHER_KEY[:12]]
        assert names(staged.folder) == []
        with staged.open_ledger(GRID) as ledger:
            assert ledger.n_resumed == 0


def test_marks_of_another_grid_are_not_trusted(tmp_path):
    path = tmp_path / "scores.zarr"
    leave_unfinished(path)
    with (
        StagedOutput(path, ONE_KEY) as staged,
        staged.open_ledger(Grid((4, 4, 4), (2, 2, 4))) as ledger,
    ):
        assert ledger.n_resumed == 0


def test_what_exists_is_kept_until_its_replacement_is_finished(tmp_path):
    path = tmp_path / "picks"
    make(path, text="first")
    with pytest.raises(OutputExistsError, match=r"found one.*--overwrite"):
        make(path, text="second")
    leave_unfinished(path, overwrite=True)
    assert (path / "picks.csv").read_text() == "first"
    make(path, text="second", overwrite=True)
    assert (path / "picks.csv").read_text() == "second"
    assert names(tmp_path) == ["picks"]


def test_what_a_user_has_put_into_the_folder_goes_into_the_one_that_replaces_it(tmp_path, caplog):
    path, own = tmp_path / "picks", frozenset({"picks.csv", "run.json", "label_map.zarr"})
    make(path, text="first")
    (path / "curated.mod").write_text("hours of work")
    (path / "notes").mkdir()
    (path / "label_map.zarr").mkdir()  # ours, of settings that are not wanted any more
    make(path, text="second", overwrite=True, own=own)
    assert (path / "picks.csv").read_text() == "second"
    assert (path / "curated.mod").read_text() == "hours of work"
    assert names(path) == ["curated.mod", "notes", "picks.csv", "run.json"]
    assert names(tmp_path) == ["picks"]
    assert "curated.mod, notes" in caplog.text


def test_a_file_that_the_list_of_our_own_lacks_is_a_mistake(tmp_path):
    with pytest.raises(ValueError, match=r"expected files of \['picks.csv'\], found .*run.json"):
        make(tmp_path / "picks", text="first", own=frozenset({"picks.csv"}))
    assert not (tmp_path / "picks").exists()


def test_what_a_user_has_put_into_the_folder_outlives_a_kill_while_it_is_replaced(tmp_path):
    path, own = tmp_path / "picks", frozenset({"picks.csv", "run.json"})
    make(path, text="second")
    make(tmp_path / "picks.replaced", text="first")  # as it was when the run was killed
    (tmp_path / "picks.replaced/curated.mod").write_text("hours of work")
    StagedOutput(path, ONE_KEY, own=own).clear_remains()
    assert (path / "curated.mod").read_text() == "hours of work"
    assert (path / "picks.csv").read_text() == "second"
    assert names(tmp_path) == ["picks"]


def test_a_file_is_replaced_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "map.mrc"
    path.write_text("first")
    steps = []
    monkeypatch.setattr("os.replace", lambda a, b: steps.append((a, b)))
    with StagedOutput(path, ONE_KEY, overwrite=True, marks=()) as staged:
        (staged.partial / "volume.mrc").write_text("second")
        staged.commit("volume.mrc")
    assert steps == [(tmp_path / "map.mrc.partial" / "volume.mrc", path)]


@pytest.mark.parametrize("marks", [("run.json",), ZARR_MARKS, ()])
def test_only_an_old_output_of_the_same_kind_is_replaced(tmp_path, marks):
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    file.write_text("a file")
    for path, allowed in ((folder, False), (file, not marks)):
        if allowed:
            with StagedOutput(path, ONE_KEY, overwrite=True, marks=marks):
                continue
        with (
            pytest.raises(OutputExistsError, match="expected an earlier output"),
            StagedOutput(path, ONE_KEY, overwrite=True, marks=marks),
        ):
            raise AssertionError("must not come here")
    assert names(tmp_path) == ["file", "folder"]


def test_an_empty_folder_may_be_replaced(tmp_path):
    (tmp_path / "picks").mkdir()
    make(tmp_path / "picks", overwrite=True)
    assert (tmp_path / "picks" / "picks.csv").exists()


def hold(path, ready):
    """Make an output in another process until it is killed."""
    with StagedOutput(path, ONE_KEY):
        ready.send("making it")
        time.sleep(600)


def test_a_second_process_is_refused_while_the_first_lives(tmp_path):
    path = tmp_path / "picks"
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=hold, args=(path, there))
    process.start()
    try:
        assert here.poll(60)
        with pytest.raises(LedgerError, match=r"picks: .*another run making it"):
            make(path)
        assert (tmp_path / "picks.partial").is_dir(), "the first run's work was removed"
    finally:
        process.kill()
        process.join(60)
    make(path)
    assert names(tmp_path) == ["picks"]


def test_a_lock_file_that_a_kill_left_does_not_lock(tmp_path):
    (tmp_path / "picks.lock").touch()
    make(tmp_path / "picks")
    assert names(tmp_path) == ["picks"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(WorkFailedError, match=r"file/picks: .*File exists"):
        make(tmp_path / "file" / "picks")


@given(
    marked=st.sets(st.integers(0, 7)),
    sessions=st.integers(1, 3),
)
def test_a_ledger_keeps_the_marks_of_all_sessions(tmp_path_factory, marked, sessions):
    path = tmp_path_factory.mktemp("ledger") / "marks"
    parts = np.array_split(sorted(marked), sessions)
    for k, part in enumerate(parts):
        with Ledger(path, ONE_KEY, 8) as ledger:
            assert ledger.n_resumed == sum(len(p) for p in parts[:k])
            for number in part:
                ledger.mark(int(number))
    with Ledger(path, ONE_KEY, 8) as ledger:
        assert ledger.n_finished == len(marked)
        assert list(ledger.unfinished()) == sorted(set(range(8)) - marked)


@pytest.mark.parametrize(("key", "n_blocks"), [(OTHER_KEY, 8), (ONE_KEY, 9)])
def test_a_ledger_of_another_request_is_forgotten(tmp_path, key, n_blocks):
    with Ledger(tmp_path / "marks", ONE_KEY, 8) as ledger:
        ledger.mark(5)
    with Ledger(tmp_path / "marks", key, n_blocks) as ledger:
        assert list(ledger.unfinished()) == list(range(n_blocks))


def test_a_ledger_that_was_cut_short_counts_what_is_missing_as_unfinished(tmp_path):
    path = tmp_path / "marks"
    with Ledger(path, ONE_KEY, 8) as ledger:
        for number in range(8):
            ledger.mark(number)
    os.truncate(path, path.stat().st_size - 3)
    with Ledger(path, ONE_KEY, 8) as ledger:
        assert list(ledger.unfinished()) == [5, 6, 7]


def test_a_request_key_depends_on_every_value_and_on_no_order():
    one = {"input": "a", "chunks": (1, 2, 3), "threshold": 0.5}
    assert request_key(one) == request_key(dict(reversed(one.items())))
    keys = {request_key({**one, name: None}) for name in one} | {request_key(one)}
    assert len(keys) == 4


def test_a_fingerprint_changes_with_one_byte_in_the_middle(tmp_path):
    path = tmp_path / "tomo.mrc"
    path.write_bytes(bytes(1000))
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    before = fingerprint(path)
    path.write_bytes(bytes(500) + b"x" + bytes(499))
    os.utime(path, ns=times)
    assert fingerprint(path) != before


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full; free some space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full"),
        (OSError("2253 requested and 1159 written"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), "Permission denied (/a/b)"),
        (MemoryError(), "out of memory; use smaller --chunks or more --memory"),
        (FutureCancelledError("key", "lost"), "the connection to the workers was lost"),
        (KilledWorker("task", None, 3), "its worker died again and again"),
        (RuntimeError("the cat"), "RuntimeError: the cat"),
    ],
)
def test_an_error_of_a_task_becomes_where_what_and_what_to_do(error, says):
    found = explain(error, "segment, block 3", "out.zarr")
    assert found.exit_code == 1
    assert str(found).startswith("out.zarr: segment, block 3 failed: ")
    assert says in str(found)
    assert "again" in str(found)


def test_an_error_that_has_a_message_keeps_it():
    error = BudgetError("segment: needs more")
    assert explain(error, "segment", "out.zarr") is error


def test_what_a_kernel_says_of_voxels_gets_the_name_of_the_file():
    def refuse(kind):
        with naming("a.mrc"):
            raise kind("expected numbers, found NaN")

    with pytest.raises(VoxelValueError, match=r"^a\.mrc: expected numbers, found NaN$"):
        refuse(VoxelValueError)
    with pytest.raises(BudgetError, match=r"^expected numbers"):
        refuse(BudgetError)


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("1024", 1024),
        ("4GiB", 4 << 30),
        (" 4 gib ", 4 << 30),
        ("1.5MiB", 3 << 19),
        ("200 MB", 200_000_000),
        ("1PiB", 1 << 50),
        ("2TB", 2 * 10**12),
    ],
)
def test_sizes_are_read_with_binary_and_decimal_units(text, n_bytes):
    assert parse_bytes(text) == n_bytes


@pytest.mark.parametrize("text", ["", "GiB", "4 gigs", "four", "nan", "1e999GiB", "4GiB4"])
def test_what_is_no_size_is_refused_with_an_example(text):
    with pytest.raises(BudgetError, match=r"--memory: expected a size such as 4GiB") as found:
        parse_bytes(text)
    assert repr(text) in str(found.value)


@given(st.integers(0, 1 << 60))
def test_a_size_in_words_is_read_back_within_its_digits(n_bytes):
    assert parse_bytes(format_bytes(n_bytes)) == pytest.approx(n_bytes, rel=0.06, abs=1)
