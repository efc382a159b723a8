"""A 2D network over a tomogram: exact whatever the windows, and as DeePiCt tiles it on request."""

from __future__ import annotations

import functools
import logging
import math
import subprocess
import sys

import mrcfile
import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from programs import marks
from scipy.ndimage import gaussian_filter1d

from deepict_dask.config import SegmentSettings, SliceTiling
from deepict_dask.core.errors import (
    BudgetError,
    ConfigError,
    ModelFileError,
    ShapeMismatchError,
    VoxelValueError,
    WorkFailedError,
)
from deepict_dask.core.geometry import Grid
from deepict_dask.io.array import ArrayReader
from deepict_dask.io.volumes import open_volume
from deepict_dask.jobs.segmenting.slices import segment_slices_volume
from deepict_dask.jobs.session import Session
from deepict_dask.models.checkpoint import load_checkpoint, save_model
from deepict_dask.models.unet2d import UNet2D, UNet2DSettings
from deepict_dask.models.unet3d import UNet3D, UNet3DSettings
from deepict_dask.segmentation.deepict_slices import (
    CompatSliceOp,
    CompatSlices,
    SlabReader,
    compat_slice_grid,
)
from deepict_dask.segmentation.deepict_statistics import statistics_of
from deepict_dask.segmentation.slices import (
    SliceGrid,
    SliceSegmentOp,
    choose_slice_window,
    pad_slices,
    predict_slices,
)
from deepict_dask.segmentation.smoothing import SmoothOp
from deepict_dask.segmentation.windows import pad_far_end


