"""Small tomograms with labels or particle lists, and the configs that train on them."""

import mrcfile
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from deepict_dask.cli import app

EDGE = 32


def write_mrc(path, voxels, spacing=10.0):
    with mrcfile.new(path, voxels) as file:
        file.voxel_size = spacing


def write_cell(folder, name, seed):
    """Write a tomogram with bright cubes, the label volume and the particle list of them."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((EDGE,) * 3, np.int8)
    centres = rng.integers(4, EDGE - 4, (8, 3))
    for z, y, x in centres:
        labels[z - 3 : z + 3, y - 3 : y + 3, x - 3 : x + 3] = 1
    tomogram = rng.normal(size=labels.shape) + 2 * labels
    write_mrc(folder / f"{name}.mrc", tomogram.astype(np.float32))
    write_mrc(folder / f"{name}_labels.mrc", labels)
    lines = ["x,y,z", *(f"{x},{y},{z}" for z, y, x in centres)]
    (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def cells(tmp_path):
    for seed, name in enumerate(("one", "two")):
        write_cell(tmp_path, name, seed)
    rows = [f"{n},{n}.mrc,{n}_labels.mrc,{n}.csv" for n in ("one", "two")]
    (tmp_path / "cells.csv").write_text("\n".join(["name,tomogram,mask,list", *rows]) + "\n")
    return tmp_path


def write_config(folder, **changes):
    values = {
        "tomograms": "cells.csv",
        "output": "model",
        "network": {"depth": 1, "initial_features": 2},
        "classes": {"cube": {"labels": "mask"}},
        "patches": {"shape": [16, 16, 16]},
        "optimizer": {"epochs": 2, "steps_per_epoch": 3, "batch_size": 2, "learning_rate": 0.01},
        "validation": {"tomograms": ["two"]},
        "cluster": {"device": "cpu", "workers": 1},
    }
    (folder / "train.yaml").write_text(yaml.safe_dump(values | changes))
    return folder / "train.yaml"


def command(*words):
    return CliRunner().invoke(app, ["train", *map(str, words)], catch_exceptions=True)
