"""A GPU is fed: windows are read and results written by threads beside the one that computes.

What happens at the same time is shown by tasks that wait for one another, not by clocks: a limit on
how long they wait only ends a test that fails. What must not happen is given a moment to: on a slow
machine a fault may go unseen, but nothing fails that is right.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from gpu_scenes import PATIENCE_S, turn_is_free

from deepict_dask.backend import after_turn, device_turn
from deepict_dask.core.errors import DeepictError, WorkFailedError
from deepict_dask.core.geometry import Box, Grid
from deepict_dask.core.ops import ChunkOp, TreeReduction
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.engine import Ledger, map_chunks, reduce_chunks
from deepict_dask.engine.arrays import run_block
from deepict_dask.engine.device_part import device_part
from deepict_dask.engine.long_tasks import run_apart
from deepict_dask.io.array import ArrayReader
from deepict_dask.io.ome_zarr_write import create_ome_zarr
from deepict_dask.io.volumes import open_volume
from deepict_dask.jobs.picking.choose_and_label import ChooseAndLabel
from deepict_dask.jobs.picking.kept_leaves import KeptLeaves
from deepict_dask.labelling import LabelReduction, SelectSettings

pytestmark = pytest.mark.usefixtures("nothing_said_before")
SHAPE = (4, 4, 12)


@dataclass(frozen=True)
class Told(ChunkOp):
    """Doubles a window, once it has told a function of its block."""

    told: object = None
    device: str = "cuda"
    name: str = "double"
    dtype: str = "float32"

    def apply(self, block, window):
        if self.told is not None:
            self.told(block.number)
        return 2 * window

    def bytes_needed(self, window_shape):
        return 8 * int(np.prod(window_shape))


class Volume(ArrayReader):
    """A volume of ones that tells of each block that is read or written."""

    def __init__(self, grid, *, on_read=None, on_write=None):
        super().__init__(np.ones(grid.shape, np.float32))
        self.numbers = {block.write: block.number for block in grid}
        self.on_read, self.on_write = on_read, on_write
        self.write_shape = grid.write_shape
        self.written = np.zeros(grid.shape, np.float32)

    def read(self, box):
        if self.on_read is not None:
            self.on_read(self.numbers[box])
        return super().read(box)

    def write(self, box, voxels):
        if self.on_write is not None:
            self.on_write(self.numbers[box])
        self.written[box.slices] = voxels


def in_threads(op, source, sink, grid):
    """Do the tasks of all blocks, three at a time; return what they raised."""
    with ThreadPoolExecutor(3) as pool:
        tasks = [pool.submit(run_block, op, [source], sink, block) for block in grid]
        return [task.exception() for task in tasks]


def three_blocks():
    return Grid(SHAPE, (4, 4, 4))


# --- what happens at the same time


def test_one_window_is_read_while_another_is_computed_and_a_third_is_written():
    meeting = threading.Barrier(3)
    first_computed = threading.Event()

    def computing(number):
        if number == 0:
            first_computed.set()
        if number == 1:
            meeting.wait(PATIENCE_S)

    def reading(number):
        if number > 0:  # block 0 is first on the GPU
            assert first_computed.wait(PATIENCE_S)
        if number == 2:
            meeting.wait(PATIENCE_S)

    def writing(number):
        if number == 0:
            meeting.wait(PATIENCE_S)

    grid = three_blocks()
    volume = Volume(grid, on_read=reading, on_write=writing)
    assert in_threads(Told(computing), volume, volume, grid) == [None] * 3
    assert (volume.written == 2).all()


def test_never_are_two_windows_on_the_gpu():
    at_the_door, second = threading.Semaphore(0), threading.Event()
    inside = []

    def computing(number):
        inside.append(number)
        if len(inside) == 1:
            for _ in range(3):  # all windows are read, and nothing else holds them up
                assert at_the_door.acquire(timeout=PATIENCE_S)
            assert not second.wait(0.3)
        else:
            second.set()

    grid = three_blocks()
    volume = Volume(grid, on_read=lambda _number: at_the_door.release())
    assert in_threads(Told(computing), volume, volume, grid) == [None] * 3
    assert sorted(inside) == [0, 1, 2]


def test_tasks_without_a_gpu_do_not_wait_for_one_another():
    meeting = threading.Barrier(3)
    grid = three_blocks()
    volume = Volume(grid)
    op = Told(lambda _number: meeting.wait(PATIENCE_S), device="cpu")
    assert in_threads(op, volume, volume, grid) == [None] * 3


def test_what_is_put_off_is_done_in_order_once_the_gpu_is_free():
    done = []
    with device_turn():
        with device_turn():
            after_turn(lambda: done.append(("first", turn_is_free())))
        after_turn(lambda: done.append(("second", turn_is_free())))
        assert done == []
    assert done == [("first", True), ("second", True)]
    after_turn(lambda: done.append("at once"))
    assert done[2:] == ["at once"]


def test_what_is_put_off_is_dropped_if_the_turn_fails_and_the_next_turn_is_clean():
    done = []
    with suppress(ValueError), device_turn():
        after_turn(lambda: done.append("never"))
        raise ValueError("computing")
    with device_turn():
        after_turn(lambda: done.append("next"))
    assert done == ["next"]


def test_what_is_put_off_is_put_off_for_its_own_thread_only():
    done = []
    with device_turn():
        other = threading.Thread(target=lambda: after_turn(lambda: done.append("other")))
        other.start()
        other.join()
        assert done == ["other"]


# --- reductions that write


@pytest.mark.usefixtures("stand_in")
def test_chosen_voxels_are_written_off_the_gpu_and_before_their_leaf(tmp_path):
    shape = (6, 8, 8)
    (block,) = Grid(shape, shape)
    leaves = tmp_path / "leaves"
    leaves.mkdir()
    seen = []

    def write(box, voxels):
        seen.append((turn_is_free(), sorted(leaves.iterdir()), box, voxels.sum()))

    writer = SimpleNamespace(path="memory", write=write)
    score = np.random.default_rng(0).random(shape, np.float32)
    inner = ChooseAndLabel(
        LabelReduction(shape, SelectSettings(threshold=0.5)), writer, device="cuda"
    )
    reduction = KeptLeaves(inner, str(leaves))
    with device_part(reduction):
        reduction.measure(block, score)
        assert seen == []
    assert seen == [(True, [], block.write, np.count_nonzero(score > 0.5))]
    assert [path.name for path in leaves.iterdir()] == ["0.leaf"]


# --- errors


FAILING = 4


@dataclass(frozen=True)
class FailingOp(Told):
    failing: int | None = None

    def apply(self, block, window):
        if block.number == self.failing:
            raise ValueError("no such kernel")
        return 2 * window


@dataclass(frozen=True)
class FailingReader:
    inner: object
    box: Box | None

    path, header = "source.zarr", VolumeHeader((4, 4, 36), "float32", 10.0)

    def read(self, box):
        if box == self.box:
            raise PermissionError(13, "Permission denied")
        return self.inner.read(box)


@dataclass(frozen=True)
class FailingWriter:
    inner: object
    box: Box | None

    path, header = "sink.zarr", VolumeHeader((4, 4, 36), "float32", 10.0)
    write_shape = (4, 4, 4)

    def write(self, box, voxels):
        if box == self.box:
            raise PermissionError(13, "Permission denied")
        self.inner.write(box, voxels)


@pytest.mark.parametrize("where", ["read", "op", "write"])
def test_an_error_is_that_of_its_block_and_what_is_marked_is_written(gpu_worker, tmp_path, where):
    grid = Grid((4, 4, 36), (4, 4, 4))
    box = grid[FAILING].write
    source = FailingReader(
        ArrayReader(np.ones(grid.shape, np.float32)), box if where == "read" else None
    )
    header = VolumeHeader(grid.shape, "float32", 10.0)
    store = create_ome_zarr(tmp_path / "out.zarr", header, chunks=(4, 4, 4))
    sink = FailingWriter(store, box if where == "write" else None)
    op = FailingOp(failing=FAILING if where == "op" else None)
    with Ledger(tmp_path / "ledger", "0" * 64, grid.n_blocks) as ledger:
        with pytest.raises(WorkFailedError, match=f"double, block {FAILING} failed"):
            map_chunks(gpu_worker, op, [source], sink, grid, ledger=ledger)
        unfinished = set(ledger.unfinished())
        assert FAILING in unfinished
        finished = [block for block in grid if block.number not in unfinished]
        reader = open_volume(tmp_path / "out.zarr", allow_missing_chunks=True)
        for block in finished:
            assert (reader.read(block.write) == 2).all()
        # what was not in the way of it goes on from there
        map_chunks(gpu_worker, FailingOp(), [source.inner], store, grid, ledger=ledger)
        assert list(ledger.unfinished()) == []
    assert (open_volume(tmp_path / "out.zarr").read(Box.whole(grid.shape)) == 2).all()


@dataclass(frozen=True)
class WritesLater(TreeReduction):
    """Counts blocks; what it writes after its turn fails for one of them."""

    device: str = "cuda"
    name: str = "count"

    def measure(self, block, *_windows):
        after_turn(lambda: self.write(block))
        return 1

    def write(self, block):
        if block.number == FAILING:
            raise PermissionError(13, "Permission denied", "mask.zarr")

    def combine(self, left, right):
        return left + right

    def finalize(self, partial):
        return partial

    def bytes_needed(self, _window_shape):
        return 0


def test_a_write_that_was_put_off_fails_the_reduction_it_belongs_to(gpu_worker):
    grid = Grid((4, 4, 36), (4, 4, 4))
    source = ArrayReader(np.ones(grid.shape, np.float32))
    with pytest.raises(DeepictError, match=r"count.* failed: Permission denied \(mask.zarr\)"):
        reduce_chunks(gpu_worker, WritesLater(), [source], grid)


# --- work that wants a GPU for itself


@dataclass(frozen=True)
class Long:
    """A long task; two of them would meet."""

    name: str
    device: str = "cuda"
    folder: str = "nowhere"

    def done(self):
        try:
            MEETING.wait(0.3)
        except threading.BrokenBarrierError:
            return "alone"
        return "beside another"


MEETING = threading.Barrier(2)


def test_a_training_has_the_gpu_worker_for_itself(gpu_worker):
    MEETING.reset()
    tasks = [Long("a"), Long("b")]
    ended = list(run_apart(gpu_worker, Long.done, tasks, stage="train"))
    assert sorted(result for _, result in ended) == ["alone", "alone"]
