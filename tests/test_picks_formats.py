"""Particle lists in and out: positions, orientations and classes survive every format.

Oracles: known positions, rotation matrices, the same bytes twice.
"""

import contextlib
import logging
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picks_lists import FRAME, particle, turned_alike, zyx

from deepict_dask.core.errors import DeepictError, PicksFormatError, SpacingError
from deepict_dask.io.orientation import has_angles, relion_angles, with_angles
from deepict_dask.io.picks import FORMATS, columns_left_out, read_picks, write_picks
from deepict_dask.io.picks_table import make_picks

WHOLE_VOXELS_ONLY = {"motl-deepict"}
FLOAT32 = {"em", "imod"}
ROUGH = FLOAT32 | {"napari"}  # which has three decimals of an Å
NO_SCORE = {"imod", "box"}


def ending(name):
    stars = {"relion4", "relion3.1", "relion3", "warp"}
    return (*FORMATS[name].endings, ".star" if name in stars else ".csv")[0]


def read_as(path, name, **frame):
    """Read a list; that it is napari's must be said, since another one may be in voxels."""
    asked = {"file_format": name} if name == "napari" else {}
    return read_picks(path, **asked, **frame)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("centre", ["half", "half-minus-one"])
def test_a_particle_at_a_known_voxel_survives_every_format(tmp_path, name, centre):
    path = tmp_path / f"list{ending(name)}"
    position = [[5, 88, 9]] if name in WHOLE_VOXELS_ONLY else [[5.25, 88.5, 9.125]]
    write_picks(make_picks(position, [3]), path, file_format=name, star_centre=centre, **FRAME)
    back = read_as(path, name, star_centre=centre, **FRAME)
    atol = 1e-4 if name == "napari" else 1e-5 if name in FLOAT32 else 1e-6
    np.testing.assert_allclose(zyx(back), position, atol=atol)
    assert back.score.isna().all() if name in NO_SCORE else back.score.tolist() == [3.0]


@pytest.mark.parametrize("name", FORMATS)
def test_no_picks_are_written_and_read_as_no_picks(tmp_path, name):
    path = tmp_path / f"none{ending(name)}"
    write_picks(make_picks([]), path, file_format=name, **FRAME)
    back = read_as(path, name, **FRAME)
    assert len(back) == 0
    assert {"z", "y", "x", "score"} <= set(back.columns)
    assert zyx(back).dtype == np.float64


@pytest.mark.parametrize("name", FORMATS)
def test_writing_twice_gives_the_same_bytes(tmp_path, name):
    picks = make_picks(np.random.default_rng(1).uniform(0, 100, (20, 3)), np.arange(20) / 7)
    for copy in ("a", "b"):
        write_picks(picks, tmp_path / copy, file_format=name, **FRAME)
        if name == "deepfinder-xlsx":
            time.sleep(1.1)  # workbooks hold times, in seconds
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@settings(max_examples=150, deadline=None)
@given(
    points=st.lists(st.tuples(*[st.integers(-2000, 900_000)] * 3), max_size=6),
    name=st.sampled_from(sorted(set(FORMATS) - WHOLE_VOXELS_ONLY)),
)
def test_any_position_in_thousandths_of_a_voxel_survives_every_format(
    tmp_path_factory, points, name
):
    path = tmp_path_factory.mktemp("picks") / f"a{ending(name)}"
    positions = np.array(points, np.float64).reshape(-1, 3) / 1000
    picks = make_picks(positions, np.arange(len(points))[::-1])
    write_picks(picks, path, file_format=name, **FRAME)
    atol = 1e-4 if name in ROUGH else 1e-6
    np.testing.assert_allclose(zyx(read_as(path, name, **FRAME)), positions, atol=atol)


ORIENTED = [
    name for name, known in FORMATS.items() if not known.holds or "psi_degrees" in known.holds
]
ORIENTED = sorted(set(ORIENTED) - {"box", "csv"})


@settings(max_examples=100, deadline=None)
@given(
    turns=st.lists(st.tuples(*[st.integers(-180, 180)] * 3), min_size=1, max_size=4),
    name=st.sampled_from(ORIENTED),
)
def test_any_orientation_survives_every_format_that_has_them(tmp_path_factory, turns, name):
    path = tmp_path_factory.mktemp("turns") / f"a{ending(name)}"
    picks = with_angles(make_picks([[5, 6, 7]] * len(turns), 1.0 + np.arange(len(turns))), turns)
    write_picks(picks, path, file_format=name, **FRAME)
    back = read_as(path, name, **FRAME)
    held = relion_angles(back) if has_angles(back) else np.zeros((len(turns), 3))
    assert turned_alike(held, turns)


