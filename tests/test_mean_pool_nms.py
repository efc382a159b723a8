"""Mean-pooling non-maximum suppression: every separated ball once, for any chunking."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from typer.testing import CliRunner

from deepict_dask.cli import app
from deepict_dask.config import PickSettings
from deepict_dask.core.errors import ConfigError, ShapeMismatchError, VoxelValueError
from deepict_dask.core.geometry import Box, Grid, as_vec
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.io.ome_zarr_write import create_ome_zarr
from deepict_dask.io.picks import read_picks
from deepict_dask.jobs.picking import mean_pool as mean_pool_job
from deepict_dask.jobs.picking.pick import pick_particles
from deepict_dask.jobs.session import Session
from deepict_dask.particles.deepetpicker_compat import (
    TileSearch,
    drop_as_deepetpicker,
    mean_pool_float32,
)
from deepict_dask.particles.mean_pool_nms import (
    PEAK_DTYPE,
    MeanPoolReduction,
    MeanPoolSettings,
    find_peaks,
    keep_highest,
    mean_pool,
)


@pytest.fixture(scope="module")
def deepetpicker(golden):
    return golden / "deepetpicker"


@pytest.fixture(scope="module")
def one_class(deepetpicker):
    return np.load(deepetpicker / "mpnms/onecls.npz")


def columns(rows):
    """Return picks as class, x, y, z, value."""
    return np.stack([rows["channel"] + 1, *(rows[name] for name in "xyz"), rows["value"]], axis=1)


def rows_of(table):
    rows = np.zeros(len(table), PEAK_DTYPE)
    rows["channel"], rows["value"] = table[:, 0] - 1, table[:, 4]
    for name, values in zip("xyz", table[:, 1:4].T, strict=True):
        rows[name] = values
    return rows


def separated_balls(seed=0, n=150, shape=(100, 200, 200), radius=5):
    """Balls of one radius with room between them, all inside; the scene that loses 41 of 150."""
    rng = np.random.default_rng(seed)
    centres = []
    while len(centres) < n:
        centre = rng.integers(radius + 3, np.array(shape) - radius - 3)
        if all(np.linalg.norm(centre - other) > 2 * radius + 5 for other in centres):
            centres.append(centre)
    score = np.zeros(shape, np.float32)
    offsets = np.indices((2 * radius + 1,) * 3) - radius
    ball = (offsets**2).sum(axis=0) <= radius**2
    for centre in centres:
        score[tuple(slice(c - radius, c + radius + 1) for c in centre)][ball] = 1
    return score, np.array(centres)


def in_chunks(score, settings, chunk):
    reduction = MeanPoolReduction(settings)
    grid = Grid(score.shape, as_vec(chunk), halo=reduction.halo)
    found = [reduction.measure(block, score[block.read.slices]).rows for block in grid]
    return keep_highest(np.concatenate(found), settings.min_distance)


def test_the_published_means_come_out_to_the_last_bit(deepetpicker):
    kernel = np.load(deepetpicker / "mpnms/onecls_meanpool_48cube.npz")
    assert np.array_equal(mean_pool_float32(kernel["binary"], 3), kernel["meanpooled"])
    assert np.abs(mean_pool(kernel["binary"], 3) - kernel["meanpooled"]).max() < 1e-6


def test_the_published_picks_come_out_in_compat_before_and_after_dropping(one_class):
    score = one_class["score"][0]
    settings = MeanPoolSettings.of_diameters([11])
    search = TileSearch(score.shape, settings)
    found = [search.search(tile, [score[tile.read.slices]]) for tile in search.tiles()]
    rows = np.concatenate(found)
    assert np.array_equal(columns(rows), one_class["raw_cls_x_y_z_val"])
    dropped = drop_as_deepetpicker(rows, settings.min_distance)
    assert np.array_equal(columns(dropped), one_class["dedup_cls_x_y_z_val"])


def test_the_published_dropping_of_picks_of_several_classes_comes_out(deepetpicker):
    picks = np.load(deepetpicker / "picks_b72_p12.npz")
    rows = rows_of(picks["raw_cls_x_y_z_val"])
    dropped = drop_as_deepetpicker(rows, 6)
    assert np.array_equal(columns(dropped), picks["dedup_cls_x_y_z_val"].astype(np.float64))


@pytest.mark.parametrize(("n", "left"), [(1, 1), (2, 1), (3, 0), (4, 0), (8, 0)])
def test_published_dropping_loses_three_and_more_equal_picks_and_ours_keeps_one(n, left):
    rows = np.zeros(n, PEAK_DTYPE)
    assert len(drop_as_deepetpicker(rows, 4)) == left
    assert len(keep_highest(rows, 4)) == 1


@pytest.mark.parametrize("chunk", [(100, 200, 200), (48, 48, 48), (30, 41, 57), (128, 64, 7)])
def test_all_separated_balls_are_found_once_for_any_chunking(chunk):
    score, centres = separated_balls()
    found = in_chunks(score, MeanPoolSettings.of_diameters([11]), chunk)
    places = np.stack([found[name] for name in "zyx"], axis=1)
    assert sorted(map(tuple, places.tolist())) == sorted(map(tuple, centres.tolist()))


def test_the_published_program_loses_separated_balls_of_the_same_scene():
    score, centres = separated_balls(n=30, shape=(60, 100, 100))
    settings = MeanPoolSettings.of_diameters([11])
    search = TileSearch(score.shape, settings)
    found = [search.search(tile, [score[tile.read.slices]]) for tile in search.tiles()]
    rows = np.concatenate(found)
    raw = {tuple(row) for row in np.stack([rows[name] for name in "zyx"], axis=1).tolist()}
    assert raw == {tuple(centre) for centre in centres.tolist()}
    assert len(drop_as_deepetpicker(rows, settings.min_distance)) < len(centres)


@given(
    shape=st.tuples(*[st.integers(4, 30)] * 3),
    chunk=st.tuples(*[st.integers(2, 30)] * 3),
    diameter=st.sampled_from([3, 5, 9, 14, 23, 40]),
    seed=st.integers(0, 9999),
)
def test_picks_do_not_depend_on_the_chunking(shape, chunk, diameter, seed):
    score = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 1)
    settings = MeanPoolSettings.of_diameters([diameter])
    whole = in_chunks(score, settings, shape)
    assert np.array_equal(in_chunks(score, settings, chunk), whole)


@given(shape=st.tuples(*[st.integers(1, 20)] * 3), n=st.integers(1, 4), seed=st.integers(0, 999))
def test_means_and_peaks_are_those_of_box_filters(shape, n, seed):
    chosen = np.random.default_rng(seed).random(shape) < 0.4
    expected = chosen.astype(np.float64)
    for _ in range(n):
        expected = ndimage.uniform_filter(expected, 5, mode="constant")
    means = mean_pool(chosen, n)
    assert np.abs(means - expected).max() < 1e-12
    highest = ndimage.maximum_filter(means, 5, mode="constant", cval=-1)
    assert np.array_equal(find_peaks(means, 0.1), (means == highest) & (means > 0.1))


def test_no_two_kept_picks_are_close_and_every_dropped_one_has_a_higher_one_near():
    rng = np.random.default_rng(3)
    rows = np.zeros(400, PEAK_DTYPE)
    for name in "zyx":
        rows[name] = rng.integers(0, 30, 400)
    rows["value"] = rng.integers(1, 9, 400) / 8
    kept = keep_highest(rows, 5)
    points = np.stack([kept[name] for name in "zyx"], axis=1)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    assert distances[~np.eye(len(points), dtype=bool)].min() >= 5
    for row in rows:
        near = np.linalg.norm(points - [row["z"], row["y"], row["x"]], axis=1) < 5
        assert kept["value"][near].max() >= row["value"]


def stored(path, score, **fields):
    header = VolumeHeader(as_vec(score.shape[-3:]), str(score.dtype), 10.0, **fields)
    create_ome_zarr(path, header, chunks=(32, 32, 32)).write(Box.whole(header.shape), score)
    return path


def test_the_job_in_compat_writes_the_published_picks(two_workers, one_class, tmp_path):
    source = stored(tmp_path / "s.zarr", one_class["score"][0].astype(np.float32))
    settings = PickSettings(method="mp-nms", diameters=(11,), compat="deepetpicker")
    session = Session(two_workers, chunks=(48, 32, 64))
    pick_particles(session, source, tmp_path / "p", settings)
    picks = read_picks(tmp_path / "p/picks.csv").sort_values("label")
    expected = one_class["dedup_cls_x_y_z_val"]
    assert np.array_equal(picks[["x", "y", "z"]].to_numpy(), expected[:, 1:4])
    assert np.abs(picks["score"].to_numpy() - expected[:, 4]).max() < 1e-6


def test_the_job_finds_all_that_the_published_program_found_before_dropping(
    two_workers, one_class, tmp_path
):
    source = stored(tmp_path / "s.zarr", one_class["score"][0].astype(np.float32))
    places = []
    for chunks in ((128, 128, 128), (40, 50, 60)):
        target = tmp_path / str(chunks[0])
        settings = PickSettings(method="mp-nms", diameters=(11,))
        pick_particles(Session(two_workers, chunks=chunks), source, target, settings)
        places.append((target / "picks.csv").read_bytes())
    assert places[0] == places[1]
    picks = read_picks(tmp_path / "40/picks.csv")[["z", "y", "x"]].to_numpy()
    truth = one_class["truth_c_z_y_x"][:, 1:]
    hits = [np.linalg.norm(picks - point, axis=1).min() <= 5 for point in truth]
    assert sum(hits) >= 34  # as the published program before it loses 14


def test_each_class_of_a_score_map_is_searched_but_the_background(two_workers, tmp_path):
    score, centres = separated_balls(n=6, shape=(40, 60, 60))
    scores = np.stack([1 - score, score, score * 0])
    z = centres[0][0]
    first = tuple(slice(c - 5, c + 6) for c in centres[0])
    scores[2][first], scores[1][first] = scores[1][first], 0
    source = stored(tmp_path / "s.zarr", scores, class_names=("background", "a", "b"))
    settings = PickSettings(method="mp-nms", diameters=(11, 11))
    pick_particles(Session(two_workers), source, tmp_path / "p", settings)
    picks = read_picks(tmp_path / "p/picks.csv")
    assert len(picks) == 6
    assert picks[picks.class_name == "b"][["z"]].to_numpy().tolist() == [[z]]
    too_many = PickSettings(method="mp-nms", diameters=(11, 11, 11))
    with pytest.raises(ConfigError, match="diameters"):
        pick_particles(Session(two_workers), source, tmp_path / "q", too_many)


def test_why_nothing_was_found_is_said_of_the_class_that_comes_nearest(
    two_workers, tmp_path, caplog
):
    scores = np.zeros((3, 32, 32, 32), np.float32)
    scores[0], scores[1, 9, 9, 9], scores[2, 9, 9, 9] = 1, 0.4, 0.3
    source = stored(tmp_path / "s.zarr", scores, class_names=("background", "a", "b"))
    settings = PickSettings(method="mp-nms", diameters=(11, 11))
    pick_particles(Session(two_workers), source, tmp_path / "p", settings)
    assert "scores go from 0 to 0.4 " in caplog.text
    assert "none is above the threshold 0.5" in caplog.text
    settings = settings.model_copy(update={"thresholds": {"b": 0.2}})
    pick_particles(Session(two_workers), source, tmp_path / "q", settings)
    assert "scores go from 0 to 0.3 " in caplog.text
    assert "no blob fills a tenth of what is averaged over; change --diameter" in caplog.text


def test_one_label_of_a_label_volume_can_be_searched(two_workers, tmp_path):
    score, centres = separated_balls(n=5, shape=(40, 60, 60))
    labels = (2 * score).astype(np.int8)
    labels[tuple(slice(c - 5, c + 6) for c in centres[0])] //= 2
    source = stored(tmp_path / "l.zarr", labels)
    settings = PickSettings(method="mp-nms", diameters=(11,), label_value=2)
    assert pick_particles(Session(two_workers), source, tmp_path / "p", settings).n_picks == 4
    assert set(read_picks(tmp_path / "p/picks.csv").class_name.astype(str)) == {"2"}


@pytest.mark.parametrize(
    ("names", "expected"), [((), ("1", "2")), (("background", "fas", "ribosome"),) * 2]
)
def test_each_label_of_a_label_volume_is_a_class(two_workers, tmp_path, names, expected):
    score, centres = separated_balls(n=5, shape=(40, 60, 60))
    labels = (2 * score).astype(np.uint8)
    labels[tuple(slice(c - 5, c + 6) for c in centres[0])] //= 2
    source = stored(tmp_path / "l.zarr", labels)
    settings = PickSettings(method="mp-nms", diameters=(11, 11), class_names=names)
    pick_particles(Session(two_workers, chunks=(32, 32, 32)), source, tmp_path / "p", settings)
    picks = read_picks(tmp_path / "p/picks.csv")
    of_class = {
        name: sorted(map(tuple, rows[["z", "y", "x"]].to_numpy().round().tolist()))
        for name, rows in picks.groupby(picks.class_name.astype(str))
    }
    first, *others = (tuple(map(float, centre)) for centre in centres)
    assert of_class == dict(zip(expected[-2:], [[first], sorted(others)], strict=True))


def test_labels_of_single_particles_are_no_classes(two_workers, tmp_path):
    labels = np.arange(1, 1001, dtype=np.int16).reshape(10, 10, 10)
    source = stored(tmp_path / "l.zarr", labels)
    settings = PickSettings(method="mp-nms", diameters=(5,))
    with pytest.raises(ConfigError, match=r"a few classes, found 1 to 1000; choose .*label-value"):
        pick_particles(Session(two_workers), source, tmp_path / "p", settings)


def test_scores_of_whole_numbers_are_searched_above_their_threshold(two_workers, tmp_path):
    score, centres = separated_balls(n=5, shape=(40, 60, 60))
    source = stored(tmp_path / "s.zarr", (100 + 100 * score).astype(np.uint8))
    settings = PickSettings(method="mp-nms", diameters=(11,), threshold=150)
    pick_particles(Session(two_workers), source, tmp_path / "p", settings)
    assert len(read_picks(tmp_path / "p/picks.csv")) == len(centres)


def test_scores_that_are_nan_are_refused_with_the_file(two_workers, tmp_path):
    source = stored(tmp_path / "nan.zarr", np.full((9, 9, 9), np.nan, np.float32))
    settings = PickSettings(method="mp-nms", diameters=(5,))
    with pytest.raises(VoxelValueError, match=r"nan\.zarr.*NaN"):
        pick_particles(Session(two_workers), source, tmp_path / "p", settings)


def test_a_plateau_wider_than_the_diameter_is_refused_before_its_voxels_are_compared(
    two_workers, tmp_path, monkeypatch
):
    """Each inner voxel of a plateau has the highest mean near it."""
    source = stored(tmp_path / "s.zarr", np.ones((40, 40, 40), np.float32))
    settings = PickSettings(method="mp-nms", diameters=(5,))
    monkeypatch.setattr(mean_pool_job, "_MOST_PEAKS", 20_000)
    with pytest.raises(ConfigError, match=r"s\.zarr: .*highest means.*higher --threshold"):
        pick_particles(Session(two_workers), source, tmp_path / "p", settings)
    assert not (tmp_path / "p").exists()


def test_a_volume_smaller_than_a_published_tile_is_refused(two_workers, tmp_path):
    source = stored(tmp_path / "s.zarr", np.zeros((40, 60, 60), np.float32))
    settings = PickSettings(method="mp-nms", diameters=(5,), compat="deepetpicker")
    with pytest.raises(ShapeMismatchError, match="48"):
        pick_particles(Session(two_workers), source, tmp_path / "p", settings)


def test_the_command_picks_by_mean_pooling(tmp_path):
    score, centres = separated_balls(n=5, shape=(40, 60, 60))
    source = stored(tmp_path / "s.zarr", score)
    line = f"pick {source} {tmp_path / 'p'} --method mp-nms --diameter 11 --no-progress --workers 1"
    found = CliRunner().invoke(app, line.split())
    assert found.exit_code == 0, found.output
    assert f"{len(centres)} picks" in found.output


@pytest.mark.gpu
def test_the_gpu_finds_what_the_cpu_finds():
    cupy = pytest.importorskip("cupy")
    score, _ = separated_balls(n=10, shape=(40, 60, 60))
    means = mean_pool(score > 0.5, 3)
    on_gpu = mean_pool(cupy.asarray(score > 0.5), 3)
    assert np.array_equal(cupy.asnumpy(on_gpu), means)
    assert np.array_equal(cupy.asnumpy(find_peaks(on_gpu, 0.1)), find_peaks(means, 0.1))
