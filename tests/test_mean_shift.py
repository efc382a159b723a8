"""Mean shift: scikit-learn's centres, whatever the chunks, and the objects of DeepFinder."""

from __future__ import annotations

import json
import re

import mrcfile
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from benchmarks import bench_mean_shift
from deepict_dask.cli import app
from deepict_dask.config import PickSettings, RunConfig
from deepict_dask.core.errors import BudgetError, ConfigError, VoxelValueError
from deepict_dask.core.geometry import Box, Grid, as_vec
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.io.ome_zarr_write import create_ome_zarr
from deepict_dask.io.picks import read_picks
from deepict_dask.jobs.picking.pick import pick_particles
from deepict_dask.jobs.session import Session
from deepict_dask.particles.class_labels import ClassLabels
from deepict_dask.particles.mean_shift import (
    ModeReduction,
    centres_of,
    find_centres,
    owners_of,
)
from deepict_dask.particles.row_sums import RowSums
from deepict_dask.pipeline import run_pipeline


def blobs(shape, n, seed, *, radii=(2, 6), speckle=0.001):
    """Balls that may touch, and single voxels."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8)
    zyx = np.indices(shape)
    for _ in range(n):
        centre, radius = rng.integers(0, shape), rng.integers(*radii)
        inside = sum((a - c) ** 2 for a, c in zip(zyx, centre, strict=True)) <= radius**2
        labels[inside] = rng.integers(1, 4)
    labels[rng.random(shape) < speckle] = 1
    return labels


def sklearn_centres(labels, bandwidth, **options):
    cluster = pytest.importorskip("sklearn.cluster")
    voxels = np.stack(np.nonzero(labels), axis=1)
    return cluster.MeanShift(bandwidth=bandwidth, bin_seeding=True, **options).fit(voxels)


def centres_in_chunks(labels, bandwidth, chunk):
    """Return the centres, and how often paths were handed over."""
    reduction = ModeReduction(labels.shape, ClassLabels(), bandwidth)
    grid = Grid(labels.shape, as_vec(chunk), halo=reduction.halo)
    found = [reduction.measure(block, labels[block.read.slices]) for block in grid]
    ended = [part.ended for part in found]
    leaving, n_rounds = np.concatenate([part.leaving for part in found]), 0
    while len(leaving):
        n_rounds += 1
        owners = owners_of(leaving, grid)
        results = [
            reduction.go_on(block, leaving[owners == block.number], labels[block.read.slices])
            for block in grid
        ]
        ended += [done for done, _ in results]
        leaving = np.concatenate([left for _, left in results])
    return centres_of(np.concatenate(ended), bandwidth), n_rounds


@pytest.fixture(scope="module")
def deepfinder(golden):
    return golden / "deepfinder"


@pytest.fixture(scope="module")
def golden_labels(deepfinder):
    with mrcfile.open(deepfinder / "cluster_labelmap.mrc.gz") as file:
        return file.data.copy()


def objects_in(path):
    """Return (class, z, y, x, size) of each object of an XML list."""
    rows = re.findall(r"<object [^>]*>", path.read_text())
    values = [dict(re.findall(r'(\w+)="([^"]*)"', row)) for row in rows]
    names = ("class_label", "z", "y", "x", "cluster_size")
    return np.array([[float(value[name]) for name in names] for value in values])


@given(
    shape=st.tuples(*[st.integers(3, 26)] * 3),
    bandwidth=st.sampled_from([1.0, 2.0, 3.0, 4.5, 5.0, 7.3]),
    n=st.integers(1, 5),
    seed=st.integers(0, 9999),
)
@pytest.mark.filterwarnings("ignore:Binning data failed")
def test_centres_are_those_of_scikit_learn_to_the_last_bit(shape, bandwidth, n, seed):
    labels = blobs(shape, n, seed, speckle=0.005)
    expected = sklearn_centres(labels, bandwidth).cluster_centers_
    assert np.array_equal(find_centres(labels, bandwidth), expected)


@given(
    chunk=st.tuples(*[st.integers(4, 40)] * 3),
    bandwidth=st.sampled_from([2.0, 5.0, 6.5]),
    seed=st.integers(0, 9999),
)
def test_centres_do_not_depend_on_the_chunking(chunk, bandwidth, seed):
    labels = blobs((34, 28, 40), 8, seed)
    whole = find_centres(labels, bandwidth)
    assert np.array_equal(centres_in_chunks(labels, bandwidth, chunk)[0], whole)


def test_a_path_that_drifts_through_many_chunks_ends_where_it_does_in_the_whole_volume():
    density = np.exp((np.arange(100) - 99) / 15)
    labels = (np.random.default_rng(0).random((25, 25, 100)) < density).astype(np.uint8)
    whole = find_centres(labels, 6.0)
    found, n_rounds = centres_in_chunks(labels, 6.0, (25, 25, 5))
    assert n_rounds >= 3
    assert np.array_equal(found, whole)


def test_where_every_voxel_has_its_own_bin_paths_start_at_the_voxels():
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[2, 2, 2] = labels[2, 2, 4] = labels[30, 31, 32] = 1
    with pytest.warns(UserWarning, match="Binning data failed"):
        expected = sklearn_centres(labels, 1.6).cluster_centers_
    assert np.array_equal(find_centres(labels, 1.6), expected)
    assert len(expected) == 3


def test_a_voxel_at_exactly_the_radius_is_in_the_ball():
    rng = np.random.default_rng(0)
    labelled = rng.random((30, 30, 30)) < 0.5
    points = rng.integers(-8, 70, (300, 3)) / 2
    sums, counts = RowSums.of(labelled, Box.whole((30, 30, 30))).of_balls(points, 5.0)
    voxels = np.stack(np.nonzero(labelled), axis=1)
    for point, total, count in zip(points, sums, counts, strict=True):
        near = voxels[((voxels - point) ** 2).sum(axis=1) <= 25]
        assert count == len(near)
        assert total.tolist() == near.sum(axis=0).tolist()


@pytest.mark.parametrize("chunk", [(64, 96, 112), (32, 32, 32), (17, 41, 29)])
def test_the_golden_centres_come_out_of_one_chunk_and_of_many(deepfinder, golden_labels, chunk):
    expected = np.load(deepfinder / "cluster_r5_raw.npz")["centers_zyx"]
    found, _ = centres_in_chunks(golden_labels, 5.0, chunk)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-6


def write_labels(path, voxels, chunk, **fields):
    header = VolumeHeader(voxels.shape, str(voxels.dtype), 10.0, **fields)
    create_ome_zarr(path, header, chunks=chunk).write(Box.whole(voxels.shape), voxels)
    return path


@pytest.mark.parametrize("chunk", [(64, 96, 112), (30, 40, 50)])
def test_the_golden_objects_come_out_of_the_job(
    two_workers, deepfinder, golden_labels, tmp_path, chunk
):
    source = write_labels(tmp_path / "labels.zarr", golden_labels, chunk)
    settings = PickSettings(
        method="mean-shift", bandwidth=5, compat="deepfinder", min_sizes={"1": 50, "2": 100}
    )
    session = Session(two_workers, chunks=chunk)
    pick_particles(session, source, tmp_path / "picks", settings)
    picks = read_picks(tmp_path / "picks/picks.csv").sort_values("label")
    expected = objects_in(deepfinder / "cluster_r5_objlist_thr_50_100.xml")
    found = picks[["class_name", "z", "y", "x", "n_voxels"]].to_numpy(float)
    order = np.lexsort(expected[:, ::-1].T), np.lexsort(found[:, ::-1].T)
    expected, found = expected[order[0]], found[order[1]]
    assert np.array_equal(found[:, 0], expected[:, 0])
    assert np.abs(found[:, 1:4] - expected[:, 1:4]).max() <= 1e-3  # both have three decimals
    # a voxel between two centres belongs to either
    assert np.abs(found[:, 4] - expected[:, 4]).max() <= 1
    record = json.loads((tmp_path / "picks/run.json").read_text())
    assert record["n_picks"] == len(expected) == 38
    assert (tmp_path / "picks/picks.star").exists()
    assert (tmp_path / "picks/motl.csv").exists()
    assert not (tmp_path / "picks/scratch").exists()


def test_without_thresholds_there_are_as_many_objects_as_golden_ones(
    two_workers, deepfinder, golden_labels, tmp_path
):
    source = write_labels(tmp_path / "labels.zarr", golden_labels, (40, 40, 40))
    settings = PickSettings(method="mean-shift", bandwidth=5)
    report = pick_particles(Session(two_workers), source, tmp_path / "picks", settings)
    raw = np.loadtxt(deepfinder / "cluster_r5_objlist_raw.txt")
    picks = read_picks(tmp_path / "picks/picks.csv")
    assert report.n_picks == len(raw) == 127
    assert picks["n_voxels"].sum() == raw[:, 4].sum() == np.count_nonzero(golden_labels)


@pytest.mark.parametrize(("compat", "label"), [(None, "3"), ("deepfinder", "1")])
def test_a_class_after_a_missing_number_is_right_but_in_compat(
    two_workers, tmp_path, compat, label
):
    labels = np.zeros((20, 20, 40), np.int8)
    labels[8:12, 8:12, 6:10], labels[8:12, 8:12, 30:34] = 1, 3
    source = write_labels(tmp_path / "labels.zarr", labels, (20, 20, 20))
    settings = PickSettings(method="mean-shift", bandwidth=4, compat=compat)
    pick_particles(Session(two_workers), source, tmp_path / "picks", settings)
    picks = read_picks(tmp_path / "picks/picks.csv")
    assert set(zip(picks.x, picks.class_name.astype(str), strict=True)) == {
        (7.5, "1"),
        (31.5, label),
    }


def test_objects_of_a_score_map_have_the_class_of_their_voxels_and_their_mean_score(
    two_workers, tmp_path
):
    scores = np.zeros((3, 20, 20, 40), np.float32)
    scores[0] = 0.9
    scores[1, 8:12, 8:12, 6:10], scores[0, 8:12, 8:12, 6:10] = 0.75, 0.25
    scores[2, 8:12, 8:12, 30:34], scores[0, 8:12, 8:12, 30:34] = 0.5, 0.25
    names = ("background", "ribosome", "fas")
    header = VolumeHeader((20, 20, 40), "float32", 10.0, class_names=names)
    source = tmp_path / "scores.zarr"
    create_ome_zarr(source, header, chunks=(20, 20, 20)).write(Box.whole((20, 20, 40)), scores)
    settings = PickSettings(method="mean-shift", bandwidth=4, threshold=0.3)
    pick_particles(Session(two_workers), source, tmp_path / "picks", settings)
    picks = read_picks(tmp_path / "picks/picks.csv")
    assert picks[["class_name", "score", "n_voxels", "x"]].to_numpy().tolist() == [
        ["ribosome", 0.75, 64, 7.5],
        ["fas", 0.5, 64, 31.5],
    ]


def test_sizes_are_inclusive_and_of_each_class(two_workers, tmp_path):
    labels = np.zeros((12, 12, 60), np.int8)
    labels[4:8, 4:8, 4:8], labels[4:8, 4:8, 24:28], labels[4:6, 4:6, 44:46] = 1, 2, 1
    source = write_labels(tmp_path / "labels.zarr", labels, (12, 12, 12))
    for name, sizes, least, expected in [
        ("a", {}, 8, 3), ("b", {}, 9, 2), ("c", {"2": 65}, 1, 2), ("d", {"2": 64, "1": 9}, 1, 2),
    ]:  # fmt: skip
        settings = PickSettings(method="mean-shift", bandwidth=4, min_size=least, min_sizes=sizes)
        report = pick_particles(Session(two_workers), source, tmp_path / name, settings)
        assert report.n_picks == expected


def test_an_empty_label_volume_gives_empty_lists_and_says_why(two_workers, tmp_path, caplog):
    source = write_labels(tmp_path / "labels.zarr", np.zeros((9, 9, 9), np.int8), (9, 9, 9))
    settings = PickSettings(method="mean-shift", bandwidth=4)
    assert pick_particles(Session(two_workers), source, tmp_path / "p", settings).n_picks == 0
    assert "no picks" in caplog.text
    assert (tmp_path / "p/picks.csv").exists()


def test_objects_that_are_all_too_small_are_no_picks_for_that_reason(two_workers, tmp_path, caplog):
    labels = np.zeros((9, 9, 9), np.int8)
    labels[3:6, 3:6, 3:6] = 2
    source = write_labels(tmp_path / "labels.zarr", labels, (9, 9, 9))
    settings = PickSettings(method="mean-shift", bandwidth=4, min_size=28)
    assert pick_particles(Session(two_workers), source, tmp_path / "p", settings).n_picks == 0
    assert "no object is within the limits; change --min-size" in caplog.text


def test_a_halo_that_no_worker_can_hold_is_refused_before_work_begins(two_workers, tmp_path):
    labels = np.zeros((300, 300, 2), np.int8)
    source = write_labels(tmp_path / "labels.zarr", labels, (300, 300, 2))
    reduction = ModeReduction((4000, 4000, 4000), ClassLabels(), 400.0)
    grid = Grid((4000, 4000, 4000), (128, 128, 128), halo=reduction.halo)
    assert reduction.bytes_needed(grid.window_shape) > 4 << 30
    settings = PickSettings(method="mean-shift", bandwidth=20000)
    with pytest.raises(BudgetError, match="mean shift"):
        pick_particles(Session(two_workers), source, tmp_path / "p", settings)


def test_negative_labels_are_refused(two_workers, tmp_path):
    source = write_labels(tmp_path / "l.zarr", np.full((5, 5, 5), -1, np.int8), (5, 5, 5))
    settings = PickSettings(method="mean-shift", bandwidth=4)
    with pytest.raises(VoxelValueError, match=r"l\.zarr.*negative"):
        pick_particles(Session(two_workers), source, tmp_path / "p", settings)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"method": "mean-shift"}, "bandwidth"),
        ({"method": "mp-nms"}, "diameters"),
        ({"method": "mean-shift", "bandwidth": 5, "connectivity": 6}, "connectivity"),
        ({"method": "mean-shift", "bandwidth": 5, "compat": "deepict"}, "deepfinder"),
        ({"method": "mp-nms", "diameters": (9,), "min_size": 5}, "min_size"),
        ({"bandwidth": 5}, "bandwidth"),
        ({"compat": "deepfinder"}, "deepict"),
    ],
)
def test_settings_of_another_method_are_refused(values, word):
    with pytest.raises(ValueError, match=word):
        PickSettings(**values)


def test_a_size_of_an_unknown_class_is_refused(two_workers, tmp_path):
    source = write_labels(tmp_path / "l.zarr", np.ones((5, 5, 5), np.int8), (5, 5, 5))
    settings = PickSettings(method="mean-shift", bandwidth=4, min_sizes={"fas": 5})
    with pytest.raises(ConfigError, match="fas"):
        pick_particles(Session(two_workers), source, tmp_path / "p", settings)


def test_a_run_without_stored_scores_stores_those_that_a_method_needs(
    two_workers, golden, tmp_path
):
    with mrcfile.open(golden / "deepict/inputs/tomo.mrc.gz") as file:
        crop = np.ascontiguousarray(file.data[:48, 20:84, 10:74])
    source = write_labels(tmp_path / "t.zarr", crop, (48, 64, 64))
    picks = [
        {"class": "blob", "method": "mean-shift", "bandwidth": 6, "min_size": 30, "name": "ms"},
        {"class": "blob", "method": "mp-nms", "diameters": [11], "name": "mp"},
        {"class": "blob", "min_size": 30, "name": "cc"},
    ]
    config = RunConfig(
        tomograms=source, output=tmp_path / "out", pick=picks, keep_scores=False,
        segment=[{"model": str(golden / "deepict/models/blob_D2_IF4_BN.pth")}],
    )  # fmt: skip
    report = run_pipeline(Session(two_workers), config)
    assert not report.failed
    (one,) = report.tomograms
    assert min(one.n_picks.values()) > 0
    assert set(one.n_picks) == {"picks_ms", "picks_mp", "picks_cc"}


def test_the_benchmark_runs_and_agrees_with_scikit_learn(two_workers):
    pytest.importorskip("sklearn.cluster")
    result = bench_mean_shift.run(two_workers, small=True)
    assert result["same centres as scikit-learn"] is True
    assert all(row[1] > 0 for row in result["rates"]["rows"])


def test_the_command_picks_by_mean_shift(tmp_path):
    labels = np.zeros((20, 20, 20), np.int8)
    labels[8:12, 8:12, 8:12] = 2
    source = write_labels(tmp_path / "labels.zarr", labels, (20, 20, 20))
    line = f"pick {source} {tmp_path / 'p'} --method mean-shift --bandwidth 4 --class-min-size 2=64"
    found = CliRunner().invoke(app, [*line.split(), "--no-progress", "--workers", "1"])
    assert found.exit_code == 0, found.output
    assert "1 picks" in found.output
