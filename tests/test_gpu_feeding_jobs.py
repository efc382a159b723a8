"""Windows in page-locked memory, and whole jobs on a worker that feeds its GPU."""

import numpy as np
import pytest
import standin_cupy as standin
from gpu_scenes import turn_is_free

from benchmarks.bench_gpu import yardstick
from deepict_dask.backend import Device, pinned, to_device, to_host
from deepict_dask.backend.arrays import is_pinned
from deepict_dask.config import PickSettings, SegmentSettings
from deepict_dask.core.geometry import Box
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.io.ome_zarr_write import create_ome_zarr
from deepict_dask.jobs.picking import predict_and_label
from deepict_dask.jobs.picking.predicted import PickSection, pick_predicted
from deepict_dask.jobs.segmenting.windows import segment_together
from deepict_dask.jobs.session import Session
from deepict_dask.models.checkpoint import save_model
from deepict_dask.segmentation import windows

pytestmark = pytest.mark.usefixtures("nothing_said_before")
GPU = Device("cuda")


# --- page-locked memory


@pytest.mark.usefixtures("stand_in")
def test_a_window_is_copied_to_pinned_memory_once_and_uploaded_from_there():
    window = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    ready = pinned(window)
    assert is_pinned(ready)
    assert pinned(ready) is ready
    assert not is_pinned(window)
    np.testing.assert_array_equal(to_host(to_device(ready, GPU)), window)
    assert standin.transfers.to_device_from_pinned == [window.nbytes]
    assert standin.transfers.to_device == []


@pytest.mark.usefixtures("stand_in")
def test_a_part_of_a_pinned_window_and_an_ordinary_one_are_uploaded_by_cupy():
    ready = pinned(np.arange(24.0).reshape(2, 3, 4))
    for window in (ready[:, 1:], np.ones(3)):
        np.testing.assert_array_equal(to_host(to_device(window, GPU)), window)
    assert standin.transfers.to_device == [16 * 8, 3 * 8]


@pytest.mark.usefixtures("stand_in")
def test_pinned_blocks_are_taken_again_and_those_of_another_size_given_back():
    for _ in range(3):
        pinned(np.ones(100))
    assert standin.pinned_pool.made == [800]
    pinned(np.ones(50))
    assert standin.pinned_pool.made == [800, 400]
    assert standin.pinned_pool.free == [400]


@pytest.mark.usefixtures("stand_in")
def test_a_window_goes_without_pinned_memory_where_none_is_left(caplog):
    standin.pinned_pool.room = 99
    window = np.ones(100)
    assert pinned(window) is window
    assert pinned(window) is window
    assert len([r for r in caplog.records if "page-locked" in r.message]) == 1


# --- whole jobs on such a worker


TOMOGRAM = (16, 96, 128)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("feeding")
    noise = np.random.default_rng(0).normal(size=TOMOGRAM).astype(np.float32)
    writer = create_ome_zarr(folder / "t.zarr", VolumeHeader(TOMOGRAM, "float32", 10.0))
    writer.write(Box.whole(TOMOGRAM), noise)
    card = {"class_names": ("a",), "voxel_spacing_angstrom": 10.0, "card": {}}
    save_model(folder / "m.safetensors", yardstick(), **card)
    return folder


@pytest.fixture
def chunk_windows(monkeypatch):
    """Run the network of a "GPU" on the CPU, in windows that write one chunk each."""
    load = windows.inference_network
    monkeypatch.setattr(
        windows, "inference_network", lambda path, _device, precision: load(path, "cpu", precision)
    )
    monkeypatch.setattr(Session, "device_bytes", lambda _self: 1)


def content_of(folder):
    names = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in names}


@pytest.mark.usefixtures("stand_in", "chunk_windows")
def test_stored_scores_are_the_bytes_of_one_thread(one_worker, gpu_worker, files, tmp_path):
    found = []
    for name, workers in (("one", one_worker), ("three", gpu_worker)):
        standin.transfers.clear()
        session = Session(workers, chunks=(16, 16, 16), device="cuda")
        target = tmp_path / f"{name}.zarr"
        model = SegmentSettings(model=str(files / "m.safetensors"))
        segment_together(session, files / "t.zarr", {target: model})
        found.append(content_of(target))
        uploaded = standin.transfers.to_device_from_pinned
        assert len(uploaded) > 20
        assert len(set(uploaded)) == 1  # windows of one shape
        assert standin.transfers.to_device == []
    assert found[0] == found[1]
    assert len(standin.pinned_pool.made) <= 3  # as many as threads


@pytest.mark.usefixtures("stand_in", "chunk_windows")
def test_with_regions_windows_keep_their_page_locked_blocks(gpu_worker, files, tmp_path):
    mask = create_ome_zarr(tmp_path / "r.zarr", VolumeHeader(TOMOGRAM, "uint8", 10.0))
    mask.write(Box.whole(TOMOGRAM), np.ones(TOMOGRAM, np.uint8))
    section = PickSection(
        SegmentSettings(model=str(files / "m.safetensors")),
        PickSettings(threshold=0.5, min_size=4, region="all"),
        {"all": tmp_path / "r.zarr"},
    )
    session = Session(gpu_worker, chunks=(16, 16, 16), device="cuda")
    pick_predicted(session, files / "t.zarr", {tmp_path / "p": section}, tomogram_name="t")
    assert len(standin.transfers.to_device_from_pinned) > 20
    assert len(standin.pinned_pool.made) <= 3  # as many as threads


@pytest.mark.usefixtures("stand_in", "chunk_windows")
def test_the_picks_of_one_pass_are_the_bytes_of_one_thread(
    one_worker, gpu_worker, files, tmp_path, monkeypatch
):
    free_while_written = []
    write = predict_and_label.write_patiently

    def noted(writer, box, voxels):
        free_while_written.append(turn_is_free())
        write(writer, box, voxels)

    monkeypatch.setattr(predict_and_label, "write_patiently", noted)
    section = PickSection(
        SegmentSettings(model=str(files / "m.safetensors")),
        PickSettings(threshold=0.5, min_size=4, label_map=True),
        {},
    )
    found = []
    for name, workers in (("one", one_worker), ("three", gpu_worker)):
        session = Session(workers, chunks=(16, 16, 16), device="cuda")
        pick_predicted(session, files / "t.zarr", {tmp_path / name: section}, tomogram_name="t")
        found.append(content_of(tmp_path / name))
    for each in found:
        each.pop("run.json")  # says when
    assert found[0] == found[1]
    assert found[0]["picks.csv"].count(b"\n") > 3
    assert len(free_while_written) > 40
    assert all(free_while_written)
