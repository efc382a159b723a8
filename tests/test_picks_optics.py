"""STAR files of every version: versions told by columns, optics groups, names, orientations.

Oracles: hand-made files, starfile, RELION's rules.
"""

import numpy as np
import pandas as pd
import pytest
import starfile
from picks_lists import FRAME, particle, star, turned_alike, zyx

from deepict_dask.core.errors import PicksFormatError, SpacingError
from deepict_dask.io.orientation import matrices_from_angles, relion_angles, with_angles
from deepict_dask.io.picks import read_picks, write_picks
from deepict_dask.io.picks_table import make_picks

NO_PIXEL = {**FRAME, "tilt_series_pixel_size_angstrom": None}
XYZ = ("rlnCoordinateX", "rlnCoordinateY", "rlnCoordinateZ")


def two_groups(path):
    """Write a list of two particles of two groups with pixels of 2 and 4 Å."""
    optics = pd.DataFrame(
        {
            "rlnOpticsGroup": [1, 4],
            "rlnOpticsGroupName": ["krios", "arctica"],
            "rlnVoltage": [300.0, 200.0],
            "rlnTomoTiltSeriesPixelSize": [2.0, 4.0],
        }
    )
    particles = pd.DataFrame({"rlnTomoName": ["a", "b"], "rlnOpticsGroup": [4, 1]})
    particles = particles.assign(**{key: [10.0, 20.0] for key in XYZ})
    starfile.write({"optics": optics, "particles": particles}, path)
    return path


@pytest.mark.parametrize(
    ("version", "blocks", "name", "pixel"),
    [
        ("relion3", [""], "rlnMicrographName", "rlnDetectorPixelSize"),
        ("relion3.1", ["optics", "particles"], "rlnMicrographName", "rlnImagePixelSize"),
        ("relion4", ["optics", "particles"], "rlnTomoName", "rlnTomoTiltSeriesPixelSize"),
        ("warp", ["optics", "particles"], "rlnTomoName", "rlnTomoTiltSeriesPixelSize"),
    ],
)
def test_each_version_has_its_blocks_names_and_pixels(tmp_path, version, blocks, name, pixel):
    path = tmp_path / "a.star"
    write_picks(make_picks([[1, 2, 3.25]], [0.5]), path, file_format=version, **FRAME)
    held = starfile.read(path, always_dict=True)
    assert list(held) == blocks
    particles = held[blocks[-1]].iloc[0]
    assert particles[[*XYZ]].tolist() == [13, 8, 4]
    assert particles[name] == ("TS_01.tomostar" if version == "warp" else "TS_01")
    assert held[blocks[0]].iloc[0][pixel] == 3.37
    # the file says the size of its pixels, so that the voxel spacing alone brings it back
    assert zyx(read_picks(path, voxel_spacing_angstrom=13.48)).tolist() == [[1, 2, 3.25]]


def test_the_version_comment_is_not_believed(tmp_path):
    path = tmp_path / "a.star"
    write_picks(particle(), path, **FRAME)
    path.write_text(path.read_text().replace("50001", "30000"))
    np.testing.assert_allclose(zyx(read_picks(path, **FRAME)), zyx(particle()), atol=1e-6)


def test_each_particle_has_the_pixels_of_its_own_optics_group(tmp_path):
    picks = read_picks(two_groups(tmp_path / "a.star"), voxel_spacing_angstrom=8)
    assert picks.x.tolist() == [5, 5]
    assert picks.rlnVoltage.tolist() == [200, 300]
    assert picks.rlnOpticsGroupName.tolist() == ["arctica", "krios"]


@pytest.mark.parametrize("version", ["relion4", "star", "warp"])
def test_optics_groups_are_written_as_they_were_read(tmp_path, version):
    source = two_groups(tmp_path / "a.star")
    names = {**NO_PIXEL, "tomogram_name": None}
    picks = read_picks(source, **names)
    write_picks(picks, tmp_path / "b.star", file_format=version, **names)
    was, now = starfile.read(source), starfile.read(tmp_path / "b.star")
    pd.testing.assert_frame_equal(now["optics"], was["optics"], check_dtype=False)
    assert now["particles"].rlnOpticsGroup.tolist() == [4, 1]
    if version != "star":
        np.testing.assert_allclose(now["particles"][[*XYZ]], was["particles"][[*XYZ]])
    assert not {"rlnVoltage", "rlnOpticsGroupName"} & set(now["particles"].columns)


