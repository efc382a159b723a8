"""A folder of numbered tomograms with labels and lists, whose batches can be known."""

from __future__ import annotations

import mrcfile
import numpy as np
import pytest

from deepict_dask.config.training import TrainConfig
from deepict_dask.training.targets import sphere_target

SHAPE = (16, 40, 24)
PATCH = (8, 8, 8)
CENTRES = np.array([[3, 5, 6], [8, 20, 12], [12, 35, 18], [4, 30, 6]])
BALLS = {"ribosome": {"picks": "picks_ribosome", "radius_voxels": 2.5}}
MEMBRANE = {"membrane": {"labels": "labels", "values": [3]}}


def write(path, voxels, spacing=13.5):
    mrcfile.write(path, voxels, voxel_size=spacing, overwrite=True)


def numbered():
    """Return a tomogram of which each voxel says where it is."""
    return np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)


def replaced(text, old, new):
    assert old in text
    return text.replace(old, new)


def labels():
    found = np.zeros(SHAPE, np.int8)
    found[2:12, 10:13, :] = 3
    found[:, :, 20] = 1
    return found


@pytest.fixture
def folder(tmp_path):
    """Two tomograms with particles and labels, and a table of them."""
    for name in "ab":
        write(tmp_path / f"{name}.mrc", numbered())
        write(tmp_path / f"{name}_labels.mrc", labels())
        rows = "\n".join(f"{x},{y},{z}" for z, y, x in CENTRES)
        (tmp_path / f"{name}.csv").write_text(f"{rows}\n")
    lines = [f"{n},{n}.mrc,{n}_labels.mrc,{n}.csv" for n in "ab"]
    (tmp_path / "cells.csv").write_text(
        "\n".join(["name,tomogram,labels,picks_ribosome", *lines]) + "\n"
    )
    return tmp_path


def config(folder, **changes):
    settings = {
        "tomograms": folder / "cells.csv",
        "output": folder / "model",
        "classes": BALLS | MEMBRANE,
        "patches": {"shape": PATCH},
        "augment": {"flips": False},
    }
    return TrainConfig.model_validate({**settings, **changes})


def truth():
    balls = sphere_target(CENTRES, SHAPE, 2.5)
    return np.stack([balls, (labels() == 3).astype(np.uint8)])
