"""Where the tests of device code compute: NumPy, a strict stand-in for CuPy, a GPU.

The place "stand-in" runs everywhere and shows every silent trip to the host; "cuda" needs a GPU and
says why it was skipped without one.
"""

import numpy as np
import pytest

from deepict_dask.backend import Device, resolve_device, to_device
from deepict_dask.core.errors import DeviceError

GPU = Device("cuda")
SHAPE = (9, 14, 11)


@pytest.fixture(params=["stand-in", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request):
    """Make ``Device("cuda")`` work: as the stand-in, or as what it is."""
    if request.param == "stand-in":
        request.getfixturevalue("stand_in")
        return "stand-in"
    try:
        resolve_device("cuda")
    except DeviceError as error:
        pytest.skip(str(error))
    return "cuda"


def on(array):
    return to_device(array, GPU)


def noise(shape=SHAPE, seed=0, dtype="float32"):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def blobs(shape=SHAPE, seed=0):
    """Scores 0..1 with some voxels in clumps of all sizes."""
    return np.random.default_rng(seed).random(shape, np.float32) ** 2


class Written:
    """A writer that keeps what it was given."""

    path, write_shape = "memory", SHAPE

    def __init__(self, shape=SHAPE):
        self.voxels = np.full(shape, 9, np.uint8)

    def write(self, box, voxels):
        assert isinstance(voxels, np.ndarray)
        self.voxels[box.slices] = voxels


def same_node(found, expected):
    """Two nodes of one box, whose labels may be numbered differently on the way."""
    assert found.box == expected.box
    assert found.n_finished == expected.n_finished
    assert found.open_rows.tobytes() == expected.open_rows.tobytes()
    by_name = [
        np.take(node.kept, np.argsort(node.kept["first_voxel"])) for node in (found, expected)
    ]
    assert by_name[0].tobytes() == by_name[1].tobytes()
    assert found.faces.keys() == expected.faces.keys()
    for key, face in found.faces.items():
        np.testing.assert_array_equal(face, expected.faces[key])
