"""The command that trains networks: train."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.errors import ConfigError
from .messages import plan, progress_of
from .options import (
    MemoryOption,
    OverwriteOption,
    ProgressOption,
    SpacingOption,
    WorkersOption,
    open_session,
    say,
)
from .stopping import stopped_cleanly
from .studies import describe_study, is_study, run_study

if TYPE_CHECKING:
    from ..config.training import TrainConfig
    from ..deepict_project.training import DeepictTraining


def train(
    config_file: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML of the training.")],
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show settings, counts and a picture; train nothing."),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume/--restart", help="Go on with, or remove, what was done before."),
    ] = True,
    overwrite: OverwriteOption = False,
    search: Annotated[
        bool, typer.Option("--search", help="Search the best network, setting by setting.")
    ] = False,
    rounds: Annotated[
        int | None,
        typer.Option("--rounds", min=1, help="Train, predict and add to the lists, so many times"),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="Overrides the config: auto, cpu or cuda")
    ] = None,
    workers: WorkersOption = None,
    memory: MemoryOption = None,
    voxel_spacing_angstrom: SpacingOption = None,
    progress: ProgressOption = True,
) -> None:
    """Train a network on tomograms with particle lists or label volumes.

    CONFIG is our YAML, or a config.yaml of DeePiCt (3D or 2D). Workers are started only where
    tomograms are equalized first, and for several trainings: cross_validation in the config,
    --search and --rounds.

    Example: deepict-dask train train.yaml --dry-run
    """
    asked = read_training(config_file)
    config = _with_wishes(asked.config, device, voxel_spacing_angstrom)
    one_pass = asked.checkpoint is not None
    several = is_study(config, search=search, rounds=rounds)
    if several and one_pass:
        raise ConfigError(f"{config_file}: expected our YAML with --search and --rounds, found "
                          "DeePiCt's; `train --dry-run` shows it as ours")  # fmt: skip
    if dry_run:
        _show(
            config, several=several, search=search, rounds=rounds, one_pass=one_pass,
            replaces=overwrite or not resume,
        )  # fmt: skip
        return
    if asked.is_there and resume and not overwrite:
        say(f"{asked.checkpoint} is there and is not trained again (training.force_retrain: True, "
            "or --overwrite, does)")  # fmt: skip
        return
    if asked.force or (one_pass and overwrite):  # also what is up to date, but not unfinished work
        resume, overwrite = resume and not _is_finished(config), True
    epochs = f"{config.optimizer.epochs} epochs{' each' if several else ''}"
    found = f"{', '.join(config.classes)} from {config.tomograms}"
    plan(f"{found}, {epochs}, to {config.output}", shown=progress)
    if several:
        run_study(
            config, search=search, rounds=rounds, resume=resume, overwrite=overwrite,
            workers=workers, memory=memory, progress=progress,
        )  # fmt: skip
        return
    with stopped_cleanly():
        config = _equalized(config, workers, memory, progress=progress)
        model = _train(
            config, one_pass=one_pass, resume=resume, overwrite=overwrite, progress=progress
        )
    if asked.checkpoint is not None:
        _write_checkpoint(model, asked.checkpoint)


def _is_finished(config: TrainConfig) -> bool:
    """Say whether the output has a model."""
    from ..training.card import finished_card
    from ..training.fit import MODEL_NAME

    return finished_card(config.output / MODEL_NAME) is not None


def _write_checkpoint(model: Path, checkpoint: Path) -> None:
    """Write a model as DeePiCt's checkpoint, in one of the processes that have trained it."""
    from ..jobs.export_model import export_model
    from ..training.processes import is_first_process

    if is_first_process():
        export_model(str(model), checkpoint, overwrite=True)
        say(f"wrote {checkpoint}")


def _show(
    config: TrainConfig, *, several: bool, search: bool, rounds: int | None, one_pass: bool,
    replaces: bool,
) -> None:  # fmt: skip
    """Show what would be trained, then every setting."""
    from ..config import dump_config
    from ..jobs.training.train import describe_training

    if several:
        say("\n".join(describe_study(config, search=search, rounds=rounds)))
    if rounds is None:  # tomograms without lists, which rounds take, cannot be counted
        say("\n".join(describe_training(config, one_pass=one_pass, replaces=replaces)))
    say(f"\nall settings:\n{dump_config(config)}")


def read_training(path: Path) -> DeepictTraining:
    """Read a config of ours or of DeePiCt."""
    from ..config import read_config_file
    from ..config.training import load_train_config
    from ..deepict_project import is_deepict_config
    from ..deepict_project.training import DeepictTraining, read_deepict_training

    if is_deepict_config(read_config_file(path)) is None:
        return DeepictTraining(load_train_config(path))
    return read_deepict_training(path, say=say)


def _with_wishes(config: TrainConfig, device: str | None, spacing: float | None) -> TrainConfig:
    """Return the config with what the command line says."""
    update: dict[str, object] = {}
    if device is not None:
        if device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"--device: expected auto, cpu or cuda, found {device!r}")
        update["cluster"] = config.cluster.model_copy(update={"device": device})
    if spacing is not None:
        update["voxel_spacing_angstrom"] = spacing
    return config.model_copy(update=update)


def _equalized(
    config: TrainConfig, workers: int | None, memory: str | None, *, progress: bool
) -> TrainConfig:
    """Equalize the tomograms on workers, where that is asked for."""
    if config.equalize is None:
        return config
    from ..jobs.training.train import equalize_training

    where = config.cluster
    with open_session(
        cluster=where.kind, workers=workers or where.workers, memory=memory or where.memory,
        device="cpu", progress=progress,
    ) as session:  # fmt: skip
        return equalize_training(session, config)


def _train(
    config: TrainConfig, *, one_pass: bool, resume: bool, overwrite: bool, progress: bool
) -> Path:
    """Train; say where the model is and what it is worth."""
    import sys

    from ..jobs.training.train import train_model

    bar = progress_of(None, shown=progress and sys.stderr.isatty())  # epochs are lines anyway
    done = train_model(
        config, one_pass=one_pass, resume=resume, overwrite=overwrite, tell=say, progress=bar
    )
    found = [f"{name.removeprefix('val_f1_')} {value:.3f}" for name, value in done.best.items()
             if name.startswith("val_f1_")]  # fmt: skip
    worth = f" (voxel F1 where it was not trained: {', '.join(found)})" if found else ""
    say(f"{done.model} is up to date" if done.was_finished else f"wrote {done.model}{worth}")
    return done.model


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(train)
