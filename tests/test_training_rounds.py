"""Does a round of annotation add what it found, once, and nothing where it is tested?"""

from __future__ import annotations

import csv
import pickle
import shutil

import numpy as np
import pytest
from study_scenes import BALLS, RADIUS, centres_of, study_config, told, write_dataset

from deepict_dask.config.training import ValidationSettings
from deepict_dask.core.errors import ConfigError, WorkFailedError
from deepict_dask.io.picks import read_picks
from deepict_dask.io.picks_table import make_picks
from deepict_dask.jobs.session import Session
from deepict_dask.jobs.training import task as training_task
from deepict_dask.jobs.training.round_picks import RoundClass, merged_picks
from deepict_dask.jobs.training.rounds import describe_rounds, train_in_rounds
from deepict_dask.models.registry import bundled_models

FAR = (16.0, 16.0, 16.0)
"""No ball of the small tomograms is near it."""


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def points_of(path):
    return read_picks(path)[["z", "y", "x"]].to_numpy()


class Stand:
    """Stand-ins for a training (which runs in a worker, on a copy of this) and a prediction."""

    def __init__(self, found):
        self.found, self.predictions = found, []

    def train(self, task):
        done = told(lambda one: {"dice": 0.6 if one.name == "round 1" else 0.7})(task)
        shutil.copy(next(iter(bundled_models().values())), done.model)
        (task.folder / "task").write_bytes(pickle.dumps(task))
        return done

    def predict(self, session, model, tomogram, classes, folder):
        del session, model, folder
        self.predictions.append(tomogram.name)
        return {name: self.found(tomogram.name) for name in classes}


def rounds(tmp_path, worker, stand, n=1, **settings):
    config = study_config(tmp_path, **{"validation": {"tomograms": ["c"]}} | settings)
    return train_in_rounds(Session(worker), config, n, trainer=stand.train, predict=stand.predict)


def all_and_one_more(name):
    """Return the balls of a tomogram, a voxel off, one of them twice, and a new one."""
    true = centres_of("abcu".index(name)).astype(float)
    near, twice = true + np.array([0, 1, 0]), true[0] + np.array([0, 0, 1])
    return make_picks([*near, twice, FAR], np.linspace(0.9, 0.6, 8))


def test_a_new_pick_near_a_given_one_confirms_it_and_stays_out():
    given = np.array([[5.0, 5, 5], [20, 20, 20]])
    found = make_picks([[5, 5, 7], [5, 5, 9], [12, 5, 5]], [0.9, 0.8, 0.7])
    table, counts = merged_picks(given, found, (3, 3, 3))
    assert (counts.given, counts.predicted, counts.confirmed, counts.new) == (2, 3, 1, 1)
    assert table[["z", "y", "x"]].to_numpy().tolist() == [[5, 5, 5], [20, 20, 20], [12, 5, 5]]
    assert table["source"].tolist() == ["given", "given", "predicted"]


def test_the_distance_is_that_of_an_ellipsoid():
    given = np.array([[10.0, 10, 10]])
    found = make_picks([[14, 10, 10], [10, 14, 10]], [0.9, 0.8])
    table, counts = merged_picks(given, found, (5, 2, 2))
    assert counts.confirmed == 1
    assert table[["z", "y", "x"]].to_numpy().tolist() == [[10, 10, 10], [10, 14, 10]]


def test_at_a_distance_of_exactly_one_both_picks_stay():
    _, counts = merged_picks(np.array([[0.0, 0, 0]]), make_picks([[0, 0, 3]], [0.5]), (3, 3, 3))
    assert (counts.confirmed, counts.new) == (0, 1)


def test_given_picks_that_are_close_both_stay_and_both_stand_for_new_ones():
    given = np.array([[5.0, 5, 5], [5, 5, 7]])
    found = make_picks([[5, 5, 4], [5, 5, 9]], [0.9, 0.8])
    table, counts = merged_picks(given, found, (3, 3, 3))
    assert (counts.confirmed, counts.new, len(table)) == (2, 0, 2)


@pytest.mark.parametrize("given", [np.empty((0, 3)), np.array([[5.0, 5, 5]])])
def test_a_tomogram_without_predictions_keeps_its_list(given):
    table, counts = merged_picks(given, make_picks([]), (3, 3, 3))
    assert table[["z", "y", "x"]].to_numpy().tolist() == given.tolist()
    assert (counts.given, counts.new) == (len(given), 0)


