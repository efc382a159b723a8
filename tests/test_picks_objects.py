"""DeepFinder's object lists, DeepETPicker's coordinates, EMAN2's boxes.

Oracles: files that the two programs wrote (../shared/golden), openpyxl, hand-made files.
"""

import zipfile

import numpy as np
import openpyxl
import pytest
from picks_lists import DATA, FRAME, SHARED, particle, shared, turned_alike, zyx
from scipy.ndimage import map_coordinates

from deepict_dask.core.errors import PicksFormatError
from deepict_dask.io.orientation import matrices_from_angles, relion_angles, with_angles
from deepict_dask.io.picks import read_picks, write_picks
from deepict_dask.io.picks_table import make_picks

FINDER = SHARED / "golden" / "deepfinder"
PICKER = SHARED / "golden" / "deepetpicker"

# -- DeepFinder -----------------------------------------------------------------------------------


def test_an_object_list_has_positions_class_size_and_what_else_it_says(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text(
        '<objlist>\n<object class_label="2" x="9" y="88.5" z="5" cluster_size="120" who="me"/>\n'
        '<object class_label="1" x="1" y="2" z="3" tomo_idx="4"/>\n</objlist>\n'
    )
    picks = read_picks(path)
    assert zyx(picks).tolist() == [[5, 88.5, 9], [3, 2, 1]]
    np.testing.assert_array_equal(picks.score, [120, np.nan])
    np.testing.assert_array_equal(picks.n_voxels, [120, np.nan])
    np.testing.assert_array_equal(picks.tomogram_number, [np.nan, 4])
    assert picks.class_number.tolist() == [2, 1]
    assert picks.who.tolist() == ["me", ""]


@pytest.mark.parametrize(
    "name",
    [
        "cluster_r5_objlist_raw.xml",
        "cluster_r5_objlist_thr_50_100.xml",
        "targets/objl.xml",
        "targets/objl_oriented.xml",
    ],
)
def test_an_object_list_written_again_is_deepfinders_file_byte_for_byte(tmp_path, name):
    golden = shared(FINDER / name)
    write_picks(read_picks(golden), tmp_path / "again.xml")
    assert (tmp_path / "again.xml").read_bytes() == golden.read_bytes()


def test_the_real_object_list_is_read_with_its_orientations(tmp_path):
    path = shared(DATA / "other" / "object_list_tomo0.xml")
    picks = read_picks(path)
    assert len(picks) == path.read_text().count("<object ")
    first = picks.iloc[0]
    assert first[["z", "y", "x", "class_number"]].tolist() == [144, 261, 46, 11]
    write_picks(picks, tmp_path / "again.xml")
    again = read_picks(tmp_path / "again.xml")
    assert turned_alike(relion_angles(again), relion_angles(picks))
    assert again.drop(columns=["rot_degrees", "psi_degrees"]).equals(
        picks.drop(columns=["rot_degrees", "psi_degrees"])
    )


def test_orientations_turn_the_reference_as_deepfinder_turns_its_masks(tmp_path):
    golden = np.load(shared(FINDER / "targets" / "rotate_array.npz"))
    path = tmp_path / "a.xml"
    for name, (phi, psi, the) in {"30_60_45": (30, 60, 45), "10_m20_75": (10, -20, 75)}.items():
        path.write_text(
            f'<objlist><object class_label="1" x="1" y="2" z="3" phi="{phi}" psi="{psi}" '
            f'the="{the}"/></objlist>'
        )
        (turn,) = matrices_from_angles(relion_angles(read_picks(path)))
        mask = golden["inp"]
        grid = np.stack(np.meshgrid(*map(np.arange, mask.shape), indexing="ij"), -1).reshape(-1, 3)
        middle = np.array(mask.shape) / 2
        places = (grid - middle) @ turn[::-1, ::-1] + middle  # turned back, z y x
        ours = map_coordinates(mask, places.T, order=1).reshape(mask.shape)
        np.testing.assert_allclose(ours, golden[f"out_{name}"], atol=1e-5)


@pytest.mark.parametrize("name", ["cluster_r5_objlist_raw", "targets/objl_oriented"])
def test_a_workbook_says_what_the_xml_says(tmp_path, name):
    sheet = read_picks(shared(FINDER / f"{name}.xlsx"))
    xml = read_picks(FINDER / f"{name}.xml")
    np.testing.assert_allclose(zyx(sheet), zyx(xml), atol=6e-4)
    assert sheet.class_number.tolist() == xml.class_number.tolist()
    write_picks(sheet, tmp_path / "again.xlsx")
    again, golden = (
        list(openpyxl.load_workbook(path).active.iter_rows(values_only=True))
        for path in (tmp_path / "again.xlsx", FINDER / f"{name}.xlsx")
    )
    assert again[0] == golden[0]
    for ours, theirs in zip(again[1:], golden[1:], strict=True):
        assert [c is None for c in ours] == [c is None for c in theirs]
        numbers = [(a, b) for a, b in zip(ours, theirs, strict=True) if b is not None]
        np.testing.assert_allclose(*np.array(numbers, float).T, rtol=1e-12)


def test_texts_that_look_like_formulas_stay_texts_in_a_workbook(tmp_path):
    write_picks(particle().assign(note=["=1+1"]), tmp_path / "a.xlsx")
    (_, row) = openpyxl.load_workbook(tmp_path / "a.xlsx").active.iter_rows(values_only=True)
    assert row[-1] == " =1+1"


@pytest.mark.parametrize("ending", ["xml", "xlsx"])
def test_a_text_that_xml_cannot_hold_is_refused_and_nothing_written(tmp_path, ending):
    with pytest.raises(PicksFormatError, match="without control characters"):
        write_picks(particle().assign(note=["a\x01"]), tmp_path / f"a.{ending}")
    assert list(tmp_path.iterdir()) == []


def test_texts_with_signs_of_xml_survive(tmp_path):
    write_picks(particle().assign(note=["<a & 'b' \"c\">"]), tmp_path / "a.xml")
    assert read_picks(tmp_path / "a.xml").note.tolist() == ["<a & 'b' \"c\">"]


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbbbbbbbb"><!ENTITY c "&b;&b;&b;&b;">]>\n<objlist>&c;</objlist>'
FILE = (
    '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>\n<objlist><object x="&b;"/></objlist>'
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "line 1: expected no document type"),
        (FILE, "line 1: expected no document type"),
        ("", "line 1: expected the XML of an object list"),
        ("<objlist>\n<object", "line 2: expected the XML"),
        ("<html/>", "line 1: expected <objlist>, found <html>"),
        ("<objlist>\n<particle/></objlist>", "line 2: expected <object>, found <particle>"),
        ('<objlist>\n\n<object x="1" y="2"/></objlist>', "line 3: expected a number for z"),
        ('<objlist><object x="1" y="2" z="up"/></objlist>', "number for z, found 'up'"),
        ('<objlist><object x="1" y="2" z="inf"/></objlist>', "finite positions"),
        ("<objlist>" + "<object>" * 9, "line 1: expected <object>, found <object>|expected"),
    ],
)
def test_a_damaged_object_list_is_refused_with_the_line(tmp_path, text, message):
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(PicksFormatError, match=rf"a\.xml.*({message})"):
        read_picks(tmp_path / "a.xml")


