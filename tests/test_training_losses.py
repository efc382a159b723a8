"""The losses against values by hand, and what validation and the schedule make of numbers."""

import json
import math

import numpy as np
import pytest
import torch

from deepict_dask.training.losses import (
    class_scores,
    dice_loss,
    loss_function,
    soft_dice_loss,
    with_background,
)
from deepict_dask.training.norms import measure_norms
from deepict_dask.training.schedule import first_beta_at, part_done, rate_at
from deepict_dask.training.validation import validated


def logits_of(scores):
    scores = torch.tensor(scores, dtype=torch.float64)
    return torch.log(scores / (1 - scores))


def two_voxels(first, second):
    """One patch, one class, two voxels."""
    return torch.tensor([first, second], dtype=torch.float64).reshape(1, 1, 2)


SCORES = [0.8, 0.4]


def test_dice_of_two_voxels_is_that_by_hand():
    loss = loss_function("dice")(logits_of([[SCORES]]), two_voxels(1, 0))
    assert loss.item() == pytest.approx(1 - 2 * 0.8 / (0.8**2 + 0.4**2 + 1))


def test_dice_is_the_mean_of_classes_each_summed_over_the_batch():
    scores = torch.tensor([[[0.5], [1.0]], [[0.5], [0.0]]])  # two patches, two classes, one voxel
    targets = torch.tensor([[[1.0], [1.0]], [[0.0], [1.0]]])
    first = 1 - 2 * 0.5 / (0.25 + 0.25 + 1)
    second = 1 - 2 * 1.0 / (1 + 2)
    assert dice_loss(scores, targets).item() == pytest.approx((first + second) / 2)


def test_dice_with_cross_entropy_is_the_sum_of_both():
    loss = loss_function("dice_cross_entropy")(logits_of([[SCORES]]), two_voxels(1, 0))
    dice = 1 - 2 * 0.8 / (0.8**2 + 0.4**2 + 1)
    entropy = -(math.log(0.8) + math.log(1 - 0.4)) / 2
    assert loss.item() == pytest.approx(dice + entropy)


def test_cross_entropy_of_two_voxels_is_that_by_hand():
    loss = loss_function("cross_entropy")(logits_of([[SCORES]]), two_voxels(1, 0))
    assert loss.item() == pytest.approx(-(math.log(0.8) + math.log(1 - 0.4)) / 2)


def test_dice_without_squares_of_two_voxels_is_that_by_hand():
    loss = loss_function("soft_dice")(logits_of([[SCORES]]), two_voxels(1, 0))
    assert loss.item() == pytest.approx(1 - (2 * 0.8 + 1) / (0.8 + 0.4 + 1 + 1))


def test_dice_without_squares_is_that_of_deepetpicker(golden):
    known = np.load(golden / "deepetpicker" / "dice.npz")
    loss = soft_dice_loss(torch.from_numpy(known["pred"]), torch.from_numpy(known["target"]))
    assert loss.item() == pytest.approx(float(known["loss"]), abs=1e-6)


def test_generalized_dice_of_two_voxels_is_that_by_hand():
    loss = loss_function("generalized_dice")(logits_of([[SCORES]]), two_voxels(1, 0))
    by_hand = 1 - (2 * 0.8 + 1e-5) / (0.8 + 0.4 + 1 + 1e-5)
    assert loss.item() == pytest.approx(by_hand, abs=1e-6)


