"""Does cross-validation hold every tomogram out once, and say what it found, and what failed?"""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from study_scenes import SHAPE, study_config, told, write_dataset
from typer.testing import CliRunner

from deepict_dask.cli import app
from deepict_dask.config.training import TrainConfig
from deepict_dask.core.errors import ConfigError, WorkFailedError
from deepict_dask.engine import Workers
from deepict_dask.engine.output_lock import OutputLock
from deepict_dask.jobs.session import Session
from deepict_dask.jobs.training import task as training_task
from deepict_dask.jobs.training.folds import (
    Fold,
    cross_validate,
    folds_of,
    read_folds,
    shared_out,
    table_text,
    write_folds,
)
from deepict_dask.jobs.training.task import TrainingResult, TrainingTask, _Watch, train_task
from deepict_dask.models.checkpoint import load_checkpoint
from deepict_dask.training.assess import assess_model
from deepict_dask.training.data import open_training_data
from deepict_dask.training.fit import TrainingOutcome

NAMES = [f"TS_{number}" for number in range(7)]


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize("folds", [2, 3, 7])
def test_every_tomogram_is_held_out_once_and_trained_on_in_all_other_folds(folds):
    found = shared_out(NAMES, folds, seed=3)
    assert sorted(name for fold in found for name in fold.held_out) == NAMES
    for fold in found:
        assert sorted((*fold.training, *fold.held_out)) == NAMES
    sizes = [len(fold.held_out) for fold in found]
    assert max(sizes) - min(sizes) <= 1


def test_the_seed_decides_which_tomograms_go_together():
    assert shared_out(NAMES, 3, seed=1) == shared_out(NAMES, 3, seed=1)
    assert shared_out(NAMES, 3, seed=1) != shared_out(NAMES, 3, seed=2)


def test_more_folds_than_tomograms_are_refused():
    with pytest.raises(ConfigError, match=r"one fold for each of the 2 tomograms, found 3"):
        shared_out(["a", "b"], 3, seed=0)


@pytest.mark.parametrize(
    "header",
    ["fold,cv_training_list,cv_validation_list", "cv_fold,cv_training_list,cv_evaluation_list"],
)
def test_folds_of_deepict_are_read_in_both_forms(tmp_path, header):
    path = tmp_path / "cv_data.csv"
    path.write_text(f"{header}\n0,a b ,c \n1,b c ,a \n")
    assert read_folds(path) == [Fold("0", ("a", "b"), ("c",)), Fold("1", ("b", "c"), ("a",))]


def test_folds_are_written_as_they_are_read(tmp_path):
    folds = shared_out(NAMES, 3, seed=0)
    write_folds(tmp_path / "cv_data.csv", folds)
    assert read_folds(tmp_path / "cv_data.csv") == folds


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("fold,cv_training_list,cv_validation_list\n0,a b,b\n", "fold 0: .* found b in both"),
        ("fold,cv_training_list,cv_validation_list\n0,a b,\n", "found an empty one"),
        ("fold,training\n0,a b\n", "expected the columns fold, cv_training_list"),
    ],
)
def test_a_table_of_folds_that_cannot_be_is_refused(tmp_path, lines, message):
    path = tmp_path / "cv_data.csv"
    path.write_text(lines)
    with pytest.raises(ConfigError, match=message):
        read_folds(path)


def test_a_fold_of_unknown_tomograms_is_refused(tmp_path):
    write_dataset(tmp_path, "ab")
    (tmp_path / "cv.csv").write_text("fold,cv_training_list,cv_validation_list\n0,a,z\n")
    config = study_config(tmp_path, cross_validation={"table": tmp_path / "cv.csv"})
    with pytest.raises(ConfigError, match="expected names among a, b, found z"):
        folds_of(config)


def test_cross_validation_wants_folds_or_a_table(tmp_path):
    with pytest.raises(ValueError, match="either folds"):
        study_config(tmp_path, cross_validation={"final": True})


