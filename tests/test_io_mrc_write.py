"""MRC files that we write: mrcfile reads what was given, and no half file has the name."""

import pickle
import shutil

import mrcfile
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mrc_scenes import MODES, same_folder, shape_and_box, voxels

from deepict_dask.core.errors import (
    OutputExistsError,
    ShapeMismatchError,
    VoxelValueError,
    WorkFailedError,
)
from deepict_dask.core.geometry import Box
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.io.mrc_write import create_mrc, mrc_dtype


@pytest.mark.parametrize("dtype", MODES.values())
@same_folder
@given(drawn=shape_and_box(), data=st.data())
def test_a_file_written_in_boxes_is_valid_and_equal(tmp_path, dtype, drawn, data):
    shape, _ = drawn
    array = voxels(shape, dtype)
    header = VolumeHeader(shape, dtype, 13.48, (1.0, 2.0, 3.0))
    writer = create_mrc(tmp_path / "out.mrc", header, overwrite=True)
    axis = data.draw(st.integers(0, 2))
    cut = data.draw(st.integers(0, shape[axis]))
    for low, high in ((0, cut), (cut, shape[axis])):
        start, stop = [0, 0, 0], list(shape)
        start[axis], stop[axis] = low, high
        box = Box(tuple(start), tuple(stop))
        pickle.loads(pickle.dumps(writer)).write(box, array[box.slices])
    writer.finish()
    if dtype != "float16":  # its own rms overflows in float16
        assert mrcfile.validate(tmp_path / "out.mrc")
    with mrcfile.open(tmp_path / "out.mrc") as file:
        np.testing.assert_array_equal(file.data, array)
        assert file.voxel_size.tolist() == pytest.approx((13.48,) * 3)
        assert file.header.origin.tolist() == (3.0, 2.0, 1.0)
        assert file.header.dmean == pytest.approx(array.mean(dtype="f8"), abs=1e-5)
        assert file.header.rms == pytest.approx(array.std(dtype="f8"), abs=1e-5)


def test_nothing_has_the_final_name_until_finished(tmp_path):
    writer = create_mrc(tmp_path / "out.mrc", VolumeHeader((2, 2, 2), "int8"))
    writer.write(Box.whole((2, 2, 2)), np.ones((2, 2, 2), "int8"))
    assert [file.name for file in tmp_path.iterdir()] == ["out.mrc.partial"]
    writer.finish()
    assert [file.name for file in tmp_path.iterdir()] == ["out.mrc"]


def test_an_existing_output_is_kept_unless_told_otherwise(tmp_path):
    (tmp_path / "out.mrc").write_text("mine")
    with pytest.raises(OutputExistsError):
        create_mrc(tmp_path / "out.mrc", VolumeHeader((2, 2, 2), "int8"))
    assert (tmp_path / "out.mrc").read_text() == "mine"


def test_equal_volumes_give_equal_bytes(tmp_path):
    for name in ("a.mrc", "b.mrc"):
        writer = create_mrc(tmp_path / name, VolumeHeader((3, 3, 3), "float32", 5.0))
        writer.write(Box.whole((3, 3, 3)), voxels((3, 3, 3), "float32"))
        writer.finish()
    assert (tmp_path / "a.mrc").read_bytes() == (tmp_path / "b.mrc").read_bytes()


@pytest.mark.parametrize(
    ("dtype", "low", "high", "stored"),
    [
        ("bool", 0, 1, "int8"),
        ("uint8", 0, 1, "int8"),
        ("uint8", 0, 255, "uint16"),
        ("int32", 0, 127, "int8"),
        ("int32", 0, 128, "int16"),
        ("int64", 0, 32768, "uint16"),
        ("int64", -1, 32768, "float32"),
        ("uint32", 0, 2**24, "float32"),
        ("float64", -1.5, 1e9, "float32"),
    ],
)
def test_types_without_a_mode_go_to_the_smallest_that_holds_them(dtype, low, high, stored):
    assert mrc_dtype(dtype, low, high) == stored


@pytest.mark.parametrize("arguments", [("int64", 0, 2**24 + 1), ("int32",), ("complex64", 0, 1)])
def test_numbers_no_mode_holds_are_refused(arguments):
    with pytest.raises(VoxelValueError, match=r"write \.zarr"):
        mrc_dtype(*arguments)


def test_values_that_would_wrap_round_are_refused(tmp_path):
    writer = create_mrc(tmp_path / "out.mrc", VolumeHeader((1, 1, 2), "int8"))
    box = Box.whole((1, 1, 2))
    for bad in ([0, 200], [0.5, 1.0], [0.0, np.nan]):
        with pytest.raises(VoxelValueError, match="do not fit int8"):
            writer.write(box, np.array([[bad]]))
    with pytest.raises(ShapeMismatchError):
        writer.write(box, np.zeros((1, 2, 1), "int8"))


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    usage = shutil._ntuple_diskusage(10, 10, 5)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(WorkFailedError, match="5 are free"):
        create_mrc(tmp_path / "out.mrc", VolumeHeader((2, 2, 2), "int8"))
    assert list(tmp_path.iterdir()) == []
