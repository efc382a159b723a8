"""The command line as users meet it: run, refused, stopped; and files to give it.

Most cases run `run_guarded` in this process, with workers that are threads, because a worker
process takes seconds to start. What needs processes (a full disk, Ctrl-C, a scheduler that is not
there) runs the installed program.
"""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import subprocess
from dataclasses import dataclass

import mrcfile
import numpy as np
import pytest
import torch
from programs import PATIENCE_S, PROGRAM, files_of

from deepict_dask import cli
from deepict_dask.models.checkpoint import save_model
from deepict_dask.models.unet3d import UNet3D, UNet3DSettings

SHAPE = (48, 64, 64)
THREADS = ("--cluster", "threads", "--no-progress")


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


@pytest.fixture(scope="module")
def noise(files):
    """A volume of 2.4 MB that fills the small disk, whatever is made of it."""
    path = files / "noise.mrc"
    write_mrc(path, np.random.default_rng(1).normal(size=(64, 96, 96)))
    return path
