"""`picks convert`, and the new formats in everything that takes a particle list.

Oracles: known positions, the lists in our own format.
"""

import pytest
from picks_lists import zyx
from typer.testing import CliRunner

from deepict_dask.cli import app
from deepict_dask.core.errors import ConfigError, OutputExistsError, PicksFormatError, SpacingError
from deepict_dask.evaluate.settings import PicksEvaluation
from deepict_dask.io.picks import read_picks, write_picks
from deepict_dask.io.picks_table import make_picks
from deepict_dask.jobs.evaluate import evaluate_picks
from deepict_dask.jobs.particle_lists.compare import compare_lists
from deepict_dask.jobs.particle_lists.merge import merge_lists
from deepict_dask.particles.merge import MergeSettings

ENDINGS = ["xml", "xlsx", "coords", "tbl", "mod", "json", "ndjson", "em"]


def run(*words):
    return CliRunner().invoke(app, ["picks", "convert", *map(str, words)], catch_exceptions=False)


def listed(path, zyx_of, scores, **columns):
    write_picks(make_picks(zyx_of, scores, **columns), path, voxel_spacing_angstrom=10)
    return path


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_list_goes_to_a_format_and_back_by_its_ending(tmp_path, ending):
    listed(tmp_path / "a.csv", [[5, 88, 9]], [0.75], class_number=[1])
    there, back = tmp_path / f"b.{ending}", tmp_path / "c.csv"
    assert run(tmp_path / "a.csv", there, "--voxel-spacing-angstrom", "10").exit_code == 0
    assert run(there, back, "--voxel-spacing-angstrom", "10").exit_code == 0
    assert zyx(read_picks(back)).tolist() == [[5, 88, 9]]


@pytest.mark.parametrize("ending", ["tbl", "em", "motl.csv"])
def test_a_list_that_numbers_its_tomograms_is_asked_by_number(tmp_path, ending):
    numbers, where = [2, 116, 2], [[5, 88, 9], [1, 2, 3], [4, 5, 6]]
    path = tmp_path / ("motl.csv" if ending == "motl.csv" else f"a.{ending}")
    listed(path, where, [0.9, 0.8, 0.7], tomogram_number=numbers)
    for name, called in (("116", "116"), ("116=TS_1", "TS_1")):
        picks = read_picks(path, tomogram_name=name)
        assert zyx(picks).tolist() == [[1, 2, 3]]
        assert picks.tomogram_name.tolist() == [called]
    for name in ("TS_1", "7", "7=TS_1"):
        with pytest.raises(PicksFormatError, match=r"one of its 2 tomograms \(2, 116\).*2=NAME"):
            read_picks(path, tomogram_name=name)
    words = (
        "--tomogram-name",
        "2=TS_9",
        "--voxel-spacing-angstrom",
        "10",
        "--tomogram-shape",
        "99,99,99",
    )
    assert run(path, tmp_path / "a.star", *words).exit_code == 0
    again = read_picks(tmp_path / "a.star", voxel_spacing_angstrom=10, tomogram_shape=(99, 99, 99))
    assert zyx(again).tolist() == [[5, 88, 9], [4, 5, 6]]
    assert set(again.tomogram_name) == {"TS_9"}


def test_a_list_with_names_is_asked_by_the_name_beside_a_number(tmp_path):
    """So that one option chooses from a numbered list and a named one."""
    listed(tmp_path / "a.csv", [[5, 88, 9], [1, 2, 3]], [0.9, 0.8], tomogram_name=["TS_1", "TS_2"])
    picks = read_picks(tmp_path / "a.csv", tomogram_name="116=TS_2")
    assert zyx(picks).tolist() == [[1, 2, 3]]
    assert picks.tomogram_name.tolist() == ["TS_2"]
    with pytest.raises(PicksFormatError, match="'TS_3'"):
        read_picks(tmp_path / "a.csv", tomogram_name="116=TS_3")


def test_points_that_napari_saved_are_read_in_angstrom(tmp_path):
    path = tmp_path / "TS_001.picks_ribosome.points.csv"
    path.write_text("index,axis-0,axis-1,axis-2,score\n0,50.0,880.0,90.0,0.75\n2,10,20,30,\n")
    with pytest.raises(PicksFormatError, match="--from napari"):  # or are they voxels?
        read_picks(path, voxel_spacing_angstrom=10)
    picks = read_picks(path, file_format="napari", voxel_spacing_angstrom=10)
    assert zyx(picks).tolist() == [[5, 88, 9], [1, 2, 3]]
    assert "index" not in picks.columns
    with pytest.raises(SpacingError, match="--voxel-spacing-angstrom"):
        read_picks(path, file_format="napari")
    write_picks(picks, tmp_path / "b.csv", file_format="napari", voxel_spacing_angstrom=10)
    again = read_picks(tmp_path / "b.csv", file_format="napari", voxel_spacing_angstrom=10)
    assert again.equals(picks)
    listed(tmp_path / "c.csv", [[5, 88, 9]], [0.9])
    with pytest.raises(PicksFormatError, match="axis-0, axis-1, axis-2, as napari"):
        read_picks(tmp_path / "c.csv", file_format="napari", voxel_spacing_angstrom=10)


