"""DeePiCt's known defects in prediction, model files and training are absent here, one by one.

Each docstring says what the published program does (commit 4a966293, and its issue tracker); the
test shows that ours does not, by default. With ``--compat deepict`` some are reproduced on purpose;
other files test that.
"""

from __future__ import annotations

import sys
import types
from contextlib import contextmanager

import mrcfile
import numpy as np
import pandas as pd
import pytest
import torch
from defect_scenes import SPACING, read, write
from skimage.measure import label as skimage_label

from deepict_dask.config import PickSettings, RunConfig, SegmentSettings
from deepict_dask.config.training import TrainConfig
from deepict_dask.jobs.equalize import measure_spectrum
from deepict_dask.jobs.picking.pick import pick_particles
from deepict_dask.jobs.segmenting.segment import segment_volume
from deepict_dask.jobs.segmenting.slices import segment_slices_volume
from deepict_dask.jobs.session import Session
from deepict_dask.models.checkpoint import load_checkpoint, model_info, save_model
from deepict_dask.models.unet2d import UNet2D, UNet2DSettings
from deepict_dask.models.unet3d import UNet3D, UNet3DSettings
from deepict_dask.pipeline import run_pipeline
from deepict_dask.segmentation.windows import normalise
from deepict_dask.training.fit import train_network
from deepict_dask.training.score_limits import standardized

NEVER_PREDICTED = 1 / (1 + np.exp(np.float32(10)))


