"""Comparisons of files. Oracles: DeePiCt's own figures, arrays in memory, hand counts."""

import csv
import json
import logging
from dataclasses import replace

import mrcfile
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from deepict_dask.cli import evaluating
from deepict_dask.core.errors import (
    BudgetError,
    ConfigError,
    OutputExistsError,
    PicksFormatError,
    ShapeMismatchError,
    VoxelValueError,
    WorkFailedError,
)
from deepict_dask.core.geometry import Box
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.evaluate.report import as_csv, as_json, as_text
from deepict_dask.evaluate.settings import PicksEvaluation, SegmentationEvaluation
from deepict_dask.io.ome_zarr_write import create_ome_zarr
from deepict_dask.io.picks import write_picks
from deepict_dask.io.picks_table import make_picks
from deepict_dask.jobs.evaluate import (
    evaluate_picks,
    evaluate_picks_table,
    evaluate_segmentation,
    evaluate_segmentation_table,
)
from deepict_dask.jobs.session import Session

COMPAT = {"compat": "deepict"}


@pytest.fixture
def session(two_workers):
    return Session(two_workers, chunks=(16, 16, 16))


@pytest.fixture
def volumes(tmp_path):
    """A score map, its truth and a region as files."""
    rng = np.random.default_rng(0)
    score = rng.random((20, 30, 25)).astype("float32")
    true = (rng.random(score.shape) < score * 0.5).astype("int8")
    region = (rng.random(score.shape) < 0.5).astype("int8")
    return {
        name: write(tmp_path / f"{name}.mrc", volume)
        for name, volume in (("score", score), ("true", true), ("region", region))
    }


@pytest.fixture
def lists(tmp_path):
    """Picks and true particles: two of three picks are true, two of four are found."""
    picks, true = tmp_path / "picks.csv", tmp_path / "true.csv"
    picks.write_text("score,x,y,z\n0.9,1,1,1\n0.8,50,50,50\n0.7,11,11,11\n")
    true.write_text("1,1,2\n11,11,11\n21,21,21\n31,31,31\n")
    return picks, true


def write(path, volume, spacing=10.0):
    mrcfile.write(path, volume, voxel_size=spacing, overwrite=True)
    return path


def read(path):
    return mrcfile.read(path)


