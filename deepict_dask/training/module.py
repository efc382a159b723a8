"""One step of training, as Lightning wants it said.

1. The learning rate follows from what is done of the training (`schedule`).
2. Chance within the network (dropout) is drawn anew in each step from the seed and the step's
   number, so that a training that goes on after a kill is the one that was killed.
3. The forward pass may run in bfloat16; loss, weights and their updates stay float32.
4. A running mean of the weights may be kept, which noise of single batches moves less.
5. A loss that is no number stops the training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning.pytorch as lightning
import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel

from ..core.errors import WorkFailedError
from ..models.architecture import ends_in_softmax
from .apart import PatchesApart
from .losses import loss_function
from .muon import Muon
from .networks import is_flat
from .schedule import first_beta_at, rate_at
from .stream import BatchStream, as_tensors, memory_format

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..config.training import TrainConfig
    from ..models.architecture import Network
    from .data import TrainingData

__all__ = ["TrainingModule"]

_OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "muon": Muon}
FIRST_BETA = 0.9
"""Of Adam, where the schedule does not change it."""


class TrainingModule(lightning.LightningModule):
    """A network, its loss and its optimizer.

    Parameters
    ----------
    network
        In training mode; gives logits.
    config
        Of the training.
    data
        Makes batches.
    """

    def __init__(self, network: Network, config: TrainConfig, data: TrainingData) -> None:
        super().__init__()
        self.config, self.data = config, data
        self.flat, self.softmax = is_flat(network.settings), ends_in_softmax(network.settings)
        arranged: Any = network  # torch's types do not know of this option
        self.network: Network = arranged.to(memory_format=memory_format(flat=self.flat))
        self.averaged: AveragedModel | None = None
        """A copy of the network with the running mean of its weights."""
        if config.optimizer.weight_averaging:
            self.averaged = _averaged(self.network, config.optimizer.weight_averaging)
        self.apart = PatchesApart(self.network) if config.optimizer.patches_apart else None
        self.loss = loss_function(config.optimizer.loss, softmax=self.softmax)
        self.n_steps = config.optimizer.epochs * config.optimizer.steps_per_epoch
        self.done = 0.0
        """Part of the training that is spent."""
        self.plateau_factor = 1.0

    @property
    def learning_rate(self) -> float:
        """Learning rate of this step."""
        asked = self.config.optimizer
        return asked.learning_rate * rate_at(asked.schedule, self.done) * self.plateau_factor

    @property
    def judged(self) -> Network:
        """The network that is validated and kept."""
        if self.averaged is None:
            return self.network
        copy: Any = self.averaged.module  # torch's types do not know which module
        kept: Network = copy
        return kept

    def end_with(self, weights: dict[str, torch.Tensor]) -> Network:
        """End the training with these weights."""
        self.averaged = None
        self.network.load_state_dict(weights)
        return self.network

    def train_dataloader(self) -> Any:
        """Return the batches from the next step on."""
        return BatchStream(
            self.data, self.n_steps, first=self.global_step, flat=self.flat,
            rank=self.global_rank, world=self.trainer.world_size,
        )  # fmt: skip

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam, AdamW or Muon."""
        asked = self.config.optimizer
        kind: Any = _OPTIMIZERS[asked.optimizer]
        optimizer: torch.optim.Optimizer = kind(
            self.network.parameters(), lr=asked.learning_rate, weight_decay=asked.weight_decay,
            betas=(FIRST_BETA, asked.second_beta),
        )  # fmt: skip
        return optimizer

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take the step and add the new weights to their running mean."""
        super().optimizer_step(*args, **kwargs)
        if self.averaged is not None:
            self.averaged.update_parameters(self.network)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Set rate and chance of the step."""
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        beta = first_beta_at(self.config.optimizer.schedule, self.done)
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate
            if beta is not None:
                group["betas"] = (beta, group["betas"][1])
        words = (self.config.seed, self.global_step, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:  # noqa: ARG002
        """Return the loss of a batch."""
        patches, targets = batch
        logits = (self.apart or self.network)(patches)
        with torch.autocast(self.device.type, enabled=False):
            loss = self.loss(logits.float(), targets)
        if not torch.isfinite(loss):
            raise WorkFailedError(self._lost(patches, loss))
        return loss

    def fresh_patches(self, n_batches: int) -> Iterator[torch.Tensor]:
        """Yield patches of batches that come after those of the training, as it takes them."""
        for step in range(self.n_steps, self.n_steps + n_batches):
            patches = as_tensors(self.data.batch(step), flat=self.flat)[0]
            patches = patches.to(next(self.network.parameters()).device)
            yield from patches.split(len(patches) if self.apart is None else 1)

    def _lost(self, patches: torch.Tensor, loss: torch.Tensor) -> str:
        where = f"training: step {self.global_step + 1}: expected a finite loss, found {loss:g}"
        if not torch.isfinite(patches).all():
            return f"{where}: a patch has voxels that are no numbers; mask or replace bad voxels"
        return f"{where} {self.what_helps}"

    @property
    def what_helps(self) -> str:
        """The rate, and what to do where weights have become too large."""
        asked = self.config.optimizer
        return (
            f"at learning rate {self.learning_rate:.3g}; train again (--restart) with a "
            f"lower optimizer.learning_rate (now {asked.learning_rate:g}) or with "
            f"optimizer.gradient_clip: 1 (now {asked.gradient_clip:g})"
        )


def _averaged(network: Network, decay: float) -> AveragedModel:
    """Return a copy of the network that takes the running mean of its weights.

    In the first steps it is over all of them: they are few, and the first are far off.
    """

    def mean(kept: torch.Tensor, new: torch.Tensor, n_averaged: torch.Tensor | int) -> torch.Tensor:
        n = int(n_averaged)
        return kept.lerp(new, 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(network, avg_fn=mean).requires_grad_(requires_grad=False)
