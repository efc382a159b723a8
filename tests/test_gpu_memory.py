"""How much a GPU is given at once, and what happens where that is too much: all on the CPU.

The policy is plain arithmetic; the way out is tried with an op that runs out of memory.
"""

import logging
import sys
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import standin_cupy as standin
from hypothesis import given
from hypothesis import strategies as st

from deepict_dask.backend import (
    Device,
    compute_on,
    device_budget,
    free_device_bytes,
    is_on_device,
    to_host,
)
from deepict_dask.core.errors import BudgetError
from deepict_dask.core.geometry import Block, Box, Grid
from deepict_dask.models.checkpoint import save_model
from deepict_dask.models.unet3d import UNet3D, UNet3DSettings
from deepict_dask.segmentation.device_windows import Halving, halves, scores_that_fit
from deepict_dask.segmentation.window_choice import choose_device_window
from deepict_dask.segmentation.windows import SegmentOp, device_window_bytes

pytestmark = pytest.mark.usefixtures("nothing_said_before")
GPU = Device("cuda")


def test_a_budget_is_less_than_what_is_free_and_comes_in_steps():
    for gib in (1, 2, 8, 24, 80, 141):
        budget = device_budget(gib << 30)
        assert 0 <= budget < gib << 30
        assert gib < 8 or budget == device_budget((gib << 30) - (1 << 20))
    assert device_budget(0) == 0


@pytest.mark.usefixtures("stand_in")
def test_free_memory_is_asked_of_the_current_gpu():
    assert free_device_bytes() == 8 << 30
    # work areas of plans go back to the pool first
    assert sys.modules["cupy"].emptied == ["plans", "pool"]


class Planned:
    """An op of 100 bytes a voxel on a GPU and 10 on the host."""

    name, halo, align, n_classes, fixed_bytes = "segment", (8, 8, 8), 4, 1, 0

    def bytes_of(self, grid):
        return 10 * int(np.prod(grid.window_shape))

    def device_bytes_of(self, grid):
        return 100 * int(np.prod(grid.window_shape))


def test_the_whole_tomogram_is_one_window_where_it_fits():
    shape, chunk = (464, 928, 928), (128, 128, 128)
    whole = 100 * 464 * 928 * 928
    grid = choose_device_window(shape, chunk, Planned(), whole, device_bytes=whole)
    assert grid.n_blocks == 1


@pytest.mark.parametrize("part", [2, 10, 40])
def test_windows_fit_the_gpu_and_the_host(part):
    shape, chunk = (464, 928, 928), (128, 128, 128)
    whole = 464 * 928 * 928
    grid = choose_device_window(
        shape, chunk, Planned(), 10 * whole, device_bytes=100 * whole // part
    )
    assert grid.n_blocks > 1
    assert Planned().device_bytes_of(grid) <= 100 * whole // part
    on_host = choose_device_window(
        shape, chunk, Planned(), 10 * whole // part, device_bytes=100 * whole
    )
    assert Planned().bytes_of(on_host) <= 10 * whole // part


def test_a_gpu_too_small_for_a_chunk_gets_chunks_to_be_halved():
    grid = choose_device_window((256,) * 3, (128,) * 3, Planned(), 1 << 30, device_bytes=1 << 20)
    assert grid.write_shape == (128, 128, 128)
    with pytest.raises(BudgetError, match="segment needs"):
        choose_device_window((256,) * 3, (128,) * 3, Planned(), 1 << 20, device_bytes=1 << 20)


class Small:
    """A box blur on a GPU that holds so many voxels, and no more."""

    halo, align = (2, 2, 2), 4

    def __init__(self, most):
        self.most, self.tried = most, []

    def __call__(self, block, window):
        assert window.shape == block.read.shape
        assert all(a % self.align == 0 for a in block.read.start)
        self.tried.append(window.size)
        if window.size > self.most:
            raise standin.OutOfMemoryError("Out of memory allocating 9 bytes")
        return blurred(window)[None]


def blurred(volume):
    padded = np.pad(volume, 2)
    return sum(
        np.roll(padded, (a, b, c), (0, 1, 2))[2:-2, 2:-2, 2:-2]
        for a in range(-2, 3)
        for b in range(-2, 3)
        for c in range(-2, 3)
    ).astype(np.float32)


