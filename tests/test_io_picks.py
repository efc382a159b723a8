"""Particle lists in and out: positions survive every format, bytes are the same every time.

Oracles: hand-computed positions, DeePiCt's own motl files, starfile, emfile, RELION's formulas.
Not checked: that RELION itself accepts the STAR files (no RELION here).
"""

import logging
import struct
from pathlib import Path

import emfile
import numpy as np
import pandas as pd
import pytest
import starfile
from hypothesis import given, settings
from hypothesis import strategies as st

from deepict_dask.core.errors import PicksFormatError, SpacingError
from deepict_dask.io.motl import dump_motl_csv
from deepict_dask.io.picks import FORMATS, read_picks, write_picks
from deepict_dask.io.picks_csv import dump_picks_csv
from deepict_dask.io.picks_table import by_falling_score, make_picks

SHARED = Path(__file__).parents[1].parent / "shared"
STAR = SHARED / "data" / "star"
POSTPROC = SHARED / "golden" / "deepict" / "postproc"
SHAPE = (101, 200, 301)
FRAME = {
    "voxel_spacing_angstrom": 13.48,
    "tomogram_shape": SHAPE,
    "tomogram_name": "TS_01",
    "tilt_series_pixel_size_angstrom": 3.37,
}


def shared(path):
    if not path.exists():
        pytest.skip(f"{path} is absent")
    return path


def zyx(picks):
    return picks[["z", "y", "x"]].to_numpy()


def particle():
    return make_picks([[5.25, 88.5, 9.125]], [0.75])


# -- every format ---------------------------------------------------------------------------------

WHOLE_VOXELS_ONLY = {"motl-deepict"}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("centre", ["half", "half-minus-one"])
def test_a_particle_at_a_known_voxel_survives_every_format(tmp_path, name, centre):
    ending = (*FORMATS[name].endings, ".star" if name == "relion4" else ".csv")[0]
    path = tmp_path / f"list{ending}"
    position = [[5, 88, 9]] if name in WHOLE_VOXELS_ONLY else [[5.25, 88.5, 9.125]]
    write_picks(make_picks(position, [3]), path, file_format=name, star_centre=centre, **FRAME)
    back = read_picks(path, star_centre=centre, **FRAME)
    np.testing.assert_allclose(zyx(back), position, atol=1e-6)
    assert back.score.tolist() == [3.0]


@pytest.mark.parametrize("name", FORMATS)
def test_no_picks_are_written_and_read_as_no_picks(tmp_path, name):
    ending = (*FORMATS[name].endings, ".star" if name == "relion4" else ".csv")[0]
    path = tmp_path / f"none{ending}"
    write_picks(make_picks([]), path, file_format=name, **FRAME)
    back = read_picks(path, **FRAME)
    assert len(back) == 0
    assert {"z", "y", "x", "score"} <= set(back.columns)
    assert zyx(back).dtype == np.float64


@pytest.mark.parametrize("name", FORMATS)
def test_writing_twice_gives_the_same_bytes(tmp_path, name):
    picks = make_picks(np.random.default_rng(1).uniform(0, 100, (20, 3)), np.arange(20) / 7)
    for copy in ("a", "b"):
        write_picks(picks, tmp_path / copy, file_format=name, **FRAME)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@settings(max_examples=40, deadline=None)
@given(
    points=st.lists(st.tuples(*[st.integers(-2000, 900_000)] * 3), max_size=6),
    name=st.sampled_from(["csv", "motl", "star", "relion4"]),
)
def test_any_position_in_thousandths_of_a_voxel_survives_the_text_formats(
    tmp_path_factory, points, name
):
    path = tmp_path_factory.mktemp("picks") / ("a.star" if name in {"star", "relion4"} else "a.csv")
    positions = np.array(points, np.float64).reshape(-1, 3) / 1000
    picks = make_picks(positions, np.arange(len(points))[::-1])
    write_picks(picks, path, file_format=name, **FRAME)
    np.testing.assert_allclose(zyx(read_picks(path, **FRAME)), positions, atol=1e-6)


