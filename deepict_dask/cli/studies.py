"""What `train` does with several trainings: cross-validation, --search and --rounds."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..core.errors import ConfigError
from .options import open_session, say
from .stopping import stopped_cleanly

if TYPE_CHECKING:
    from ..config.training import TrainConfig
    from ..jobs.session import Session

__all__ = ["describe_study", "is_study", "run_study"]


def is_study(config: TrainConfig, *, search: bool, rounds: int | None) -> bool:
    """Say whether more than one training is asked for.

    Raises
    ------
    ConfigError
        Two things are asked for at once.
    """
    if search and rounds is not None:
        raise ConfigError("train: expected either --search or --rounds, found both")
    return search or rounds is not None or config.cross_validation is not None


def run_study(
    config: TrainConfig,
    *,
    search: bool = False,
    rounds: int | None = None,
    resume: bool = True,
    overwrite: bool = False,
    workers: int | None = None,
    memory: str | None = None,
    progress: bool = True,
) -> None:
    """Start or reach workers and run what is asked for; cross-validation by default."""
    where = config.cluster
    workers = workers or where.workers
    if workers is None and where.kind == "local" and rounds is None:
        # a training can use several cores, and fewer workers have more memory each
        workers = min(_most_at_once(config, search=search), len(os.sched_getaffinity(0)))
    with stopped_cleanly(), open_session(
        cluster=where.kind, workers=workers, memory=memory or where.memory, device=where.device,
        progress=progress,
    ) as session:  # fmt: skip
        if config.equalize is not None:
            from ..jobs.training.train import equalize_training

            config = equalize_training(session, config)
        _run(session, config, search=search, rounds=rounds, resume=resume, overwrite=overwrite)


def describe_study(config: TrainConfig, *, search: bool, rounds: int | None) -> list[str]:
    """Return what would be trained, as lines; train nothing."""
    if rounds is not None:
        from ..jobs.training.rounds import describe_rounds

        return describe_rounds(config, rounds)
    from ..jobs.training.folds import folds_of

    folds = folds_of(config) if config.cross_validation is not None else []
    lines = [f"fold {one.name}: trained on {', '.join(one.training)}; "
             f"held out: {', '.join(one.held_out)}" for one in folds]  # fmt: skip
    if search:
        from ..jobs.training.search import describe_search

        return [*lines, describe_search(config, max(1, len(folds)))]
    assert config.cross_validation is not None
    return lines + ["final: trained on all tomograms"] * config.cross_validation.final


def _most_at_once(config: TrainConfig, *, search: bool) -> int:
    """Return how many trainings can run at the same time."""
    folds = 1
    if config.cross_validation is not None:
        from ..jobs.training.folds import folds_of

        folds = len(folds_of(config)) + (config.cross_validation.final and not search)
    if not search:
        return folds
    from ..config.training import SearchSettings
    from ..jobs.training.search import STEPS

    tried = config.search or SearchSettings()
    return folds * max(1, *(len(getattr(tried, step)) for step in STEPS))


def _run(
    session: Session,
    config: TrainConfig,
    *,
    search: bool,
    rounds: int | None,
    resume: bool,
    overwrite: bool,
) -> None:
    """Run it, and say what there is now."""
    if search:
        from ..jobs.training.search import search_network, trial_name

        found = search_network(session, config, resume=resume, overwrite=overwrite, tell=say)
        say(f"best network: {trial_name(found.network)}; wrote {found.table} and {found.best}")
        return
    if rounds is not None:
        from ..jobs.training.rounds import train_in_rounds

        model = train_in_rounds(
            session, config, rounds, resume=resume, overwrite=overwrite, tell=say
        )
        say(f"wrote {model} and {config.output / 'rounds.csv'}")
        return
    from ..jobs.training.folds import cross_validate

    table = cross_validate(session, config, resume=resume, overwrite=overwrite, tell=say)
    say(table.read_text().rstrip())
    say(f"wrote {table}")