def test_without_settings_small_clusters_are_left_out():
    one = RoundClass.of_radius("ball", RADIUS, None, None, None)
    # a tenth of 4/3 pi 4^3 = 268
    assert (one.settings.min_size, one.settings.threshold, one.axes) == (26, 0.5, (RADIUS,) * 3)


def test_a_round_adds_what_it_should_and_trains_again_on_it(tmp_path, one_worker):
    write_dataset(tmp_path, "abc", unlabelled="u")
    stand = Stand(all_and_one_more)
    model = rounds(tmp_path, one_worker, stand)
    out = tmp_path / "out"
    assert model == out / "final/model/model.safetensors"
    rows = {row["tomogram"]: row for row in rows_of(out / "rounds.csv")}
    numbers = ("given", "before", "predicted", "confirmed", "new", "after")
    assert [int(rows["a"][n]) for n in numbers] == [6, 6, 8, 6, 1, 7]
    # without a list, all that was found is new; a ball that was found twice counts once
    assert [int(rows["u"][n]) for n in numbers] == [0, 0, 8, 0, 7, 7]
    assert "c" not in rows
    merged = points_of(out / "round_1/picks/ball/a.csv")
    expected = {*map(tuple, centres_of(0).astype(float)), FAR}
    assert {*map(tuple, merged)} == expected
    table = rows_of(out / "round_1/picks/ball/a.csv")
    assert {row["score"] == "" for row in table if row["source"] == "given"} == {True}
    assert all(float(row["score"]) > 0 for row in table if row["source"] == "predicted")
    first, last = (
        pickle.loads((out / folder / "model/task").read_bytes()).config
        for folder in ("round_1", "final")
    )
    assert [row["name"] for row in rows_of(first.tomograms)] == ["a", "b", "c"]
    assert [row["name"] for row in rows_of(last.tomograms)] == ["a", "b", "c", "u"]
    lists = {row["name"]: row["picks_ball"] for row in rows_of(last.tomograms)}
    assert lists["a"] == str(out / "round_1/picks/ball/a.csv")
    assert lists["c"] == str(out / "given/ball/c.csv")
    assert first.network.start_from is None
    assert last.network.start_from == str(out / "round_1/model/model.safetensors")


def test_a_dry_run_of_rounds_says_what_is_held_out(tmp_path):
    write_dataset(tmp_path, "ab")
    config = study_config(tmp_path, classes=BALLS)
    ends, whole, none = (
        config.model_copy(update={"validation": ValidationSettings(**one)})
        for one in ({"fraction": 0.3, "axis": "x"}, {"tomograms": ("b",)}, {})
    )
    assert describe_rounds(ends, 1)[-1] == (
        "held out: the last 30 % on x of each tomogram with lists"
    )
    assert describe_rounds(whole, 1)[-1] == "held out: b"
    assert describe_rounds(none, 1)[-1] == "held out: nothing"


def test_a_wrong_pick_of_one_round_does_not_stay(tmp_path, one_worker):
    write_dataset(tmp_path, "abc")
    calls = []

    def found(name):
        calls.append(name)
        return all_and_one_more(name) if len(calls) <= 2 else make_picks([])

    rounds(tmp_path, one_worker, Stand(found), n=2)
    rows = [r for r in rows_of(tmp_path / "out/rounds.csv") if r["tomogram"] == "a"]
    assert [(row["before"], row["after"]) for row in rows] == [("6", "7"), ("7", "6")]
    assert [row["model_dice"] for row in rows] == ["0.6", "0.7"]


def test_what_was_predicted_is_not_predicted_again(tmp_path, one_worker):
    write_dataset(tmp_path, "abc")
    stand = Stand(all_and_one_more)

    def failing(name):
        if name == "b":
            raise WorkFailedError("the disk is full")
        return all_and_one_more(name)

    with pytest.raises(WorkFailedError, match="the disk is full"):
        rounds(tmp_path, one_worker, Stand(failing))
    rounds(tmp_path, one_worker, stand)
    assert stand.predictions == ["b"]
    again = Stand(all_and_one_more)
    rounds(tmp_path, one_worker, again, classes={"ball": {**BALLS["ball"], "radius_voxels": 3.0}})
    assert again.predictions == ["a", "b"]


