"""Any volume by its path: what is opened, what is refused with which words, what is exported."""

import bz2
import gzip
import json
import logging
import os
import pickle
from pathlib import Path

import emfile
import mrcfile
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepict_dask.core.errors import (
    OutputExistsError,
    ShapeMismatchError,
    SpacingError,
    VolumeFormatError,
    VoxelValueError,
)
from deepict_dask.core.geometry import Box
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.io.array import ArrayReader
from deepict_dask.io.em import open_em
from deepict_dask.io.endings import ENDINGS
from deepict_dask.io.export import boxes_of
from deepict_dask.io.ome_zarr import create_ome_zarr
from deepict_dask.io.tiff import open_tiff
from deepict_dask.io.volumes import (
    create_volume,
    describe,
    export_volume,
    is_volume_path,
    open_volume,
)

DATA = Path(__file__).parents[1].parent / "shared" / "data"
same_folder = settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def real():
    """Give the folder of real files."""
    if not DATA.is_dir():
        pytest.skip("../shared/data is absent")
    return DATA


def voxels(shape, dtype="float32"):
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


def tomogram(path, shape=(4, 5, 6), dtype="float32", spacing=13.48):
    array = voxels(shape, dtype)
    mrcfile.write(path, array, voxel_size=spacing)
    return array


def whole(reader):
    return reader.read(Box.whole(reader.header.shape))


@pytest.mark.parametrize("ending", ENDINGS["mrc"])
@pytest.mark.parametrize("pack", [None, gzip.compress, bz2.compress])
def test_every_mrc_ending_opens_plain_and_packed(tmp_path, ending, pack):
    array = tomogram(tmp_path / "plain.mrc")
    content = (tmp_path / "plain.mrc").read_bytes()
    suffix = {None: "", gzip.compress: ".gz", bz2.compress: ".bz2"}[pack]
    path = tmp_path / f"tomo{ending.upper()}{suffix}"
    path.write_bytes(pack(content) if pack else content)
    reader = open_volume(path, scratch=tmp_path / "scratch")
    assert reader.path == str(path)
    assert is_volume_path(path)
    np.testing.assert_array_equal(whole(reader), array)


def test_a_packed_file_without_the_ending_is_opened_by_its_content(tmp_path):
    array = tomogram(tmp_path / "a.mrc")
    (tmp_path / "b.mrc").write_bytes(gzip.compress((tmp_path / "a.mrc").read_bytes()))
    np.testing.assert_array_equal(whole(open_volume(tmp_path / "b.mrc", scratch=tmp_path)), array)


def test_a_tiff_called_mrc_is_read_and_said_to_be_odd(tmp_path):
    tifffile.imwrite(tmp_path / "a.mrc", voxels((3, 4, 5), "uint8"), photometric="minisblack")
    description = describe(tmp_path / "a.mrc")
    assert description.format == "TIFF"
    assert "the name does not say that the file is TIFF" in description.oddities


def test_an_mrc_file_without_ending_is_opened(tmp_path):
    array = tomogram(tmp_path / "a.mrc")
    (tmp_path / "a.mrc").rename(tmp_path / "tomogram")
    np.testing.assert_array_equal(whole(open_volume(tmp_path / "tomogram")), array)


def test_unequal_spacing_is_refused_with_the_way_out(tmp_path):
    path = tmp_path / "tomo_07.mrc"
    tomogram(path, spacing=(13.48, 13.48, 13.52))
    with pytest.raises(SpacingError) as error:
        open_volume(path)
    assert str(error.value) == (
        f"{path}: voxel spacing differs per axis (13.52, 13.48, 13.48 Å, zyx); "
        "pass --voxel-spacing-angstrom to override"
    )
    assert open_volume(path, spacing_required=False).header.voxel_spacing_angstrom is None
    given_by_user = open_volume(path, voxel_spacing_angstrom=13.48)
    assert given_by_user.header.voxel_spacing_angstrom == 13.48


def test_missing_spacing_is_refused_unless_given(tmp_path):
    tomogram(tmp_path / "a.mrc", spacing=0)
    with pytest.raises(SpacingError, match="gives no voxel spacing"):
        open_volume(tmp_path / "a.mrc")
    reader = open_volume(tmp_path / "a.mrc", voxel_spacing_angstrom=10)
    assert reader.header.voxel_spacing_angstrom == 10.0
    assert pickle.loads(pickle.dumps(reader)) == reader


