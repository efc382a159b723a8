"""Does Muon step as its sources say, and is Adam's part PyTorch's Adam?"""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from deepict_dask.training.muon import MOMENTUM, Muon, orthogonalized  # noqa: E402


def polynomial(values):
    """Return what five Newton-Schulz steps make of singular values."""
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return values


def by_svd(matrix):
    """Return the orthogonalized matrix by its singular values, in float64."""
    u, s, v = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    return u * polynomial(s / np.linalg.norm(s)) @ v


@pytest.mark.parametrize("shape", [(4, 4), (8, 216), (216, 8), (1, 30)])
def test_singular_values_come_near_one_and_vectors_stay(shape):
    matrix = torch.from_numpy(np.random.default_rng(0).standard_normal(shape, np.float32))
    found = orthogonalized(matrix)
    assert found.shape == matrix.shape
    assert np.allclose(found, by_svd(matrix), atol=1e-4)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.65
    assert values.max() < 1.25


def test_a_gradient_of_zero_is_no_step():
    assert not orthogonalized(torch.zeros(3, 30)).any()


def test_kernels_step_along_the_orthogonal_momentum_as_far_as_the_rate_says():
    rng = np.random.default_rng(1)
    kernel = torch.nn.Parameter(torch.zeros(6, 2, 3, 3, 3))
    optimizer = Muon([kernel], lr=0.01, weight_decay=0.1)
    mean, expected = np.zeros((6, 54)), np.zeros((6, 54))
    for _ in range(3):
        gradient = rng.standard_normal((6, 54))
        kernel.grad = torch.tensor(gradient, dtype=torch.float32).view(kernel.shape)
        optimizer.step()
        mean = MOMENTUM * mean + (1 - MOMENTUM) * gradient
        ahead = (1 - MOMENTUM) * gradient + MOMENTUM * mean
        expected = (1 - 0.01 * 0.1) * expected - 0.01 * 0.2 * np.sqrt(54) * by_svd(ahead)
    assert np.allclose(kernel.detach().flatten(1), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(5,), (3, 1, 3, 3, 3), (4, 16, 1, 1, 1)])
@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_biases_and_kernels_of_few_inputs_step_as_pytorchs_adamw(shape, decay):
    rng = np.random.default_rng(2)
    start = torch.from_numpy(rng.standard_normal(shape, np.float32))
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    one = Muon([ours], lr=0.01, betas=(0.9, 0.99), weight_decay=decay)
    two = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.99), weight_decay=decay)
    for _ in range(10):
        gradient = torch.from_numpy(rng.standard_normal(shape, np.float32))
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        one.step()
        two.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("of_weight", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("of_gradient", [torch.contiguous_format, torch.channels_last_3d])
def test_the_order_of_channels_in_memory_makes_no_difference(of_weight, of_gradient):
    rng = np.random.default_rng(3)
    start, gradient = torch.from_numpy(rng.standard_normal((2, 4, 8, 3, 3, 3), np.float32))
    kernel = torch.nn.Parameter(start.clone(memory_format=of_weight))
    kernel.grad = gradient.clone(memory_format=of_gradient)
    Muon([kernel], lr=0.1).step()
    length = 0.1 * 0.2 * (8 * 27) ** 0.5
    expected = start.flatten(1).numpy() - length * by_svd(gradient.flatten(1).numpy())
    assert np.allclose(kernel.detach().flatten(1).numpy(), expected, atol=1e-5)