@pytest.mark.parametrize("most", [2000, 5000, 10**6])
def test_a_window_that_does_not_fit_is_halved_until_it_does(most, caplog):
    shape = (16, 24, 40)
    volume = np.random.default_rng(0).integers(0, 9, shape).astype(np.float32)
    small, halving = Small(most), Halving()
    whole = blurred(volume)
    for block in Grid(shape, (16, 24, 20), small.halo, small.align):
        window = volume[block.read.slices]
        found = scores_that_fit(small, small, block, window, halving)
        assert found.shape == (1, *block.write.shape)
        np.testing.assert_array_equal(found[0], whole[block.write.slices])
    said = [record for record in caplog.records if "smaller ones" in record.message]
    assert len(said) == (most < 10**6)
    failures = Counter(size for size in small.tried if size > most)
    # once more with empty pools; what was too large then is not tried again
    assert set(failures.values()) <= {2}


def test_a_cell_that_does_not_fit_is_the_error_of_the_library():
    (block,) = Grid((8, 8, 8), (8, 8, 8))
    with pytest.raises(standin.OutOfMemoryError):
        scores_that_fit(Small(1), Small(1), block, np.zeros((8, 8, 8), np.float32), Halving())


def test_another_error_is_not_taken_for_a_lack_of_memory():
    def broken(_block, _window):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    (block,) = Grid((8, 8, 8), (8, 8, 8))
    with pytest.raises(RuntimeError, match="illegal"):
        scores_that_fit(Small(1), broken, block, np.zeros((8, 8, 8), np.float32), Halving())


@given(
    start=st.tuples(*[st.integers(0, 5)] * 3), size=st.tuples(*[st.integers(1, 9)] * 3),
    halo=st.integers(0, 9),
)  # fmt: skip
def test_halves_write_every_voxel_once_and_read_what_they_need(start, size, halo):
    op = SimpleNamespace(halo=(halo,) * 3, align=4)
    write = Box(
        tuple(4 * a for a in start), tuple(4 * a + 3 * n for a, n in zip(start, size, strict=True))
    )
    read = Box(
        tuple(max(0, a - 4 * (-(-halo // 4))) for a in write.start),
        tuple(b + halo + 3 for b in write.stop),
    )
    parts = halves(Block(0, (0, 0, 0), read, write), op)
    if parts is None:
        assert max(write.shape) <= 7
        return
    times = np.zeros(write.shape, int)
    for part in parts:
        times[part.write.slices_in(write)] += 1
        assert all(a % 4 == 0 for a in part.read.start)
        for axis in range(3):
            assert part.read.start[axis] <= max(read.start[axis], part.write.start[axis] - halo)
            assert part.read.stop[axis] >= min(read.stop[axis], part.write.stop[axis] + halo)
    assert (times == 1).all()


@pytest.mark.usefixtures("stand_in")
def test_work_without_enough_memory_is_done_on_the_host_and_says_so_once(caplog):
    def work(voxels, nothing):
        assert nothing is None
        if is_on_device(voxels):
            voxels += 1
            raise standin.OutOfMemoryError("Out of memory allocating 9 bytes")
        return 2 * voxels

    voxels = np.arange(3.0)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            np.testing.assert_array_equal(compute_on(GPU, "label", work, voxels, None), [0, 2, 4])
    assert ["too little GPU memory" in record.message for record in caplog.records] == [True]


@pytest.mark.usefixtures("stand_in")
def test_work_that_finds_memory_full_is_tried_again_on_the_gpu_with_empty_pools(caplog):
    places = []

    def work(voxels):
        places.append(is_on_device(voxels))
        if len(places) == 1:
            raise standin.OutOfMemoryError("Out of memory allocating 9 bytes")
        return 2 * to_host(voxels)

    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(compute_on(GPU, "label", work, np.arange(3.0)), [0, 2, 4])
    assert places == [True, True]
    assert not caplog.records


def test_the_plan_of_a_window_on_a_gpu_grows_with_it_and_holds_its_arrays(tmp_path):
    # of full resolution, so that predicting takes more than labelling afterwards
    network = UNet3D(UNet3DSettings(depth=2, initial_features=4, n_classes=2))
    path = tmp_path / "model.safetensors"
    save_model(path, network, class_names=("a", "b"), voxel_spacing_angstrom=None)
    op = SegmentOp(str(path), 0.0, 1.0)
    sizes = [device_window_bytes((n, n, n), [op], op.align) for n in (64, 256, 512)]
    flipped = replace(op, average_flips=True)
    assert device_window_bytes((256,) * 3, [flipped], op.align) >= sizes[1] + 4 * 5 * 256**3
    assert sizes == sorted(sizes)
    # the tomogram as read and normalised, two classes of scores
    assert all(size > 4 * 4 * n**3 for size, n in zip(sizes, (64, 256, 512), strict=True))
