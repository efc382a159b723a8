"""Incremental search for a network: the paper's way to its architectures.

1. Of the initial features, each candidate is tried; then, with the best of these, each depth; then
   batch normalisation, the encoder's dropout and the decoder's.
2. The trials of a step run at the same time, each a task of a worker. A network that was tried in
   an earlier step is not trained again.
3. The best by the metric of the validation goes on; of equals, the first in the list. With
   cross-validation a trial is trained once for each fold, and the mean counts.

``search.csv`` has every trial, ``best.yaml`` is the config with the best network. Source: de
Teresa-Trueba et al. 2023 (10.1038/s41592-022-01746-2), Methods: initial features, depth, batch
normalisation, dropouts.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ...config import dump_config
from ...config.training import NetworkSettings, SearchSettings
from ...core.errors import ConfigError, DeepictError, WorkFailedError
from ...engine.output_lock import OutputLock
from ...io.csv_text import csv_of_rows
from ...io.replace import replace_file
from .folds import Fold, folds_of
from .task import (
    STUDY_LOCK,
    TrainingResult,
    TrainingTask,
    begin_study,
    run_tasks,
    train_task,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ...config.training import TrainConfig
    from ..session import Session

__all__ = ["STEPS", "SearchReport", "Trial", "describe_search", "search_network", "trial_name"]

STEPS = ("initial_features", "depth", "batch_norm", "encoder_dropout", "decoder_dropout")
_OF_2D = ("initial_features", "depth")
TABLE, BEST = "search.csv", "best.yaml"


@dataclass(frozen=True)
class Trial:
    """A network that was tried in a step."""

    step: str
    network: NetworkSettings
    score: float | None = None
    """By the metric, higher is better; None where it failed."""
    figures: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    """Why it failed."""
    chosen: bool = False
    """It is the best of its step."""


@dataclass(frozen=True)
class SearchReport:
    """What a search came to."""

    network: NetworkSettings
    trials: tuple[Trial, ...]
    table: Path
    best: Path
    """The config with the best network."""


def trial_name(network: NetworkSettings) -> str:
    """Return the name of a trial's folder.

    Examples
    --------
    >>> trial_name(NetworkSettings(depth=2, initial_features=8, decoder_dropout=0.2))
    'f8_d2_bn_e0_d0.2'
    >>> trial_name(NetworkSettings(kind="unet2d", depth=4, initial_features=16))
    'f16_d4'
    """
    name = f"f{network.initial_features}_d{network.depth}"
    if network.kind == "unet2d":
        return name
    norm = "_bn" if network.batch_norm else ""
    return f"{name}{norm}_e{network.encoder_dropout:g}_d{network.decoder_dropout:g}"


def search_network(
    session: Session,
    config: TrainConfig,
    *,
    resume: bool = True,
    overwrite: bool = False,
    tell: Callable[[str], None] = lambda _text: None,
    trainer: Callable[[TrainingTask], TrainingResult] = train_task,
) -> SearchReport:
    """Search a network, step by step; what is finished is kept, what was begun goes on.

    Parameters
    ----------
    session
        Workers, and the device of the networks.
    config
        With a validation or with cross-validation; ``search`` says what to try.
    resume, overwrite
        As of `deepict_dask.training.fit.train_network`, for every trial.
    tell
        Receives a line as each trial ends, and one for each step.
    trainer
        What a worker does with a trial.

    Raises
    ------
    ConfigError
        Nothing is held out by which trials could be compared, or the network has no such settings.
    LedgerError
        Another command works in the output folder.
    WorkFailedError
        All trials of a step failed.
    """
    _check(config)
    folds = folds_of(config) if config.cross_validation else []
    begin_study(config, "search")
    output = config.output.absolute()
    lock = output / STUDY_LOCK
    with OutputLock(lock):
        how = {"resume": resume, "overwrite": overwrite, "lock": lock}
        search = _Search(session, config, folds, tell, trainer, how)
        try:
            network = search.run()
        finally:
            if search.trials or not (output / TABLE).exists():  # it was stopped in its first step
                replace_file(output / TABLE, _table(search.trials))
        best = config.model_copy(
            update={"network": network, "search": None, "output": output / "best"}
        )
        replace_file(output / BEST, dump_config(best))
    return SearchReport(network, tuple(search.trials), output / TABLE, output / BEST)


def describe_search(config: TrainConfig, n_folds: int) -> str:
    """Return what would be tried, as one line.

    Raises
    ------
    ConfigError
        As `search_network`.

    Examples
    --------
    >>> from deepict_dask.config.training import TrainConfig
    >>> asked = {"depth": (2, 3), "batch_norm": (), "encoder_dropout": (), "decoder_dropout": ()}
    >>> config = TrainConfig(
    ...     tomograms="cells.csv", output="model", classes={"ribosome": {"labels": "mask"}},
    ...     validation={"fraction": 0.2}, search=asked,
    ... )
    >>> describe_search(config, 1)
    'search: initial_features 4, 8, 16; then depth 2, 3; at most 5 trainings'
    """
    _check(config)
    settings = config.search or SearchSettings()
    steps = _OF_2D if config.network.kind == "unet2d" else STEPS
    tried = {step: getattr(settings, step) for step in steps if getattr(settings, step)}
    said = "; then ".join(f"{step} {', '.join(map(str, tried[step]))}" for step in tried)
    n = n_folds * sum(map(len, tried.values()))
    return f"search: {said}; at most {n} trainings"


def _check(config: TrainConfig) -> None:
    """Refuse a search that cannot choose."""
    held_out = config.validation.tomograms or config.validation.fraction
    if not held_out and config.cross_validation is None:
        raise ConfigError(
            "search: expected tomograms or a fraction under validation, or cross_validation, to "
            "compare networks by, found none"
        )
    if config.network.kind not in ("unet3d", "unet2d") or config.network.start_from is not None:
        raise ConfigError(
            "search: expected a new unet3d or unet2d, whose settings can be searched, found "
            f"{config.network.start_from or config.network.kind}"
        )


@dataclass
class _Search:
    """The steps, and what is known of the trials so far."""

    session: Session
    config: TrainConfig
    folds: Sequence[Fold]
    tell: Callable[[str], None]
    trainer: Callable[[TrainingTask], TrainingResult]
    how: dict[str, Any]
    trials: list[Trial] = field(default_factory=list)
    known: dict[str, Trial] = field(default_factory=dict)

    @property
    def settings(self) -> SearchSettings:
        """What to try."""
        return self.config.search or SearchSettings()

    def run(self) -> NetworkSettings:
        """Go through the steps; return the best network."""
        network = self.config.network.model_copy(update={"preset": None})
        for step in _OF_2D if network.kind == "unet2d" else STEPS:
            values = list(dict.fromkeys(getattr(self.settings, step)))
            if values:
                network = self._best_of(
                    step, [network.model_copy(update={step: value}) for value in values]
                )
        return network

    def _best_of(self, step: str, networks: Sequence[NetworkSettings]) -> NetworkSettings:
        """Try networks and return the best."""
        new = [one for one in networks if trial_name(one) not in self.known]
        tasks = [task for network in new for task in self._tasks(network)]
        found = (
            run_tasks(self.session, tasks, stage=step, tell=self.tell, trainer=self.trainer)
            if tasks
            else {}
        )
        for network in new:
            names = [task.name for task in self._tasks(network)]
            self.known[trial_name(network)] = self._judged(network, [found[n] for n in names])
        trials = [replace(self.known[trial_name(one)], step=step) for one in networks]
        best = _best(trials)
        self.trials += [replace(one, chosen=one is best) for one in trials]
        if best is None:
            reasons = "; ".join(f"{trial_name(one.network)}: {one.reason}" for one in trials)
            raise WorkFailedError(f"{self.config.output}: {step}: all trials failed: {reasons}")
        self.tell(f"{step}: {getattr(best.network, step)} is the best ({self.settings.metric} "
                  f"{abs(best.score or 0):.4f})")  # fmt: skip
        return best.network

    def _tasks(self, network: NetworkSettings) -> list[TrainingTask]:
        """Return the trainings of a trial: one, or one for each fold."""
        name = trial_name(network)
        folder = self.config.output.absolute() / "trials" / name
        optimizer = self.config.optimizer
        if self.settings.epochs is not None:
            optimizer = optimizer.model_copy(update={"epochs": self.settings.epochs})
        update: dict[str, Any] = {"network": network, "optimizer": optimizer, "output": folder}
        own = self.config.model_copy(update={**update, "search": None, "cross_validation": None})
        if not self.folds:
            return [TrainingTask(name, own, folder, **self.how)]
        return [
            TrainingTask(
                f"{name}, fold {fold.name}", own, folder / fold.folder, fold.training,
                fold.held_out, **self.how,
            )
            for fold in self.folds
        ]  # fmt: skip

    def _judged(
        self, network: NetworkSettings, results: Sequence[TrainingResult | DeepictError]
    ) -> Trial:
        """Return what a trial is worth; one that failed in a fold failed."""
        done = [one for one in results if isinstance(one, TrainingResult)]
        if len(done) < len(results):
            why = "; ".join(str(one) for one in results if isinstance(one, DeepictError))
            return Trial("", network, reason=" ".join(why.split()))
        names = dict.fromkeys(name for one in done for name in one.figures)
        figures = {}
        for name in names:  # a fold without a voxel of a class says nothing of it
            values = [one.figures.get(name, math.nan) for one in done]
            known = [value for value in values if math.isfinite(value)]
            if known:
                figures[name] = statistics.fmean(known)
        score = _score(figures, self.settings.metric, tuple(self.config.classes))
        reason = "" if score is not None else f"validation gave no {self.settings.metric}"
        return Trial("", network, score, figures, reason)


def _score(figures: dict[str, float], metric: str, classes: Sequence[str]) -> float | None:
    """Return what a trial is compared by, higher is better."""
    if metric == "loss":
        return -figures["loss"] if "loss" in figures else None
    if metric == "dice":
        return figures.get("dice")
    found = [figures[f"f1_{name}"] for name in classes if f"f1_{name}" in figures]
    found = [value for value in found if math.isfinite(value)]
    return statistics.fmean(found) if found else None


def _best(trials: Sequence[Trial]) -> Trial | None:
    """Return the trial of the highest score, of equals the first."""
    scored = [one for one in trials if one.score is not None]
    return max(scored, key=lambda one: one.score or 0.0) if scored else None


def _table(trials: Sequence[Trial]) -> str:
    """Return the table of the trials as CSV, in the order of the steps."""
    known = list(dict.fromkeys(name for one in trials for name in one.figures))
    rows: list[list[Any]] = [["step", *STEPS, "state", "chosen", *known, "reason"]]
    for one in trials:
        settings = [getattr(one.network, name) for name in STEPS]
        state = "failed" if one.score is None else "done"
        figures = [round(one.figures[n], 6) if n in one.figures else "" for n in known]
        rows.append([one.step, *settings, state, one.chosen, *figures, one.reason])
    return csv_of_rows(rows)
