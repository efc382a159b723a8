"""Statistics of a volume do not depend on its chunking; NumPy in float64 is the oracle."""

import functools
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepict_dask.core.errors import VoxelValueError
from deepict_dask.core.geometry import Grid
from deepict_dask.core.statistics import StatisticsReduction

SHAPE = (7, 9, 11)
DTYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


def chunked(volume, write_shape, halo=(0, 0, 0), order=1):
    reduction = StatisticsReduction(str(volume.dtype))
    grid = Grid(volume.shape, write_shape, halo)
    parts = [reduction.measure(block, volume[block.read.slices]) for block in grid]
    return reduction.finalize(functools.reduce(reduction.combine, parts[::order]))


def whole(volume):
    finite = volume[np.isfinite(volume)].astype(np.float64)
    return finite.mean(), finite.std(), finite.min(), finite.max()


def random_volume(seed, dtype, shape=SHAPE):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return (rng.normal(size=shape) * 3 + 100).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, size=shape, dtype=dtype, endpoint=True)


chunks = st.tuples(*(st.integers(1, n) for n in SHAPE))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from([*DTYPES, "float32", "float64", "float16"]),
    write_shape=chunks,
    halo=st.tuples(*[st.integers(0, 3)] * 3),
)
def test_chunked_statistics_equal_numpy_float64_on_the_whole(seed, dtype, write_shape, halo):
    volume = random_volume(seed, dtype)
    found = chunked(volume, write_shape, halo)
    values = (found.mean, found.std, found.minimum, found.maximum)
    np.testing.assert_allclose(values, whole(volume), rtol=1e-12, atol=0)
    assert found.count == volume.size
    assert found.n_nonfinite == 0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), dtype=st.sampled_from(DTYPES), write_shape=chunks)
def test_integer_statistics_are_exact_for_any_chunking_and_order(seed, dtype, write_shape):
    volume = random_volume(seed, dtype)
    values = [int(v) for v in volume.ravel()]
    found = chunked(volume, write_shape)
    assert found == chunked(volume, SHAPE) == chunked(volume, write_shape, order=-1)
    assert found.mean == sum(values) / len(values)
    n_squared_variance = len(values) * sum(v * v for v in values) - sum(values) ** 2
    assert found.std == pytest.approx((n_squared_variance / len(values) ** 2) ** 0.5, rel=1e-15)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9), min_size=3, max_size=3))
def test_combine_is_commutative_exactly_and_associative_up_to_rounding(groups):
    reduction = StatisticsReduction("float64")
    a, b, c = (
        reduction.measure(Grid((1, 1, len(g)), (1, 1, len(g)))[0], np.array([[g]])) for g in groups
    )
    assert reduction.combine(a, b) == reduction.combine(b, a)
    left = reduction.finalize(reduction.combine(reduction.combine(a, b), c))
    right = reduction.finalize(reduction.combine(a, reduction.combine(b, c)))
    scale = max(abs(left.minimum), abs(left.maximum))
    assert left.mean == pytest.approx(right.mean, rel=1e-12, abs=1e-12 * scale)
    assert left.std == pytest.approx(right.std, rel=1e-9, abs=1e-12 * scale)


def test_a_mean_far_from_zero_does_not_cancel_the_std():
    volume = random_volume(3, "float64") + 1e8
    found = chunked(volume, (2, 4, 3))
    assert found.std == pytest.approx(volume.std(), rel=1e-9)


def test_many_pieces_give_what_one_piece_gives(monkeypatch):
    volume = random_volume(5, "float32")
    monkeypatch.setattr("deepict_dask.core.statistics.PIECE_VOXELS", 25)
    found = chunked(volume, SHAPE)
    values = (found.mean, found.std, found.minimum, found.maximum)
    np.testing.assert_allclose(values, whole(volume), rtol=1e-12)
    assert chunked(random_volume(5, "int16"), SHAPE).count == volume.size


@pytest.mark.parametrize("write_shape", [(7, 9, 11), (2, 4, 3), (1, 1, 1)])
def test_nan_and_inf_are_counted_and_left_out_and_the_first_in_raster_order_is_named(write_shape):
    volume = random_volume(1, "float32")
    for position, bad in {(2, 8, 0): np.nan, (2, 3, 10): np.inf, (6, 0, 0): -np.inf}.items():
        volume[position] = bad
    found = chunked(volume, write_shape, halo=(1, 2, 1), order=-1)
    values = (found.mean, found.std, found.minimum, found.maximum)
    np.testing.assert_allclose(values, whole(volume), rtol=1e-12)
    assert (found.n_nonfinite, found.first_nonfinite) == (3, (2, 3, 10))
    with pytest.raises(
        VoxelValueError, match=r"t\.mrc.*3 of 693.*\(2, 3, 10\).*--fill-nonfinite VALUE"
    ):
        found.require_finite("t.mrc")


def test_a_halo_voxel_that_is_nan_is_counted_once():
    volume = np.zeros((4, 4, 4), np.float32)
    volume[1, 1, 1] = np.nan
    assert chunked(volume, (2, 2, 2), halo=(2, 2, 2)).n_nonfinite == 1


def test_a_finite_volume_passes():
    statistics = chunked(random_volume(2, "int16"), (3, 3, 3))
    assert statistics.first_nonfinite is None
    statistics.require_finite("t.mrc")
    statistics.require_contrast("t.mrc")


def test_a_volume_without_finite_voxels_has_no_mean_and_is_refused():
    statistics = chunked(np.full((2, 2, 2), np.nan, np.float32), (1, 2, 2))
    assert (statistics.count, statistics.n_nonfinite) == (0, 8)
    assert np.isnan(statistics.mean)
    with pytest.raises(VoxelValueError, match="8 of 8"):
        statistics.require_finite("t.mrc")


def test_a_constant_volume_is_refused_where_contrast_is_needed():
    statistics = chunked(np.full((3, 4, 5), 0.1, np.float32), (2, 2, 2))
    with pytest.raises(VoxelValueError, match=r"t\.mrc.*60 times 0\.1"):
        statistics.require_contrast("t.mrc")


def test_a_segmentation_of_bools_is_measured():
    volume = np.zeros((2, 3, 4), bool)
    volume[0, 0] = True
    statistics = chunked(volume, (1, 2, 3))
    assert (statistics.mean, statistics.minimum, statistics.maximum) == (4 / 24, 0, 1)


@pytest.mark.parametrize("dtype", ["float32", "int16", "int64", "uint8"])
def test_measuring_stays_within_the_planned_bytes(dtype):
    shape = (64, 128, 128)
    volume = random_volume(0, dtype, shape)
    reduction = StatisticsReduction(dtype)
    tracemalloc.start()
    reduction.measure(Grid(shape, shape)[0], volume)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert volume.nbytes + peak <= reduction.bytes_needed(shape)


def test_partials_and_the_reduction_travel_between_processes():
    reduction = StatisticsReduction("int16")
    volume = random_volume(4, "int16")
    part = reduction.measure(Grid(SHAPE, SHAPE)[0], volume)
    copy = pickle.loads(pickle.dumps((reduction, part)))
    assert copy[0].finalize(copy[1]) == reduction.finalize(part)
