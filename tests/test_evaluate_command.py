"""`deepict-dask evaluate`: text, JSON, files of figures, pictures, exit codes, refusals."""

import json

import pytest
import typer
from evaluate_scenes import lists, read, rows_of, table, volumes
from typer.testing import CliRunner

from deepict_dask.cli import evaluating
from deepict_dask.core.errors import (
    ConfigError,
    OutputExistsError,
    PicksFormatError,
    WorkFailedError,
)
from deepict_dask.evaluate.report import as_csv, as_json, as_text
from deepict_dask.jobs.evaluate import evaluate_picks_table

__all__ = ["lists", "table", "volumes"]


def run(*arguments):
    """Run a command of this file's app; return what it printed, or raise its error."""
    app = typer.Typer()
    evaluating.register(app)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_text_is_a_list_for_one_and_an_aligned_table_for_several(table, lists):
    found = run("picks", *lists).splitlines()
    assert found[0].split() == ["picks", "3"]
    assert len({line.rindex(line.split()[-1]) for line in found}) == 1
    lines = as_text(evaluate_picks_table(table)).splitlines()
    assert [line.split()[0] for line in lines] == [
        "tomogram", "TS_1", "TS_3", "pooled", "mean", "std", "TS_2:",
    ]  # fmt: skip
    assert len({len(line) for line in lines[:-1]}) == 1


def test_json_of_one_comparison_has_the_counts_and_no_nan(lists, tmp_path):
    found = json.loads(run("picks", *lists, "--json"))
    assert (found["found"], found["true"], found["matched"]) == (3, 4, 2)
    assert (found["precision"], found["recall"]) == (pytest.approx(2 / 3), 0.5)
    assert (found["best_score"], found["best_n_picks"]) == (0.7, 3)
    unscored = tmp_path / "unscored.csv"
    unscored.write_text("1,1,1\n")
    assert json.loads(run("picks", unscored, lists[1], "--json"))["best_score"] is None


def test_files_of_figures_curve_and_picture_are_written(lists, tmp_path):
    files = [tmp_path / "figures.csv", tmp_path / "curve.csv", tmp_path / "plot.png"]
    options = [*zip(("--csv", "--curve", "--plot"), files, strict=True)]
    run("picks", *lists, *(part for pair in options for part in pair))
    (row,) = rows_of(files[0])
    assert (row["name"], row["matched"], row["recall"]) == ("picks", "2", "0.5")
    points = rows_of(files[1])
    assert [(p["score"], p["n_kept"]) for p in points] == [("0.9", "1"), ("0.8", "2"), ("0.7", "3")]
    assert files[2].read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []
    for option, path in options:
        with pytest.raises(OutputExistsError, match=path.name):
            run("picks", *lists, option, path)
        run("picks", *lists, option, path, "--overwrite")


@pytest.mark.parametrize(("ending", "start"), [(".pdf", b"%PDF"), (".svg", b"<?xml")])
def test_a_picture_is_the_same_bytes_each_time(table, tmp_path, ending, start):
    pictures = []
    for name in ("one", "two"):
        path = tmp_path / f"{name}{ending}"
        with pytest.raises(WorkFailedError, match="1 of 3 tomograms failed: TS_2"):
            run("picks", "--table", table, "--plot", path)
        pictures.append(path.read_bytes())
    assert pictures[0] == pictures[1]
    assert pictures[0].startswith(start)


def test_a_table_with_a_failure_ends_with_exit_code_1_after_all_is_written(table, tmp_path):
    with pytest.raises(WorkFailedError, match=r"table.csv: 1 of 3") as caught:
        run("picks", "--table", table, "--csv", tmp_path / "out.csv")
    assert caught.value.exit_code == 1
    rows = rows_of(tmp_path / "out.csv")
    assert [row["row"] for row in rows] == ["tomogram"] * 3 + ["pooled", "mean", "std"]
    assert "no file" in rows[1]["error"]


def test_a_table_in_which_all_fail_has_no_figures_and_no_picture(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("name,predicted,truth\nA,gone.csv,gone.csv\n")
    evaluation = evaluate_picks_table(path)
    assert evaluation.pooled is None
    assert as_csv(evaluation).splitlines()[0] == "row,name,error"
    assert "A: " in as_text(evaluation)
    assert list(json.loads(as_json(evaluation))) == ["tomograms"]
    with pytest.raises(WorkFailedError):
        run("picks", "--table", path, "--plot", tmp_path / "plot.png")
    assert not (tmp_path / "plot.png").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["PRED"], ConfigError, "expected PRED and TRUTH, or --table, found PRED"),
        ([], ConfigError, "found neither"),
        (["PRED", "TRUTH", "--table", "t.csv"], ConfigError, "found PRED and TRUTH and --table"),
        (["PRED", "TRUTH", "--plot", "a.gif"], ConfigError, "a.gif: .*found .gif"),
        (["PRED", "TRUTH", "--csv", "no/such/a.csv"], ConfigError, "expected a folder"),
        (["PRED", "TRUTH", "--csv", "a.csv", "--curve", "a.csv"], ConfigError, "one name twice"),
        (["PRED", "TRUTH", "--radius", "1", "--radius-nm", "2"], ConfigError, "found both"),
        (["PRED", "TRUTH", "--radius", "-1"], ConfigError, "radius"),
        (["PRED", "TRUTH", "--compat", "relion"], ConfigError, "compat"),
        (["TRUTH.none", "TRUTH"], PicksFormatError, "TRUTH.none"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(lists, options, error, message):
    names = {"PRED": lists[0], "TRUTH": lists[1]}
    with pytest.raises(error, match=message):
        run("picks", *(names.get(option, option) for option in options))


@pytest.mark.slow
def test_segmentation_is_a_command(volumes, tmp_path):
    printed = run(
        "segmentation", volumes["score"], volumes["true"], "--region-mask", volumes["region"],
        "--sample", "100", "--seed", "4", "--json", "--plot", tmp_path / "plot.svg",
        "--workers", "1", "--no-progress",
    )  # fmt: skip
    found = json.loads(printed)
    assert found["voxels"] == (read(volumes["region"]) != 0).sum()
    assert (found["sampled"], found["name"]) == (100, "score")
    assert (tmp_path / "plot.svg").stat().st_size > 1000
