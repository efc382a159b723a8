"""A first run: make a synthetic cell, find its particles, compare with the truth.

1. The cell has a mitochondrion, whose dense particles look like those that are asked for.
2. One run: a 2D model says where the cytosol is, a 3D model scores particles, and each class is
   picked twice, from the whole tomogram and with context: only what lies in the cytosol found.
3. Both lists of each class are compared with the truth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .config import (
    PickSettings,
    RegionSettings,
    RunConfig,
    SegmentSettings,
    dump_config,
)
from .core.errors import OutputExistsError
from .evaluate.picks import score_picks
from .io.picks import read_picks
from .models.registry import bundled_models, loaded_model
from .pipeline import run_pipeline
from .run_outputs import pick_folder_of
from .synthetic import CONTEXT_CELL, CellSettings, make_cell, write_cell

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from .jobs.session import Session

__all__ = ["DemoSettings", "run_demo"]

MODEL = "demo_ribosome_fas"
CONTEXT_MODEL = "demo_cytosol"
REGION = "cytosol"
ALONE = "_alone"
"""Ends the name of a list of picks that was made without context."""
_RADIUS_VOXELS = 10.0
"""The tolerance of DeePiCt's own evaluation, 13.5 nm at the demo's voxel spacing."""


@dataclass(frozen=True)
class DemoSettings:
    """The synthetic cell of the demo."""

    signal_to_noise: float = CONTEXT_CELL.signal_to_noise
    n_ribosomes: int = CONTEXT_CELL.n_ribosomes
    n_fas: int = CONTEXT_CELL.n_fas
    n_distractors_each: int = CONTEXT_CELL.n_distractors_each
    seed: int = CONTEXT_CELL.seed

    @property
    def cell(self) -> CellSettings:
        """All settings of the cell.

        Examples
        --------
        >>> DemoSettings(seed=1).cell.n_mitochondria
        1
        """
        return replace(CONTEXT_CELL, **vars(self))


def run_demo(
    session: Session, folder: Path, settings: DemoSettings, *, say: Callable[[str], None]
) -> dict[str, Any]:
    """Make a cell, run the whole pipeline with the bundled models, print found against true.

    Returns
    -------
    dict
        For each class its `deepict_dask.evaluate.picks.PicksScore` with context, and without it
        under the name of the class and "_alone".

    Raises
    ------
    OutputExistsError
        The folder exists and may not be replaced.
    """
    if folder.exists() and any(folder.iterdir()) and not session.overwrite:
        raise OutputExistsError(
            f"{folder}: expected an empty folder, found files; give another, or --overwrite"
        )
    cell = make_cell(settings.cell)
    paths = write_cell(cell, folder / "cell", overwrite=session.overwrite)
    say(f"made a synthetic cell of {cell.tomogram.shape} voxels (zyx): {paths['tomogram']}")
    config = demo_config(paths["tomogram"], folder)
    (folder / "run.yaml").write_text(dump_config(config))
    run_pipeline(session, config, say=say)
    scores = {}
    say("class      from              found   true  right precision  recall     F1")
    for i, pick in enumerate(config.pick):
        picked = config.output / "tomogram" / pick_folder_of(pick, i) / "picks.csv"
        name = str(pick.class_name)
        score = _score(picked, cell.picks[cell.picks["class_name"] == name])
        scores[str(pick.name)] = score
        say(_line(name, pick.region or "whole tomogram", score))
    return scores


def demo_config(tomogram: Path, folder: Path) -> RunConfig:
    """Return the run of the demo: the bundled models with the limits that their cards recommend."""
    particles, context = (loaded_model(bundled_models()[name]) for name in (MODEL, CONTEXT_MODEL))
    region = {"name": REGION, "model": CONTEXT_MODEL, **context.card["recommended"][REGION]}
    inside = {
        "region": REGION,
        # the centroid counts, so that no cluster is cut at the region's edge
        "contact_mode": "colocalization",
        "contact_distance": context.card["settings"]["contact_distance"],
    }
    limits = particles.card["recommended"]
    picks = [
        PickSettings.model_validate({"name": name + ending, "class": name, **limits[name], **how})
        for name in particles.class_names
        for ending, how in ((ALONE, {"distances": ()}), ("", inside))
    ]
    return RunConfig(
        # absolute, for those in a config's file are relative to its folder
        tomograms=tomogram.absolute(),
        output=folder.absolute() / "results",
        regions=(RegionSettings.model_validate(region),),
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


def _line(name: str, where: str, s: Any) -> str:
    return (
        f"{name:<10} {where:<16} {s.n_found:>6} {s.n_true:>6} {s.true_positives:>6} "
        f"{s.precision:>9.3f} {s.recall:>7.3f} {s.f1:>6.3f}"
    )