@pytest.mark.parametrize("spacing", [0, -1.0, float("nan"), float("inf")])
def test_a_given_spacing_must_be_positive(tmp_path, spacing):
    tomogram(tmp_path / "a.mrc")
    with pytest.raises(SpacingError, match="must be positive"):
        open_volume(tmp_path / "a.mrc", voxel_spacing_angstrom=spacing)


@pytest.mark.parametrize(("spacing", "warned"), [(13.48, 0), (1.0, 1)])
def test_a_placeholder_spacing_is_warned_about_unless_overridden(tmp_path, caplog, spacing, warned):
    tomogram(tmp_path / "a.mrc", spacing=spacing)
    with caplog.at_level(logging.WARNING, "deepict_dask"):
        open_volume(tmp_path / "a.mrc")
        assert len(caplog.records) == warned
        open_volume(tmp_path / "a.mrc", voxel_spacing_angstrom=spacing * 1.001)
    assert len(caplog.records) == warned


def test_a_spacing_that_contradicts_the_file_is_used_and_warned_about(tmp_path, caplog):
    tomogram(tmp_path / "a.mrc", spacing=13.48)
    with caplog.at_level(logging.WARNING, "deepict_dask"):
        reader = open_volume(tmp_path / "a.mrc", voxel_spacing_angstrom=8.0)
    assert reader.header.voxel_spacing_angstrom == 8.0
    assert "the file says 13.48 Å per voxel, 8 Å is used" in caplog.text


def test_a_header_of_one_interval_in_z_is_repaired_and_warned_about(real, tmp_path, caplog):
    path = real / "mrc" / "mito_labels_960x928x312.mrc.gz"
    reader = open_volume(path, scratch=tmp_path)
    assert reader.header.voxel_spacing_angstrom == 12.44
    assert "mz = 1" in caplog.text


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("none.mrc", lambda _: None, "no such file"),
        ("dead.mrc", lambda path: path.symlink_to("nowhere"), "a link to nothing"),
        ("folder.mrc", Path.mkdir, "folder without Zarr metadata"),
        ("._tomo.mrc", lambda path: path.write_bytes(b"\0" * 178), "use tomo.mrc"),
        ("a.gz", lambda path: path.write_bytes(b"plain"), "expected a compressed file"),
        ("a.mrc.gz", lambda path: path.write_bytes(b""), "expected a compressed file"),
        ("a.hdf", lambda path: path.write_bytes(b"\x89HDF\r\n"), "HDF5"),
        ("a.mrc", lambda path: path.write_bytes(b"\x89HDF\r\n"), "HDF5"),
        ("a.dat", lambda path: path.write_bytes(b"\1\2\3"), "no format is known"),
        ("a.tif", lambda path: path.write_bytes(b"\1\2\3"), "no format is known"),
        ("a.tif", lambda path: path.write_bytes(b"II*\0\1\2\3"), "cannot be read as TIFF"),
        ("a.em", lambda path: path.write_bytes(b"\6\0\0\5"), "512 bytes"),
    ],
)
@pytest.mark.parametrize("function", [open_volume, describe])
def test_what_cannot_be_opened_says_why(tmp_path, name, make, words, function):
    make(tmp_path / name)
    with pytest.raises(VolumeFormatError, match=words):
        function(tmp_path / name)


def test_a_file_that_may_not_be_read_says_so(tmp_path, monkeypatch):
    tomogram(tmp_path / "a.mrc")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(VolumeFormatError, match="permission denied"):
        open_volume(tmp_path / "a.mrc")


def test_a_class_of_a_score_map_is_opened_by_name(tmp_path):
    header = VolumeHeader((4, 4, 4), "float32", 10.0, class_names=("ribosome", "fas"))
    array = voxels((2, 4, 4, 4))
    create_ome_zarr(tmp_path / "a.zarr", header).write(Box.whole((4, 4, 4)), array)
    reader = open_volume(tmp_path / "a.zarr", class_name="fas")
    np.testing.assert_array_equal(whole(reader), array[1])
    tomogram(tmp_path / "a.mrc")
    with pytest.raises(VolumeFormatError, match="have no classes"):
        open_volume(tmp_path / "a.mrc", class_name="fas")


def test_missing_chunks_of_a_mask_are_warned_about(tmp_path, caplog):
    zarr.create_array(tmp_path / "mask.zarr", data=np.zeros((8, 4, 4), "uint8"), chunks=(4, 4, 4))
    open_volume(tmp_path / "mask.zarr", spacing_required=False)
    assert "2 of 2 chunk files are missing; they read as empty" in caplog.text


