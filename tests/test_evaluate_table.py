"""Comparisons of a table of files: one figure for each, their mean and spread, and all pooled."""

import json

import numpy as np
import pytest
from evaluate_scenes import lists, read, session, table, volumes, write

from deepict_dask.core.errors import ConfigError
from deepict_dask.evaluate.report import as_json
from deepict_dask.evaluate.settings import PicksEvaluation, SegmentationEvaluation
from deepict_dask.jobs.evaluate import evaluate_picks_table, evaluate_segmentation_table

__all__ = ["lists", "session", "table", "volumes"]


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
