"""A 2D network over a tomogram: the scores are those of whole slices, whatever the windows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d
from slice_scenes import (
    compat_scores,
    model_paths,
    one_thread,
    random_volume,
    run,
    sharp_network,
    two_classes,
    whole_slices,
)

from deepict_dask.config import SliceTiling
from deepict_dask.core.errors import ShapeMismatchError
from deepict_dask.segmentation.deepict_slices import CompatSlices
from deepict_dask.segmentation.slices import SliceGrid, SliceSegmentOp, pad_slices, predict_slices
from deepict_dask.segmentation.windows import pad_far_end

__all__ = ["model_paths", "one_thread", "two_classes"]


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