def test_a_description_is_json_even_with_infinite_numbers(real):
    description = describe(real / "mrc" / "mrc2D.mrc")
    loaded = json.loads(json.dumps(description.as_dict(), allow_nan=False))
    assert loaded["spacing_as_written"][0] is None
    assert loaded["voxel_spacing_angstrom"] == 23.2
    assert loaded["stored_as"] == "mode 0, little-endian"


def test_is_volume_path_knows_zarr_folders_by_their_content(tmp_path):
    assert not is_volume_path(tmp_path)
    zarr.create_group(tmp_path / "a.zarr")
    assert is_volume_path(tmp_path / "a.zarr")


# --- .em ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "float32", "float64"])
def test_an_em_file_reads_like_emfile_in_both_byte_orders(tmp_path, dtype):
    array = voxels((3, 4, 5), dtype)
    emfile.write(str(tmp_path / "a.em"), array)
    content = (tmp_path / "a.em").read_bytes()
    size = np.frombuffer(content, "<i4", 3, 4).astype(">i4").tobytes()
    big = (
        bytes([5])
        + content[1:4]
        + size
        + content[16:512]
        + array.astype(array.dtype.newbyteorder(">")).tobytes()
    )
    (tmp_path / "b.em").write_bytes(big)
    for name in ("a.em", "b.em"):
        np.testing.assert_array_equal(whole(open_em(tmp_path / name)[1]), array)


def test_real_em_files_read_like_emfile(real):
    path = real / "other" / "ribosome_subtomogram_t126.em"
    _, expected = emfile.read(str(path))
    np.testing.assert_array_equal(whole(open_em(path)[1]), expected)
    motive_list, _ = open_em(real / "other" / "motl_ribosome_t126.em")
    assert "motive list" in motive_list.oddities[0]


def test_a_truncated_em_file_is_refused_with_both_sizes(tmp_path):
    emfile.write(str(tmp_path / "a.em"), voxels((3, 4, 5)))
    os.truncate(tmp_path / "a.em", 700)
    with pytest.raises(VolumeFormatError, match="752 bytes, the file has 700"):
        open_em(tmp_path / "a.em")


# --- TIFF --------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "uint16"])
@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 4, 5), (4, 5)])
def test_a_tiff_stack_reads_like_tifffile(tmp_path, compression, dtype, shape):
    array = voxels(shape, dtype)
    tifffile.imwrite(tmp_path / "a.tif", array, compression=compression, photometric="minisblack")
    reader = open_tiff(tmp_path / "a.tif")[1]
    volume = array.reshape((-1, 4, 5))
    box = Box((0, 1, 2), (min(2, len(volume)), 4, 4))
    np.testing.assert_array_equal(reader.read(box), volume[box.slices])
    np.testing.assert_array_equal(whole(pickle.loads(pickle.dumps(reader))), volume)


def test_real_tiff_stacks_read_like_tifffile(real):
    for path in sorted((real / "pairs").glob("*.tif")):
        np.testing.assert_array_equal(whole(open_tiff(path)[1]), tifffile.imread(path))


def test_imagej_and_ome_spacings_are_read(tmp_path):
    array = voxels((3, 4, 5), "uint8")
    tifffile.imwrite(
        tmp_path / "ij.tif",
        array,
        imagej=True,
        resolution=(1 / 1.348, 1 / 1.348),
        metadata={"axes": "ZYX", "spacing": 1.348, "unit": "nm"},
    )
    sizes = {f"PhysicalSize{axis}": 0.001348 for axis in "XYZ"}
    tifffile.imwrite(tmp_path / "o.ome.tif", array, metadata={"axes": "ZYX", **sizes})
    for name in ("ij.tif", "o.ome.tif"):
        assert open_volume(tmp_path / name).header.voxel_spacing_angstrom == 13.48


def test_colour_images_and_truncated_stacks_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "rgb.tif", voxels((4, 5, 3), "uint8"), photometric="rgb")
    with pytest.raises(VolumeFormatError, match="grey-level stack"):
        open_tiff(tmp_path / "rgb.tif")
    tifffile.imwrite(tmp_path / "a.tif", voxels((9, 64, 64)), photometric="minisblack")
    os.truncate(tmp_path / "a.tif", 70_000)
    with pytest.raises(VolumeFormatError, match=r"TIFF|truncated"):
        whole(open_tiff(tmp_path / "a.tif")[1])


# --- out ---------------------------------------------------------------------------------------


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