@pytest.fixture(autouse=True)
def one_thread():
    """As in a worker."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def noise(shape, seed=0):
    return np.random.default_rng(seed).normal(100, 7, shape).astype("float32")


def sharp(network, seed=0):
    """Give a network weights whose scores depend visibly on every voxel."""
    torch.manual_seed(seed)
    for weights in network.parameters():
        torch.nn.init.normal_(weights, std=0.3)
    return network.eval()


@pytest.fixture(scope="module")
def net3d():
    return sharp(UNet3D(UNet3DSettings(depth=1, initial_features=2)))


@pytest.fixture(scope="module")
def net2d():
    return sharp(UNet2D(UNet2DSettings(depth=2, initial_features=2)))


@pytest.fixture(scope="module")
def models(tmp_path_factory, net3d, net2d):
    folder = tmp_path_factory.mktemp("models")
    for name, network in {"net3d": net3d, "net2d": net2d}.items():
        path = folder / f"{name}.safetensors"
        save_model(path, network, class_names=["blob"], voxel_spacing_angstrom=None)
    return folder


def padded(volume, align, axes):
    """The far ends mirrored up to whole pooling cells."""
    widths = [(0, -n % align if a in axes else 0) for a, n in enumerate(volume.shape)]
    mean, std = np.float32(volume.mean(dtype=float)), np.float32(volume.std(dtype=float))
    return np.pad((volume - mean) / std, widths, mode="reflect")


def scores_3d(network, volume):
    """The plain network, once over the whole volume."""
    whole = padded(volume, network.settings.align, (0, 1, 2))
    with torch.inference_mode():
        scores = network(torch.from_numpy(whole)[None, None])[0, 0].sigmoid().numpy()
    return scores[tuple(slice(n) for n in volume.shape)]


def scores_2d(network, volume):
    """The plain network, once over every whole slice."""
    whole = padded(volume, network.settings.align, (1, 2))
    with torch.inference_mode():
        scores = network(torch.from_numpy(whole)[:, None])[:, 0].sigmoid().numpy()
    return scores[tuple(slice(n) for n in volume.shape)]


def segment_3d(workers, folder, volume, model, name="scores.zarr"):
    source = write(folder / "tomo.mrc", volume)
    session = Session(workers, chunks=(48, 64, 64))
    segment_volume(session, source, folder / name, SegmentSettings(model=str(model)))
    return read(folder / name)


def test_the_far_border_of_every_axis_is_predicted(two_workers, tmp_path, models, net3d):
    """[BUG] ``padding = dim % inner``: of 95x150x138 voxels z 80-94 and x 120-137 are never seen.

    Sizes whose remainder by 40 is below 20 lose it: 256 loses 16 voxels of each axis, 928 loses 8.
    """
    volume = noise((95, 150, 138))
    scores = segment_3d(two_workers, tmp_path, volume, models / "net3d.safetensors")
    assert scores.shape == volume.shape
    assert not np.isclose(scores, NEVER_PREDICTED, rtol=1e-3).any()
    np.testing.assert_allclose(scores, scores_3d(net3d, volume), atol=1e-5)


@pytest.mark.parametrize("shape", [(10, 16, 12), (19, 64, 64), (1, 7, 5)])
def test_a_volume_smaller_than_half_a_patch_is_predicted(
    two_workers, tmp_path, models, net3d, shape
):
    """[BUG] An axis below half an inner cube (20 voxels) has no patches: KeyError in segment.py."""
    scores = segment_3d(two_workers, tmp_path, noise(shape), models / "net3d.safetensors")
    assert not np.isclose(scores, NEVER_PREDICTED, rtol=1e-3).any()
    if min(shape) > 1:  # one slice cannot be mirrored; it is repeated
        np.testing.assert_allclose(scores, scores_3d(net3d, noise(shape)), atol=1e-5)


class InterruptedRunError(Exception):
    """Stands for a kill."""


class StopsAfterOneBlock:
    """A progress display that ends the run after the first block."""

    @contextmanager
    def stage(self, *_args):
        def advance(_n):
            raise InterruptedRunError

        yield advance


def test_an_input_that_changed_at_its_path_is_noticed_by_unfinished_work(
    two_workers, tmp_path, models, net3d
):
    """partition.h5 of an earlier tomogram is reused if it exists ("Exiting, path exists", #13)."""
    settings = SegmentSettings(model=str(models / "net3d.safetensors"))
    source = write(tmp_path / "tomo.mrc", noise((40, 40, 40), seed=1))
    stopped = Session(two_workers, StopsAfterOneBlock(), chunks=(16, 16, 16))
    with pytest.raises(InterruptedRunError):
        segment_volume(stopped, source, tmp_path / "s.zarr", settings)
    assert not (tmp_path / "s.zarr").exists()  # nothing half done has the name of a result
    write(source, noise((40, 40, 40), seed=2))
    segment_volume(Session(two_workers, chunks=(16, 16, 16)), source, tmp_path / "s.zarr", settings)
    expected = scores_3d(net3d, noise((40, 40, 40), seed=2))
    np.testing.assert_allclose(read(tmp_path / "s.zarr"), expected, atol=1e-5)


def test_an_input_that_changed_at_its_path_is_noticed_by_a_finished_run(
    two_workers, tmp_path, models, net3d
):
    """A changed tomogram is not predicted again while its partition and done-file exist."""
    model = models / "net3d.safetensors"
    source = write(tmp_path / "tomo.mrc", noise((24, 24, 24), seed=1))
    config = RunConfig(
        tomograms=source, output=tmp_path / "out", segment=[SegmentSettings(model=str(model))]
    )
    run_pipeline(Session(two_workers), config)
    write(source, noise((24, 24, 24), seed=2))
    run_pipeline(Session(two_workers, overwrite=True), config)
    (scores,) = (tmp_path / "out").rglob("scores_net3d.zarr")
    expected = scores_3d(net3d, noise((24, 24, 24), seed=2))
    np.testing.assert_allclose(read(scores), expected, atol=1e-5)


def test_outputs_say_how_large_their_voxels_are(two_workers, tmp_path, models):
    """Probability maps and masks have a voxel size of 0; the one of the input is never read."""
    segment_3d(two_workers, tmp_path, noise((24, 24, 24)), models / "net3d.safetensors", "s.mrc")
    assert float(mrcfile.open(tmp_path / "s.mrc").voxel_size.x) == pytest.approx(SPACING)


@pytest.fixture
def old_checkpoint(tmp_path, net3d, monkeypatch):
    """A checkpoint as several GPUs wrote it, its descriptor without the fields of later years."""
    kind = type("ModelDescriptor", (), {"__module__": "constants.statistics"})
    module = types.ModuleType("constants.statistics")
    module.ModelDescriptor = kind
    descriptor = kind()
    descriptor.__dict__.update(depth=1, initial_features=2, output_classes=1, batch_norm=True)
    state = {f"module.{name}": tensor for name, tensor in net3d.state_dict().items()}
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "constants", types.ModuleType("constants"))
        patch.setitem(sys.modules, "constants.statistics", module)
        content = {"model_descriptor": descriptor, "epoch": 3, "model_state_dict": state}
        torch.save({**content, "optimizer_state_dict": {}, "loss": 0.5}, tmp_path / "old.pth")
    return tmp_path / "old.pth"


def test_a_checkpoint_whose_descriptor_lacks_newer_fields_is_read_and_shown(old_checkpoint, net3d):
    """Issue #9: printing the descriptor of a published model raises AttributeError."""
    info = model_info(old_checkpoint)
    assert (info.class_names, "depth" in repr(info)) == (("class_0",), True)
    loaded = load_checkpoint(old_checkpoint).network.state_dict()
    assert all(torch.equal(loaded[name], t) for name, t in net3d.state_dict().items())


def test_a_checkpoint_is_used_with_this_torch_and_is_not_rewritten(
    two_workers, tmp_path, old_checkpoint, net3d
):
    """Issues #10, #24: torch.load of 2.6 and later refuses the file, and the loader needs a module.

    Without a descriptor segment.py rewrites the model file in place.
    """
    assert tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 6)
    assert "constants" not in sys.modules
    before = old_checkpoint.read_bytes()
    bare = tmp_path / "bare.pth"
    torch.save({"model_state_dict": net3d.state_dict()}, bare)
    bare_before = bare.read_bytes()
    for number, path in enumerate((old_checkpoint, bare)):
        scores = segment_3d(two_workers, tmp_path, noise((20, 20, 20)), path, f"{number}.zarr")
        np.testing.assert_allclose(scores, scores_3d(net3d, noise((20, 20, 20))), atol=1e-5)
    assert (old_checkpoint.read_bytes(), bare.read_bytes()) == (before, bare_before)


