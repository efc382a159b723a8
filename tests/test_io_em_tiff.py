"""EM and TIFF files: emfile and tifffile are the oracles."""

import os
import pickle

import emfile
import numpy as np
import pytest
import tifffile
from volume_scenes import real, voxels, whole

from deepict_dask.core.errors import VolumeFormatError
from deepict_dask.core.geometry import Box
from deepict_dask.io.em import open_em
from deepict_dask.io.tiff import open_tiff
from deepict_dask.io.volumes import open_volume

__all__ = ["real"]


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
