"""The mean over mirror images: what it is, that picks of one pass have it, where it is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from typer.testing import CliRunner

from deepict_dask.cli import app
from deepict_dask.config import RegionSettings, SegmentSettings
from deepict_dask.core.errors import ConfigError
from deepict_dask.core.geometry import Box
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.io.ome_zarr_write import create_ome_zarr
from deepict_dask.io.volumes import open_volume
from deepict_dask.jobs.segmenting.segment import segment_volume
from deepict_dask.jobs.session import Session
from deepict_dask.models.checkpoint import save_model
from deepict_dask.models.deepfinder import DeepFinder, DeepFinderSettings
from deepict_dask.models.unet3d import UNet3D, UNet3DSettings
from deepict_dask.run_outputs import model_of_region

SHAPE = (16, 24, 40)  # whole pooling cells: nothing is padded, so a file may be flipped
MIRRORS = [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(3)
    network = UNet3D(UNet3DSettings(2, 4, 2, space_to_depth=2)).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_var.uniform_(0.03, 0.1)
    path = tmp_path / "m.safetensors"
    save_model(path, network, class_names=["a", "b"], voxel_spacing_angstrom=None)
    return str(path)


def written(folder, voxels):
    create_ome_zarr(folder, VolumeHeader(SHAPE, "float32", 10.0)).write(Box.whole(SHAPE), voxels)
    return folder


def scores_of(session, tomogram, target, settings):
    segment_volume(session, tomogram, target, settings)
    return open_volume(target).read(Box.whole(SHAPE))


def test_scores_are_the_mean_of_those_of_flipped_files(two_workers, model, tmp_path):
    session = Session(two_workers, device="cpu", chunks=(8, 16, 16))
    voxels = np.random.default_rng(0).normal(size=SHAPE).astype("float32")
    alone = SegmentSettings(model=model, classes=("a",))
    images = []
    for number, axes in enumerate(MIRRORS):
        flipped = written(tmp_path / f"t{number}.zarr", np.flip(voxels, axes).copy())
        scores = scores_of(session, flipped, tmp_path / f"s{number}.zarr", alone)
        images.append(np.flip(scores, axes))
    averaged = alone.model_copy(update={"average_flips": True})
    found = scores_of(session, tmp_path / "t0.zarr", tmp_path / "s.zarr", averaged)
    np.testing.assert_allclose(found, np.mean(images, axis=0), atol=1e-5)
    assert np.abs(found - images[0]).max() > 0.05


def test_it_is_another_request(two_workers, model, tmp_path):
    # the same target and the same session: the first output is replaced, not taken for it
    voxels = np.random.default_rng(1).normal(size=SHAPE).astype("float32")
    tomogram = written(tmp_path / "t.zarr", voxels)
    session, target = Session(two_workers, overwrite=True, device="cpu"), tmp_path / "s.zarr"
    found = []
    for flips in (False, True, False):
        settings = SegmentSettings(model=model, classes=("a",), average_flips=flips)
        found.append(scores_of(session, tomogram, target, settings).tobytes())
    assert found[0] == found[2] != found[1]


def test_a_region_s_wish_reaches_its_model():
    region = RegionSettings(name="r", model="m.pth", average_flips=True)
    assert model_of_region(region).average_flips


def test_the_published_results_are_not_averaged():
    with pytest.raises(ValidationError, match="average_flips: not with compat deepict"):
        SegmentSettings(model="m.pth", compat="deepict", average_flips=True)
    with pytest.raises(ValidationError, match="average_flips: only for a region that a model"):
        RegionSettings(name="r", path="r.mrc", average_flips=True)


def test_other_networks_than_3d_u_nets_are_refused(two_workers, tmp_path):
    tomogram = written(tmp_path / "t.zarr", np.ones(SHAPE, "float32"))
    finder = tmp_path / "finder.safetensors"
    network = DeepFinder(DeepFinderSettings(2, (2, 3, 4)))
    save_model(finder, network, class_names=["background", "a"], voxel_spacing_angstrom=None)
    for name in ("demo_cytosol", str(finder)):
        settings = SegmentSettings(model=name, average_flips=True)
        with pytest.raises(ConfigError, match="average_flips: expected a 3D U-Net"):
            segment_volume(Session(two_workers), tomogram, tmp_path / "s.zarr", settings)


def test_the_command_takes_it(model, tmp_path):
    voxels = np.random.default_rng(2).normal(size=SHAPE).astype("float32")
    tomogram = written(tmp_path / "t.zarr", voxels)
    for name, flips in (("one", []), ("all", ["--average-flips"])):
        options = ["segment", str(tomogram), str(tmp_path / f"{name}.zarr"), "--model", model]
        result = CliRunner().invoke(app, [*options, *flips, "--class", "a", "--workers", "1"])
        assert result.exit_code == 0, result.output
    one, every = (
        open_volume(tmp_path / f"{name}.zarr").read(Box.whole(SHAPE)) for name in ("one", "all")
    )
    assert not np.array_equal(one, every)
