"""Networks on a GPU, and whole jobs there, against those of the CPU, in a place of `gpu_places`."""

import sys

import numpy as np
import pandas as pd
import pytest
import standin_cupy as standin
import torch
from gpu_places import SHAPE, Written, noise, on, place, same_node

from benchmarks.bench_gpu import yardstick
from deepict_dask.backend import bus_bytes, is_on_device, to_host
from deepict_dask.config import EqualizeSettings, PickSettings, SegmentSettings
from deepict_dask.core.geometry import Box, Grid
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.equalization import radial_spectrum
from deepict_dask.io.ome_zarr_write import create_ome_zarr
from deepict_dask.io.spectrum import write_spectrum
from deepict_dask.io.volumes import open_volume
from deepict_dask.jobs.equalize import equalize_volume
from deepict_dask.jobs.picking.pick import pick_particles
from deepict_dask.jobs.picking.predict_and_label import LabelledChannel, PredictAndLabel
from deepict_dask.jobs.picking.predicted import PickSection, pick_predicted
from deepict_dask.jobs.segmenting.windows import segment_together
from deepict_dask.jobs.session import Session
from deepict_dask.labelling import LabelReduction, SelectSettings
from deepict_dask.models.checkpoint import save_model
from deepict_dask.models.unet3d import UNet3D, UNet3DSettings
from deepict_dask.segmentation import windows
from deepict_dask.segmentation.joint import JointSegmentOp
from deepict_dask.segmentation.windows import SegmentOp, normalise, pad_far_end, predict_window

__all__ = ["place"]
pytestmark = pytest.mark.usefixtures("nothing_said_before")


# --- windows of a network


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("dtype", ["int16", "float32", "float64", "uint8"])
def test_a_window_is_prepared_as_on_the_cpu(dtype):
    volume = (30 + 5 * noise()).astype(dtype)
    expected = pad_far_end(normalise(volume, 30.0, 5.0), 4)
    found = pad_far_end(normalise(on(volume), 30.0, 5.0), 4)
    assert found.dtype == np.float32
    np.testing.assert_allclose(to_host(found), expected, rtol=1e-6, atol=1e-7)


def network(n_classes=2, depth=1, edge=1):
    torch.manual_seed(0)
    settings = UNet3DSettings(depth, 4, n_classes, space_to_depth=edge)
    made = UNet3D(settings).eval()
    for layer in made.modules():
        if isinstance(layer, torch.nn.BatchNorm3d):
            layer.running_var.uniform_(0.5, 2)
            layer.running_mean.normal_()
    return made


@pytest.fixture
def loaded(monkeypatch, place):
    """Give ops a network without a file, in the place where arrays are."""
    from deepict_dask.models.inference import InferenceUNet3D

    made = network()
    where = {"cpu": "cpu", "cuda": "cuda" if place == "cuda" else "cpu"}

    def load(_path, device="cpu", precision="float32"):
        return InferenceUNet3D(network().to(where[device]), precision)

    monkeypatch.setattr(windows, "inference_network", load)
    monkeypatch.setattr(windows, "loaded_unet3d", lambda _path: made)
    return place


def op_on(device, n=1):
    return JointSegmentOp(
        tuple(SegmentOp("none", 0.0, 1.0, c if n > 1 else None, device) for c in range(n))
    )


@pytest.mark.usefixtures("loaded")
def test_scores_stay_on_the_device_and_share_the_memory_of_pytorch():
    (block,) = Grid(SHAPE, SHAPE, (0, 0, 0), 2)
    standin.transfers.to_host.clear()
    scores = op_on("cuda").written_scores(block, noise())
    assert is_on_device(scores)
    assert standin.transfers.to_host == []
    expected = op_on("cpu").written_scores(block, noise())
    assert isinstance(expected, np.ndarray)
    np.testing.assert_allclose(to_host(scores), expected, atol=1e-4)


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize("n_networks", [1, 2])
def test_scores_that_are_stored_come_to_the_host(n_networks):
    shape = (40, 40, 40)
    expected, found = op_on("cpu", n_networks), op_on("cuda", n_networks)
    block = Grid(shape, (40, 40, 20), expected.halo, expected.align, one_shape=True)[1]
    window = noise(shape)[block.read.slices]
    there = found.apply(block, window)
    assert isinstance(there, np.ndarray)
    np.testing.assert_allclose(
        block.crop(there), block.crop(expected.apply(block, window)), atol=1e-4
    )


def one_pass(device, threshold=0.5):
    label = LabelReduction(SHAPE, SelectSettings(threshold=threshold))
    writers = (Written(), Written())
    sections = tuple(LabelledChannel(channel, label) for channel in range(2))
    return PredictAndLabel(op_on(device), sections, (4, 4, 4), writers)


def test_from_a_window_to_tables_nothing_but_the_chosen_voxels_and_rows_leaves(loaded):
    (block,) = Grid(SHAPE, SHAPE, (0, 0, 0), 2)
    scores = op_on("cpu").written_scores(block, noise())
    threshold = float(np.median(scores))
    passes = [one_pass(device, threshold) for device in ("cpu", "cuda")]
    standin.transfers.to_host.clear()
    before = bus_bytes()
    nodes = [each.measure(block, noise()) for each in passes]
    n = np.prod(SHAPE)
    moved = bus_bytes() - before
    assert moved.to_device == 4 * n  # the window, and no voxel twice
    assert 2 * n < moved.to_host < 2 * n + 4 * n
    if loaded == "stand-in":
        assert moved.to_host == sum(standin.transfers.to_host)
        assert standin.transfers.to_host.count(n) == 2  # the voxels chosen, a byte each
        assert max(size for size in standin.transfers.to_host if size != n) < 4 * n / 2
        for found, expected in zip(nodes[1].nodes, nodes[0].nodes, strict=True):
            same_node(found, expected)
    for on_gpu, on_cpu in zip(passes[1].writers, passes[0].writers, strict=True):
        changed = np.count_nonzero(on_gpu.voxels != on_cpu.voxels)
        assert changed <= max(1, n / 10_000)