def test_labelling_and_spectra_run_with_this_numpy(one_worker, tmp_path):
    """Issue #24: np.int, np.bool and skimage's label(input=) are gone; warnings are errors here."""
    assert not hasattr(np, "int")
    source = write(tmp_path / "tomo.mrc", noise((24, 24, 24)))
    measure_spectrum(Session(one_worker), source, tmp_path / "s.tsv", compat=True)
    assert len(pd.read_csv(tmp_path / "s.tsv", sep="\t")) == 12
    report = pick_particles(
        Session(one_worker), source, tmp_path / "p", PickSettings(threshold=110, connectivity=6)
    )
    assert report.n_picks == skimage_label(noise((24, 24, 24)) > 110, connectivity=1).max() > 0


def segment_2d(workers, folder, volume, models):
    source = write(folder / "tomo.mrc", volume)
    settings = SegmentSettings(model=str(models / "net2d.safetensors"))
    segment_slices_volume(Session(workers), source, folder / "s.zarr", settings)
    return read(folder / "s.zarr")


@pytest.mark.parametrize("n_slices", [7, 1, 201])
def test_odd_numbers_of_slices_are_all_predicted(two_workers, tmp_path, models, net2d, n_slices):
    """[BUG] An odd number of slices loses one, in the output too; beyond 200 only 200 are seen."""
    volume = noise((n_slices, 20, 24))
    scores = segment_2d(two_workers, tmp_path, volume, models)
    assert scores.shape == volume.shape
    np.testing.assert_allclose(scores, scores_2d(net2d, volume), atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 1100, 40), (2, 40, 1100)])
def test_slices_above_960_voxels_have_no_stripes(two_workers, tmp_path, models, net2d, shape):
    """[BUG] Five tiles a row cover 960 voxels; what lies between them is 0/0 = NaN."""
    volume = noise(shape)
    scores = segment_2d(two_workers, tmp_path, volume, models)
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(scores, scores_2d(net2d, volume), atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 20, 24), (2, 31, 190), (2, 5, 3)])
def test_slices_smaller_than_a_tile_are_predicted(two_workers, tmp_path, models, net2d, shape):
    """[BUG] Slices below 288 - 2 * 48 voxels are stacked wrongly or end with an error of vstack."""
    scores = segment_2d(two_workers, tmp_path, noise(shape), models)
    assert scores.shape == shape
    np.testing.assert_allclose(scores, scores_2d(net2d, noise(shape)), atol=1e-5)


@pytest.fixture
def seen(monkeypatch):
    """Every patch that a network is given."""
    patches = []
    forward = UNet3D.forward

    def remember(network, x):
        patches.extend(one[0].numpy().copy() for one in x.detach())
        return forward(network, x)

    monkeypatch.setattr(UNet3D, "forward", remember)
    return patches


def train(folder, volume, *, flips):
    """Train on one tomogram as ``train`` does; return it as read again."""
    folder.mkdir()
    write(folder / "tomo.mrc", volume)
    write(folder / "labels.mrc", (volume > 100).astype("int8"))
    (folder / "tomograms.csv").write_text("name,tomogram,labels\nTS_1,tomo.mrc,labels.mrc\n")
    config = TrainConfig(
        tomograms=folder / "tomograms.csv",
        output=folder / "model",
        classes={"bright": {"labels": "labels"}},
        network={"depth": 1, "initial_features": 2},
        patches={"shape": (8, 8, 8), "sampling": "uniform"},
        augment={"flips": flips},
        optimizer={"epochs": 1, "steps_per_epoch": 24, "batch_size": 2},
    )
    train_network(config, device="cpu")


def test_patches_are_normalised_however_few_there_are(seen, tmp_path):
    """[BUG] A set of so few patches that all serve for training is trained on as it is in the file.

    And a normalised one with other statistics than prediction uses.
    """
    volume = noise((8, 8, 8))  # one patch, mean 100, deviation 7
    train(tmp_path / "few", volume, flips=True)
    assert len(seen) >= 48
    for patch in seen:
        assert abs(patch.mean()) < 1e-5
        assert abs(patch.std() - 1) < 1e-5
    at_prediction = normalise(volume, volume.mean(dtype=float), volume.std(dtype=float))
    np.testing.assert_allclose(standardized(volume), at_prediction, atol=1e-6)


def test_augmentation_reaches_the_network(seen, tmp_path):
    """[BUG] Augmented data are computed and thrown away: the data loader gets the plain ones."""
    volume = noise((8, 8, 8))
    train(tmp_path / "plain", volume, flips=False)
    assert len({patch.tobytes() for patch in seen}) == 1
    plain = seen[0]
    seen.clear()
    train(tmp_path / "flipped", volume, flips=True)
    flips = [np.flip(plain, [a for a in range(3) if n >> a & 1]) for n in range(8)]
    images = {np.ascontiguousarray(flip).tobytes() for flip in flips}
    found = {np.ascontiguousarray(patch).tobytes() for patch in seen}
    assert found <= images
    assert len(found) > 4  # of 8, drawn at least 48 times
