"""Voxels against the truth. Oracles: NumPy on whole volumes, the definition of each figure."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepict_dask.core.geometry import Grid
from deepict_dask.evaluate.curves import Curve, curve_of_counts
from deepict_dask.evaluate.segmentation import (
    CompareReduction,
    pool_tallies,
    score_segmentation,
)
from deepict_dask.evaluate.voxel_sample import tickets


def compared(*volumes, chunks=(64, 64, 64), **settings):
    """Compare arrays as the engine does, block by block."""
    shape = volumes[0].shape
    compare = CompareReduction(shape, **settings)
    tally = None
    for block in Grid(shape, chunks):
        piece = compare.measure(block, *(volume[block.read.slices] for volume in volumes))
        tally = piece if tally is None else compare.combine(tally, piece)
    return compare.finalize(tally)


def scored(*volumes, **settings):
    tally = compared(*volumes, **settings)
    return score_segmentation(tally, published=settings.get("published", False))


def average_precision(score, true):
    """Walk down the distinct scores; precision times the recall that each adds."""
    area, before = 0.0, 0.0
    for cut in sorted(set(score.tolist()), reverse=True):
        kept = score >= cut
        recall = (kept & true).sum() / true.sum()
        area += (kept & true).sum() / kept.sum() * (recall - before)
        before = recall
    return area


def volumes(seed, shape=(9, 10, 11), n_steps=50):
    rng = np.random.default_rng(seed)
    score = (rng.integers(0, n_steps + 1, shape) / n_steps).astype("float32")
    true = rng.random(shape) < score * 0.6
    region = rng.random(shape) < 0.5
    return score, true.astype("uint8"), region.astype("uint8")


def figures_of(score):
    """Every number of a score, to be compared exactly."""
    return [
        value.tolist() if isinstance(value, np.ndarray) else value
        for value in (*vars(score).values(), *vars(score.curve).values())
        if not isinstance(value, Curve)
    ]


@given(
    seed=st.integers(0, 99),
    chunks=st.tuples(*[st.integers(1, 12)] * 3),
    sample=st.sampled_from([0, 1, 40, 5000]),
    with_region=st.booleans(),
    published=st.booleans(),
)
def test_the_figures_do_not_depend_on_the_chunks(seed, chunks, sample, with_region, published):
    inputs = volumes(seed)[: 2 + with_region]
    settings = {"sample": sample, "seed": seed, "published": published}
    whole = scored(*inputs, chunks=inputs[0].shape, **settings)
    assert figures_of(scored(*inputs, chunks=chunks, **settings)) == figures_of(whole)


@given(seed=st.integers(0, 99), with_region=st.booleans(), threshold=st.sampled_from([0.1, 0.5]))
def test_counts_and_ratios_equal_those_of_the_definition(seed, with_region, threshold):
    score, true, region = volumes(seed)
    inside = region != 0 if with_region else np.ones(score.shape, bool)
    predicted, positive = score[inside] > threshold, true[inside] != 0
    both = (predicted & positive).sum()
    found = scored(*(score, true, region)[: 2 + with_region], threshold=threshold)
    assert (found.n_voxels, found.n_true) == (inside.sum(), positive.sum())
    assert (found.n_predicted, found.n_both) == (predicted.sum(), both)
    assert found.dice == pytest.approx(2 * both / (predicted.sum() + positive.sum()))
    assert found.precision == pytest.approx(both / predicted.sum())
    assert found.recall == pytest.approx(both / positive.sum())


@given(seed=st.integers(0, 99), with_region=st.booleans())
def test_a_sample_of_all_voxels_gives_the_average_precision(seed, with_region):
    score, true, region = volumes(seed)
    inside = region != 0 if with_region else np.ones(score.shape, bool)
    expected = average_precision(score[inside], true[inside] != 0)
    found = scored(*(score, true, region)[: 2 + with_region], sample=score.size)
    assert found.n_sampled == inside.sum()
    assert found.auprc == pytest.approx(expected)


@given(seed=st.integers(0, 99))
def test_the_histogram_is_exact_for_scores_rounded_down_to_its_steps(seed):
    rng = np.random.default_rng(seed)
    score = rng.random((5, 6, 7)).astype("float32")
    score[0, 0, :2] = (0, 1)
    true = rng.random(score.shape) < score
    found = scored(score, true, sample=0)
    rounded = np.floor(score.astype(float) * 2**16) / 2**16
    assert found.n_sampled == score.size
    assert found.auprc == pytest.approx(average_precision(rounded.ravel(), true.ravel()))
    assert set(found.curve.score.tolist()) == set(rounded.ravel().tolist())


def test_the_best_cut_has_the_highest_f1_of_all_thresholds():
    score, true, _ = volumes(3)
    found = scored(score, true, sample=0)
    by_cut = {}
    for cut in np.unique(score):
        predicted = score >= cut
        both = (predicted & (true != 0)).sum()
        by_cut[float(np.floor(cut * 2.0**16) / 2**16)] = 2 * both / (predicted.sum() + true.sum())
    best = max(by_cut, key=by_cut.get)
    assert (found.best_f1, found.best_score) == (pytest.approx(by_cut[best]), best)


def test_a_sample_has_as_many_voxels_as_asked_for_all_inside_the_region():
    score, true, region = volumes(0)
    place = np.arange(score.size, dtype="float64").reshape(score.shape)
    sample = compared(place, true, region, sample=100, chunks=(4, 5, 6)).sample
    assert len(set(sample.score.tolist())) == len(sample.score) == 100
    rows = sample.score.astype(int)
    assert region.ravel()[rows].all()
    assert (sample.true == true.ravel()[rows]).all()


def test_another_seed_draws_other_voxels_and_the_same_seed_the_same():
    score, true, _ = volumes(0)
    place = np.arange(score.size, dtype="float64").reshape(score.shape)
    first, again, other = (
        set(compared(place, true, sample=50, seed=seed).sample.score.tolist()) for seed in (1, 1, 2)
    )
    assert first == again
    assert len(first & other) < 25


def test_every_voxel_is_drawn_about_equally_often():
    n, size, rounds = 20, 200, 400
    drawn = np.zeros(size)
    for seed in range(rounds):
        drawn[np.argsort(tickets(np.arange(size), seed))[:n]] += 1
    expected = rounds * n / size  # 40, standard deviation 6
    assert drawn.sum() == rounds * n
    chi_square = ((drawn - expected) ** 2 / (expected * (1 - n / size))).sum()
    assert 140 < chi_square < 270  # 199 degrees of freedom, standard deviation 20


def test_no_two_voxels_have_one_ticket():
    assert len(np.unique(tickets(np.arange(200_000), 7))) == 200_000


@given(seed=st.integers(0, 20))
def test_the_published_dice_is_that_of_the_formula(seed):
    rng = np.random.default_rng(seed)
    predicted = (rng.random((4, 5, 6)) < 0.4).astype("float32")
    target = rng.integers(0, 3, predicted.shape).astype("uint8")
    region = rng.integers(0, 2, predicted.shape).astype("float32")
    p, t = (predicted * region).astype(float), target.astype(float)
    expected = 2 * (p * t).sum() / max((p**2).sum() + (t**2).sum(), 1e-6)
    found = scored(predicted, target, region, published=True)
    assert found.dice == pytest.approx(expected, rel=1e-12)
    assert found.n_voxels == predicted.size
    assert found.n_true == (target != 0).sum()


def test_the_region_cuts_the_truth_too_but_not_in_the_published_figures():
    predicted = np.ones((1, 1, 4), "uint8")
    truth = np.ones((1, 1, 4), "uint8")
    region = np.array([[[1, 0, 0, 0]]], "uint8")
    assert scored(predicted, truth, region).dice == 1
    assert scored(predicted, truth, region, published=True).dice == pytest.approx(2 / 5)


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("sample", [0, 10])
def test_without_a_predicted_voxel_precision_and_dice_are_zero(published, sample):
    nothing, truth = np.zeros((2, 2, 2), "float32"), np.zeros((2, 2, 2), "uint8")
    truth[0, 0, 0] = 1
    found = scored(nothing, truth, published=published, sample=sample)
    assert (found.dice, found.precision, found.recall) == (0, 0, 0)
    assert found.auprc == pytest.approx(1 / 8)  # one cut keeps all voxels


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("sample", [0, 10])
def test_without_a_true_voxel_the_area_is_unknown(published, sample):
    score, truth = np.full((2, 2, 2), 0.9, "float32"), np.zeros((2, 2, 2), "uint8")
    found = scored(score, truth, published=published, sample=sample)
    assert (found.dice, found.precision, found.recall) == (0, 0, 0)
    assert all(map(math.isnan, (found.auprc, found.best_f1, found.best_score)))


@pytest.mark.parametrize("sample", [0, 10])
def test_with_all_voxels_true_every_cut_is_right(sample):
    score = np.linspace(0, 1, 8, dtype="float32").reshape(2, 2, 2)
    found = scored(score, np.ones((2, 2, 2), bool), sample=sample)
    assert (found.precision, found.recall, found.auprc) == (1, 0.5, 1)


@pytest.mark.parametrize("sample", [0, 10])
def test_an_empty_region_compares_nothing(sample):
    volume = np.ones((2, 2, 2), "uint8")
    found = scored(volume, volume, np.zeros((2, 2, 2), "uint8"), sample=sample)
    assert (found.n_voxels, found.dice, found.n_sampled) == (0, 0, 0)
    assert math.isnan(found.auprc)


@given(chunks=st.tuples(*[st.integers(1, 6)] * 3), which=st.sampled_from([0, 1, 2]))
def test_nan_is_found_in_every_volume_with_its_first_place(chunks, which):
    inputs = [volume.astype("float32") for volume in volumes(1, (4, 5, 6))]
    inputs[which][2, 1, 3] = inputs[which][3, 4, 5] = np.nan
    bad = compared(*inputs, chunks=chunks).bad
    assert [one.n_bad for one in bad] == [2 if k == which else 0 for k in range(3)]
    assert bad[which].first == np.ravel_multi_index((2, 1, 3), (4, 5, 6))


def test_what_histogram_and_sums_cannot_hold_is_found():
    ones = np.ones((1, 1, 3), "float32")
    beyond = np.array([[[1.5, -0.1, 0.5]]], "float32")
    assert [one.n_bad for one in compared(beyond, ones, sample=0).bad] == [2, 0]
    assert [one.n_bad for one in compared(beyond, ones, sample=5).bad] == [0, 0]
    assert [one.n_bad for one in compared(ones, beyond, published=True).bad] == [0, 3]
    # bytes that were stored as signed ones are no mask, and would all be true
    assert [one.n_bad for one in compared(ones, beyond).bad] == [0, 1]
    assert [one.n_bad for one in compared(ones, ones, np.int8([[[-128, 1, 0]]])).bad] == [0, 0, 1]
    signed = np.int8([[[-128, 1, 0]]])
    assert [one.n_bad for one in compared(signed, ones, sample=0).bad] == [1, 0]


def test_whole_numbers_are_a_segmentation_whatever_their_labels():
    labels = np.array([[[0, 7, 3, 0]]], "int32")
    truth = np.array([[[0, 1, 1, 1]]], "uint8")
    found = scored(labels, truth)
    assert (found.n_predicted, found.n_both, found.dice) == (2, 2, 0.8)
    assert set(found.curve.score.tolist()) == {0.0, 1.0}
    assert scored(labels, truth, sample=0).auprc == found.auprc


def test_one_label_of_the_truth_can_be_asked_for():
    truth = np.array([[[0, 1, 2, 2]]], "int16")
    score = np.array([[[0.1, 0.9, 0.9, 0.2]]], "float32")
    found = scored(score, truth, label_value=2)
    assert (found.n_true, found.n_both, found.dice) == (2, 1, 0.5)
    assert scored(score, truth, label_value=2, published=True).dice == 0.5


def test_one_label_of_both_can_be_asked_for():
    labels = np.array([[[0, 1, 2, 2]]], "uint8")
    for sample in (5000, 0):
        both = scored(labels, labels, label_value=2, predicted_label_value=2, sample=sample)
        assert (both.n_predicted, both.dice, both.precision) == (2, 1.0, 1.0)
    assert scored(labels, labels, label_value=2).precision == 2 / 3


def test_a_score_at_the_threshold_is_not_predicted():
    score = np.array([[[0.5, 0.5000001]]], "float32")
    assert scored(score, np.ones((1, 1, 2), "uint8")).n_predicted == 1


def test_pooled_tomograms_add_their_counts_and_rank_their_samples_together():
    tallies = [compared(*volumes(seed)[:2], sample=200) for seed in (1, 2)]
    pooled = score_segmentation(pool_tallies(tallies))
    score = np.concatenate([one.sample.score for one in tallies])
    true = np.concatenate([one.sample.true for one in tallies])
    assert pooled.n_sampled == 400
    assert pooled.auprc == pytest.approx(average_precision(score, true))
    both = sum(one.counts.both for one in tallies)
    whole = sum(one.counts.true + one.counts.predicted for one in tallies)
    assert pooled.dice == pytest.approx(2 * both / whole)


def test_pooled_histograms_equal_that_of_both_volumes_in_one():
    one, other = volumes(1)[:2], volumes(2)[:2]
    pooled = score_segmentation(
        pool_tallies([compared(*one, sample=0), compared(*other, sample=0)])
    )
    joined = scored(*(np.concatenate(pair) for pair in zip(one, other, strict=True)), sample=0)
    assert figures_of(pooled) == figures_of(joined)


@pytest.mark.parametrize("settings", [{"sample": 0}, {"sample": 5000}, {"sample": 20_000}])
def test_a_block_takes_no_more_memory_than_planned(settings):
    import tracemalloc

    shape = (64, 96, 96)
    rng = np.random.default_rng(0)
    score = rng.random(shape, np.float32)
    mask = (rng.random(shape) < 0.3).astype("uint8")
    compare = CompareReduction(shape, dtypes=("float32", "uint8", "uint8"), **settings)
    (block,) = Grid(shape, shape)
    compare.measure(block, score, mask, mask)
    tracemalloc.start()
    compare.measure(block, score, mask, mask)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    planned = compare.bytes_needed(shape) - score.nbytes - 2 * mask.nbytes
    assert planned / 8 < peak <= planned


def test_a_straight_curve_has_the_trapezoid_under_its_points():
    curve = curve_of_counts([1, 1, 2], [0, 1, 1], n_true=2, score=[3, 2, 1], straight=True)
    assert curve.area == pytest.approx((2 / 3 + 1 / 2) / 2 * 0.5)
    assert curve.n_kept.tolist() == [1, 2, 3]
