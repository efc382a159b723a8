"""The notebook functions are lazy, and give what the command line's engine gives."""

from __future__ import annotations

import dask
import hand_made
import mrcfile
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from skimage.measure import label as skimage_label

import deepict_dask
from deepict_dask.core.errors import ConfigError, SpacingError
from deepict_dask.core.geometry import Grid
from deepict_dask.models.checkpoint import save_model
from deepict_dask.models.unet3d import UNet3D, UNet3DSettings
from deepict_dask.segmentation.deepetpicker_tiles import DeepETPickerOp


def refuse_to_compute(*_args, **_kwargs):
    raise AssertionError("computed something")


@pytest.fixture(scope="module")
def tomogram_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("api") / "tomo.mrc"
    rng = np.random.default_rng(0)
    with mrcfile.new(path) as mrc:
        mrc.set_data(rng.normal(5, 2, (50, 61, 72)).astype("float32"))
        mrc.voxel_size = 13.48
    return path


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    torch.manual_seed(1)
    network = UNet3D(UNet3DSettings(depth=1, initial_features=2, n_classes=2)).eval()
    path = tmp_path_factory.mktemp("models") / "two.safetensors"
    save_model(path, network, class_names=("a", "b"), voxel_spacing_angstrom=13.48, card={})
    return path


def test_nothing_is_computed_until_asked(tomogram_path, model_path):
    with dask.config.set(scheduler=refuse_to_compute):
        tomogram = deepict_dask.open_tomogram(tomogram_path, chunks=(32, 32, 32))
        score = deepict_dask.segment(tomogram, model_path, class_name="b")
        labels = deepict_dask.label(score, threshold=0.5)
        picks = deepict_dask.pick(score, threshold=0.5)
    assert labels.dims == ("z", "y", "x")
    assert hasattr(picks, "compute")


def test_coordinates_are_in_angstrom(tomogram_path):
    tomogram = deepict_dask.open_tomogram(tomogram_path)
    assert float(tomogram.z[2] - tomogram.z[0]) == pytest.approx(2 * 13.48)
    assert tomogram.z.attrs["units"] == "Å"


@pytest.mark.parametrize("chunks", [(16, 20, 32), (50, 61, 72), (7, 61, 9)])
def test_lazy_segmentation_equals_the_whole_volume(tomogram_path, model_path, chunks):
    from deepict_dask.models.checkpoint import load_checkpoint
    from deepict_dask.segmentation.windows import predict_window

    tomogram = deepict_dask.open_tomogram(tomogram_path, chunks=chunks)
    score = deepict_dask.segment(tomogram, model_path, class_name="b").compute()
    volume = tomogram.values.astype(float)
    normalised = ((volume - volume.mean()) / volume.std()).astype("float32")
    expected = predict_window(load_checkpoint(model_path).network, normalised)[1]
    np.testing.assert_allclose(score.values, expected, atol=1e-5)


def test_a_tomogram_thinner_than_the_halo_is_segmented(tmp_path):
    torch.manual_seed(0)
    network = UNet3D(UNet3DSettings(depth=2, initial_features=4, n_classes=1)).eval()
    save_model(tmp_path / "m.safetensors", network, class_names=("a",), voxel_spacing_angstrom=None)
    assert network.settings.halo > 12
    volume = np.random.default_rng(0).normal(size=(12, 64, 64)).astype("float32")
    scores = [
        deepict_dask.segment(
            xr.DataArray(volume, dims=("z", "y", "x")).chunk(z=12, y=n, x=n),
            tmp_path / "m.safetensors",
        ).values
        for n in (64, 32)
    ]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)
    assert np.ptp(scores[0]) > 1e-3


