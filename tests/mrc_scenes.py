"""Voxels of every mode and boxes of them, for the tests of MRC files."""

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from deepict_dask.core.geometry import Box

MODES = {0: "int8", 1: "int16", 2: "float32", 6: "uint16", 12: "float16"}
same_folder = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def voxels(shape, dtype, seed=0):
    numbers = np.random.default_rng(seed).integers(0, 100, shape)
    return (numbers - (50 if np.dtype(dtype).kind in "if" else 0)).astype(dtype)


@st.composite
def shape_and_box(draw):
    shape = tuple(draw(st.integers(1, 12)) for _ in range(3))
    ends = [sorted(draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in shape]
    return shape, Box(tuple(a for a, _ in ends), tuple(b for _, b in ends))
