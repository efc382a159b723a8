"""Bad input through the real command line: one message, an exit code, nothing that looks complete.

Most cases run `run_guarded` in this process, with workers that are threads, because a worker
process takes seconds to start. What needs processes (a full disk, Ctrl-C, a scheduler that is not
there) runs the installed program.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass

import mrcfile
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import yaml
from programs import PATIENCE_S, PROGRAM, files_of, marks, times_of, wait_until, workers_of
from typer.testing import CliRunner

from deepict_dask import cli
from deepict_dask.core.geometry import Box
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.engine import StagedOutput
from deepict_dask.io.ome_zarr_write import create_ome_zarr
from deepict_dask.io.picks import read_picks
from deepict_dask.io.volumes import open_volume
from deepict_dask.models.checkpoint import save_model
from deepict_dask.models.unet3d import UNet3D, UNet3DSettings

SHAPE = (48, 64, 64)
THREADS = ("--cluster", "threads", "--no-progress")
SMALL = ("--workers", "1", "--memory", "405MiB", "--no-progress", "--chunks", "32")
"""So little memory that a window is a fraction of the volume."""


@dataclass(frozen=True)
class Outcome:
    """What a command left behind: its exit code and its two streams."""

    code: int
    out: str
    err: str


def deepict(*arguments):
    """Run a command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(err)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    handler.setLevel(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.run_guarded(lambda: cli.app([*map(str, arguments)], standalone_mode=False))
    except SystemExit as end:
        return Outcome(end.code, out.getvalue(), err.getvalue())
    finally:
        logging.getLogger().removeHandler(handler)
    raise AssertionError("a command ends with an exit code")


def start(*arguments):
    """Start the installed program as a shell does: in a process group of its own."""
    return subprocess.Popen(
        [PROGRAM, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def finish(process):
    """Wait for a program to end."""
    out, err = process.communicate(timeout=PATIENCE_S)
    return Outcome(process.returncode, out, err)


def as_user(*arguments):
    """Run the installed program."""
    return finish(start(*arguments))


def check_one_message(outcome, *words, code=2):
    """One line on stderr that holds the words, no result on stdout."""
    assert outcome.code == code, outcome
    assert len(outcome.err.strip().splitlines()) == 1, outcome.err
    assert outcome.err.startswith("error: "), outcome.err
    assert "Traceback" not in outcome.err
    assert "defect" not in outcome.err
    for word in words:
        assert word in outcome.err, f"expected {word!r} in {outcome.err!r}"
    assert outcome.out == ""


@pytest.fixture
def refused(tmp_path):
    """Run a command that must be refused with one message and leave nothing in its folder."""

    def check(*arguments, says, code=2):
        before = files_of(tmp_path)
        check_one_message(deepict(*arguments), *says, code=code)
        assert files_of(tmp_path) == before

    return check


def write_mrc(path, voxels, spacing=13.48):
    mrcfile.write(path, voxels.astype("float32"), voxel_size=spacing)


def put_voxel(path, value):
    """Write one voxel at zyx (3, 4, 5) of an MRC file of our shape."""
    voxels = np.memmap(path, np.float32, "r+", offset=1024, shape=SHAPE)
    voxels[3, 4, 5] = value


def score_voxels():
    """Two blobs of 64 and 216 voxels."""
    score = np.zeros(SHAPE, "float32")
    score[10:14, 10:14, 10:14] = 0.9
    score[30:36, 40:46, 40:46] = 0.8
    return score


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Good and bad files; nothing may be written here."""
    folder = tmp_path_factory.mktemp("files")
    noise = np.random.default_rng(0).normal(size=SHAPE)
    write_mrc(folder / "tomo.mrc", noise)
    write_mrc(folder / "score.mrc", score_voxels())
    write_mrc(folder / "low_score.mrc", 0.3 * score_voxels())
    write_mrc(folder / "constant.mrc", np.full(SHAPE, 2.0))
    write_mrc(folder / "short_mask.mrc", np.ones((48, 64, 32)))
    write_mrc(folder / "empty_mask.mrc", np.zeros(SHAPE))
    write_mrc(folder / "no_spacing.mrc", noise, spacing=0)
    write_mrc(folder / "unequal.mrc", noise, spacing=(13.48, 13.48, 20))
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        for kind in ("tomo", "score"):
            shutil.copy(folder / f"{kind}.mrc", folder / f"{kind}_{name}.mrc")
            put_voxel(folder / f"{kind}_{name}.mrc", value)
    content = (folder / "tomo.mrc").read_bytes()
    (folder / "truncated.mrc").write_bytes(content[:5000])
    (folder / "header_only.mrc").write_bytes(content[:1024])
    (folder / "empty.mrc").write_bytes(b"")
    (folder / "text.mrc").write_text("a letter to a microscope\n" * 100)
    (folder / "plain_folder").mkdir()
    assert deepict("spectrum", folder / "tomo.mrc", folder / "t.tsv", *THREADS).code == 0
    return folder


@pytest.fixture(scope="module")
def model(files):
    """A small network with random weights."""
    torch.manual_seed(0)
    path = files / "model.safetensors"
    network = UNet3D(UNet3DSettings(depth=1, initial_features=2)).eval()
    save_model(path, network, class_names=("ribosome",), voxel_spacing_angstrom=13.48)
    return path


@pytest.fixture(scope="module", autouse=True)
def nobody_listens(files):
    """A command that looks for a scheduler where there is none; it waits while others run."""
    where = files / "picks_of_nobody"
    started = time.monotonic()
    process = start("pick", files / "score.mrc", where, "--cluster", "tcp://127.0.0.1:1")
    yield process, where, started
    process.kill()
    process.communicate()


def command(name, source, target, files, model, workers=THREADS):
    """Return the command line of a stage on a source."""
    options = {
        "convert": ["o.zarr"],
        "spectrum": ["o.tsv"],
        "equalize": ["o.mrc", "--target", files / "t.tsv"],
        "segment": ["o.zarr", "--model", model],
        "pick": ["o"],
    }[name]
    return [name, source, target / options[0], *options[1:], *workers]


STAGES = ("convert", "spectrum", "equalize", "segment", "pick")


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


BAD_CONFIGS = {
    "unknown key": ({"chunkz": [1, 2, 3]}, ("chunkz: unknown key", "known keys: tomograms")),
    "unknown nested key": (
        {"pick": [{"treshold": 0.5}]},
        ("pick.0.treshold: unknown key", "known keys: class, threshold"),
    ),
    "missing key": ({"output": None}, ("output: is required",)),
    "contradiction": (
        {"pick": [{"min_size": 5, "max_size": 2}]},
        ("pick.0: max_size: expected at least min_size, which is 5, found 2",),
    ),
    "region not declared": (
        {"pick": [{"region": "cytosol"}]},
        ("region", "found 'cytosol'", "declare it under regions"),
    ),
    "region of nothing": (
        {"regions": [{"name": "cytosol"}]},
        ("regions.0", "expected one of path, column and model, found none"),
    ),
    "wrong type": ({"segment": 3}, ("segment", "found 3")),
    "not finite": (
        {"pick": [{"threshold": float("nan")}]},
        ("pick.0.threshold", "finite number, found nan"),
    ),
    "out of range": ({"voxel_spacing_angstrom": -1}, ("voxel_spacing_angstrom", "found -1")),
    "not in the list": ({"pick": [{"connectivity": 7}]}, ("connectivity", "6, 18 or 26, found 7")),
    "chunks of nothing": ({"chunks": [0, 1, 1]}, ("chunks.0", "greater than 0, found 0")),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_config_that_cannot_be_meant_is_refused_with_the_place(
    files, model, tmp_path, refused, name
):
    changes, says = BAD_CONFIGS[name]
    values = {
        "tomograms": str(files / "tomo.mrc"), "output": "out", "segment": [{"model": str(model)}]
    } | changes  # fmt: skip
    values = {key: value for key, value in values.items() if value is not None}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    refused("run", tmp_path / "run.yaml", *THREADS, says=("run.yaml", *says))
    refused("run", tmp_path / "run.yaml", "--dry-run", says=("run.yaml", *says))


def test_what_is_no_config_is_refused(files, tmp_path, refused):
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "broken.yaml").write_text("a: [\n")
    for path, says in {
        tmp_path / "list.yaml": ("expected keys",),
        tmp_path / "broken.yaml": ("expected YAML", "line 2"),
        tmp_path / "missing.yaml": ("expected a config file", "No such file", "check the path"),
        files / "plain_folder": ("expected a config file", "Is a directory"),
        files / "tomo.mrc": ("expected YAML",),
    }.items():
        refused("run", path, *THREADS, says=(path.name, *says))


def test_a_run_of_a_missing_tomogram_names_it(model, tmp_path):
    values = {"tomograms": "gone.mrc", "output": "out", "segment": [{"model": str(model)}]}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    outcome = deepict("run", tmp_path / "run.yaml", *THREADS)
    check_one_message(outcome, "gone.mrc", "expected a tomogram", "check the path", code=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--chunks", "0"], ("--chunks", "at least 1", "found 0")),
        (["--chunks", "a,b"], ("--chunks", "Z,Y,X", "'a,b'")),
        (["--chunks=-1,2,3"], ("--chunks", "'-1,2,3'")),
        (["--memory", "10MB"], ("--memory", "found 9.5 MiB", "at least 1GiB")),
        (["--memory", "1PiB", "--workers", "1"], ("--memory", "more than this machine's", "lower")),
        (["--memory", "a lot"], ("--memory", "4GiB", "'a lot'")),
        (["--memory", "1e999GiB"], ("--memory", "4GiB", "'1e999GiB'")),
        (["--workers", "0"], ("--workers", "'0'", "pick --help")),
        (["--workers", "many"], ("--workers", "integer", "'many'", "pick --help")),
        (["--connectivity", "7"], ("connectivity", "6, 18 or 26", "found 7")),
        (["--threshold", "nan"], ("threshold", "finite", "found nan")),
        (["--threshold", "inf"], ("threshold", "finite", "found inf")),
        (["--min-size", "-1"], ("min_size", "found -1")),
        (["--max-size", "0"], ("max_size", "found 0")),
        (["--min-size", "5", "--max-size", "2"], ("max_size", "min_size, which is 5", "found 2")),
        (["--border=-1"], ("--border", "'-1'")),
        (["--border", "1,2"], ("--border", "Z,Y,X", "'1,2'")),
        (["--contact-mode", "near"], ("contact_mode", "'colocalization'", "found 'near'")),
        (["--contact-distance", "-1"], ("contact_distance", "found -1")),
        (["--format", "tif"], ("format", "'zarr' or 'mrc'", "found 'tif'")),
        (["--compat", "relion"], ("compat", "found 'relion'")),
        (["--voxel-spacing-angstrom", "0"], ("--voxel-spacing-angstrom", "'0'")),
        (["--voxel-spacing-angstrom", "nan"], ("--voxel-spacing-angstrom", "'nan'")),
        (["--cluster", "cloud"], ("--cluster", "tcp://HOST:PORT", "'cloud'")),
        (["--cluster", "tcp://nowhere"], ("tcp://nowhere", "Dask scheduler", "dask scheduler")),
        (["--treshold", "1"], ("--treshold", "pick --help")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_absurd_options_are_refused_by_name(files, tmp_path, refused, options, says):
    cluster = [] if "--cluster" in options else THREADS
    refused("pick", files / "score.mrc", tmp_path / "o", *options, *cluster, says=says)


def test_commands_and_arguments_that_are_not_there_are_refused(files, tmp_path, refused):
    refused("frobnicate", says=("frobnicate", "--help"))
    refused("pick", files / "score.mrc", says=("OUTDIR", "pick --help"))
    refused("--log-level", "loud", "info", files / "score.mrc", says=("--log-level", "'loud'"))
    line = ("convert", files / "tomo.mrc", tmp_path / "o.zarr", *THREADS)
    refused(*line, "--dtype", "decimal", says=("--dtype", "float32", "'decimal'"))
    refused(*line, "--dtype", "complex64", says=("--dtype", "real numbers", "'complex64'"))
    refused(*line, "--shards", "3,4,5", says=("shards (3, 4, 5)", "multiples of chunks"))
    refused("convert", files / "tomo.mrc", tmp_path / "o.xyz", *THREADS, says=(".zarr", ".xyz"))


def test_targets_that_are_no_spectra_are_refused(files, tmp_path, refused):
    for target, says in {
        files / "missing.tsv": ("expected a file", "check the path"),
        files / "tomo.mrc": ("expected a spectrum table", "deepict-dask spectrum"),
        files / "plain_folder": ("expected a spectrum table",),
    }.items():
        line = ("equalize", files / "tomo.mrc", tmp_path / "o.mrc", "--target", target, *THREADS)
        refused(*line, says=(target.name, *says))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_no_reason_to_use_the_cpu_in_silence(
    files, model, tmp_path, refused
):
    line = command("segment", files / "tomo.mrc", tmp_path, files, model)
    refused(*line, "--device", "cuda", says=("cuda", "expected a working GPU", "--device cpu"))
    refused(*line, "--device", "tpu", says=("auto, cpu or cuda", "found 'tpu'"))


def test_an_output_that_exists_is_replaced_on_request_only(files, model, tmp_path, refused):
    for stage in STAGES:
        folder = tmp_path / stage
        line = command(stage, files / "score.mrc", folder, files, model)
        assert deepict(*line).code == 0
        refused(*line, says=(line[2].name, "found one", "--overwrite"))
        if line[2].is_dir():
            (line[2] / "stale.txt").write_text("of the first run")
        assert deepict(*line, "--overwrite").code == 0
        assert [*folder.iterdir()] == [line[2]]
        assert not (line[2] / "stale.txt").exists()


def test_files_and_folders_of_others_are_never_replaced(files, model, tmp_path, refused):
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "thesis.txt").write_text("years of work")
    (tmp_path / "o.zarr").write_text("no store")
    (tmp_path / "o.mrc").mkdir()
    (tmp_path / "o.mrc" / "thesis.txt").write_text("years of work")
    shutil.copytree(files / "plain_folder", tmp_path / "o.tsv")
    for stage in ("pick", "segment", "equalize", "spectrum"):
        line = command(stage, files / "tomo.mrc", tmp_path, files, model)
        says = (line[2].name, "expected an earlier output", "remove it yourself")
        refused(*line, "--overwrite", says=says)


def test_a_file_in_the_place_of_a_folder_is_named(files, model, tmp_path, refused):
    (tmp_path / "notes").write_text("a file")
    for stage in STAGES:
        line = command(stage, files / "score.mrc", tmp_path / "notes", files, model)
        refused(*line, says=("notes", "File exists"), code=1)


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


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MB; calling it makes it large."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    options = ("-t", "tmpfs", "-o", "size=1m", "tmpfs", place)
    made = mount and subprocess.run([mount, *options], capture_output=True, check=False)
    if not made or made.returncode:
        pytest.skip("this user may not mount a small disk")
    yield place, lambda: subprocess.run([mount, "-o", "remount,size=64m", place], check=True)
    subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture(scope="module")
def noise(files):
    """A volume of 2.4 MB that fills the small disk, whatever is made of it."""
    path = files / "noise.mrc"
    write_mrc(path, np.random.default_rng(1).normal(size=(64, 96, 96)))
    return path


@pytest.mark.parametrize("stage", ["convert", "segment"])
def test_a_full_disk_stops_with_one_message_and_the_rest_is_made_later(
    noise, files, model, small_disk, stage
):
    place, enlarge = small_disk
    line = command(stage, noise, place, files, model, SMALL)
    outcome = as_user(*line)
    check_one_message(outcome, "o.zarr", "the disk is full", "run the same command again", code=1)
    assert [path.name for path in place.iterdir()] == ["o.zarr.partial"]
    done = sum(marks(place / "o.zarr.partial"))
    assert 0 < done < len(marks(place / "o.zarr.partial"))
    before = times_of(next((place / "o.zarr.partial").glob("*/volume.zarr")))
    enlarge()
    assert deepict(*line, *THREADS).code == 0
    after = times_of(place / "o.zarr")
    kept = [name for name, at in before.items() if "/c/" in name and after[name] == at]
    assert len(kept) >= done
    assert [path.name for path in place.iterdir()] == ["o.zarr"]


def test_a_full_disk_leaves_no_picks_and_the_same_command_makes_them_later(noise, small_disk):
    place, enlarge = small_disk
    line = ("pick", noise, place / "o", "--threshold", "1.5", "--connectivity", "6", *SMALL)
    check_one_message(as_user(*line), "the disk is full", "run the same command again", code=1)
    assert [*place.iterdir()] == []
    enlarge()
    done = deepict(*line, *THREADS)
    assert done.code == 0
    assert len(read_picks(place / "o" / "picks.csv")) == int(done.out.split()[0]) > 1000


@pytest.mark.parametrize("name", ["o.zarr", "o.mrc"])
def test_a_full_disk_leaves_no_equalized_volume(noise, files, small_disk, name):
    place, enlarge = small_disk
    line = ("equalize", noise, place / name, "--target", files / "t.tsv", *THREADS)
    check_one_message(
        deepict(*line), name, "the disk is full", "run the same command again", code=1
    )
    assert [*place.iterdir()] == []
    enlarge()
    assert deepict(*line).code == 0
    assert open_volume(place / name).header.shape == (64, 96, 96)


def interrupt(process):
    """Press Ctrl-C: the terminal sends the signal to the driver and to its workers."""
    workers = workers_of(process)
    assert workers
    os.killpg(process.pid, signal.SIGINT)
    os.killpg(process.pid, signal.SIGCONT)
    outcome = finish(process)
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive, "workers outlived their driver"
    return outcome


def test_a_segmentation_refuses_company_stops_at_ctrl_c_and_continues(
    noise, files, model, tmp_path
):
    target, partial = tmp_path / "o.zarr", tmp_path / "o.zarr.partial"
    line = command("segment", noise, tmp_path, files, model, SMALL)
    process = start(*line)
    wait_until(lambda: 1 in marks(partial), process)
    os.killpg(process.pid, signal.SIGSTOP)
    company = deepict(*line, *THREADS)
    check_one_message(company, "o.zarr", "another run making it", "wait for it to end")
    outcome = interrupt(process)
    check_one_message(outcome, "interrupted", "run the same command again", code=1)
    assert [path.name for path in tmp_path.iterdir()] == ["o.zarr.partial"]
    done = sum(marks(partial))
    assert 0 < done < len(marks(partial)), "interrupted before the end"
    before = times_of(next(partial.glob("*/volume.zarr")))
    assert deepict(*line, *THREADS).code == 0
    after = times_of(target)
    kept = [name for name, at in before.items() if "/c/" in name and after[name] == at]
    assert len(kept) >= done
    undisturbed = tmp_path / "undisturbed" / "o.zarr"
    assert deepict(*line[:2], undisturbed, *line[3:], *THREADS).code == 0
    assert files_of(target) == files_of(undisturbed)


def test_picking_stops_at_ctrl_c_and_leaves_nothing_half_done(noise, tmp_path):
    line = ("pick", noise, tmp_path / "o", "--threshold", "1.5", "--label-map", *SMALL)
    process = start(*line)
    wait_until(lambda: any((tmp_path / "o.partial").glob("*/*.zarr/0/c")), process)
    os.killpg(process.pid, signal.SIGSTOP)
    assert not (tmp_path / "o").exists()
    check_one_message(interrupt(process), "interrupted", "run the same command again", code=1)
    assert [*tmp_path.iterdir()] == []
    assert deepict(*line, *THREADS).code == 0
    undisturbed = tmp_path / "undisturbed" / "o"
    assert deepict(*line[:2], undisturbed, *line[3:], *THREADS).code == 0
    made, expected = files_of(tmp_path / "o"), files_of(undisturbed)
    assert made.pop("run.json")  # it notes the time
    assert expected.pop("run.json")
    assert made == expected


def test_of_an_interruption_before_its_time_only_our_message_is_shown(caplog):
    """A Ctrl-C between a wait of distributed and its first step is logged as an exception."""
    CliRunner().invoke(cli.app, ["doctor"])
    log = logging.getLogger("tornado.application")
    log.critical("Exception in callback functools.partial(<function sync.<locals>.cancel at 0x7f>)")
    log.critical("Exception in callback functools.partial(<function write at 0x7f>)")
    shown = [r.getMessage() for r in caplog.records if r.name == "tornado.application"]
    assert shown == ["Exception in callback functools.partial(<function write at 0x7f>)"]


def test_ctrl_c_while_workers_start_is_one_message_too(noise, tmp_path):
    process = start("pick", noise, tmp_path / "o", *SMALL)
    wait_until(lambda: workers_of(process), process)
    check_one_message(interrupt(process), "interrupted", code=1)
    assert [*tmp_path.iterdir()] == []


def test_an_output_that_another_run_is_making_is_refused(files, tmp_path, refused):
    with StagedOutput(tmp_path / "o", "0" * 64):
        line = ("pick", files / "score.mrc", tmp_path / "o", *THREADS)
        refused(*line, says=("another run making it", "give another name"))
    assert deepict(*line).code == 0


def test_a_scheduler_where_nobody_listens_is_given_up_in_time(nobody_listens):
    process, target, started = nobody_listens
    outcome = finish(process)
    says = ("tcp://127.0.0.1:1", "expected a Dask scheduler", "found none", "dask scheduler")
    check_one_message(outcome, *says)
    assert not target.exists()
    assert time.monotonic() - started < PATIENCE_S
