"""One training among several: a task of a worker, from names of tomograms to a model and figures.

1. What was finished for the same request is recognised (`training.fit`), what was begun goes on.
2. While it trains it looks whether the command that asked for it still lives: a task that nobody
   waits for any more ends within seconds, and goes on from its checkpoint next time.
3. Where tomograms are held out, the model is assessed on all of their voxels.
"""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ...core.errors import ConfigError, DeepictError, WorkFailedError
from ...engine import Progress, fingerprint, request_key
from ...engine.long_tasks import cores_each, run_apart
from ...engine.output_lock import living_holder
from ...io.replace import replace_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from ...config.training import TrainConfig
    from ..session import Session

__all__ = [
    "FIRST_FIGURES",
    "STUDY_LOCK",
    "TrainingResult",
    "TrainingTask",
    "begin_study",
    "run_tasks",
    "train_task",
]

STUDY_LOCK = "study.lock"
_ASSESSMENT = "assessment.json"
_LOOK_S = 5.0
FIRST_FIGURES = ("epoch", "minutes", "loss", "train_loss", "dice")
"""What a table of trainings has first."""
_KEEP_SHARE = 4
"""Tomograms may take this part of a worker's memory."""


@dataclass(frozen=True)
class TrainingTask:
    """What a worker trains; picklable."""

    name: str
    """For messages, such as "fold 1"."""
    config: TrainConfig
    folder: Path
    tomograms: tuple[str, ...] | None = None
    """Names to train on; those of the config by default."""
    held_out: tuple[str, ...] = ()
    """Names to assess the model on, and to choose the best epoch by unless the config says how."""
    device: str = "cpu"
    threads: int = 1
    keep_bytes: int = 1 << 30
    """Memory for whole tomograms."""
    resume: bool = True
    overwrite: bool = False
    lock: Path | None = None
    """Of the command that waits for this."""


@dataclass(frozen=True)
class TrainingResult:
    """What became of a training; picklable."""

    model: Path
    figures: dict[str, float] = field(default_factory=dict)
    """``epoch`` and ``minutes`` (of the best epoch), ``loss``, ``dice`` and figures of classes."""
    was_finished: bool = False


def train_task(task: TrainingTask) -> TrainingResult:
    """Train, and assess: the body of a worker's task.

    Raises
    ------
    DeepictError
        As `deepict_dask.training.fit.train_network`.
    """
    from ...training.alone import training_alone
    from ...training.data import open_training_data
    from ...training.fit import train_network

    config, folder = task.config, task.folder
    with training_alone(task.threads):
        own_end = bool(config.validation.fraction)
        held_out = None if own_end or not task.held_out else task.held_out
        names = task.tomograms
        data = open_training_data(
            config, tomograms=names, held_out=held_out, keep_bytes=task.keep_bytes
        )
        done = train_network(
            config, data=data, folder=folder, resume=task.resume, overwrite=task.overwrite,
            device=task.device, progress=_Watch(task.lock), alone=True,
        )  # fmt: skip
        figures = figures_of_epoch(done.best | done.card.get("validation", {}))
        if task.held_out:
            if own_end:
                data = open_training_data(
                    config, tomograms=names, held_out=task.held_out, keep_bytes=task.keep_bytes
                )
            figures |= _assessed(done.model, task, data)
    return TrainingResult(done.model, figures, done.was_finished)


def figures_of_epoch(best: dict[str, float]) -> dict[str, float]:
    """Return the figures of the epoch whose weights a model has, the validation's by short names.

    Examples
    --------
    >>> figures_of_epoch({"epoch": 2, "train_loss": 0.5, "val_loss": 0.6, "val_f1_fas": 0.4})
    {'epoch': 2, 'loss': 0.6, 'train_loss': 0.5, 'f1_fas': 0.4}
    """
    kept = {name.removeprefix("val_"): value for name, value in best.items()}
    first = [name for name in FIRST_FIGURES if name in kept]
    others = sorted(name for name in kept if name not in (*FIRST_FIGURES, "step", "learning_rate"))
    return {name: round(kept[name], 6) for name in (*first, *others)}


def _assessed(model: Path, task: TrainingTask, data: Any) -> dict[str, float]:
    """Return a model's figures on what is held out; those of an unchanged model are kept."""
    from ...training.assess import assess_model
    from ...training.card import without_paths

    path = task.folder / _ASSESSMENT
    made_of = request_key({"inputs": without_paths(data.inputs)})
    key = [fingerprint(model), *task.held_out, made_of]
    if path.is_file():
        known = json.loads(path.read_text())
        if known["of"] == key:
            return dict(known["figures"])
    batches, ends = data.validation_batches(), data.validation_ends()
    figures = assess_model(model, task.config, batches, task.device, ends=ends)
    replace_file(path, json.dumps({"of": key, "figures": figures}, indent=1))
    return figures


class _Watch(Progress):
    """Shows nothing; ends a training whose command has ended."""

    def __init__(self, lock: Path | None) -> None:
        super().__init__(shown=False)
        self._lock, self._looked = lock, 0.0
        self._seen = False

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
        """Look after each step, every few seconds at most."""
        del name, total, done
        yield self._look

    def _look(self, _n: int) -> None:
        now = time.monotonic()
        if self._lock is None or now - self._looked < _LOOK_S:
            return
        self._looked = now
        lives = living_holder(self._lock) is not None
        if self._seen and not lives:
            raise WorkFailedError(
                f"{self._lock.parent}: the command that began this training has ended; run it "
                "again to continue"
            )
        self._seen = self._seen or lives


def begin_study(config: TrainConfig, what: str) -> None:
    """Refuse what cannot be trained several times, and make the output folder.

    Raises
    ------
    ConfigError
        A package that training needs is missing.
    """
    from ...training.packages import require_training_packages

    require_training_packages()
    if config.output.exists() and not config.output.is_dir():
        raise ConfigError(f"{config.output}: expected a folder for the {what}, found a file")
    config.output.mkdir(parents=True, exist_ok=True)


def run_tasks(
    session: Session,
    tasks: Sequence[TrainingTask],
    *,
    stage: str,
    tell: Callable[[str], None],
    trainer: Callable[[TrainingTask], TrainingResult] = train_task,
) -> dict[str, TrainingResult | DeepictError]:
    """Run trainings on the workers, as many at once as there are; one that fails fails alone.

    Parameters
    ----------
    session
        Workers, and the device of the networks.
    tasks
        With different names and folders.
    stage
        What the trainings are called.
    tell
        Receives a line as each ends.
    trainer
        What a worker does with a task.

    Returns
    -------
    dict
        By the tasks' names, in their order: the result, or why there is none.
    """
    workers = session.workers
    keep = min(1 << 30, workers.memory_bytes // _KEEP_SHARE)
    threads = cores_each(workers, len(tasks))
    given = [
        replace(task, device=session.device, threads=threads, keep_bytes=keep) for task in tasks
    ]
    found: dict[str, TrainingResult | DeepictError] = {}
    with session.progress.stage(stage, len(tasks)) as advance:
        for task, result in run_apart(workers, trainer, given, stage=stage):
            found[task.name] = result
            tell(f"{task.name}: {_said(result)}")
            advance(1)
    return {task.name: found[task.name] for task in tasks}


def _said(result: TrainingResult | DeepictError) -> str:
    if isinstance(result, DeepictError):
        return f"failed: {' '.join(str(result).split())}"
    dice = result.figures.get("dice")
    how = "was finished" if result.was_finished else "done"
    return how if dice is None else f"{how}, Dice {dice:.3f}"
