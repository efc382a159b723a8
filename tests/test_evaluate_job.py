"""Comparisons of files. Oracles: DeePiCt's own figures, arrays in memory, hand counts."""

import logging
import tempfile
from dataclasses import replace

import numpy as np
import pytest
from evaluate_scenes import lists, read, rows_of, session, volumes, write

from deepict_dask.core.errors import BudgetError, ConfigError, ShapeMismatchError, VoxelValueError
from deepict_dask.core.geometry import Box
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.evaluate.settings import PicksEvaluation, SegmentationEvaluation
from deepict_dask.io.ome_zarr_write import create_ome_zarr
from deepict_dask.io.picks import write_picks
from deepict_dask.io.picks_table import make_picks
from deepict_dask.jobs import evaluate
from deepict_dask.jobs.evaluate import evaluate_picks, evaluate_segmentation
from deepict_dask.jobs.session import Session

__all__ = ["lists", "session", "volumes"]

COMPAT = {"compat": "deepict"}


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


def test_packed_volumes_are_unpacked_where_other_machines_see_them(session, volumes, monkeypatch):
    seen, make = [], tempfile.TemporaryDirectory

    def made(**options):
        seen.append(options["dir"])
        return make(**options)

    monkeypatch.setattr(evaluate.tempfile, "TemporaryDirectory", made)
    far = replace(session, workers=replace(session.workers, address="tcp://10.0.0.7:8786"))
    for one in (session, far):
        evaluate_segmentation(one, volumes["score"], volumes["true"])
    assert seen == [None, volumes["score"].parent]


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
