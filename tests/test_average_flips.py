"""The mean over mirror images: what it is, that picks of one pass have it, where it is refused."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from programs import untouched
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
from deepict_dask.models.deepetpicker import DeepETPicker, DeepETPickerSettings
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


@pytest.fixture
def finder(tmp_path):
    torch.manual_seed(4)
    network = DeepFinder(DeepFinderSettings(2, (4, 4, 4))).eval()
    with torch.no_grad():
        network.out_conv.weight *= 20
    return saved(tmp_path / "finder.safetensors", network)


@pytest.fixture
def picker(tmp_path):
    # whole steps in all axes of the tomogram: tiles of a flipped file are the flipped tiles
    torch.manual_seed(5)
    network = DeepETPicker(DeepETPickerSettings(2, (8, 8), 12, 2)).eval()
    with torch.no_grad():
        network.final_conv.weight *= 20
    return saved(tmp_path / "picker.safetensors", network)


def saved(path, network):
    save_model(path, network, class_names=["background", "a"], voxel_spacing_angstrom=None)
    return str(path)


@pytest.mark.parametrize("kind", ["model", "finder", "picker"])
def test_scores_are_the_mean_of_those_of_flipped_files(two_workers, kind, request, tmp_path):
    model = request.getfixturevalue(kind)
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


@pytest.mark.parametrize("kind", ["model", "finder", "picker"])
def test_it_is_another_request(two_workers, kind, request, tmp_path):
    model = request.getfixturevalue(kind)
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


def test_a_2d_network_is_refused(two_workers, tmp_path):
    tomogram = written(tmp_path / "t.zarr", np.ones(SHAPE, "float32"))
    settings = SegmentSettings(model="demo_cytosol", average_flips=True)
    with pytest.raises(ConfigError, match="average_flips: expected a 3D network, found a 2D one"):
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


MEASURE = """
import sys
import numpy as np, torch
torch.set_num_threads(1)
from deepict_dask.core.geometry import Grid
from deepict_dask.segmentation.deepetpicker_tiles import DeepETPickerOp
from deepict_dask.segmentation.deepfinder_windows import DeepFinderOp
shape = (48, 48, 96)  # two of the picker's tiles
if sys.argv[1] == "finder":
    op = DeepFinderOp(sys.argv[2], 0.0, 1.0, average_flips=True)
else:
    op = DeepETPickerOp(sys.argv[2], 0.0, 1.0, shape=shape, average_flips=True)
op.apply(Grid(shape, shape)[0], np.ones(shape, "float32"))
# VmHWM, since ru_maxrss starts at the size of the parent that forked us
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) * 1024, op.fixed_bytes + op.bytes_needed(shape))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "network", [DeepFinder(DeepFinderSettings(3)), DeepETPicker(DeepETPickerSettings(3))]
)
def test_the_planned_memory_bounds_the_measured_peak(tmp_path, network):
    path = tmp_path / "m.safetensors"
    save_model(path, network, class_names=["none", "a", "b"], voxel_spacing_angstrom=None)
    kind = "finder" if isinstance(network, DeepFinder) else "picker"
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, kind, str(path)],
        check=True, capture_output=True, text=True, timeout=600, env=untouched(),
    )  # fmt: skip
    peak, planned = map(int, result.stdout.split())
    assert peak <= 1.1 * planned <= 1.6 * peak
