"""DeepETPicker's network, its Lightning checkpoints, and its tiles on any storage."""

from __future__ import annotations

import argparse
import pickle
import re
import sys
import types
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

from deepict_dask.config import SegmentSettings
from deepict_dask.core.errors import BudgetError, ConfigError, ModelFileError, ShapeMismatchError
from deepict_dask.core.geometry import Box, Grid
from deepict_dask.io.volumes import open_volume
from deepict_dask.jobs.segmenting.segment import segment_volume
from deepict_dask.jobs.session import Session
from deepict_dask.models.checkpoint import load_checkpoint, model_info, save_model
from deepict_dask.models.deepetpicker import DeepETPicker, DeepETPickerSettings
from deepict_dask.segmentation.deepetpicker_tiles import DeepETPickerOp, deepetpicker_axis
from deepict_dask.segmentation.fixed_tiles import choose_tile_grid, n_tiles, tile_grid

DATA = Path(__file__).parent / "data"
TINY = DeepETPickerSettings(n_classes=3, features=(2, 3, 4, 5), block_size=24, pad_size=4)


@pytest.fixture(scope="module")
def network() -> DeepETPicker:
    torch.manual_seed(1)
    network = DeepETPicker(TINY).eval()
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
    return network


@pytest.fixture(scope="module")
def model(network, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    names = ["background", "ribosome", "fas"]
    save_model(path, network, class_names=names, voxel_spacing_angstrom=None)
    return path


def lightning(path: Path, network: DeepETPicker, monkeypatch, **arguments: object) -> Path:
    """A checkpoint as Lightning 1.1 writes it: a class as a key, arguments as a namespace."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    callbacks = types.ModuleType(name)
    callback = type("ModelCheckpoint", (), {"__module__": name})
    callbacks.ModelCheckpoint = callback  # type: ignore[attr-defined]
    for part in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    monkeypatch.setitem(sys.modules, name, callbacks)
    content = {
        "epoch": 60, "pytorch-lightning_version": "1.1.0",
        "callbacks": {callback: {"best_model_score": torch.tensor(0.5)}},
        "state_dict": {f"model.{k}": v for k, v in network.state_dict().items()},
        "hyper_parameters": {"args": argparse.Namespace(**arguments)},
    }  # fmt: skip
    torch.save(content, path)
    for part in ("pytorch_lightning", "pytorch_lightning.callbacks", name):
        monkeypatch.delitem(sys.modules, part)
    return path


def in_blocks(op: DeepETPickerOp, volume: np.ndarray, grid: Grid) -> np.ndarray:
    result = np.empty((op.n_classes, *volume.shape), dtype=np.float32)
    for block in grid:
        found = op.apply(block, volume[block.read.slices])
        result[(..., *block.write.slices)] = block.crop(found)
    return result


def test_the_golden_patch_is_predicted_to_1e_5(golden):
    folder = golden / "deepetpicker"
    found = load_checkpoint(folder / "epoch=59-step=539.ckpt")
    patch = np.load(folder / "network_patch40_float32.npz")
    with torch.inference_mode():
        scores = found.network.scores(torch.from_numpy(patch["patch"])[None, None])[0]
    np.testing.assert_allclose(scores, patch["out"], atol=1e-5)
    assert found.settings == DeepETPickerSettings(3, (24, 48, 72, 108), 72, 12)
    assert found.card == {"epoch": 60, "lightning_version": "1.1.0"}


def test_tensors_have_the_names_and_shapes_of_a_published_checkpoint():
    lines = (DATA / "deepetpicker_tensors.txt").read_text().splitlines()
    expected = {}
    for line in lines:
        name, shape = re.fullmatch(r"model\.(\S+) \(([\d, ]*)\) torch\.\w+", line).groups()
        expected[name] = tuple(int(n) for n in shape.replace(" ", "").split(",") if n)
    assert dict(DeepETPicker.state_shapes(DeepETPickerSettings(n_classes=3))) == expected


def test_a_lightning_checkpoint_is_read_without_lightning(tmp_path, network, monkeypatch):
    path = lightning(tmp_path / "a.ckpt", network, monkeypatch, block_size=24, pad_size=4)
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)  # as if it were not installed
    with pytest.raises((pickle.UnpicklingError, ModuleNotFoundError)):
        torch.load(path, weights_only=False)
    found = load_checkpoint(path)
    assert found.settings == TINY
    for name, tensor in network.state_dict().items():
        assert torch.equal(found.network.state_dict()[name], tensor), name
    assert found.class_names == ("background", "class_1", "class_2")


def test_a_variant_with_other_layers_is_refused_by_its_argument(tmp_path, network, monkeypatch):
    path = lightning(tmp_path / "a.ckpt", network, monkeypatch, norm="gn")
    with pytest.raises(ModelFileError, match=r"expected norm = bn.*found gn"):
        load_checkpoint(path)


def test_a_checkpoint_that_names_other_code_is_refused(tmp_path, network, monkeypatch):
    path = lightning(tmp_path / "a.ckpt", network, monkeypatch, out=Path.cwd)
    with pytest.raises(ModelFileError, match=r"wants to use .*nothing in it was run"):
        model_info(path)


def test_tiles_that_no_pooling_fits_are_refused():
    with pytest.raises(ModelFileError, match=r"multiple of 8.*block_size 70"):
        DeepETPickerSettings(block_size=70)


def test_a_score_knows_its_place_in_the_tile(network):
    tile = np.zeros((24, 24, 24), "f4")
    with torch.inference_mode():
        scores = network.scores(torch.from_numpy(tile)[None, None])[0, 1]
    assert float(scores[8:16, 8:16, 8:16].std()) > 1e-3


def test_the_last_tile_ends_with_the_volume_and_wins():
    tiles = deepetpicker_axis(104, DeepETPickerSettings())
    assert [(t.start, t.kept_start, t.kept_stop) for t in tiles] == [
        (-12, 0, 48), (36, 48, 96), (44, 56, 104),
    ]  # fmt: skip
    with pytest.raises(ShapeMismatchError, match=r"expected 48 voxels or more.*found 40"):
        deepetpicker_axis(40, DeepETPickerSettings())


@pytest.mark.parametrize("write", [(40, 41, 50), (16, 16, 16), (7, 24, 33), (20, 100, 12)])
def test_scores_are_the_same_to_the_last_bit_on_any_chunks(network, model, write):
    volume = np.random.default_rng(0).normal(4, 2, size=(40, 41, 50)).astype("f4")
    op = DeepETPickerOp(str(model), 4.0, 2.0, shape=volume.shape)
    # oracle: tiles cut from the padded volume, the later over the earlier
    padded = np.pad((volume - np.float32(4)) / np.float32(2), 4)
    expected = np.empty((3, *volume.shape), "f4")
    starts = [[*range(0, size - 16, 16), size - 16] for size in volume.shape]
    for z in starts[0]:
        for y in starts[1]:
            for x in starts[2]:
                tile = padded[z : z + 24, y : y + 24, x : x + 24]
                with torch.inference_mode():
                    scores = network.scores(torch.from_numpy(tile.copy())[None, None])[0].numpy()
                expected[:, z : z + 16, y : y + 16, x : x + 16] = scores[:, 4:-4, 4:-4, 4:-4]
    found = in_blocks(op, volume, tile_grid(volume.shape, write, op))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    at_once = in_blocks(op, volume, tile_grid(volume.shape, volume.shape, op))
    np.testing.assert_array_equal(found, at_once)
    # the halo of a block of any shape is enough too
    for halo in (op.halo,):
        again = in_blocks(op, volume, Grid(volume.shape, write, halo))
        np.testing.assert_array_equal(again, at_once)


def test_the_stitched_golden_scores_are_those_of_the_program(golden):
    folder = golden / "deepetpicker"
    volume = mrcfile.read(folder / "volume_80x96x104.mrc.gz")
    expected = np.load(folder / "scoremap_b72_p12.npz")["score_czyx_float16"]
    mean, std = float(volume.mean()), float(volume.std())
    op = DeepETPickerOp(str(folder / "epoch=59-step=539.ckpt"), mean, std, shape=volume.shape)
    # blocks of the grid of 16 where two tiles meet, and where the last tile covers another
    grid = tile_grid(volume.shape, (32, 48, 16), op)
    for index in ((0, 0, 3), (1, 1, 5)):
        block = grid.at(index)
        found = block.crop(op.apply(block, volume[block.read.slices]))
        np.testing.assert_allclose(found, expected[(..., *block.write.slices)], atol=1e-3)


def test_blocks_follow_the_tiles_where_memory_allows(model):
    op = DeepETPickerOp(str(model), 0.0, 1.0, shape=(96, 96, 96))
    grid = choose_tile_grid(op.shape, (8, 8, 8), op, op.bytes_needed((48, 48, 48)))
    assert n_tiles(grid, op) == 6**3
    with pytest.raises(BudgetError, match="give each worker more with --memory"):
        choose_tile_grid(op.shape, (64, 64, 64), op, 1000)


@pytest.mark.parametrize("chunks", [(13, 16, 20), (64, 64, 64)])
def test_segment_makes_the_score_maps_of_all_classes(tmp_path, two_workers, model, chunks):
    volume = np.random.default_rng(2).normal(3, 2, size=(40, 48, 56)).astype("f4")
    with mrcfile.new(tmp_path / "tomogram.mrc") as file:
        file.set_data(volume)
        file.voxel_size = 10.0
    target = tmp_path / "scores.zarr"
    settings = SegmentSettings(model=str(model))
    session = Session(two_workers, chunks=chunks)
    segment_volume(session, tmp_path / "tomogram.mrc", target, settings)
    found = open_volume(target, class_name="fas").read(Box.whole(volume.shape))
    mean, std = float(volume.mean(dtype="f8")), float(volume.std(dtype="f8"))
    op = DeepETPickerOp(str(model), mean, std, shape=volume.shape)
    expected = in_blocks(op, volume, tile_grid(volume.shape, volume.shape, op))
    np.testing.assert_allclose(found, expected[2], atol=1e-5)


def test_a_precision_of_other_networks_is_refused(tmp_path, two_workers, model):
    with mrcfile.new(tmp_path / "tomogram.mrc") as file:
        file.set_data(np.zeros((24, 24, 24), "f4"))
    settings = SegmentSettings(model=str(model), precision="bfloat16")
    with pytest.raises(ConfigError, match="expected float32 for this model, found bfloat16"):
        segment_volume(
            Session(two_workers), tmp_path / "tomogram.mrc", tmp_path / "scores.zarr", settings
        )