@pytest.fixture(autouse=True)
def one_thread():
    """As in a worker; more threads only fight over the cores of a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def sharp_network(depth: int, features: int = 2, classes: int = 1) -> UNet2D:
    """Weights large enough for scores all over 0..1, so that a wrong voxel shows."""
    torch.manual_seed(depth)
    network = UNet2D(UNet2DSettings(depth, features, classes)).eval()
    for name, weights in network.named_parameters():
        weights.data *= 2.2 if name.endswith("weight") else 1
    with torch.inference_mode():
        logits = network(torch.randn(1, 1, 128, 128))
    scale, bias = 1.5 / logits.std(), network.out_conv.bias.data
    network.out_conv.weight.data *= scale
    network.out_conv.bias.data = -scale * (logits.mean() - bias)
    return network


@pytest.fixture(scope="module")
def model_paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    paths = {}
    for depth in (1, 2, 3, 4):
        paths[depth] = folder / f"d{depth}.safetensors"
        save_model(paths[depth], sharp_network(depth), class_names=["er"],
                   voxel_spacing_angstrom=None)  # fmt: skip
    return {depth: str(path) for depth, path in paths.items()}


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "two.safetensors"
    network = sharp_network(2, classes=2)
    save_model(path, network, class_names=["er", "golgi"], voxel_spacing_angstrom=None)
    return str(path)


def random_volume(shape, seed=0):
    return np.random.default_rng(seed).normal(40, 5, shape).astype("float32")


def whole_slices(network: UNet2D, volume, mean: float, std: float):
    """The definition: normalise, pad far ends by reflection, apply the plain network to a slice."""
    normalised = ((volume - np.float32(mean)) / np.float32(std)).astype("float32")
    align = network.settings.align
    widths = [(0, 0), *[(0, -n % align) for n in volume.shape[1:]]]
    padded = np.pad(normalised, widths, mode="reflect")
    with torch.inference_mode():
        scores = [network(torch.from_numpy(plane)[None, None])[0].sigmoid() for plane in padded]
    return np.stack(scores, axis=1)[..., : volume.shape[1], : volume.shape[2]]


def run(op, grid, volume):
    """What the engine does: read, apply, crop, write."""
    blocks = [(block, op.apply(block, volume[block.read.slices].copy())) for block in grid]
    leading = blocks[0][1].shape[:-3]
    out = np.empty((*leading, *grid.shape), dtype=op.dtype)
    for block, result in blocks:
        assert result.dtype == op.dtype
        out[(..., *block.write.slices)] = block.crop(result)
    return out


# ---------------------------------------------------------------- exact


@st.composite
def tilings(draw):
    depth = draw(st.sampled_from([1, 2, 4]))
    sides = [draw(st.integers(20, 150)), draw(st.integers(100, 1500))]
    shape = (draw(st.integers(1, 3)), *(sides if draw(st.booleans()) else reversed(sides)))
    write = tuple(draw(st.integers(max(1, n // 4), n + 5)) for n in shape)
    return depth, shape, write, draw(st.booleans())


@settings(max_examples=12)
@given(tilings())
@example((4, (1, 930, 960), (1, 400, 960), True))
@example((4, (2, 1500, 100), (1, 384, 128), False))
def test_windows_equal_whole_slices(model_paths, tiling):
    depth, shape, write_shape, one_shape = tiling
    volume = random_volume(shape)
    op = SliceSegmentOp(model_paths[depth], mean=40.0, std=5.0, class_index=0)
    grid = SliceGrid(shape, write_shape, op.halo, op.align, one_shape=one_shape)
    expected = whole_slices(sharp_network(depth), volume, 40.0, 5.0)[0]
    assert np.abs(run(op, grid, volume) - expected).max() <= 1e-5
    assert expected.std() > 0.1  # a constant would be easy


@pytest.mark.parametrize(("halo", "align"), [(48, 16), (112, 1)])
def test_too_short_a_halo_or_windows_off_the_pooling_cells_would_be_noticed(
    model_paths, halo, align
):
    # guards the test above: the networks are sharp enough for mistakes to show
    volume = random_volume((1, 48, 600))
    op = SliceSegmentOp(model_paths[4], 40.0, 5.0, class_index=0)
    grid = SliceGrid(volume.shape, (1, 48, 283), (0, halo, halo), align)
    expected = whole_slices(sharp_network(4), volume, 40.0, 5.0)[0]
    assert np.abs(run(op, grid, volume) - expected).max() > 1e-5


@settings(max_examples=12)
@given(
    st.tuples(st.integers(1, 40), st.integers(16, 70), st.integers(16, 70)),
    st.tuples(st.integers(1, 40), st.integers(8, 70), st.integers(8, 70)),
    st.sampled_from([0.0, 0.4, 1.0, 5.0]),
)
def test_fused_smoothing_equals_smoothing_the_whole_score_map(model_paths, shape, write, sigma):
    volume = random_volume(shape)
    op = SliceSegmentOp(model_paths[1], 40.0, 5.0, class_index=0, z_sigma=sigma)
    grid = SliceGrid(shape, write, op.halo, op.align, one_shape=True)
    smoothed = whole_slices(sharp_network(1), volume, 40.0, 5.0)[0]
    if sigma:
        smoothed = gaussian_filter1d(smoothed, sigma, axis=0)
    assert np.abs(run(op, grid, volume) - smoothed).max() <= 1e-5


@pytest.mark.parametrize("depth_of_slab", [1, 7, 23, 60])
def test_fused_smoothing_of_slabs_gives_the_same_bits(model_paths, depth_of_slab):
    # whole slices have the same scores in any slab, so smoothing must add the same sums
    volume = random_volume((53, 40, 36))
    plain = SliceSegmentOp(model_paths[2], 40.0, 5.0, class_index=0)
    scores = run(plain, SliceGrid(volume.shape, volume.shape), volume)
    op = SliceSegmentOp(model_paths[2], 40.0, 5.0, class_index=0, z_sigma=3.0)
    grid = SliceGrid(volume.shape, (depth_of_slab, 40, 36), op.halo, op.align)
    assert np.array_equal(run(op, grid, volume), gaussian_filter1d(scores, 3.0, axis=0))


def test_a_fused_mask_is_the_cut_of_the_smoothed_scores(model_paths):
    volume = random_volume((30, 40, 36))
    smoothed = SliceSegmentOp(model_paths[2], 40.0, 5.0, class_index=0, z_sigma=1.0)
    grid = SliceGrid(volume.shape, (13, 40, 36), smoothed.halo, smoothed.align)
    scores = run(smoothed, grid, volume)
    threshold = float(np.median(scores))
    op = SliceSegmentOp(model_paths[2], 40.0, 5.0, class_index=0, z_sigma=1.0, threshold=threshold)
    mask = run(op, grid, volume)
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, scores > threshold)


def test_several_classes_are_returned_with_their_axis(two_classes):
    volume = random_volume((9, 40, 36))
    grid = SliceGrid(volume.shape, (4, 40, 36), (4, 0, 0))
    both = run(SliceSegmentOp(two_classes, 40.0, 5.0, z_sigma=1.0), grid, volume)
    second = run(SliceSegmentOp(two_classes, 40.0, 5.0, 1, z_sigma=1.0), grid, volume)
    assert both.shape == (2, 9, 40, 36)
    assert np.array_equal(both[1], second)
    assert not np.array_equal(both[0], both[1])


def test_integers_are_predicted_as_their_floats(model_paths):
    volume = random_volume((3, 40, 36)).astype("int16")
    op = SliceSegmentOp(model_paths[2], 40.0, 5.0, 0)
    grid = SliceGrid(volume.shape, volume.shape)
    assert np.array_equal(run(op, grid, volume), run(op, grid, volume.astype("float32")))


@given(st.tuples(*[st.integers(1, 9)] * 3), st.sampled_from([2, 4, 16]))
def test_far_ends_of_slices_are_padded_as_those_of_volumes(shape, align):
    slices = np.random.default_rng(0).normal(size=shape)
    assert np.array_equal(pad_slices(slices, align), pad_far_end(slices, align)[: shape[0]])


def test_slices_smaller_than_a_pooling_cell_are_predicted():
    scores = predict_slices(sharp_network(4), np.ones((2, 1, 3), dtype="float32"))
    assert scores.shape == (1, 2, 1, 3)
    assert ((scores >= 0) & (scores <= 1)).all()


def test_the_published_defects_are_absent_by_default(model_paths):
    """Lost slices, stripes between tiles, slices smaller than a tile, seams of tiles."""
    tiling = SliceTiling(tile=(96, 96), tiles=(3, 3), crop=16, z_cutoff=200)
    network = sharp_network(4)
    for shape in [(3, 96, 232), (5, 70, 50)]:  # a stripe at x with these tiles; smaller than one
        volume = random_volume(shape)
        op = SliceSegmentOp(model_paths[4], 40.0, 5.0, class_index=0)
        scores = run(op, SliceGrid(shape, (2, 64, 64), op.halo, op.align), volume)
        assert scores.shape == shape
        assert np.abs(scores - whole_slices(network, volume, 40.0, 5.0)[0]).max() <= 1e-5
        if shape[1] == 70:
            with pytest.raises(ShapeMismatchError, match="axis x has 50 voxels, with a crop"):
                CompatSlices((5, 90, 50), tiling.model_copy(update={"crop": 16}))
        else:
            compat = compat_scores(model_paths[4], volume, tiling)
            assert compat.shape == (2, 96, 232)
            assert np.isnan(compat).any()


# ---------------------------------------------------------------- which windows


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
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), way, *map(str, shape)],
        check=True,
        capture_output=True,
        text=True,
        timeout=240,
    )
    before, fixed, peak, needed = map(int, result.stdout.split())
    assert before <= fixed
    assert peak <= needed <= 1.7 * peak


# ---------------------------------------------------------------- as published


def read_mrc(path):
    with mrcfile.open(path) as file:
        return np.array(file.data)


def compat_scores(path, volume, tiling, *, class_index=0, slab=3):
    """Run the published way over slabs, statistics included."""
    plan, reader = CompatSlices(volume.shape, tiling), ArrayReader(volume)
    mean, std = statistics_of(SlabReader(reader, *plan.predicted))
    if not tiling.normalize:
        mean, std = 0.0, 1.0
    op = CompatSliceOp(path, mean, std, plan, class_index)
    slices = SlabReader(reader, *plan.written)
    assert slices.header.shape == plan.out_shape
    out = [
        block.crop(op.apply(block, slices.read(block.read)))
        for block in compat_slice_grid(plan, slab)
    ]
    return np.concatenate(out, axis=-3)


GOLDEN_TILING = SliceTiling(tile=(96, 96), tiles=(3, 3), crop=16, z_cutoff=0)
"""cfg2d.yaml of the golden data."""


@pytest.fixture(scope="module")
def golden_scores(golden):
    """The published way over the golden tomogram, some of its slices only."""
    folder = golden / "deepict"
    volume = read_mrc(folder / "inputs/tomo.mrc.gz")
    return compat_scores(str(folder / "twod/model2d_nf2.h5"), volume, GOLDEN_TILING, slab=16)


def test_scores_are_those_of_deepict(golden, golden_scores):
    reference = read_mrc(golden / "deepict/twod/pred_crop16.mrc.gz")
    assert golden_scores.shape == reference.shape
    assert np.abs(golden_scores - reference).max() <= 1e-5
    assert reference.max() > 0.99


def test_the_polished_mask_is_that_of_deepict(golden, golden_scores):
    reference = read_mrc(golden / "deepict/twod/pred_crop16_post_s5_t0.5.mrc.gz")
    op = SmoothOp(5.0, 0.5)
    mask = run(op, Grid(reference.shape, (32, 64, 64), op.halo), golden_scores)
    assert np.array_equal(mask, reference)
    assert 0 < mask.mean() < 1


def by_definition(network, volume, tiling):
    """Cut, extend, tile and average as the description of DeePiCt says, all slices at once."""
    n = len(volume)
    first, stop = 0, n
    if tiling.z_cutoff:
        half = min(n, tiling.z_cutoff) // 2
        first, stop = n // 2 - half, n // 2 + half
    kept = volume[first:stop].astype("float32")
    if tiling.normalize:
        kept = (kept - np.float32(kept.mean(dtype="f8"))) / np.float32(kept.std(dtype="f8"))
    c = tiling.crop
    padded = np.pad(kept, [(0, 0), (c, c), (c, c)], mode="reflect")
    (h, w), (rows, columns) = tiling.tile, tiling.tiles
    step_y = (padded.shape[1] - h) / (rows - 1) if rows > 1 else 0
    step_x = (padded.shape[2] - w) / (columns - 1) if columns > 1 else 0
    total, count = np.zeros(kept.shape), np.zeros(kept.shape)
    for j in range(columns):
        for i in range(rows):
            y, x = int(i * step_y), int(j * step_x)
            tile = torch.from_numpy(padded[:, None, y : y + h, x : x + w].copy())
            with torch.inference_mode():
                scores = network(tile)[:, 0].sigmoid().numpy()[:, c : h - c, c : w - c]
            total[:, y : y + h - 2 * c, x : x + w - 2 * c] += scores
            count[:, y : y + h - 2 * c, x : x + w - 2 * c] += 1
    with np.errstate(invalid="ignore"):
        mean = (total / count).astype("float32")
    return np.pad(mean, [((n - len(mean)) // 2,) * 2, (0, 0), (0, 0)]) if (
        tiling.compensate_crop
    ) else mean  # fmt: skip


@st.composite
def published(draw):
    tile = tuple(8 * draw(st.integers(2, 5)) for _ in range(2))
    crop = draw(st.integers(0, min(tile) // 2 - 1))
    sides = tuple(max(1, t - 2 * crop + draw(st.integers(0, 60))) for t in tile)
    tiling = SliceTiling(
        tile=tile,
        tiles=(draw(st.integers(1, 4)), draw(st.integers(1, 4))),
        crop=crop,
        z_cutoff=draw(st.sampled_from([0, 2, 3, 5, 8, 200])),
        normalize=draw(st.booleans()),
        compensate_crop=draw(st.booleans()),
    )
    return (draw(st.integers(2, 9)), *sides), tiling, draw(st.integers(1, 5))


@settings(max_examples=20)
@given(published())
@example(((5, 40, 200), SliceTiling(tile=(32, 32), tiles=(3, 4), crop=4), 2))
@example(((7, 38, 59), SliceTiling(tile=(32, 32), tiles=(7, 8), crop=0), 9))
def test_any_tiles_give_what_the_description_gives(model_paths, case):
    shape, tiling, slab = case
    assume(all(n >= 2 or tiling.crop == 0 for n in shape[1:]))  # NumPy cannot reflect one voxel
    volume = random_volume(shape)
    scores = compat_scores(model_paths[3], volume, tiling, slab=slab)
    expected = by_definition(sharp_network(3), volume, tiling)
    assert scores.shape == expected.shape
    assert np.array_equal(np.isnan(scores), np.isnan(expected))
    assert np.nanmax(np.abs(scores - expected)) <= 1e-5


def test_default_tiles_leave_stripes_in_slices_above_960_and_none_at_960():
    assert CompatSlices((200, 930, 960), SliceTiling()).gaps(2) == []
    wide = CompatSlices((200, 930, 964), SliceTiling())
    assert wide.gaps(1) == []
    assert wide.gaps(2) == [(192, 193), (385, 386), (578, 579), (771, 772)]


@pytest.mark.parametrize(
    ("n_slices", "cutoff", "predicted", "written"),
    [
        (120, 0, (0, 120), 120),
        (121, 0, (0, 121), 121),
        (121, 200, (0, 120), 120),
        (121, 40, (40, 80), 120),
        (120, 41, (40, 80), 120),
        (120, 200, (0, 120), 120),
    ],
)
def test_odd_numbers_lose_a_slice_as_in_deepict(n_slices, cutoff, predicted, written):
    plan = CompatSlices((n_slices, 300, 300), SliceTiling(z_cutoff=cutoff))
    assert plan.predicted == predicted
    assert plan.out_shape[0] == written


def test_what_deepict_could_not_do_is_refused_in_words():
    with pytest.raises(ShapeMismatchError, match="axis y has 180 voxels, with a crop of 48"):
        CompatSlices((100, 180, 300), SliceTiling())
    with pytest.raises(ShapeMismatchError, match=r"a crop of 48 .* leaves nothing of a tile of 96"):
        CompatSlices((100, 300, 300), SliceTiling(tile=(96, 96)))
    with pytest.raises(ShapeMismatchError, match="found 1 slices and 200: DeePiCt predicts none"):
        CompatSlices((1, 300, 300), SliceTiling())
    with pytest.raises(ShapeMismatchError, match="found 9 slices and 1: DeePiCt predicts none"):
        CompatSlices((9, 300, 300), SliceTiling(z_cutoff=1))


def test_tiles_that_the_poolings_would_round_are_refused(model_paths):
    plan = CompatSlices((9, 300, 300), SliceTiling(tile=(104, 96), crop=8))
    CompatSliceOp(model_paths[3], 0.0, 1.0, plan).check_tile()
    with pytest.raises(ShapeMismatchError, match=r"--tile: expected multiples of 16"):
        CompatSliceOp(model_paths[4], 0.0, 1.0, plan).check_tile()


def test_blocks_that_cut_slices_apart_are_refused(model_paths):
    plan = CompatSlices((4, 60, 60), SliceTiling(tile=(32, 32), tiles=(3, 3), crop=2))
    op = CompatSliceOp(model_paths[2], 0.0, 1.0, plan)
    block = Grid(plan.out_shape, (4, 30, 60))[0]
    with pytest.raises(ShapeMismatchError, match="blocks must be whole slices"):
        op.apply(block, np.zeros(block.read.shape, "float32"))


def test_all_classes_are_tiled_with_their_axis(two_classes):
    volume = random_volume((5, 60, 61))
    tiling = SliceTiling(tile=(32, 32), tiles=(3, 3), crop=2, z_cutoff=3)
    both = compat_scores(two_classes, volume, tiling, class_index=None)
    assert both.shape == (2, 4, 60, 61)
    assert np.array_equal(both[1], compat_scores(two_classes, volume, tiling, class_index=1))


def test_statistics_are_of_the_slices_that_are_predicted(model_paths):
    volume = random_volume((8, 40, 40))
    tiling = SliceTiling(tile=(32, 32), tiles=(2, 2), crop=4, z_cutoff=4)
    before = compat_scores(model_paths[2], volume, tiling)
    volume[[0, 1, 6, 7]] = 1e6  # never seen
    assert np.array_equal(compat_scores(model_paths[2], volume, tiling), before)
    assert not before[[0, 1, 6, 7]].any()


def test_a_slab_of_a_volume_has_its_own_origin():
    reader = ArrayReader(
        np.arange(24, dtype="int16").reshape(4, 2, 3), 10.0, origin_angstrom=(5.0, 6.0, 7.0)
    )
    header = SlabReader(reader, 1, 3).header
    assert header.origin_angstrom == (15.0, 6.0, 7.0)
    assert (header.shape, header.dtype) == ((2, 2, 3), "float32")


# ---------------------------------------------------------------- the job


@pytest.fixture
def tomogram(tmp_path):
    volume = random_volume((21, 60, 70), seed=4)
    path = tmp_path / "tomo.mrc"
    mrcfile.write(path, volume, voxel_size=13.48)
    with mrcfile.open(path, "r+") as file:
        file.header.origin.y = 27
    return path, volume


def read(path):
    reader = open_volume(path, spacing_required=False)
    shape = reader.header.shape
    return reader.read(Grid(shape, shape)[0].read)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_job_writes_the_exact_scores_with_spacing_and_origin(
    any_workers, model_paths, tomogram, tmp_path, workers
):
    source, volume = tomogram
    session = Session(any_workers[workers], chunks=(8, 32, 32))
    target = segment_slices_volume(
        session, source, tmp_path / "s.zarr", SegmentSettings(model=model_paths[2])
    )
    header = open_volume(target).header
    assert header.voxel_spacing_angstrom == pytest.approx(13.48)
    assert header.origin_angstrom == pytest.approx((0, 27, 0))
    assert (header.shape, header.dtype, header.class_names) == (volume.shape, "float32", ())
    mean, std = volume.mean(dtype="f8"), volume.std(dtype="f8")
    expected = whole_slices(sharp_network(2), volume, mean, std)[0]
    assert np.abs(read(target) - expected).max() <= 1e-5


@pytest.mark.parametrize("ending", [".zarr", ".mrc"])
def test_the_job_makes_a_mask_in_one_pass(one_worker, model_paths, tomogram, tmp_path, ending):
    source, volume = tomogram
    session = Session(one_worker, chunks=(8, 32, 32))
    target = segment_slices_volume(
        session, source, tmp_path / f"m{ending}", SegmentSettings(model=model_paths[2]),
        z_sigma=2.0, threshold=0.5,
    )  # fmt: skip
    mean, std = volume.mean(dtype="f8"), volume.std(dtype="f8")
    scores = whole_slices(sharp_network(2), volume, mean, std)[0]
    smoothed = gaussian_filter1d(scores, 2.0, axis=0)
    sure = np.abs(smoothed - 0.5) > 1e-5
    mask = read(target)
    assert np.array_equal(mask[sure], (smoothed > 0.5)[sure])
    assert 0.1 < mask.mean() < 0.9


COMPAT = {"tile": (32, 32), "tiles": (2, 3), "crop": 4}


def test_the_job_writes_deepicts_scores_and_says_what_it_left_out(
    one_worker, model_paths, tomogram, tmp_path, caplog
):
    source, volume = tomogram
    tiling = SliceTiling(**COMPAT, z_cutoff=11)
    settings = SegmentSettings(model=model_paths[2], compat="deepict", tiling=tiling)
    session = Session(one_worker, chunks=(8, 32, 32))
    with caplog.at_level(logging.WARNING):
        target = segment_slices_volume(session, source, tmp_path / "s.zarr", settings)
    scores = read(target)
    expected = compat_scores(model_paths[2], volume, tiling)
    assert scores.shape == (20, 60, 70)
    assert np.array_equal(scores, expected, equal_nan=True)
    assert "predicts slices 5 to 14 of 21 and writes 20" in caplog.text
    assert "2 tiles of 32 do not cover y 24 to 35: the score map is NaN there" in caplog.text
    assert "cover x" not in caplog.text
    assert np.isnan(scores[5:15, 24:36]).all()


def test_the_job_leaves_the_other_slices_out_on_request(
    one_worker, model_paths, tomogram, tmp_path
):
    source, _ = tomogram
    tiling = SliceTiling(tile=(32, 32), tiles=(3, 4), crop=4, z_cutoff=10, compensate_crop=False)
    settings = SegmentSettings(model=model_paths[2], compat="deepict", tiling=tiling)
    session = Session(one_worker, chunks=(8, 32, 32))
    target = segment_slices_volume(session, source, tmp_path / "s.zarr", settings)
    header = open_volume(target).header
    assert header.shape == (10, 60, 70)
    assert header.origin_angstrom == pytest.approx((5 * 13.48, 27, 0))


def test_the_job_polishes_deepicts_scores(one_worker, model_paths, tomogram, tmp_path):
    source, volume = tomogram
    tiling = SliceTiling(**COMPAT, z_cutoff=0)
    settings = SegmentSettings(model=model_paths[2], compat="deepict", tiling=tiling)
    session = Session(one_worker, chunks=(8, 32, 32))
    target = segment_slices_volume(
        session, source, tmp_path / "m.zarr", settings, z_sigma=2.0, threshold=0.5
    )
    smoothed = gaussian_filter1d(compat_scores(model_paths[2], volume, tiling), 2.0, axis=0)
    mask = read(target)
    assert np.array_equal(mask, smoothed > 0.5)
    assert 0.1 < mask.mean() < 0.9
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.zarr", "tomo.mrc"]


@pytest.mark.parametrize("compat", [None, "deepict"])
def test_an_interrupted_job_goes_on_where_it_stopped(
    one_worker, model_paths, tomogram, tmp_path, monkeypatch, compat
):
    """In the published way within the first of two passes."""
    source, _ = tomogram
    tiling = SliceTiling(**COMPAT, z_cutoff=0) if compat else None
    settings = SegmentSettings(model=model_paths[2], compat=compat, tiling=tiling)
    session = Session(one_worker, chunks=(2, 32, 32))
    if compat is None:  # as many windows as chunks
        monkeypatch.setattr(
            "deepict_dask.jobs.segmenting.slices.choose_slice_grid",
            lambda op, shape, chunks, _: SliceGrid(shape, chunks, op.halo, op.align),
        )
    ask = functools.partial(
        segment_slices_volume, session, source, tmp_path / "m.zarr", settings,
        z_sigma=0.5, threshold=0.5,
    )  # fmt: skip
    operation = CompatSliceOp if compat else SliceSegmentOp
    applied, apply = [], operation.apply

    def failing(self, block, *windows):
        applied.append(block.number)
        if len(applied) == 8:
            raise KeyError("unplugged")
        return apply(self, block, *windows)

    monkeypatch.setattr(operation, "apply", failing)
    with pytest.raises(WorkFailedError, match="unplugged"):
        ask()
    assert not (tmp_path / "m.zarr").exists()
    partial = tmp_path / "m.zarr.partial"
    note = marks(partial / "scores.zarr.partial" if compat else partial)
    finished = {number for number, mark in enumerate(note) if mark}
    assert finished  # few tasks are in flight, so some ended before the eighth failed
    before = len(applied)
    mask = read(ask())
    again, left = set(applied[before:]), set(range(len(note))) - finished
    assert applied[7] in again <= left
    assert left - again <= set(applied[:before])  # ended after the failure: whole, and kept
    undisturbed = segment_slices_volume(
        session, source, tmp_path / "again.zarr", settings, z_sigma=0.5, threshold=0.5
    )
    assert np.array_equal(mask, read(undisturbed))


def test_several_classes_keep_their_names_and_one_can_be_chosen(
    one_worker, two_classes, tomogram, tmp_path
):
    source, _ = tomogram
    session = Session(one_worker, chunks=(8, 64, 64))
    both = segment_slices_volume(
        session, source, tmp_path / "both.zarr", SegmentSettings(model=two_classes)
    )
    golgi = segment_slices_volume(
        session, source, tmp_path / "golgi.zarr",
        SegmentSettings(model=two_classes, classes=("golgi",)),
    )  # fmt: skip
    reader = open_volume(both, class_name="golgi")
    assert open_volume(both).header.class_names == ("er", "golgi")
    assert np.array_equal(reader.read(Grid((21, 60, 70), (21, 60, 70))[0].read), read(golgi))
    compat = SegmentSettings(
        model=two_classes, compat="deepict", tiling=SliceTiling(**COMPAT, z_cutoff=0)
    )
    with pytest.raises(ConfigError, match="expected one class to smooth or cut, found er, golgi"):
        segment_slices_volume(session, source, tmp_path / "m.zarr", compat, threshold=0.5)


def test_what_cannot_be_done_is_refused_and_leaves_nothing(
    one_worker, model_paths, tomogram, tmp_path
):
    source, volume = tomogram
    session = Session(one_worker, chunks=(8, 32, 32))
    three_d = tmp_path / "three.safetensors"
    save_model(three_d, UNet3D(UNet3DSettings(1, 1, 1)), class_names=["a"],
               voxel_spacing_angstrom=None)  # fmt: skip
    flat, holed = tmp_path / "flat.mrc", tmp_path / "holed.mrc"
    mrcfile.write(flat, np.ones_like(volume), voxel_size=10)
    volume[3, 2, 1] = np.nan
    with pytest.warns(RuntimeWarning, match="NaN"):
        mrcfile.write(holed, volume, voxel_size=10)
    exact = SegmentSettings(model=model_paths[2])
    large = SegmentSettings(model=model_paths[2], compat="deepict")
    before = {path.name for path in tmp_path.iterdir()}
    for tomo, chosen, error, words, options in [
        (source, SegmentSettings(model=str(three_d)), ModelFileError, "expected a 2D model", {}),
        (source, exact, ConfigError, "z_sigma: expected a number", {"z_sigma": -1.0}),
        (source, large, ShapeMismatchError, "axis y has 60 voxels", {}),
        (source, large, ShapeMismatchError, "axis y has 60 voxels", {"threshold": 0.5}),
        (flat, exact, VoxelValueError, "expected voxels of different values", {}),
        (holed, exact, VoxelValueError, r"the first at zyx \(3, 2, 1\)", {}),
    ]:
        with pytest.raises(error, match=words):
            segment_slices_volume(session, tomo, tmp_path / "s.zarr", chosen, **options)
    assert {path.name for path in tmp_path.iterdir()} == before


def test_a_keras_model_is_applied_exactly(golden, one_worker, tmp_path):
    folder = golden / "deepict"
    volume = read_mrc(folder / "inputs/tomo.mrc.gz")[:5, :, :].copy()
    mrcfile.write(tmp_path / "tomo.mrc", volume, voxel_size=13.48)
    model = folder / "twod/model2d_nf2.h5"
    target = segment_slices_volume(
        Session(one_worker), tmp_path / "tomo.mrc", tmp_path / "s.zarr",
        SegmentSettings(model=str(model)),
    )  # fmt: skip
    mean, std = volume.mean(dtype="f8"), volume.std(dtype="f8")
    expected = whole_slices(load_checkpoint(model).network, volume, mean, std)[0]
    assert np.abs(read(target) - expected).max() <= 1e-5
