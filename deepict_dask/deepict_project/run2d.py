"""Run a DeePiCt 2D project: the files DeePiCt would leave, under its names.

For each tomogram of ``data.prediction_data``, in ``data.output_dir``, as far as active flags ask:

1. ``<prefix>_filtered.mrc``: the tomogram with the target's spectrum;
2. ``<prefix>_pred.mrc``: scores, by the published tiling;
3. ``<prefix>_pred_polished.mrc``: smoothed along z, and cut at the threshold if there is one.

Tomograms run several at a time, with lock, journal and summary in the same folder (`dataset_run`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError
from ..dataset_run import DatasetPlan, run_dataset
from ..engine.progress import one_at_a_time
from ..jobs.equalize import equalize_volume
from ..jobs.polish import polish_volume
from ..jobs.runs.journal import OutputPlace
from ..jobs.segmenting.segment import segment_volume
from .steps import Maker, clear_work, key_of, remove_empty, set_summary_aside, through_store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from ..jobs.session import Session
    from ..pipeline import RunReport
    from .project2d import Project2D, Tomogram2D

__all__ = ["plan_2d", "run_2d"]


def run_2d(
    session: Session, project: Project2D, *, say: Callable[[str], None], resume: bool = True
) -> RunReport:
    """Do what a 2D config asks for, several tomograms at a time.

    Parameters
    ----------
    session
        Workers and wishes.
    project
        What is asked for.
    say
        Receives one line per finished output.
    resume
        Keep finished outputs that answer the same request.
    """
    session, say = replace(session, overwrite=True, voxel_spacing_angstrom=None), one_at_a_time(say)
    maker = Maker(session, say, resume)
    steps = {tomogram.name: _Steps(maker, project, tomogram) for tomogram in project.tomograms}

    def run_one(name: str, session: Session, made: Callable[[str], None]) -> dict[str, int]:
        own = replace(maker, session=session, made=made)
        return replace(steps[name], maker=own).run()

    try:
        return run_dataset(
            session, _plan(project, steps), run_one, say=say,
            before=lambda: set_summary_aside(project.output),
        )  # fmt: skip
    finally:
        for each in steps.values():
            remove_empty(each.work, project.work)


def _plan(project: Project2D, steps: Mapping[str, _Steps]) -> DatasetPlan:
    """Say what a run makes, and where."""
    places = {name: each.places() for name, each in steps.items()}
    outputs = {name: list(of_one) for name, of_one in places.items()}
    inputs = {one.name: str(one.path.absolute()) for one in project.tomograms}
    facts = {"config": project.values, "inputs": inputs}
    return DatasetPlan(project.output, outputs, [], places=places, facts=facts)


def plan_2d(project: Project2D) -> list[str]:
    """Return which files a run makes."""
    return [
        f"{tomogram.name}: {project.output / f'{tomogram.name}_{what}.mrc'}"
        for tomogram in project.tomograms
        for what in _asked(project)
    ]


def _asked(project: Project2D) -> list[str]:
    """Return which outputs are asked for."""
    flags = {
        "filtered": project.filtering,
        "pred": project.predict,
        "pred_polished": project.polish,
    }
    return [what for what, is_asked in flags.items() if is_asked]


@dataclass(frozen=True)
class _Steps:
    """The steps of one tomogram."""

    maker: Maker
    project: Project2D
    tomogram: Tomogram2D

    @property
    def work(self) -> Path:
        """Where the intermediate stores are."""
        return self.project.work / self.tomogram.name

    def file(self, what: str) -> Path:
        """Return an output's path."""
        return self.project.output / f"{self.tomogram.name}_{what}.mrc"

    def places(self) -> dict[str, OutputPlace]:
        """Return where the outputs that are asked for are and are made."""
        files = {what: self.file(what).absolute() for what in _asked(self.project)}
        return {
            path.name: OutputPlace(path, self.work.absolute() / f"{what}.zarr.partial")
            for what, path in files.items()
        }

    def run(self) -> dict[str, int]:
        """Do what is active."""
        if not self.maker.resume:
            clear_work(self.work)
        source = self.equalize() if self.project.filtering else self.tomogram.path
        if self.project.predict:
            self.predict(source)
        if self.project.polish:
            self.polish()
        clear_work(self.work)
        return {}

    def _make(self, what: str, request: dict[str, Any], job: Callable[[Path], Any]) -> Path:
        """Make one output through a store in the work folder."""
        target, key = self.file(what), key_of(request)
        store = self.work / f"{what}.zarr"
        self.maker.make(
            self.tomogram.name, target, request, lambda path: through_store(store, key, job, path)
        )
        return target

    def equalize(self) -> Path:
        """Give the tomogram the target's spectrum."""
        settings, source = self.project.equalize_settings, self.tomogram.path
        request = {
            "output": "filtered", "input": source, "target": settings.target,
            "settings": settings.model_dump(mode="json", exclude={"target"}),
        }  # fmt: skip
        session = self.maker.session
        return self._make(
            "filtered", request, lambda store: equalize_volume(session, source, store, settings)
        )

    def predict(self, source: Path) -> None:
        """Make the score map."""
        settings = self.project.segment_settings
        request = {
            "output": "pred", "input": source, "model": self.project.model,
            "settings": settings.model_dump(mode="json", exclude={"model"}),
        }  # fmt: skip
        session = self.maker.session
        self._make("pred", request, lambda store: segment_volume(session, source, store, settings))

    def polish(self) -> None:
        """Smooth the score map along z, and cut it."""
        scores, values = self.file("pred"), self.project.values
        if not scores.is_file():
            raise ConfigError(
                f"{scores}: expected a score map to post-process, found none; "
                "set prediction.active to True"
            )
        sigma, threshold = values["postprocessing.sigma"], values["postprocessing.threshold"]
        request = {
            "output": "pred_polished", "input": scores, "sigma": sigma, "threshold": threshold,
        }  # fmt: skip
        session = self.maker.session
        self._make(
            "pred_polished",
            request,
            lambda store: polish_volume(
                session, scores, store, z_sigma=sigma, threshold=threshold, compat="deepict"
            ),
        )