def test_optics_survive_a_list_in_csv(tmp_path):
    names = {**NO_PIXEL, "tomogram_name": None}
    write_picks(read_picks(two_groups(tmp_path / "a.star"), **names), tmp_path / "a.csv")
    picks = read_picks(tmp_path / "a.csv")
    write_picks(picks, tmp_path / "b.star", file_format="relion4", **names)
    was, now = starfile.read(tmp_path / "a.star"), starfile.read(tmp_path / "b.star")
    pd.testing.assert_frame_equal(now["optics"], was["optics"], check_dtype=False)


def test_one_number_for_two_optics_of_merged_lists_becomes_two(tmp_path):
    picks = make_picks(
        [[1, 2, 3]] * 3,
        rlnOpticsGroup=[1, 1, np.nan],
        rlnTomoTiltSeriesPixelSize=[2.0, 4.0, 2.0],
    )
    write_picks(picks, tmp_path / "a.star", file_format="relion4", **NO_PIXEL)
    held = starfile.read(tmp_path / "a.star")
    groups = held["optics"].set_index("rlnOpticsGroup").rlnTomoTiltSeriesPixelSize
    assert groups[held["particles"].rlnOpticsGroup].tolist() == [2, 4, 2]
    assert held["optics"].rlnOpticsGroup.is_unique
    np.testing.assert_allclose(zyx(read_picks(tmp_path / "a.star", **NO_PIXEL)), [[1, 2, 3]] * 3)


def test_one_optics_group_need_not_be_named_by_the_particles(tmp_path):
    optics = pd.DataFrame({"rlnOpticsGroup": [1], "rlnTomoTiltSeriesPixelSize": [2.0]})
    starfile.write({"optics": optics, "particles": pd.DataFrame({key: [8.0] for key in XYZ})},
                   tmp_path / "a.star")  # fmt: skip
    assert zyx(read_picks(tmp_path / "a.star", voxel_spacing_angstrom=4)).tolist() == [[4, 4, 4]]


def test_a_particle_without_its_optics_group_is_refused_by_the_group(tmp_path):
    path = two_groups(tmp_path / "a.star")
    path.write_text(
        path.read_text().replace("\t4\tarctica", "\t3\tarctica").replace("4\tarc", "3\tarc")
    )
    with pytest.raises(PicksFormatError, match=r"groups 1, 3, found a particle of group 4"):
        read_picks(path, voxel_spacing_angstrom=8)


@pytest.mark.parametrize("size", ["nan", "0", "-1", "inf"])
def test_a_pixel_size_that_is_no_length_is_refused_with_the_particle(tmp_path, size):
    columns = {key: [1, 2] for key in XYZ} | {"rlnPixelSize": ["3", size]}
    path = star(tmp_path / "a.star", columns)
    with pytest.raises(SpacingError, match=r"for particle 2; .*--pixel-size-angstrom"):
        read_picks(path, voxel_spacing_angstrom=8)
    assert len(read_picks(path, voxel_spacing_angstrom=8, tilt_series_pixel_size_angstrom=3)) == 2


def test_scores_that_are_missing_for_some_stay_missing_for_these(tmp_path):
    picks = make_picks([[1, 2, 3], [4, 5, 6]], [0.5, np.nan])
    write_picks(picks, tmp_path / "a.star", **FRAME)
    np.testing.assert_array_equal(read_picks(tmp_path / "a.star", **FRAME).score, [0.5, np.nan])


def test_cells_that_are_missing_are_empty_and_never_the_word_nan(tmp_path):
    picks = make_picks([[1, 2, 3]] * 3, note=["a", None, np.nan], class_number=[2, np.nan, 1])
    write_picks(picks, tmp_path / "a.star", **FRAME)
    particles = starfile.read(tmp_path / "a.star")["particles"]
    assert particles.note.tolist() == ["a", "", ""]
    assert particles.rlnClassNumber.tolist() == [2, 0, 1]


def test_a_pick_without_a_tomogram_has_the_name_that_is_passed(tmp_path):
    picks = make_picks([[1, 2, 3]] * 2, tomogram_name=["TS_7", np.nan])
    write_picks(picks, tmp_path / "a.star", **FRAME)
    assert starfile.read(tmp_path / "a.star")["particles"].rlnTomoName.tolist() == ["TS_7", "TS_01"]
    with pytest.raises(PicksFormatError, match="--tomogram-name"):
        write_picks(picks, tmp_path / "b.star", **{**FRAME, "tomogram_name": None})


def test_a_tomogram_whose_name_is_a_number_keeps_its_noughts(tmp_path):
    frame = {**FRAME, "tomogram_name": None}
    write_picks(make_picks([[1, 2, 3]], tomogram_name=["007"]), tmp_path / "a.csv")
    write_picks(read_picks(tmp_path / "a.csv"), tmp_path / "a.star", **frame)
    assert read_picks(tmp_path / "a.star", **frame).tomogram_name.tolist() == ["007"]