def test_a_workbook_that_would_fill_the_memory_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr("deepict_dask.io.picks_formats.deepfinder._UNPACKED_BYTES", 1000)
    write_picks(make_picks([[1, 2, 3]] * 40), tmp_path / "a.xlsx")
    with pytest.raises(PicksFormatError, match="below 1 GiB unpacked"):
        read_picks(tmp_path / "a.xlsx")


def test_a_workbook_with_entities_is_refused(tmp_path):
    write_picks(particle(), tmp_path / "a.xlsx")
    with zipfile.ZipFile(tmp_path / "a.xlsx") as good:
        parts = {name: good.read(name) for name in good.namelist()}
    sheet = next(name for name in parts if "worksheets/sheet" in name)
    text = parts[sheet].decode()
    parts[sheet] = text.replace(
        "<worksheet", '<!DOCTYPE a [<!ENTITY b "c">]><worksheet', 1
    ).encode()
    with zipfile.ZipFile(tmp_path / "bad.xlsx", "w") as bad:
        for name, content in parts.items():
            bad.writestr(name, content)
    with pytest.raises(PicksFormatError, match=r"bad\.xlsx: expected an Excel workbook"):
        read_picks(tmp_path / "bad.xlsx")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["score", "x"], [1, 2]], "row 1: expected the titles x, y, z"),
        ([["x", "y", "z"], [1, 2, 3], [1, None, 3]], "line 3: expected a number for y, found ''"),
        ([["x", "y", "z"], [1, 2, "up"]], "line 2: expected a number for z, found 'up'"),
    ],
)
def test_a_damaged_workbook_is_refused_with_the_row(tmp_path, rows, message):
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    with pytest.raises(PicksFormatError, match=rf"a\.xlsx.*{message}"):
        read_picks(tmp_path / "a.xlsx")


# -- DeepETPicker and EMAN2 -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "picks_b72_p12_Coords_All.coords",
        "picks_b72_p12_Coords_withArea.coords",
        "targets/input.coords",
        "targets/after_coords_gen.coords",
        "mpnms/onecls_Coords_withArea.coords",
    ],
)
def test_lists_of_deepetpicker_are_read_column_by_column(tmp_path, name):
    path = shared(PICKER / name)
    rows = np.loadtxt(path)
    picks = read_picks(path)
    assert zyx(picks).tolist() == rows[:, [3, 2, 1]].tolist()
    assert picks.class_number.tolist() == rows[:, 0].tolist()
    if rows.shape[1] == 5:
        assert picks.score.tolist() == rows[:, 4].tolist()
    write_picks(picks, tmp_path / "again.coords")
    np.testing.assert_allclose(np.loadtxt(tmp_path / "again.coords"), rows, rtol=1e-8)


def test_a_list_of_positions_alone_has_neither_class_nor_score(tmp_path):
    (tmp_path / "a.coords").write_text("9 88 5\n")
    picks = read_picks(tmp_path / "a.coords")
    assert zyx(picks).tolist() == [[5, 88, 9]]
    assert list(picks.columns) == ["z", "y", "x", "score"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.coords", "1 2\n", "line 1: expected x y z, class x y z"),
        ("a.coords", "1 2 3 4\n1 2 3\n", "line 2: expected 4 columns"),
        ("a.coords", "1 2 3 x\n", "line 1: expected a number in column 4, found 'x'"),
        ("a.box", "10\t20\t64\t64\n", r"line 1: expected x y z of a box's centre \(2D boxes"),
    ],
)
def test_a_damaged_list_is_refused_with_the_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(PicksFormatError, match=message):
        read_picks(tmp_path / name)


def test_a_box_file_has_x_first_between_tabs(tmp_path):
    write_picks(with_angles(particle(), [[1, 2, 3]]), tmp_path / "a.box", **FRAME)
    assert (tmp_path / "a.box").read_text() == "9.125\t88.500\t5.250\n"