def test_nothing_is_added_where_a_part_is_held_out(tmp_path, one_worker):
    write_dataset(tmp_path, "ab")
    # from y = 24 on the tomograms are held out; a ball at 21 reaches into it
    found = make_picks([(16, 12, 16), (16, 21, 16), (16, 28, 16)], [0.9, 0.8, 0.7])
    stand = Stand(lambda _name: found)
    rounds(tmp_path, one_worker, stand, validation={"fraction": 0.25})
    merged = {*map(tuple, points_of(tmp_path / "out/round_1/picks/ball/a.csv"))}
    assert merged - {*map(tuple, centres_of(0).astype(float))} == {(16, 12, 16)}


def test_no_ball_is_painted_into_what_is_held_out_though_picks_are_one_at_less(
    tmp_path, one_worker
):
    write_dataset(tmp_path, "ab")
    # from y = 24 on the tomograms are held out; at 21 the picks' axes end before, the ball does not
    stand = Stand(lambda _name: make_picks([(16, 12, 16), (16, 21, 16)], [0.9, 0.8]))
    rounds(
        tmp_path, one_worker, stand, validation={"fraction": 0.25}, rounds={"axes": (2, 2, 2)},
        classes={"ball": {**BALLS["ball"], "radius_voxels": 4.0}},
    )  # fmt: skip
    merged = {*map(tuple, points_of(tmp_path / "out/round_1/picks/ball/a.csv"))}
    assert merged - {*map(tuple, centres_of(0).astype(float))} == {(16, 12, 16)}


def test_a_part_of_a_tomogram_without_lists_cannot_be_held_out(tmp_path, one_worker):
    write_dataset(tmp_path, "ab", unlabelled="u")
    with pytest.raises(ConfigError, match="tomogram u has no lists, so none of it can be held out"):
        rounds(tmp_path, one_worker, Stand(all_and_one_more), validation={"fraction": 0.25})
    assert not list(tmp_path.rglob("calls"))


def test_a_failed_training_ends_the_rounds(tmp_path, one_worker):
    write_dataset(tmp_path, "abc")
    stand = Stand(all_and_one_more)
    stand.train = told(lambda _task: WorkFailedError("the loss became NaN"))
    with pytest.raises(WorkFailedError, match="the loss became NaN"):
        rounds(tmp_path, one_worker, stand)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": {"tomograms": ["c"]}}, "not held out, among a, b, c, found c"),
        ({"rounds": {"picks": {"fas": {}}}}, r"expected classes with particle lists \(ball\)"),
        ({"network": {"kind": "unet2d"}}, "expected a 3D network"),
        (
            {"classes": {"ball": {"picks": "p", "shape": "mask", "mask_file": "m.mrc"}}},
            "predicted particles have no Euler angles",
        ),
        ({"cross_validation": {"folds": 2}, "validation": {}}, "not with cross_validation"),
    ],
)
def test_what_rounds_cannot_do_is_refused(tmp_path, one_worker, settings, message):
    write_dataset(tmp_path, "abc")
    with pytest.raises(ConfigError, match=message):
        rounds(tmp_path, one_worker, Stand(all_and_one_more), **settings)


def test_a_round_finds_balls_by_the_ordinary_jobs(tmp_path, one_worker, monkeypatch):
    write_dataset(tmp_path, "ab", unlabelled="u")
    config = study_config(
        tmp_path,
        validation={"tomograms": ["b"]},
        optimizer={"epochs": 1, "steps_per_epoch": 20, "learning_rate": 0.02, "batch_size": 2},
    )
    monkeypatch.setattr(training_task, "cores_each", lambda _workers, _n: 1)
    train_in_rounds(Session(one_worker), config, 1)
    (row,) = [r for r in rows_of(tmp_path / "out/rounds.csv") if r["tomogram"] == "u"]
    found = points_of(tmp_path / "out/round_1/picks/ball/u.csv")
    distance = np.linalg.norm(found[:, None] - centres_of(2)[None], axis=2)
    assert int(row["after"]) == len(found)
    assert (distance.min(axis=0) < 2).sum() >= 5
    left = {path.name for path in (tmp_path / "out/round_1/picks").iterdir()}
    assert left == {"a.json", "u.json", "ball"}
