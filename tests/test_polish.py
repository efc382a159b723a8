"""Smoothing along z and cutting at a threshold: SciPy on the whole volume is the oracle."""

from __future__ import annotations

import mrcfile
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from programs import marks
from scipy.ndimage import gaussian_filter1d
from typer.testing import CliRunner

from deepict_dask.core.errors import BudgetError, ConfigError, VoxelValueError, WorkFailedError
from deepict_dask.core.geometry import Grid
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.io.ome_zarr_write import create_ome_zarr
from deepict_dask.io.volumes import open_volume
from deepict_dask.jobs.polish import polish_volume, smoothing_grid
from deepict_dask.jobs.session import Session
from deepict_dask.segmentation.smoothing import SmoothOp, smooth_along_z


def random_scores(shape, seed=0):
    return np.random.default_rng(seed).random(shape, dtype="float32")


def chunked(op, volume, write_shape):
    """What the engine does: read, apply, crop, write."""
    out = np.empty(volume.shape, op.dtype)
    for block in Grid(volume.shape, write_shape, op.halo):
        window = volume[block.read.slices]
        out[block.write.slices] = block.crop(op.apply(block, window))
    return out


@st.composite
def cases(draw):
    shape = (draw(st.integers(1, 90)), draw(st.integers(1, 6)), draw(st.integers(1, 6)))
    write_shape = tuple(draw(st.integers(1, n + 2)) for n in shape)
    sigma = draw(st.sampled_from([0, 0.05, 0.3, 1, 2.6, 5]) | st.floats(0, 12))
    return shape, write_shape, sigma, draw(st.integers(0, 99))


@given(cases())
def test_any_chunks_give_scipys_bits_also_where_the_volume_is_thinner_than_the_kernel(case):
    shape, write_shape, sigma, seed = case
    volume = random_scores(shape, seed)
    expected = gaussian_filter1d(volume, sigma, axis=0) if sigma > 1e-9 else volume
    assert np.array_equal(chunked(SmoothOp(sigma), volume, write_shape), expected)
    threshold = float(np.median(expected))  # so that voxels at the threshold are there
    mask = chunked(SmoothOp(sigma, threshold), volume, write_shape)
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, expected > threshold)


def test_one_slice_less_of_halo_would_be_noticed():
    volume = random_scores((90, 3, 3))
    op = SmoothOp(5.0)
    short = Grid(volume.shape, (30, 3, 3), (op.halo[0] - 1, 0, 0))
    out = [block.crop(op.apply(block, volume[block.read.slices])) for block in short]
    assert not np.array_equal(np.concatenate(out), gaussian_filter1d(volume, 5.0, axis=0))


def test_a_score_at_the_threshold_is_outside():
    volume = np.array([0.25, 0.5, 0.75], "float32").reshape(1, 1, 3)
    assert chunked(SmoothOp(0.0, 0.5), volume, (1, 1, 3)).ravel().tolist() == [0, 0, 1]


@pytest.mark.parametrize("threshold", [None, 0, 0.0])
def test_a_threshold_of_zero_means_none_as_in_deepict(threshold):
    volume = random_scores((9, 2, 2))
    op = SmoothOp(1.0, threshold)
    assert op.dtype == "float32"
    assert np.array_equal(chunked(op, volume, (4, 2, 2)), gaussian_filter1d(volume, 1.0, axis=0))


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float64"])
def test_scores_of_any_type_are_smoothed_as_float32(dtype):
    volume = (10 * random_scores((30, 2, 2))).astype(dtype)
    expected = gaussian_filter1d(volume.astype("float32"), 2.0, axis=0)
    assert np.array_equal(chunked(SmoothOp(2.0), volume, (7, 1, 2)), expected)


def test_the_window_that_was_read_is_not_changed():
    volume = random_scores((9, 2, 2))
    before = volume.copy()
    SmoothOp(1.0, 0.5).apply(Grid((9, 2, 2), (9, 2, 2))[0], volume)
    assert np.array_equal(volume, before)


