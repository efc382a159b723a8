"""A tomogram and 3D models to picks in one pass: the score maps are never stored.

One task per window reads the tomogram (and region masks), runs the networks, chooses the voxels of
each pick section, labels and measures them. Of the scores there remain the clusters' rows, and one
byte a voxel that says which voxels were chosen, for the pass that writes the segmentation. What
follows is in `job.py`, as for stored scores, and the picks are the same.

Another threshold means another pass of the networks: to try settings, store the score maps.
After a kill the windows that were finished are not predicted again (`kept_leaves.py`).
"""

from __future__ import annotations

import itertools
import logging
import shutil
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import __version__
from ...core.errors import ConfigError
from ...core.geometry import Grid
from ...core.statistics import StatisticsReduction
from ...engine import SpillFolder, StagedOutput, fingerprint, reduce_chunks, request_key
from ...io.ome_zarr_write import resume_ome_zarr
from ..segmenting.chosen_model import choose_model
from ..segmenting.windows import choose_grid, joint_op, measured_op, open_tomogram
from .job import LabelledVoxels, PickJob, select_settings
from .kept_leaves import KeptLeaves, open_leaves
from .outputs import PICK_FILES, PickReport
from .predict_and_label import LabelledChannel, PredictAndLabel, SectionNodes
from .regions import open_regions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ...config import PickSettings, SegmentSettings
    from ...core.statistics import StatisticsPartial
    from ...core.volume import VolumeReader, VolumeWriter
    from ...engine import Ledger
    from ..segmenting.chosen_model import ChosenModel
    from ..session import Session
    from .predict_and_label import PredictedNodes

__all__ = ["PickSection", "pick_predicted"]

log = logging.getLogger("deepict_dask")


@dataclass(frozen=True)
class PickSection:
    """What one folder of picks is made of."""

    model: SegmentSettings
    """A 3D model, without ``compat``."""
    settings: PickSettings
    """Without ``compat``."""
    regions: Mapping[str, Path]
    """Mask files by the names of their regions."""


def pick_predicted(
    session: Session, source: Path, wanted: Mapping[Path, PickSection], *, tomogram_name: str
) -> dict[Path, PickReport]:
    """Predict, threshold, label and pick, for several folders of picks at once.

    Parameters
    ----------
    session
        Workers and wishes.
    source
        Tomogram.
    wanted
        For each folder to make what it is made of; the files are those of `pick_particles`.
    tomogram_name
        Name in the STAR files.

    Returns
    -------
    dict
        For each folder what was made.

    Raises
    ------
    ModelFileError, ConfigError
        A file is no 3D model, or lacks the class of a section.
    VoxelValueError, ShapeMismatchError, SpacingError, OutputExistsError
        As `pick_particles`.
    BudgetError
        No window fits a worker.
    """
    started = datetime.now(UTC)
    source = source.absolute()  # workers may run in another folder
    models = {p.model: choose_model(p.model) for p in wanted.values()}
    requests = {t: _request(session, source, p, models[p.model]) for t, p in wanted.items()}
    with ExitStack() as stack:
        staged = {
            t: stack.enter_context(
                StagedOutput(t, request_key(r), overwrite=session.overwrite, own=PICK_FILES)
            )
            for t, r in requests.items()
        }
        folder = next(iter(staged.values())).folder
        reader = open_tomogram(session, source, folder / "scratch", list(models.values()))
        jobs = {t: _open_job(session, staged[t].folder, reader, p) for t, p in wanted.items()}
        first = next(iter(staged.values()))
        one_pass = _OnePass(session, folder / "pass", reader, models, list(wanted.values()))
        # leaves are pickled, so those of another version of this program are not read
        parts = {target.name: one.key for target, one in staged.items()}
        key = request_key({"parts": parts, "version": __version__})
        voxels, ranges = one_pass.run(list(jobs.values()), first, key)
        reports = {}
        for i, (target, job) in enumerate(jobs.items()):
            report = job.finish(
                job.gather(voxels[i], partial(StatisticsReduction().finalize, ranges[i])),
                voxels[i],
                request={**requests[target], "key": staged[target].key},
                tomogram_name=tomogram_name,
                inputs=_inputs(source, wanted[target], models),
                started=started,
            )
            reports[target] = replace(report, folder=target)
        one_pass.clean()
        for target, job in jobs.items():
            job.clean()
            staged[target].commit()
    return reports


def _inputs(
    source: Path, section: PickSection, models: Mapping[SegmentSettings, ChosenModel]
) -> dict[str, Any]:
    """Return the paths of what one folder of picks is made of, for its record."""
    return {
        "tomogram": str(source),
        "model": models[section.model].path,
        "regions": {name: str(path) for name, path in section.regions.items()},
    }


def _request(
    session: Session, source: Path, section: PickSection, model: ChosenModel
) -> dict[str, Any]:
    """Return what is asked for."""
    return {
        "job": "segment and pick", "input": fingerprint(source), "model": model.sha256,
        "class": model.chosen, "names": model.class_names,
        "precision": section.model.precision,
        "average_flips": section.model.average_flips,
        "regions": [[n, fingerprint(path.absolute())] for n, path in section.regions.items()],
        "settings": section.settings.model_dump(mode="json"),
        "chunks": session.chunks, "spacing": session.voxel_spacing_angstrom,
    }  # fmt: skip


