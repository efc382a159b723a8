"""The files of a pick folder do not depend on chunks or workers."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_cdt, gaussian_filter
from skimage.measure import label as skimage_label
from skimage.measure import regionprops

from deepict_dask.config import PickSettings
from deepict_dask.core.errors import (
    BudgetError,
    ConfigError,
    ShapeMismatchError,
    VoxelValueError,
)
from deepict_dask.core.geometry import Box, Grid
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.engine import ClusterSettings, connect
from deepict_dask.io.ome_zarr_write import create_ome_zarr
from deepict_dask.io.volumes import open_volume
from deepict_dask.jobs.picking.pick import pick_particles
from deepict_dask.jobs.session import Session

TABLES = ("picks.csv", "motl.csv", "picks.star", "clusters.parquet")


def store(path, volume):
    writer = create_ome_zarr(path, VolumeHeader(volume.shape, str(volume.dtype), 13.48))
    for block in Grid(volume.shape, writer.write_shape):
        writer.write(block.write, volume[block.write.slices])
    return path


def smooth_scores(shape, seed, sigma=1.5):
    noise = np.random.default_rng(seed).standard_normal(shape)
    smooth = gaussian_filter(noise, sigma)
    return (smooth / np.abs(smooth).max() / 2 + 0.4).astype("float32")


def read(path):
    reader = open_volume(path)
    return reader.read(Box.whole(reader.header.shape))


@settings(max_examples=12)
@given(
    shape=st.tuples(*[st.integers(20, 150)] * 3).filter(lambda s: np.prod(s) < 400_000),
    chunks=st.tuples(*[st.integers(9, 160)] * 3),
    n=st.integers(1, 3),
    connectivity=st.sampled_from([6, 18, 26]),
    seed=st.integers(0, 1000),
)
def test_all_files_are_those_of_one_chunk(
    any_workers, tmp_path, shape, chunks, n, connectivity, seed
):
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    source = store(tmp_path / "s.zarr", smooth_scores(shape, seed))
    wishes = PickSettings(threshold=0.5, min_size=3, connectivity=connectivity, label_map=True)
    for name, workers, parts in (("whole", any_workers[1], shape), ("cut", any_workers[n], chunks)):
        pick_particles(
            Session(workers, chunks=parts), source, tmp_path / name, wishes, tomogram_name="t"
        )
    for table in TABLES:
        assert (tmp_path / "cut" / table).read_bytes() == (tmp_path / "whole" / table).read_bytes()
    for volume in ("segmentation.zarr", "label_map.zarr"):
        np.testing.assert_array_equal(
            read(tmp_path / "cut" / volume), read(tmp_path / "whole" / volume)
        )


@pytest.mark.parametrize("mode", ["intersection", "contact", "colocalization"])
@pytest.mark.parametrize("chunks", [(64, 64, 64), (17, 23, 40)])
def test_region_modes_equal_the_definition_on_the_whole_volume(two_workers, tmp_path, mode, chunks):
    score = smooth_scores((50, 60, 64), 7)
    region = np.zeros(score.shape, "uint8")
    region[10:30, 20:50, 5:40] = 3
    distance = distance_transform_cdt(region == 0, metric="chessboard")
    chosen = (score > 0.5) & (region > 0) if mode == "intersection" else score > 0.5
    expected = []
    for cluster in regionprops(skimage_label(chosen, connectivity=3)):
        centre = tuple(np.rint(cluster.centroid).astype(int))
        touches = region[tuple(cluster.coords.T)].any()
        near = distance[centre] <= 4
        if {"intersection": True, "contact": touches, "colocalization": near}[mode]:
            expected.append((int(cluster.area), *cluster.centroid))
    pick_particles(
        Session(two_workers, chunks=chunks),
        store(tmp_path / "s.zarr", score),
        tmp_path / "p",
        PickSettings(region="r", contact_mode=mode, contact_distance=4),
        regions={"r": store(tmp_path / "r.zarr", region)},
    )
    table = pd.read_parquet(tmp_path / "p/clusters.parquet")
    assert len(expected) > 1
    np.testing.assert_allclose(table[["n_voxels", "z", "y", "x"]], expected, rtol=1e-12)


@pytest.mark.parametrize("mode", ["intersection", "contact", "colocalization"])
def test_an_empty_region_mask_keeps_nothing_and_says_so(two_workers, tmp_path, caplog, mode):
    score = smooth_scores((30, 30, 30), 1)
    report = pick_particles(
        Session(two_workers, chunks=(16, 16, 16)),
        store(tmp_path / "s.zarr", score),
        tmp_path / "p",
        PickSettings(region="r", contact_mode=mode),
        regions={"r": store(tmp_path / "r.zarr", np.zeros(score.shape, "uint8"))},
    )
    assert report.n_picks == 0
    assert not read(tmp_path / "p/segmentation.zarr").any()
    assert "empty" in caplog.text


def test_scores_that_are_given_for_a_region_are_said_to_look_so(two_workers, tmp_path, caplog):
    score = np.abs(smooth_scores((30, 30, 30), 1))
    mask = np.ones(score.shape, "float32")
    for values in (mask, score):
        caplog.clear()
        pick_particles(
            Session(two_workers, chunks=(16, 16, 16)),
            store(tmp_path / f"s{values[0, 0, 0]}.zarr", score),
            tmp_path / f"p{values[0, 0, 0]}",
            PickSettings(region="r"),
            regions={"r": store(tmp_path / f"r{values[0, 0, 0]}.zarr", values)},
        )
        assert ("between 0 and 1" in caplog.text) == (values is score)


def test_a_far_region_is_found_in_the_memory_of_one_chunk(tmp_path):

    score = np.zeros((40, 200, 300), "float32")
    score[20, 100, 150] = 1
    region = np.zeros(score.shape, "uint8")
    region[20, 100, 299] = 1
    regions = {"r": store(tmp_path / "r.zarr", region)}
    source = store(tmp_path / "s.zarr", score)
    small = ClusterSettings(kind="threads", workers=1, memory="155MiB")
    with connect(small) as workers:  # a window of 332^3 voxels would need 400 MiB
        session = Session(workers, chunks=(32, 32, 32))
        for distance in (148, 149):
            wishes = PickSettings(
                region="r", contact_mode="colocalization", contact_distance=distance
            )
            target = tmp_path / f"p{distance}"
            report = pick_particles(session, source, target, wishes, regions=regions)
            assert report.n_picks == (distance == 149)


def test_a_region_mask_of_another_shape_is_refused(two_workers, tmp_path):
    with pytest.raises(ShapeMismatchError, match="same binning"):
        pick_particles(
            Session(two_workers),
            store(tmp_path / "s.zarr", smooth_scores((20, 20, 20), 1)),
            tmp_path / "p",
            PickSettings(),
            regions={"r": store(tmp_path / "r.zarr", np.ones((10, 10, 10), "uint8"))},
        )
    assert not (tmp_path / "p").exists()
    assert not (tmp_path / "p.partial").exists()


def test_a_mask_of_signed_bytes_is_refused_rather_than_taken_for_empty(two_workers, tmp_path):
    mask = np.full((20, 20, 20), -128, "int8")
    mask[5:] = -127
    with pytest.raises(VoxelValueError, match="signed"):
        pick_particles(
            Session(two_workers),
            store(tmp_path / "s.zarr", smooth_scores((20, 20, 20), 1)),
            tmp_path / "p",
            PickSettings(),
            regions={"r": store(tmp_path / "r.zarr", mask)},
        )


def test_one_class_of_a_score_map_with_several_is_picked(two_workers, tmp_path):
    maps = np.stack([np.zeros((20, 24, 28), "float32"), smooth_scores((20, 24, 28), 3)])
    path = tmp_path / "s.zarr"
    header = VolumeHeader((20, 24, 28), "float32", 13.48, class_names=("none", "some"))
    create_ome_zarr(path, header).write(Box.whole(header.shape), maps)
    session = Session(two_workers, chunks=(16, 16, 16))
    with pytest.raises(ConfigError, match="none, some"):
        pick_particles(session, path, tmp_path / "p", PickSettings())
    report = pick_particles(session, path, tmp_path / "p", PickSettings(class_name="some"))
    assert report.n_picks == skimage_label(maps[1] > 0.5, connectivity=3).max() > 0


def test_a_label_volume_is_picked_label_by_label(two_workers, tmp_path):
    labels = np.zeros((30, 30, 30), "int8")
    labels[2:5, 2:5, 2:5], labels[5:8, 2:5, 2:5] = 1, 2
    source = store(tmp_path / "l.zarr", labels)
    for value in (1, 2):
        pick_particles(
            Session(two_workers, chunks=(8, 8, 8)),
            source,
            tmp_path / f"p{value}",
            PickSettings(label_value=value),
        )
        table = pd.read_csv(tmp_path / f"p{value}/picks.csv")
        assert table[["z", "n_voxels"]].to_numpy().tolist() == [[3 * value, 27]]
        assert table.class_name.astype(str).tolist() == [str(value)]
    named = PickSettings(class_name="fas", class_names=("background", "ribosome", "fas"))
    pick_particles(Session(two_workers), source, tmp_path / "fas", named)
    assert pd.read_csv(tmp_path / "fas/picks.csv").class_name.tolist() == ["fas"]


def test_labels_of_several_classes_are_not_run_together(two_workers, tmp_path):
    labels = np.zeros((30, 30, 30), "uint8")
    labels[2:5, 2:5, 2:5], labels[5:8, 2:5, 2:5] = 100, 200
    source = store(tmp_path / "l.zarr", labels)
    session = Session(two_workers, chunks=(5, 30, 30))
    with pytest.raises(ConfigError, match=r"labels from 100 to 200, .*--label-value"):
        pick_particles(session, source, tmp_path / "p", PickSettings())
    # above a threshold among them they are scores of whole numbers
    report = pick_particles(session, source, tmp_path / "p", PickSettings(threshold=50))
    assert report.n_picks == 1
    mask = store(tmp_path / "m.zarr", labels // 200 * 255)
    assert pick_particles(session, mask, tmp_path / "q", PickSettings()).n_picks == 1


def test_border_voxels_are_left_out_on_both_ends_of_each_axis(two_workers, tmp_path):
    full = np.ones((20, 22, 24), "float32")
    pick_particles(
        Session(two_workers, chunks=(8, 8, 8)),
        store(tmp_path / "s.zarr", full),
        tmp_path / "p",
        PickSettings(border=(1, 2, 3)),
    )
    expected = np.zeros(full.shape, "uint8")
    expected[1:-1, 2:-2, 3:-3] = 1
    np.testing.assert_array_equal(read(tmp_path / "p/segmentation.zarr"), expected)


def test_a_store_of_one_huge_chunk_is_refused_before_a_worker_decodes_it(tmp_path):
    """Zarr decodes a whole chunk for any box within it, however small the windows are."""
    volume = np.zeros((192, 192, 192), "float32")
    path = tmp_path / "one.zarr"
    header = VolumeHeader(volume.shape, "float32", 10.0)
    create_ome_zarr(path, header, chunks=volume.shape).write(Box.whole(volume.shape), volume)
    small = ClusterSettings(kind="threads", workers=1, memory="150MiB")
    with (
        connect(small) as workers,
        pytest.raises(BudgetError, match=r"one.zarr.*chunks of 192x192x192 voxels, of 27.*convert"),
    ):
        pick_particles(
            Session(workers, chunks=(16, 16, 16)), path, tmp_path / "p", PickSettings(threshold=0.8)
        )
