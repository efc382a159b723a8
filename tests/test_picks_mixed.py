"""Lists put together of several: whose picks, of which class, called what."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from typer.testing import CliRunner

from deepict_dask.cli import app
from deepict_dask.core.errors import ConfigError, PicksFormatError
from deepict_dask.evaluate.settings import PicksEvaluation
from deepict_dask.io.picks import read_picks, write_picks
from deepict_dask.io.picks_table import make_picks, of_class, of_tomogram
from deepict_dask.jobs.evaluate import evaluate_picks
from deepict_dask.particles.merge import merge_picks

HERE, THERE = [[1, 2, 3]], [[40, 50, 60]]


def merged(one, other):
    return merge_picks([one, other], (2, 2, 2))


@pytest.mark.parametrize("name", ["m.mod", "m.tbl", "m.em", "m.coords", "m.xml"])
def test_classes_of_one_number_stay_two_where_their_names_differ(tmp_path, name, caplog):
    lists = [
        make_picks(place, class_name=[word], class_number=[1])
        for place, word in ((HERE, "ribosome"), (THERE, "fas"))
    ]
    with caplog.at_level(logging.WARNING):
        write_picks(merged(*lists), tmp_path / name)
    again = read_picks(tmp_path / name).sort_values("x")
    assert again["class_number"].tolist() == [2, 1]
    assert "class names are written as numbers: 1 = fas, 2 = ribosome" in caplog.text


def test_numbers_that_fit_their_names_stay(tmp_path, caplog):
    picks = make_picks([*HERE, *THERE], class_name=["ribosome", "fas"], class_number=[7, 3])
    write_picks(picks, tmp_path / "m.tbl")
    assert read_picks(tmp_path / "m.tbl")["class_number"].tolist() == [7, 3]
    assert "written as numbers" not in caplog.text


def test_a_list_with_numbers_and_one_with_names_get_numbers_of_names(tmp_path):
    lists = [
        make_picks(HERE, class_name=["ribosome"], class_number=[1]),
        make_picks(THERE, class_name=["fas"]),
    ]
    write_picks(merged(*lists), tmp_path / "m.coords")
    rows = [line.split() for line in (tmp_path / "m.coords").read_text().splitlines()]
    assert sorted(row[0] for row in rows) == ["1", "2"]


def test_tags_of_merged_dynamo_tables_are_unique(tmp_path):
    one = make_picks([*HERE, [9, 9, 9]], particle_number=[1, 2])
    other = make_picks([*THERE, [30, 9, 9]], particle_number=[2, 1])
    write_picks(merged(one, other), tmp_path / "m.tbl")
    tags = [line.split()[0] for line in (tmp_path / "m.tbl").read_text().splitlines()]
    assert tags == ["1", "2", "3", "4"]


def test_a_class_is_chosen_by_number_where_some_picks_have_none(tmp_path):
    (tmp_path / "a.xml").write_text(
        '<objlist><object class_label="1" x="1" y="2" z="3"/>'
        '<object class_label="2" x="4" y="5" z="6"/><object x="7" y="8" z="9"/></objlist>'
    )
    arguments = ["picks", "convert", str(tmp_path / "a.xml"), str(tmp_path / "b.csv")]
    found = CliRunner().invoke(app, [*arguments, "--class", "1"])
    assert found.exit_code == 0, found.output
    assert read_picks(tmp_path / "b.csv")["x"].tolist() == [1]


def test_a_tomogram_of_two_folders_is_asked_for_with_its_folder():
    picks = make_picks([*HERE, *THERE], tomogram_name=["grid1/TS_1.mrc", "grid2/TS_1.mrc"])
    one = of_tomogram(picks, "grid1/TS_1.mrc", "a.csv")
    assert one[["z", "y", "x"]].to_numpy().tolist() == HERE
    with pytest.raises(PicksFormatError, match=r"found grid1/TS_1\.mrc, grid2/TS_1\.mrc"):
        of_tomogram(picks, "TS_1", "a.csv")


def test_picks_of_several_tomograms_are_not_judged_as_of_one(tmp_path):
    names = ["TS_1", "TS_2"]
    write_picks(make_picks([*HERE, *THERE], tomogram_name=names), tmp_path / "found.csv")
    write_picks(make_picks([*THERE, *HERE], tomogram_name=names), tmp_path / "true.csv")
    with pytest.raises(PicksFormatError, match=r"found\.csv: .*one tomogram, found 2 .*--table"):
        evaluate_picks(tmp_path / "found.csv", tmp_path / "true.csv", PicksEvaluation(radius=3))


@pytest.mark.parametrize("name", ["a.xml", "a.xlsx", "a.csv", "a.star"])
def test_names_that_look_like_numbers_stay_as_they_are(tmp_path, name):
    own = {} if name == "a.star" else {"class_name": ["01", "02"]}
    picks = make_picks([*HERE, *THERE], tomogram_name=["007", "20230415_12"], **own)
    frame = {"voxel_spacing_angstrom": 10.0, "tomogram_shape": (90, 90, 90)}
    write_picks(picks, tmp_path / name, **frame)
    again = read_picks(tmp_path / name, **frame)
    assert again["tomogram_name"].tolist() == ["007", "20230415_12"]
    assert own == {} or again["class_name"].tolist() == ["01", "02"]


def test_an_underscore_makes_a_text_of_a_number(tmp_path):
    (tmp_path / "u.csv").write_text("x,y,z,run\n1,2,3,20230415_12\n")
    assert read_picks(tmp_path / "u.csv")["run"].tolist() == ["20230415_12"]


def test_copick_points_without_an_instance_are_of_none(tmp_path):
    picks = make_picks([*HERE, *THERE], instance_id=[4, np.nan])
    write_picks(picks, tmp_path / "p.json", voxel_spacing_angstrom=10)
    points = json.loads((tmp_path / "p.json").read_text())["points"]
    assert [point["instance_id"] for point in points] == [4, 0]


def test_lists_of_a_comparison_are_tables_whatever_the_lists_are_called(tmp_path):
    for name in ("motl_ribo.csv", "other.csv"):
        write_picks(make_picks([*HERE, *THERE]), tmp_path / name)
    arguments = ["picks", "compare", str(tmp_path / "motl_ribo.csv"), str(tmp_path / "other.csv")]
    found = CliRunner().invoke(
        app, [*arguments, "--distance", "3", "--output", str(tmp_path / "o")]
    )
    assert found.exit_code == 0, found.output
    head = (tmp_path / "o/motl_ribo_and_other.csv").read_text().splitlines()[0]
    assert {"other_x", "distance"} <= set(head.split(","))


@pytest.mark.parametrize(("unit", "shift"), [("", ("1", "2", "3")), ("Angst", ("10", "20", "30"))])
def test_shifts_are_taken_where_a_file_says_no_pixel_size(tmp_path, unit, shift):
    names = [f"_rlnCoordinate{axis}" for axis in "XYZ"] + [f"_rlnOrigin{a}{unit}" for a in "XYZ"]
    cells = " ".join(("10", "20", "30", *shift))
    (tmp_path / "a.star").write_text("data_\n\nloop_\n" + "\n".join(names) + f"\n{cells}\n")
    picks = read_picks(tmp_path / "a.star", voxel_spacing_angstrom=10)
    assert picks[["x", "y", "z"]].to_numpy().tolist() == [[9, 18, 27]]


def test_a_class_is_found_by_its_number_where_some_picks_have_none():
    picks = make_picks([[1, 2, 3], [4, 5, 6], [7, 8, 9]], class_number=[1, np.nan, 2])
    assert of_class(picks, "1", "a.csv").tolist() == [True, False, False]
    with pytest.raises(ConfigError, match=r"expected a class of the list, found 1, 2$"):
        of_class(picks, "", "a.csv")