def test_channels_are_smoothed_each_by_itself():
    scores = random_scores((2, 30, 3, 4))
    smoothed = scores.copy()
    smooth_along_z(smoothed, 2.0)
    assert np.array_equal(smoothed, gaussian_filter1d(scores, 2.0, axis=1))


def test_nan_is_refused_with_its_place_and_with_compat_it_is_outside():
    volume = random_scores((9, 4, 4)) + 1
    volume[6, 2, 1:3] = np.nan
    block = Grid(volume.shape, (4, 4, 4), (4, 0, 0))[1]
    window = volume[block.read.slices]
    with pytest.raises(
        VoxelValueError, match=r"found NaN, the first of this block at zyx \(6, 2, 1"
    ):
        SmoothOp(1.0, 0.5).apply(block, window)
    mask = chunked(SmoothOp(1.0, 0.5, keep_nan=True), volume, (4, 4, 4))
    expected = gaussian_filter1d(volume, 1.0, axis=0) > 0.5  # NaN is above nothing
    assert np.array_equal(mask, expected)
    assert 0 < (mask == 0).sum() < mask.size


@pytest.mark.parametrize(
    ("sigma", "threshold"), [(-1.0, 0.5), (np.nan, 0.5), (np.inf, 0.5), (1.0, np.nan)]
)
def test_impossible_numbers_are_refused(sigma, threshold):
    with pytest.raises(ConfigError, match="expected a"):
        SmoothOp(sigma, threshold)


# ---------------------------------------------------------------- the grid and its memory


def test_columns_are_as_long_as_the_budget_allows():
    op = SmoothOp(5.0, 0.5)
    shape, chunks = (1000, 400, 400), (128, 128, 128)
    long = smoothing_grid(shape, chunks, op, 4 << 30)
    assert long.write_shape == (1024, 128, 128)
    short = smoothing_grid(shape, chunks, op, 200 << 20)
    assert short.write_shape[0] % 128 == 0
    assert 128 <= short.write_shape[0] < 1000
    assert short.write_shape[1:] == (128, 128)
    with pytest.raises(BudgetError, match=r"polish: needs .* per task"):
        smoothing_grid(shape, chunks, op, 140 << 20)


def test_a_task_allocates_what_was_planned():
    import tracemalloc

    op = SmoothOp(5.0, 0.5)
    window = random_scores((200, 64, 64))
    block = Grid(window.shape, window.shape)[0]
    op.apply(block, window[:, :2])
    tracemalloc.start()
    op.apply(block, window)
    peak = tracemalloc.get_traced_memory()[1] + window.nbytes
    tracemalloc.stop()
    assert 0.7 * op.bytes_needed(window.shape) < peak <= op.bytes_needed(window.shape)


# ---------------------------------------------------------------- the job


@pytest.fixture
def stored(tmp_path):
    volume = random_scores((70, 40, 36))
    path = tmp_path / "scores.mrc"
    mrcfile.write(path, volume, voxel_size=13.48)
    with mrcfile.open(path, "r+") as file:
        file.header.origin.z = 27
    return path, volume


@pytest.mark.parametrize("ending", [".zarr", ".mrc"])
@pytest.mark.parametrize("workers", [1, 2])
def test_the_job_equals_scipy_and_keeps_spacing_and_origin(
    any_workers, stored, tmp_path, workers, ending
):
    source, volume = stored
    session = Session(any_workers[workers], chunks=(16, 32, 16))
    target = polish_volume(session, source, tmp_path / f"mask{ending}", z_sigma=5.0, threshold=0.5)
    header = open_volume(target).header
    assert header.voxel_spacing_angstrom == pytest.approx(13.48)
    assert header.origin_angstrom == pytest.approx((27, 0, 0))
    result = read(target)
    assert np.array_equal(result, gaussian_filter1d(volume, 5.0, axis=0) > 0.5)
    assert set(np.unique(result)) == {0, 1}
    assert result.dtype.kind in "iu"


