"""Rounds of annotation: train, predict, add what was found to the lists, train again.

1. Round 1 trains on the given lists. Tomograms that lack a list are not trained on yet.
2. Its model predicts the tomograms, those without lists among them; new picks are merged with the
   given lists (`round_picks`). What is held out for validation stays as it was given.
3. Round 2 goes on from that model with the merged lists, and so on; after the last round the model
   is trained once more, in ``final``.

``round_1`` has the model, the lists and the table of tomograms it was trained on; ``rounds.csv``
has how many picks each round found, confirmed and added.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...config.training import RoundsSettings
from ...core.errors import ConfigError, DeepictError
from ...engine.output_lock import OutputLock
from ...io.csv_text import csv_of_dicts, csv_of_rows
from ...io.dataset import list_tomograms
from ...io.replace import replace_file
from .round_lists import RoundLists, given_counts, has_list, open_lists
from .round_picks import RoundClass, RoundTomogram, picks_of_round, predicted
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

    from ...config.training import TrainConfig, ValidationSettings
    from ...io.datasets.entry import TomogramEntry
    from ..session import Session
    from .round_picks import Counts

__all__ = ["RoundRow", "describe_rounds", "train_in_rounds"]

TABLE = "rounds.csv"


@dataclass(frozen=True)
class RoundRow:
    """What a round found of a class in a tomogram."""

    round: int
    tomogram: str
    class_name: str
    before: int
    """Picks that the round's model was trained on."""
    counts: Counts


def train_in_rounds(
    session: Session,
    config: TrainConfig,
    n_rounds: int,
    *,
    resume: bool = True,
    overwrite: bool = False,
    tell: Callable[[str], None] = lambda _text: None,
    trainer: Callable[[TrainingTask], TrainingResult] = train_task,
    predict: Callable[..., dict[str, Any]] = predicted,
) -> Path:
    """Train, predict and merge so many times, then train once more; return the final model.

    What is finished is kept, what was begun goes on.

    Parameters
    ----------
    session
        Workers, and the device of the networks.
    config
        Classes with particle lists; ``rounds`` says what is predicted and how it is picked.
    n_rounds
        At least 1.
    resume, overwrite
        As of `deepict_dask.training.fit.train_network`, for every round.
    tell
        Receives a line as each step ends.
    trainer, predict
        What a worker does to train; what makes picks with a model, as `round_picks.predicted`.

    Raises
    ------
    ConfigError
        There is no class with particle lists, or a setting does not fit rounds.
    LedgerError
        Another command works in the output folder.
    DeepictError
        A training or a prediction failed.
    """
    _check(config, n_rounds)
    begin_study(config, "rounds")
    output = config.output.absolute()
    lock = output / STUDY_LOCK
    with OutputLock(lock):
        state = open_lists(config, output)
        rounds = _Rounds(session, config, state, tell, trainer, predict)
        rounds.how = {"resume": resume, "overwrite": overwrite, "lock": lock}
        rounds.check()
        model: Path | None = None
        for number in range(1, n_rounds + 1):
            folder = output / f"round_{number}"
            made = rounds.train(f"round {number}", folder, model)
            model = made.model
            if "dice" in made.figures:
                rounds.dice[number] = made.figures["dice"]
            rounds.predict_and_merge(number, folder, model)
            replace_file(output / TABLE, _table(rounds.rows, rounds.dice))
        return rounds.train("final", output / "final", model).model


def describe_rounds(config: TrainConfig, n_rounds: int) -> list[str]:
    """Return which tomograms have lists, with how many particles, as lines; train nothing.

    Raises
    ------
    DeepictError
        As `train_in_rounds`: tomograms and lists are opened.
    """
    _check(config, n_rounds)
    columns = {one.picks for one in config.classes.values() if one.picks is not None}
    entries = list_tomograms(config.tomograms)
    known = [e.name for e in entries if all(has_list(e, column) for column in columns)]
    others = [entry.name for entry in entries if entry.name not in known]
    n = f"{n_rounds} round" + "s" * (n_rounds > 1)
    return [
        f"{n}, {n_rounds + 1} trainings; round 1 on {', '.join(known) or 'nothing'}",
        *(f"  {entry.name}: {given_counts(config, entry)}" for entry in entries),
        f"without lists, from round 2 on: {', '.join(others) or 'none'}",
        f"held out: {_held_out(config.validation)}",
    ]


