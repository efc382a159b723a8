"""The job that applies a 2D network: score maps and masks, as ours or as DeePiCt makes them."""

from __future__ import annotations

import functools
import logging

import mrcfile
import numpy as np
import pytest
from programs import marks
from scipy.ndimage import gaussian_filter1d
from slice_scenes import (
    compat_scores,
    model_paths,
    one_thread,
    random_volume,
    read_mrc,
    sharp_network,
    two_classes,
    whole_slices,
)

from deepict_dask.config import SegmentSettings, SliceTiling
from deepict_dask.core.errors import (
    ConfigError,
    ModelFileError,
    ShapeMismatchError,
    VoxelValueError,
    WorkFailedError,
)
from deepict_dask.core.geometry import Grid
from deepict_dask.engine import map_chunks
from deepict_dask.io.volumes import open_volume
from deepict_dask.jobs.segmenting.slices import segment_slices_volume
from deepict_dask.jobs.session import Session
from deepict_dask.models.checkpoint import load_checkpoint, save_model
from deepict_dask.models.unet3d import UNet3D, UNet3DSettings
from deepict_dask.segmentation.deepict_slices import CompatSliceOp
from deepict_dask.segmentation.slices import SliceGrid, SliceSegmentOp

__all__ = ["model_paths", "one_thread", "two_classes"]


@pytest.fixture
def tomogram(tmp_path):
    volume = random_volume((21, 60, 70), seed=4)
    path = tmp_path / "tomo.mrc"
    mrcfile.write(path, volume, voxel_size=13.48)
    with mrcfile.open(path, "r+") as file:
        file.header.origin.y = 27
    return path, volume


def read(path):
    reader = open_volume(path, spacing_required=False)
    shape = reader.header.shape
    return reader.read(Grid(shape, shape)[0].read)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_job_writes_the_exact_scores_with_spacing_and_origin(
    any_workers, model_paths, tomogram, tmp_path, workers
):
    source, volume = tomogram
    session = Session(any_workers[workers], chunks=(8, 32, 32))
    target = segment_slices_volume(
        session, source, tmp_path / "s.zarr", SegmentSettings(model=model_paths[2])
    )
    header = open_volume(target).header
    assert header.voxel_spacing_angstrom == pytest.approx(13.48)
    assert header.origin_angstrom == pytest.approx((0, 27, 0))
    assert (header.shape, header.dtype, header.class_names) == (volume.shape, "float32", ())
    mean, std = volume.mean(dtype="f8"), volume.std(dtype="f8")
    expected = whole_slices(sharp_network(2), volume, mean, std)[0]
    assert np.abs(read(target) - expected).max() <= 1e-5


@pytest.mark.parametrize("ending", [".zarr", ".mrc"])
def test_the_job_makes_a_mask_in_one_pass(one_worker, model_paths, tomogram, tmp_path, ending):
    source, volume = tomogram
    session = Session(one_worker, chunks=(8, 32, 32))
    target = segment_slices_volume(
        session, source, tmp_path / f"m{ending}", SegmentSettings(model=model_paths[2]),
        z_sigma=2.0, threshold=0.5,
    )  # fmt: skip
    mean, std = volume.mean(dtype="f8"), volume.std(dtype="f8")
    scores = whole_slices(sharp_network(2), volume, mean, std)[0]
    smoothed = gaussian_filter1d(scores, 2.0, axis=0)
    sure = np.abs(smoothed - 0.5) > 1e-5
    mask = read(target)
    assert np.array_equal(mask[sure], (smoothed > 0.5)[sure])
    assert 0.1 < mask.mean() < 0.9


COMPAT = {"tile": (32, 32), "tiles": (2, 3), "crop": 4}


def test_the_job_writes_deepicts_scores_and_says_what_it_left_out(
    one_worker, model_paths, tomogram, tmp_path, caplog
):
    source, volume = tomogram
    tiling = SliceTiling(**COMPAT, z_cutoff=11)
    settings = SegmentSettings(model=model_paths[2], compat="deepict", tiling=tiling)
    session = Session(one_worker, chunks=(8, 32, 32))
    with caplog.at_level(logging.WARNING):
        target = segment_slices_volume(session, source, tmp_path / "s.zarr", settings)
    scores = read(target)
    expected = compat_scores(model_paths[2], volume, tiling)
    assert scores.shape == (20, 60, 70)
    assert np.array_equal(scores, expected, equal_nan=True)
    assert "predicts slices 5 to 14 of 21 and writes 20" in caplog.text
    assert "2 tiles of 32 do not cover y 24 to 35: the score map is NaN there" in caplog.text
    assert "cover x" not in caplog.text
    assert np.isnan(scores[5:15, 24:36]).all()