def run(*arguments):
    """Run a command of this file's app; return what it printed, or raise its error."""
    app = typer.Typer()
    evaluating.register(app)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def rows_of(path):
    """Read a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def published(path, name):
    """Read a figure of a pp_statistics file."""
    values = {row["statistic_variable"]: row["statistic_value"] for row in rows_of(path)}
    return float(values[name])


@pytest.mark.parametrize(
    ("case", "motl", "region"),
    [
        ("nomask_c1_min50", "motl_59.csv", None),
        ("region_intersection_c1_min100", "motl_8.csv", "region_mask.mrc.gz"),
    ],
)
def test_the_figures_deepict_writes_are_reproduced(golden, session, case, motl, region):
    deepict = golden / "deepict"
    expected = deepict / "evaluation" / f"pp_statistics_{case}.csv"
    picks = evaluate_picks(
        deepict / "postproc" / case / motl,
        deepict / "inputs" / "true_blobs_first50_xyz.csv",
        PicksEvaluation(radius=10, **COMPAT),
    )
    voxels = evaluate_segmentation(
        replace(session, chunks=(64, 64, 64)),
        deepict / "postproc" / case / "post_processed_prediction.mrc.gz",
        deepict / "inputs" / "blob_mask.mrc.gz",
        SegmentationEvaluation(**COMPAT),
        region_mask=region and deepict / "inputs" / region,
    )
    found = {
        "tp": picks.true_positives, "fp": picks.false_positives, "fn": picks.false_negatives,
        "auPRC": picks.auprc, "max_F1": picks.best_f1, "F1": picks.f1, "dice": voxels.dice,
    }  # fmt: skip
    assert {name: round(value, 4) for name, value in found.items()} == {
        name: published(expected, name) for name in found
    }


@pytest.mark.parametrize("sample", [0, 300])
@pytest.mark.parametrize("with_region", [False, True])
def test_neither_chunks_nor_workers_change_a_figure(any_workers, volumes, sample, with_region):
    found = [
        evaluate_segmentation(
            Session(workers, chunks=chunks),
            volumes["score"],
            volumes["true"],
            SegmentationEvaluation(sample=sample, seed=3),
            region_mask=volumes["region"] if with_region else None,
        )
        for workers, chunks in (
            (any_workers[1], (20, 30, 25)),
            (any_workers[2], (7, 9, 11)),
            (any_workers[3], (16, 16, 16)),
            (any_workers[3], (64, 1, 64)),
        )
    ]
    inside = read(volumes["region"]) != 0 if with_region else np.ones((20, 30, 25), bool)
    predicted, true = read(volumes["score"])[inside] > 0.5, read(volumes["true"])[inside] != 0
    for score in found:
        assert score.n_both == (predicted & true).sum()
        assert score.dice == 2 * score.n_both / (predicted.sum() + true.sum())
        assert score.n_sampled == (sample or inside.sum())
        assert (score.auprc, score.best_f1) == (found[0].auprc, found[0].best_f1)
        assert (score.curve.precision == found[0].curve.precision).all()
        assert (score.curve.score == found[0].curve.score).all()


def test_nan_is_refused_by_the_file_that_holds_it(tmp_path, session, volumes):
    for name in ("score", "true", "region"):
        volume = read(volumes[name]).astype("float32")
        volume[3, 20, 24] = np.nan
        with pytest.warns(RuntimeWarning, match="NaN"):  # mrcfile's, on writing
            files = volumes | {name: write(tmp_path / "nan.mrc", volume)}
        with pytest.raises(
            VoxelValueError, match=r"nan.mrc: .*1 other .* \(3, 20, 24\).*fill-nonf"
        ):
            evaluate_segmentation(
                session, files["score"], files["true"], region_mask=files["region"]
            )


def test_scores_beyond_0_and_1_need_a_sample(tmp_path, session, volumes):
    logits = write(tmp_path / "logits.mrc", read(volumes["score"]) * 9 - 4)
    with pytest.raises(VoxelValueError, match=r"logits.mrc: expected scores from 0 to 1.*--sample"):
        evaluate_segmentation(session, logits, volumes["true"], SegmentationEvaluation(sample=0))
    assert evaluate_segmentation(session, logits, volumes["true"]).n_sampled == 5000


def test_unequal_shapes_are_refused_and_cut_in_compat_mode(tmp_path, session, volumes):
    truth = read(volumes["true"])
    other = write(tmp_path / "other.mrc", np.pad(truth[:18], ((0, 0), (0, 5), (0, 0))))
    with pytest.raises(ShapeMismatchError, match=r"other.mrc.*\(20, 30, 25\).*\(18, 35, 25\)"):
        evaluate_segmentation(session, volumes["score"], other)
    found = evaluate_segmentation(
        session, volumes["score"], other, SegmentationEvaluation(**COMPAT)
    )
    predicted = read(volumes["score"])[:18] > 0.5
    both = (predicted & (truth[:18] != 0)).sum()
    expected = 2 * both / (predicted.sum() + truth[:18].sum())
    assert (found.n_voxels, found.dice) == (18 * 30 * 25, pytest.approx(expected))


def test_one_class_of_a_score_map_is_compared(tmp_path, session, volumes):
    score = read(volumes["score"])
    header = VolumeHeader(score.shape, "float32", 10.0, class_names=("membrane", "ribosome"))
    store = create_ome_zarr(tmp_path / "scores.zarr", header, chunks=(16, 16, 16))
    store.write(Box.whole(score.shape), np.stack([1 - score, score]))
    settings = SegmentationEvaluation(class_name="ribosome")
    found = evaluate_segmentation(session, tmp_path / "scores.zarr", volumes["true"], settings)
    assert found.dice == evaluate_segmentation(session, volumes["score"], volumes["true"]).dice
    with pytest.raises(ConfigError, match="found membrane, ribosome; choose one with --class"):
        evaluate_segmentation(session, tmp_path / "scores.zarr", volumes["true"])


def test_a_sample_that_no_worker_can_hold_is_refused_before_work(session, volumes):
    with pytest.raises(BudgetError, match="compare: needs"):
        evaluate_segmentation(
            session, volumes["score"], volumes["true"], SegmentationEvaluation(sample=10**8)
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda v: (v["score"], v["empty"]), "no voxel is true"),
        (lambda v: (v["empty"], v["true"]), "no voxel is above the threshold"),
        (lambda v: (v["score"], v["one"]), "none of the 20 sampled voxels is true"),
        (lambda v: (v["score"], v["true"], v["empty"]), "the region has no voxel"),
    ],
)
def test_what_makes_figures_zero_or_unknown_is_said(
    tmp_path, session, volumes, caplog, make, message
):
    nothing = np.zeros((20, 30, 25), "int8")
    one = nothing.copy()
    one[0, 0, 0] = 1
    files = {"empty": write(tmp_path / "e.mrc", nothing), "one": write(tmp_path / "o.mrc", one)}
    predicted, truth, *region = make(volumes | files)
    with caplog.at_level(logging.WARNING, "deepict_dask"):
        evaluate_segmentation(
            session, predicted, truth, SegmentationEvaluation(sample=20),
            region_mask=region[0] if region else None,
        )  # fmt: skip
    assert message in caplog.text


def test_picks_are_compared_by_file_with_a_radius_in_voxels_or_nm(lists):
    assert evaluate_picks(*lists).true_positives == 2
    assert evaluate_picks(*lists, PicksEvaluation(radius=0.5)).true_positives == 1
    near = PicksEvaluation(radius_nm=1.1, voxel_spacing_angstrom=10)
    assert evaluate_picks(*lists, near).true_positives == 2
    assert (
        evaluate_picks(
            *lists, PicksEvaluation(radius_nm=1.1, voxel_spacing_angstrom=20)
        ).true_positives
        == 1
    )
    with pytest.raises(ConfigError, match=r"--radius-nm 5: .*--voxel-spacing-angstrom"):
        evaluate_picks(*lists, PicksEvaluation(radius_nm=5))


def test_true_particles_at_one_place_and_empty_lists_are_said(tmp_path, lists, caplog):
    twice, empty = tmp_path / "twice.csv", tmp_path / "empty.csv"
    twice.write_text("1,1,2\n1,1,2\n11,11,11\n")
    empty.write_text("score,x,y,z\n")
    with caplog.at_level(logging.WARNING, "deepict_dask"):
        assert evaluate_picks(lists[0], twice).n_true == 3
        assert evaluate_picks(empty, lists[1]).false_negatives == 4
        assert evaluate_picks(lists[0], empty).false_positives == 3
    assert "1 of 3 true particles are at the place of another" in caplog.text
    assert caplog.text.count("holds no particle") == 2


@pytest.fixture
def table(tmp_path, lists):  # noqa: ARG001 - it makes the files
    """Three tomograms, one of which is not there."""
    good = "score,x,y,z\n0.95,1,1,1\n"
    (tmp_path / "good.csv").write_text(good)
    (tmp_path / "one.csv").write_text("1,1,1\n")
    path = tmp_path / "table.csv"
    path.write_text(
        "name,predicted,truth\nTS_1,picks.csv,true.csv\n"
        "TS_2,gone.csv,true.csv\nTS_3,good.csv,one.csv\n"
    )
    return path


def test_a_tomogram_that_fails_is_named_and_does_not_stop_the_others(table):
    evaluation = evaluate_picks_table(table)
    assert [one.name for one in evaluation.failed] == ["TS_2"]
    assert "gone.csv: expected a particle list, found no file" in evaluation.failed[0].error
    assert [(name, score.true_positives) for name, score in evaluation.scores] == [
        ("TS_1", 2),
        ("TS_3", 1),
    ]
    pooled = evaluation.pooled
    assert (pooled.true_positives, pooled.false_positives, pooled.n_true) == (3, 1, 5)


def test_mean_and_spread_are_over_the_tomograms_that_have_figures(table):
    found = json.loads(as_json(evaluate_picks_table(table)))
    recalls = [2 / 4, 1.0]
    assert found["mean"]["recall"] == pytest.approx(np.mean(recalls))
    assert found["std"]["recall"] == pytest.approx(np.std(recalls, ddof=1))
    assert [one.get("recall") for one in found["tomograms"]] == [0.5, None, 1.0]


def test_a_table_can_say_spacing_class_and_tomogram_of_each_row(tmp_path):
    (tmp_path / "p.csv").write_text("score,x,y,z,class_name\n1,0,0,0,a\n1,9,9,9,b\n")
    (tmp_path / "t.csv").write_text("0,0,1\n")
    path = tmp_path / "table.csv"
    path.write_text(
        "name,predicted,truth,class,voxel_spacing_angstrom,tomogram_shape\n"
        'A,p.csv,t.csv,a,10,"9,9,9"\nB,p.csv,t.csv,a,20,\nC,p.csv,t.csv,,10,\nD,p.csv,t.csv,a,x,\n'
    )
    evaluation = evaluate_picks_table(path, PicksEvaluation(radius_nm=1))
    assert {name: score.recall for name, score in evaluation.scores} == {"A": 1.0, "B": 0.0}
    assert [one.name for one in evaluation.failed] == ["C", "D"]
    assert "choose one with --class" in evaluation.failed[0].error
    assert "voxel_spacing_angstrom" in evaluation.failed[1].error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,predicted\na,b\n", "expected the columns name, predicted, truth"),
        ("name,predicted,truth,spacing\na,b,c,1\n", "found name, predicted, truth, spacing"),
        ("name,predicted,truth\n", "at least one tomogram"),
        ("name,predicted,truth\na,b,c\na,d,e\n", "several of a"),
        ("name,predicted,truth\na,,c\n", "row 2: expected name, predicted, truth"),
        ("name,predicted,truth\na,b,c,d\n", "row 2: .* one cell per column"),
        ("", "found none"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path, text, message):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        evaluate_picks_table(path)


def test_segmentations_of_a_table_are_pooled_voxel_by_voxel(tmp_path, session, volumes):
    write(tmp_path / "small.mrc", read(volumes["score"])[:5])
    write(tmp_path / "small_true.mrc", read(volumes["true"])[:5])
    path = tmp_path / "table.csv"
    path.write_text(
        "name,predicted,truth,region_mask,label_value\nA,score.mrc,true.mrc,region.mrc,\n"
        "B,small.mrc,small_true.mrc,,1\nC,small.mrc,true.mrc,,\n"
    )
    evaluation = evaluate_segmentation_table(session, path, SegmentationEvaluation(sample=99))
    a, b = (score for _, score in evaluation.scores)
    assert a.n_voxels == (read(volumes["region"]) != 0).sum()
    assert [one.name for one in evaluation.failed] == ["C"]
    pooled = evaluation.pooled
    assert (pooled.n_voxels, pooled.n_sampled) == (a.n_voxels + b.n_voxels, 198)
    both, parts = a.n_both + b.n_both, a.n_true + b.n_true + a.n_predicted + b.n_predicted
    assert pooled.dice == 2 * both / parts


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


@pytest.mark.parametrize("numbered_is", ["predicted", "truth"])
@pytest.mark.parametrize("wanted", ["FAS", "2"])
def test_a_list_with_numbers_is_not_compared_with_classes_by_name(tmp_path, numbered_is, wanted):
    named, numbered = tmp_path / "named.csv", tmp_path / "numbered.tbl"
    picks = make_picks([[1, 1, 1], [9, 9, 9]], [2, 1], class_name=["ribosome", "FAS"])
    write_picks(picks, named)
    write_picks(picks, numbered)
    pair = (numbered, named) if numbered_is == "predicted" else (named, numbered)
    settings = PicksEvaluation.model_validate({"radius": 2, "class": wanted})
    known = "FAS, ribosome" if wanted == "2" else "1, 2"
    with pytest.raises(ConfigError, match=rf"the class {wanted}, found {known}; .*class_name"):
        evaluate_picks(*pair, settings)
    with pytest.raises(ConfigError, match="found 1, 2, FAS, ribosome; choose one"):
        evaluate_picks(*pair, PicksEvaluation(radius=2))


def test_two_lists_with_numbers_are_compared_by_number(tmp_path):
    place = [[1, 1, 1], [9, 9, 9], [20, 20, 20]]
    write_picks(make_picks(place, class_number=[1, 2, 2]), tmp_path / "a.tbl")
    write_picks(make_picks(place[:2], class_number=[1, 2]), tmp_path / "b.em")
    settings = PicksEvaluation.model_validate({"radius": 2, "class": "2"})
    score = evaluate_picks(tmp_path / "a.tbl", tmp_path / "b.em", settings)
    assert (score.n_found, score.n_true, score.true_positives) == (2, 1, 1)
