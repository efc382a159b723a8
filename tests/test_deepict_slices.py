"""A 2D network tiled as DeePiCt tiles it, on request."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from slice_scenes import (
    compat_scores,
    model_paths,
    one_thread,
    random_volume,
    read_mrc,
    run,
    sharp_network,
    two_classes,
)

from deepict_dask.config import SliceTiling
from deepict_dask.core.errors import ShapeMismatchError
from deepict_dask.core.geometry import Grid
from deepict_dask.io.array import ArrayReader
from deepict_dask.segmentation.deepict_slices import CompatSliceOp, CompatSlices, SlabReader
from deepict_dask.segmentation.smoothing import SmoothOp

__all__ = ["model_paths", "one_thread", "two_classes"]

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