def test_mean_and_deviation_are_those_computed_by_hand():
    folds = shared_out(["a", "b", "c"], 3, seed=0)
    dice, auprc = [0.25, 0.5, 0.9], [0.5, math.nan, 0.7]
    found = {
        f"fold {fold.name}": TrainingResult(None, {"dice": d, "auprc_x": a})
        for fold, d, a in zip(folds, dice, auprc, strict=True)
    }
    rows = rows_of(table_text(folds, found))
    assert [row["fold"] for row in rows] == ["1", "2", "3", "mean", "std"]
    assert float(rows[3]["dice"]) == pytest.approx(0.55)
    # deviations -0.3, -0.05, 0.35: sqrt((0.09 + 0.0025 + 0.1225) / 2)
    assert float(rows[4]["dice"]) == pytest.approx(math.sqrt(0.215 / 2), abs=1e-6)
    assert rows[1]["auprc_x"] == ""
    assert float(rows[3]["auprc_x"]) == pytest.approx(0.6)


def test_a_fold_that_fails_is_named_and_does_not_stop_the_others(tmp_path, one_worker):
    write_dataset(tmp_path, "abc")
    config = study_config(tmp_path, cross_validation={"folds": 3, "final": True})
    bad = told(lambda t: ValueError("no luck") if t.name == "fold 2" else {"dice": 0.5})
    with pytest.raises(
        WorkFailedError, match=r"1 of 4 trainings failed: fold 2: .*no luck"
    ) as said:
        cross_validate(Session(one_worker), config, trainer=bad)
    assert said.value.exit_code == 1
    rows = rows_of((tmp_path / "out/cross_validation.csv").read_text())
    assert [row["state"] for row in rows] == ["done", "failed", "done", "", ""]
    assert "no luck" in rows[1]["reason"]
    assert float(rows[3]["dice"]) == 0.5
    good = told(lambda _task: {"dice": 0.5})
    table = cross_validate(Session(one_worker), config, trainer=good)
    assert [row["state"] for row in rows_of(table.read_text())] == ["done"] * 3 + ["", ""]


def test_folds_get_their_tomograms_and_the_final_model_all(tmp_path, two_workers):
    write_dataset(tmp_path, "abc")
    config = study_config(tmp_path, cross_validation={"folds": 3, "final": True})

    def told_names(task):
        said = json.dumps([task.tomograms, list(task.held_out), str(task.config.output)])
        (task.folder / "names").write_text(said)
        return {}

    cross_validate(Session(two_workers), config, trainer=told(told_names))
    out = tmp_path / "out"
    for fold in shared_out("abc", 3, config.seed):
        said = json.loads((out / fold.folder / "names").read_text())
        assert said == [list(fold.training), list(fold.held_out), str(out / fold.folder)]
    assert json.loads((out / "final/names").read_text())[:2] == [None, []]


def test_folds_are_trained_assessed_and_recognised(tmp_path, one_worker, monkeypatch):
    monkeypatch.setattr(training_task, "cores_each", lambda _workers, _n: 1)
    write_dataset(tmp_path, "ab")
    config = study_config(tmp_path, cross_validation={"folds": 2})
    lines = []
    first = cross_validate(Session(one_worker), config, tell=lines.append).read_text()
    rows = rows_of(first)
    models = [tmp_path / f"out/fold_{n}/model.safetensors" for n in (1, 2)]
    made = [model.stat().st_mtime_ns for model in models]
    # one fold's figures by hand, from the scores of its model on all of its tomogram
    held_out = rows[0]["held_out"]
    names = [name for name in "ab" if name != held_out]
    data = open_training_data(config, tomograms=names, held_out=[held_out])
    network = load_checkpoint(models[0]).network.eval()
    scores, true = [], []
    for patches, targets in data.validation_batches():
        with torch.no_grad():
            scores.append(torch.sigmoid(network(torch.from_numpy(patches))).numpy().ravel())
        true.append(targets.ravel() > 0.5)
    found, right = np.concatenate(scores) > 0.5, np.concatenate(true)
    assert len(right) == np.prod(SHAPE)
    assert float(rows[0]["precision_ball"]) == pytest.approx(right[found].mean(), abs=2e-3)
    assert float(rows[0]["recall_ball"]) == pytest.approx(found[right].mean(), abs=2e-3)
    again = cross_validate(Session(one_worker), config, tell=lines.append).read_text()
    assert again == first
    assert [model.stat().st_mtime_ns for model in models] == made
    assert [line.split(",")[0] for line in lines[2:]] == [f"fold {n}: was finished" for n in (1, 2)]


