"""Merging sorted files equals sorting all rows, whatever is held at a time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepict_dask.core.errors import WorkFailedError
from deepict_dask.engine import runs as runs_module
from deepict_dask.engine.runs import RowFile, RowWriter, merge_runs, rebatched

ROW = np.dtype([("key", np.float64), ("place", np.int64)])


def stored(path, rows):
    with RowWriter(path, rows.dtype) as writer:
        for part in np.array_split(rows, 3):
            writer.append(part)
    return writer.rows


@st.composite
def sorted_runs(draw):
    """Runs of few different keys, so that many are equal, in and between the runs."""
    lengths = draw(st.lists(st.integers(0, 40), max_size=12))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    span = draw(st.sampled_from([3, 1000]))
    shift = draw(st.sampled_from([0, 20]))  # runs one behind another, partly
    runs = []
    for number, length in enumerate(lengths):
        rows = np.zeros(length, ROW)
        rows["key"] = np.sort(rng.integers(0, span, length) + shift * number)
        rows["place"] = sum(lengths[:number]) + np.arange(length)
        runs.append(rows)
    return runs


@given(sorted_runs(), st.integers(1, 9))
def test_merged_runs_are_all_rows_in_stable_order(tmp_path, runs, held):
    files = [stored(tmp_path / f"run{i}", rows) for i, rows in enumerate(runs)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs_module, "_LEAST_ROWS_HELD", held)
        merged = list(merge_runs(files, lambda rows: rows["key"], held_rows=1))
    everything = np.concatenate([np.zeros(0, ROW), *runs])
    expected = everything[np.argsort(everything["key"], kind="stable")]
    np.testing.assert_array_equal(np.concatenate([np.zeros(0, ROW), *merged]), expected)
    assert max((len(part) for part in merged), default=0) <= held * len(runs)


def test_integers_beyond_the_precision_of_floats_are_told_apart(tmp_path):
    left, right = np.array([2**60, 2**60 + 2]), np.array([2**60 + 1, 2**60 + 3])
    files = [stored(tmp_path / name, rows) for name, rows in (("l", left), ("r", right))]
    merged = np.concatenate(list(merge_runs(files, lambda rows: rows)))
    assert merged.tolist() == [2**60, 2**60 + 1, 2**60 + 2, 2**60 + 3]


@given(st.lists(st.integers(0, 30), max_size=20), st.integers(1, 25))
def test_rebatched_rows_are_the_same_rows_in_batches_of_one_size(lengths, n):
    stops = np.cumsum([0, *lengths])
    batches = list(rebatched((np.arange(a, b) for a, b in pairwise(stops)), n))
    assert [len(batch) for batch in batches[:-1]] == [n] * (len(batches) - 1)
    whole = np.concatenate([np.zeros(0, int), *batches])
    assert whole.tolist() == list(range(stops[-1]))


@given(st.integers(0, 20), st.integers(0, 25), st.integers(0, 25), st.integers(0, 20))
def test_parts_of_a_row_file_are_those_of_the_array(tmp_path, n, start, stop, split):
    rows = np.zeros(n, ROW)
    rows["place"] = np.arange(n)
    np.save(tmp_path / "a.npy", rows)
    file = RowFile.of_npy(tmp_path / "a.npy")
    np.testing.assert_array_equal(file[start:stop], rows[start:stop])
    low, high = min(split, n), n
    np.testing.assert_array_equal(file.part(low, high)[:], rows[low:high])
    np.testing.assert_array_equal(np.concatenate(list(file.batches(7))), rows)


def test_a_file_that_became_shorter_is_refused(tmp_path):
    file = stored(tmp_path / "rows", np.arange(100))
    with (tmp_path / "rows").open("r+b") as opened:
        opened.truncate(200)
    with pytest.raises(WorkFailedError, match=r"rows: expected 100 rows"):
        list(merge_runs([file], lambda rows: rows))
