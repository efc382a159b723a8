"""Picks against the truth. Oracles: hand counts, a brute-force matcher, the published program."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepict_dask.core.errors import PicksFormatError
from deepict_dask.evaluate.picks import (
    count_picks,
    judge_picks,
    match_picks,
    pool_picks,
    score_picks,
)

GOLDEN = Path(__file__).parents[1].parent / "shared" / "golden" / "deepict" / "evaluation"

point = st.tuples(*[st.integers(0, 6)] * 3)
points = st.lists(point, max_size=12)


def brute_force(predicted, true, radius):
    """For each pick in turn the nearest free true particle, every pair looked at."""
    free, chosen = set(range(len(true))), []
    for z, y, x in predicted:
        near = [
            (float(np.linalg.norm(np.subtract(true[i], (z, y, x)))), true[i][::-1], i) for i in free
        ]
        best = min((entry for entry in near if entry[0] <= radius), default=None)
        chosen.append(-1 if best is None else best[2])
        free -= {chosen[-1]}
    return chosen


@settings(deadline=None, max_examples=150)
@given(predicted=points, true=st.lists(point, max_size=12, unique=True), radius=st.integers(0, 5))
def test_matching_equals_a_search_through_all_pairs(predicted, true, radius):
    matching = match_picks(predicted, true, radius)
    assert matching.true_index.tolist() == brute_force(predicted, true, radius)


@settings(deadline=None)
@given(predicted=points, true=points, radius=st.integers(0, 5))
def test_no_true_particle_is_given_away_twice_and_none_beyond_the_radius(predicted, true, radius):
    matching = match_picks(predicted, true, radius)
    taken = matching.true_index[matching.true_index >= 0]
    assert len(set(taken.tolist())) == len(taken) == matching.found.sum()
    assert (matching.distance[matching.true_index >= 0] <= radius).all()
    assert np.isinf(matching.distance[matching.true_index < 0]).all()


@settings(deadline=None)
@given(data=st.data(), true=points)
def test_with_scores_the_order_of_the_lists_is_of_no_importance(data, true):
    n = data.draw(st.integers(0, 8))
    predicted = np.array(data.draw(st.lists(point, min_size=n, max_size=n, unique=True)))
    scores = np.array(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)), float)
    order = np.array(data.draw(st.permutations(range(n))), int)
    one = score_picks(predicted, true, 2, scores=scores)
    other = score_picks(predicted[order], true[::-1], 2, scores=scores[order])
    assert (one.true_positives, one.auprc, one.best_f1) == (
        other.true_positives,
        other.auprc,
        other.best_f1,
    )


@pytest.mark.parametrize(
    "case", ["file_radius5", "file_radius10", "score_desc_radius5", "score_desc_radius10"]
)
def test_the_published_count_is_reproduced(case):
    if not GOLDEN.exists():
        pytest.skip("../shared/golden is absent")
    reference = json.loads((GOLDEN / "reference_pr.json").read_text())[case]
    true = np.loadtxt(GOLDEN / "true_xyz.csv", delimiter=",")[:, ::-1]
    listed = np.loadtxt(GOLDEN / "pred_score_xyz.csv", delimiter=",", skiprows=1)
    if case.startswith("score"):
        listed = listed[np.argsort(-listed[:, 0], kind="stable")]
    score = score_picks(listed[:, :0:-1], true, reference_radius(case), counting="deepict")
    counts = (score.true_positives, score.false_positives, score.false_negatives, score.redundant)
    assert counts == tuple(reference[name] for name in ("tp", "fp", "fn", "redundant"))
    np.testing.assert_allclose(score.precision_curve, reference["precision"], rtol=1e-12)
    np.testing.assert_allclose(score.recall_curve, reference["recall"], rtol=1e-12)
    ratios = (score.precision, score.recall, score.f1, score.best_f1, score.auprc)
    names = ("precision_final", "recall_final", "F1_final", "max_F1", "auPRC")
    np.testing.assert_allclose(ratios, [reference[name] for name in names], rtol=1e-12)
    assert score.best_n_picks == reference["optimal_peak_number"] + 1
    matching = match_picks(listed[:, :0:-1], true, reference_radius(case))
    hits = matching.true_index >= 0
    assert listed[hits, 1:].tolist() == reference["tp_pred"]
    assert true[matching.true_index[hits], ::-1].tolist() == reference["tp_true"]


def reference_radius(case):
    return int(case.split("radius")[1])


def test_a_second_pick_on_one_particle_is_a_false_positive_but_not_in_the_published_count():
    picks, true = [[0, 0, 0], [0, 0, 1]], [[0, 0, 0]]
    assert score_picks(picks, true, 2).precision == 0.5
    published = score_picks(picks, true, 2, counting="deepict")
    assert (published.precision, published.redundant, published.false_positives) == (1.0, 1, 0)


def test_true_particles_at_one_place_are_one_in_the_published_count_only():
    picks, true = [[0, 0, 0], [0, 0, 1]], [[0, 0, 0], [0, 0, 0]]
    assert score_picks(picks, true, 2).true_positives == 2
    published = score_picks(picks, true, 2, counting="deepict")
    assert (published.true_positives, published.n_true, published.recall) == (1, 2, 0.5)


def test_the_higher_score_chooses_first():
    matching = match_picks([[0, 0, 1], [0, 0, 0]], [[0, 0, 0]], 2, scores=[0.9, 0.1])
    assert matching.true_index.tolist() == [0, -1]
    matching = match_picks([[0, 0, 1], [0, 0, 0]], [[0, 0, 0]], 2, scores=[0.1, 0.9])
    assert matching.true_index.tolist() == [-1, 0]
    assert matching.order.tolist() == [1, 0]


def test_a_match_at_exactly_the_radius_counts_and_a_little_beyond_does_not():
    assert match_picks([[0, 3, 4]], [[0, 0, 0]], 5).true_index.tolist() == [0]
    assert match_picks([[0, 3, 4.000001]], [[0, 0, 0]], 5).true_index.tolist() == [-1]
    assert match_picks([[0.1, 0, 0]], [[0.4, 0, 0]], abs(0.1 - 0.4)).true_index.tolist() == [0]


@pytest.mark.parametrize("counting", ["one-to-one", "deepict"])
@pytest.mark.parametrize(("n_picks", "n_true"), [(0, 0), (0, 3), (3, 0)])
def test_empty_lists_give_zeros(counting, n_picks, n_true):
    picks, true = np.ones((n_picks, 3)), np.arange(3 * n_true).reshape(-1, 3)
    score = score_picks(picks, true, 0.1, scores=np.ones(n_picks), counting=counting)
    assert (score.n_found, score.n_true, score.true_positives) == (n_picks, n_true, 0)
    assert (score.false_positives, score.false_negatives) == (n_picks, n_true)
    ratios = (score.precision, score.recall, score.f1, score.best_f1, score.auprc)
    assert ratios == (0, 0, 0, 0, 0)


def test_a_list_can_be_cut_where_it_is_best():
    # by hand: hit, hit, miss, miss -> precision 1, 1, 2/3, 1/2; recall 1/3, 2/3, 2/3, 2/3
    true = [[0, 0, 0], [10, 0, 0], [20, 0, 0]]
    picks = [[50, 0, 0], [0, 0, 0], [60, 0, 0], [10, 0, 0]]
    score = score_picks(picks, true, 1, scores=[0.2, 0.9, 0.1, 0.8])
    assert score.best_f1 == pytest.approx(0.8)
    assert (score.best_n_picks, score.best_score) == (2, 0.8)
    assert score.f1 == pytest.approx(4 / 7)
    assert score.auprc == pytest.approx(2 / 3)


def test_picks_of_one_score_stand_and_fall_together():
    # the first of three equal scores is a hit: no threshold can keep it alone
    picks, true = [[0, 0, 0], [5, 0, 0], [9, 0, 0]], [[0, 0, 0]]
    score = score_picks(picks, true, 1, scores=[1, 1, 1])
    assert score.auprc == pytest.approx(1 / 3)
    assert (score.best_f1, score.best_n_picks) == (0.5, 3)
    assert score_picks(picks, true, 1).auprc == 1.0


@settings(deadline=None)
@given(data=st.data())
def test_the_average_precision_equals_that_of_the_definition(data):
    hits = data.draw(st.lists(st.booleans(), min_size=1, max_size=10))
    true = [[10 * i, 0, 0] for i, hit in enumerate(hits) if hit]
    picks = [[10 * i, 0, 0] for i in range(len(hits))]
    expected = sum(sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit)
    score = score_picks(picks, true, 1, scores=-np.arange(len(hits), dtype=float))
    assert score.auprc == pytest.approx(expected / len(true) if true else 0)


def test_scores_that_are_all_unknown_leave_the_order_given():
    picks, true = [[0, 0, 1], [0, 0, 0]], [[0, 0, 0]]
    assert match_picks(picks, true, 2, scores=[np.nan, np.nan]).true_index.tolist() == [0, -1]


@pytest.mark.parametrize(
    ("picks", "true", "radius", "scores", "message"),
    [
        ([[1, 2]], [[1, 2, 3]], 1, None, r"predicted picks: .*shape \(1, 2\)"),
        ([[1, 2, 3]], [[1, 2, np.nan]], 1, None, "true particles: expected finite"),
        ([[1, 2, 3]], [[1, 2, 3]], -1, None, "radius: .*found -1"),
        ([[1, 2, 3]], [[1, 2, 3]], np.nan, None, "radius: .*found nan"),
        ([[1, 2, 3]], [[1, 2, 3]], 1, [1, 2], r"one per pick \(1\), found 2"),
    ],
)
def test_what_cannot_be_matched_is_refused(picks, true, radius, scores, message):
    with pytest.raises(PicksFormatError, match=message):
        match_picks(picks, true, radius, scores=scores)


def test_lists_of_several_classes_are_compared_class_by_class():
    import pandas as pd

    from deepict_dask.core.errors import ConfigError
    from deepict_dask.evaluate.picks import same_class

    truth = pd.DataFrame({"x": range(4), "class_name": ["ribosome", "ball", "ribosome", "fas"]})
    ribosomes = pd.DataFrame({"x": range(3), "class_name": "ribosome"})
    plain = pd.DataFrame({"x": range(5)})
    assert [len(t) for t in same_class(ribosomes, truth)] == [3, 2]
    assert [len(t) for t in same_class(plain, truth, "fas")] == [5, 1]
    assert [len(t) for t in same_class(plain, plain)] == [5, 5]
    for predicted, name in ((plain, None), (truth, None), (ribosomes, "spoon")):
        with pytest.raises(ConfigError, match="ribosome"):
            same_class(predicted, truth, name)


def test_a_class_of_another_name_in_the_true_list_is_compared_where_it_is_named():
    import pandas as pd

    from deepict_dask.core.errors import ConfigError
    from deepict_dask.evaluate.picks import same_class

    ribosomes = pd.DataFrame({"x": range(3), "class_name": "ribosome"})
    truth = pd.DataFrame({"x": range(4), "class_name": ["cytosolic-ribosome"] * 3 + ["fas"]})
    assert [len(t) for t in same_class(ribosomes, truth, None, "cytosolic-ribosome")] == [3, 3]
    both = pd.concat([ribosomes, truth[3:]])
    assert [len(t) for t in same_class(both, truth, "ribosome", "fas")] == [3, 1]
    with pytest.raises(ConfigError, match="--true-class"):
        same_class(ribosomes, truth[:3])
    with pytest.raises(ConfigError, match="cytosolic-ribosome, fas"):
        same_class(ribosomes, truth, None, "ribosome")


@settings(deadline=None)
@given(data=st.data(), counting=st.sampled_from(["one-to-one", "deepict"]))
def test_pooled_lists_count_as_one_list_in_tomograms_far_apart(data, counting):
    # the oracle: one list of picks whose tomograms are so far apart that none reaches another's
    judged, everything, all_true, all_scores = [], [], [], []
    for k in range(data.draw(st.integers(1, 3))):
        picks = np.array(data.draw(points), float).reshape(-1, 3)
        true = np.array(data.draw(points), float).reshape(-1, 3)
        scores = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(picks))), float)
        scores = scores[: len(picks)]
        judged.append(judge_picks(picks, true, 2, scores=scores, counting=counting))
        everything.append(picks + 1000 * k)
        all_true.append(true + 1000 * k)
        all_scores.append(scores)
    pooled = count_picks(pool_picks(judged))
    joined = score_picks(
        np.concatenate(everything), np.concatenate(all_true), 2,
        scores=np.concatenate(all_scores), counting=counting,
    )  # fmt: skip
    for name in ("n_true", "n_found", "true_positives", "false_positives", "redundant"):
        assert getattr(pooled, name) == getattr(joined, name)
    for name in ("precision", "recall", "f1", "best_f1", "best_n_picks", "auprc"):
        assert getattr(pooled, name) == pytest.approx(getattr(joined, name))


def test_picks_without_a_score_come_last_in_a_pool():
    scored = judge_picks([[0, 0, 0]], [[0, 0, 0]], 1, scores=[0.1])
    unscored = judge_picks([[9, 9, 9]], [[0, 0, 0]], 1)
    assert pool_picks([unscored, scored]).hit.tolist() == [True, False]


def test_the_curve_has_a_point_for_each_score_and_the_published_one_for_each_pick():
    picks, true = [[0, 0, 0], [5, 0, 0], [9, 0, 0]], [[0, 0, 0]]
    curve = score_picks(picks, true, 1, scores=[0.9, 0.5, 0.5]).curve
    assert (curve.score.tolist(), curve.n_kept.tolist()) == ([0.9, 0.5], [1, 3])
    published = score_picks(picks, true, 1, scores=[0.9, 0.5, 0.5], counting="deepict").curve
    assert published.n_kept.tolist() == [1, 2, 3]
    assert published.straight