def test_generalized_dice_weighs_classes_by_the_inverse_square_of_their_volume():
    scores = [[[0.5, 0.5, 0.5], [0.25, 0.25, 0.25]]]
    targets = torch.tensor([[[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]], dtype=torch.float64)
    loss = loss_function("generalized_dice")(logits_of(scores), targets)
    weights = (1 / 4, 1.0)
    common = weights[0] * 1.0 + weights[1] * 0.25
    total = weights[0] * (1.5 + 2) + weights[1] * (0.75 + 1)
    assert loss.item() == pytest.approx(1 - 2 * common / total, abs=1e-4)


def test_tversky_of_two_voxels_counts_false_voxels_of_both_kinds_by_half():
    loss = loss_function("tversky")(logits_of([[SCORES]]), two_voxels(1, 0))
    by_hand = 1 - 0.8 / (0.8 + 0.5 * 0.4 + 0.5 * 0.2)
    assert loss.item() == pytest.approx(by_hand, abs=1e-4)


def test_a_softmax_is_compared_with_the_background_too():
    logits = torch.log(torch.tensor([[[0.7, 0.2], [0.3, 0.8]]], dtype=torch.float64))
    loss = loss_function("dice", softmax=True)(logits, two_voxels(0, 1))
    background = 1 - 2 * 0.7 / (0.7**2 + 0.2**2 + 1)
    particle = 1 - 2 * 0.8 / (0.3**2 + 0.8**2 + 1)
    assert loss.item() == pytest.approx((background + particle) / 2)
    entropy = -(math.log(0.7) + math.log(0.8)) / 2
    both = loss_function("dice_cross_entropy", softmax=True)(logits, two_voxels(0, 1))
    assert both.item() == pytest.approx((background + particle) / 2 + entropy)


def test_where_classes_overlap_the_last_one_counts_for_a_softmax():
    targets = torch.tensor([[[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0]]])
    assert with_background(targets).argmax(1).tolist() == [[2, 1, 2, 0]]


@pytest.mark.parametrize("name", ["dice", "generalized_dice", "dice_cross_entropy", "tversky"])
@pytest.mark.parametrize("softmax", [False, True])
def test_a_batch_without_labels_has_a_finite_loss_and_gradient(name, softmax):
    logits = torch.zeros(2, 3 if softmax else 2, 4, 4, 4, requires_grad=True)
    loss = loss_function(name, softmax=softmax)(logits, torch.zeros(2, 2, 4, 4, 4))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_scores_of_a_softmax_leave_the_background_out():
    scores = class_scores(torch.log(torch.tensor([[[0.5], [0.3], [0.2]]])), softmax=True)
    assert scores.flatten().tolist() == pytest.approx([0.3, 0.2])


class Given(torch.nn.Module):
    """A network that answers its input."""

    def forward(self, patches):
        return patches


def test_validation_pools_patches_and_finds_the_best_threshold():
    scores = np.array([[[0.15, 0.85, 0.35, 0.05]]])
    target = np.array([[[0.0, 1.0, 1.0, 0.0]]])
    absent = np.array([[[0.05, 0.85, 0.05, 0.05]]])
    logits = np.log(np.concatenate([scores, absent], 1) / (1 - np.concatenate([scores, absent], 1)))
    batch = (logits, np.concatenate([target, 0 * target], 1))
    found = validated(
        Given().train(), [batch, batch], loss_function("dice"), ("a", "b"), softmax=False,
        to_tensors=lambda pair: tuple(map(torch.from_numpy, pair)),
    )  # fmt: skip
    dice = 2 * (0.85 + 0.35) / (0.15**2 + 0.85**2 + 0.35**2 + 0.05**2 + 2)
    assert found.dice["a"] == pytest.approx(dice)
    assert found.dice["b"] is None
    assert found.mean_dice == found.dice["a"]
    assert (found.f1["a"], found.threshold["a"]) == (1.0, 0.2)
    assert "val_dice_b" not in found.row()


def test_batch_normalisation_is_the_plain_average_of_the_batches():
    network = torch.nn.Sequential(torch.nn.BatchNorm3d(1)).train()
    network(torch.full((1, 1, 2, 2, 2), 100.0))
    ramp = torch.arange(8.0).reshape(1, 1, 2, 2, 2)
    measure_norms(network, [ramp, ramp + 10])
    assert network[0].running_mean.item() == pytest.approx((3.5 + 13.5) / 2)
    assert network[0].running_var.item() == pytest.approx(6.0)
    assert (network[0].momentum, network[0].training) == (0.1, False)


def test_rates_fall_as_their_schedules_say():
    assert rate_at("constant", 0.7) == rate_at("plateau", 0.7) == 1.0
    assert rate_at("cosine", 1.0) == pytest.approx(1 / 20)
    assert rate_at("cosine", 1.5) == pytest.approx(1 / 20)
    assert rate_at("one_cycle", 0.15) == pytest.approx((1 + 1 / 25) / 2)
    assert part_done(30, 60, 9.0, 10.0) == 0.9


def test_an_early_cycle_is_that_of_deepetpicker(golden):
    """Its steps are epochs, the top is reached at the sixth of 60."""
    path = golden / "deepetpicker" / "onecycle_60epochs_lr_beta1.json"
    for epoch, (rate, beta) in enumerate(json.loads(path.read_text())):
        done = 0.1 * epoch / 5 if epoch <= 5 else 0.1 + 0.9 * (epoch - 5) / 54
        assert 1e-3 * rate_at("early_cycle", done) == pytest.approx(rate, rel=1e-9)
        assert first_beta_at("early_cycle", done) == pytest.approx(beta, rel=1e-9)