def test_the_job_leaves_the_other_slices_out_on_request(
    one_worker, model_paths, tomogram, tmp_path
):
    source, _ = tomogram
    tiling = SliceTiling(tile=(32, 32), tiles=(3, 4), crop=4, z_cutoff=10, compensate_crop=False)
    settings = SegmentSettings(model=model_paths[2], compat="deepict", tiling=tiling)
    session = Session(one_worker, chunks=(8, 32, 32))
    target = segment_slices_volume(session, source, tmp_path / "s.zarr", settings)
    header = open_volume(target).header
    assert header.shape == (10, 60, 70)
    assert header.origin_angstrom == pytest.approx((5 * 13.48, 27, 0))


def test_the_job_polishes_deepicts_scores(one_worker, model_paths, tomogram, tmp_path):
    source, volume = tomogram
    tiling = SliceTiling(**COMPAT, z_cutoff=0)
    settings = SegmentSettings(model=model_paths[2], compat="deepict", tiling=tiling)
    session = Session(one_worker, chunks=(8, 32, 32))
    target = segment_slices_volume(
        session, source, tmp_path / "m.zarr", settings, z_sigma=2.0, threshold=0.5
    )
    smoothed = gaussian_filter1d(compat_scores(model_paths[2], volume, tiling), 2.0, axis=0)
    mask = read(target)
    assert np.array_equal(mask, smoothed > 0.5)
    assert 0.1 < mask.mean() < 0.9
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.zarr", "tomo.mrc"]


@pytest.mark.parametrize("compat", [None, "deepict"])
def test_an_interrupted_job_goes_on_where_it_stopped(
    one_worker, model_paths, tomogram, tmp_path, monkeypatch, compat
):
    """In the published way within the first of two passes."""
    source, _ = tomogram
    tiling = SliceTiling(**COMPAT, z_cutoff=0) if compat else None
    settings = SegmentSettings(model=model_paths[2], compat=compat, tiling=tiling)
    session = Session(one_worker, chunks=(2, 32, 32))
    if compat is None:  # as many windows as chunks
        monkeypatch.setattr(
            "deepict_dask.jobs.segmenting.slices.choose_slice_grid",
            lambda op, shape, chunks, _: SliceGrid(shape, chunks, op.halo, op.align),
        )
    ask = functools.partial(
        segment_slices_volume, session, source, tmp_path / "m.zarr", settings,
        z_sigma=0.5, threshold=0.5,
    )  # fmt: skip
    operation = CompatSliceOp if compat else SliceSegmentOp
    applied, apply = [], operation.apply

    def failing(self, block, *windows):
        applied.append(block.number)
        if len(applied) == 8:
            raise KeyError("unplugged")
        return apply(self, block, *windows)

    monkeypatch.setattr(operation, "apply", failing)
    with pytest.raises(WorkFailedError, match="unplugged"):
        ask()
    assert not (tmp_path / "m.zarr").exists()
    partial = tmp_path / "m.zarr.partial"
    note = marks(partial / "scores.zarr.partial" if compat else partial)
    finished = {number for number, mark in enumerate(note) if mark}
    assert finished  # few tasks are in flight, so some ended before the eighth failed
    before = len(applied)
    mask = read(ask())
    again, left = set(applied[before:]), set(range(len(note))) - finished
    assert applied[7] in again <= left
    assert left - again <= set(applied[:before])  # ended after the failure: whole, and kept
    undisturbed = segment_slices_volume(
        session, source, tmp_path / "again.zarr", settings, z_sigma=0.5, threshold=0.5
    )
    assert np.array_equal(mask, read(undisturbed))


