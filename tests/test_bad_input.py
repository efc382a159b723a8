"""Bad volumes, models and masks through the real command line: one message, an exit code."""

from __future__ import annotations

import json
import os
import pickle

import mrcfile
import numpy as np
import pandas as pd
import pytest
import torch
from command_scenes import (
    SHAPE,
    STAGES,
    THREADS,
    command,
    deepict,
    files,
    model,
    refused,
    score_voxels,
)

from deepict_dask.core.geometry import Box
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.io.ome_zarr_write import create_ome_zarr
from deepict_dask.io.picks import read_picks
from deepict_dask.io.volumes import open_volume

__all__ = ["files", "model", "refused"]


@pytest.mark.parametrize("stage", STAGES)
def test_files_that_are_no_volumes_are_refused_by_every_stage(
    files, model, tmp_path, refused, stage
):
    for name, says in {
        "truncated.mrc": ("truncated", "787,456 bytes", "5,000", "copy it again"),
        "header_only.mrc": ("a header without voxels", "787,456", "1,024", "copy the whole"),
        "empty.mrc": ("empty", "0 bytes", "copy it again"),
        "text.mrc": ("expected an MRC volume", "found text", "check the download"),
        "missing.mrc": ("no", "check the path"),
        "plain_folder": ("a folder without Zarr metadata", "expected a file or a .zarr"),
    }.items():
        refused(*command(stage, files / name, tmp_path, files, model), says=(name, *says))


@pytest.mark.parametrize("name", ["truncated.mrc", "empty.mrc", "text.mrc", "missing.mrc"])
def test_info_refuses_what_is_no_volume(files, refused, name):
    refused("info", files / name, says=(name,))


@pytest.mark.parametrize("stage", ["spectrum", "equalize", "segment"])
@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_voxels_that_are_no_numbers_are_refused(files, model, tmp_path, refused, stage, kind):
    says = (f"tomo_{kind}.mrc", "expected finite voxels", "found 1 of 196608", "(3, 4, 5)",
            "deepict-dask convert", "--fill-nonfinite")  # fmt: skip
    refused(*command(stage, files / f"tomo_{kind}.mrc", tmp_path, files, model), says=says)


def test_filling_bad_voxels_as_the_message_says_makes_the_volume_usable(files, model, tmp_path):
    good = tmp_path / "good.mrc"
    filled = deepict("convert", files / "tomo_nan.mrc", good, "--fill-nonfinite", 0, *THREADS)
    assert filled.code == 0
    assert mrcfile.read(good)[3, 4, 5] == 0
    assert deepict(*command("segment", good, tmp_path, files, model)).code == 0


def test_scores_that_are_no_numbers_are_refused(files, tmp_path, refused):
    for kind, says in (("nan", "expected numbers, found NaN"), ("inf", "found inf")):
        name = f"score_{kind}.mrc"
        refused("pick", files / name, tmp_path / "o", *THREADS, says=(name, says))


@pytest.mark.parametrize("stage", ["spectrum", "equalize", "segment"])
def test_a_constant_volume_is_refused(files, model, tmp_path, refused, stage):
    says = ("constant.mrc", "expected voxels of different values", "2.0", "is this the right file?")
    refused(*command(stage, files / "constant.mrc", tmp_path, files, model), says=says)


def test_a_score_map_that_is_all_above_the_threshold_is_called_odd(files, tmp_path):
    found = deepict("pick", files / "constant.mrc", tmp_path / "o", *THREADS)
    assert (found.code, found.out.splitlines()[-1].split()[0]) == (0, "1")
    assert "constant.mrc: every voxel is above the threshold" in found.err


class RunsCode:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_files_that_are_no_models_are_refused_and_run_no_code(files, golden, tmp_path, refused):
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "text.pth").write_text("depth: 2\n")
    whole = golden / "deepict" / "models" / "blob_D2_IF4_BN.pth"
    (bad / "truncated.pth").write_bytes(whole.read_bytes()[:20000])
    for name, write in (("zip.pth", torch.save), ("plain.pth", write_pickle)):
        write({"model_state_dict": RunsCode(tmp_path / "it_ran")}, bad / name)
    for path, says in {
        bad / "text.pth": ("expected a model", "a text file"),
        bad / "truncated.pth": ("expected a model", "truncated", "download the file again"),
        bad / "zip.pth": ("mkdir", "nothing in it was run", "expected a checkpoint"),
        bad / "plain.pth": ("mkdir", "nothing in it was run", "expected a checkpoint"),
        files / "tomo.mrc": ("expected a model", "an MRC volume"),
        bad / "missing.pth": ("no such model file",),
    }.items():
        line = command("segment", files / "tomo.mrc", tmp_path, files, path)
        refused(*line, says=(path.name, *says))
    assert not (tmp_path / "it_ran").exists()