def _open_job(
    session: Session, folder: Path, tomogram: VolumeReader, section: PickSection
) -> PickJob:
    """Open the region masks and check that they fit the tomogram."""
    paths = {name: path.absolute() for name, path in section.regions.items()}
    fitted, masks = open_regions(
        session, tomogram, paths, section.settings, scratch=folder / "scratch"
    )
    header = replace(fitted.header, dtype="float32", class_names=())
    select = select_settings(section.settings, masks, header.shape, header.shape)
    return PickJob(session, folder, section.settings, tomogram.path, header, masks, select)


@dataclass(frozen=True)
class _OnePass:
    """The pass over the tomogram, for all sections."""

    session: Session
    folder: Path
    tomogram: VolumeReader
    models: Mapping[SegmentSettings, ChosenModel]
    sections: Sequence[PickSection]

    def run(
        self, jobs: Sequence[PickJob], staged: StagedOutput, key: str
    ) -> tuple[list[LabelledVoxels], tuple[StatisticsPartial, ...]]:
        """Return what was labelled for each section, and the range of its scores.

        Parameters
        ----------
        jobs
            One for each section.
        staged
            The output in whose partial folder the pass works: its ledger counts the windows.
        key
            Of the request of all sections.
        """
        shutil.rmtree(self.folder / "nodes", ignore_errors=True)  # of a run that was killed
        (self.folder / "nodes").mkdir(parents=True)
        for job in jobs:
            job.make_scratch()
        session, shape = self.session, self.tomogram.header.shape
        stacks = [masks for job in jobs for masks in job.masks.stack]
        reduction = self._reduction(jobs)
        grid = choose_grid(
            reduction, shape, session.chunks, session.workers.memory_of(reduction),
            many_tomograms=session.many_tomograms, device_bytes=session.device_bytes(),
        )  # fmt: skip
        op = measured_op(session, self.tomogram, reduction.op, grid)
        writers, kept = self._resumed(jobs, request_key({"request": key, "grid": repr(grid)}), grid)
        reduction = replace(reduction, op=op, writers=writers)
        leaves = KeptLeaves(reduction, str(self._leaves), kept)
        with (
            staged.open_ledger(grid) as ledger,
            session.progress.stage(reduction.name, grid.n_blocks) as advance,
        ):
            root: PredictedNodes = reduce_chunks(
                session.workers, leaves, [self.tomogram, *stacks], grid,
                spill=SpillFolder(str(self.folder / "nodes")), on_done=_counted(ledger, advance),
            )  # fmt: skip
        blocks = Grid(shape, grid.write_shape)
        nodes = str(self.folder / "nodes")
        return [
            LabelledVoxels(
                Path(writer.path), blocks, SectionNodes(nodes, section=i), root.nodes[i].n_finished
            )
            for i, writer in enumerate(writers)
        ], root.ranges

    @property
    def _leaves(self) -> Path:
        return self.folder / "leaves"

    def _resumed(
        self, jobs: Sequence[PickJob], key: str, grid: Grid
    ) -> tuple[tuple[VolumeWriter, ...], frozenset[int]]:
        """Return where each section notes the voxels it chooses, and which windows are there."""
        folders = [self.folder / f"chosen{i}" for i in range(len(jobs))]
        stores = [next(folder.glob("*.zarr"), folder / "none.zarr") for folder in folders]
        kept = open_leaves(self._leaves, key, grid, stores)
        if not kept:
            return tuple(job.mask_writer(to) for job, to in zip(jobs, folders, strict=True)), kept
        log.info("%s: %d of %d windows are kept", self.tomogram.path, len(kept), grid.n_blocks)
        chunks = self.session.chunks
        writers = [
            resume_ome_zarr(store, replace(job.header, dtype="uint8"), chunks=chunks)
            for store, job in zip(stores, jobs, strict=True)
        ]
        return tuple(writers), kept

    def _reduction(self, jobs: Sequence[PickJob]) -> PredictAndLabel:
        """Say what each section takes from the networks' channels and the sources."""
        op = joint_op(self.models, self.session.device)
        firsts = dict(zip(self.models, accumulate(op.channels, initial=0), strict=False))
        sections, n_sources = [], 1
        for job, section in zip(jobs, self.sections, strict=True):
            n_stacks = len(job.masks.stack)
            channel = firsts[section.model] + _channel(self.models[section.model], section.settings)
            place = n_sources if n_stacks else None
            sections.append(LabelledChannel(channel, job.reduction(), place))
            n_sources += n_stacks
        return PredictAndLabel(op, tuple(sections), jobs[0].grid.write_shape)

    def clean(self) -> None:
        """Remove the nodes, the leaves and the chosen voxels."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _counted(ledger: Ledger, advance: Callable[[int], None]) -> Callable[[int], None]:
    """Return what is told of windows that ended: as many are marked, for those who count them.

    Which ones these are their files say; what is found there is told again, window by window.
    """
    ledger.settle(())
    numbers = itertools.count()

    def told(n: int) -> None:
        for number in itertools.islice(numbers, n):
            ledger.mark(number)
        advance(n)

    return told


def _channel(model: ChosenModel, settings: PickSettings) -> int:
    """Return the channel, of those of a model, that a pick section takes."""
    names = model.class_names
    if not names:
        return 0
    if settings.class_name not in names:
        raise ConfigError(
            f"{model.name}: expected one of the classes {', '.join(names)} to pick, "
            f"found {settings.class_name}"
        )
    return names.index(settings.class_name)
