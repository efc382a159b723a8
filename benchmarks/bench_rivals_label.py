"""How fast others and we label and measure one stored score map, one after another.

Each rival has a process of its own, reads the same store, thresholds, labels with 26 neighbours and
counts the voxels of each cluster. dask-image works on 128^3 chunks, as we do.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepict_dask.config import PickSettings
from deepict_dask.jobs.picking.pick import pick_particles
from deepict_dask.jobs.session import Session

from .bench_label import score_map
from .measure import NOT_INSTALLED, Peaks, in_process, installed, rate, store, timed, timed_read

if TYPE_CHECKING:
    from collections.abc import Callable

    from deepict_dask.engine import Workers

_THRESHOLD = 0.5
_CUBE = np.ones((3, 3, 3))
_OURS = "deepict-dask, all of pick"


def _scipy(chosen: Any) -> tuple[Any, int]:
    from scipy import ndimage

    labels, n = ndimage.label(chosen, structure=_CUBE)
    return labels, int(n)


def _cc3d(chosen: Any) -> tuple[Any, int]:
    import cc3d

    labels, n = cc3d.connected_components(
        chosen.view(np.uint8), connectivity=26, binary_image=True, return_N=True
    )
    return labels, int(n)


def _skimage(chosen: Any) -> tuple[Any, int]:
    from skimage.measure import label

    labels, n = label(chosen, connectivity=3, return_num=True)
    return labels, int(n)


_IN_MEMORY: dict[str, tuple[str, Callable[[Any], tuple[Any, int]]]] = {
    "scipy.ndimage.label": ("scipy", _scipy),
    "cc3d": ("cc3d", _cc3d),
    "scikit-image": ("skimage", _skimage),
}


@dataclass(frozen=True)
class Measured:
    """What one rival took, in seconds, and the sorted sizes of the clusters it found."""

    all_s: float
    """Reading, threshold, labels, sizes."""
    computing_s: float
    """The same without reading."""
    label_s: float
    """Labels alone."""
    sizes: tuple[int, ...]


def _in_memory(path: str, name: str) -> Measured:
    """Let a rival work in memory: the body of its process."""
    reading, score = timed_read(path)
    threshold, chosen = timed(lambda: score > _THRESHOLD)
    labelling, (labels, n) = timed(_IN_MEMORY[name][1], chosen)
    counting, counts = timed(lambda: np.bincount(labels.ravel(), minlength=n + 1)[1:])
    computing = threshold + labelling + counting
    return Measured(reading + computing, computing, labelling, tuple(sorted(counts.tolist())))


def _dask_image(path: str, chunk: int, n_threads: int) -> tuple[float, int]:
    """Return seconds with reading, and the number of clusters: the body of a process."""
    import dask
    import dask.array as da
    from dask_image import ndmeasure

    def label_and_sum() -> int:
        score = da.from_zarr(path, component="0").rechunk((chunk,) * 3)
        labels, n = dask.persist(*ndmeasure.label(score > _THRESHOLD, structure=_CUBE))
        numbers = np.arange(1, int(n.compute()) + 1)
        # A task per label and chunk: the sizes of a few take seconds, of all hours.
        some = numbers[:: max(1, len(numbers) // 20)]
        ndmeasure.sum_labels(da.ones_like(labels), labels, some).compute()
        return len(numbers)

    with dask.config.set(scheduler="threads", num_workers=n_threads):
        return timed(label_and_sum)


def run(workers: Workers, *, small: bool) -> dict[str, Any]:
    """Measure rivals and us in turn, three times over; the best time of each counts."""
    shape, chunk, rounds = ((64, 96, 96), 48, 1) if small else ((256, 512, 512), 128, 3)
    n = int(np.prod(shape))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        path = str(store(folder / "s.zarr", score_map(shape, 0.1)))
        _ours(workers, folder)  # once to warm up
        found: dict[str, list[Measured]] = {}
        peaks: dict[str, float] = {}
        mine: list[tuple[float, float, tuple[int, ...]]] = []
        for _ in range(rounds):
            for name in filter(lambda name: installed(_IN_MEMORY[name][0]), _IN_MEMORY):
                measured, peak = in_process(_in_memory, path, name)
                found.setdefault(name, []).append(measured)
                peaks[name] = max(peak, peaks.get(name, 0.0))
            mine.append(_ours(workers, folder))
        chunked = _dask_image_row(path, n, chunk, workers.n_workers)
    rows = [_row(name, n, found.get(name, []), peaks.get(name)) for name in _IN_MEMORY]
    seconds, peak, sizes = min(mine)
    n_clusters = len(sizes)
    rows += [chunked, [_OURS, rate(n, seconds), None, max(m[1] for m in mine), n_clusters]]
    answers = {one.sizes for measured in found.values() for one in measured}
    alone = min(one.label_s for one in found["scipy.ndimage.label"])
    return {
        "name": "rivals, labelling: a stored score map, 26 neighbours, 10 % of voxels",
        "shape": shape,
        "clusters": n_clusters,
        "time of ours, all of pick / of scipy.ndimage.label alone in memory": round(
            seconds / alone, 3
        ),
        "in-memory rivals agree on every cluster's size": len(answers) == 1,
        "largest difference of a cluster's size, ours from theirs": ", ".join(
            str(_largest_difference(sizes, whole)) for whole in sorted(answers)
        ),
        "ours / rival, reading included (above 1: we are faster)": {
            row[0]: round(rate(n, seconds) / row[1], 3)
            for row in rows[:-1]
            if isinstance(row[1], float)
        },
        "rates": {
            "columns": [
                "what", "Mvox/s from store", "Mvox/s without reading and writing",
                "peak MiB of a process", "clusters",
            ],
            "rows": rows,
        },
    }  # fmt: skip


def _row(name: str, n: int, measured: list[Measured], peak: float | None) -> list[Any]:
    """Return the best figures of a rival that works in memory."""
    if not measured:
        return [name, NOT_INSTALLED, None, None, None]
    best = min(one.all_s for one in measured), min(one.computing_s for one in measured)
    return [name, rate(n, best[0]), rate(n, best[1]), peak, len(measured[0].sizes)]


def _dask_image_row(path: str, n: int, chunk: int, n_threads: int) -> list[Any]:
    """Return the figures of dask-image, measured once: it takes its time."""
    name = f"dask-image label + sum_labels of 20 labels, {chunk}^3 chunks"
    if not installed("dask_image"):
        return [name, NOT_INSTALLED, None, None, None]
    (seconds, n_clusters), peak = in_process(_dask_image, path, chunk, n_threads)
    return [name, rate(n, seconds), None, peak, n_clusters]


def _largest_difference(ours: tuple[int, ...], whole: tuple[int, ...]) -> int | str:
    """Compare clusters in the order of their sizes with those of the whole volume."""
    if len(ours) != len(whole):
        return f"{len(ours)} clusters, not {len(whole)}"
    return max((abs(a - b) for a, b in zip(ours, whole, strict=True)), default=0)


def _ours(workers: Workers, folder: Path) -> tuple[float, float, tuple[int, ...]]:
    """Pick; return seconds (tables, lists, segmentation included), peak MiB, sorted sizes."""
    import pandas as pd

    session = Session(workers, overwrite=True)
    settings = PickSettings(threshold=_THRESHOLD)
    with Peaks(workers) as peaks:
        seconds, _ = timed(pick_particles, session, folder / "s.zarr", folder / "picks", settings)
    sizes = pd.read_parquet(folder / "picks" / "clusters.parquet", columns=["n_voxels"])
    return seconds, peaks.mib, tuple(sorted(sizes["n_voxels"].tolist()))
