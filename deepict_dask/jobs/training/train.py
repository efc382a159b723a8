"""A training config to a model: tomograms equalized first where that is asked for."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from ...core.errors import ConfigError
from ...engine import fingerprint, request_key
from ...io.csv_text import csv_of_dicts
from ...io.dataset import list_tomograms
from ...io.replace import replace_file
from ..equalize import equalize_volume

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ...config.training import TrainConfig
    from ...engine import Progress
    from ...io.datasets.entry import TomogramEntry
    from ...training.data import TrainingData
    from ...training.fit import TrainingOutcome
    from ..session import Session

__all__ = ["describe_training", "equalize_training", "train_model"]

_FOLDER = "equalized"


def train_model(
    config: TrainConfig,
    *,
    one_pass: bool = False,
    resume: bool = True,
    overwrite: bool = False,
    tell: Callable[[str], None] = lambda _text: None,
    progress: Progress | None = None,
) -> TrainingOutcome:
    """Train the network of a config in this process, on tomograms as they are.

    Parameters
    ----------
    config
        What to learn from what; of `equalize_training` where tomograms are equalized first.
    one_pass
        An epoch is as many steps as there are patches in the grid (``sampling: grid``).
    resume, overwrite, tell, progress
        As of `deepict_dask.training.fit.train_network`.

    Raises
    ------
    ConfigError
        A package is missing, or the settings or data do not fit one another.
    OutputExistsError, LedgerError
        The output has the model, or unfinished work, of another request.
    WorkFailedError
        The loss became NaN.
    """
    from ...training.packages import require_training_packages

    require_training_packages()
    from ...training.data import open_training_data
    from ...training.fit import train_network

    data = open_training_data(config)
    config = _one_pass(config, data) if one_pass else config
    return train_network(
        config, data=data, resume=resume, overwrite=overwrite, tell=tell, progress=progress
    )


def _one_pass(config: TrainConfig, data: TrainingData) -> TrainConfig:
    """Make an epoch as long as every patch of the grid takes once."""
    patches = data.sampler.n_grid_patches
    steps = max(1, math.ceil(patches / config.optimizer.batch_size))
    optimizer = config.optimizer.model_copy(update={"steps_per_epoch": steps})
    return config.model_copy(update={"optimizer": optimizer})


def describe_training(
    config: TrainConfig, *, one_pass: bool = False, replaces: bool = False
) -> list[str]:
    """Return what would be trained on, as lines, and write a picture of it; train nothing.

    The picture is ``preview.png`` in the output folder, unless a training of other settings or data
    is there: then the last line says so. (Of tomograms that are equalized first this is not known.)

    Parameters
    ----------
    config, one_pass
        As of `train_model`.
    replaces
        Whether another training in the folder may go.

    Raises
    ------
    DeepictError
        As `train_model`.
    """
    from ...training.card import training_key
    from ...training.data import open_training_data
    from ...training.fit import other_training
    from ...training.networks import network_to_train
    from ...training.packages import require_training_packages
    from ...training.preview import counts_text, write_preview

    require_training_packages()
    data = open_training_data(config)
    config = _one_pass(config, data) if one_pass else config
    network = network_to_train(config)
    other = None
    if config.equalize is None and not replaces:
        other = other_training(config.output.absolute(), training_key(config, data))
    last = f"training would be refused, and no picture is written: {other}"
    if other is None:
        config.output.mkdir(parents=True, exist_ok=True)
        picture = config.output / "preview.png"
        write_preview(data, picture)
        last = f"picture: {picture}"
    weights = sum(weight.numel() for weight in network.parameters())
    steps = config.optimizer.epochs * config.optimizer.steps_per_epoch
    limit = config.optimizer.max_minutes
    return [
        counts_text(data),
        f"network of {weights} weights; {steps} steps of {config.optimizer.batch_size} patches"
        + (f", at most {limit:g} minutes" if limit else ""),
        *(["the tomograms are shown as they are, before they are equalized"]
          if config.equalize else []),
        last,
    ]  # fmt: skip


def equalize_training(session: Session, config: TrainConfig) -> TrainConfig:
    """Equalize the tomograms of a config; return it with the equalized ones.

    They are kept in ``equalized`` in the output folder, with a table of them. What is there and
    answers the request is not made again.

    Raises
    ------
    BudgetError
        Not even the smallest pieces fit a worker.
    VoxelValueError
        A tomogram has NaN or infinite voxels, or no contrast.
    """
    if config.equalize is None:
        return config
    folder = config.output.absolute() / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for entry in list_tomograms(config.tomograms):
        spacing = entry.told_spacing(config.voxel_spacing_angstrom)
        one = replace(session, voxel_spacing_angstrom=spacing, overwrite=True)
        made = _equalized(one, entry, folder, config)
        rows.append(_row(entry, made, config))
    table = folder / "tomograms.csv"
    replace_file(table, csv_of_dicts(rows))
    return config.model_copy(update={"tomograms": table})


def _equalized(session: Session, entry: TomogramEntry, folder: Path, config: TrainConfig) -> Path:
    """Return the equalized tomogram, made unless it is there."""
    assert config.equalize is not None
    key = request_key({
        "input": fingerprint(entry.path), "target": fingerprint(config.equalize.target),
        "settings": config.equalize.model_dump(mode="json", exclude={"target"}),
        "spacing": session.voxel_spacing_angstrom,
    })  # fmt: skip
    store = folder / f"{entry.name}-{key[:12]}.zarr"
    if not store.exists():
        from ...training.processes import refuse_together

        refuse_together(
            f"equalize {entry.name}", "begin this training without srun, which keeps what it "
            "has equalized, and start it again with srun",
        )  # fmt: skip
        equalize_volume(session, entry.path, store, config.equalize)
    return store


def _row(entry: TomogramEntry, tomogram: Path, config: TrainConfig) -> dict[str, str]:
    """Return a row of the table: the equalized tomogram, and the files its classes need."""
    row = {"name": entry.name, "tomogram": str(tomogram)}
    for name, settings in config.classes.items():
        column = settings.picks or settings.labels or ""
        files = list(entry.picks.get(column, ())) if settings.picks else []
        files = files or [entry.files[column]] * (column in entry.files)
        if len(files) > 1:
            raise ConfigError(
                f"tomogram {entry.name}: class {name}: expected one file under {column} where "
                f"tomograms are equalized first, found {len(files)}; merge the lists"
            )
        row[column] = str(files[0].absolute()) if files else ""
    return row
