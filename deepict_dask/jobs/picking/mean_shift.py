"""Mean shift over a volume: paths from chunk to chunk, then the voxels of each centre.

1. Each chunk starts its paths and moves them as far as its window reaches (`ModeReduction`).
2. Those that leave are handed to the chunks they have reached, until all have ended.
3. The centres that are left go to a file, and a second pass counts which voxels are theirs.

What is held here is one row for each path, never a voxel.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ...engine.arrays import naming, read_windows, run_each, task_key
from ...io.picks_table import make_picks
from ...particles.class_labels import ClassLabels
from ...particles.mean_shift import PATH_DTYPE, ModeReduction, centres_of, owners_of
from ...particles.mean_shift_members import MemberReduction, large_enough, objects_of
from .method_sources import BACKGROUND

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from ...core.geometry import Block
    from ...core.volume import VolumeReader
    from .method_sources import MethodSources

__all__ = ["go_on", "mean_shift_picks"]

Array = np.ndarray[Any, Any]


def mean_shift_picks(job: MethodSources) -> pd.DataFrame:
    """Return the centres that are large enough, the densest first.

    The score is the mean score of a centre's voxels; of a label volume, their number.
    """
    labels, settings = _labels(job), job.settings
    bandwidth = settings.bandwidth or 0.0
    centres = centres_of(_modes(job, labels, bandwidth), bandwidth)
    path = job.scratch / "centres.npy"
    np.save(path, centres)
    if len(centres) == 0:
        return _table(job, objects_of(centres, job.reduce(MemberReduction(labels, str(path), 0))))
    members = job.reduce(MemberReduction(labels, str(path), len(centres)))
    objects = objects_of(
        centres,
        members,
        scored=not job.is_label_volume,
        first_only=settings.compat == "deepfinder",
    )
    kept = large_enough(objects, settings.min_size, _least_sizes(job))
    if settings.max_size is not None:
        kept &= objects["n_voxels"] <= settings.max_size
    return _table(job, objects[kept])


def _labels(job: MethodSources) -> ClassLabels:
    """Return how labels are made of the sources, of which one may be the background's."""
    s = job.settings
    item_bytes = sum(np.dtype(source.header.dtype).itemsize for source in job.sources)
    background = [i for i, name in enumerate(job.names, 1) if name.lower() == BACKGROUND]
    limits: float | tuple[float, ...] = job.thresholds() if s.thresholds else s.threshold
    label = s.label_value
    if s.argmax:
        limits = -math.inf
        label = None if s.class_name is None else job.label_of(s.class_name)
    return ClassLabels(
        None if job.is_label_volume else limits,
        label,
        background[0] if background else None,
        bytes_per_voxel=item_bytes + 12,
    )


def _modes(job: MethodSources, labels: ClassLabels, bandwidth: float) -> Array:
    """Return the paths that have ended, of all chunks."""
    for binned in (True, False):
        op = ModeReduction(job.header.shape, labels, bandwidth, binned)
        nodes = job.nodes(f"modes_{'binned' if binned else 'voxels'}")
        found = job.reduce(op, nodes)
        if found.n_bins < found.n_voxels or found.n_voxels == 0:
            break  # else every voxel has a bin of its own: paths then start at the voxels
    none = np.zeros(0, PATH_DTYPE)
    leaving = np.concatenate([none, *nodes.load_all("leaving")])
    ended = [none, *nodes.load_all("modes")]
    while len(leaving):
        done, leaving = _handed_over(job, op, leaving)
        ended.append(done)
    return np.concatenate(ended)


def _handed_over(job: MethodSources, op: ModeReduction, paths: Array) -> tuple[Array, Array]:
    """Move paths in the chunks they have reached; return those that ended, and that left again."""
    grid = job.grid(op)
    owners = owners_of(paths, grid)
    parts = {number: paths[owners == number] for number in np.unique(owners).tolist()}

    workers = job.session.workers

    def submit(number: int) -> Any:
        return workers.client.submit(
            go_on, op, job.sources, grid[number], parts[number],
            pure=False, key=task_key(op.name, number), **workers.placed(),
        )  # fmt: skip

    moved = []
    with job.session.progress.stage(f"{op.name}, next chunks", len(parts)) as advance:
        for _, result in run_each(
            job.session.workers, submit, parts, stage=op.name, where=job.sources[0].path
        ):
            moved.append(result)
            advance(1)
    ended, leaving = zip(*moved, strict=True)
    return np.concatenate(ended), np.concatenate(leaving)


def go_on(
    op: ModeReduction, sources: Sequence[VolumeReader], block: Block, paths: Array
) -> tuple[Array, Array]:
    """Move the paths that have come to a chunk: the body of a task."""
    windows = read_windows(sources, block)
    with naming(sources[0].path):
        return op.go_on(block, paths, *windows)


def _least_sizes(job: MethodSources) -> dict[int, int]:
    """Return the smallest sizes by label."""
    return job.of_classes(job.settings.min_sizes, "min_sizes")


def _table(job: MethodSources, objects: Array) -> pd.DataFrame:
    """Return objects as picks."""
    return make_picks(
        np.stack([objects[name] for name in "zyx"], axis=1),
        objects["n_voxels"] if job.is_label_volume else objects["score"],
        n_voxels=objects["n_voxels"],
        label=np.arange(1, len(objects) + 1),
        class_name=[job.name_of(label) for label in objects["label"].tolist()],
    )
