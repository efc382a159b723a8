"""picks.csv and motl: positions, columns and bytes of the text lists and of TOM's EM file.

Oracles: hand-written lists, DeePiCt's own motl files, emfile.
"""

import struct

import emfile
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picks_lists import SHARED, particle, shared, turned_alike, zyx
from scipy.spatial.transform import Rotation

from deepict_dask.core.errors import PicksFormatError
from deepict_dask.io.motl import dump_motl_csv
from deepict_dask.io.orientation import ANGLES, matrices_from_angles, relion_angles
from deepict_dask.io.picks import read_picks, write_picks
from deepict_dask.io.picks_csv import dump_picks_csv
from deepict_dask.io.picks_table import by_falling_score, make_picks

POSTPROC = SHARED / "golden" / "deepict" / "postproc"

# -- picks.csv ------------------------------------------------------------------------------------


def test_picks_csv_has_its_columns_in_order_and_goes_by_falling_score():
    picks = make_picks(
        [[5, 88, 9], [1, 2, 3]], [0.25, 0.5], colour=["red", "a,b"], label=[7, 8], n_voxels=[40, 50]
    )
    assert dump_picks_csv(picks).decode().splitlines() == [
        "score,x,y,z,n_voxels,label,colour",
        '0.5,3.000,2.000,1.000,50,8,"a,b"',
        "0.25,9.000,88.000,5.000,40,7,red",
    ]


