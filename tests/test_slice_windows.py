"""Which windows a 2D network gets: they fit the memory, write whole chunks, and none is better."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import untouched
from slice_scenes import model_paths, one_thread

from deepict_dask.core.errors import BudgetError
from deepict_dask.models.checkpoint import save_model
from deepict_dask.models.unet2d import UNet2D, UNet2DSettings
from deepict_dask.segmentation.slices import SliceGrid, SliceSegmentOp, choose_slice_window

__all__ = ["model_paths", "one_thread"]


def planned(path, shape, budget, *, sigma=0.0, n_workers=1, chunk=(64, 64, 64)):
    op = SliceSegmentOp(path, 0.0, 1.0, 0, z_sigma=sigma)
    return op, choose_slice_window(shape, chunk, op, budget, n_workers=n_workers)


def test_a_large_budget_takes_the_volume_in_one_window(model_paths):
    op, grid = planned(model_paths[4], (101, 930, 960), 1 << 40, sigma=5.0)
    assert grid.n_blocks == 1
    assert grid.window_shape == (101, 944, 960)
    assert op.bytes_needed(grid.window_shape) > 8 * 101 * 930 * 960


def test_a_thin_volume_is_cut_into_columns_and_a_deep_one_into_slabs(model_paths):
    _, thin = planned(model_paths[1], (40, 1500, 1500), 200 << 20, sigma=5.0)
    assert thin.counts[0] == 1
    assert thin.counts[1] * thin.counts[2] > 1
    _, deep = planned(model_paths[4], (1500, 200, 200), 200 << 20, sigma=5.0)
    assert deep.counts[0] > 1
    assert deep.counts[1:] == (1, 1)


@settings(max_examples=15)
@given(
    st.tuples(st.integers(1, 600), st.integers(20, 1100), st.integers(20, 1100)),
    st.integers(90, 3000), st.sampled_from([0.0, 5.0]), st.integers(1, 5),
)  # fmt: skip
def test_the_chosen_window_fits_writes_whole_chunks_and_none_is_better(
    model_paths, shape, budget_mib, sigma, n_workers
):
    op, grid = planned(model_paths[2], shape, budget_mib << 20, sigma=sigma, n_workers=n_workers)
    assert op.bytes_needed(grid.window_shape) <= budget_mib << 20
    assert all(w % 64 == 0 for w in grid.write_shape)
    assert grid.halo == (4 * sigma, op.settings.halo, op.settings.halo)

    def voxels(g):
        window = math.prod(g.window_shape[1:])
        return window * sum(block.read.shape[0] for block in g)

    for size in [(64, 64, 64), (640, 64, 64), (64, 1152, 1152), (192, 192, 192), (640, 1152, 64)]:
        other = SliceGrid(shape, size, op.halo, op.align, one_shape=True)
        if op.bytes_needed(other.window_shape) <= budget_mib << 20:
            assert voxels(grid) <= voxels(other) * (1 if n_workers == 1 else 1.5)


def test_several_workers_share_a_volume_that_fits_one_window(model_paths):
    _, grid = planned(model_paths[1], (256, 256, 256), 1 << 40, n_workers=4)
    assert grid.n_blocks == 4
    assert grid.counts == (4, 1, 1)  # in z nothing is repeated


def test_windows_have_one_shape_in_y_and_x_and_none_is_larger_than_planned(model_paths):
    _, grid = planned(model_paths[4], (90, 700, 701), 100 << 20, sigma=2.0)
    shapes = {block.read.shape for block in grid}
    assert grid.n_blocks > 4
    assert len({tuple(-(-n // 16) for n in s[1:]) for s in shapes}) == 1  # once they are padded
    assert all(np.all(np.array(s) <= grid.window_shape) for s in shapes)
    assert all(b.read.start[1] % 16 == b.read.start[2] % 16 == 0 for b in grid)


def test_a_budget_below_one_chunk_names_what_would_do(model_paths):
    with pytest.raises(BudgetError) as caught:
        planned(model_paths[4], (512, 900, 900), 100 << 20, chunk=(256, 256, 256))
    words = str(caught.value)
    assert "segment needs " in words
    assert "halo 0 in z, 112 in y and x" in words
    assert "but the budget is 100 MiB; chunks of 1x256x256 would need" in words
    with pytest.raises(BudgetError, match=r"even chunks of 1x256x256 .* --memory"):
        planned(model_paths[4], (512, 900, 900), 1 << 20, chunk=(256, 256, 256))


MEASURE = """
import resource, sys
import numpy as np, torch
torch.set_num_threads(1)
from deepict_dask.config import SliceTiling
from deepict_dask.core.geometry import Grid
from deepict_dask.segmentation.deepict_slices import CompatSliceOp, CompatSlices
from deepict_dask.segmentation.slices import SliceSegmentOp
path, way, *shape = sys.argv[1:]
shape = tuple(map(int, shape))
def op_for(shape):
    if way == "exact":
        return SliceSegmentOp(path, 0.0, 1.0, 0, z_sigma=5.0, threshold=0.5)
    tiling = SliceTiling(tile=(144, 144), tiles=(4, 4), crop=24, z_cutoff=0)
    return CompatSliceOp(path, 0.0, 1.0, CompatSlices(shape, tiling), 0)
def run(shape):
    op_for(shape).apply(Grid(shape, shape)[0], np.ones(shape, "float32"))
run((2, 96, 96))
before = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
run(shape)
# VmHWM, since ru_maxrss starts at the size of the parent that forked us
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
peak = int(status["VmHWM"].split()[0]) * 1024
op = op_for(shape)
print(before, op.fixed_bytes, peak - before, op.bytes_needed(shape))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("way", "features", "shape"),
    [
        ("exact", 8, (60, 480, 464)),
        ("exact", 16, (2, 928, 960)),
        ("exact", 4, (200, 240, 240)),
        ("compat", 4, (60, 300, 320)),
    ],
)
def test_the_planned_memory_bounds_the_measured_peak(tmp_path, way, features, shape):
    path = tmp_path / "m.safetensors"
    network = UNet2D(UNet2DSettings(4, features, 1))
    save_model(path, network, class_names=["a"], voxel_spacing_angstrom=None)
    peak = needed = 0
    for _ in range(3):  # a process may find room in what it holds already, and grow by less
        result = subprocess.run(
            [sys.executable, "-c", MEASURE, str(path), way, *map(str, shape)],
            check=True,
            capture_output=True,
            text=True,
            timeout=240,
            env=untouched(),
        )
        before, fixed, found, needed = map(int, result.stdout.split())
        assert before <= fixed
        peak = max(peak, found)
        if needed <= 1.7 * peak:
            break
    assert peak <= needed <= 1.7 * peak
