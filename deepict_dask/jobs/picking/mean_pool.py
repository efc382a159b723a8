"""Mean-pooling non-maximum suppression over a volume.

Each chunk finds its picks; close ones are dropped once all are known. With ``compat: deepetpicker``
each tile of the published program is a task, and its way of dropping follows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.errors import ConfigError
from ...engine import check_budget
from ...engine.arrays import naming, read_windows, run_each, task_key
from ...io.picks_table import make_picks
from ...particles.deepetpicker_compat import TileSearch, drop_as_deepetpicker
from ...particles.label_range import LabelRange, LabelRangeReduction
from ...particles.mean_pool_nms import (
    PEAK_DTYPE,
    MeanPoolReduction,
    MeanPoolSettings,
    PeaksFound,
    keep_highest,
)
from .method_sources import BACKGROUND

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from ...core.geometry import Block
    from ...core.volume import VolumeReader
    from .method_sources import MethodSources

__all__ = ["mean_pool_picks", "search_tile"]

Array = np.ndarray[Any, Any]
_MOST_PEAKS = 2_000_000
"""Voxels with the highest mean around them; in a plateau all are. Each takes some 500 bytes."""
_MOST_LABELS = 64
"""Each is searched by itself."""


def mean_pool_picks(job: MethodSources) -> pd.DataFrame:
    """Return the picks, the highest first (with compat in the order of the tiles)."""
    s = job.settings
    thresholds = job.thresholds()  # refused where there are none
    labels = _labels_to_search(job) if job.is_label_volume else ()
    scored = [i for i, name in enumerate(job.names) if name.lower() != BACKGROUND] or [0]
    classes = labels or [i + 1 for i in scored]
    if len(s.diameters) > len(classes):
        raise ConfigError(
            f"diameters: expected one, or one for each of {len(classes)} classes, found "
            f"{len(s.diameters)}; give fewer"
        )
    sources = job.sources if labels else [job.sources[i] for i in scored]
    limits = () if labels else [thresholds[i] for i in scored]
    settings = MeanPoolSettings.of_diameters(
        s.diameters, s.threshold, labels=labels, thresholds=limits
    )
    search = _found_in_tiles if s.compat else _found_in_chunks
    rows = search(job, settings, sources)
    return make_picks(
        np.stack([rows[name] for name in "zyx"], axis=1),
        rows["value"],
        label=np.arange(1, len(rows) + 1),
        class_name=[job.name_of(classes[channel]) for channel in rows["channel"].tolist()],
    )


def _labels_to_search(job: MethodSources) -> tuple[int, ...]:
    """Return the labels that are wanted: one, those with names, or all that there are.

    Raises
    ------
    ConfigError
        There are more than classes of particles would be.
    """
    s = job.settings
    if s.label_value is not None:
        return (s.label_value,)
    if s.class_names:
        named = enumerate(s.class_names)
        return tuple(n for n, name in named if n > 0 and name.lower() != BACKGROUND)
    found: LabelRange = job.reduce(LabelRangeReduction())
    if found.highest - found.lowest >= _MOST_LABELS:
        raise ConfigError(
            f"{job.sources[0].path}: expected the labels of a few classes, found {found.lowest} to "
            f"{found.highest}; choose one with --label-value or name the classes with "
            "--class-names, or give --threshold if these are scores"
        )
    return tuple(range(max(1, found.lowest), max(1, found.highest) + 1))


def _found_in_chunks(
    job: MethodSources, settings: MeanPoolSettings, sources: Sequence[VolumeReader]
) -> Array:
    """Search chunk by chunk, and keep one of each group."""
    nodes = job.nodes("peaks")
    reduction = MeanPoolReduction(settings, job.session.device, len(sources))
    found: PeaksFound = job.reduce(reduction, nodes, sources)
    if found.n > _MOST_PEAKS:
        raise ConfigError(
            f"{job.sources[0].path}: expected highest means of particles, found {found.n}: above "
            "the threshold are solid regions larger than the diameter, where all means are equal; "
            "give a higher --threshold, or the diameter of the particles"
        )
    rows = np.concatenate([np.zeros(0, PEAK_DTYPE), *nodes.load_all("peaks")])
    return keep_highest(rows, settings.min_distance)


def _found_in_tiles(
    job: MethodSources, settings: MeanPoolSettings, sources: Sequence[VolumeReader]
) -> Array:
    """Search tile by tile, and drop close picks as DeepETPicker does."""
    workers = job.session.workers
    search = TileSearch(job.header.shape, settings)
    check_budget("mp-nms", search.bytes_needed, workers.memory_bytes)
    tiles = {tile.number: tile for tile in search.tiles()}

    def submit(number: int) -> Any:
        return workers.client.submit(
            search_tile, search, sources, tiles[number],
            pure=False, key=task_key("mp-nms", number), **workers.placed(),
        )  # fmt: skip

    found: dict[int, Array] = {}
    with job.session.progress.stage("mp-nms", len(tiles)) as advance:
        for number, rows in run_each(workers, submit, tiles, stage="mp-nms", where=sources[0].path):
            found[number] = rows
            advance(1)
    rows = np.concatenate([found[number] for number in tiles])
    return drop_as_deepetpicker(rows, settings.min_distance)


def search_tile(search: TileSearch, sources: Sequence[VolumeReader], tile: Block) -> Array:
    """Search one tile: the body of a task."""
    windows = read_windows(sources, tile)
    with naming(sources[0].path):
        return search.search(tile, windows)