def test_equal_scores_go_by_label_and_without_labels_in_raster_order():
    points = [[2, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert by_falling_score(make_picks(points, [1, 1, 1], label=[1, 3, 2])).label.tolist() == [
        1,
        2,
        3,
    ]
    assert zyx(by_falling_score(make_picks(points, [1, 1, 1])))[:, 2].tolist() == [0, 1, 0]


@given(order=st.permutations(range(8)))
@settings(deadline=None)
def test_the_bytes_do_not_depend_on_the_order_of_the_rows(order):
    picks = make_picks(np.arange(24).reshape(8, 3), [1, 1, 2, 2, 3, 3, np.nan, 0])
    assert dump_picks_csv(picks.iloc[order]) == dump_picks_csv(picks)


def test_columns_that_we_do_not_know_come_back_with_their_types(tmp_path):
    picks = make_picks([[1, 2, 3]], [0.5], label=[4], class_name=["ribosome, 80S"], quality=[0.125])
    write_picks(picks, tmp_path / "a.csv")
    back = read_picks(tmp_path / "a.csv")
    assert back.loc[0, ["label", "class_name", "quality"]].tolist() == [4, "ribosome, 80S", 0.125]
    assert back["label"].dtype.kind == "i"


@pytest.mark.parametrize("separator", [",", "\t", " ", "   ", ";", ", "])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_headerless_lists_of_three_and_four_columns_are_read(tmp_path, separator, newline):
    three, four = tmp_path / "three.txt", tmp_path / "four.csv"
    rows = [("9", "88.5", "5"), ("1", "2", "3")]
    three.write_bytes(newline.join(separator.join(row) for row in rows).encode())
    four.write_bytes(newline.join(separator.join(("0.5", *row)) for row in rows).encode())
    for path in (three, four):
        assert zyx(read_picks(path)).tolist() == [[5, 88.5, 9], [3, 2, 1]]
    assert read_picks(three).score.isna().all()
    assert read_picks(four).score.tolist() == [0.5, 0.5]


def test_a_header_may_be_in_any_order_and_case_after_a_byte_order_mark(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("\ufeff# made by hand\nZ,X,Y,Score\n5,9,88,0.5\n".encode())
    assert read_picks(path).loc[0, ["z", "y", "x", "score"]].tolist() == [5, 88, 9, 0.5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2\n", "found 2 columns"),
        ("1,2,3\n4,5\n", "line 2: expected 3 columns"),
        ("1,2,3\n\n4,oops,6\n", "line 3: expected a number in column 2, found 'oops'"),
        ("x,y\n1,2\n", "names x, y and z"),
        ("x,y,z,x\n1,2,3,4\n", "names x, y and z once"),
        ("1,2,3\n1,nan,3\n", "finite positions"),
        ("Point ID,X,Y,Z,Filament ID,n\n1,2,3,4,5,6\n", "positions are in Å"),
    ],
)
def test_a_damaged_list_is_refused_with_the_place_of_the_damage(tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(PicksFormatError, match=message):
        read_picks(path)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "bad.csv"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(PicksFormatError, match="no text at 0"):
        read_picks(path)


# -- motl -----------------------------------------------------------------------------------------

CASES = {
    "nomask_c1_min50": 1,
    "nomask_c3_min300_max1500_border": 3,
    "region_colocalization_r8_c1_min100": 1,
    "region_contact_c1_min100": 1,
    "region_intersection_c1_min100": 1,
}


@pytest.mark.parametrize("case", CASES)
def test_the_compatible_motl_equals_the_published_program_byte_for_byte(tmp_path, case):
    import mrcfile
    from skimage.measure import label, regionprops

    folder = shared(POSTPROC / case)
    with mrcfile.open(folder / "post_processed_prediction.mrc.gz", permissive=True) as file:
        clusters = regionprops(label(file.data > 0, connectivity=CASES[case]))
    picks = make_picks(
        [cluster.centroid for cluster in clusters],
        np.linspace(0, 1, len(clusters)),
        n_voxels=[int(cluster.area) for cluster in clusters],
        label=[cluster.label for cluster in clusters],
    )
    shuffled = picks.sample(frac=1, random_state=3)
    (golden,) = folder.glob("motl_*.csv")
    write_picks(shuffled, tmp_path / "motl.csv", file_format="motl-deepict")
    assert (tmp_path / "motl.csv").read_bytes() == golden.read_bytes()


@pytest.mark.parametrize("case", CASES)
def test_a_published_motl_read_and_written_again_is_the_same_file(tmp_path, case):
    (golden,) = shared(POSTPROC / case).glob("motl_*.csv")
    picks = read_picks(golden)
    assert zyx(picks).tolist() == np.loadtxt(golden, delimiter=",")[:, [9, 8, 7]].tolist()
    write_picks(picks, tmp_path / "motl.csv", file_format="motl-deepict")
    assert (tmp_path / "motl.csv").read_bytes() == golden.read_bytes()


def test_the_compatible_motl_rounds_halves_to_even():
    line = dump_motl_csv(make_picks([[2.5, 3.5, 4.5]], n_voxels=[7]), compat=True).decode()
    assert line == "7,4,4,1,0,0,0,4,4,2,0,0,0,0,0,0,0,0,0,1\n"


def test_a_motl_without_picks_has_no_bytes():
    assert dump_motl_csv(make_picks([])) == b""
    assert dump_motl_csv(make_picks([]), compat=True) == b""


def test_a_csv_whose_name_starts_with_motl_is_written_as_one(tmp_path):
    write_picks(particle(), tmp_path / "motl_1.csv")
    assert (tmp_path / "motl_1.csv").read_text().count(",") == 19


def test_a_tom_motl_is_read_as_emfile_reads_it_with_its_shifts_added():
    path = shared(SHARED / "data" / "other" / "motl_ribosome_t126.em")
    rows = emfile.read(path)[1].reshape(-1, 20)
    picks = read_picks(path)
    np.testing.assert_allclose(zyx(picks), rows[:, [9, 8, 7]] + rows[:, [12, 11, 10]])
    np.testing.assert_allclose(picks.score, rows[:, 0])
    rotation = Rotation.from_euler("zxz", rows[:, [16, 18, 17]], degrees=True)  # phi, theta, psi
    np.testing.assert_allclose(
        matrices_from_angles(relion_angles(picks)), rotation.as_matrix(), atol=1e-6
    )
    assert picks.particle_number[0] == 12933
    assert set(picks.tomogram_number) == {126}


def test_a_tom_motl_keeps_angles_numbers_and_classes_when_it_is_written_again(tmp_path):
    path = shared(SHARED / "data" / "other" / "motl_ribosome_t126.em")
    picks = read_picks(path)
    write_picks(picks, tmp_path / "again.em")
    again = read_picks(tmp_path / "again.em")
    assert turned_alike(relion_angles(again), relion_angles(picks))
    angles = list(ANGLES)
    pd.testing.assert_frame_equal(
        again.drop(columns=angles), picks.drop(columns=angles), rtol=1e-6, check_dtype=False
    )
    assert emfile.read(tmp_path / "again.em")[1].shape == (1, 50, 20)


def test_a_big_endian_motl_is_read(tmp_path):
    path = tmp_path / "a.em"
    row = np.zeros(20, ">f4")
    row[[0, 3, 7, 8, 9, 19]] = 0.5, 1, 9, 88, 5, 1
    head = struct.pack(">bbbb3i", 3, 0, 0, 5, 20, 1, 1).ljust(512, b"\0")
    path.write_bytes(head + row.tobytes())
    assert read_picks(path).to_dict("records") == [{"z": 5.0, "y": 88.0, "x": 9.0, "score": 0.5}]


def test_a_truncated_motl_is_refused_with_both_sizes(tmp_path):
    path = tmp_path / "a.em"
    write_picks(make_picks([[1, 2, 3]] * 4), path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(PicksFormatError, match="expected 832 bytes for 4 particles, found 824"):
        read_picks(path)


@pytest.mark.parametrize("content", [b"", b"\x06\0\0\x05", b"\x06\0\0\x05" + b"\x30\0\0\0" * 3])
def test_an_em_file_that_is_no_motl_is_refused(tmp_path, content):
    path = tmp_path / "a.em"
    path.write_bytes(content)
    with pytest.raises(PicksFormatError, match=r"512 bytes|no motl"):
        read_picks(path)
