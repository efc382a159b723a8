"""Configs, options, targets and schedulers that cannot be meant: one message, an exit code."""

from __future__ import annotations

import pytest
import torch
import yaml
from command_scenes import (
    THREADS,
    check_one_message,
    command,
    deepict,
    files,
    finish,
    model,
    refused,
    start,
)

__all__ = ["files", "model", "refused"]


@pytest.fixture(scope="module", autouse=True)
def nobody_listens(files):
    """A command that looks for a scheduler where there is none; it waits while others run."""
    where = files / "picks_of_nobody"
    process = start("pick", files / "score.mrc", where, "--cluster", "tcp://127.0.0.1:1")
    yield process, where
    process.kill()
    process.communicate()


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
    "contact with nothing": (
        {"pick": [{"contact_mode": "contact"}]},
        ("pick: contact_mode", "expected a region with it, found contact alone"),
    ),
    "a distance for nothing": (
        {"pick": [{"contact_distance": 25}]},
        ("pick: contact_distance", "colocalization", "found intersection without a region"),
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
        (["--contact-distance", "25"], ("--contact-distance", "colocalization", "others")),
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


def test_a_scheduler_where_nobody_listens_is_given_up_in_time(nobody_listens):
    process, target = nobody_listens
    outcome = finish(process)  # which waits for a limited time
    says = ("tcp://127.0.0.1:1", "expected a Dask scheduler", "found none", "dask scheduler")
    check_one_message(outcome, *says)
    assert not target.exists()
