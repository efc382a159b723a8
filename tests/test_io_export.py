"""Volumes written to any format come back; what cannot be written is refused."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from volume_scenes import voxels, whole

from deepict_dask.core.errors import (
    OutputExistsError,
    ShapeMismatchError,
    VolumeFormatError,
    VoxelValueError,
)
from deepict_dask.core.geometry import Box
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.io.array import ArrayReader
from deepict_dask.io.export import boxes_of
from deepict_dask.io.ome_zarr import create_ome_zarr
from deepict_dask.io.volumes import create_volume, export_volume, open_volume

same_folder = settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def source(tmp_path, kind, array, spacing=13.48):
    """Return a reader of an array, in memory or from a chunked store."""
    if kind == "array":
        return ArrayReader(array, spacing)
    path = tmp_path / "source.zarr"
    export_volume(ArrayReader(array, spacing), path, chunks=(3, 4, 5), overwrite=True)
    return open_volume(path, spacing_required=False)


@pytest.mark.parametrize("kind", ["array", "zarr"])
@pytest.mark.parametrize("ending", [".mrc", ".zarr", ".tif", ".em"])
@pytest.mark.parametrize("dtype", ["float32", "int8", "int16", "uint8", "bool", "int64"])
@same_folder
@given(shape=st.tuples(*[st.integers(1, 9)] * 3), slab_bytes=st.sampled_from([1, 64, 300, 1 << 20]))
def test_an_exported_volume_comes_back_whatever_the_slab(
    tmp_path, kind, ending, dtype, shape, slab_bytes
):
    if (ending, dtype) == (".em", "int64"):
        return
    array = voxels(shape, "uint8").astype(dtype)
    path = tmp_path / f"out{ending}"
    written = export_volume(
        source(tmp_path, kind, array), path, overwrite=True, slab_bytes=slab_bytes
    )
    reader = open_volume(path, spacing_required=False)
    np.testing.assert_array_equal(whole(reader), array)
    assert reader.header.dtype == written.dtype
    if ending != ".em":
        assert reader.header.voxel_spacing_angstrom == 13.48


def test_int64_voxels_do_not_fit_em(tmp_path):
    with pytest.raises(VoxelValueError, match="em cannot hold int64"):
        export_volume(ArrayReader(voxels((2, 2, 2), "int64")), tmp_path / "a.em")


@given(
    shape=st.tuples(*[st.integers(1, 20)] * 3),
    grain=st.tuples(*[st.integers(1, 8)] * 3),
    box_bytes=st.integers(1, 5000),
)
def test_boxes_tile_the_volume_once_in_whole_grains_within_the_bytes(shape, grain, box_bytes):
    count = np.zeros(shape, int)
    for box in boxes_of(VolumeHeader(shape, "int16"), grain, box_bytes):
        count[box.slices] += 1
        assert 2 * box.n_voxels <= max(box_bytes, 2 * int(np.prod(grain)))
        assert all(a % g == 0 for a, g in zip(box.start, grain, strict=True))
    assert (count == 1).all()


def test_labels_too_large_for_mrc_are_refused_and_nothing_is_left(tmp_path):
    labels = np.full((2, 2, 2), 2**24 + 1)
    with pytest.raises(VoxelValueError, match=r"write \.zarr"):
        export_volume(ArrayReader(labels), tmp_path / "a.mrc")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", [".mrc", ".zarr", ".tif", ".em"])
def test_a_failed_export_leaves_the_old_output_and_no_partial_one(tmp_path, ending):
    path = tmp_path / f"out{ending}"
    old = voxels((2, 3, 4), "int8")
    export_volume(ArrayReader(old, 10.0), path)
    before = sorted(file.name for file in tmp_path.iterdir())

    class Broken(ArrayReader):
        def read(self, _box):
            raise VolumeFormatError("the source broke")

    with pytest.raises(VolumeFormatError, match="the source broke"):
        export_volume(Broken(old), path, overwrite=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == before
    np.testing.assert_array_equal(whole(open_volume(path, spacing_required=False)), old)


@pytest.mark.parametrize("ending", [".mrc", ".zarr", ".tif", ".em"])
def test_an_existing_output_is_replaced_only_when_told(tmp_path, ending):
    path = tmp_path / f"out{ending}"
    export_volume(ArrayReader(voxels((2, 3, 4), "int8")), path)
    other = voxels((3, 3, 3), "int16")
    with pytest.raises(OutputExistsError):
        export_volume(ArrayReader(other), path)
    export_volume(ArrayReader(other), path, overwrite=True)
    np.testing.assert_array_equal(whole(open_volume(path, spacing_required=False)), other)


def test_a_folder_that_is_no_store_is_never_replaced(tmp_path):
    (tmp_path / "out.zarr").mkdir()
    (tmp_path / "out.zarr" / "thesis.tex").write_text("words")
    with pytest.raises(OutputExistsError, match="is a folder"):
        export_volume(ArrayReader(voxels((2, 2, 2))), tmp_path / "out.zarr", overwrite=True)
    assert (tmp_path / "out.zarr" / "thesis.tex").read_text() == "words"


@pytest.mark.parametrize("name", ["out.mrc.gz", "out.hdf", "out"])
def test_endings_that_cannot_be_written_are_refused(tmp_path, name):
    with pytest.raises(VolumeFormatError, match="no volume can be written"):
        export_volume(ArrayReader(voxels((2, 2, 2))), tmp_path / name)
    with pytest.raises(VolumeFormatError, match="no volume can be written"):
        create_volume(tmp_path / name, VolumeHeader((2, 2, 2), "int8"))
    assert list(tmp_path.iterdir()) == []


def test_all_classes_are_exported_to_zarr_and_refused_elsewhere(tmp_path):
    header = VolumeHeader((4, 4, 4), "float32", 10.0, class_names=("ribosome", "fas"))
    array = voxels((2, 4, 4, 4))
    create_ome_zarr(tmp_path / "a.zarr", header).write(Box.whole((4, 4, 4)), array)
    reader = open_volume(tmp_path / "a.zarr")
    export_volume(reader, tmp_path / "b.zarr", chunks=(2, 2, 2))
    copy = open_volume(tmp_path / "b.zarr")
    assert copy.header == reader.header
    np.testing.assert_array_equal(copy.read_channels(Box.whole((4, 4, 4))), array)
    with pytest.raises(VoxelValueError, match="holds one volume"):
        export_volume(reader, tmp_path / "b.mrc")


@pytest.mark.parametrize("ending", [".mrc", ".zarr", ".tif", ".em"])
def test_a_created_volume_is_written_box_by_box(tmp_path, ending):
    array = voxels((4, 5, 6))
    path = tmp_path / f"a{ending}"
    writer = create_volume(path, VolumeHeader((4, 5, 6), "float32", 10.0), chunks=(2, 5, 6))
    for z in (2, 0):
        box = Box((z, 0, 0), (z + 2, 5, 6))
        writer.write(box, array[box.slices])
    writer.finish()
    np.testing.assert_array_equal(whole(open_volume(path, spacing_required=False)), array)


def test_an_array_reader_gives_copies_and_refuses_two_axes():
    array = voxels((2, 3, 4)).astype(">f4")
    reader = ArrayReader(array)
    box = reader.read(Box.whole((2, 3, 4)))
    box[...] = -1
    assert array.min() >= 0
    assert reader.header.dtype == "float32"
    with pytest.raises(ShapeMismatchError, match="three axes"):
        ArrayReader(np.zeros((2, 2)))
    with pytest.raises(ShapeMismatchError, match="leaves the volume"):
        reader.read(Box((0, 0, 0), (2, 3, 5)))
