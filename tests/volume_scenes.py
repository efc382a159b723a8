"""Small volumes and real files, for the tests of volumes by their path."""

from pathlib import Path

import numpy as np
import pytest

from deepict_dask.core.geometry import Box

DATA = Path(__file__).parents[1].parent / "shared" / "data"


@pytest.fixture
def real():
    """Give the folder of real files."""
    if not DATA.is_dir():
        pytest.skip("../shared/data is absent")
    return DATA


def voxels(shape, dtype="float32"):
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


def whole(reader):
    return reader.read(Box.whole(reader.header.shape))