def write_pickle(value, path):
    path.write_bytes(pickle.dumps(value, protocol=2))


def test_a_class_that_the_model_lacks_is_refused(files, model, tmp_path, refused):
    line = command("segment", files / "tomo.mrc", tmp_path, files, model)
    refused(*line, "--class", "fas", says=(model.name, "ribosome", "found fas"))


def test_a_score_map_with_two_classes_wants_one_named(tmp_path, refused):
    store = tmp_path / "scores.zarr"
    header = VolumeHeader(SHAPE, "float32", 13.48, class_names=("ribosome", "fas"))
    create_ome_zarr(store, header).write(Box.whole(SHAPE), np.stack([score_voxels()] * 2))
    says = ("scores.zarr", "expected one class", "ribosome, fas", "--class")
    refused("pick", store, tmp_path / "o", *THREADS, says=says)
    refused("pick", store, tmp_path / "o", "--class", "cat", *THREADS, says=("cat", "ribosome"))
    found = deepict("pick", store, tmp_path / "o", "--class", "fas", *THREADS)
    assert (found.code, found.out.splitlines()[-1].split()[0]) == (0, "2")


def test_a_region_mask_of_another_shape_is_refused(files, tmp_path, refused):
    line = ("pick", files / "score.mrc", tmp_path / "o", *THREADS)
    says = ("short_mask.mrc", "(48, 64, 64)", "found (48, 64, 32)", "same binning")
    refused(*line, "--region-mask", files / "short_mask.mrc", says=says)
    refused(*line, "--region-mask", files / "missing.mrc", says=("missing.mrc", "check the path"))


@pytest.mark.parametrize("stage", STAGES)
def test_a_voxel_spacing_that_is_missing_or_unequal_is_asked_for(
    files, model, tmp_path, refused, stage
):
    for name, says in (
        ("no_spacing.mrc", "no voxel spacing"),
        ("unequal.mrc", "voxel spacing differs per axis (20, 13.48, 13.48 Å, zyx)"),
    ):
        line = command(stage, files / name, tmp_path, files, model)
        refused(*line, says=(name, says, "--voxel-spacing-angstrom"))
    done = deepict(*line, "--voxel-spacing-angstrom", 13.4)
    assert (done.code, done.err) == (0, "")
    if stage in ("convert", "segment"):
        assert open_volume(tmp_path / "o.zarr").header.voxel_spacing_angstrom == 13.4


def test_an_empty_result_says_why_and_is_valid(files, tmp_path):
    for number, (source, options, says) in enumerate([
        ("low_score.mrc", [], ("from 0 to 0.27", "threshold 0.5", "lower --threshold")),
        ("score.mrc", ["--border", "40"], ("from 0 to 0.9", "border", "--border")),
        ("score.mrc", ["--min-size", "500"], ("2 clusters were found, but none has 500 ", "--min")),
        ("score.mrc", ["--label-value", "7"], ("from 0 to 0.9", "equals 7", "--label-value")),
        ("score.mrc", ["--region-mask", files / "empty_mask.mrc"], ("region", "--region-mask")),
    ]):  # fmt: skip
        folder = tmp_path / f"o{number}"
        found = deepict("pick", files / source, folder, "--label-map", *options, *THREADS)
        assert found.code == 0
        assert found.out == f"0 picks in {folder}\n"
        assert found.err.strip().splitlines()[-1].startswith("WARNING: ")
        for word in (source, "no picks", *says):
            assert word in found.err
        for name in ("picks.csv", "motl.csv", "picks.star"):
            frame = {"voxel_spacing_angstrom": 13.48, "tomogram_shape": SHAPE}
            assert len(read_picks(folder / name, **frame)) == 0
        assert len(pd.read_parquet(folder / "clusters.parquet")) == 0
        assert json.loads((folder / "run.json").read_text())["n_picks"] == 0
        for name in ("segmentation", "label_map"):
            assert deepict("info", folder / f"{name}.zarr").code == 0


def test_an_unexpected_error_is_called_a_defect_and_shows_its_traceback_on_request(monkeypatch):
    def fails(*_args, **_kwargs):
        raise RuntimeError("the cat is on the keyboard")

    monkeypatch.setattr("deepict_dask.jobs.info.describe_volume", fails)
    outcome = deepict("info", "a.mrc")
    assert (outcome.code, len(outcome.err.splitlines())) == (1, 1)
    assert "the cat is on the keyboard" in outcome.err
    assert "--debug" in outcome.err
    with pytest.raises(RuntimeError, match="cat"):
        deepict("--debug", "info", "a.mrc")
