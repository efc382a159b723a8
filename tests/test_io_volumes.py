"""Any volume by its path: what is opened, and what is refused with which words."""

import bz2
import gzip
import json
import logging
import os
import pickle
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import tifffile
import zarr
from volume_scenes import real, voxels, whole

from deepict_dask.core.errors import SpacingError, VolumeFormatError
from deepict_dask.core.geometry import Box
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.io.endings import ENDINGS
from deepict_dask.io.ome_zarr import create_ome_zarr
from deepict_dask.io.volumes import describe, is_volume_path, open_volume

__all__ = ["real"]


def tomogram(path, shape=(4, 5, 6), dtype="float32", spacing=13.48):
    array = voxels(shape, dtype)
    mrcfile.write(path, array, voxel_size=spacing)
    return array


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
        "pass --voxel-spacing-angstrom (in a config or in Python: voxel_spacing_angstrom) "
        "to override"
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
