"""Plans of any length: what the driver holds and the scheduler knows does not grow with them."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest

from deepict_dask.core.errors import WorkFailedError
from deepict_dask.core.geometry import Grid
from deepict_dask.core.ops import ChunkOp, TreeReduction
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.engine import Ledger, SpillFolder, handover, map_chunks, reduce_chunks
from deepict_dask.engine.arrays import _fetched, run_each
from deepict_dask.engine.cluster import keep_flat


@dataclass(frozen=True)
class NoVolume:
    """Reads and writes a volume that is not there."""

    shape: tuple[int, int, int]
    path: str = "no volume"
    write_shape: tuple[int, int, int] = (1, 1, 1)

    @property
    def header(self):
        return VolumeHeader(self.shape, "uint8", 1.0)

    def read(self, box):
        return np.broadcast_to(np.uint8(1), box.shape)

    def write(self, box, array):
        assert array.shape == box.shape


@dataclass(frozen=True)
class Copy(ChunkOp):
    name: str = "copy"
    dtype: str = "uint8"

    def apply(self, block, *windows):  # noqa: ARG002 - the op's signature
        return windows[0]

    def bytes_needed(self, window_shape):  # noqa: ARG002 - the op's signature
        return 0


@dataclass(frozen=True)
class Numbers(TreeReduction):
    """Joins the numbers of the blocks; every block comes with some ballast."""

    ballast: int = 0
    bad: int = -1
    name: str = "numbers"

    def measure(self, block, *windows):  # noqa: ARG002 - the op's signature
        if block.number == self.bad:
            raise OSError(5, "Input/output error")
        return [(block.number, np.random.default_rng(block.number).bytes(self.ballast))]

    def combine(self, left, right):
        return left + right

    def finalize(self, partial):
        return [number for number, _ in partial]

    def bytes_needed(self, window_shape):  # noqa: ARG002 - the op's signature
        return 0


@dataclass
class NodeOfNumbers:
    """A partial that has nothing to leave in a folder."""

    numbers: list

    def spill(self):
        return self, {}


@dataclass(frozen=True)
class SpillingNumbers(Numbers):
    def measure(self, block, *windows):
        return NodeOfNumbers(super().measure(block, *windows))

    def combine(self, left, right):
        return NodeOfNumbers(left.numbers + right.numbers)

    def finalize(self, partial):
        return super().finalize(partial.numbers)


@contextmanager
def most_known(workers):
    """Give a list whose last number is the largest number of tasks the scheduler knew."""
    from distributed.diagnostics.plugin import SchedulerPlugin

    scheduler = workers.client.cluster.scheduler
    known = [0]

    class Count(SchedulerPlugin):
        def transition(self, *_args, **_kwargs):
            known[0] = max(known[0], len(scheduler.tasks))

    scheduler.add_plugin(Count(), name="most-known")
    try:
        yield known
    finally:
        scheduler.remove_plugin("most-known")


def limit(workers):
    """Tasks in flight; as many that ended and are being forgotten; and those of earlier tests."""
    return 3 * workers.in_flight()


def test_the_scheduler_knows_few_tasks_of_a_map_of_2000_blocks(two_workers):
    volume = NoVolume((10, 10, 20))
    done = []
    with most_known(two_workers) as known:
        map_chunks(
            two_workers, Copy(), [volume], volume, Grid(volume.shape, (1, 1, 1)),
            on_done=done.append,
        )  # fmt: skip
    assert sum(done) == 2000
    assert 0 < known[0] <= limit(two_workers)


@pytest.mark.parametrize("counts", [(10, 10, 20), (1, 1, 2000)])
def test_the_scheduler_knows_few_tasks_of_a_reduction_of_2000_leaves(two_workers, counts):
    done = []
    with most_known(two_workers) as known:
        numbers = reduce_chunks(
            two_workers, Numbers(), [NoVolume(counts)], Grid(counts, (1, 1, 1)),
            on_done=done.append,
        )  # fmt: skip
    assert sorted(numbers) == list(range(2000))
    assert sum(done) == 2000
    assert 0 < known[0] <= limit(two_workers)


def test_no_note_of_each_submission_stays_in_the_scheduler(two_workers):
    reduce_chunks(two_workers, Numbers(), [NoVolume((5, 5, 8))], Grid((5, 5, 8), (1, 1, 1)))
    spans = two_workers.client.cluster.scheduler.extensions["spans"].spans.values()
    notes = [len(span.metadata["collections"]) for span in spans if span.metadata]
    assert notes
    assert max(notes) == 1


class CountedLedger:
    """Has a million unfinished blocks and counts how many were asked for."""

    def __init__(self):
        self.n_asked, self.marked = 0, []

    def unfinished(self):
        for number in range(1_000_000):
            self.n_asked += 1
            yield number

    def mark(self, number):
        self.marked.append(number)


class EnoughError(Exception):
    pass


def test_a_map_of_a_million_windows_starts_before_it_has_listed_them(two_workers):
    volume, ledger = NoVolume((100, 100, 100)), CountedLedger()

    def stop(_n):
        raise EnoughError

    with pytest.raises(EnoughError):
        map_chunks(
            two_workers, Copy(), [volume], volume, Grid(volume.shape, (1, 1, 1)),
            ledger=ledger, on_done=stop,
        )  # fmt: skip
    assert len(ledger.marked) == 1
    assert ledger.n_asked <= two_workers.in_flight()


def test_a_reduction_of_a_million_leaves_starts_before_it_has_listed_them(two_workers, monkeypatch):
    from deepict_dask.engine import reduce

    listed = []
    monkeypatch.setattr(
        reduce, "tree_nodes", lambda counts, real=reduce.tree_nodes: counted(real(counts), listed)
    )

    def stop(_n):
        raise EnoughError

    shape = (100, 100, 100)
    with pytest.raises(EnoughError):
        reduce_chunks(two_workers, Numbers(), [NoVolume(shape)], Grid(shape, (1, 1, 1)),
                      on_done=stop)  # fmt: skip
    assert 0 < len(listed) <= 2 * two_workers.in_flight()


def counted(items, into):
    for item in items:
        into.append(item)
        yield item


def test_any_number_of_workers_joins_in_the_same_order(any_workers):
    counts = (3, 5, 7)
    grid = Grid(counts, (1, 1, 1))
    found = [
        reduce_chunks(workers, Numbers(), [NoVolume(counts)], grid)
        for workers in any_workers.values()
    ]
    assert found[0] == found[1] == found[2]
    assert sorted(found[0]) == list(range(105))


@pytest.mark.parametrize("counts", [(1, 1, 1), (3, 4, 5)])
def test_large_results_wait_in_files_that_are_gone_at_the_end(
    two_workers, tmp_path, monkeypatch, counts
):
    ballast = 2 * handover.TRAVELLING_BYTES
    discarded = []
    real = handover.HandedOver.discard

    def discard(packed):
        assert packed.content == b""
        assert packed.path is not None
        discarded.append(packed.path)
        real(packed)

    grid = Grid(counts, (1, 1, 1))
    expected = reduce_chunks(two_workers, Numbers(), [NoVolume(counts)], grid)
    monkeypatch.setattr(handover.HandedOver, "discard", discard)
    numbers = reduce_chunks(
        two_workers, SpillingNumbers(ballast), [NoVolume(counts)], grid,
        spill=SpillFolder(str(tmp_path)),
    )  # fmt: skip
    assert numbers == expected
    assert len(set(discarded)) >= grid.n_blocks
    assert list(tmp_path.iterdir()) == []


def test_large_results_travel_where_there_is_no_folder(two_workers):
    counts = (2, 3, 4)
    ballast = 2 * handover.TRAVELLING_BYTES
    numbers = reduce_chunks(
        two_workers, Numbers(ballast), [NoVolume(counts)], Grid(counts, (1,) * 3)
    )
    assert sorted(numbers) == list(range(24))


def test_a_leaf_that_fails_ends_the_reduction_with_its_stage_and_file(two_workers):
    with pytest.raises(WorkFailedError, match=r"no volume: numbers failed: Input/output error"):
        reduce_chunks(
            two_workers, Numbers(bad=7), [NoVolume((1, 1, 500))], Grid((1, 1, 500), (1, 1, 1))
        )


class LostFuture:
    """A result that was ready when it was reported, and went with its worker before the fetch."""

    status = "pending"

    def result(self):
        return 7


def test_a_result_that_is_lost_with_its_worker_is_waited_for(two_workers):
    lost, kept = LostFuture(), two_workers.client.submit(sum, [1, 2])
    kept.result()
    pending = {lost: 3, kept: 4}
    assert dict(_fetched(two_workers, [lost, kept], pending, "stage", "where")) == {3: 7, 4: 3}
    assert pending == {}


def test_a_block_that_fails_is_named(two_workers):
    def submit(number):
        return two_workers.client.submit(lambda: 1 // (number - 3), pure=False)

    results = run_each(two_workers, submit, range(50), stage="divide", where="here")
    with pytest.raises(WorkFailedError, match=r"here: divide, block 3 failed: ZeroDivisionError"):
        list(results)


def test_what_waits_for_others_is_started_once_they_have_ended(two_workers):
    started, ended = [], []

    def items():
        yield from (1, 2)
        while len(ended) < 2:
            yield None
        yield 3

    def submit(number):
        started.append((number, len(ended)))
        return two_workers.client.submit(lambda: number, pure=False)

    for number, result in run_each(two_workers, submit, items(), stage="s", where="here"):
        assert number == result
        ended.append(number)
    assert started == [(1, 0), (2, 0), (3, 2)]
    assert sorted(ended) == [1, 2, 3]


def test_a_ledger_gives_the_unfinished_blocks_of_a_long_plan_in_order(tmp_path):
    done = set(np.random.default_rng(0).choice(10_000, 700, replace=False).tolist())
    with Ledger(tmp_path / "ledger", "0" * 64, 10_000) as ledger:
        for number in done:
            ledger.mark(number)
        numbers = ledger.unfinished()
        assert next(numbers) == min(set(range(10_000)) - done)
        assert list(numbers) == sorted(set(range(10_000)) - done)[1:]


def test_a_scheduler_that_takes_no_plugin_is_no_reason_to_refuse_the_work():
    class Elsewhere:
        def register_plugin(self, _plugin):
            raise ModuleNotFoundError("No module named 'deepict_dask'")

    assert keep_flat(Elsewhere()) is None
