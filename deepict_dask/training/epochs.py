"""What happens after a step, and after the steps that make an epoch.

After each step: add up the loss and the time; at the end of an epoch, or of the time,

1. validate, and note a row of figures (table, TensorBoard);
2. keep the weights if they are the best so far, by what the config names of the validation patches
   (Dice, loss, F1-alpha); without any, the last are the best;
3. lower the rate after epochs without improvement, or stop (a score counts as better from 0.0001,
   or from a part of 0.0001 where it is below 1, as the cross-entropy of rare classes).

All this happens in one place and the checkpoint is written after it, so it holds one moment of the
training: weights, optimizer, what is summed so far, the best weights, the rows.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback

from ..core.errors import WorkFailedError
from ..models.checkpoint import save_model
from .networks import channel_names
from .schedule import PLATEAU_FACTOR, PLATEAU_PATIENCE, part_done
from .stream import as_tensors
from .tables import write_metrics
from .validation import Validated, validated

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lightning.pytorch import Trainer

    from .module import TrainingModule

__all__ = ["CHECKPOINT", "Epochs", "validate"]

CHECKPOINT = "checkpoints/last.ckpt"
BEST_SO_FAR = "checkpoints/best.safetensors"
SECONDS_BETWEEN_CHECKPOINTS = 60.0
FEWEST_VALIDATED = 32
"""Patches; or a quarter of those of an epoch, so that validation takes a tenth of the time."""
BETTER = 1e-4


class Epochs(Callback):
    """Keeps the books of a training.

    Parameters
    ----------
    folder
        Where checkpoint, best model and table are written.
    tell
        Receives one line for each epoch.
    advance
        Called after each step.
    checkpoint_steps
        Steps between checkpoints, besides those at the ends of epochs; every minute by default.
    """

    def __init__(
        self, folder: Path, *, tell: Callable[[str], None] = lambda _text: None,
        advance: Callable[[int], None] = lambda _n: None, checkpoint_steps: int | None = None,
    ) -> None:  # fmt: skip
        self.folder, self.tell, self.advance = folder, tell, advance
        self.checkpoint_steps = checkpoint_steps
        self.rows: list[dict[str, float]] = []
        self.best_weights: dict[str, torch.Tensor] = {}
        self.best: dict[str, float] = {}
        self.best_score = self.to_beat = -float("inf")
        self.stale = self.stale_since_drop = 0
        self.plateau_factor = 1.0
        self.seconds = 0.0
        self.loss_sum, self.loss_steps = 0.0, 0
        self.stopped = ""
        self._began = self._saved = time.monotonic()

    _KEPT = (
        "rows", "best_weights", "best", "best_score", "to_beat", "stale", "stale_since_drop",
        "plateau_factor", "seconds", "loss_sum", "loss_steps", "stopped",
    )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds of this."""
        self._count_seconds()
        return {name: getattr(self, name) for name in self._KEPT}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        for name in self._KEPT:
            setattr(self, name, state_dict[name])
        self._began = self._saved = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Say where training begins."""
        self._began = self._saved = time.monotonic()
        pl_module.plateau_factor = self.plateau_factor
        self._set_done(trainer, pl_module)
        trainer.should_stop = bool(self.stopped)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the books of a step, and of an epoch at its end."""
        del batch, batch_idx
        self.loss_sum += float(outputs["loss"])
        self.loss_steps += 1
        self._set_done(trainer, pl_module)
        step, per_epoch = trainer.global_step, pl_module.config.optimizer.steps_per_epoch
        over = pl_module.done >= 1 and step < pl_module.n_steps
        if over:
            self.stopped = "the time is over"
        ended = over or step % per_epoch == 0
        if ended:
            self._end_epoch(trainer, pl_module)
        trainer.should_stop = trainer.should_stop or bool(self.stopped)
        due = self._is_due(trainer)  # where several processes agree, all must ask
        terminated = trainer.received_sigterm and trainer.world_size == 1
        if ended or terminated or due:
            trainer.save_checkpoint(self.folder / CHECKPOINT)
            self._saved = time.monotonic()
        self.advance(1)

    def _is_due(self, trainer: Trainer) -> bool:
        """Say whether it is time for a checkpoint; all processes must agree."""
        if self.checkpoint_steps is not None:
            return trainer.global_step % self.checkpoint_steps == 0
        due = time.monotonic() - self._saved > SECONDS_BETWEEN_CHECKPOINTS
        return bool(_agreed(trainer, due))

    def _count_seconds(self) -> None:
        now = time.monotonic()
        self.seconds += now - self._began
        self._began = now

    def _set_done(self, trainer: Trainer, module: TrainingModule) -> None:
        """Tell the module which part of the training is spent; all processes must agree."""
        self._count_seconds()
        limit = module.config.optimizer.max_minutes
        done = part_done(trainer.global_step, module.n_steps, self.seconds / 60, limit)
        module.done = done if limit is None else _agreed(trainer, done)

    def _end_epoch(self, trainer: Trainer, module: TrainingModule) -> None:
        """Validate, note, keep the best, and see whether to go on."""
        optimizer = module.config.optimizer
        found = validate(module)
        epoch = -(-trainer.global_step // optimizer.steps_per_epoch)
        train_loss = _agreed(trainer, self.loss_sum / self.loss_steps)
        row = {
            "epoch": epoch, "step": trainer.global_step, "minutes": self.seconds / 60,
            "learning_rate": module.learning_rate, "train_loss": train_loss,
        }  # fmt: skip
        row |= found.row() if found else {}
        self.rows.append(row)
        self.loss_sum, self.loss_steps = 0.0, 0
        chosen_by = found.score(optimizer.choose) if found else None
        if chosen_by is not None and not math.isfinite(chosen_by):
            raise WorkFailedError(
                f"training: epoch {epoch}: expected a finite {optimizer.choose} in validation, "
                f"found {chosen_by:g} {module.what_helps}"
            )
        score = _agreed(trainer, -train_loss if chosen_by is None else chosen_by)
        if score > self.best_score or chosen_by is None:
            self._keep(trainer, module, row)
        self.best_score = max(self.best_score, score)
        improved = score > self.to_beat + BETTER * min(1.0, abs(self.to_beat))
        if improved:
            self.to_beat = score
        self._judge(module, improved=improved)
        self._report(trainer, row, optimizer.epochs)

    def _keep(self, trainer: Trainer, module: TrainingModule, row: dict[str, float]) -> None:
        """Keep the weights; a model that can be tried appears beside the checkpoint."""
        state = module.judged.state_dict()
        self.best_weights = {name: t.detach().cpu().clone() for name, t in state.items()}
        self.best = row
        if trainer.is_global_zero:
            names = channel_names(module.judged.settings, module.data.class_names)
            card = {"about": "The best weights of a training that was not finished."}
            save_model(
                self.folder / BEST_SO_FAR, module.judged, class_names=names,
                voxel_spacing_angstrom=module.data.voxel_spacing_angstrom, card=card,
            )  # fmt: skip

    def _judge(self, module: TrainingModule, *, improved: bool) -> None:
        """Lower the rate, or stop, after epochs without improvement."""
        optimizer = module.config.optimizer
        self.stale = 0 if improved else self.stale + 1
        self.stale_since_drop = 0 if improved else self.stale_since_drop + 1
        if optimizer.schedule == "plateau" and self.stale_since_drop > PLATEAU_PATIENCE:
            self.plateau_factor *= PLATEAU_FACTOR
            self.stale_since_drop = 0
        module.plateau_factor = self.plateau_factor
        if optimizer.patience and self.stale >= optimizer.patience:
            self.stopped = f"no improvement in {self.stale} epochs"

    def _report(self, trainer: Trainer, row: dict[str, float], n_epochs: int) -> None:
        """Write the table, TensorBoard's record and a line."""
        if not trainer.is_global_zero:
            return
        write_metrics(self.folder / "metrics.csv", self.rows)
        for logger in trainer.loggers:
            logger.log_metrics(row, step=trainer.global_step)
        named = {"val_dice": "validation Dice", "val_f1_alpha": "F1-alpha"}
        figures = [f", {name} {row[key]:.3f}" for key, name in named.items() if key in row]
        why = f"; stopping: {self.stopped}" if self.stopped else ""
        self.tell(
            f"epoch {row['epoch']} of {n_epochs}: loss {row['train_loss']:.4f}{''.join(figures)} "
            f"({_time_taken(self.seconds)}){why}"
        )


def _time_taken(seconds: float) -> str:
    """Say a time in words.

    >>> _time_taken(4.25), _time_taken(59), _time_taken(90)
    ('4.2 s', '59 s', '1.5 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.1f} min"


def _agreed(trainer: Trainer, value: float) -> float:
    """Return the first process's value: all of them must go the same way."""
    return value if trainer.world_size == 1 else float(trainer.strategy.broadcast(value))


def validate(module: TrainingModule) -> Validated | None:
    """Return how good the network is now, in float32 as at prediction.

    Of many patches that are held out, the same evenly chosen ones are taken each time.
    """
    device = next(module.judged.parameters()).device
    asked = module.config.optimizer
    limit = max(FEWEST_VALIDATED, asked.steps_per_epoch * asked.batch_size // 4)

    def to_tensors(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        patches, targets = as_tensors(batch, flat=module.flat)
        return patches.to(device), targets.to(device)

    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False, deterministic=True):
        return validated(
            module.judged, module.data.validation_batches(limit), module.loss,
            module.data.class_names, softmax=module.softmax, to_tensors=to_tensors,
            counter=module.data.pick_counter(limit) if asked.choose == "f1_alpha" else None,
            ends=module.data.validation_ends(limit),
        )  # fmt: skip
