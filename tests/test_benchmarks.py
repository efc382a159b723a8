"""Benchmarks run once, small, so that they cannot rot; what they say is checked where it can be."""

from __future__ import annotations

import json
import platform
from importlib import import_module

import pytest

from benchmarks import (
    bench_dataset,
    bench_equalize,
    bench_label,
    bench_memory,
    bench_million,
    bench_plans,
    bench_rivals_inference,
    bench_rivals_label,
    bench_run,
    bench_scaling,
    bench_segment,
    report,
)
from benchmarks.__main__ import NAMES, machine, main, question
from benchmarks.bench_training import RECIPES as TRAINING_RECIPES
from benchmarks.measure import NOT_INSTALLED, MostBytes, installed


def figures(value):
    """Return all floating numbers of a result, at any depth."""
    if isinstance(value, float):
        return [value]
    if isinstance(value, dict):
        return [number for inner in value.values() for number in figures(inner)]
    if isinstance(value, list | tuple):
        return [number for inner in value for number in figures(inner)]
    return []


def assert_reports(result):
    assert figures(result)
    assert json.loads(json.dumps(result))["name"] == result["name"]
    assert report.section(result).startswith(f"## {result['name']}")


@pytest.mark.parametrize("module", [bench_label, bench_segment])
def test_a_benchmark_runs_and_reports_figures(two_workers, module):
    result = module.run(two_workers, small=True)
    numbers = [value for value in result.values() if isinstance(value, float)]
    assert numbers
    assert all(number > 0 for number in numbers)
    if module is bench_label:
        ours, scipy = result["clusters (ours, scipy)"]
        assert ours == scipy > 0


PICKED = {"ribosome F1", "fas F1"}


@pytest.mark.parametrize(
    ("name", "recipes", "figures_shown"),
    [
        (
            "training",
            set(TRAINING_RECIPES),
            {"ribosome F1", "fas F1", "membrane voxel F1", "cytosol AUPRC"},
        ),
        ("training_deepfinder", {"DeepFinder"}, PICKED),
        ("training_deepetpicker", {"DeepETPicker"}, PICKED),
    ],
)
def test_every_recipe_of_training_is_tried_on_cells_that_it_has_not_seen(
    two_workers, name, recipes, figures_shown
):
    pytest.importorskip("lightning", reason="training needs the extra `train`")
    result = import_module(f"benchmarks.bench_{name}").run(two_workers, small=True)
    assert_reports(result)
    shown = {(recipe, figure) for recipe, figure, *_ in result["training"]["rows"]}
    assert {recipe for recipe, _ in shown} == recipes
    assert {figure for _, figure in shown} == figures_shown
    for _, _, mean, lowest, highest, n_seeds in result["training"]["rows"]:
        assert 0 <= lowest <= mean <= highest <= 1
        assert n_seeds == 1


def test_equalizing_in_pieces_agrees_with_the_whole_volume(two_workers):
    result = bench_equalize.run(two_workers, small=True)
    assert_reports(result)
    assert result["out of core, plan"].startswith("in pieces")
    rows = {row[0]: row for row in result["rates"]["rows"]}
    for name in ("in one piece", "out of core"):
        assert rows[name][4] < 1e-5


def test_every_stage_of_a_run_has_its_figures(two_workers):
    result = bench_run.run(two_workers, small=True)
    assert_reports(result)
    assert sum(row[2] for row in result["stages"]["rows"]) == pytest.approx(1, abs=0.01)
    assert result["run, picks"] > 0
    equalized, scores, picks = result["stages of the run"]["rows"]
    assert "equalized" in equalized[0]
    assert 0.5 < equalized[2] + scores[2] + picks[2] <= 1.01
    assert all(row[3] > 0 for row in (equalized, scores, picks))


def test_a_dataset_is_measured_one_by_one_and_several_at_a_time(two_workers):
    result = bench_dataset.run(two_workers, small=True)
    assert_reports(result)
    assert [row[0] for row in result["rates"]["rows"]] == [1, 2]
    assert all(min(row[1:]) > 0 for row in result["rates"]["rows"])
    assert [row[0] for row in result["memory"]["rows"]] == [1, 2, 4]


def test_two_workers_give_the_bytes_of_one():
    result = bench_scaling.run(None, small=True)
    assert_reports(result)
    assert result["bytes are the same on any number of workers"]
    assert [row[:2] for row in result["scaling"]["rows"]] == [
        ["segment", 1], ["segment", 2], ["pick", 1], ["pick", 2],
        ["the network alone", 1], ["the network alone", 2],
    ]  # fmt: skip


def test_memory_is_reported_for_every_size():
    result = bench_memory.run(None, small=True)
    assert_reports(result)
    assert all(peak > 0 for row in result["peaks"]["rows"] for peak in row[1:-1])


def test_rivals_that_label_find_the_same_clusters(two_workers):
    result = bench_rivals_label.run(two_workers, small=True)
    assert_reports(result)
    assert result["in-memory rivals agree on every cluster's size"]
    rows = result["rates"]["rows"]
    exact = [row for row in rows if row[1] != NOT_INSTALLED and "dask-image" not in row[0]]
    assert {row[4] for row in exact} == {result["clusters"]}
    assert {row[0] for row in exact} >= {"scipy.ndimage.label", "deepict-dask, all of pick"}


