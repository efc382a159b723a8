"""Merging particle lists: every particle once, none lost, in the time of one pass."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from deepict_dask.cli import particles as commands
from deepict_dask.core.errors import ConfigError, OutputExistsError, PicksFormatError, SpacingError
from deepict_dask.io.picks import read_picks, write_picks
from deepict_dask.io.picks_table import make_picks
from deepict_dask.jobs.particle_lists.merge import merge_lists
from deepict_dask.particles.deepict_compat import merge_as_deepict
from deepict_dask.particles.merge import MergeSettings, merge_picks, stand_ins

AXES = (5.0, 3.0, 2.0)


def greedy(zyx, axes, groups=None):
    """The definition: keep a pick if none that is kept is closer than 1."""
    kept = []
    for i, point in enumerate(zyx):
        near = [
            j
            for j in kept
            if (groups is None or groups[i] == groups[j])
            and (((point - zyx[j]) / axes) ** 2).sum() < 1 - 1e-9
        ]
        if not near:
            kept.append(i)
    return kept


def table(rows, **columns):
    zyx = np.array(rows, float).reshape(-1, 3)
    return make_picks(zyx, **columns)


places = st.lists(st.tuples(*[st.integers(-6, 12)] * 3), max_size=40)


@given(first=places, second=places, seed=st.integers(0, 99))
def test_merging_equals_the_definition_over_all_pairs(first, second, seed):
    rng = np.random.default_rng(seed)
    tables = [table(rows, score=rng.integers(0, 4, len(rows)) / 4) for rows in (first, second)]
    merged = merge_picks(tables, AXES)
    ordered = pd.concat(
        [t.sort_values("score", ascending=False, kind="stable") for t in tables if len(t)]
        or tables[:1]
    )
    expected = ordered.iloc[greedy(ordered[["z", "y", "x"]].to_numpy(), AXES)]
    assert merged[["z", "y", "x", "score"]].values.tolist() == (
        expected[["z", "y", "x", "score"]].values.tolist()
    )


@given(st.lists(st.tuples(*[st.floats(0, 4, allow_subnormal=False)] * 3), max_size=30))
def test_positions_between_voxels_are_compared_as_they_are(rows):
    points = np.array(rows, float).reshape(-1, 3)
    owners = stand_ins(points)
    assert np.flatnonzero(owners == np.arange(len(points))).tolist() == greedy(points, 1)


@given(
    rows=st.lists(st.tuples(*[st.integers(0, 5)] * 3), min_size=1, max_size=30),
    seed=st.integers(0, 99),
)
def test_picks_of_different_classes_and_tomograms_are_never_one(rows, seed):
    rng = np.random.default_rng(seed)
    classes = rng.choice(["ribosome", "fas"], len(rows))
    names = rng.choice(["TS_1", "TS_2"], len(rows))
    picks = table(rows, class_name=classes, tomogram_name=names)
    groups = [f"{a} {b}" for a, b in zip(classes, names, strict=True)]
    kept = greedy(picks[["z", "y", "x"]].to_numpy(), AXES, groups)
    merged = merge_picks([picks], AXES)
    assert merged["class_name"].tolist() == picks["class_name"].iloc[kept].tolist()
    assert merged["tomogram_name"].tolist() == picks["tomogram_name"].iloc[kept].tolist()
    across = greedy(picks[["z", "y", "x"]].to_numpy(), AXES, names)
    assert len(merge_picks([picks], AXES, across_classes=True)) == len(across)


def test_the_list_named_first_is_preferred_unless_the_score_is_to_decide():
    mine, yours = table([[0, 0, 0]], score=[0.1]), table([[0, 0, 1]], score=[0.9])
    assert merge_picks([mine, yours], AXES)["x"].tolist() == [0]
    assert merge_picks([mine, yours], AXES, by_score=True)["x"].tolist() == [1]
    unscored = table([[0, 0, 0]])
    assert merge_picks([unscored, yours], AXES, by_score=True)["x"].tolist() == [1]


def test_picks_at_exactly_the_distance_are_both_kept():
    for axis, length in enumerate(AXES):
        there, nearer = np.zeros(3), np.zeros(3)
        there[axis], nearer[axis] = length, length - 0.001
        assert len(merge_picks([table([[0, 0, 0], there])], AXES)) == 2
        assert len(merge_picks([table([[0, 0, 0], nearer])], AXES)) == 1
    # 16/9 - 7/9 is a little less than 1 for a computer
    assert len(merge_picks([table([[16, 0, 0], [7, 0, 0]])], (9, 9, 9))) == 2


def test_duplicates_of_every_pick_go_and_each_knows_in_how_many_lists_it_is():
    rows = [[0, 0, 0], [20, 0, 0], [40, 0, 0]]
    merged = merge_picks([table([*rows, *rows]), table(rows[:2]), table(rows[1:])], AXES)
    assert merged["z"].tolist() == [0, 20, 40]
    assert merged["n_lists"].tolist() == [2, 3, 2]
    assert merged["from_list"].tolist() == [1, 1, 1]
    agreed = merge_picks([table(rows), table(rows[:2]), table(rows[1:])], AXES, min_lists=3)
    assert agreed["z"].tolist() == [20]


def test_all_columns_of_all_lists_are_kept(tmp_path):
    mine = table([[0, 0, 0]], score=[0.5], n_voxels=[120], class_name=["fas"])
    yours = table([[9, 9, 9]], score=[0.25], distance_membrane_nm=[12.5], rlnAngleRot=[30.0])
    for name, picks in {"a.csv": mine, "b.csv": yours}.items():
        write_picks(picks, tmp_path / name)
    lists = [tmp_path / "a.csv", tmp_path / "b.csv"]
    merge_lists(lists, tmp_path / "c.csv", MergeSettings(axes=AXES))
    assert (tmp_path / "c.csv").read_text().splitlines() == [
        "score,x,y,z,n_voxels,class_name,distance_membrane_nm,rlnAngleRot,from_list,n_lists",
        "0.5,0.000,0.000,0.000,120,fas,,,1,1",
        "0.25,9.000,9.000,9.000,,,12.5,30,2,1",
    ]


@pytest.mark.parametrize("ending", ["out.csv", "motl_out.csv", "out.em", "out.star"])
def test_lists_of_any_format_are_merged_into_any_format(tmp_path, ending):
    frame = {"voxel_spacing_angstrom": 10.0, "tomogram_shape": (40, 40, 40), "tomogram_name": "T"}
    whole = table([[5, 6, 7], [30, 20, 10], [12, 13, 14]], score=[3, 2, 1])
    for name in ("a.csv", "motl_b.csv", "c.em", "d.star"):
        write_picks(whole, tmp_path / name, **frame)
    lists = [tmp_path / n for n in ("a.csv", "motl_b.csv", "c.em", "d.star")]
    report = merge_lists(lists, tmp_path / ending, MergeSettings(distance_nm=3), **frame)
    assert (report.n_read, report.n_kept) == (12, 3)
    merged = read_picks(tmp_path / ending, **frame)
    np.testing.assert_allclose(merged[["z", "y", "x"]], whole[["z", "y", "x"]], atol=1e-5)
    assert merged["score"].tolist() == [3, 2, 1]


def test_a_merged_star_file_names_every_particle_once_and_its_tomogram(tmp_path):
    frame = {"voxel_spacing_angstrom": 10.0, "tomogram_shape": (40, 40, 40)}
    for name, z in {"a": 5, "b": 25}.items():
        picks = table([[z, 6, 7], [z, 16, 17]], score=[1, 2])
        write_picks(picks, tmp_path / f"{name}.star", tomogram_name="T", **frame)
    write_picks(table([[35, 6, 7]], score=[3]), tmp_path / "c.csv")
    lists = [tmp_path / n for n in ("c.csv", "a.star", "b.star")]
    merge_lists(lists, tmp_path / "m.star", MergeSettings(distance=3), **frame)
    merged = read_picks(tmp_path / "m.star", **frame)
    assert merged["tomogram_name"].tolist() == ["T"] * 5
    assert merged["rlnTomoParticleName"].tolist() == [f"T/{n}" for n in range(1, 6)]
    assert merged["rlnOpticsGroup"].tolist() == [1] * 5


def test_a_particle_without_a_name_beside_one_with_a_name_is_numbered(tmp_path):
    frame = {"voxel_spacing_angstrom": 10.0, "tomogram_shape": (40, 40, 40)}
    write_picks(table([[5, 6, 7]], score=[1]), tmp_path / "a.star", tomogram_name="T", **frame)
    write_picks(table([[35, 6, 7]], score=[3]), tmp_path / "b.csv")
    lists = [tmp_path / "b.csv", tmp_path / "a.star"]
    merge_lists(lists, tmp_path / "m.star", MergeSettings(distance=3), **frame)
    merged = read_picks(tmp_path / "m.star", **frame)
    assert merged["rlnTomoParticleName"].tolist() == ["T/1", "T/2"]
    named = table([[5, 6, 7], [8, 9, 10]], rlnTomoParticleName=["T/9", ""])
    write_picks(named, tmp_path / "n.star", tomogram_name="T", **frame)
    names = read_picks(tmp_path / "n.star", **frame)["rlnTomoParticleName"]
    assert names.tolist() == ["T/1", "T/2"]


def test_classes_that_only_have_numbers_are_told_apart_unless_asked(caplog):
    numbered = table([[0, 0, 0], [0, 0, 1]], class_number=[1, 2])
    assert len(merge_picks([numbered], AXES)) == 2
    assert "told apart by their numbers; use --across-classes" in caplog.text
    assert len(merge_picks([numbered], AXES, across_classes=True)) == 1


def test_the_command_merges_into_a_list_that_counts_in_unbinned_pixels(tmp_path):
    (tmp_path / "a.csv").write_text("9,9,9\n")
    app = typer.Typer()
    commands.register(app)
    line = (
        f"merge {tmp_path / 'a.csv'} {tmp_path / 'o.star'} --distance 5 --format relion4 "
        "--voxel-spacing-angstrom 10 --pixel-size-angstrom 2.5 --tomogram-name T"
    )
    result = CliRunner().invoke(app, line.split(), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = read_picks(tmp_path / "o.star", voxel_spacing_angstrom=10.0)
    assert found[["z", "y", "x"]].to_numpy().tolist() == [[9, 9, 9]]


def test_picks_without_a_class_belong_to_the_only_one_there_is(caplog):
    bare, named = table([[0, 0, 1]]), table([[0, 0, 0]], class_name=["fas"])
    assert len(merge_picks([named, bare], AXES)) == 1
    two = table([[0, 0, 0], [9, 9, 9]], class_name=["fas", "ribosome"])
    with caplog.at_level(logging.WARNING):
        assert len(merge_picks([two, bare], AXES)) == 3
    assert "1 picks have no class while others have 2" in caplog.text


def test_picks_of_no_tomogram_among_several_are_refused():
    two = table([[0, 0, 0], [9, 9, 9]], tomogram_name=["a", "b"])
    with pytest.raises(PicksFormatError, match="2 tomograms"):
        merge_picks([two, table([[0, 0, 0]])], AXES)
    assert len(merge_picks([two.iloc[:1], table([[0, 0, 0]])], AXES)) == 1


def test_empty_lists_give_an_empty_list(tmp_path, caplog):
    (tmp_path / "a.csv").write_text("")
    with caplog.at_level(logging.WARNING):
        report = merge_lists([tmp_path / "a.csv"], tmp_path / "b.csv", MergeSettings(distance=3))
    assert (report.n_kept, len(read_picks(tmp_path / "b.csv"))) == (0, 0)
    assert "all lists are empty" in caplog.text
    assert len(merge_picks([table([]), table([[1, 2, 3]]), table([])], AXES)) == 1


def test_a_hundred_thousand_picks_at_one_place_are_compared_with_one_not_with_all():
    n = 100_000
    owners = stand_ins(np.zeros((n, 3)))  # all pairs would be 5 000 000 000 comparisons
    assert not owners.any()
    line = np.zeros((n, 3))
    line[:, 0] = np.arange(n) * 0.5
    assert (stand_ins(line) == np.arange(n)).sum() == n // 2


def test_positions_too_far_apart_for_the_distance_are_refused():
    with pytest.raises(PicksFormatError, match="larger distance"):
        stand_ins(np.array([[0, 0, 0], [1e9, 1e9, 1e9]]))


def test_what_cannot_be_meant_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("1,2,3\n")
    with pytest.raises(ValueError, match="found 2 of them"):
        MergeSettings(axes=AXES, distance=3)
    with pytest.raises(ValueError, match="found 0 of them"):
        MergeSettings()
    with pytest.raises(ValueError, match="not with compat"):
        MergeSettings(distance=3, by_score=True, compat="deepict")
    wish = MergeSettings(distance_nm=3)
    with pytest.raises(SpacingError, match="--voxel-spacing-angstrom"):
        merge_lists([tmp_path / "a.csv"], tmp_path / "b.csv", wish)
    (tmp_path / "b.csv").write_text("mine")
    with pytest.raises(OutputExistsError):
        merge_lists([tmp_path / "a.csv"], tmp_path / "b.csv", MergeSettings(distance=3))
    assert (tmp_path / "b.csv").read_text() == "mine"
    with pytest.raises(ConfigError, match="Z,Y,X"):
        commands.three_lengths("9,9", "--axes")


# -- the published script ------------------------------------------------------------------------


def app():
    picks_app = typer.Typer()
    commands.register(picks_app)
    return picks_app


def test_compat_gives_the_published_file_byte_by_byte(golden, tmp_path):
    folder = golden / "deepict" / "evaluation"
    lists = [str(folder / "true_xyz.csv"), str(folder / "pred_score_xyz.csv")]
    options = ["--axes", "15,9,9", "--compat", "deepict"]
    result = CliRunner().invoke(app(), ["merge", *lists, str(tmp_path / "m.csv"), *options])
    assert result.exit_code == 0, result.output
    published = (folder / "merged_elliptic_9_9_15.csv").read_bytes()
    assert (tmp_path / "m.csv").read_bytes() == published


def test_the_default_differs_from_the_published_file_only_by_its_defect(golden):
    folder = golden / "deepict" / "evaluation"
    tables = [read_picks(folder / n) for n in ("true_xyz.csv", "pred_score_xyz.csv")]
    ours = merge_picks(tables, (15, 9, 9))
    theirs = read_picks(folder / "merged_elliptic_9_9_15.csv")
    points = pd.concat([t[["z", "y", "x"]] for t in tables]).to_numpy()
    first = len(tables[0])
    by_score = np.argsort(-tables[1]["score"].to_numpy(), kind="stable")
    ordered = np.concatenate([points[:first], points[first:][by_score]])
    expected = ordered[greedy(ordered, (15, 9, 9))]
    assert ours[["z", "y", "x"]].to_numpy().tolist() == expected.tolist()
    assert len(ours) != len(theirs)  # this file shows the defect


@given(rows=places)
def test_compat_equals_its_description(rows):
    points = np.array(rows, float).reshape(-1, 3)
    compared, kept = [], []
    for point in points:
        if compared and np.linalg.norm(np.array(compared) - point / AXES, axis=1).min() < 1:
            continue
        compared.append(point if not compared else point / AXES)
        kept.append(point.tolist())
    merged = merge_as_deepict([table(rows)], AXES)
    assert merged.to_numpy().tolist() == kept


def test_compat_writes_other_formats_too(tmp_path):
    (tmp_path / "a.csv").write_text("1,2,3\n")
    wish = MergeSettings(distance=3, compat="deepict")
    merge_lists([tmp_path / "a.csv"], tmp_path / "b.em", wish)
    assert read_picks(tmp_path / "b.em")["x"].tolist() == [1]


def test_the_command_says_how_many_picks_are_left(tmp_path):
    (tmp_path / "a.csv").write_text("1,2,3\n1,2,4\n")
    arguments = ["merge", str(tmp_path / "a.csv"), str(tmp_path / "b.csv"), "--distance", "3"]
    result = CliRunner().invoke(app(), arguments)
    assert result.output == f"1 of 2 picks in {tmp_path / 'b.csv'}\n"
