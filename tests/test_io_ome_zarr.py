"""OME-Zarr: zarr-python and ome-zarr-models are the oracles."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepict_dask.core.errors import (
    OutputExistsError,
    ShapeMismatchError,
    VolumeFormatError,
    VoxelValueError,
)
from deepict_dask.core.geometry import Box, Grid
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.io.ome_zarr import count_missing_chunks, create_ome_zarr, open_ome_zarr

FIXTURE = Path(__file__).parents[1].parent / "shared" / "data" / "other" / "input_omezarr.zarr"
same_folder = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def voxels(shape, dtype="float32"):
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


def fill(writer, array):
    for block in Grid(writer.header.shape, writer.write_shape):
        writer.write(block.write, array[(..., *block.write.slices)])


def make(path, shape=(20, 20, 20), dtype="float32", chunks=(8, 8, 8), **fields):
    """Write a store with known voxels and return them."""
    writer_fields = {key: fields.pop(key) for key in ("shards", "overwrite") if key in fields}
    header = VolumeHeader(shape, dtype, fields.pop("spacing", 13.48), **fields)
    array = voxels((len(header.class_names), *shape) if header.class_names else shape, dtype)
    fill(create_ome_zarr(path, header, chunks=chunks, **writer_fields), array)
    return array


def write_foreign(path, array, *, version, axes, scale, translation=None, units=None, **image):
    """Write a store as another program would, straight with zarr-python."""
    zarr_format = 3 if version == "0.5" else 2
    steps = [{"type": "scale", "scale": scale}]
    if translation:
        steps.append({"type": "translation", "translation": translation})
    kinds = {"c": "channel", "t": "time"}
    listed = [{"name": name, "type": kinds.get(name, "space")} for name in axes]
    for axis, unit in zip(listed, units or (), strict=bool(units)):
        axis |= {"unit": unit} if unit else {}
    level = {"path": "s0", "coordinateTransformations": steps}
    image = {"axes": listed, "datasets": [level], "version": version, **image}
    attributes = {"multiscales": [image]}
    if version == "0.5":
        attributes = {"ome": {"version": "0.5", **attributes}}
    group = zarr.create_group(path, zarr_format=zarr_format, attributes=attributes)
    keys = {"chunk_key_encoding": {"name": "v2", "separator": "/"}} if zarr_format == 2 else {}
    stored = group.create_array(
        "s0", shape=array.shape, chunks=(5,) * array.ndim, dtype=array.dtype, **keys
    )
    stored[...] = array
    return path


@st.composite
def shape_chunks_box(draw):
    shape = tuple(draw(st.integers(1, 16)) for _ in range(3))
    chunks = tuple(draw(st.integers(4, 9)) for _ in range(3))
    ends = [sorted(draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in shape]
    return shape, chunks, Box(tuple(a for a, _ in ends), tuple(b for _, b in ends))


@pytest.mark.parametrize("shards", [None, 1, 2, 3])
@same_folder
@given(
    drawn=shape_chunks_box(),
    dtype=st.sampled_from(["float32", "float16", "uint8", "bool", "int64", "int8"]),
    classes=st.sampled_from([(), ("a",), ("ribosome", "fas", "membrane")]),
)
def test_any_box_of_what_is_written_comes_back(tmp_path, shards, drawn, dtype, classes):
    shape, chunks, box = drawn
    path = tmp_path / "a.zarr"
    options = {"shards": tuple(shards * c for c in chunks)} if shards else {}
    array = make(
        path, shape, dtype, chunks, class_names=classes, overwrite=path.exists(), **options
    )
    np.testing.assert_array_equal(zarr.open_array(path / "0", mode="r")[...], array)
    _, reader = open_ome_zarr(path)
    whole = array if classes else array[None]
    np.testing.assert_array_equal(reader.read_channels(box), whole[(..., *box.slices)])
    for number, name in enumerate(classes or (None,)):
        found = open_ome_zarr(path, class_name=name)[1].read(box)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, whole[(number, *box.slices)])


@pytest.mark.parametrize("classes", [(), ("ribosome", "fas")])
@pytest.mark.parametrize("spacing", [13.48, None])
@pytest.mark.parametrize("shards", [None, (16, 16, 16)])
def test_what_is_written_is_valid_ome_zarr(tmp_path, classes, spacing, shards):
    from ome_zarr_models.v05 import Image

    path = tmp_path / "tomo.zarr"
    origin = (10.0, 20.0, 30.0)
    make(path, class_names=classes, spacing=spacing, shards=shards, origin_angstrom=origin)
    image = Image.from_zarr(zarr.open_group(path, mode="r"))
    level = image.ome_attributes.multiscales[0].datasets[0]
    scale, translation = level.coordinateTransformations
    assert scale.scale[-3:] == [spacing or 1.0] * 3
    assert translation.translation[-3:] == list(origin)
    axes = image.ome_attributes.multiscales[0].axes
    assert "".join(axis.name for axis in axes) == ("czyx" if classes else "zyx")
    assert {axis.unit for axis in axes[-3:]} == ({"angstrom"} if spacing else {None})
    header = open_ome_zarr(path)[1].header
    expected = VolumeHeader((20, 20, 20), "float32", spacing, origin, classes)
    assert header == expected


@pytest.mark.parametrize(
    ("start", "stop"),
    [((0, 0, 0), (8, 16, 16)), ((8, 0, 0), (20, 16, 16)), ((0, 0, 0), (15, 16, 16))],
)
def test_a_write_that_cuts_a_shard_is_refused(tmp_path, start, stop):
    header = VolumeHeader((20, 20, 20), "float32")
    writer = create_ome_zarr(tmp_path / "a.zarr", header, chunks=(8, 8, 8), shards=(16, 16, 16))
    box = Box(start, stop)
    with pytest.raises(ShapeMismatchError, match="cuts a chunk or shard"):
        writer.write(box, np.zeros(box.shape, "float32"))
    assert not (tmp_path / "a.zarr" / "0" / "c").exists()


def test_a_clipped_write_at_the_end_is_whole(tmp_path):
    header = VolumeHeader((20, 20, 20), "float32")
    writer = create_ome_zarr(tmp_path / "a.zarr", header, chunks=(8, 8, 8))
    box = Box((16, 16, 16), (20, 20, 20))
    writer.write(box, np.ones(box.shape, "float32"))
    assert zarr.open_array(tmp_path / "a.zarr" / "0", mode="r")[...].sum() == 64


def test_an_array_of_another_shape_or_with_other_values_is_refused(tmp_path):
    writer = create_ome_zarr(tmp_path / "a.zarr", VolumeHeader((4, 4, 4), "uint8"))
    box = Box.whole((4, 4, 4))
    with pytest.raises(ShapeMismatchError, match="expected an array"):
        writer.write(box, np.zeros((1, 4, 4, 4), "uint8"))
    with pytest.raises(ShapeMismatchError, match="leaves the volume"):
        writer.write(Box((0, 0, 0), (4, 4, 8)), np.zeros((4, 4, 8), "uint8"))
    with pytest.raises(VoxelValueError, match="do not fit uint8"):
        writer.write(box, np.full((4, 4, 4), -1, "int32"))


def test_shards_that_are_no_multiple_of_chunks_are_refused(tmp_path):
    header = VolumeHeader((20, 20, 20), "float32")
    with pytest.raises(ShapeMismatchError, match="multiples of chunks"):
        create_ome_zarr(tmp_path / "a.zarr", header, chunks=(8, 8, 8), shards=(16, 12, 16))


def test_readers_and_writers_survive_pickling(tmp_path):
    header = VolumeHeader((4, 4, 4), "uint8", 10.0)
    writer = pickle.loads(pickle.dumps(create_ome_zarr(tmp_path / "a.zarr", header)))
    writer.write(Box.whole((4, 4, 4)), np.ones((4, 4, 4), "uint8"))
    reader = pickle.loads(pickle.dumps(open_ome_zarr(tmp_path / "a.zarr")[1]))
    assert reader.read(Box.whole((4, 4, 4))).sum() == 64


def test_empty_chunks_are_written_and_a_missing_one_is_an_error(tmp_path):
    path = tmp_path / "a.zarr"
    fill(
        create_ome_zarr(path, VolumeHeader((16, 8, 8), "uint8"), chunks=(8, 8, 8)),
        np.zeros((16, 8, 8), "uint8"),
    )
    _, reader = open_ome_zarr(path)
    assert count_missing_chunks(reader) == (0, 2)
    (path / "0" / "c" / "1" / "0" / "0").unlink()
    assert count_missing_chunks(reader) == (1, 2)
    assert reader.read(Box((0, 0, 0), (8, 8, 8))).sum() == 0
    with pytest.raises(VolumeFormatError, match="chunk c/1/0/0 is missing"):
        reader.read(Box((0, 0, 0), (9, 8, 8)))
    _, lenient = open_ome_zarr(path, allow_missing_chunks=True)
    assert lenient.read(Box((0, 0, 0), (16, 8, 8))).sum() == 0


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_missing_chunks_of_other_programs_are_fill_for_masks_and_errors_for_floats(
    tmp_path, version, dtype
):
    path = write_foreign(
        tmp_path / "a.zarr", np.zeros((4, 4, 4), dtype), version=version, axes="zyx", scale=[8] * 3
    )
    _, reader = open_ome_zarr(path)
    assert count_missing_chunks(reader) == (1, 1)
    if dtype == "uint8":
        assert not reader.read(Box.whole((4, 4, 4))).any()
        return
    with pytest.raises(VolumeFormatError, match="is missing"):
        reader.read(Box.whole((4, 4, 4)))


@pytest.mark.parametrize(("dtype", "shards"), [("float32", None), ("uint8", None), ("uint8", 8)])
def test_a_truncated_chunk_is_an_error_that_names_the_store(tmp_path, dtype, shards):
    path = tmp_path / "a.zarr"
    make(path, (8, 8, 8), dtype, shards=(shards,) * 3 if shards else None)
    chunk = path / "0" / "c" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-7])
    _, reader = open_ome_zarr(path)
    with pytest.raises(VolumeFormatError, match=r"a\.zarr: a chunk of box"):
        reader.read(Box.whole((8, 8, 8)))


@pytest.mark.parametrize("file", ["zarr.json", "0/zarr.json"])
@pytest.mark.parametrize("content", ["", "{", "[1]", '{"zarr_format": 3}', "{}"])
def test_damaged_metadata_is_an_error_not_a_traceback(tmp_path, file, content):
    path = tmp_path / "a.zarr"
    make(path)
    (path / file).write_text(content)
    if file == "zarr.json" and "{" in content and "}" in content:
        assert open_ome_zarr(path)[0].format == "Zarr"  # a group that says nothing, with one array
        return
    with pytest.raises(VolumeFormatError, match=r"a\.zarr"):
        open_ome_zarr(path)


@pytest.mark.parametrize(
    "change",
    [
        {"axes": [{"name": "x"}, {"name": "y"}]},
        {"axes": [{"nom": "x"}, {"name": "y"}, {"name": "z"}]},
        {"axes": [{"name": "z"}, {"name": "y"}, {"name": "q"}]},
        {"axes": 3},
        {"datasets": []},
        {"datasets": [{"path": "9"}]},
        {"datasets": [{"path": "s0", "coordinateTransformations": [{"type": "scale"}]}]},
        {
            "datasets": [
                {"path": "s0", "coordinateTransformations": [{"type": "scale", "scale": [1]}]}
            ]
        },
    ],
)
def test_metadata_that_makes_no_sense_is_an_error(tmp_path, change):
    array = voxels((4, 4, 4))
    path = write_foreign(tmp_path / "a.zarr", array, version="0.5", axes="zyx", scale=[8] * 3)
    metadata = json.loads((path / "zarr.json").read_text())
    metadata["attributes"]["ome"]["multiscales"][0] |= change
    (path / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(VolumeFormatError, match=r"a\.zarr"):
        open_ome_zarr(path)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["zyx", "xyz", "yzx", "tczyx", "czyx", "zcyx", "xyzct"])
def test_axes_go_by_name(tmp_path, version, axes):
    czyx = voxels((2, 3, 4, 5))
    if "c" not in axes:
        czyx = czyx[:1]
    sides = dict(zip("czyx", czyx.shape, strict=True)) | {"t": 1}
    order = ["czyx".index(axis) for axis in axes if axis in "czyx"]
    stored = czyx.transpose([*(i for i in order), *([0] if "c" not in axes else [])])
    stored = stored.reshape([sides[axis] for axis in axes])
    path = write_foreign(
        tmp_path / "a.zarr", stored, version=version, axes=axes, scale=[8.0] * len(axes)
    )
    _, reader = open_ome_zarr(path)
    box = Box((1, 0, 2), (3, 4, 4))
    assert reader.header.shape == (3, 4, 5)
    np.testing.assert_array_equal(reader.read_channels(box), czyx[(..., *box.slices)])


@pytest.mark.parametrize(
    ("unit", "scale", "spacing"),
    [
        ("angstrom", 13.48, 13.48),
        ("nanometer", 1.348, 13.48),
        ("micrometer", 0.001348, 13.48),
        (None, 13.48, 13.48),
    ],
)
def test_units_are_brought_to_angstrom(tmp_path, unit, scale, spacing):
    path = write_foreign(
        tmp_path / "a.zarr",
        voxels((4, 4, 4)),
        version="0.4",
        axes="zyx",
        scale=[scale] * 3,
        translation=[scale, 0, 2 * scale],
        units=[unit] * 3,
    )
    description, reader = open_ome_zarr(path)
    assert reader.header.voxel_spacing_angstrom == pytest.approx(spacing)
    assert reader.header.origin_angstrom == pytest.approx((spacing, 0, 2 * spacing))
    assert any("no unit" in text for text in description.oddities) == (unit is None)


def test_scales_of_level_and_image_multiply(tmp_path):
    path = write_foreign(
        tmp_path / "a.zarr",
        voxels((4, 4, 4)),
        version="0.4",
        axes="zyx",
        scale=[2, 2, 2],
        coordinateTransformations=[{"type": "scale", "scale": [5, 5, 5]}],
    )
    assert open_ome_zarr(path)[1].header.voxel_spacing_angstrom == 10.0


def test_a_plain_array_and_a_group_of_one_read_with_unknown_spacing(tmp_path):
    array = voxels((4, 5, 6))
    zarr.create_array(tmp_path / "plain.zarr", data=array)
    zarr.create_group(tmp_path / "group.zarr").create_array("data", data=array)
    for name in ("plain.zarr", "group.zarr"):
        _, reader = open_ome_zarr(tmp_path / name)
        assert reader.header.voxel_spacing_angstrom is None
        np.testing.assert_array_equal(reader.read(Box.whole((4, 5, 6))), array)


def test_a_group_of_several_arrays_is_refused_with_their_names(tmp_path):
    group = zarr.create_group(tmp_path / "group.zarr")
    for name in ("raw", "labels"):
        group.create_array(name, data=voxels((2, 2, 2)))
    with pytest.raises(VolumeFormatError, match="labels, raw; give the path of one"):
        open_ome_zarr(tmp_path / "group.zarr")


def test_a_level_given_by_its_own_path_keeps_the_images_spacing(tmp_path):
    array = make(tmp_path / "a.zarr")
    _, reader = open_ome_zarr(tmp_path / "a.zarr" / "0")
    assert reader.header.voxel_spacing_angstrom == 13.48
    np.testing.assert_array_equal(reader.read(Box.whole((20, 20, 20))), array)


def test_classes_must_be_chosen_and_must_exist(tmp_path):
    make(tmp_path / "a.zarr", class_names=("ribosome", "fas"))
    with pytest.raises(ShapeMismatchError, match="ribosome, fas; choose one"):
        open_ome_zarr(tmp_path / "a.zarr")[1].read(Box.whole((1, 1, 1)))
    with pytest.raises(VolumeFormatError, match="expected class actin"):
        open_ome_zarr(tmp_path / "a.zarr", class_name="actin")


def test_a_store_made_anew_at_the_same_path_is_never_read_stale(tmp_path):
    path = tmp_path / "a.zarr"
    for n in (8, 12, 8):
        array = make(path, (n, n, n), overwrite=path.exists())
        np.testing.assert_array_equal(open_ome_zarr(path)[1].read(Box.whole((n, n, n))), array)
    shutil.rmtree(path)
    array = make(path, (10, 10, 10), "uint8", chunks=(5, 5, 5))
    np.testing.assert_array_equal(open_ome_zarr(path)[1].read(Box.whole((10, 10, 10))), array)


def test_metadata_is_not_parsed_again_for_every_box(tmp_path, monkeypatch):
    make(tmp_path / "a.zarr")
    _, reader = open_ome_zarr(tmp_path / "a.zarr")
    reader.read(Box.whole((8, 8, 8)))
    monkeypatch.setattr(zarr, "open_array", None)
    assert reader.read(Box.whole((4, 4, 4))).shape == (4, 4, 4)


def test_overwriting_replaces_a_store_and_nothing_else(tmp_path):
    header = VolumeHeader((4, 4, 4), "uint8")
    make(tmp_path / "a.zarr")
    with pytest.raises(OutputExistsError, match="already exists"):
        create_ome_zarr(tmp_path / "a.zarr", header)
    create_ome_zarr(tmp_path / "a.zarr", header, overwrite=True)
    assert open_ome_zarr(tmp_path / "a.zarr")[1].header.shape == (4, 4, 4)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("words")
    with pytest.raises(OutputExistsError, match="no Zarr store"):
        create_ome_zarr(tmp_path / "home", header, overwrite=True)
    assert (tmp_path / "home" / "thesis.tex").read_text() == "words"


def test_masks_are_compressed_and_floats_are_not(tmp_path):
    make(tmp_path / "f.zarr", dtype="float32")
    make(tmp_path / "m.zarr", dtype="uint8")
    codecs = {
        name: [
            c["name"] for c in json.loads((tmp_path / name / "0/zarr.json").read_text())["codecs"]
        ]
        for name in ("f.zarr", "m.zarr")
    }
    assert codecs == {"f.zarr": ["bytes", "crc32c"], "m.zarr": ["bytes", "blosc", "crc32c"]}


def test_the_portals_store_with_axes_xyz_is_read_as_zyx():
    if not FIXTURE.is_dir():
        pytest.skip("../shared/data/other is absent")
    description, reader = open_ome_zarr(FIXTURE)
    stored = zarr.open_array(FIXTURE / "0", mode="r")[...]
    np.testing.assert_array_equal(
        reader.read(Box((0, 1, 2), (4, 3, 4))), stored.transpose(2, 1, 0)[:, 1:3, 2:]
    )
    assert reader.header.voxel_spacing_angstrom == 14.08
    assert "axes are stored in the order xyz; read as zyx" in description.oddities
