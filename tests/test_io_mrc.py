"""MRC files: mrcfile is the oracle for what can be read, the header's own numbers for the rest."""

import bz2
import gzip
import os
import pickle
import warnings
from pathlib import Path

import mrcfile
import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mrc_scenes import MODES, same_folder, shape_and_box, voxels

from deepict_dask.core.errors import VolumeFormatError, WorkFailedError
from deepict_dask.core.geometry import Box
from deepict_dask.io.mrc import HEADER, open_mrc
from deepict_dask.io.unpack import unpack
from deepict_dask.io.volumes import open_volume

DATA = Path(__file__).parents[1].parent / "shared" / "data" / "mrc"


@pytest.fixture
def real():
    """Give the folder of real files."""
    if not DATA.is_dir():
        pytest.skip("../shared/data/mrc is absent")
    return DATA


def write_mrc(path, array, *, order="<", machst=None, nsymbt=0, **fields):
    """Write an MRC file by hand, so that its header can be wrong on purpose."""
    record = np.zeros(1, HEADER.newbyteorder(order))
    size = array.shape[::-1]
    record["n"], record["m"] = size, size
    record["mode"] = next(mode for mode, name in MODES.items() if name == array.dtype.name)
    record["cella"], record["mapcrs"], record["map"] = np.array(size) * 10.0, (1, 2, 3), b"MAP "
    record["machst"] = machst or ((0x44, 0x44, 0, 0) if order == "<" else (0x11, 0x11, 0, 0))
    record["nsymbt"] = nsymbt
    record["dmin"], record["dmax"] = array.min(), array.max()
    for name, value in fields.items():
        record[name] = value
    data = array.astype(array.dtype.newbyteorder(order)).tobytes()
    Path(path).write_bytes(record.tobytes() + b"\1" * nsymbt + data)
    return path


def oracle(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with mrcfile.open(path, permissive=True) as file:
            data = np.array(file.data)
    return data.reshape((-1, *data.shape[-2:]))


def whole(reader):
    return reader.read(Box.whole(reader.header.shape))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", MODES.values())
@same_folder
@given(drawn=shape_and_box(), nsymbt=st.sampled_from([0, 160, 1024]))
def test_any_box_of_any_mode_and_byte_order_equals_what_mrcfile_reads(
    tmp_path, dtype, order, drawn, nsymbt
):
    shape, box = drawn
    path = write_mrc(tmp_path / "a.mrc", voxels(shape, dtype), order=order, nsymbt=nsymbt)
    _, reader = open_mrc(path)
    found = reader.read(box)
    assert found.dtype == np.dtype(dtype)
    assert found.dtype.isnative
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, oracle(path)[box.slices])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("machst", [(0x44, 0x44, 0, 0), (0x11, 0x11, 0, 0), (0, 0, 0, 0)])
@pytest.mark.parametrize("dtype", MODES.values())
def test_a_lying_machine_stamp_does_not_change_the_voxels(tmp_path, order, machst, dtype):
    array = voxels((256, 2, 3), dtype)  # 256 is a possible size in both byte orders
    path = write_mrc(tmp_path / "a.mrc", array, order=order, machst=machst)
    description, reader = open_mrc(path)
    np.testing.assert_array_equal(whole(reader), array)
    lies = machst[0] == (0x11 if order == "<" else 0x44)
    assert ("the machine stamp names the wrong byte order" in description.oddities) == lies


@pytest.mark.parametrize(
    "mapcrs", [(1, 2, 3), (3, 1, 2), (2, 3, 1), (3, 2, 1), (1, 3, 2), (2, 1, 3)]
)
@given(drawn=shape_and_box())
@same_folder
def test_every_axis_order_is_read_as_zyx(tmp_path, mapcrs, drawn):
    shape, box = drawn
    zyx = voxels(shape, "int16")
    stored = zyx.transpose([3 - axis for axis in reversed(mapcrs)])
    fields = {"mapcrs": mapcrs, "m": shape[::-1], "cella": np.multiply(shape[::-1], 7.5)}
    path = write_mrc(tmp_path / "a.mrc", np.ascontiguousarray(stored), **fields)
    _, reader = open_mrc(path)
    assert reader.header.shape == shape
    assert reader.header.voxel_spacing_angstrom == 7.5
    np.testing.assert_array_equal(reader.read(box), zyx[box.slices])


