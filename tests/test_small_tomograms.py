"""What small tomograms cost: few tasks, whole windows in a dataset, and nothing asked twice."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import mrcfile
import numpy as np
import pytest
from dataset_scenes import config_of, threshold_of, write_network, write_tomogram
from hypothesis import given
from hypothesis import strategies as st

from deepict_dask.config import PickSettings
from deepict_dask.core.geometry import Grid
from deepict_dask.engine import Workers
from deepict_dask.engine.turns import Turns
from deepict_dask.jobs.picking.pick import label_grid, pick_particles
from deepict_dask.jobs.segmenting import windows as segment_windows
from deepict_dask.jobs.segmenting.windows import choose_grid
from deepict_dask.jobs.session import Session
from deepict_dask.labelling import LabelReduction, SelectSettings
from deepict_dask.models.unet3d import UNet3D, UNet3DSettings
from deepict_dask.pipeline import run_pipeline
from deepict_dask.plan import plan_run
from deepict_dask.segmentation.windows import SegmentOp


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return write_network(tmp_path_factory.mktemp("network") / "net.safetensors")


@pytest.fixture(scope="module")
def threshold(tmp_path_factory, network, two_workers):
    return threshold_of(tmp_path_factory.mktemp("threshold"), network, two_workers)


@pytest.fixture
def op(network):
    return SegmentOp(str(network), 0.0, 1.0)


class Recorder:
    """A client that notes what is submitted, on one kind of workers."""

    def __init__(self, client):
        self._client, self.tasks, self.resources = client, Counter(), []

    def submit(self, *arguments, resources=None, **options):
        self.tasks[options["key"].split("-")[0]] += 1
        self.resources.append((options["key"].split("-")[0], resources))
        return self._client.submit(*arguments, **options)

    def __getattr__(self, name):
        return getattr(self._client, name)


def recorded(workers, **options):
    return replace(workers, client=Recorder(workers.client), **options)


def test_a_small_tomogram_of_many_is_one_window_and_alone_it_feeds_the_workers(op):
    shape, chunks, memory = (96, 160, 160), (64, 64, 64), 4 << 30
    assert choose_grid(op, shape, chunks, memory, many_tomograms=True).n_blocks == 1
    assert choose_grid(op, shape, chunks, memory).n_blocks >= 3
    large = (192, 256, 256)
    many = choose_grid(op, large, chunks, memory, many_tomograms=True)
    assert many == choose_grid(op, large, chunks, memory)


def test_windows_of_many_tomograms_still_fit_the_memory(op):
    grid = choose_grid(op, (96, 160, 160), (32, 32, 32), 420 << 20, many_tomograms=True)
    assert grid.n_blocks > 1
    assert op.bytes_of(grid) <= 420 << 20


def test_a_dataset_decides_by_the_number_of_its_tomograms_and_the_plan_says_so(
    two_workers, network, threshold, tmp_path, monkeypatch
):
    asked = []

    def noted(*arguments, many_tomograms=False, **wishes):
        asked.append(many_tomograms)
        return choose_grid(*arguments, many_tomograms=many_tomograms, **wishes)

    monkeypatch.setattr(segment_windows, "choose_grid", noted)
    for seed in range(8):
        write_tomogram(tmp_path / f"{seed}.mrc", seed)
    few = config_of(tmp_path, tmp_path / "few", network, threshold, tomograms="[0-6].mrc")
    many = config_of(tmp_path, tmp_path / "many", network, threshold)
    for config, expected in ((few, [False] * 7), (many, [True] * 8)):
        asked.clear()
        assert not run_pipeline(Session(two_workers), config).failed
        assert asked == expected
    plans = [
        [line for line in plan_run(config, workers=1, memory="4GiB") if "scores_net" in line]
        for config in (few, many)
    ]
    assert {line.split(",")[0] for line in plans[1]} == {"  scores_net.zarr: 1 blocks"}
    assert "1 blocks" not in plans[0][0]


@given(
    shape=st.tuples(*[st.integers(1, 400)] * 3),
    chunk=st.sampled_from([16, 24, 64, 100, 128, 200]),
    memory=st.sampled_from([200 << 20, 1 << 30, 8 << 30]),
)
def test_label_blocks_are_whole_chunks_no_larger_than_the_default_one(shape, chunk, memory):
    reduction = LabelReduction(shape, SelectSettings(threshold=0.5))
    grid = label_grid(shape, (chunk,) * 3, reduction, memory)
    plain = Grid(shape, tuple(min(chunk, n) for n in shape))
    for block, one, size in zip(grid.write_shape, plain.write_shape, shape, strict=True):
        assert block % one == 0 or block == size
    if grid.write_shape != plain.write_shape:
        assert np.prod(grid.write_shape) <= 128**3
        assert 4 <= grid.n_blocks < plain.n_blocks
        assert reduction.bytes_needed(grid.write_shape) <= memory


def test_small_chunks_are_labelled_several_in_a_task_with_the_same_picks(
    two_workers, tmp_path, monkeypatch
):
    scores = np.random.default_rng(0).random((64, 64, 96)).astype("float32")
    mrcfile.write(tmp_path / "s.mrc", scores, voxel_size=10.0)
    settings = PickSettings(threshold=0.8, min_size=3)
    made = {}
    for name, at_most in (("several", 128**3), ("each", 0)):
        monkeypatch.setattr("deepict_dask.jobs.picking.pick._BLOCK_VOXELS", at_most)
        workers = recorded(two_workers)
        session = Session(workers, chunks=(16, 16, 16))
        pick_particles(session, tmp_path / "s.mrc", tmp_path / name, settings)
        made[name] = ((tmp_path / name / "picks.csv").read_bytes(), workers.client.tasks)
    assert made["several"][0] == made["each"][0]
    assert made["each"][1]["label_L0"] == 4 * 4 * 6
    assert made["several"][1]["label_L0"] == 2 * 2 * 3
    assert made["several"][1]["segmentation"] == 2 * 2 * 3


def test_the_shapes_of_a_network_are_asked_for_once_in_a_run(
    two_workers, threshold, tmp_path, monkeypatch
):
    import torch

    from deepict_dask.models.checkpoint import save_model

    settings = UNet3DSettings(depth=1, initial_features=3)
    torch.manual_seed(0)
    network = UNet3D(settings).eval()
    save_model(tmp_path / "net.st", network, class_names=("a",), voxel_spacing_angstrom=12.0)
    (tmp_path / "net.st").rename(tmp_path / "net.safetensors")
    asked, shapes = [], UNet3D.state_shapes.__func__

    def noted(cls, settings):
        asked.append(settings)
        return shapes(cls, settings)

    monkeypatch.setattr(UNet3D, "state_shapes", classmethod(noted))
    for seed in range(3):
        write_tomogram(tmp_path / f"{seed}.mrc", seed)
    config = config_of(tmp_path, tmp_path / "out", tmp_path / "net.safetensors", threshold)
    run_pipeline(Session(two_workers), config)
    assert 0 < asked.count(settings) <= 4  # for the checks, and for the bytes: not per tomogram


@pytest.mark.parametrize(
    "options",
    [
        {"distances": ("membrane",)},
        {"method": "mean-shift", "bandwidth": 3},
        {"method": "mp-nms", "diameters": (6,)},
    ],
)
def test_picking_runs_on_workers_without_a_gpu_where_there_are_some(two_workers, tmp_path, options):
    scores = np.zeros((24, 32, 40), "float32")
    scores[6:10, 6:10, 6:10] = scores[14:18, 14:18, 14:18] = 0.9
    mrcfile.write(tmp_path / "s.mrc", scores, voxel_size=10.0)
    mask = np.zeros(scores.shape, "int8")
    mask[:8] = 1
    mrcfile.write(tmp_path / "m.mrc", mask, voxel_size=10.0)
    workers = recorded(two_workers, kinds=frozenset({"CPU", "GPU"}))
    regions = {"membrane": tmp_path / "m.mrc"} if "distances" in options else {}
    settings = PickSettings(threshold=0.5, **options)
    session = Session(workers, chunks=(16, 16, 16))
    pick_particles(session, tmp_path / "s.mrc", tmp_path / "out", settings, regions=regions)
    placed = [name for name, where in workers.client.resources if where != {"CPU": 1}]
    assert placed == []
    assert len(workers.client.resources) > 1
    assert ("distances" in workers.client.tasks) == ("distances" in options)


def test_a_turn_passes_on_where_a_task_may_run(two_workers):
    workers = recorded(two_workers, kinds=frozenset({"CPU", "GPU"}))
    client = Turns(workers).workers(1).client
    assert client.submit(sum, [1, 2], pure=False, key="sum-1", **workers.placed()).result() == 3
    assert workers.client.resources == [("sum", {"CPU": 1})]
    assert isinstance(workers, Workers)
