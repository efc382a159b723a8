"""Does the search keep the better network of each step, and train none twice?"""

from __future__ import annotations

import csv

import pytest
from study_scenes import study_config, told, write_dataset

from deepict_dask.config.training import load_train_config
from deepict_dask.core.errors import ConfigError, WorkFailedError
from deepict_dask.jobs.session import Session
from deepict_dask.jobs.training import search as search_job
from deepict_dask.jobs.training.search import STEPS, search_network

HELD_OUT = {"tomograms": ["b"]}
BASE = {"depth": 2, "initial_features": 4, "batch_norm": True}


def dice_of(network):
    """Return what a stand-in finds of a network: 8 features, depth 3, no norm and 0.2 are best."""
    return (
        0.5 + 0.1 * (network.initial_features == 8) + 0.05 * (network.depth == 3)
        + 0.02 * (not network.batch_norm) + 0.01 * (network.decoder_dropout == 0.2)
    )  # fmt: skip


def by_dice(task):
    return {"dice": dice_of(task.config.network), "loss": 1 - dice_of(task.config.network)}


def search(tmp_path, worker, figures=by_dice, **settings):
    config = study_config(tmp_path, **{"network": BASE, "validation": HELD_OUT} | settings)
    return search_network(Session(worker), config, trainer=told(figures))


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("metric", ["dice", "loss"])
def test_the_best_of_each_step_goes_on(tmp_path, one_worker, metric):
    found = search(tmp_path, one_worker, search={"metric": metric})
    best = found.network
    assert (best.initial_features, best.depth, best.batch_norm) == (8, 3, False)
    assert (best.encoder_dropout, best.decoder_dropout) == (0.0, 0.2)
    rows = rows_of(found.table)
    assert [row["step"] for row in rows] == (
        ["initial_features"] * 3 + ["depth"] * 3 + ["batch_norm"] * 2
        + ["encoder_dropout"] * 2 + ["decoder_dropout"] * 2
    )  # fmt: skip
    chosen = [row for row in rows if row["chosen"] == "True"]
    assert [row["step"] for row in chosen] == list(STEPS)
    assert {row["initial_features"] for row in rows[3:]} == {"8"}
    assert {row["depth"] for row in rows[6:]} == {"3"}


def test_no_network_is_trained_twice(tmp_path, one_worker):
    found = search(tmp_path, one_worker)
    calls = {path.parent.name: path.read_text() for path in tmp_path.rglob("calls")}
    assert set(calls.values()) == {"x"}
    # 12 rows, of which 4 are the best of the step before
    assert len(found.trials) == 12
    assert len(calls) == 8


def test_of_equal_networks_the_first_is_taken(tmp_path, one_worker):
    found = search(tmp_path, one_worker, lambda _task: {"dice": 0.5})
    assert (found.network.initial_features, found.network.depth) == (4, 2)
    assert found.network.batch_norm is False


def test_the_best_network_can_be_trained_from_its_file(tmp_path, one_worker):
    found = search(tmp_path, one_worker, search={"epochs": 1})
    config = load_train_config(found.best)
    assert config.network == found.network
    assert config.optimizer.epochs == 2
    assert config.search is None
    assert config.output == tmp_path / "out" / "best"


def test_trials_have_the_epochs_of_the_search(tmp_path, one_worker):
    def epochs(task):
        return {"dice": float(task.config.optimizer.epochs)}

    found = search(tmp_path, one_worker, epochs, search={"epochs": 1, "depth": (2,)})
    assert {one.score for one in found.trials} == {1.0}


def test_a_trial_that_fails_is_not_chosen_and_says_why(tmp_path, one_worker):
    def failing(task):
        is_best = task.config.network.initial_features == 8
        return WorkFailedError("out of memory") if is_best else by_dice(task)

    found = search(tmp_path, one_worker, failing)
    assert found.network.initial_features == 4
    row = next(row for row in rows_of(found.table) if row["initial_features"] == "8")
    assert (row["state"], row["reason"]) == ("failed", "out of memory")


def test_where_all_trials_fail_the_search_ends_and_the_table_is_there(tmp_path, one_worker):
    with pytest.raises(
        WorkFailedError, match=r"initial_features: all trials failed: f4_d2_bn.*: no"
    ):
        search(tmp_path, one_worker, lambda _task: WorkFailedError("no"))
    assert len(rows_of(tmp_path / "out/search.csv")) == 3


def test_an_empty_list_leaves_a_setting_as_it_is(tmp_path, one_worker):
    only = {name: () for name in STEPS if name != "depth"}
    found = search(tmp_path, one_worker, search=only)
    assert found.network.initial_features == 4
    assert len(found.trials) == 3


def test_with_folds_the_mean_counts(tmp_path, one_worker):
    write_dataset(tmp_path, "ab")

    def by_fold(task):
        # 8 features are best in one fold, 16 in the mean
        dice = {4: (0.5, 0.5), 8: (0.9, 0.2), 16: (0.6, 0.6)}[task.config.network.initial_features]
        return {"dice": dice[task.held_out == ("b",)]}

    only = {name: () for name in STEPS if name != "initial_features"}
    found = search(
        tmp_path, one_worker, by_fold, search=only, validation={}, cross_validation={"folds": 2}
    )
    assert found.network.initial_features == 16
    assert [round(one.score, 6) for one in found.trials] == [0.5, 0.55, 0.6]


def test_a_fold_that_knows_no_figure_of_a_class_says_nothing_of_it(tmp_path, one_worker):
    """As where the tomogram that is held out has an empty list."""
    write_dataset(tmp_path, "ab")

    def by_fold(task):
        dice = {4: 0.5, 8: 0.9, 16: 0.6}[task.config.network.initial_features]
        return {"dice": float("nan") if task.held_out == ("b",) else dice}

    only = {name: () for name in STEPS if name != "initial_features"}
    found = search(
        tmp_path, one_worker, by_fold, search=only, validation={}, cross_validation={"folds": 2}
    )
    assert found.network.initial_features == 8
    assert [one.score for one in found.trials] == [0.5, 0.9, 0.6]


def test_a_search_that_is_stopped_in_its_first_step_leaves_the_table_of_before(
    tmp_path, one_worker, monkeypatch
):
    write_dataset(tmp_path, "ab")
    table = search(tmp_path, one_worker).table
    before = table.read_bytes()

    def stopped(_search):
        raise KeyboardInterrupt

    monkeypatch.setattr(search_job._Search, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, one_worker)
    assert table.read_bytes() == before


def test_a_search_without_anything_held_out_is_refused(tmp_path, one_worker):
    with pytest.raises(ConfigError, match="to compare networks by, found none"):
        search(tmp_path, one_worker, validation={})


def test_a_model_to_continue_from_cannot_be_searched(tmp_path, one_worker):
    with pytest.raises(ConfigError, match=r"found model\.pth"):
        search(tmp_path, one_worker, network={"start_from": "model.pth"})


def test_a_network_for_slices_has_two_steps(tmp_path, one_worker):
    network = {"kind": "unet2d", "depth": 2, "initial_features": 4}
    found = search(tmp_path, one_worker, network=network)
    assert {one.step for one in found.trials} == {"initial_features", "depth"}
