"""How fast mean shift is beside scikit-learn, and over as many labelled voxels as a tomogram has.

Both find the centres of the same label volume with the same bandwidth: scikit-learn in a process of
its own, in memory, we from a store in 128^3 chunks, with all that `pick` writes. Its centres are
compared with ours to the last bit.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepict_dask.config import PickSettings
from deepict_dask.core.geometry import Box
from deepict_dask.io.volumes import open_volume
from deepict_dask.jobs.picking.pick import pick_particles
from deepict_dask.jobs.session import Session
from deepict_dask.particles.mean_shift import find_centres

from .measure import (
    NOT_INSTALLED,
    Peaks,
    in_process,
    installed,
    rate,
    repeated_store,
    store,
    timed,
)

if TYPE_CHECKING:
    from deepict_dask.core.geometry import Vec
    from deepict_dask.engine import Workers

_BANDWIDTH = 5.0
Labels = np.ndarray[Any, np.dtype[np.int8]]


def ball_labels(shape: Vec, fraction: float, seed: int = 0) -> Labels:
    """Return balls of radius 4 and 6 (classes 1 and 2) over about this fraction of the voxels."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.int8)
    n_wanted = int(fraction * labels.size)
    n_set = 0
    while n_set < n_wanted:
        label = int(rng.integers(1, 3))
        radius = 2 + 2 * label
        offsets = np.indices((2 * radius + 1,) * 3) - radius
        ball = (offsets**2).sum(axis=0) <= radius**2
        centre = [int(rng.integers(radius, size - radius)) for size in shape]
        part = labels[tuple(slice(c - radius, c + radius + 1) for c in centre)]
        n_set += int(np.count_nonzero(ball & (part == 0)))
        part[ball] = label
    return labels


def _scikit_learn(path: str) -> tuple[float, Any]:
    """Return seconds and centres: the body of a process."""
    from sklearn.cluster import MeanShift

    reader = open_volume(path)
    voxels = np.stack(np.nonzero(reader.read(Box.whole(reader.header.shape))), axis=1)
    seconds, found = timed(MeanShift(bandwidth=_BANDWIDTH, bin_seeding=True).fit, voxels)
    return seconds, found.cluster_centers_


def run(workers: Workers, *, small: bool) -> dict[str, Any]:
    """Measure a small volume side by side, and a large one alone."""
    shape, large, tile = (
        ((48, 64, 64), (96, 128, 128), 64) if small else ((128, 192, 192), (512, 1024, 1024), 128)
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        labels = ball_labels(shape, 0.03)
        path = store(folder / "labels.zarr", labels)
        rows = [_ours(workers, path, folder / "warm"), _ours(workers, path, folder / "picks")][1:]
        alone, centres = timed(find_centres, labels, _BANDWIDTH)
        n = int(np.count_nonzero(labels))
        rows.append(["the same centres in memory", n, alone, rate(n, alone), None, len(centres)])
        result: dict[str, Any] = {"same centres as scikit-learn": NOT_INSTALLED}
        if installed("sklearn"):
            (seconds, expected), peak = in_process(_scikit_learn, str(path))
            result = {
                "same centres as scikit-learn": bool(np.array_equal(centres, expected)),
                "scikit-learn / ours, in memory": round(seconds / alone, 1),
                "scikit-learn / ours, all of pick": round(seconds / rows[0][2], 1),
            }
            rows.append(["scikit-learn", n, seconds, rate(n, seconds), peak, len(expected)])
        cube = ball_labels((tile,) * 3, 0.038, seed=1)
        path = repeated_store(folder / "large.zarr", large, cube)
        rows.append(_ours(workers, path, folder / "large"))
    return {
        "name": "mean shift: centres of a label volume, bandwidth 5",
        "shapes": [shape, large],
        **result,
        "rates": {
            "columns": [
                "what", "labelled voxels", "seconds", "Mvox/s", "peak MiB of a process", "centres",
            ],
            "rows": rows,
        },
    }  # fmt: skip


def _ours(workers: Workers, path: Path, target: Path) -> list[Any]:
    """Pick; return the figures of a row."""
    settings = PickSettings(method="mean-shift", bandwidth=_BANDWIDTH)
    with Peaks(workers) as peaks:
        seconds, report = timed(pick_particles, Session(workers), path, target, settings)
    n = int(sum(_sizes(target)))
    name = f"deepict-dask, all of pick, {n / 1e6:.2g} million"
    return [name, n, seconds, rate(n, seconds), peaks.mib, report.n_picks]


def _sizes(target: Path) -> list[int]:
    """Return the sizes of all objects of a pick folder."""
    from deepict_dask.io.picks import read_picks

    sizes: list[int] = read_picks(target / "picks.csv")["n_voxels"].astype(int).tolist()
    return sizes
