"""DeepFinder's network, its Keras files, exact windows, and the published averages."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import h5py
import mrcfile
import numpy as np
import pytest
import torch

from deepict_dask.config import SegmentSettings
from deepict_dask.core.errors import ConfigError, ModelFileError, ShapeMismatchError
from deepict_dask.core.geometry import Box, Grid
from deepict_dask.io.volumes import open_volume
from deepict_dask.jobs.segmenting.segment import segment_volume
from deepict_dask.jobs.session import Session
from deepict_dask.models import deepfinder_inference
from deepict_dask.models.checkpoint import load_checkpoint, model_info, save_model
from deepict_dask.models.deepfinder import (
    CONVOLUTIONS,
    DeepFinder,
    DeepFinderSettings,
    needed_interval,
)
from deepict_dask.models.deepfinder_inference import InferenceDeepFinder
from deepict_dask.models.registry import loaded_unet3d
from deepict_dask.segmentation import deepfinder_windows
from deepict_dask.segmentation.deepfinder_compat import (
    CompatDeepFinderOp,
    averaged,
    deepfinder_axis,
)
from deepict_dask.segmentation.deepfinder_windows import DeepFinderOp
from deepict_dask.segmentation.device_windows import Halving
from deepict_dask.segmentation.fixed_tiles import tile_grid

DATA = Path(__file__).parent / "data"
TINY = DeepFinderSettings(n_classes=3, features=(2, 3, 4))


@pytest.fixture(scope="module")
def network() -> DeepFinder:
    torch.manual_seed(1)
    return DeepFinder(TINY).eval()


@pytest.fixture(scope="module")
def model(network, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    names = ["background", "ribosome", "fas"]
    save_model(path, network, class_names=names, voxel_spacing_angstrom=None)
    return path


def keras(network: DeepFinder, *, skip: int = 0) -> bytes:
    """A Keras file of weights, layers numbered as in a session that made others before."""
    state, stream = network.state_dict(), io.BytesIO()
    with h5py.File(stream, "w") as file:
        names = [f"conv3d_{20 + i}" for i in range(len(CONVOLUTIONS) - skip)]
        file.attrs["layer_names"] = ["input_2", *names]
        file.create_group("input_2").attrs["weight_names"] = []
        for name, ours in zip(names, CONVOLUTIONS, strict=False):
            paths = [f"{name}/kernel:0", f"{name}/bias:0"]
            group = file.create_group(name)
            group.attrs["weight_names"] = paths
            group[paths[0]] = np.einsum("oizyx->zyxio", state[f"{ours}.weight"].numpy())
            group[paths[1]] = state[f"{ours}.bias"].numpy()
    return stream.getvalue()


def whole(network: DeepFinder, volume: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return network(torch.from_numpy(volume)[None, None]).softmax(dim=1)[0].numpy()


def in_blocks(op, volume: np.ndarray, grid: Grid) -> np.ndarray:
    result = np.empty((op.settings.n_classes, *volume.shape), dtype=np.float32)
    for block in grid:
        window = volume[block.read.slices]
        result[(..., *block.write.slices)] = block.crop(op.apply(block, window))
    return result


def test_the_golden_patch_is_predicted_to_1e_5(golden):
    folder = golden / "deepfinder"
    found = load_checkpoint(folder / "net_weights_FINAL.h5")
    patch = np.load(folder / "network_patch40_float32.npz")
    expected = patch["softmax_zyxc"].transpose(3, 0, 1, 2)
    np.testing.assert_allclose(whole(found.network, patch["patch_zyx"]), expected, atol=1e-5)
    arranged = InferenceDeepFinder(found.network)
    box = Box((5, 0, 11), (29, 33, 40))
    scores = arranged.scores(torch.from_numpy(patch["patch_zyx"]), box)
    np.testing.assert_allclose(scores, expected[(..., *box.slices)], atol=1e-5)
    assert found.class_names == ("background", "class_1", "class_2")
    assert model_info(folder / "net_weights_FINAL.h5").n_parameters == 903_027


def test_keras_weights_are_matched_by_order_whatever_the_layers_are_called(tmp_path, network):
    path = tmp_path / "weights.h5"
    path.write_bytes(keras(network))
    found = load_checkpoint(path)
    assert found.settings == TINY
    for name, tensor in network.state_dict().items():
        assert torch.equal(found.network.state_dict()[name], tensor), name


def test_a_keras_file_without_its_last_layer_is_refused(tmp_path, network):
    path = tmp_path / "weights.h5"
    path.write_bytes(keras(network, skip=1))
    with pytest.raises(ModelFileError, match=r"expected the 15 3D convolutions.*found 14"):
        load_checkpoint(path)


def test_a_deepfinder_model_is_no_3d_unet(model):
    with pytest.raises(ModelFileError, match="expected a 3D model, found a DeepFinder one"):
        loaded_unet3d(model)


def test_a_saved_model_keeps_its_settings_and_classes(model):
    info = model_info(model)
    assert (info.kind, info.settings) == ("deepfinder", TINY)
    assert info.class_names == ("background", "ribosome", "fas")


@pytest.mark.parametrize("voxel", range(4))
def test_an_output_voxel_needs_the_derived_interval_and_no_more(voxel):
    low, high = needed_interval(voxel)
    network = DeepFinder(DeepFinderSettings(2, (1, 1, 1))).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0.01)
    # all weights are positive, so every path is open but where pooling takes another voxel
    needed = set()
    for seed in range(12):
        noise = torch.Generator().manual_seed(seed)
        volume = torch.rand((1, 1, 4, 4, 88), generator=noise).requires_grad_()
        network(volume)[0, 0, :, :, 40 + voxel].sum().backward()
        needed |= set(torch.nonzero(volume.grad.abs().amax(dim=(0, 1, 2, 3)))[:, 0].tolist())
    assert (min(needed) - 40, max(needed) - 40) == (low, high)


@pytest.mark.parametrize("step", [1, 10_000, 10**9])
def test_slabs_of_any_thickness_give_the_network_of_the_whole(network, monkeypatch, step):
    monkeypatch.setitem(deepfinder_inference.VOXELS_AT_ONCE, "cpu", step)
    volume = np.random.default_rng(0).normal(size=(28, 24, 32)).astype("f4")
    box = Box((3, 0, 9), (28, 21, 30))
    scores = InferenceDeepFinder(network).scores(torch.from_numpy(volume), box)
    expected = whole(network, volume)[(..., *box.slices)]
    np.testing.assert_allclose(scores, expected, atol=1e-6)


@pytest.mark.parametrize("write", [(16, 80, 40), (20, 36, 44), (100, 100, 100)])
def test_exact_windows_do_not_depend_on_the_chunks(network, model, write):
    volume = np.random.default_rng(0).normal(size=(60, 80, 88)).astype("f4") + 5
    mean, std = float(volume.mean()), float(volume.std())
    op = DeepFinderOp(str(model), mean, std)
    normalised = (volume - np.float32(mean)) / np.float32(std)
    for one_shape in (True, False):
        grid = Grid(volume.shape, write, op.halo, op.align, one_shape=one_shape)
        scores = in_blocks(op, volume, grid)
        np.testing.assert_allclose(scores, whole(network, normalised), atol=1e-6)


def test_a_gpu_without_memory_for_a_window_gets_its_parts(network, model, monkeypatch):
    tried = []

    class Small(InferenceDeepFinder):
        """Holds so many voxels, and no more; where it says the GPU is, is the CPU."""

        def scores(self, window, wanted):
            tried.append(window.numel())
            if window.numel() > 470_000:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().scores(window, wanted)

    monkeypatch.setattr(deepfinder_windows, "inference_deepfinder", lambda *_: Small(network))
    monkeypatch.setattr(deepfinder_windows, "_LEARNT", Halving())
    volume = np.random.default_rng(0).normal(size=(60, 80, 120)).astype("f4")
    op = DeepFinderOp(str(model), 0.0, 1.0, device="cuda")
    grid = Grid(volume.shape, volume.shape, op.halo, op.align)
    np.testing.assert_allclose(in_blocks(op, volume, grid), whole(network, volume), atol=1e-6)
    assert tried[0] == tried[1] > 470_000  # once more with empty pools
    assert max(tried[2:]) <= 470_000
    # the next is halved at once
    in_blocks(op, volume, grid)
    assert tried.count(tried[0]) == 2


def test_published_tiling_of_a_bare_clone_is_equal_to_the_last_bit():
    piece = np.load(DATA / "deepfinder_tiling_identity_piece.npz")
    start, shape = tuple(piece["start"].tolist()), tuple(piece["shape"].tolist())
    normalised = np.zeros(shape, "f4")
    box = Box.whole(piece["volume"].shape).shift(start)
    normalised[box.slices] = (piece["volume"] - piece["mean"]) / piece["std"]
    axes = tuple(deepfinder_axis(size, int(piece["patch"])) for size in shape)
    found = averaged(axes, box, lambda tile: normalised[tile.kept.slices][None], 1)
    np.testing.assert_array_equal(found[0], piece["out"])


@pytest.mark.parametrize("write", [(70, 64, 81), (30, 17, 40)])
def test_published_tiling_is_equal_to_the_last_bit_for_any_blocks(golden, write):
    whole_file = np.load(golden / "deepfinder" / "tiling_identity_P72.npz")
    volume, expected = whole_file["volume"], whole_file["out"]
    # the reference's NumPy summed the variance otherwise: one unit in the last place
    std = np.nextafter(volume.std(), np.float32(0))
    normalised = (volume - volume.mean()) / std
    axes = tuple(deepfinder_axis(size, 72) for size in volume.shape)
    found = np.empty(volume.shape, np.float16)
    for block in Grid(volume.shape, write):
        found[block.write.slices] = averaged(
            axes, block.write, lambda tile: normalised[tile.kept.slices][None], 1
        )[0]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_published_score_maps_and_labels_are_those_of_the_program(golden):
    folder = golden / "deepfinder"
    volume = mrcfile.read(folder / "volume_96x120x112.mrc.gz")
    expected = np.load(folder / "scoremaps_P96_zyxc_float16.npz")["scoremaps"]
    labels = mrcfile.read(folder / "labelmap_P96.mrc.gz")
    op = CompatDeepFinderOp(
        str(folder / "net_weights_FINAL.h5"), float(volume.mean()), float(volume.std()),
        shape=volume.shape, box=96,
    )  # fmt: skip
    # a block at two seams: four of the 27 patches
    grid = tile_grid(volume.shape, (46, 46, 42), op)
    block = grid[0]
    found = block.crop(op.apply(block, volume[block.read.slices]))
    expected = expected[block.write.slices].transpose(3, 0, 1, 2).astype("f4")
    np.testing.assert_allclose(found, expected, atol=2e-3)
    ordered = np.sort(expected, axis=0)
    ties = ordered[-1] - ordered[-2] <= 2**-11  # of float16 scores between 1/2 and 1
    assert (found.argmax(axis=0) == labels[block.write.slices])[~ties].all()


@pytest.mark.parametrize("write", [(40, 40, 40), (16, 24, 60)])
def test_published_averages_do_not_depend_on_the_blocks(model, write):
    volume = np.random.default_rng(0).normal(size=(40, 44, 60)).astype("f4")
    op = CompatDeepFinderOp(str(model), 0.1, 0.9, shape=volume.shape, box=84)
    at_once = in_blocks(op, volume, tile_grid(volume.shape, volume.shape, op))
    found = in_blocks(op, volume, tile_grid(volume.shape, write, op))
    np.testing.assert_array_equal(found, at_once)


def test_a_patch_larger_than_the_padded_volume_is_refused_with_both_sizes():
    with pytest.raises(ShapeMismatchError, match=r"40 \+ 50.*found 96"):
        deepfinder_axis(40, 96)
    with pytest.raises(ShapeMismatchError, match=r"above 54.*found 52"):
        deepfinder_axis(40, 52)


def written(path: Path, volume: np.ndarray) -> Path:
    with mrcfile.new(path) as file:
        file.set_data(volume)
        file.voxel_size = 10.0
    return path


@pytest.mark.parametrize("chunks", [(32, 32, 32), (64, 64, 64)])
@pytest.mark.parametrize("compat", [None, "deepfinder"])
def test_segment_makes_the_score_maps_of_all_classes(tmp_path, two_workers, model, chunks, compat):
    volume = np.random.default_rng(2).normal(3, 2, size=(40, 48, 56)).astype("f4")
    source = written(tmp_path / "tomogram.mrc", volume)
    settings = SegmentSettings(
        model=str(model), compat=compat, box_size=None if compat is None else 84
    )
    session = Session(two_workers, chunks=chunks)
    segment_volume(session, source, tmp_path / "scores.zarr", settings)
    reader = open_volume(tmp_path / "scores.zarr", class_name="ribosome")
    mean, std = float(volume.mean(dtype="f8")), float(volume.std(dtype="f8"))
    op: DeepFinderOp | CompatDeepFinderOp = DeepFinderOp(str(model), mean, std)
    if compat is not None:
        op = CompatDeepFinderOp(str(model), mean, std, shape=volume.shape, box=84)
    expected = in_blocks(op, volume, Grid(volume.shape, volume.shape))
    found = reader.read(Box.whole(volume.shape))
    np.testing.assert_allclose(found, expected[1], atol=1e-5 if compat is None else 5e-4)


def test_another_programs_tiling_is_refused(tmp_path, two_workers, model):
    source = written(tmp_path / "tomogram.mrc", np.random.default_rng(0).random((8, 8, 8), "f4"))
    settings = SegmentSettings(model=str(model), compat="deepict")
    with pytest.raises(ConfigError, match="expected deepfinder or none for this model"):
        segment_volume(Session(two_workers), source, tmp_path / "scores.zarr", settings)


def test_bytes_needed_bound_what_is_held(model):
    op = DeepFinderOp(str(model), 0.0, 1.0)
    small, large = op.bytes_needed((64, 64, 64)), op.bytes_needed((128, 64, 64))
    arrays = 4 * 64**3 * (1 + 3)
    assert arrays < small < large
    one = dataclasses.replace(op, class_index=1)
    assert one.n_classes == 1