@pytest.mark.parametrize("fraction", [0.0, 0.25])
def test_a_fold_is_tested_on_its_own_tomograms_only(tmp_path, monkeypatch, fraction):
    write_dataset(tmp_path, "ab")
    seen = []

    def train_network(_config, *, data, folder, **_wishes):
        seen.append([(part.tomogram.name, part.box.shape) for part in data.training])
        seen.append([(part.tomogram.name, part.box.shape) for part in data.validation])
        return TrainingOutcome(folder / "model", best={"val_dice": 0.5})

    def assessed(_model, task, data):
        assert task.held_out == ("b",)
        return {"voxels": float(sum(part.box.n_voxels for part in data.validation))}

    monkeypatch.setattr("deepict_dask.training.fit.train_network", train_network)
    monkeypatch.setattr(training_task, "_assessed", assessed)
    config = study_config(tmp_path, validation={"fraction": fraction})
    found = train_task(TrainingTask("fold 1", config, tmp_path, ("a",), ("b",)))
    assert found.figures == {"dice": 0.5, "voxels": float(np.prod(SHAPE))}
    # the best epoch is chosen by the end of what is trained on, where that is asked for
    ends = [("a", (32, 24, 32))], [("a", (32, 8, 32))]
    assert tuple(seen) == (ends if fraction else ([("a", SHAPE)], [("b", SHAPE)]))


def test_a_perfect_model_has_perfect_figures_and_an_absent_class_none(tmp_path):
    config = TrainConfig(
        tomograms="cells.csv", output=tmp_path,
        classes={"a": {"labels": "a"}, "b": {"labels": "b"}},
        network={"depth": 1, "initial_features": 2},
    )  # fmt: skip
    model = tmp_path / "model.safetensors"
    _save_threshold_model(model, config)
    patches = np.where(np.random.default_rng(0).random((1, 1, 8, 8, 8)) > 0.7, 1, -1)
    target = (patches > 0).astype(np.float32)
    batch = patches.astype(np.float32), np.concatenate([target, 0 * target], axis=1)
    found = assess_model(model, config, [batch])
    assert [found[f"{n}_a"] for n in ("precision", "recall", "f1", "auprc")] == [1.0] * 4
    assert math.isnan(found["f1_b"])
    assert math.isnan(found["dice_b"])
    assert found["dice"] == found["dice_a"] > 0.99


def _save_threshold_model(path, config):
    """Save a network that answers its first class where a voxel is positive, its second never."""
    from deepict_dask.models.checkpoint import save_model
    from deepict_dask.training.networks import network_to_train

    network = network_to_train(config.model_copy(
        update={"network": config.network.model_copy(update={"batch_norm": False})}
    ))  # fmt: skip
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.zero_()
            if name.endswith("weight") and weight.ndim == 5 and weight.shape[-1] in (1, 3):
                middle = weight.shape[-1] // 2
                weight[0, 0, middle, middle, middle] = 30.0
        last = [one for one in network.parameters() if one.shape == (2,)][-1]
        last.copy_(torch.tensor([-30.0, -30.0]))
    save_model(path, network, class_names=("a", "b"), voxel_spacing_angstrom=10.0, card={})


def test_a_training_ends_when_its_command_has_ended(tmp_path):
    lock = tmp_path / "study.lock"
    watch = _Watch(lock)
    with watch.stage("train", 9) as advance:
        with OutputLock(lock):
            advance(1)
        watch._looked = 0.0
        with pytest.raises(WorkFailedError, match="the command that began this training has ended"):
            advance(1)


def test_a_task_can_be_sent_to_a_worker(tmp_path):
    import pickle

    task = TrainingTask("fold 1", study_config(tmp_path), tmp_path, ("a",), ("b",))
    assert pickle.loads(pickle.dumps(task)) == task


YAML = """
tomograms: cells.csv
output: out
classes: {ball: {picks: picks_ball, radius_voxels: 4}}
validation: {fraction: 0.25}
cluster: {kind: threads, workers: 1, memory: 1GiB, device: cpu}
"""