@pytest.mark.parametrize(
    ("stamp", "flags", "low", "high", "dtype"),
    [
        (0, 0, 141, 163, "uint8"),
        (0, 0, -5, 100, "int8"),
        (0, 0, 0, 100, "int8"),
        (1146047817, 0, 0, 255, "uint8"),
        (1146047817, 1, 0, 255, "int8"),
        (1146047817, 1, -128, -127, "int8"),
    ],
)
def test_mode_0_is_unsigned_only_by_imods_flag_and_the_range(
    tmp_path, stamp, flags, low, high, dtype
):
    fields = {"imod_stamp": stamp, "imod_flags": flags, "dmin": low, "dmax": high}
    path = write_mrc(tmp_path / "a.mrc", np.full((2, 2, 2), -100, "int8"), **fields)
    _, reader = open_mrc(path)
    assert reader.header.dtype == dtype
    assert whole(reader)[0, 0, 0] == (156 if dtype == "uint8" else -100)


@pytest.mark.parametrize("name", ["a.mrc.gz", "a.mrc.bz2"])
def test_a_packed_file_reads_like_the_plain_one_and_is_unpacked_once(tmp_path, name):
    array = voxels((3, 4, 5), "float32")
    plain = write_mrc(tmp_path / "a.mrc", array).read_bytes()
    pack = gzip.compress if name.endswith("gz") else bz2.compress
    (tmp_path / name).write_bytes(pack(plain))
    unpacked = unpack(tmp_path / name, tmp_path / "scratch")
    before = unpacked.stat().st_mtime_ns
    assert unpack(tmp_path / name, tmp_path / "scratch") == unpacked
    assert unpacked.stat().st_mtime_ns == before
    assert [file.name for file in (tmp_path / "scratch").iterdir()] == [unpacked.name]
    np.testing.assert_array_equal(whole(open_mrc(unpacked)[1]), array)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_a_truncated_packed_file_is_refused_and_leaves_no_copy(tmp_path, pack):
    noise = np.random.default_rng(0).bytes(100_000)
    (tmp_path / "a.mrc.gz").write_bytes(pack(noise)[:-5000])
    with pytest.raises(VolumeFormatError, match="breaks off"):
        unpack(tmp_path / "a.mrc.gz", tmp_path / "scratch")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_damaged_packed_file_is_refused(tmp_path):
    packed = bytearray(gzip.compress(np.random.default_rng(0).bytes(100_000)))
    packed[50_000] ^= 255
    (tmp_path / "a.mrc.gz").write_bytes(packed)
    with pytest.raises(VolumeFormatError, match="copy or download"):
        unpack(tmp_path / "a.mrc.gz", tmp_path / "scratch")


