"""Training data that would train wrongly are refused by name."""

from __future__ import annotations

import numpy as np
import pytest
from training_scenes import BALLS, PATCH, SHAPE, config, folder, labels, numbered, replaced, write

from deepict_dask.core.errors import (
    ConfigError,
    PicksFormatError,
    ShapeMismatchError,
    SpacingError,
    VoxelValueError,
)
from deepict_dask.training.data import open_training_data

__all__ = ["folder"]

PROBLEMS = {
    "an empty class": (
        {"classes": BALLS | {"er": {"labels": "labels", "values": [9]}}},
        None, ConfigError, "class er: expected labelled voxels",
    ),
    "no patch with labels": (
        {"patches": {"shape": PATCH, "sampling": "grid", "overlap": 2, "min_label_fraction": 0.9}},
        None, ConfigError, "lower min_label_fraction",
    ),
    "an unknown column": (
        {"classes": {"fas": {"picks": "fas", "radius_voxels": 2}}},
        None, ConfigError,
        r"cells\.csv: tomogram a: class fas: expected picks to be one of labels, picks_ribosome, ",
    ),
    "a tomogram smaller than a patch": (
        {"patches": {"shape": (32, 32, 32)}},
        None, ShapeMismatchError, r"at least the \(32, 32, 32\) voxels",
    ),
    "a held-out name that is not there": (
        {"validation": {"tomograms": ["c"]}}, None, ConfigError,
        r"validation\.tomograms: expected names of .*cells\.csv \(a, b\), .*unknown: c",
    ),
    "everything held out": (
        {"validation": {"tomograms": ["a", "b"]}}, None, ConfigError, "all of them held out",
    ),
    "nothing of a tomogram held out": (
        {"validation": {"fraction": 0.001}}, None, ConfigError, "which is 0",
    ),
    "an overlap that leaves nothing": (
        {"patches": {"shape": PATCH, "sampling": "grid", "overlap": 4}},
        None, ConfigError, "overlap below half",
    ),
    "labels of another shape": (
        {}, lambda f: write(f / "b_labels.mrc", labels()[1:]),
        ShapeMismatchError, r"\(16, 40, 24\) voxels .* found \(15, 40, 24\)",
    ),
    "particles outside": (
        {}, lambda f: (f / "b.csv").write_text("3,5,3\n90,5,3\n"),
        PicksFormatError, "1 of 2 outside",
    ),
    "voxel spacings that differ": (
        {}, lambda f: write(f / "b.mrc", numbered(), 15), SpacingError, "found 15 Å",
    ),
    "a voxel that is NaN": (
        {}, lambda f: write(f / "b.mrc", np.where(numbered() == 50, np.nan, numbered())),
        VoxelValueError, r"1 of 15360 NaN or infinite, the first at zyx \(0, 2, 2\)",
    ),
    "a tomogram of one value": (
        {}, lambda f: write(f / "b.mrc", np.ones(SHAPE, np.float32)), VoxelValueError, "differ",
    ),
    "a tomogram without a list": (
        {}, lambda f: (f / "cells.csv").write_text(
            replaced((f / "cells.csv").read_text(), "b.csv", "")),
        ConfigError, "tomogram b: class ribosome: expected a file under picks_ribosome, found none",
    ),
    "a list of particles without angles for a mask": (
        {"classes": {"r": {"picks": "picks_ribosome", "shape": "mask", "mask_file": "a.mrc"}}},
        None, PicksFormatError, "rlnAngleRot",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Data array contains NaN:RuntimeWarning")
@pytest.mark.parametrize("problem", PROBLEMS)
def test_what_would_train_wrongly_is_refused_by_name(folder, problem, monkeypatch):
    changes, spoil, error, said = PROBLEMS[problem]
    monkeypatch.chdir(folder)
    if spoil:
        spoil(folder)
    with pytest.raises(error, match=said):
        open_training_data(config(folder, **changes))


def test_a_few_particles_outside_are_left_out(folder):
    rows = [f"{3 + k % 15},{5 + k % 30},{4 + k % 9}" for k in range(40)]
    (folder / "b.csv").write_text("\n".join([*rows, "90,5,3"]) + "\n")
    table = open_training_data(config(folder)).counts()
    assert table.query("tomogram == 'b' and class_name == 'ribosome'")["particles"].item() == 40