@pytest.fixture
def studies(monkeypatch):
    """Note which study the command line starts, instead of running it."""
    from deepict_dask.cli import studies

    seen = []
    monkeypatch.setattr(studies, "_run", lambda _session, _config, **wishes: seen.append(wishes))
    return seen


@pytest.mark.parametrize(
    ("words", "lines", "wishes"),
    [
        ([], "cross_validation: {folds: 2}", {"search": False, "rounds": None}),
        (["--search"], "", {"search": True, "rounds": None}),
        (["--rounds", "2"], "", {"search": False, "rounds": 2}),
        (["--search", "--restart"], "", {"search": True, "resume": False}),
    ],
)
def test_the_command_line_says_which_study(tmp_path, studies, words, lines, wishes):
    write_dataset(tmp_path, "ab")
    (tmp_path / "train.yaml").write_text(YAML + lines + "\n")
    found = CliRunner().invoke(app, ["train", str(tmp_path / "train.yaml"), *words])
    assert found.exit_code == 0, found.output
    (seen,) = studies
    assert wishes.items() <= seen.items()


def test_search_and_rounds_are_not_for_one_command(tmp_path):
    (tmp_path / "train.yaml").write_text(YAML)
    found = CliRunner().invoke(
        app, ["train", str(tmp_path / "train.yaml"), "--search", "--rounds", "1"]
    )
    assert isinstance(found.exception, ConfigError) or found.exit_code == 2
    assert "either --search or --rounds" in (found.output + str(found.exception))


@pytest.mark.parametrize(
    ("words", "lines", "said"),
    [
        ([], "cross_validation: {folds: 2, final: true}", "final: trained on all tomograms"),
        (["--search"], "search: {depth: [2]}", "then depth 2; then batch_norm False, True"),
        (["--rounds", "2"], "", "2 rounds, 3 trainings; round 1 on a, b"),
        (["--rounds", "1"], "", "1 round, 2 trainings; round 1 on a, b"),
    ],
)
def test_a_dry_run_says_what_would_be_trained_and_trains_nothing(tmp_path, words, lines, said):
    write_dataset(tmp_path, "ab", unlabelled="u" if words == ["--rounds", "2"] else "")
    text = YAML + "patches: {shape: [8, 8, 8]}\n" + lines + "\n"
    (tmp_path / "train.yaml").write_text(text)
    found = CliRunner().invoke(app, ["train", str(tmp_path / "train.yaml"), "--dry-run", *words])
    assert found.exit_code == 0, found.output
    assert said in found.output
    if "2" in words:
        assert "\n  a: 6 ball\n  b: 6 ball\n  u: no lists\n" in found.output
    assert not list(tmp_path.rglob("*.safetensors"))


def test_trainings_on_gpus_go_to_workers_that_have_one(tmp_path):
    workers = Workers(None, 2, 1 << 30, "", kinds=frozenset({"CPU", "GPU"}))
    task = TrainingTask("fold 1", study_config(tmp_path), tmp_path, device="cuda")
    assert workers.placed(task) == {"resources": {"GPU": 1}}
    assert workers.placed(replace(task, device="cpu")) == {"resources": {"CPU": 1}}


def test_figures_of_a_corrected_list_are_not_those_of_before(tmp_path, monkeypatch):
    """The held-out particles are in no key of the training where its validation is its own end."""
    from deepict_dask.training import assess

    counted = []
    monkeypatch.setattr(assess, "assess_model", lambda *_a, **_k: {"f1": float(len(counted))})

    def assessed(digest):
        data = SimpleNamespace(
            inputs={"c": {"picks": {"path": f"/moved/{digest}", "sha256": digest}}},
            validation_batches=lambda: counted.append(digest), validation_ends=list,
        )  # fmt: skip
        return training_task._assessed(tmp_path / "model", task, data)["f1"]

    (tmp_path / "model").write_bytes(b"weights")
    task = TrainingTask("fold", study_config(tmp_path), tmp_path, held_out=("c",))
    assert [assessed(digest) for digest in ("one", "one", "two", "two")] == [1, 1, 2, 2]