def test_names_of_warp_and_of_relion_are_one_tomogram_when_it_is_named(tmp_path):
    write_picks(particle(), tmp_path / "w.star", file_format="warp", **FRAME)
    write_picks(particle(), tmp_path / "r.star", **FRAME)
    found = [read_picks(tmp_path / name, **FRAME).tomogram_name[0] for name in ("w.star", "r.star")]
    assert found == ["TS_01", "TS_01"]


@pytest.mark.parametrize("name", ['say "cheese"', "it's", "two\nlines"])
def test_a_name_that_no_star_file_can_hold_is_refused(tmp_path, name):
    with pytest.raises(PicksFormatError, match="without quotes and line breaks"):
        write_picks(particle().assign(class_name=[name]), tmp_path / "a.star", **FRAME)


def test_a_name_with_the_sign_of_a_comment_survives(tmp_path):
    picks = particle().assign(class_name=["ribosome#2"], quality=[0.5])
    write_picks(picks, tmp_path / "a.star", **FRAME)
    back = read_picks(tmp_path / "a.star", **FRAME)
    assert back.loc[0, ["class_name", "quality"]].tolist() == ["ribosome#2", 0.5]


def test_particles_of_merged_lists_that_share_a_name_are_counted_anew(tmp_path):
    picks = make_picks([[1, 2, 3]] * 2, rlnTomoParticleName=["TS_01/1", "TS_01/1"])
    write_picks(picks, tmp_path / "a.star", **FRAME)
    names = starfile.read(tmp_path / "a.star")["particles"].rlnTomoParticleName
    assert names.tolist() == ["TS_01/1", "TS_01/2"]


def test_angles_are_relion_angles_and_class_numbers_relion_classes(tmp_path):
    picks = with_angles(particle(), [[10.5, 20.5, -30.5]]).assign(class_number=[3])
    write_picks(picks, tmp_path / "a.star", **FRAME)
    row = starfile.read(tmp_path / "a.star")["particles"].iloc[0]
    assert row[["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]].tolist() == [10.5, 20.5, -30.5]
    assert row.rlnClassNumber == 3
    back = read_picks(tmp_path / "a.star", **FRAME)
    assert relion_angles(back).tolist() == [[10.5, 20.5, -30.5]]
    assert back.class_number.tolist() == [3]
    assert "rlnAngleRot" not in back.columns


def test_angles_of_subtomograms_come_before_those_of_particles(tmp_path):
    outer, inner = [20, 50, -70], [-15, 30, 100]
    columns = {key: [1] for key in XYZ} | {"rlnPixelSize": [1]}
    for axis, first, second in zip(("Rot", "Tilt", "Psi"), outer, inner, strict=True):
        columns |= {f"rlnTomoSubtomogram{axis}": [first], f"rlnAngle{axis}": [second]}
    path = star(tmp_path / "a.star", columns)
    picks = read_picks(path, voxel_spacing_angstrom=1)
    whole = matrices_from_angles([outer])[0] @ matrices_from_angles([inner])[0]
    np.testing.assert_allclose(matrices_from_angles(relion_angles(picks))[0], whole, atol=1e-12)
    write_picks(picks, tmp_path / "b.star", **FRAME)
    assert turned_alike(
        relion_angles(read_picks(tmp_path / "b.star", **FRAME)), relion_angles(picks)
    )


def test_a_word_among_the_angles_is_refused(tmp_path):
    columns = {key: ["1", "2"] for key in XYZ} | {"rlnPixelSize": [1, 1], "rlnAngleRot": ["a", "0"]}
    columns |= {key: [0, 0] for key in ("rlnAngleTilt", "rlnAnglePsi")}
    with pytest.raises(PicksFormatError, match=r"a\.star: expected numbers in rlnAngleRot"):
        read_picks(star(tmp_path / "a.star", columns), voxel_spacing_angstrom=1)


def test_a_last_row_that_is_cut_short_is_named_by_its_line(tmp_path):
    path = tmp_path / "a.star"
    write_picks(make_picks([[1, 2, 3], [4, 5, 6]]), path, **FRAME)
    lines = path.read_text().rstrip().splitlines()
    lines[-1] = " ".join(lines[-1].split()[:3])
    path.write_text("\n".join(lines))
    with pytest.raises(PicksFormatError, match=rf"line {len(lines)}: expected 6 cells.* found 3"):
        read_picks(path, **FRAME)
