"""Comparing pickers: pairs that no order of lists changes, and every pick in one list of three."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from deepict_dask.cli import app
from deepict_dask.core.errors import ConfigError, OutputExistsError, PicksFormatError
from deepict_dask.evaluate.compare import compare_picks, pair_nearest
from deepict_dask.io.picks import read_picks, write_picks
from deepict_dask.io.picks_table import make_picks
from deepict_dask.jobs.particle_lists.compare import compare_lists

places = st.lists(st.tuples(*[st.integers(0, 9)] * 3), max_size=25)


def greedy(first, second, distance):
    """The definition: the nearest pair of picks that are free, again and again."""
    free_one, free_other = list(range(len(first))), list(range(len(second)))
    found = []
    while free_one and free_other:
        apart, i, j = min(
            (np.linalg.norm(np.subtract(first[i], second[j])), i, j)
            for i in free_one
            for j in free_other
        )
        if apart > distance:
            break
        found.append(apart)
        free_one.remove(i)
        free_other.remove(j)
    return found


@given(first=places, second=places, distance=st.sampled_from([0.0, 1.0, 2.5, 4.0]))
def test_the_distances_of_pairs_are_those_of_the_definition_up_to_the_first_tie(
    first, second, distance
):
    rng = np.random.default_rng(len(first) + 31 * len(second))
    one = np.array(first, float).reshape(-1, 3) + rng.random((len(first), 3)) / 8
    other = np.array(second, float).reshape(-1, 3)
    partner, apart = pair_nearest(one, other, distance)
    assert np.allclose(np.sort(apart[partner >= 0]), greedy(one, other, distance))
    assert len(set(partner[partner >= 0])) == (partner >= 0).sum()


@given(first=places, second=places, distance=st.sampled_from([0.0, 1.0, 2.5, 4.0]))
def test_the_other_order_of_lists_gives_the_same_pairs(first, second, distance):
    one, other = (np.array(rows, float).reshape(-1, 3) for rows in (first, second))
    partner, apart = pair_nearest(one, other, distance)
    back, _ = pair_nearest(other, one, distance)
    pairs = sorted((*one[i], *other[j]) for i, j in enumerate(partner) if j >= 0)
    assert pairs == sorted((*one[j], *other[i]) for i, j in enumerate(back) if j >= 0)
    order = np.random.default_rng(0).permutation(len(one))
    shuffled = pair_nearest(one[order], other, distance)[1]
    assert np.allclose(np.sort(shuffled), np.sort(apart))


@given(first=places, second=places, seed=st.integers(0, 99))
def test_every_pick_is_in_both_or_in_one_difference_and_the_table_says_how_many(
    first, second, seed
):
    rng = np.random.default_rng(seed)
    one, other = (
        make_picks(np.array(rows).reshape(-1, 3), class_name=rng.choice(["a", "b"], len(rows)))
        for rows in (first, second)
    )
    found = compare_picks(one, other, 2.0)
    assert len(found.both) + len(found.only_first) == len(one)
    assert len(found.both) + len(found.only_second) == len(other)
    table = found.table.set_index("class_name")
    for name, row in table.drop("all").iterrows():
        assert row.n_both == (found.both.class_name == name).sum()
        assert row.n_only_first == (found.only_first.class_name == name).sum()
        assert row.n_only_second == (found.only_second.class_name == name).sum()
    counts = ["n_first", "n_second", "n_both", "n_only_first", "n_only_second"]
    assert table.drop("all")[counts].sum().tolist() == table.loc["all", counts].tolist()


def test_a_pair_at_exactly_the_distance_counts():
    assert pair_nearest([[0, 0, 0]], [[0, 3, 4]], 5)[0].tolist() == [0]
    assert pair_nearest([[0, 0, 0]], [[0, 3, 4]], 4.999)[0].tolist() == [-1]


def test_lists_are_compared_without_classes_where_one_has_none():
    one = make_picks([[5, 5, 5]], class_name=["ribosome"])
    other = make_picks([[5, 5, 6]])
    table = compare_picks(one, other, 2).table
    assert table[["class_name", "n_both", "f1"]].to_numpy().tolist() == [["all", 1, 1.0]]


def test_picks_of_two_tomograms_are_never_a_pair():
    one = make_picks([[5, 5, 5]] * 2, tomogram_name=["t1", "t2"])
    other = make_picks([[5, 5, 5]] * 2, tomogram_name=["t2", "t3"])
    found = compare_picks(one, other, 2)
    assert found.both.tomogram_name.tolist() == ["t2"]
    with pytest.raises(PicksFormatError, match="--tomogram-name"):
        compare_picks(one, make_picks([[5, 5, 5]]), 2)


def test_tomograms_that_only_have_numbers_are_told_apart_too():
    one = make_picks([[5, 5, 5]] * 2, tomogram_number=[1, 2])
    other = make_picks([[5, 5, 5]] * 3, tomogram_number=[2, 116, np.nan])
    found = compare_picks(one, other, 2)
    assert found.both.tomogram_number.tolist() == [2]
    assert (len(found.only_first), len(found.only_second)) == (1, 2)
    with pytest.raises(PicksFormatError, match="found one of 2 tomograms"):
        compare_picks(one, make_picks([[5, 5, 5]]), 2)
    alone = make_picks([[5, 5, 5]], tomogram_number=[7])
    assert len(compare_picks(alone, make_picks([[5, 5, 5]]), 2).both) == 1


def test_a_negative_distance_is_refused():
    with pytest.raises(PicksFormatError, match="distance"):
        pair_nearest([[0, 0, 0]], [[0, 0, 0]], -1)


@pytest.fixture
def three_lists(tmp_path):
    """A ribosome of all three lists, one of two, one of one."""
    here = {
        "a": [[10, 10, 10], [20, 20, 20], [30, 30, 30]],
        "b": [[10, 10, 11], [20, 21, 20]],
        "c": [[10, 11, 10]],
    }
    paths = []
    for name, zyx in here.items():
        paths.append(tmp_path / f"{name}.csv")
        write_picks(make_picks(zyx, class_name=["ribosome"] * len(zyx)), paths[-1])
    return paths


def test_the_folder_has_the_table_the_lists_of_each_pair_and_the_consensus(three_lists, tmp_path):
    compared = compare_lists(three_lists, 3, tmp_path / "out")
    assert compared.counts == {3: 1, 2: 1, 1: 1}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "a_and_b.csv", "a_and_c.csv", "a_not_b.csv", "a_not_c.csv", "b_and_c.csv", "b_not_a.csv",
        "b_not_c.csv", "c_not_a.csv", "c_not_b.csv", "compare.csv", "consensus.csv", "run.json",
    ]  # fmt: skip
    consensus = read_picks(tmp_path / "out/consensus.csv")
    assert dict(zip(consensus.z, consensus.n_lists, strict=True)) == {10: 3, 20: 2, 30: 1}
    assert read_picks(tmp_path / "out/a_not_b.csv").z.tolist() == [30]
    both = read_picks(tmp_path / "out/a_and_b.csv")
    assert both[["other_x", "distance"]].to_numpy().tolist() == [[11, 1], [20, 1]]
    table = pd.read_csv(tmp_path / "out/compare.csv")
    chosen = table[table.class_name == "all"][["first", "second", "n_both", "n_only_first"]]
    assert chosen.to_numpy().tolist() == [["a", "b", 2, 1], ["a", "c", 1, 2], ["b", "c", 1, 1]]
    assert json.loads((tmp_path / "out/run.json").read_text())["request"]["distance"] == 3
    with pytest.raises(OutputExistsError):
        compare_lists(three_lists, 3, tmp_path / "out")


def test_empty_lists_can_be_compared(tmp_path):
    for name in ("a", "b"):
        write_picks(make_picks([]), tmp_path / f"{name}.csv")
    compared = compare_lists([tmp_path / "a.csv", tmp_path / "b.csv"], 3, tmp_path / "out")
    assert compared.counts == {}
    assert compared.table.n_both.tolist() == [0]


def test_one_list_is_too_few(three_lists):
    with pytest.raises(ConfigError, match="two"):
        compare_lists(three_lists[:1], 3)


def test_lists_of_one_name_are_named_by_their_folders(tmp_path):
    paths = []
    for name in ("mine", "yours"):
        (tmp_path / name).mkdir()
        paths.append(tmp_path / name / "picks.csv")
        write_picks(make_picks([[1, 2, 3]]), paths[-1])
    assert compare_lists(paths, 1).table[["first", "second"]].to_numpy().tolist() == [
        ["mine", "yours"]
    ]


def test_the_command_shows_the_table(three_lists, tmp_path):
    line = ["picks", "compare", *map(str, three_lists), "--distance", "3"]
    found = CliRunner().invoke(app, [*line, "--output", str(tmp_path / "o")])
    assert found.exit_code == 0, found.output
    assert "1 particles in 3 of 3 lists" in found.output
    assert "ribosome" in found.output
    assert (tmp_path / "o/compare.csv").exists()


def test_classes_that_cannot_be_told_apart_are_a_warning(tmp_path, caplog):
    picks = make_picks([[1, 1, 1], [9, 9, 9]], [2, 1], class_name=["ribosome", "FAS"])
    for name in ("a.csv", "b.tbl", "c.coords"):
        write_picks(picks, tmp_path / name)
    caplog.clear()
    compare_lists([tmp_path / "a.csv", tmp_path / "b.tbl"], 2)
    assert "b does not name them, and there are 2" in caplog.text
    caplog.clear()
    compare_lists([tmp_path / "a.csv", tmp_path / "c.coords"], 2)
    assert "no class in common (FAS, ribosome and 1, 2)" in caplog.text
    caplog.clear()
    compare_lists([tmp_path / "a.csv", tmp_path / "a.csv"], 2)
    assert caplog.text == ""