@pytest.mark.parametrize("edge", [1, 2])
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_moves_few_voxels_over_the_threshold(place, precision, edge):
    from deepict_dask.models.inference import InferenceUNet3D

    where = "cuda" if place == "cuda" else "cpu"
    window = noise((16, 24, 32))
    made = network(edge=edge).to(where)
    exact = to_host(predict_window(made, on(window)))
    half = to_host(predict_window(InferenceUNet3D(made, precision), on(window)))
    assert np.abs(exact - half).max() < (5e-3 if precision == "float16" else 5e-2)
    assert (exact != half).any()
    if precision == "float16":
        moved = np.count_nonzero((exact > 0.5) != (half > 0.5))
        assert moved <= max(1, exact.size / 10_000)


# --- whole jobs: files in, files out


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tomogram, a spectrum and a model that chooses one voxel of noise in twenty."""
    folder = tmp_path_factory.mktemp("gpu")
    writer = create_ome_zarr(folder / "t.zarr", VolumeHeader((32, 48, 40), "float32", 10.0))
    writer.write(Box.whole((32, 48, 40)), noise((32, 48, 40)))
    card = {"class_names": ("a",), "voxel_spacing_angstrom": 10.0, "card": {}}
    save_model(folder / "m.safetensors", yardstick(), **card)
    write_spectrum(folder / "s.tsv", radial_spectrum(noise((24, 24, 24), seed=3), 10.0))
    return folder


def session_on(device, workers):
    return Session(workers, chunks=(16, 16, 16), overwrite=True, device=device)


@pytest.fixture
def network_in_place(monkeypatch, place):
    """Let PyTorch compute on the CPU where the stand-in is the GPU."""
    load = windows.inference_network
    if place == "stand-in":
        monkeypatch.setattr(
            windows,
            "inference_network",
            lambda path, _device, precision: load(path, "cpu", precision),
        )
    return place


def voxels_of(path):
    reader = open_volume(path)
    return reader.read(Box.whole(reader.header.shape))


@pytest.mark.usefixtures("place")
def test_an_equalized_file_is_that_of_the_cpu(two_workers, files, tmp_path):
    settings = EqualizeSettings(target=files / "s.tsv")
    found = []
    for device in ("cpu", "cuda"):
        target = tmp_path / f"{device}.zarr"
        equalize_volume(session_on(device, two_workers), files / "t.zarr", target, settings)
        found.append(voxels_of(target))
    np.testing.assert_allclose(found[1], found[0], atol=1e-4)


@pytest.mark.usefixtures("network_in_place")
def test_stored_scores_and_their_picks_are_those_of_the_cpu(two_workers, files, tmp_path):
    scores, tables = [], []
    model = SegmentSettings(model=str(files / "m.safetensors"))
    for device in ("cpu", "cuda"):
        session = session_on(device, two_workers)
        target = tmp_path / f"{device}.zarr"
        segment_together(session, files / "t.zarr", {target: model})
        scores.append(voxels_of(target))
        picks = tmp_path / f"{device}_picks"
        wanted = PickSettings(threshold=0.5, min_size=4, label_map=True)
        pick_particles(session, tmp_path / "cpu.zarr", picks, wanted, tomogram_name="t")
        tables.append(picks)
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-4)
    same_picks(*tables)


def same_picks(one, other, *, same_scores=True):
    """Compare folders of picks: to the byte where they were made from the same scores."""
    for name in ("segmentation.zarr", "label_map.zarr"):
        assert (one / name).exists() == (other / name).exists()
        if (one / name).exists():
            np.testing.assert_array_equal(voxels_of(other / name), voxels_of(one / name))
    if same_scores:
        for name in ("clusters.parquet", "picks.csv"):
            assert (other / name).read_bytes() == (one / name).read_bytes()
    tables = [pd.read_parquet(folder / "clusters.parquet") for folder in (one, other)]
    assert len(tables[0]) > 2
    pd.testing.assert_frame_equal(*tables, check_exact=False, rtol=1e-4)


@pytest.mark.parametrize("free_gib", [80, 2])
def test_the_picks_of_one_pass_are_those_of_the_cpu(
    two_workers, files, tmp_path, network_in_place, free_gib, monkeypatch
):
    if network_in_place == "stand-in":
        for name, module in standin.modules(free_bytes=free_gib << 30).items():
            monkeypatch.setitem(sys.modules, name, module)
    section = PickSection(
        SegmentSettings(model=str(files / "m.safetensors")),
        PickSettings(threshold=0.5, min_size=4),
        {},
    )
    for device in ("cpu", "cuda"):
        session = session_on(device, two_workers)
        wanted = {tmp_path / device: section}
        pick_predicted(session, files / "t.zarr", wanted, tomogram_name="t")
    same_picks(tmp_path / "cpu", tmp_path / "cuda", same_scores=network_in_place == "stand-in")