def test_an_unknown_ending_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(PicksFormatError, match=r"\.csv, \.em, \.star.*'\.docx'"):
        write_picks(particle(), tmp_path / "picks.docx")


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(PicksFormatError, match=r"nothing\.csv: .*found no file"):
        read_picks(tmp_path / "nothing.csv")


def test_a_missing_folder_is_refused_and_not_created(tmp_path):
    with pytest.raises(PicksFormatError, match=r"create .*deep"):
        write_picks(particle(), tmp_path / "deep" / "picks.csv")
    assert not (tmp_path / "deep").exists()


def test_a_failed_write_leaves_the_old_list_and_no_other_file(tmp_path):
    path = tmp_path / "picks.star"
    write_picks(particle(), path, **FRAME)
    before = path.read_bytes()
    with pytest.raises(SpacingError):
        write_picks(particle(), path, tomogram_name="TS_02")
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["picks.star"]


def test_a_write_that_fails_at_the_last_step_leaves_the_old_list(tmp_path, monkeypatch):
    path = tmp_path / "picks.csv"
    path.write_text("1,2,3\n")

    def full_disk(*_):
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_picks(particle(), path)
    assert path.read_text() == "1,2,3\n"
    assert [file.name for file in tmp_path.iterdir()] == ["picks.csv"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_position_that_is_no_number_is_never_written(tmp_path, bad):
    with pytest.raises(PicksFormatError, match="the first in row 1"):
        write_picks(make_picks([[1, 2, 3], [1, bad, 3]]), tmp_path / "a.csv")
    assert list(tmp_path.iterdir()) == []


def test_a_table_without_positions_is_refused_with_its_columns(tmp_path):
    with pytest.raises(PicksFormatError, match=r"found \['x', 'y'\].*add z"):
        write_picks(pd.DataFrame({"x": [1], "y": [2]}), tmp_path / "a.csv")


def test_picks_outside_the_tomogram_are_counted_aloud(tmp_path, caplog):
    path = tmp_path / "a.csv"
    path.write_text("9,9,9\n9,9,10\n-1,0,0\n")
    with caplog.at_level(logging.WARNING):
        read_picks(path, tomogram_shape=(10, 10, 10))
    assert "2 of 3 picks lie outside" in caplog.text


@pytest.mark.parametrize("spacing", [0, -1, np.nan, np.inf])
def test_a_voxel_spacing_that_is_no_length_is_refused(tmp_path, spacing):
    with pytest.raises(SpacingError, match="expected a positive number"):
        write_picks(particle(), tmp_path / "a.csv", voxel_spacing_angstrom=spacing)


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
    np.testing.assert_allclose(picks.phi, rows[:, 16])
    assert picks.particle_number[0] == 12933
    assert set(picks.tomogram_number) == {126}


def test_a_tom_motl_keeps_angles_numbers_and_classes_when_it_is_written_again(tmp_path):
    path = shared(SHARED / "data" / "other" / "motl_ribosome_t126.em")
    picks = read_picks(path)
    write_picks(picks, tmp_path / "again.em")
    again = read_picks(tmp_path / "again.em")
    pd.testing.assert_frame_equal(again, picks, rtol=1e-6, check_dtype=False)
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


# -- STAR -----------------------------------------------------------------------------------------


def test_centred_coordinates_follow_the_documented_rule(tmp_path):
    path = tmp_path / "a.star"
    write_picks(make_picks([[50.5, 100, 0]], [0.75]), path, **FRAME)
    blocks = starfile.read(path)
    row = blocks["particles"].iloc[0]
    assert list(blocks) == ["optics", "particles"]
    # the centre of 101, 200, 301 voxels is 50.5, 100, 150.5
    assert row.rlnCenteredCoordinateZAngst == 0
    assert row.rlnCenteredCoordinateYAngst == 0
    assert row.rlnCenteredCoordinateXAngst == pytest.approx(-150.5 * 13.48)
    assert (row.rlnTomoName, row.rlnTomoParticleName) == ("TS_01", "TS_01/1")
    assert row.rlnAutopickFigureOfMerit == 0.75
    optics = blocks["optics"].iloc[0]
    assert (optics.rlnOpticsGroup, optics.rlnTomoTiltSeriesPixelSize) == (1, 3.37)


def test_the_other_centre_lies_one_unbinned_pixel_lower(tmp_path):
    path = tmp_path / "a.star"
    write_picks(make_picks([[50.5, 100, 150.5]]), path, star_centre="half-minus-one", **FRAME)
    row = starfile.read(path)["particles"].iloc[0]
    assert row.rlnCenteredCoordinateZAngst == pytest.approx(3.37)
    assert zyx(read_picks(path, **FRAME))[0].tolist() == pytest.approx([50.75, 100.25, 150.75])


def test_relion_4_coordinates_are_unbinned_pixels(tmp_path):
    path = tmp_path / "a.star"
    write_picks(make_picks([[1, 2, 3.25]]), path, file_format="relion4", **FRAME)
    row = starfile.read(path)["particles"].iloc[0]
    assert row[["rlnCoordinateX", "rlnCoordinateY", "rlnCoordinateZ"]].tolist() == [13, 8, 4]
    # the file says its own pixel size, so that the voxel spacing alone brings it back
    assert zyx(read_picks(path, voxel_spacing_angstrom=13.48)).tolist() == [[1, 2, 3.25]]


def test_an_unknown_pixel_size_is_not_guessed_in_the_optics(tmp_path):
    frame = {**FRAME, "tilt_series_pixel_size_angstrom": None}
    write_picks(particle(), tmp_path / "a.star", **frame)
    optics = starfile.read(tmp_path / "a.star")["optics"]
    assert list(optics.columns) == ["rlnOpticsGroup", "rlnOpticsGroupName"]
    with pytest.raises(SpacingError, match="pass tilt_series_pixel_size_angstrom"):
        write_picks(particle(), tmp_path / "b.star", file_format="relion4", **frame)


def test_a_star_file_holds_no_score_where_none_is_known(tmp_path):
    write_picks(make_picks([[1, 2, 3]]), tmp_path / "a.star", **FRAME)
    assert "rlnAutopickFigureOfMerit" not in starfile.read(tmp_path / "a.star")["particles"]


def test_a_star_file_names_no_date(tmp_path):
    write_picks(particle(), tmp_path / "a.star", **FRAME)
    comments = [x for x in (tmp_path / "a.star").read_text().splitlines() if x.startswith("#")]
    assert comments == ["# version 50001", "# version 50001"]


@pytest.mark.parametrize(
    ("missing", "error", "advice"),
    [
        ("voxel_spacing_angstrom", SpacingError, "--voxel-spacing-angstrom"),
        ("tomogram_shape", PicksFormatError, "--tomogram-shape"),
        ("tomogram_name", PicksFormatError, "--tomogram-name"),
    ],
)
def test_what_a_star_file_needs_is_asked_for_by_name(tmp_path, missing, error, advice):
    with pytest.raises(error, match=advice):
        write_picks(particle(), tmp_path / "a.star", **{**FRAME, missing: None})
    if missing != "tomogram_name":
        write_picks(particle(), tmp_path / "b.star", **FRAME)
        with pytest.raises(error, match=f"b.star: .*{advice}"):
            read_picks(tmp_path / "b.star", **{**FRAME, missing: None})


def test_our_own_columns_and_names_with_blanks_survive_a_star_file(tmp_path):
    picks = make_picks(
        [[1, 2, 3], [4, 5, 6], [7, 8, 9]],
        [0.5, 0.25, 0.125],
        tomogram_name=["TS 1", "TS 1", "7"],
        class_name=["80S ribosome", "", "_FAS"],
        n_voxels=[7, 8, 9],
        rlnAngleTilt=[10.5, 20.5, 30.5],
    )
    write_picks(picks, tmp_path / "a.star", **{**FRAME, "tomogram_name": None})
    back = read_picks(tmp_path / "a.star", **{**FRAME, "tomogram_name": None})
    for name in ("tomogram_name", "class_name", "n_voxels", "rlnAngleTilt"):
        assert back[name].tolist() == picks[name].tolist()
    assert back.rlnTomoParticleName.tolist() == ["TS 1/1", "TS 1/2", "7/1"]


PARTICLE_FILES = {
    # tomogram's voxel spacing in its name, size of the pixels that coordinates count
    "bin1_1deg_500.star": (7.88, [1.971, 1.971]),
    "relion_3.0.star": (10.73, [5.364] * 3),
    "relion_3.1_optics2.star": (12.23, [2.446, 3.446, 2.446]),
}


@pytest.mark.parametrize("name", PARTICLE_FILES)
def test_particle_files_of_relion_3_are_read_in_voxels_of_the_tomogram(name):
    path = shared(STAR / name)
    spacing, pixels = PARTICLE_FILES[name]
    blocks = starfile.read(path, always_dict=True)
    rows = next(block for block in blocks.values() if "rlnCoordinateX" in block.columns)
    if "rlnOpticsGroup" in rows.columns:
        pixels = blocks["optics"].set_index("rlnOpticsGroup").rlnImagePixelSize[rows.rlnOpticsGroup]
    axes = "ZYX"
    origins = [f"rlnOrigin{axis}Angst" for axis in axes]
    shift = rows[origins].to_numpy() if set(origins) <= set(rows.columns) else 0
    coordinates = rows[[f"rlnCoordinate{axis}" for axis in axes]].to_numpy()
    expected = (coordinates * np.asarray(pixels)[:, None] - shift) / spacing
    picks = read_picks(path, voxel_spacing_angstrom=spacing)
    np.testing.assert_allclose(zyx(picks), expected, rtol=1e-6)
    assert picks.rlnAngleTilt.tolist() == rows.rlnAngleTilt.tolist()
    assert picks.tomogram_name.tolist() == rows.rlnMicrographName.tolist()
    assert not [column for column in picks.columns if "Coordinate" in column or "Origin" in column]


def test_a_wrong_pixel_size_in_a_file_can_be_overridden():
    # the file says 10.96 Å but its coordinates count the 2.74 Å pixels of its image names
    path = shared(STAR / "pytom_example_starfile.star")
    picks = read_picks(path, voxel_spacing_angstrom=10.96, tilt_series_pixel_size_angstrom=2.74)
    assert len(picks) == 74
    first = (np.array([828.612, 462.016, 1320.76]) * 2.74 - [6.042518, 6.343918, 5.480818]) / 10.96
    np.testing.assert_allclose(zyx(picks)[0], first)


@pytest.mark.parametrize(
    "name",
    [
        "R5_tutorial_run_tomograms.star",
        "r5_project_tomograms.star",
        "r5_project_tomo200528_107.star",
        "warp2_matching_tomograms.star",
    ],
)
def test_a_star_file_without_particles_is_refused_with_its_blocks(name):
    with pytest.raises(PicksFormatError, match=r"found blocks \["):
        read_picks(shared(STAR / name), voxel_spacing_angstrom=10)


def star(path, columns):
    header = "".join(f"_{name} #{i}\n" for i, name in enumerate(columns, 1))
    rows = "".join(" ".join(map(str, row)) + "\n" for row in zip(*columns.values(), strict=True))
    path.write_text(f"data_particles\n\nloop_\n{header}{rows}\n")
    return path


def test_centred_columns_win_over_uncentred_ones(tmp_path):
    columns = {"rlnTomoName": ["a"], "rlnTomoTiltSeriesPixelSize": [5]}
    columns |= {f"rlnCoordinate{axis}": [999] for axis in "XYZ"}
    columns |= {f"rlnCenteredCoordinate{axis}Angst": [20] for axis in "XYZ"}
    picks = read_picks(
        star(tmp_path / "a.star", columns), voxel_spacing_angstrom=10, tomogram_shape=(10, 20, 30)
    )
    assert zyx(picks).tolist() == [[7, 12, 17]]


def test_one_tomogram_is_chosen_by_name_whatever_its_ending(tmp_path):
    columns = {"rlnTomoName": ["TS_1.tomostar", "TS_17.tomostar", "f/TS_1.mrc"]}
    columns |= {f"rlnCoordinate{axis}": [1, 2, 3] for axis in "XYZ"}
    columns["rlnPixelSize"] = [10] * 3
    path = star(tmp_path / "a.star", columns)
    kept = read_picks(path, voxel_spacing_angstrom=10, tomogram_name="TS_1")
    assert kept.x.tolist() == [1, 3]
    with pytest.raises(PicksFormatError, match=r"'TS_2', found 3 others \(TS_1.tomostar"):
        read_picks(path, voxel_spacing_angstrom=10, tomogram_name="TS_2")


def test_origins_in_pixels_are_subtracted(tmp_path):
    columns = {f"rlnCoordinate{axis}": [40] for axis in "XYZ"}
    columns |= {f"rlnOrigin{axis}": [shift] for axis, shift in zip("XYZ", (4, 8, -4), strict=True)}
    columns |= {"rlnDetectorPixelSize": [2.5], "rlnMagnification": [10000]}
    picks = read_picks(star(tmp_path / "a.star", columns), voxel_spacing_angstrom=10)
    assert zyx(picks).tolist() == [[11, 8, 9]]


def test_origins_are_turned_by_the_angles_of_the_subtomogram(tmp_path):
    rot, tilt, psi = np.deg2rad([20, 50, -70])
    offset = np.array([3.0, -5.0, 7.0])
    columns = {f"rlnCenteredCoordinate{axis}Angst": [100] for axis in "XYZ"}
    columns |= {f"rlnOrigin{a}Angst": [value] for a, value in zip("XYZ", offset, strict=True)}
    columns |= {"rlnTomoSubtomogramRot": [20], "rlnTomoSubtomogramTilt": [50]}
    columns |= {"rlnTomoSubtomogramPsi": [-70]}
    path = star(tmp_path / "a.star", columns)
    picks = read_picks(path, voxel_spacing_angstrom=2, tomogram_shape=(10, 10, 10))

    def about_z(angle):
        c, s = np.cos(angle), np.sin(angle)
        return np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])

    c, s = np.cos(tilt), np.sin(tilt)
    about_y = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
    # RELION rotates the axes: first rot about z, then tilt about y, then psi about z
    turned = about_z(psi) @ about_y @ about_z(rot) @ offset
    np.testing.assert_allclose(zyx(picks)[0], (100 - turned[::-1]) / 2 + 5)


