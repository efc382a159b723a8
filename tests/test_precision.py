"""bfloat16: close to float32, exact over tiles as float32 is, and never taken for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from typer.testing import CliRunner

from deepict_dask.cli import app
from deepict_dask.config import RegionSettings, SegmentSettings
from deepict_dask.core.errors import ConfigError
from deepict_dask.core.geometry import Box, Grid
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.io.ome_zarr_write import create_ome_zarr
from deepict_dask.io.volumes import open_volume
from deepict_dask.jobs.segmenting.segment import segment_volume
from deepict_dask.jobs.session import Session
from deepict_dask.models.arranged import _Kernel
from deepict_dask.models.checkpoint import save_model
from deepict_dask.models.inference import InferenceUNet3D
from deepict_dask.models.unet3d import UNet3D, UNet3DSettings
from deepict_dask.run_outputs import model_of_region
from deepict_dask.segmentation.windows import SegmentOp, predict_window

pytestmark = pytest.mark.usefixtures("one_thread")

LARGEST_DIFFERENCE = 0.15
"""Of scores of networks with random weights and sharp edges; measured: 0.016, 0.021, 0.092."""

ONEDNN = _Kernel._by_onednn


def sharp_network(depth: int, edge: int = 1) -> UNet3D:
    """Weights large enough for scores all over 0..1."""
    torch.manual_seed(depth)
    network = UNet3D(UNet3DSettings(depth, 4, 1, space_to_depth=edge)).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean.normal_(0.3, 0.2)
            module.running_var.uniform_(0.03, 0.1)
            module.bias.data.normal_(0, 0.3)
    return network


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(path, sharp_network(2), class_names=["a"], voxel_spacing_angstrom=None)
    return str(path)


@pytest.fixture
def tomogram(tmp_path):
    shape = (40, 48, 64)
    noise = np.random.default_rng(0).normal(size=shape).astype("float32")
    create_ome_zarr(tmp_path / "t.zarr", VolumeHeader(shape, "float32", 10.0)).write(
        Box.whole(shape), noise
    )
    return tmp_path / "t.zarr"


def window():
    return np.random.default_rng(1).normal(size=(40, 48, 64)).astype("float32")


@pytest.mark.parametrize(("depth", "edge"), [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2)])
def test_bfloat16_scores_are_near_those_of_float32_and_not_the_same(depth, edge):
    network = sharp_network(depth, edge)
    full = predict_window(InferenceUNet3D(network), window())
    rough = predict_window(InferenceUNet3D(network, "bfloat16"), window())
    assert rough.dtype == np.float32
    assert full.std() > 0.05  # else nothing could differ
    assert 0 < np.abs(full - rough).max() <= LARGEST_DIFFERENCE
    assert np.abs(full - rough).mean() <= 0.005


def test_without_bfloat16_in_the_processor_the_scores_are_near_too(monkeypatch):
    network = sharp_network(2)
    full = predict_window(InferenceUNet3D(network), window())
    monkeypatch.setattr(
        "deepict_dask.models.arranged._onednn_takes", lambda dtype: dtype == torch.float32
    )
    rough = predict_window(InferenceUNet3D(network, "bfloat16"), window())
    assert 0 < np.abs(full - rough).max() <= LARGEST_DIFFERENCE


def test_without_the_operators_of_pytorchs_compiler_pytorch_computes(monkeypatch):
    network = sharp_network(2)
    full = predict_window(InferenceUNet3D(network), window())
    monkeypatch.setattr("deepict_dask.models.arranged._ONEDNN_OPERATORS", ("no_such_operator",))
    plain = predict_window(InferenceUNet3D(network), window())
    assert not np.array_equal(plain, full)  # another way of summing
    np.testing.assert_allclose(plain, full, atol=1e-5)


def test_tiled_equals_whole_in_bfloat16(model):
    # a sum of another order may round to the next of bfloat16's 256 steps per factor of two
    volume = np.random.default_rng(2).normal(size=(40, 48, 130)).astype("float32")
    op = SegmentOp(model, 0.0, 1.0, precision="bfloat16")
    grid = Grid(volume.shape, (40, 48, 32), op.halo, op.align, one_shape=True)
    tiled = np.full((1, *volume.shape), np.nan, dtype="float32")
    for block in grid:
        tiled[(slice(None), *block.write.slices)] = block.crop(
            op.apply(block, volume[block.read.slices])
        )
    whole = op.apply(Grid(volume.shape, volume.shape)[0], volume)
    assert grid.n_blocks > 1
    assert np.abs(tiled - whole).max() <= 0.01


def test_another_precision_is_another_request(two_workers, model, tomogram, tmp_path):
    # the same target and the same session but for the precision: the first output is replaced
    session, target = Session(two_workers, overwrite=True, device="cpu"), tmp_path / "s.zarr"
    scores = []
    for precision in ("float32", "bfloat16", "float32"):
        settings = SegmentSettings(model=model, precision=precision)
        segment_volume(session, tomogram, target, settings)
        scores.append(open_volume(target).read(Box.whole((40, 48, 64))))
    assert scores[0].tobytes() == scores[2].tobytes() != scores[1].tobytes()


def test_the_precision_is_part_of_the_key(model, tomogram, two_workers):
    from deepict_dask.jobs.segmenting.chosen_model import choose_model
    from deepict_dask.jobs.segmenting.windows import _request

    session = Session(two_workers, device="cpu")
    full = SegmentSettings(model=model)
    rough = SegmentSettings(model=model, precision="bfloat16")
    chosen = choose_model(full, "cpu")
    keys = [_request(session, tomogram, settings, chosen) for settings in (full, rough, full)]
    assert keys[0] == keys[2] != keys[1]


def test_the_published_results_are_not_reproduced_in_bfloat16():
    with pytest.raises(ValidationError, match="expected float32 with compat deepict"):
        SegmentSettings(model="m.pth", compat="deepict", precision="bfloat16")
    with pytest.raises(ValidationError, match="precision: only for a region that a model makes"):
        RegionSettings(name="r", path="r.mrc", precision="bfloat16")


def test_a_region_s_precision_reaches_its_model():
    region = RegionSettings(name="r", model="m.pth", precision="bfloat16")
    assert model_of_region(region).precision == "bfloat16"


def test_a_2d_model_knows_one_precision(two_workers, tomogram, tmp_path):
    settings = SegmentSettings(model="demo_cytosol", precision="bfloat16")
    with pytest.raises(ConfigError, match="precision: expected float32 for a 2D network"):
        segment_volume(Session(two_workers), tomogram, tmp_path / "s.zarr", settings)


def test_an_unknown_precision_is_refused_by_the_command():
    options = ["segment", "t.zarr", "s.zarr", "--model", "m.pth", "--precision", "float64"]
    result = CliRunner().invoke(app, options)
    assert result.exit_code != 0
    assert "precision" in (result.output + str(result.exception))


def test_float16_is_computed_in_float32_whatever_the_processor_has(monkeypatch):
    # a processor may know bfloat16 and not float16, and oneDNN then fails where it is asked
    network = sharp_network(2)
    full = predict_window(InferenceUNet3D(network), window())
    asked = []

    def by_onednn(kernel, *args, **kwargs):
        asked.append(kernel.dtype)
        return ONEDNN(kernel, *args, **kwargs)

    monkeypatch.setattr(_Kernel, "_by_onednn", by_onednn)
    rough = predict_window(InferenceUNet3D(network, "float16"), window())
    assert 0 < np.abs(full - rough).max() <= LARGEST_DIFFERENCE / 8
    assert torch.float16 not in asked