def needs(*modules):
    missing = [module for module in modules if not installed(module)]
    if missing:
        pytest.skip(f"the rival needs {', '.join(missing)}: pip install -e '.[bench]'")


@pytest.mark.slow
def test_a_rival_in_chunks_is_measured_too(two_workers):
    needs("dask_image")
    rows = bench_rivals_label.run(two_workers, small=True)["rates"]["rows"]
    (row,) = [row for row in rows if "dask-image" in row[0]]
    assert row[1] > 0
    assert row[4] > 0


@pytest.mark.slow
def test_networks_of_rivals_agree_with_the_whole_volume(two_workers):
    result = bench_rivals_inference.run(two_workers, small=True)
    assert_reports(result)
    rows = {row[0]: row for row in result["rates"]["rows"]}
    assert rows["deepict-dask"][5] < 1e-5
    limits = [row for name, row in rows.items() if "again and again" in name]
    assert all(row[5] < 1e-5 for row in limits if row[2] != NOT_INSTALLED)
    assert rows["deepict-dask"][3] >= 1


@pytest.mark.slow
def test_windows_of_a_rival_repeat_voxels_and_differ(two_workers):
    needs("monai")
    rows = bench_rivals_inference.run(two_workers, small=True)["rates"]["rows"]
    quarter, half = [row for row in rows if row[0].startswith("MONAI")]
    assert 1 < quarter[3] < half[3]
    assert quarter[5] > 1e-5


def test_a_rival_that_is_absent_is_named(two_workers, monkeypatch):
    monkeypatch.setattr(bench_rivals_label, "installed", lambda module: module == "scipy")
    rows = bench_rivals_label.run(two_workers, small=True)["rates"]["rows"]
    assert [row[0] for row in rows if row[1] == NOT_INSTALLED][:2] == ["cc3d", "scikit-image"]
    assert len(rows) == 5


def test_the_scheduler_forgets_the_finished_windows_of_a_map():
    result = bench_plans.run(None, small=True)
    assert_reports(result)
    in_flight = 4 * 2 + 8  # those that have ended are fetched, and forgotten, some at a time
    for kind in ("map", "reduce"):
        assert result[kind]["most tasks known to the scheduler"] <= 3 * in_flight


def test_a_plan_that_is_run_to_its_end_finishes_every_window():
    result = bench_million.run(None, small=True)
    assert_reports(result)
    assert result["windows finished"] == 64
    assert 0 < result["part of their time that workers slept in tasks"] <= 1


def test_the_model_breaks_where_the_hub_cannot_keep_up():
    assert bench_plans.modelled(64, 1.0, 0.002) == 1.0
    assert bench_plans.modelled(64, 0.1, 0.002) == pytest.approx(0.78, abs=0.01)


def test_a_page_holds_the_tables_and_the_plots(tmp_path):
    rates = {
        "columns": ["what", "a", "b"],
        "rows": [["ours", 2.0, None], ["other", NOT_INSTALLED, None]],
    }
    results = {
        "machine": {"cores": 2},
        "benchmarks": {
            "rivals_label": {"name": "labels", "ratio": 2.5, "rates": rates},
            "equalize": {"name": "equalize", "failed": "no memory"},
        },
    }
    page = report.write_page(results, tmp_path, "full")
    text = page.read_text()
    assert "| ratio | 2.5 |" in text
    assert f"| other | {NOT_INSTALLED} |  |" in text
    assert "no memory" in text
    assert (tmp_path / "full_rivals_label.png").stat().st_size > 1000
    assert not (tmp_path / "full_equalize.png").exists()


def test_a_page_takes_figures_whose_table_is_of_another_version(tmp_path):
    results = {"machine": {}, "benchmarks": {"equalize": {"name": "equalize", "ratio": 1.5}}}
    assert "| ratio | 1.5 |" in report.write_page(results, tmp_path, "full").read_text()
    assert not list(tmp_path.glob("*.png"))


def test_the_most_bytes_of_a_folder_count_what_was_deleted(tmp_path):
    with MostBytes(tmp_path) as disk:
        (tmp_path / "a").write_bytes(b"0" * 1000)
        assert disk.forget() == 1000
        (tmp_path / "a").write_bytes(b"0" * 10)
        assert disk.forget() in (10, 1000)  # a look may fall between the two
        assert disk.forget() == 10


def test_figures_of_other_benchmarks_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "benchmarks.__main__.measure",
        lambda _workers, name, *, small: {"name": name, "small": small},
    )
    for names in (["segment"], ["segment", "label"]):
        code = main(["--size", "small", "--out", str(tmp_path), *names])
        assert code == 0
    results = json.loads((tmp_path / "small.json").read_text())
    assert list(results["benchmarks"]) == ["label", "segment"]
    assert (tmp_path / "small.md").exists()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "plans"])
def test_every_benchmark_opens_with_the_question_it_answers(name):
    assert question(name).split()[0] in {"How", "What", "Where", "Whether", "Which"}


def test_help_lists_every_benchmark(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in NAMES)


def test_machine_facts_come_with_the_figures():
    facts = machine()
    assert facts["cores"] >= 1
    assert facts["python"] == platform.python_version()
    assert {"date", "commit", "dask", "torch", "monai"} <= set(facts)


def test_an_unknown_benchmark_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["labels"])
    assert NAMES[0] in capsys.readouterr().err
