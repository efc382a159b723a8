"""Run a DeePiCt 3D project: the files DeePiCt would leave, under its names.

For each tomogram, as far as the config's active flags ask for it:

1. ``probability_map.mrc``, by the published tiling;
2. ``post_processed_prediction.mrc`` and ``motl_<N>.csv``;
3. rows of ``pp_statistics.csv`` and the particle lists of ``pr_radius_<r>``.

Tomograms run several at a time, with lock, journal and summary in output_dir (`dataset_run`).
Intermediate stores live in work_dir/deepict_dask, in a folder of their output_dir's own, and are
removed with the step that needed them.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError
from ..dataset_run import DatasetPlan, run_dataset
from ..engine import request_key
from ..engine.progress import one_at_a_time
from ..jobs.picking.pick import pick_particles
from ..jobs.runs.journal import OutputPlace
from ..jobs.segmenting.segment import segment_volume
from .evaluate3d import arrange_statistics, evaluate_tomogram
from .outputs import note_path, read_note, set_aside_motls
from .project3d import REGION
from .steps import (
    Made,
    Maker,
    clear_work,
    export_float32,
    key_of,
    remove_empty,
    set_summary_aside,
    through_store,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from ..jobs.runs.summary import TomogramReport
    from ..jobs.session import Session
    from ..pipeline import RunReport
    from .project3d import Project3D, Tomogram3D

__all__ = ["plan_3d", "run_3d"]

log = logging.getLogger("deepict_dask")

MAP, MASK = "probability_map.mrc", "post_processed_prediction.mrc"
_TABLE = "pp_statistics.csv"


def run_3d(
    session: Session, project: Project3D, *, say: Callable[[str], None], resume: bool = True
) -> RunReport:
    """Do what a 3D config asks for, several tomograms at a time.

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

    def after(_reports: Sequence[TomogramReport]) -> None:
        if project.evaluate_picks or project.evaluate_mask:
            arrange_statistics(project, [each.folder for each in steps.values()])

    try:
        return run_dataset(
            session, _plan(project, steps), run_one, say=say,
            before=lambda: set_summary_aside(project.output), after=after,
        )  # fmt: skip
    finally:
        for each in steps.values():
            remove_empty(each.work, project.work)


def _plan(project: Project3D, steps: Mapping[str, _Steps]) -> DatasetPlan:
    """Say what a run makes, and where."""
    evaluates = project.evaluate_picks or project.evaluate_mask
    flags = {MAP: project.predict, MASK: project.postprocess, _TABLE: evaluates}
    outputs = [name for name, is_asked in flags.items() if is_asked]
    picks = [project.class_name] if project.postprocess else []
    places = {name: each.places() for name, each in steps.items()}
    inputs = {one.name: str(one.path.absolute()) for one in project.tomograms}
    return DatasetPlan(
        project.output, dict.fromkeys(steps, outputs), picks, places=places,
        facts={"config": project.values, "inputs": inputs},
    )  # fmt: skip


def plan_3d(project: Project3D) -> list[str]:
    """Return which files a run makes."""
    motl = " and motl_<N>.csv" if project.calculate_motl else ""
    lines = []
    for tomogram in project.tomograms:
        folder = project.output / project.place(tomogram)
        lines += [f"{tomogram.name}: {folder / MAP}"] * project.predict
        lines += [f"{tomogram.name}: {folder / MASK}{motl}"] * project.postprocess
        if project.evaluate_picks or project.evaluate_mask:
            lines.append(f"{tomogram.name}: rows of {project.output / _TABLE}")
    return lines


