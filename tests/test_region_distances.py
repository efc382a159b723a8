"""Distances to a region, searched in parts, are those of the whole mask; masks read as one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from region_scenes import KINDS, region_mask, store, whole_distance

from deepict_dask.core.errors import ConfigError, ShapeMismatchError
from deepict_dask.core.geometry import Box, Grid
from deepict_dask.io.array import ArrayReader
from deepict_dask.io.stacked import StackedMasks
from deepict_dask.io.volumes import open_volume
from deepict_dask.jobs.picking.region_search import Region, Search, search_chunk
from deepict_dask.regions import (
    PART_DTYPE,
    MaskSurvey,
    SurveyReduction,
    distance_bytes,
    nearest_distances,
    parts_in_reach,
)


def parts_of(mask, chunks):
    reduction = SurveyReduction(mask.dtype.name)
    surveys = [
        reduction.measure(block, mask[block.read.slices]) for block in Grid(mask.shape, chunks)
    ]
    return np.concatenate([survey.parts for survey in surveys])


@given(
    shape=st.tuples(*[st.integers(1, 30)] * 3),
    chunks=st.tuples(*[st.integers(1, 32)] * 3),
    kind=st.sampled_from(KINDS),
    metric=st.sampled_from(["euclidean", "chessboard"]),
    limit=st.sampled_from([0.0, 1.0, 2.5, 7.0, 12.3, 500.0]),
    seed=st.integers(0, 1000),
)
@example((4, 4, 8), (4, 4, 4), "one voxel", "euclidean", 5.0, 0)
def test_distances_up_to_a_limit_equal_scipys(shape, chunks, kind, metric, limit, seed):
    mask = region_mask(shape, kind, seed)
    rng = np.random.default_rng(seed)
    points = rng.integers(0, shape, size=(40, 3))
    expected = whole_distance(mask, metric)[tuple(points.T)]
    parts = parts_in_reach(parts_of(mask, chunks), points, limit + 1)
    found = nearest_distances(lambda box: mask[box.slices], parts, points, limit, metric)
    np.testing.assert_allclose(found, np.where(expected <= limit, expected, np.inf), rtol=1e-12)


def test_only_what_can_be_nearest_is_read():
    mask = np.zeros((8, 8, 64), "uint8")
    mask[2, 2, [3, 5, 13, 40, 61]] = 1
    mask[:, :, 24:32] = 1
    read = []

    def reading(box):
        read.append(box)
        return mask[box.slices]

    parts = parts_of(mask, (8, 8, 8))
    found = nearest_distances(reading, parts, np.array([[2, 2, 4]]), 30)
    assert found.tolist() == [1.0]
    assert read == [Box((2, 2, 3), (3, 3, 6))]  # the part's own box, and no other
    read.clear()
    assert nearest_distances(reading, parts, np.array([[2, 2, 33]]), 30).tolist() == [2.0]
    assert read == []  # a full part is its box; the next one is farther


def test_many_surface_voxels_are_searched_in_several_trees(monkeypatch):
    monkeypatch.setattr("deepict_dask.regions.distance.TREE_VOXELS", 50)
    mask = region_mask((20, 21, 22), "noise", 3)
    points = np.argwhere(np.ones(mask.shape))[::7]
    found = nearest_distances(lambda box: mask[box.slices], parts_of(mask, (20, 9, 30)), points, 40)
    np.testing.assert_allclose(found, whole_distance(mask)[tuple(points.T)], rtol=1e-12)


def test_stacked_masks_hold_one_bit_for_each():
    rng = np.random.default_rng(0)
    for n, dtype in ((1, "uint8"), (8, "uint8"), (9, "uint16"), (33, "uint64"), (64, "uint64")):
        masks = [
            rng.integers(-1, 2, (3, 4, 5)).astype(rng.choice(["int8", "f4"])) for _ in range(n)
        ]
        stacked = StackedMasks(tuple(map(ArrayReader, masks)))
        bits = stacked.read(Box((1, 0, 2), (3, 4, 5)))
        assert (stacked.header.dtype, bits.dtype) == (dtype, dtype)
        for number, mask in enumerate(masks):
            inside = bits & bits.dtype.type(1 << number) != 0
            np.testing.assert_array_equal(inside, mask[1:3, :, 2:] != 0)


def test_masks_that_cannot_be_stacked_are_refused():
    small, large = ArrayReader(np.zeros((2, 2, 2))), ArrayReader(np.zeros((2, 2, 3)))
    with pytest.raises(ConfigError, match="1 to 64 masks, found 65"):
        StackedMasks((small,) * 65)
    with pytest.raises(ConfigError, match="found 0"):
        StackedMasks(())
    with pytest.raises(ShapeMismatchError, match=r"found \(2, 2, 3\)"):
        StackedMasks((small, large))


def peak_of_one_search(store_path, n_points):
    """Search one part in this process and return by how much its resident size grew at most."""
    rng, status = np.random.default_rng(0), Path("/proc/self/status")

    def once(reader, side, n):
        parts = np.array([((0, 0, 0), (side,) * 3, False)], PART_DTYPE)
        points = rng.integers(-side // 2, 3 * side // 2, (n, 3))
        search_chunk([Search(Region("er", reader, MaskSurvey(parts)), 2.0 * side)], points)

    once(ArrayReader(np.eye(8, dtype="uint8")[None].repeat(8, axis=0)), 8, 10)
    reader = open_volume(store_path)
    before = 1024 * int(status.read_text().split("VmRSS:")[1].split()[0])
    Path("/proc/self/clear_refs").write_text("5")  # the peak is from now on
    once(reader, reader.header.shape[0], n_points)
    return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0]) - before


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from /proc")
@pytest.mark.parametrize("n_points", [100, 100_000])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("density", [0.01, 0.7])  # 0.7 has the most surface
def test_a_search_takes_no_more_memory_than_planned(tmp_path, dtype, density, n_points):
    side = 128
    path = tmp_path / "m.zarr"
    mask = (np.random.default_rng(0).random((side,) * 3) < density).astype(dtype)
    store(path, mask)
    environment = {"ZARR_ASYNC__CONCURRENCY": "1", "ZARR_THREADING__MAX_WORKERS": "1"}
    found = subprocess.run(
        [sys.executable, __file__, path, str(n_points)],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    peak, planned = int(found.stdout), distance_bytes(mask.shape, dtype, n_points)
    assert peak <= planned
    if density > 0.5:
        assert planned <= 2.5 * peak


if __name__ == "__main__":
    print(peak_of_one_search(Path(sys.argv[1]), int(sys.argv[2])))