def _held_out(settings: ValidationSettings) -> str:
    """Say what is held out.

    Examples
    --------
    >>> from deepict_dask.config.training import ValidationSettings
    >>> _held_out(ValidationSettings(fraction=0.3)), _held_out(ValidationSettings())
    ('the last 30 % on y of each tomogram with lists', 'nothing')
    """
    if settings.fraction:
        part = f"{100 * settings.fraction:g} % on {settings.axis}"
        return f"the last {part} of each tomogram with lists"
    return ", ".join(settings.tomograms) or "nothing"


def _check(config: TrainConfig, n_rounds: int) -> None:
    """Refuse what rounds cannot do."""
    particles = [name for name, one in config.classes.items() if one.picks is not None]
    masks = [name for name, one in config.classes.items() if one.shape == "mask"]
    if n_rounds < 1:
        raise ConfigError(f"--rounds: expected at least 1, found {n_rounds}")
    if not particles or config.network.kind == "unet2d":
        raise ConfigError(
            "rounds: expected a 3D network and a class with particle lists (picks), found none"
        )
    if masks:
        raise ConfigError(
            f"rounds: class {', '.join(masks)}: expected spheres, balls or cubes, found shape: "
            "mask; predicted particles have no Euler angles"
        )
    if config.cross_validation is not None:
        raise ConfigError("rounds: not with cross_validation; leave one of them out")
    unknown = set((config.rounds or RoundsSettings()).picks) - set(particles)
    if unknown:
        raise ConfigError(
            f"rounds.picks: expected classes with particle lists ({', '.join(particles)}), found "
            f"{', '.join(sorted(unknown))}"
        )


