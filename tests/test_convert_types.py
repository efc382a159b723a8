"""A conversion changes a voxel's type, never its value behind the user's back."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

from deepict_dask.core.errors import VolumeFormatError, VoxelValueError
from deepict_dask.core.geometry import Box, Grid
from deepict_dask.io.volumes import open_volume
from deepict_dask.jobs.convert import CopyOp, convert_volume
from deepict_dask.jobs.session import Session


@pytest.mark.parametrize(
    ("values", "stored", "wanted"),
    [
        ([0, 300], "int16", "uint8"), ([0, -5], "int16", "uint8"), ([0, 70000], "int32", "uint16"),
        ([0, 7e4], "float32", "float16"), ([0, 2**24 + 1], "int32", "float32"),
    ],
)  # fmt: skip
def test_values_that_do_not_fit_a_type_are_refused(values, stored, wanted):
    window = np.array([[values]], stored)
    (block,) = Grid((1, 1, 2), (1, 1, 2))
    with pytest.raises(VoxelValueError, match=f"voxels .* do not fit {wanted}"):
        CopyOp(wanted, source_dtype=stored).apply(block, window)


@pytest.mark.parametrize(
    ("values", "stored", "wanted"),
    [
        ([0, 255], "int16", "uint8"), ([1.5, np.nan], "float32", "float16"),
        ([0, 300], "int16", "bool"), ([0.1, -1e30], "float64", "float32"),
    ],
)  # fmt: skip
def test_values_that_fit_are_converted(values, stored, wanted):
    window = np.array([[values]], stored)
    (block,) = Grid((1, 1, 2), (1, 1, 2))
    found = CopyOp(wanted, source_dtype=stored).apply(block, window)
    assert found.dtype.name == wanted
    np.testing.assert_array_equal(found, window.astype(wanted))


def test_a_store_without_its_empty_chunks_is_converted_where_that_is_said(one_worker, tmp_path):
    voxels = np.zeros((8, 4, 4), np.float32)
    voxels[4:] = 1
    array = zarr.create_array(
        tmp_path / "f.zarr", shape=voxels.shape, dtype="float32", chunks=(4, 4, 4)
    )
    array[:] = voxels
    session = Session(one_worker, voxel_spacing_angstrom=10.0)
    with pytest.raises(VolumeFormatError, match="--allow-missing-chunks"):
        convert_volume(session, tmp_path / "f.zarr", tmp_path / "a.zarr")
    convert_volume(session, tmp_path / "f.zarr", tmp_path / "b.zarr", allow_missing_chunks=True)
    found = open_volume(tmp_path / "b.zarr").read(Box.whole(voxels.shape))
    np.testing.assert_array_equal(found, voxels)