def test_every_format_that_can_hold_angles_was_tried():
    assert {"star", "relion3", "em", "motl", "dynamo", "copick", "portal"} <= set(ORIENTED)
    assert {"deepfinder", "deepfinder-xlsx"} <= set(ORIENTED)


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=200), name=st.sampled_from(sorted(FORMATS)))
def test_no_file_of_noise_gets_past_a_reader_but_as_a_list_or_an_error(
    tmp_path_factory, content, name
):
    path = tmp_path_factory.mktemp("noise") / f"a{ending(name)}"
    path.write_bytes(content)
    failed, picks = "", make_picks([])
    try:
        picks = read_picks(path, **FRAME)
    except DeepictError as error:
        failed = str(error)
    assert not failed or path.name in failed
    assert np.isfinite(zyx(picks)).all()


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(FORMATS)),
    place=st.floats(0, 1, exclude_max=True),
    n_cut=st.integers(0, 8),
    put=st.sampled_from([b"", b"\0", b"nan", b"-1", b"1e999", b'"', b"\n", b"<", b"[", b"\xff"]),
)
def test_a_file_with_one_damage_is_read_or_refused_in_words(
    tmp_path_factory, name, place, n_cut, put
):
    path = tmp_path_factory.mktemp("damaged") / f"a{ending(name)}"
    write_picks(make_picks([[1, 2, 3], [4, 5, 6]], [2, 1], n_voxels=[7, 8]), path, **FRAME)
    data = path.read_bytes()
    at = int(place * len(data))
    path.write_bytes(data[:at] + put + data[at + n_cut :])
    with contextlib.suppress(DeepictError):
        assert np.isfinite(zyx(read_picks(path, **FRAME))).all()


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"csv", "box"}))
def test_classes_come_back_by_number_or_name(tmp_path, name):
    path = tmp_path / f"a{ending(name)}"
    classes = [2, 2] if name == "copick" else [3, 1]
    picks = make_picks([[1, 2, 3], [4, 5, 6]], [2, 1], class_number=classes)
    write_picks(picks, path, file_format=name, **FRAME)
    back = read_as(path, name, **FRAME).sort_values("z")
    if name == "motl-deepict":  # the published file has 1 in this column
        assert "class_number" not in back.columns
    else:
        assert back.class_number.tolist() == classes


@pytest.mark.parametrize("name", ["coords", "dynamo", "deepfinder", "imod", "em"])
def test_names_of_classes_become_numbers_and_this_is_said(tmp_path, name, caplog):
    path = tmp_path / f"a{ending(name)}"
    picks = make_picks([[1, 2, 3]] * 2, class_name=["ribosome", "FAS"])
    with caplog.at_level(logging.WARNING):
        write_picks(picks, path, file_format=name)
    assert "1 = FAS, 2 = ribosome" in caplog.text
    assert sorted(read_picks(path).class_number) == [1, 2]


@pytest.mark.parametrize("name", ["csv", "star", "relion3.1", "portal", "deepfinder"])
def test_columns_that_no_program_knows_survive_the_formats_with_names(tmp_path, name):
    path = tmp_path / f"a{ending(name)}"
    picks = make_picks([[1, 2, 3], [4, 5, 6]], [2, 1], quality=[0.125, 7.5], note=["a b", "c"])
    write_picks(picks, path, file_format=name, **FRAME)
    back = read_as(path, name, **FRAME)
    assert back.quality.tolist() == [0.125, 7.5]
    assert back.note.tolist() == ["a b", "c"]


def test_columns_that_a_format_cannot_hold_are_named():
    picks = make_picks([[1, 2, 3]], [0.5], label=[4], class_number=[1], dynamo_apix=[2.5])
    assert columns_left_out(picks, "a.coords") == ["label", "dynamo_apix"]
    assert columns_left_out(picks, "a.tbl") == ["label"]
    assert columns_left_out(picks, "a.star") == []


@pytest.mark.parametrize("name", ["csv", "star", "copick", "portal"])
def test_one_tomogram_of_a_list_is_chosen_by_name_in_every_format_with_names(tmp_path, name):
    path = tmp_path / f"a{ending(name)}"
    names = ["f/TS_1.mrc", "f/TS_1.mrc"] if name == "copick" else ["f/TS_1.mrc", "TS_2"]
    picks = make_picks([[1, 2, 3], [4, 5, 6]], [2, 1], tomogram_name=names)
    write_picks(picks, path, file_format=name, **{**FRAME, "tomogram_name": None})
    kept = read_picks(path, **{**FRAME, "tomogram_name": "TS_1"})
    assert set(kept.tomogram_name) == {"TS_1"}
    assert kept.z.tolist()[0] == 1
    with pytest.raises(PicksFormatError, match="'TS_3', found"):
        read_picks(path, **{**FRAME, "tomogram_name": "TS_3"})


def test_an_unknown_ending_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(PicksFormatError, match=r"\.box, \.coords, \.csv, .*'\.docx'"):
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