def test_one_class_goes_to_a_format_that_holds_one(tmp_path):
    listed(tmp_path / "a.xml", [[5, 88, 9], [1, 2, 3]], [0.9, 0.8], class_number=[1, 12])
    words = (tmp_path / "a.xml", tmp_path / "a.json", "--voxel-spacing-angstrom", "10")
    with pytest.raises(PicksFormatError, match="write one list for each \\(--class\\)"):
        run(*words)
    with pytest.raises(ConfigError, match="--class 2: expected a class of the list, found 1, 12"):
        run(*words, "--class", "2")
    assert run(*words, "--class", "12").exit_code == 0
    back = read_picks(tmp_path / "a.json", voxel_spacing_angstrom=10)
    assert zyx(back).tolist() == [[1, 2, 3]]


def test_a_list_of_one_numbered_tomogram_is_of_the_one_asked_for(tmp_path):
    listed(tmp_path / "a.tbl", [[5, 88, 9]], [0.9], tomogram_number=[126])
    assert len(read_picks(tmp_path / "a.tbl", tomogram_name="TS_1")) == 1


def test_points_without_scores_keep_their_order(tmp_path, real_files):
    # two contours of an IMOD model; by falling score they would be in raster order
    drawn = real_files / "mod/imodmodel_two_contour_example.mod"
    assert run(drawn, tmp_path / "a.csv").exit_code == 0
    assert run(tmp_path / "a.csv", tmp_path / "b.mod").exit_code == 0
    before, after = (zyx(read_picks(path)) for path in (drawn, tmp_path / "b.mod"))
    assert len(before) == 25
    assert before[1:].tolist() != sorted(before[1:].tolist())
    assert abs(after - before).max() < 1e-3


def test_columns_that_are_left_out_are_named(tmp_path):
    listed(tmp_path / "a.csv", [[5, 88, 9]], [0.75], label=[1], quality=[0.5])
    assert run(tmp_path / "a.csv", tmp_path / "a.box").stdout.endswith(
        "a.box, without score, label, quality\n"
    )
    assert run(tmp_path / "a.csv", tmp_path / "a.ndjson").stdout.endswith("a.ndjson\n")


def test_relion_4_needs_the_size_of_a_pixel_and_takes_it_from_an_option(tmp_path):
    listed(tmp_path / "a.csv", [[5, 88, 9]], [0.75])
    words = [tmp_path / "a.csv", tmp_path / "a.star", "--format", "relion4", "--tomogram-name", "T"]
    words += ["--voxel-spacing-angstrom", "10"]
    with pytest.raises(SpacingError, match="--pixel-size-angstrom"):
        run(*words)
    assert run(*words, "--pixel-size-angstrom", "2.5").exit_code == 0
    assert "36.000000 352.000000 20.000000" in (tmp_path / "a.star").read_text()


def test_the_centre_of_relion_5_is_chosen_by_an_option(tmp_path):
    listed(tmp_path / "a.csv", [[10, 10, 10]], [0.75])
    words = [tmp_path / "a.csv", tmp_path / "a.star", "--tomogram-name", "T"]
    words += ["--voxel-spacing-angstrom", "10", "--tomogram-shape", "20,20,20", "--overwrite"]
    assert run(*words).exit_code == 0
    assert "T 0.000000 0.000000 0.000000" in (tmp_path / "a.star").read_text()
    run(*words, "--star-centre", "half-minus-one", "--pixel-size-angstrom", "2.5")
    assert "T 2.500000 2.500000 2.500000" in (tmp_path / "a.star").read_text()
    with pytest.raises(ConfigError, match="half or half-minus-one"):
        run(*words, "--star-centre", "middle")


def test_a_format_may_be_named_where_an_ending_means_another(tmp_path):
    (tmp_path / "a.txt").write_text("2 9 88 5\n")
    run(tmp_path / "a.txt", tmp_path / "b.csv", "--from", "coords")
    picks = read_picks(tmp_path / "b.csv")
    assert (zyx(picks).tolist(), picks.class_number.tolist()) == ([[5, 88, 9]], [2])


def test_a_list_that_is_there_is_not_replaced_unasked(tmp_path):
    listed(tmp_path / "a.csv", [[5, 88, 9]], [0.75])
    (tmp_path / "b.xml").write_text("old")
    with pytest.raises(OutputExistsError):
        run(tmp_path / "a.csv", tmp_path / "b.xml")
    assert (tmp_path / "b.xml").read_text() == "old"
    assert run(tmp_path / "a.csv", tmp_path / "b.xml", "--overwrite").exit_code == 0


