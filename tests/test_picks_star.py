"""RELION's STAR files: what a position means in each version, and what is kept.

Oracles: hand-computed positions, RELION's formulas, starfile.
Not checked: that RELION itself accepts the files (no RELION here).
"""

import logging

import numpy as np
import pytest
import starfile
from picks_lists import DATA, FRAME, particle, shared, star, zyx

from deepict_dask.core.errors import PicksFormatError, SpacingError
from deepict_dask.io.picks import read_picks, write_picks
from deepict_dask.io.picks_table import make_picks
from deepict_dask.io.star import read_star_blocks

STAR = DATA / "star"
XYZ = [f"rlnCoordinate{axis}" for axis in "XYZ"]


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
    assert picks.tilt_degrees.tolist() == rows.rlnAngleTilt.tolist()
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


def test_fractions_of_the_tomogram_as_warps_template_matching_writes_them(tmp_path, caplog):
    path = star(
        tmp_path / "TS_1_10.00Apx_emd_15854.star",
        {
            "rlnCoordinateX": [0.25, 1.0], "rlnCoordinateY": [0.5, 0.0],
            "rlnCoordinateZ": [0.125, 0.5], "rlnMicrographName": ["TS_1.tomostar"] * 2,
        },
    )  # fmt: skip
    with caplog.at_level(logging.WARNING):
        picks = read_picks(path, tomogram_shape=(80, 200, 400))
    assert zyx(picks).tolist() == [[10, 100, 100], [40, 0, 400]]
    assert "fractions of the tomogram's size" in caplog.text
    with pytest.raises(PicksFormatError, match=r"fractions .*--tomogram-shape"):
        read_picks(path)


def test_the_particles_of_a_species_of_m_are_read_at_the_first_point_of_time(tmp_path):
    columns = {f"wrpCoordinate{axis}{time}": [10.0 * n * time]
               for time in (1, 2) for n, axis in enumerate("XYZ", 1)}  # fmt: skip
    angles = {"wrpAngleRot1": [30.0], "wrpAngleTilt1": [40.0], "wrpAnglePsi1": [50.0]}
    path = star(tmp_path / "a.star", columns | angles | {"wrpSourceName": ["TS_1.tomostar"]})
    frame = {"voxel_spacing_angstrom": 5, "tilt_series_pixel_size_angstrom": 2.5}
    picks = read_picks(path, tomogram_name="TS_1", **frame)  # no pixel is meant
    assert zyx(picks).tolist() == [[6, 4, 2]]
    found = picks[["rot_degrees", "tilt_degrees", "psi_degrees"]].to_numpy()[0]
    np.testing.assert_allclose(found, [30, 40, 50])
    write_picks(picks, tmp_path / "b.star", file_format="relion4", **frame)
    again = starfile.read(tmp_path / "b.star")
    row = (again["particles"] if isinstance(again, dict) else again).iloc[0]
    assert [row.rlnCoordinateX, row.rlnCoordinateY, row.rlnCoordinateZ] == [4, 8, 12]
    with pytest.raises(SpacingError, match="--voxel-spacing-angstrom"):
        read_picks(path)


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


@pytest.mark.parametrize(("row", "found"), [("1 2", 2), ("1 2 3 4 5", 5)])
def test_a_row_with_a_cell_too_few_or_too_many_is_refused_by_its_line(tmp_path, row, found):
    path = star(tmp_path / "a.star", {n: [7, 8] for n in ("rlnTomoName", *XYZ)})
    path.write_text(path.read_text().rstrip() + f"\n{row}\n")
    with pytest.raises(PicksFormatError, match=rf"a\.star, line 10: expected 4 cells.*{found}"):
        read_picks(path)


def test_a_last_column_of_missing_numbers_is_no_damage(tmp_path):
    columns = {n: [7, 8] for n in XYZ} | {"rlnPixelSize": [1, 1], "quality": ["nan", 1]}
    picks = read_picks(star(tmp_path / "a.star", columns), voxel_spacing_angstrom=1)
    np.testing.assert_array_equal(picks.quality, [np.nan, 1])


REAL = {
    # version, voxel spacing of the tomogram
    "bin1_1deg_500.star": ("relion3", 7.88),
    "relion_3.0.star": ("relion3", 10.73),
    "relion_3.1_optics2.star": ("relion3.1", 12.23),
    "pytom_example_starfile.star": ("relion3.1", 10.96),
}


@pytest.mark.parametrize("name", REAL)
def test_a_real_list_written_again_keeps_its_places_and_all_its_columns(tmp_path, name):
    version, spacing = REAL[name]
    source, target = shared(STAR / name), tmp_path / "again.star"
    picks = read_picks(source, voxel_spacing_angstrom=spacing)
    write_picks(picks, target, file_format=version, voxel_spacing_angstrom=spacing)
    was, now = (starfile.read(path, always_dict=True) for path in (source, target))
    (was, *_), (now, *_) = (
        [block for block in blocks.values() if XYZ[0] in block.columns] for blocks in (was, now)
    )
    moved = {*XYZ, *(f"rlnOrigin{axis}Angst" for axis in "XYZ"), "rlnOpticsGroupName"}
    stays = [column for column in was.columns if column not in moved]
    for column in stays:
        if was[column].dtype.kind in "if":
            np.testing.assert_allclose(now[column], was[column], rtol=1e-6, err_msg=column)
        else:
            assert now[column].tolist() == was[column].tolist()
    again = read_picks(target, voxel_spacing_angstrom=spacing)
    np.testing.assert_allclose(zyx(again), zyx(picks), atol=1e-5)


def test_every_real_star_file_is_read_block_by_block_as_starfile_reads_it():
    files = sorted(shared(STAR).glob("*.star"))
    assert len(files) >= 8
    for path in files:
        ours, theirs = read_star_blocks(path), starfile.read(path, always_dict=True)
        assert list(ours) == list(theirs)
        for name, block in theirs.items():
            if not isinstance(block, dict):
                assert ours[name].astype(str).equals(block.astype(str))