def test_a_full_scratch_disk_is_named_and_cleaned(tmp_path, monkeypatch):
    (tmp_path / "a.mrc.gz").write_bytes(gzip.compress(b"voxels"))

    def full(_source, _packed, out):
        out.write(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("deepict_dask.io.unpack._copy", full)
    with pytest.raises(WorkFailedError, match="no space to unpack"):
        unpack(tmp_path / "a.mrc.gz", tmp_path / "scratch")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_changed_packed_file_is_unpacked_again(tmp_path):
    source = tmp_path / "a.mrc.gz"
    source.write_bytes(gzip.compress(b"old"))
    unpack(source, tmp_path)
    source.write_bytes(gzip.compress(b"newer"))
    assert unpack(source, tmp_path).read_bytes() == b"newer"


@pytest.mark.parametrize("missing", [1, 1000, 4000])
def test_a_truncated_file_is_refused_with_both_sizes(tmp_path, missing):
    path = write_mrc(tmp_path / "a.mrc", voxels((10, 10, 10), "float32"))
    os.truncate(path, 5024 - missing)
    with pytest.raises(VolumeFormatError, match=rf"5,024 bytes, the file has {5024 - missing:,}"):
        open_mrc(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>Not found</html>", "found text"),
        (b"x y z\n" * 500, "found text"),
        (b"\0\1\2" * 50, "1,024 bytes"),
        (b"\xff" * 5000, "not an MRC volume"),
        (b"\0" * 5000, "not an MRC volume"),
    ],
)
def test_what_is_no_mrc_file_is_refused_with_the_reason(tmp_path, content, words):
    (tmp_path / "a.mrc").write_bytes(content)
    with pytest.raises(VolumeFormatError, match=words):
        open_mrc(tmp_path / "a.mrc")


@pytest.mark.parametrize("size", [(-5, 10, 10), (0, 10, 10), (2**30, 10, 10)])
def test_absurd_sizes_are_refused(tmp_path, size):
    path = write_mrc(tmp_path / "a.mrc", voxels((10, 10, 10), "int8"), n=size)
    with pytest.raises(VolumeFormatError, match="not an MRC volume"):
        open_mrc(path)


def test_sizes_beyond_64_bits_are_refused_as_truncated(tmp_path):
    path = write_mrc(tmp_path / "a.mrc", voxels((10, 10, 10), "int8"), n=(2**25 + 1,) * 3)
    with pytest.raises(VolumeFormatError, match="truncated"):
        open_mrc(path)


def test_complex_voxels_are_refused(tmp_path):
    path = write_mrc(tmp_path / "a.mrc", voxels((4, 4, 4), "float32"), mode=4)
    with pytest.raises(VolumeFormatError, match="mode 4"):
        open_mrc(path)


@pytest.mark.parametrize(
    ("cella", "m", "spacing"),
    [
        ((40, 50, 60), (4, 5, 6), 10.0),
        ((0, 0, 0), (4, 5, 6), None),
        ((40, 50, np.inf), (4, 5, 6), None),
        ((40, 50, 61), (4, 5, 6), None),
        ((40, 50, 60.03), (4, 5, 6), 10.0),
        ((40, 50, 60), (4, 5, 1), 10.0),
        ((40, 50, 60), (0, 0, 0), 10.0),
        ((4, 5, 6), (4, 5, 6), 1.0),
        ((np.nan, 50, 60), (4, 5, 6), None),
    ],
)
def test_the_voxel_spacing_is_settled_or_left_open(tmp_path, cella, m, spacing):
    path = write_mrc(tmp_path / "a.mrc", voxels((6, 5, 4), "int8"), cella=cella, m=m)
    description, reader = open_mrc(path)
    assert reader.header.voxel_spacing_angstrom == spacing
    assert bool(description.spacing_problem) == (spacing is None)


@pytest.mark.parametrize(
    ("fields", "given", "origin"),
    [
        ({}, None, (-40, -60, -80)),
        # the header's cell spans all 6 sections, which is repaired before anything follows from it
        ({"cella": (40, 50, 60), "m": (4, 5, 1)}, None, (-40, -60, -80)),
        ({}, 8.0, (-32, -48, -64)),
        ({"cella": (0, 0, 0)}, 8.0, (-32, -48, -64)),
        ({"origin": (1, 2, 3)}, 8.0, (3, 2, 1)),
    ],
)
def test_an_origin_in_voxels_counts_the_spacing_that_is_used(tmp_path, fields, given, origin):
    start = {"nstart": (-8, -6, -4)}
    path = write_mrc(tmp_path / "a.mrc", voxels((6, 5, 4), "int8"), **start, **fields)
    header = open_volume(path, voxel_spacing_angstrom=given).header
    assert header.origin_angstrom == origin