def test_coordinates_without_any_pixel_size_are_voxels_and_this_is_said(tmp_path, caplog):
    path = star(tmp_path / "a.star", {f"rlnCoordinate{axis}": [9] for axis in "XYZ"})
    with caplog.at_level(logging.WARNING):
        assert zyx(read_picks(path)).tolist() == [[9, 9, 9]]
    assert "taken as voxels" in caplog.text


def test_a_star_file_with_one_particle_and_no_loop_is_read(tmp_path):
    path = tmp_path / "a.star"
    rows = "".join(f"_rlnCoordinate{axis} {n}\n" for n, axis in enumerate("XYZ", 7))
    path.write_text(f"data_particles\n\n{rows}_rlnPixelSize 10\n")
    assert zyx(read_picks(path, voxel_spacing_angstrom=10)).tolist() == [[9, 8, 7]]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello\n",
        "data_particles\n\nloop_\n",
        "data_particles\n\nloop_\n_rlnCoordinateX #1\n1\n",
    ],
)
def test_a_damaged_star_file_is_refused(tmp_path, text):
    path = tmp_path / "a.star"
    path.write_text(text)
    with pytest.raises(PicksFormatError, match=r"a\.star"):
        read_picks(path, voxel_spacing_angstrom=10)


def test_a_word_in_a_coordinate_column_is_refused(tmp_path):
    columns = {f"rlnCoordinate{axis}": ["1", "oops"] for axis in "XYZ"} | {"rlnPixelSize": [1, 1]}
    with pytest.raises(PicksFormatError, match="expected numbers in rlnCoordinateX"):
        read_picks(star(tmp_path / "a.star", columns), voxel_spacing_angstrom=1)