@pytest.mark.parametrize("chunks", [(16, 20, 40), (50, 61, 72)])
@pytest.mark.parametrize("kind", ["deepfinder", "deepetpicker"])
def test_softmax_networks_give_the_scores_and_labels_of_their_whole_volume(
    tomogram_path, tmp_path, kind, chunks
):
    network = getattr(hand_made, kind)()
    model = tmp_path / "softmax.safetensors"
    save_model(model, network, class_names=hand_made.NAMES, voxel_spacing_angstrom=13.48)
    tomogram = deepict_dask.open_tomogram(tomogram_path, chunks=chunks)
    volume = tomogram.values.astype(float)
    normalised = ((volume - volume.mean()) / volume.std()).astype("float32")
    if kind == "deepfinder":
        padded = torch.from_numpy(np.pad(normalised, ((0, 2), (0, 3), (0, 0)), mode="reflect"))
        with torch.inference_mode():
            expected = network(padded[None, None]).softmax(dim=1)[0].numpy()[:, :50, :61]
    else:
        op = DeepETPickerOp(str(model), 0.0, 1.0, shape=volume.shape)
        expected = op.apply(Grid(volume.shape, volume.shape)[0], normalised)
    score = deepict_dask.segment(tomogram, model, class_name="dark")
    assert score.dtype == "float32"
    np.testing.assert_allclose(score.values, expected[2], atol=1e-5)
    labels = deepict_dask.segment(tomogram, model, argmax=True)
    highest, second = np.sort(expected, axis=0)[[-1, -2]]
    clear = highest - second > 1e-4
    assert clear.mean() > 0.5
    assert len(np.unique(labels.values)) == 3
    np.testing.assert_array_equal(labels.values[clear], expected.argmax(axis=0)[clear])


def test_labels_of_independent_classes_are_refused(tomogram_path, model_path):
    with pytest.raises(ConfigError, match=r"argmax.*expected a DeepFinder or DeepETPicker model"):
        deepict_dask.segment(deepict_dask.open_tomogram(tomogram_path), model_path, argmax=True)


@given(st.tuples(*[st.integers(3, 30)] * 3), st.sampled_from([6, 18, 26]), st.integers(0, 99))
def test_lazy_labels_and_picks_equal_the_whole_volume(chunks, connectivity, seed):
    values = (np.random.default_rng(seed).random((20, 25, 30)) < 0.2).astype("float32")
    score = xr.DataArray(values, dims=("z", "y", "x")).chunk(dict(zip("zyx", chunks, strict=True)))
    rank = {6: 1, 18: 2, 26: 3}[connectivity]
    expected = skimage_label(values > 0.5, connectivity=rank)
    labels = deepict_dask.label(score, connectivity=connectivity)
    np.testing.assert_array_equal(labels.values, expected)
    picks = deepict_dask.pick(score, connectivity=connectivity).compute()
    assert picks["n_voxels"].tolist() == np.bincount(expected.ravel())[1:].tolist()


def test_a_model_with_two_classes_wants_one_named(tomogram_path, model_path):
    tomogram = deepict_dask.open_tomogram(tomogram_path)
    with pytest.raises(ConfigError, match="a', 'b'"):
        deepict_dask.segment(tomogram, model_path)


def test_equalizing_to_its_own_spectrum_changes_nothing(tomogram_path, tmp_path):
    from deepict_dask.equalization import radial_spectrum
    from deepict_dask.io.spectrum import write_spectrum

    tomogram = deepict_dask.open_tomogram(tomogram_path, chunks=(32, 32, 32))
    target = tmp_path / "own.tsv"
    write_spectrum(target, radial_spectrum(tomogram.values.copy(), 13.48))
    equalized = deepict_dask.equalize(tomogram, target)
    assert equalized.dtype == np.float32
    np.testing.assert_allclose(equalized.values, tomogram.values, atol=2e-5 * 2)


def test_equalizing_without_a_voxel_spacing_is_refused(tmp_path):
    volume = xr.DataArray(np.random.default_rng(0).random((8, 8, 8)), dims=("z", "y", "x"))
    (tmp_path / "t.tsv").write_text("freq\tintensity\tfrequency_per_angstrom\n0\t1.0\t0.01\n")
    with pytest.raises(SpacingError, match="voxel_spacing_angstrom"):
        deepict_dask.equalize(volume, tmp_path / "t.tsv")
