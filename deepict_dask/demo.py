"""A first run: make a synthetic cell, find its particles, compare with the truth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .config import PickSettings, RunConfig, SegmentSettings, dump_run_config
from .core.errors import OutputExistsError
from .evaluate.picks import score_picks
from .io.picks import read_picks
from .models.registry import bundled_models, loaded_model
from .pipeline import run_pipeline
from .run_outputs import pick_folder_of
from .synthetic import CellSettings, make_cell, write_cell

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from .jobs.session import Session

__all__ = ["DemoSettings", "run_demo"]

MODEL = "demo_ribosome_fas"
_RADIUS_VOXELS = 10.0
"""The tolerance of DeePiCt's own evaluation, 13.5 nm at the demo's voxel spacing."""


@dataclass(frozen=True)
class DemoSettings:
    """The synthetic cell of the demo."""

    signal_to_noise: float = 0.006
    n_ribosomes: int = 140
    n_fas: int = 60
    n_distractors_each: int = 90
    seed: int = 2023


def run_demo(
    session: Session, folder: Path, settings: DemoSettings, *, say: Callable[[str], None]
) -> dict[str, Any]:
    """Make a cell, run the whole pipeline with the bundled model, print found against true.

    Returns
    -------
    dict
        For each class its `deepict_dask.evaluate.picks.PicksScore`.

    Raises
    ------
    OutputExistsError
        The folder exists and may not be replaced.
    """
    if folder.exists() and any(folder.iterdir()) and not session.overwrite:
        raise OutputExistsError(
            f"{folder}: expected an empty folder, found files; give another, or --overwrite"
        )
    cell = make_cell(
        replace(
            CellSettings(),
            n_ribosomes=settings.n_ribosomes,
            n_fas=settings.n_fas,
            n_distractors_each=settings.n_distractors_each,
            signal_to_noise=settings.signal_to_noise,
            seed=settings.seed,
        )
    )
    paths = write_cell(cell, folder / "cell", overwrite=session.overwrite)
    say(f"made a synthetic cell of {cell.tomogram.shape} voxels (zyx): {paths['tomogram']}")
    config = demo_config(paths["tomogram"], folder)
    (folder / "run.yaml").write_text(dump_run_config(config))
    run_pipeline(session, config, say=say)
    scores = {}
    say("class       found   true  right precision  recall     F1")
    for i, pick in enumerate(config.pick):
        picked = config.output / "tomogram" / pick_folder_of(pick, i) / "picks.csv"
        name = str(pick.class_name)
        truth = cell.picks[cell.picks["class_name"] == name]
        scores[name] = _score(picked, truth)
        say(_line(name, scores[name]))
    return scores


def demo_config(tomogram: Path, folder: Path) -> RunConfig:
    """Return the run of the demo: the bundled model with the limits its card recommends."""
    model = loaded_model(bundled_models()[MODEL])
    recommended = model.card["recommended"]
    picks = [
        PickSettings.model_validate({"class": name, **recommended[name]})
        for name in model.class_names
    ]
    return RunConfig(
        tomograms=tomogram,
        output=folder / "results",
        segment=(SegmentSettings(model=MODEL),),
        pick=tuple(picks),
    )


def _score(picked: Path, truth: Any) -> Any:
    found = read_picks(picked)
    axes = ["z", "y", "x"]
    return score_picks(
        found[axes].to_numpy(), truth[axes].to_numpy(), _RADIUS_VOXELS,
        scores=found["score"].to_numpy(),
    )  # fmt: skip


def _line(name: str, s: Any) -> str:
    return (
        f"{name:<10} {s.n_found:>6} {s.n_true:>6} {s.true_positives:>6} "
        f"{s.precision:>9.3f} {s.recall:>7.3f} {s.f1:>6.3f}"
    )
