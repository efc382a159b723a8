"""Run a DeePiCt 2D project: the files DeePiCt would leave, under its names.

For each tomogram of ``data.prediction_data``, in ``data.output_dir``, as far as active flags ask:

1. ``<prefix>_filtered.mrc``: the tomogram with the target's spectrum;
2. ``<prefix>_pred.mrc``: scores, by the published tiling;
3. ``<prefix>_pred_polished.mrc``: smoothed along z, and cut at the threshold if there is one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError
from ..jobs.equalize import equalize_volume
from ..jobs.polish import polish_volume
from ..jobs.segment import segment_volume
from .steps import Maker, clear_work, key_of, run_each_tomogram, through_store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ..jobs.session import Session
    from ..pipeline import RunReport
    from .project2d import Project2D, Tomogram2D

__all__ = ["plan_2d", "run_2d"]


def run_2d(
    session: Session, project: Project2D, *, say: Callable[[str], None], resume: bool = True
) -> RunReport:
    """Do what a 2D config asks for, tomogram by tomogram.

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
    session = replace(session, overwrite=True, voxel_spacing_angstrom=None)
    maker = Maker(session, say, resume)
    steps = {tomogram.name: _Steps(maker, project, tomogram) for tomogram in project.tomograms}
    return run_each_tomogram(steps, lambda name: steps[name].run(), say)


def plan_2d(project: Project2D) -> list[str]:
    """Return which files a run makes."""
    flags = {
        "filtered": project.filtering,
        "pred": project.predict,
        "pred_polished": project.polish,
    }
    return [
        f"{tomogram.name}: {project.output / f'{tomogram.name}_{what}.mrc'}"
        for tomogram in project.tomograms
        for what, active in flags.items()
        if active
    ]


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

    def run(self) -> dict[str, int]:
        """Do what is active."""
        if not self.maker.resume:
            clear_work(self.work, self.project.work)
        source = self.equalize() if self.project.filtering else self.tomogram.path
        if self.project.predict:
            self.predict(source)
        if self.project.polish:
            self.polish()
        clear_work(self.work, self.project.work)
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
