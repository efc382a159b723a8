"""What the tests of particle lists share."""

from pathlib import Path

import numpy as np
import pytest

from deepict_dask.io.picks_table import make_picks

SHARED = Path(__file__).parents[1].parent / "shared"
DATA = SHARED / "data"
SHAPE = (101, 200, 301)
FRAME = {
    "voxel_spacing_angstrom": 13.48,
    "tomogram_shape": SHAPE,
    "tomogram_name": "TS_01",
    "tilt_series_pixel_size_angstrom": 3.37,
}


def shared(path):
    if not path.exists():
        pytest.skip(f"{path} is absent")
    return path


def zyx(picks):
    return picks[["z", "y", "x"]].to_numpy()


def particle():
    return make_picks([[5.25, 88.5, 9.125]], [0.75])


def star(path, columns, block="particles"):
    """Write a STAR file of one block of columns."""
    header = "".join(f"_{name} #{i}\n" for i, name in enumerate(columns, 1))
    rows = "".join(" ".join(map(str, row)) + "\n" for row in zip(*columns.values(), strict=True))
    path.write_text(f"data_{block}\n\nloop_\n{header}{rows}\n")
    return path


def turned_alike(some, other, atol=1e-4):
    """Say whether two lists of rot, tilt, psi are the same rotations, column by column of R."""
    from deepict_dask.io.orientation import matrices_from_angles

    np.testing.assert_allclose(matrices_from_angles(some), matrices_from_angles(other), atol=atol)
    return True
