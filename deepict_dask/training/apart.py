"""Each patch of a batch on cores of its own.

The threads of one convolution wait for one another, and batch normalisation of few channels hardly
gains by a second core; patches have nothing to wait for. (Measured: of DeepETPicker's network with
8 to 36 channels and two patches of 72^3 on two cores a step takes 0.38 instead of 0.53 s.)

1. Each patch goes through a copy of the network that shares its weights, in a thread of its own.
2. The loss is that of the whole batch, as always.
3. Gradients go back patch by patch, and are added in the order of the patches.

So batch normalisation is of single patches, on any machine; what it keeps for prediction is that
of the batch's first. Without it nothing differs but rounding.
"""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..models.architecture import Network

__all__ = ["PatchesApart"]

Tensors = tuple[torch.Tensor, ...]


class PatchesApart:
    """Calls a network on each patch of a batch by itself, at once on a CPU.

    Parameters
    ----------
    network
        In training mode, without dropout, whose chance threads would share.

    Examples
    --------
    >>> network = torch.nn.Conv3d(1, 1, 1)
    >>> patches = torch.rand(2, 1, 3, 3, 3)
    >>> torch.allclose(PatchesApart(network)(patches), network(patches), atol=1e-6)
    True
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.weights = [weight for weight in network.parameters() if weight.requires_grad]
        self._copies: list[Any] = [network]
        self._threads: ThreadPoolExecutor | None = None

    def __call__(self, patches: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch; gradients go back to the weights."""
        logits: torch.Tensor = _Apart.apply(self, patches, *self.weights)
        return logits

    def forward(self, patches: torch.Tensor) -> list[torch.Tensor]:
        """Return the logits of each patch, with what their gradients need."""
        parts = patches.split(1)
        device = patches.device.type
        enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

        def one(network: Any, patch: torch.Tensor) -> torch.Tensor:
            cast = torch.autocast(device, dtype, enabled=enabled, cache_enabled=False)
            with torch.enable_grad(), cast:
                logits: torch.Tensor = network(patch)
                return logits

        return list(self._mapped(one, self._networks(len(parts)), parts))

    def backward(self, logits: Sequence[torch.Tensor], gradient: torch.Tensor) -> Tensors:
        """Return the gradients of the weights."""

        def one(made: torch.Tensor, wanted: torch.Tensor) -> Tensors:
            return torch.autograd.grad(made, self.weights, wanted, allow_unused=True)

        found = list(self._mapped(one, logits, gradient.split(1)))
        return tuple(_summed(of_weight) for of_weight in zip(*found, strict=True))

    def _networks(self, n: int) -> list[Any]:
        """Return copies that share their weights and have running averages of their own."""
        while len(self._copies) < n:
            shared = {id(weight): weight for weight in self.network.parameters()}
            self._copies.append(copy.deepcopy(self.network, shared))
        return self._copies[:n]

    def _mapped(self, action: Any, *items: Sequence[Any]) -> Any:
        """Map an action, on a CPU in threads that share its cores."""
        if self.weights[0].device.type != "cpu":
            return map(action, *items)
        if self._threads is None:
            cores = torch.get_num_threads()
            n = min(len(items[0]), cores)
            self._threads = ThreadPoolExecutor(
                n, "patches", initializer=torch.set_num_threads, initargs=(cores // n,)
            )
        return self._threads.map(action, *items)


def _summed(gradients: Sequence[Any]) -> Any:
    """Add the gradients of one weight in their order; None where no patch has any."""
    known = [gradient for gradient in gradients if gradient is not None]
    return None if not known else sum(known[1:], start=known[0])


class _Apart(torch.autograd.Function):
    """The patches' way through the network, as one step of the whole graph."""

    @staticmethod
    def forward(
        ctx: Any, apart: PatchesApart, patches: torch.Tensor, *_weights: torch.Tensor
    ) -> torch.Tensor:
        ctx.apart, ctx.logits = apart, apart.forward(patches)
        return torch.cat([logits.detach() for logits in ctx.logits])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        logits, ctx.logits = ctx.logits, None
        return (None, None, *ctx.apart.backward(logits, gradients[0]))