@dataclass(frozen=True)
class _Steps:
    """The steps of one tomogram."""

    maker: Maker
    project: Project3D
    tomogram: Tomogram3D

    @property
    def folder(self) -> Path:
        """Where DeePiCt puts this tomogram's results."""
        return self.project.output / self._place

    @property
    def work(self) -> Path:
        """Where the intermediate stores are: configs that share a work_dir share none of them."""
        output = str(self.project.output.absolute())
        return self.project.work / request_key({"output": output})[:12] / self._place

    @property
    def _place(self) -> Path:
        return self.project.place(self.tomogram)

    def places(self) -> dict[str, OutputPlace]:
        """Return where outputs are and are made."""
        folder, work = self.folder.absolute(), self.work.absolute()
        return {
            MAP: OutputPlace(folder / MAP, work / "scores.zarr.partial"),
            MASK: OutputPlace(folder / MASK, work / "picks.partial"),
            _TABLE: OutputPlace(note_path(folder / "pp_statistics"), work / "statistics.partial"),
        }

    def run(self) -> dict[str, int]:
        """Do what is active; return how many picks there are, by class."""
        counts = {}
        if not self.maker.resume:
            clear_work(self.work)
        if self.project.predict:
            self.predict()
        if self.project.postprocess:
            counts[self.project.class_name] = self.postprocess()
        if self.project.evaluate_picks or self.project.evaluate_mask:
            evaluate_tomogram(self.maker, self.project, self.tomogram, self.folder)
            self.maker.made(_TABLE)
        clear_work(self.work)
        return counts

    def map_request(self) -> dict[str, Any]:
        """Return what a probability map depends on."""
        settings = self.project.segment_settings
        return {
            "output": MAP, "input": self.tomogram.path, "model": self.project.model,
            "settings": settings.model_dump(mode="json", exclude={"model"}),
            "region": self.tomogram.region,
        }  # fmt: skip

    def predict(self) -> None:
        """Make the probability map."""
        name, request = self.tomogram.name, self.map_request()
        self.maker.make(name, self.folder / MAP, request, self._predict)

    def _predict(self, target: Path) -> Made:
        """Predict into a store, then write the file."""
        settings, region = self.project.segment_settings, self.tomogram.region
        return through_store(
            self.work / "scores.zarr",
            key_of(self.map_request()),
            lambda store: segment_volume(
                self.maker.session, self.tomogram.path, store, settings, region=region
            ),
            target,
        )

    def postprocess(self) -> int:
        """Make the mask and the particle list; return how many particles there are."""
        scores = self.folder / MAP
        if not scores.is_file():
            raise ConfigError(
                f"{scores}: expected a probability map to post-process, found none; "
                "set prediction.active to True"
            )
        if not self.project.predict:
            self._warn_of_old_map(scores)
        settings = self.project.pick_settings(with_region=self.tomogram.region is not None)
        request = {
            "output": MASK, "input": scores, "region": self.tomogram.region,
            "settings": settings.model_dump(mode="json"), "motl": self.project.calculate_motl,
        }  # fmt: skip
        noted = self.maker.make(self.tomogram.name, self.folder / MASK, request, self._postprocess)
        return int(noted["n_picks"])

    def _postprocess(self, target: Path) -> Made:
        """Pick into the work folder; take over the mask and the particle list."""
        set_aside_motls(target.parent)
        region, picks = self.tomogram.region, self.work / "picks"
        report = pick_particles(
            self.maker.session,
            self.folder / MAP,
            picks,
            self.project.pick_settings(with_region=region is not None),
            regions=None if region is None else {REGION: region},
            tomogram_name=self.tomogram.name,
        )
        export_float32(picks / "segmentation.zarr", target)
        motl = target.with_name(f"motl_{report.n_picks}.csv")
        if self.project.calculate_motl:
            shutil.copyfile(picks / "motl.csv", motl)
        shutil.rmtree(picks)
        also = (motl,) if self.project.calculate_motl else ()
        return Made(also, {"n_picks": report.n_picks})

    def _warn_of_old_map(self, scores: Path) -> None:
        """Warn where a map of ours that is used as it is was made of something else."""
        noted = read_note(scores)
        known = noted and self.project.model.is_file()
        if known and noted.get("key") != key_of(self.map_request()):
            log.warning(
                "%s: was made with another model, tomogram or settings than the config's; it is "
                "used as it is, since prediction.active is False", scores,
            )  # fmt: skip