@dataclass
class _Rounds:
    """What all rounds share."""

    session: Session
    config: TrainConfig
    lists: RoundLists
    tell: Callable[[str], None]
    trainer: Callable[[TrainingTask], TrainingResult]
    predict: Callable[..., dict[str, Any]]
    how: dict[str, Any] = field(default_factory=dict)
    rows: list[RoundRow] = field(default_factory=list)
    dice: dict[int, float] = field(default_factory=dict)
    """Of the validation, by round, as far as there is one."""

    @property
    def settings(self) -> RoundsSettings:
        """What is predicted and how it is picked."""
        return self.config.rounds or RoundsSettings()

    def check(self) -> None:
        """Refuse before the first training what could not be predicted after it."""
        for entry in self._to_predict():
            self._tomogram(entry)

    def train(self, name: str, folder: Path, start: Path | None) -> TrainingResult:
        """Train on the current lists, from the last model where there is one."""
        folder.mkdir(parents=True, exist_ok=True)
        table = folder / "tomograms.csv"
        replace_file(table, self._tomograms())
        network = self.config.network
        if start is not None:
            network = network.model_copy(update={"start_from": str(start)})
        classes = {
            name: one if one.picks is None
            else one.model_copy(update={"picks": f"picks_{name}", "class_name": None})
            for name, one in self.config.classes.items()
        }  # fmt: skip
        model_folder = folder / "model"
        update = {"tomograms": table, "network": network, "classes": classes, "rounds": None}
        own = self.config.model_copy(update={**update, "search": None, "output": model_folder})
        task = TrainingTask(name, own, model_folder, **self.how)
        found = run_tasks(self.session, [task], stage=name, tell=self.tell, trainer=self.trainer)[
            name
        ]
        if isinstance(found, DeepictError):
            raise found
        return found

    def _tomograms(self) -> str:
        """Return the table of the tomograms that have all their lists."""
        particles = [name for name, one in self.config.classes.items() if one.picks is not None]
        labels = {one.labels for one in self.config.classes.values() if one.labels is not None}
        rows = []
        for entry in self.lists.entries:
            lists = self.lists.current[entry.name]
            if any(name not in lists for name in particles) or labels - {*entry.files}:
                continue
            row = {"name": entry.name, "tomogram": str(entry.path.absolute())}
            row |= {column: str(entry.files[column].absolute()) for column in sorted(labels)}
            row |= {f"picks_{name}": str(lists[name]) for name in particles}
            row["voxel_spacing_angstrom"] = f"{self.lists.spacings[entry.name]:.9g}"
            rows.append(row)
        if not rows:
            raise ConfigError(
                f"{self.config.tomograms}: expected a tomogram with a list of each class "
                f"({', '.join(particles)}) to begin with, found none"
            )
        return csv_of_dicts(rows)

    def predict_and_merge(self, number: int, folder: Path, model: Path) -> None:
        """Find particles with a round's model and add them to the lists."""
        thresholds = _recommended(model)
        for entry in self._to_predict():
            tomogram = self._tomogram(entry)
            classes = self._classes(tomogram, thresholds)
            found = picks_of_round(
                self.session, model, tomogram, classes, folder=folder / "picks",
                predict=self.predict,
            )  # fmt: skip
            for name, (path, counts) in found.items():
                before = self.lists.n_picks.get((entry.name, name), 0)
                self.rows.append(RoundRow(number, entry.name, name, before, counts))
                self.lists.current[entry.name][name] = path
                self.lists.n_picks[entry.name, name] = counts.after
                self.tell(f"round {number}: {entry.name}: {name}: {counts.predicted} picks, "
                          f"{counts.confirmed} known, {counts.new} new")  # fmt: skip

    def _to_predict(self) -> list[TomogramEntry]:
        """Return the tomograms to predict: none that is held out."""
        entries = {entry.name: entry for entry in self.lists.entries}
        held_out = set(self.config.validation.tomograms)
        wanted = self.settings.tomograms or [name for name in entries if name not in held_out]
        wrong = [name for name in wanted if name not in entries or name in held_out]
        if wrong:
            raise ConfigError(
                f"rounds.tomograms: expected tomograms that are not held out, among "
                f"{', '.join(entries)}, found {', '.join(wrong)}"
            )
        return [entries[name] for name in wanted]

    def _tomogram(self, entry: TomogramEntry) -> RoundTomogram:
        shape, validation = self.lists.shapes[entry.name], self.config.validation
        given, held_out_from = self.lists.given[entry.name], None
        if validation.fraction:
            if not given:
                raise ConfigError(
                    f"validation.fraction: tomogram {entry.name} has no lists, so none of it can "
                    "be held out; hold out whole tomograms (validation.tomograms)"
                )
            axis = "zyx".index(validation.axis)
            size = shape[axis]
            held_out_from = (axis, float(size - round(validation.fraction * size)))
        spacing = self.lists.spacings[entry.name]
        return RoundTomogram(
            entry.name, entry.path.absolute(), shape, spacing, given, held_out_from
        )

    def _classes(
        self, tomogram: RoundTomogram, thresholds: dict[str, float]
    ) -> dict[str, RoundClass]:
        """Return how the classes of particles are picked."""
        found = {}
        for name, one in self.config.classes.items():
            if one.picks is None:
                continue
            radius = one.radius_voxels
            if radius is None:
                radius = 10 * (one.radius_nm or 0) / (tomogram.voxel_spacing_angstrom or 1)
            found[name] = RoundClass.of_radius(
                name, radius, self.settings.axes, self.settings.picks.get(name),
                thresholds.get(name),
            )  # fmt: skip
        return found


def _recommended(model: Path) -> dict[str, float]:
    """Return the thresholds that a model's card recommends."""
    from ...models.checkpoint import model_info

    card = model_info(model).card
    return {
        name: float(one["threshold"])
        for name, one in card.get("recommended", {}).items()
        if "threshold" in one
    }


def _table(rows: Sequence[RoundRow], dice: dict[int, float]) -> str:
    """Return the table of the rounds as CSV."""
    columns = ["round", "tomogram", "class", "given", "before", "predicted", "confirmed", "new",
               "after", "model_dice"]  # fmt: skip
    cells: list[list[Any]] = [columns]
    for row in rows:
        found = row.counts
        score = f"{dice[row.round]:.6g}" if row.round in dice else ""
        cells.append([
            row.round, row.tomogram, row.class_name, found.given, row.before, found.predicted,
            found.confirmed, found.new, found.after, score,
        ])  # fmt: skip
    return csv_of_rows(cells)
