"""Dynamo's tables and IMOD's models.

Oracles: hand-made files, the real ones of ../shared/data, dynamotable, imodmodel.
"""

import struct

import dynamotable
import imodmodel
import numpy as np
import pytest
from picks_lists import DATA, FRAME, particle, shared, turned_alike, zyx
from scipy.spatial.transform import Rotation

from deepict_dask.core.errors import PicksFormatError
from deepict_dask.io.orientation import matrices_from_angles, relion_angles, with_angles
from deepict_dask.io.picks import read_picks, write_picks
from deepict_dask.io.picks_table import make_picks

TBL = DATA / "tbl" / "b4_motl_CR_tm_topbott_clean600_1_dynamo.tbl"
MODELS = [
    "cryocat_correct111.mod",
    "imodmodel_multiple_objects_example.mod",
    "imodmodel_point_sizes_example.mod",
    "imodmodel_two_contour_example.mod",
]

# -- Dynamo ---------------------------------------------------------------------------------------


def test_a_dynamo_table_counts_voxels_from_one_and_its_shifts_are_added(tmp_path):
    cells = np.zeros(35)
    cells[[0, 3, 4, 5, 9, 19, 21, 23, 24, 25]] = 12, 0.5, -1, 2, 0.75, 3, 2, 10, 89, 6
    path = tmp_path / "a.tbl"
    path.write_text(" ".join(f"{cell:g}" for cell in cells) + "\n")
    picks = read_picks(path)
    assert zyx(picks).tolist() == [[7, 87, 9.5]]
    known = ["score", "particle_number", "tomogram_number", "class_number"]
    assert picks.loc[0, known].tolist() == [0.75, 12, 3, 2]


def test_the_real_table_is_read_as_dynamotable_reads_it():
    rows = dynamotable.read(shared(TBL))
    picks = read_picks(TBL)
    expected = rows[["z", "y", "x"]].to_numpy() + rows[["dz", "dy", "dx"]].to_numpy() - 1
    np.testing.assert_allclose(zyx(picks), expected)
    assert len(picks) == 1343
    turns = Rotation.from_euler("zxz", rows[["tdrot", "tilt", "narot"]], degrees=True)
    held = matrices_from_angles(relion_angles(picks))
    np.testing.assert_allclose(held, turns.inv().as_matrix(), atol=1e-9)
    assert picks.particle_number.tolist() == rows.tag.tolist()
    assert picks.dynamo_ymintilt.tolist() == rows.ymintilt.tolist()


def test_the_real_table_written_again_is_read_by_dynamotable_as_before(tmp_path):
    rows, picks = dynamotable.read(shared(TBL)), read_picks(TBL)
    write_picks(picks, tmp_path / "again.tbl")
    again = dynamotable.read(tmp_path / "again.tbl")
    assert again.shape == (1343, 35)
    for axis in "xyz":
        np.testing.assert_allclose(again[axis], rows[axis] + rows[f"d{axis}"], atol=6e-4)
        assert not again[f"d{axis}"].any()
    some, other = (
        Rotation.from_euler("zxz", table[["tdrot", "tilt", "narot"]], degrees=True).as_matrix()
        for table in (again, rows)
    )
    np.testing.assert_allclose(some, other, atol=1e-6)
    same = [name for name in rows.columns[9:23] if name not in "xyz"]
    np.testing.assert_allclose(again[same], rows[same])
    back = read_picks(tmp_path / "again.tbl")
    assert list(back.columns) == list(picks.columns)


def test_flags_of_a_dynamo_table_stay_as_they_are(tmp_path):
    cells = [[0] * 35, [0] * 35]
    for place, values in {1: (0, 1), 2: (1, 0), 12: (1, 1), 34: (7, 7)}.items():
        cells[0][place], cells[1][place] = values
    text = "".join(" ".join(map(str, row)) + "\n" for row in cells)
    (tmp_path / "a.tbl").write_text(text)
    write_picks(read_picks(tmp_path / "a.tbl"), tmp_path / "b.tbl")
    again = dynamotable.read(tmp_path / "b.tbl").drop(columns=["x", "y", "z"])
    assert again.astype(int).equals(
        dynamotable.read(tmp_path / "a.tbl").drop(columns=["x", "y", "z"])
    )


