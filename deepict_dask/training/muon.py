"""Turn the gradient of each weight matrix into an orthogonal step: Muon, with Adam for the rest.

A convolution is a matrix of output channels by inputs (channels times kernel voxels). Adam scales
each number of it alone, so that a step has few strong directions: those that noise shows most.
Muon takes the momentum ``M = U S V^T`` and steps along ``U V^T``, all directions alike:

1. momentum: the mean of past gradients, and the present one a step ahead (Nesterov);
2. five Newton-Schulz steps, a polynomial that brings every singular value near 1;
3. a step ``0.2 sqrt(larger side)`` times as long as the rate, which moves a weight about as far as
   Adam would, so that one learning rate serves both.

Vectors (biases, norms) and kernels of few inputs (`LEAST_INPUTS`: a first layer that sees one
channel, a last one that sees a few) are left to PyTorch's AdamW. Its own Muon takes matrices only,
no convolutions.

Sources: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), with
its coefficients; the length of the step: Liu et al., "Muon is scalable for LLM training"
(arXiv:2502.16982).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.optim.adamw import adamw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Muon", "orthogonalized"]

MOMENTUM = 0.95
"""Part of the mean of gradients that is kept in a step, for matrices."""
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_N_STEPS = 5
LEAST_INPUTS = 28
"""Inputs of each output of a weight that is taken as a matrix: more than 3x3x3 voxels of one
channel."""
_SMALLEST = 1e-8


def orthogonalized(matrix: torch.Tensor) -> torch.Tensor:
    """Return a matrix of nearly the same singular vectors, with singular values near 1.

    Parameters
    ----------
    matrix
        Float32, two axes.

    Returns
    -------
    torch.Tensor
        Of the same shape; singular values 0.68 to 1.14 where those of ``matrix`` are not below a
        hundredth of its Frobenius norm.

    Examples
    --------
    >>> found = orthogonalized(torch.diag(torch.tensor([1.0, 3.0])))
    >>> bool((torch.linalg.svdvals(found) - 1).abs().max() < 0.35)
    True
    """
    a, b, c = _COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / x.norm().clamp(min=_SMALLEST)
    for _ in range(_N_STEPS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if is_tall else x


class Muon(torch.optim.Optimizer):
    """Orthogonal steps for matrices, Adam's for all else; weight decay apart from the gradient.

    Parameters
    ----------
    parameters
        Of a network; kernels of convolutions keep their shape.
    lr
        Learning rate of both kinds.
    betas
        Of Adam.
    weight_decay
        Part of a weight that is lost in a step, over the learning rate.

    Examples
    --------
    >>> network = torch.nn.Conv3d(2, 4, 3)
    >>> optimizer = Muon(network.parameters(), lr=0.01)
    >>> network(torch.ones(1, 2, 3, 3, 3)).sum().backward()
    >>> before = network.weight.detach().clone()
    >>> _ = optimizer.step()
    >>> bool((network.weight < before).all())
    True
    """

    def __init__(
        self, parameters: Iterable[torch.nn.Parameter], lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Change every parameter that has a gradient; return what ``closure`` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                step = _orthogonal_step if _is_matrix(parameter) else _adam_step
                step(parameter, parameter.grad, self.state[parameter], group)
        return loss


def _is_matrix(weight: torch.Tensor) -> bool:
    return weight.ndim > 1 and weight[0].numel() >= LEAST_INPUTS


def _orthogonal_step(
    weight: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any]
) -> None:
    if not state:
        state["momentum"] = torch.zeros_like(gradient)
    momentum: torch.Tensor = state["momentum"]
    momentum.lerp_(gradient, 1 - MOMENTUM)
    ahead = gradient.lerp(momentum, MOMENTUM).flatten(1)
    length = group["lr"] * 0.2 * max(ahead.shape) ** 0.5
    weight.mul_(1 - group["lr"] * group["weight_decay"])
    weight.sub_(orthogonalized(ahead).view(weight.shape), alpha=length)


def _adam_step(
    weight: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any]
) -> None:
    if not state:
        zeros = torch.zeros_like
        state |= {"mean": zeros(weight), "square": zeros(weight), "step": torch.tensor(0.0)}
    adamw(
        [weight], [gradient], [state["mean"]], [state["square"]], [], [state["step"]],
        beta1=group["betas"][0], beta2=group["betas"][1], lr=group["lr"],
        weight_decay=group["weight_decay"], eps=1e-8, amsgrad=False, maximize=False,
    )  # fmt: skip