@pytest.mark.parametrize("ending", ENDINGS)
def test_lists_are_judged_alike_whatever_their_format(tmp_path, ending):
    place = [[5, 5, 5], [9, 9, 9], [20, 20, 20]]
    found = listed(tmp_path / f"found.{ending}", place, [3, 2, 1], n_voxels=[3, 2, 1])
    true = listed(tmp_path / f"true.{ending}", [[5, 5, 6], [9, 9, 9]], [1, 1])
    score = evaluate_picks(found, true, PicksEvaluation(radius=2, voxel_spacing_angstrom=10))
    assert (score.recall, round(score.precision, 3)) == (1.0, 0.667)


@pytest.mark.parametrize("ending", ENDINGS)
def test_lists_are_merged_and_compared_whatever_their_format(tmp_path, ending):
    one = listed(tmp_path / f"one.{ending}", [[5, 5, 5], [9, 9, 9]], [2, 1])
    two = listed(tmp_path / f"two.{ending}", [[5, 5, 6]], [1])
    merged = tmp_path / f"merged.{ending}"
    frame = {"voxel_spacing_angstrom": 10.0}
    assert merge_lists([one, two], merged, MergeSettings(distance=3), **frame).n_kept == 2
    assert sorted(read_picks(merged).z) == [5, 9]
    assert compare_lists([one, two], 3, **frame).counts == {1: 1, 2: 1}


@pytest.mark.parametrize("ending", ["xml", "xlsx", "coords", "mod"])
def test_a_class_without_a_name_is_chosen_by_its_number(tmp_path, ending):
    place = [[5, 5, 5], [9, 9, 9]]
    found = listed(tmp_path / f"found.{ending}", place, [2, 1], class_number=[1, 2])
    true = listed(tmp_path / "true.csv", [[9, 9, 9]], [1], class_name=["2"])
    settings = PicksEvaluation.model_validate({"radius": 2, "class": "2"})
    assert evaluate_picks(found, true, settings).best_f1 == 1.0


def test_an_unknown_format_is_refused_with_the_known_ones(tmp_path):
    listed(tmp_path / "a.csv", [[5, 88, 9]], [0.75])
    with pytest.raises(PicksFormatError, match=r"found 'relion9'; .*\(csv, motl, .*deepfinder"):
        run(tmp_path / "a.csv", tmp_path / "a.star", "--format", "relion9")


def test_an_ending_that_is_given_as_a_format_leads_to_the_format(tmp_path):
    listed(tmp_path / "a.csv", [[5, 88, 9]], [0.75])
    with pytest.raises(PicksFormatError, match=r"found 'tbl'; .*\(csv, .*format dynamo"):
        run(tmp_path / "a.csv", tmp_path / "a.star", "--format", "tbl")


def test_a_score_that_a_list_lacks_is_an_empty_cell(tmp_path):
    (tmp_path / "a.box").write_text("9 88 5\n")
    run(tmp_path / "a.box", tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text() == "score,x,y,z\n,9.000,88.000,5.000\n"
    assert read_picks(tmp_path / "a.csv").score.isna().all()


@pytest.mark.parametrize("ending", ["tbl", "ndjson", "coords", "box"])
def test_a_file_without_a_byte_is_refused_and_a_list_without_picks_is_not(tmp_path, ending):
    (tmp_path / f"cut.{ending}").write_bytes(b"")
    with pytest.raises(PicksFormatError, match=r"cut\..*found an empty file \(0 bytes\)"):
        run(tmp_path / f"cut.{ending}", tmp_path / "a.csv")
    assert not (tmp_path / "a.csv").exists()
    write_picks(make_picks([]), tmp_path / f"none.{ending}")
    assert len(read_picks(tmp_path / f"none.{ending}")) == 0


def test_a_line_that_is_cut_short_is_refused(tmp_path):
    (tmp_path / "a.coords").write_text("1\t9\t88\t5\n1\t9\t8")
    with pytest.raises(PicksFormatError, match=r"line 2: expected 4 columns .*found 3"):
        run(tmp_path / "a.coords", tmp_path / "a.csv")


@pytest.mark.parametrize("ending", ["tbl", "em", "coords"])
def test_the_name_of_the_one_class_is_named_where_it_is_lost(tmp_path, ending):
    listed(tmp_path / "a.csv", [[5, 88, 9]], [0.75], class_name=["ribosome"])
    said = run(tmp_path / "a.csv", tmp_path / f"a.{ending}").stdout
    assert said.endswith(f"a.{ending}, without class_name\n")
    assert run(tmp_path / "a.csv", tmp_path / "a.mod").stdout.endswith("a.mod, without score\n")