def test_a_table_that_dynamotable_wrote_is_read(tmp_path):
    import pandas as pd

    rows = pd.DataFrame({"x": [10.0], "y": [89.0], "z": [6.0], "tdrot": [30.0], "cc": [0.5]})
    dynamotable.write(rows, str(tmp_path / "a.tbl"))
    picks = read_picks(tmp_path / "a.tbl")
    assert zyx(picks).tolist() == [[5, 88, 9]]
    np.testing.assert_allclose(
        matrices_from_angles(relion_angles(picks))[0],
        Rotation.from_euler("z", -30, degrees=True).as_matrix(),
        atol=1e-12,
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3\n", "line 1: expected the 26 columns"),
        ("0 " * 35 + "\n" + "0 " * 34, "line 2: expected 35 columns"),
        ("0 " * 23 + "a 0 0\n", "line 1: expected a number in column 24, found 'a'"),
        ("0 " * 23 + "nan 0 0\n", "finite positions"),
    ],
)
def test_a_damaged_table_is_refused_with_the_line(tmp_path, text, message):
    (tmp_path / "a.tbl").write_text(text)
    with pytest.raises(PicksFormatError, match=rf"a\.tbl.*{message}"):
        read_picks(tmp_path / "a.tbl")


# -- IMOD -----------------------------------------------------------------------------------------


def test_the_first_voxel_of_an_imod_model_has_its_centre_at_a_half_in_x_and_y_only(tmp_path):
    write_picks(make_picks([[0, 0, 0], [5, 88, 9]]), tmp_path / "a.mod", **FRAME)
    points = imodmodel.read(tmp_path / "a.mod")
    assert points[["x", "y", "z"]].to_numpy().tolist() == [[0.5, 0.5, 0], [9.5, 88.5, 5]]


@pytest.mark.parametrize("name", MODELS)
def test_the_real_models_are_read_as_imodmodel_reads_them(name):
    path = shared(DATA / "mod" / name)
    rows = imodmodel.read(path)
    picks = read_picks(path)
    np.testing.assert_allclose(
        zyx(picks) + np.array([0, 0.5, 0.5]), rows[["z", "y", "x"]], rtol=1e-6
    )
    assert (picks.class_number - 1).tolist() == rows.object_id.tolist()
    assert (picks.imod_contour - 1).tolist() == rows.contour_id.tolist()


@pytest.mark.parametrize("name", MODELS)
def test_the_real_models_written_again_hold_the_same_points(tmp_path, name):
    path = shared(DATA / "mod" / name)
    rows, picks = imodmodel.read(path), read_picks(path)
    write_picks(picks, tmp_path / "again.mod")
    again = imodmodel.read(tmp_path / "again.mod")
    same = ["object_id", "contour_id", "x", "y", "z"]
    np.testing.assert_allclose(again[same], rows[same], rtol=1e-6)
    back = read_picks(tmp_path / "again.mod")
    assert back.columns.tolist() == picks.columns.tolist()


def test_sizes_names_and_classes_of_an_imod_model_come_back(tmp_path):
    picks = make_picks(
        [[1, 2, 3], [4, 5, 6], [7, 8, 9]],
        class_number=[1, 3, 3],
        class_name=["ribosome", "FAS", "FAS"],
        imod_size=[4.0, np.nan, 7.5],
        imod_contour=[1, 1, 2],
    )
    write_picks(picks, tmp_path / "a.mod", **FRAME)
    back = read_picks(tmp_path / "a.mod")
    assert back.class_name.tolist() == picks.class_name.tolist()
    assert back.class_number.tolist() == [1, 3, 3]
    assert back.imod_contour.tolist() == [1, 1, 2]
    np.testing.assert_array_equal(back.imod_size, picks.imod_size)
    header = imodmodel.ImodModel.from_file(tmp_path / "a.mod").header
    assert (header.xmax, header.ymax, header.zmax) == (301, 200, 101)
    assert header.pixelsize == pytest.approx(1.348)


