"""Volumes, lists and tables to compare, and the command that compares them."""

import csv

import mrcfile
import numpy as np
import pytest

from deepict_dask.jobs.session import Session


@pytest.fixture
def session(two_workers):
    return Session(two_workers, chunks=(16, 16, 16))


@pytest.fixture
def volumes(tmp_path):
    """A score map, its truth and a region as files."""
    rng = np.random.default_rng(0)
    score = rng.random((20, 30, 25)).astype("float32")
    true = (rng.random(score.shape) < score * 0.5).astype("int8")
    region = (rng.random(score.shape) < 0.5).astype("int8")
    return {
        name: write(tmp_path / f"{name}.mrc", volume)
        for name, volume in (("score", score), ("true", true), ("region", region))
    }


@pytest.fixture
def lists(tmp_path):
    """Picks and true particles: two of three picks are true, two of four are found."""
    picks, true = tmp_path / "picks.csv", tmp_path / "true.csv"
    picks.write_text("score,x,y,z\n0.9,1,1,1\n0.8,50,50,50\n0.7,11,11,11\n")
    true.write_text("1,1,2\n11,11,11\n21,21,21\n31,31,31\n")
    return picks, true


def write(path, volume, spacing=10.0):
    mrcfile.write(path, volume, voxel_size=spacing, overwrite=True)
    return path


def read(path):
    return mrcfile.read(path)


def rows_of(path):
    """Read a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def table(tmp_path, lists):  # noqa: ARG001 - it makes the files
    """Three tomograms, one of which is not there."""
    good = "score,x,y,z\n0.95,1,1,1\n"
    (tmp_path / "good.csv").write_text(good)
    (tmp_path / "one.csv").write_text("1,1,1\n")
    path = tmp_path / "table.csv"
    path.write_text(
        "name,predicted,truth\nTS_1,picks.csv,true.csv\n"
        "TS_2,gone.csv,true.csv\nTS_3,good.csv,one.csv\n"
    )
    return path