def test_a_file_that_shrinks_after_opening_is_an_error_not_a_crash(tmp_path):
    path = write_mrc(tmp_path / "a.mrc", voxels((10, 10, 10), "float32"))
    _, reader = open_mrc(path)
    os.truncate(path, 3000)
    with pytest.raises(VolumeFormatError, match="cut short"):
        whole(reader)
    path.unlink()
    with pytest.raises(VolumeFormatError, match="cannot be read"):
        whole(reader)


def test_a_reader_survives_pickling(tmp_path):
    path = write_mrc(tmp_path / "a.mrc", voxels((3, 4, 5), "int16"))
    _, reader = open_mrc(path)
    copy = pickle.loads(pickle.dumps(reader))
    assert copy == reader
    np.testing.assert_array_equal(whole(copy), whole(reader))


def test_a_small_box_of_a_huge_file_costs_little_memory(tmp_path):
    shape, path = (600, 1250, 1250), tmp_path / "huge.mrc"
    write_mrc(path, voxels((1, 1, 1), "float32"), n=shape[::-1])
    os.truncate(path, 1024 + 4 * int(np.prod(shape)))
    assert path.stat().st_size > 3 * 2**30
    _, reader = open_mrc(path)
    process = psutil.Process()
    before = process.memory_info().rss
    for z in range(0, 560, 100):
        box = reader.read(Box((z, 900, 900), (z + 40, 940, 940)))
    assert box.shape == (40, 40, 40)
    assert process.memory_info().rss - before < 50e6


def real_cases():
    return [file.name for file in sorted(DATA.iterdir())] if DATA.is_dir() else []


REFUSED = {
    "empty1.map": "empty",
    "header_only.mrc": "without voxels.*132,096 bytes, the file has 1,024",
    "test_data_corrupt_header.map": "34,280,108 bytes, the file has 1,108",
}


@pytest.mark.parametrize("name", real_cases())
def test_every_real_file_reads_like_mrcfile_or_is_refused(real, tmp_path, name):
    path = real / name
    if name in REFUSED:
        with pytest.raises(VolumeFormatError, match=REFUSED[name]):
            open_mrc(path)
        return
    plain = unpack(path, tmp_path) if path.suffix in {".gz", ".bz2"} else path
    description, reader = open_mrc(plain, path)
    found, expected = whole(reader), oracle(path)
    if description.dtype == "uint8":
        expected = expected.view("uint8")
    assert np.array_equal(found, expected.transpose(reader.layout.axes))
    if description.header_minimum is not None:
        assert found.min() == pytest.approx(description.header_minimum, rel=1e-6)
        assert found.max() == pytest.approx(description.header_maximum, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "spacing"),
    [
        ("EMD-3001.map", (73, 25, 43), "float32", None),
        ("EMD-3197.map.bz2", (20, 20, 20), "float32", 11.4),
        ("cell4_vesicle_labels_int8.mrc.gz", (60, 155, 155), "int8", 16.84),
        ("emd_5592_21A.mrc", (20, 20, 20), "float32", 1.0),
        ("mito_labels_960x928x312.mrc.gz", (312, 928, 960), "int8", 12.44),
        ("mrc2D.mrc", (1, 64, 32), "uint8", 23.2),
        ("rec3D.rec", (78, 64, 32), "uint8", 23.2),
        ("swapped_byte_order.mrc", (1, 2, 10), "float32", None),
        ("test_data_multi0.map", (36, 30, 32), "int8", None),
    ],
)
def test_real_headers_say_what_the_data_set_readme_says(
    real, tmp_path, name, shape, dtype, spacing
):
    plain = unpack(real / name, tmp_path) if name.endswith(("gz", "bz2")) else real / name
    header = open_mrc(plain)[1].header
    assert (header.shape, header.dtype) == (shape, dtype)
    assert header.voxel_spacing_angstrom == spacing