def read(path):
    reader = open_volume(path, spacing_required=False)
    return reader.read(Grid(reader.header.shape, reader.header.shape)[0].read)


def test_without_a_threshold_the_job_writes_float_scores(one_worker, stored, tmp_path):
    source, volume = stored
    session = Session(one_worker, chunks=(16, 32, 16))
    target = polish_volume(session, source, tmp_path / "s.zarr", z_sigma=1.5, threshold=0)
    assert np.array_equal(read(target), gaussian_filter1d(volume, 1.5, axis=0))


def test_one_class_of_several_is_polished(one_worker, tmp_path):
    scores = random_scores((2, 20, 8, 8))
    header = VolumeHeader((20, 8, 8), "float32", 10.0, class_names=("er", "golgi"))
    store = create_ome_zarr(tmp_path / "s.zarr", header, chunks=(20, 8, 8))
    store.write(Grid((20, 8, 8), (20, 8, 8))[0].write, scores)
    session = Session(one_worker, chunks=(8, 8, 8))
    with pytest.raises(ConfigError, match=r"found er, golgi; choose one with --class"):
        polish_volume(session, tmp_path / "s.zarr", tmp_path / "m.zarr", z_sigma=1, threshold=0.5)
    assert not (tmp_path / "m.zarr.partial").exists()
    target = polish_volume(
        session, tmp_path / "s.zarr", tmp_path / "m.zarr",
        z_sigma=1, threshold=0.5, class_name="golgi",
    )  # fmt: skip
    assert np.array_equal(read(target), gaussian_filter1d(scores[1], 1, axis=0) > 0.5)


def test_an_interrupted_job_goes_on_where_it_stopped(one_worker, stored, tmp_path, monkeypatch):
    source, volume = stored
    session = Session(one_worker, chunks=(16, 16, 16))
    applied, apply = [], SmoothOp.apply

    def failing(self, block, *windows):
        applied.append(block.number)
        if len(applied) == 8:
            raise KeyError("unplugged")
        return apply(self, block, *windows)

    monkeypatch.setattr(SmoothOp, "apply", failing)
    with pytest.raises(WorkFailedError, match="unplugged"):
        polish_volume(session, source, tmp_path / "m.zarr", z_sigma=5, threshold=0.5)
    assert not (tmp_path / "m.zarr").exists()
    finished = {i for i, mark in enumerate(marks(tmp_path / "m.zarr.partial")) if mark}
    assert finished  # few tasks are in flight, so some ended before the eighth failed
    before = len(applied)
    target = polish_volume(session, source, tmp_path / "m.zarr", z_sigma=5, threshold=0.5)
    again, left = set(applied[before:]), set(range(9)) - finished  # columns of chunks
    assert applied[7] in again <= left
    assert left - again <= set(applied[:before])  # ended after the failure: whole, and kept
    assert np.array_equal(read(target), gaussian_filter1d(volume, 5.0, axis=0) > 0.5)


def test_the_command_polishes_and_names_what_is_wrong(stored, tmp_path):
    import typer

    from deepict_dask.cli.slices import register

    app = typer.Typer()
    register(app)
    app.callback()(lambda: None)
    source, volume = stored
    target = tmp_path / "mask.zarr"
    arguments = ["polish", str(source), str(target), "--cluster", "threads", "--no-progress"]
    result = CliRunner().invoke(app, [*arguments, "--z-sigma", "2", "--threshold", "0.4"])
    assert result.exit_code == 0, result.output
    found = zarr.open_array(target / "0", mode="r")[:]
    assert np.array_equal(found, gaussian_filter1d(volume, 2, axis=0) > 0.4)
    wrong = CliRunner().invoke(app, [*arguments, "--overwrite", "--z-sigma", "-1"])
    assert isinstance(wrong.exception, ConfigError)
    assert "z_sigma: expected a number of voxels" in str(wrong.exception)