def model(*chunks, flags=0):
    head = b"\0" * 128 + struct.pack(">4iI", 9, 9, 9, 1, flags)
    return b"IMODV1.2" + head.ljust(232, b"\0") + b"".join(chunks)


OBJECT = b"OBJT" + b"\0" * 176
CONTOUR = b"CONT" + struct.pack(">4i3f", 1, 0, 0, 0, 9.5, 88.5, 5)


def test_chunks_that_we_do_not_know_and_meshes_are_passed_over(tmp_path):
    mesh = b"MESH" + struct.pack(">2i8x3fi", 1, 1, 1, 2, 3, 0)
    strange = b"ABCD" + struct.pack(">i4x", 4)
    path = tmp_path / "a.mod"
    path.write_bytes(model(OBJECT, strange, CONTOUR, mesh, strange, b"IEOF", b"more"))
    assert zyx(read_picks(path)).tolist() == [[5, 88, 9]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected an IMOD model of version 1.2, found b''"),
        (b"IMODV1.1" + b"\0" * 300, "found b'IMODV1.1'"),
        (b"IMODV1.2", "expected 232 more bytes, found 0"),
        (model(OBJECT, CONTOUR), "expected the mark of the model's end"),
        (model(OBJECT, CONTOUR[:-4], b"IEOF"), "expected 4 more bytes|expected"),
        (model(CONTOUR, b"IEOF"), "expected an object before its points"),
        (model(OBJECT, b"CONT" + struct.pack(">4i", -5, 0, 0, 0)), "expected -60 more bytes"),
        (model(OBJECT, b"CONT" + struct.pack(">4i", 2**31 - 1, 0, 0, 0)), "more bytes, found 0"),
        (model(b"ABCD" + struct.pack(">i", -4)), "expected -4 more bytes"),
        (model(b"ABCD" + struct.pack(">i", 2**31 - 1)), "expected 2147483647 more bytes"),
        (model(OBJECT, CONTOUR, b"SIZE" + struct.pack(">i", 8) + b"\0" * 8), "a size for each"),
        (model(b"IEOF", flags=1 << 16), "y and z are exchanged"),
    ],
)
def test_a_damaged_model_is_refused_with_the_place_and_never_read_for_long(
    tmp_path, content, message
):
    path = tmp_path / "a.mod"
    path.write_bytes(content)
    with pytest.raises(PicksFormatError, match=rf"a\.mod, byte \d+: .*({message})"):
        read_picks(path)


def test_classes_that_imod_cannot_count_are_refused(tmp_path):
    with pytest.raises(PicksFormatError, match="number the classes from 1"):
        write_picks(make_picks([[1, 2, 3]], class_number=[0]), tmp_path / "a.mod")


# -- from one to another --------------------------------------------------------------------------


def test_a_particle_goes_through_all_programs_and_back(tmp_path):
    picks = with_angles(particle(), [[30.0, 40.0, -50.0]]).assign(class_number=[2])
    first = picks
    steps = ("a.star", "a.tbl", "a.em", "a.xml", "a.json", "a.ndjson", "a.xlsx", "motl_a.csv")
    for step in steps:
        write_picks(picks, tmp_path / step, **FRAME)
        picks = read_picks(tmp_path / step, **FRAME)
    np.testing.assert_allclose(zyx(picks), zyx(first), atol=1e-3)
    assert turned_alike(relion_angles(picks), relion_angles(first))
    assert picks.score.tolist() == [0.75]
    assert picks.class_number.tolist() == [2]