def test_several_classes_keep_their_names_and_one_can_be_chosen(
    one_worker, two_classes, tomogram, tmp_path
):
    source, _ = tomogram
    session = Session(one_worker, chunks=(8, 64, 64))
    both = segment_slices_volume(
        session, source, tmp_path / "both.zarr", SegmentSettings(model=two_classes)
    )
    golgi = segment_slices_volume(
        session, source, tmp_path / "golgi.zarr",
        SegmentSettings(model=two_classes, classes=("golgi",)),
    )  # fmt: skip
    reader = open_volume(both, class_name="golgi")
    assert open_volume(both).header.class_names == ("er", "golgi")
    assert np.array_equal(reader.read(Grid((21, 60, 70), (21, 60, 70))[0].read), read(golgi))
    compat = SegmentSettings(
        model=two_classes, compat="deepict", tiling=SliceTiling(**COMPAT, z_cutoff=0)
    )
    with pytest.raises(ConfigError, match="expected one class to smooth or cut, found er, golgi"):
        segment_slices_volume(session, source, tmp_path / "m.zarr", compat, threshold=0.5)


def test_corrected_class_names_are_those_of_the_map(
    one_worker, two_classes, tomogram, tmp_path, monkeypatch
):
    """Unfinished work of other names is not taken up."""
    source, _ = tomogram
    session = Session(one_worker, chunks=(8, 64, 64))

    def ask(*names):
        settings = SegmentSettings(model=two_classes, class_names=names)
        return segment_slices_volume(session, source, tmp_path / "s.zarr", settings)

    def stopped(*arguments, **options):
        map_chunks(*arguments, **options)
        raise WorkFailedError("stopped by a test")

    with monkeypatch.context() as patch:
        patch.setattr("deepict_dask.jobs.segmenting.slices.map_chunks", stopped)
        with pytest.raises(WorkFailedError, match="by a test"):
            ask("er", "golgi")
    assert (tmp_path / "s.zarr.partial").exists()
    assert open_volume(ask("golgi", "er")).header.class_names == ("golgi", "er")


def test_what_cannot_be_done_is_refused_and_leaves_nothing(
    one_worker, model_paths, tomogram, tmp_path
):
    source, volume = tomogram
    session = Session(one_worker, chunks=(8, 32, 32))
    three_d = tmp_path / "three.safetensors"
    save_model(three_d, UNet3D(UNet3DSettings(1, 1, 1)), class_names=["a"],
               voxel_spacing_angstrom=None)  # fmt: skip
    flat, holed = tmp_path / "flat.mrc", tmp_path / "holed.mrc"
    mrcfile.write(flat, np.ones_like(volume), voxel_size=10)
    volume[3, 2, 1] = np.nan
    with pytest.warns(RuntimeWarning, match="NaN"):
        mrcfile.write(holed, volume, voxel_size=10)
    exact = SegmentSettings(model=model_paths[2])
    large = SegmentSettings(model=model_paths[2], compat="deepict")
    before = {path.name for path in tmp_path.iterdir()}
    for tomo, chosen, error, words, options in [
        (source, SegmentSettings(model=str(three_d)), ModelFileError, "expected a 2D model", {}),
        (source, exact, ConfigError, "z_sigma: expected a number", {"z_sigma": -1.0}),
        (source, large, ShapeMismatchError, "axis y has 60 voxels", {}),
        (source, large, ShapeMismatchError, "axis y has 60 voxels", {"threshold": 0.5}),
        (flat, exact, VoxelValueError, "expected voxels of different values", {}),
        (holed, exact, VoxelValueError, r"the first at zyx \(3, 2, 1\)", {}),
    ]:
        with pytest.raises(error, match=words):
            segment_slices_volume(session, tomo, tmp_path / "s.zarr", chosen, **options)
    assert {path.name for path in tmp_path.iterdir()} == before


def test_a_keras_model_is_applied_exactly(golden, one_worker, tmp_path):
    folder = golden / "deepict"
    volume = read_mrc(folder / "inputs/tomo.mrc.gz")[:5, :, :].copy()
    mrcfile.write(tmp_path / "tomo.mrc", volume, voxel_size=13.48)
    model = folder / "twod/model2d_nf2.h5"
    target = segment_slices_volume(
        Session(one_worker), tmp_path / "tomo.mrc", tmp_path / "s.zarr",
        SegmentSettings(model=str(model)),
    )  # fmt: skip
    mean, std = volume.mean(dtype="f8"), volume.std(dtype="f8")
    expected = whole_slices(load_checkpoint(model).network, volume, mean, std)[0]
    assert np.abs(read(target) - expected).max() <= 1e-5
