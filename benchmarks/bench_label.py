"""What labels, statistics and picks of a stored score map cost, beside scipy in memory.

Larger volumes repeat one stored tile of smooth noise that is periodic, so that clusters grow over
the tiles' borders: 2 Gvox are read as from a file, and no disk holds them.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import gaussian_filter, label

from deepict_dask.config import PickSettings
from deepict_dask.core.geometry import Box, Grid, Vec, as_vec
from deepict_dask.engine import SpillFolder, map_chunks, reduce_chunks
from deepict_dask.io.volumes import open_volume
from deepict_dask.jobs.picking.clusters import ClusterTables, gather_clusters
from deepict_dask.jobs.picking.job import SpilledNames
from deepict_dask.jobs.picking.outputs import write_tables
from deepict_dask.labelling import LabelReduction, RelabelOp, SelectSettings
from deepict_dask.labelling.measure import score_unit

from .measure import MIB, forget_peak, peak_bytes, store

if TYPE_CHECKING:
    from deepict_dask.core.volume import VolumeHeader, VolumeReader

Scores = np.ndarray[Any, np.dtype[np.float32]]

SELECT = SelectSettings(threshold=0.5)


def score_map(shape: tuple[int, int, int], density: float) -> Scores:
    """Return smooth periodic float32 noise with this fraction of voxels above 0.5."""
    noise = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    smooth = gaussian_filter(noise, 1.5, mode="wrap")
    level = np.quantile(smooth[::4, ::4, ::4], 1 - density)
    scores: Scores = (smooth - level + 0.5).astype("float32")
    return scores


def lone_voxels(shape: tuple[int, int, int]) -> Scores:
    """Return scores of one-voxel clusters: 3 million in 256 x 512 x 512 voxels."""
    rng = np.random.default_rng(1)
    corners = [
        np.arange(0, size - step + 1, step) for size, step in zip(shape, (2, 3, 3), strict=True)
    ]
    z, y, x = (axis.ravel() for axis in np.meshgrid(*corners, indexing="ij"))
    y, x = y + rng.integers(0, 2, y.shape), x + rng.integers(0, 2, x.shape)
    kept = rng.random(len(z)) < 0.82
    score = np.zeros(shape, np.float32)
    score[z[kept], y[kept], x[kept]] = rng.uniform(0.6, 1, np.count_nonzero(kept))
    return score


@dataclass(frozen=True)
class RepeatedReader:
    """A volume that repeats another one, whose size is whole chunks."""

    tile: VolumeReader
    shape: Vec
    path: str = "a repeated volume"

    @property
    def header(self) -> VolumeHeader:
        """Of the repeated volume."""
        return replace(self.tile.header, shape=self.shape)

    def read(self, box: Box) -> Scores:
        """Return a box that lies in one tile."""
        sizes = zip(box.start, self.tile.header.shape, strict=True)
        return self.tile.read(box.shift(as_vec([start % size - start for start, size in sizes])))


@dataclass(frozen=True)
class Nowhere:
    """A volume writer that writes nothing: the cost of a disk is not what is measured."""

    header: VolumeHeader
    write_shape: Vec
    path: str = "nowhere"

    def write(self, box: Box, array: np.ndarray[Any, Any]) -> None:
        """Forget an array."""


class Usage:
    """CPU time and peak memory of the driver and the workers from here on."""

    def __init__(self, workers: Any) -> None:
        self._workers = workers
        self._seconds = self._cpu_seconds()
        for pid in self._seconds:
            forget_peak(pid)

    def _cpu_seconds(self) -> dict[int, float]:
        """Ask each process once: threads are workers of this one."""
        return dict([_process_seconds(), *self._workers.client.run(_process_seconds).values()])

    def seconds(self) -> float:
        """Return the CPU seconds of all processes."""
        return sum(now - self._seconds[pid] for pid, now in self._cpu_seconds().items())

    def worker_peak_mib(self) -> float:
        """Return the largest resident size of a worker; of this process if they are threads."""
        pids = set(self._workers.client.run(os.getpid).values())
        return max(peak_bytes(pid) for pid in pids) / MIB

    def driver_peak_mib(self) -> float:
        """Return the largest resident size of this process."""
        return peak_bytes(os.getpid()) / MIB


def _process_seconds() -> tuple[int, float]:
    return os.getpid(), time.process_time()


def label_and_pick(workers: Any, reader: VolumeReader, grid: Grid, folder: Path) -> dict[str, Any]:
    """Label and write all tables; return CPU seconds and peaks of each step."""
    spill = SpillFolder(str(folder / "nodes"))
    (folder / "nodes").mkdir(parents=True)
    reduction = LabelReduction(reader.header.shape, SELECT)
    usage = Usage(workers)
    root = reduce_chunks(workers, reduction, [reader], grid, spill=spill)
    found: dict[str, Any] = {"label": usage.seconds(), "worker": usage.worker_peak_mib()}
    usage = Usage(workers)
    clusters = gather_clusters(folder / "nodes", spill.files("kept"), 0)
    unit = score_unit("float32")
    write_tables(
        folder, ClusterTables(clusters, None, folder / "nodes", unit), reader.header,
        PickSettings(), request={}, tomogram_name="t", inputs={}, started=datetime.now(UTC),
    )  # fmt: skip
    found |= {"picks": usage.seconds(), "driver": usage.driver_peak_mib(), "n": root.n_finished}
    usage = Usage(workers)
    names = SpilledNames(spill, grid.counts, clusters.names)
    sink = Nowhere(reader.header, grid.write_shape)
    map_chunks(workers, RelabelOp(grid.shape, SELECT, names), [reader], sink, grid)
    return found | {"again": usage.seconds(), "worker again": usage.worker_peak_mib()}


def beside_scipy(workers: Any, score: Scores, reader: VolumeReader, folder: Path) -> dict[str, Any]:
    """Measure once to warm up and three times to count; the best of three."""
    grid = Grid(score.shape, as_vec([min(128, n) for n in score.shape]))
    ours, theirs, n = [], [], (0, 0)
    for i in range(4):
        found = label_and_pick(workers, reader, grid, folder / f"{i}")
        start = time.process_time()
        _, n_scipy = label(score > 0.5, structure=np.ones((3, 3, 3)))
        theirs.append(time.process_time() - start)
        ours.append((found["label"], found["label"] + found["picks"]))
        n = (found["n"], n_scipy)
    labelled, picked = (min(times) for times in zip(*ours[1:], strict=True))
    return {
        "clusters (ours, scipy)": n,
        "CPU time, label / scipy.ndimage.label in memory": round(labelled / min(theirs), 2),
        "CPU time, label and picks / the same": round(picked / min(theirs), 2),
    }


def sized(
    workers: Any, tile: VolumeReader, repeats: Vec, folder: Path, name: str
) -> dict[str, Any]:
    """Return what a volume of some tiles costs, per Gvox and per cluster."""
    pairs = zip(repeats, tile.header.shape, strict=True)
    reader = RepeatedReader(tile, as_vec([n * size for n, size in pairs]))
    grid = Grid(reader.shape, as_vec([min(128, n) for n in tile.header.shape]))
    found = label_and_pick(workers, reader, grid, folder)
    gvox = reader.header.n_voxels / 1e9
    name = f"{name}, {gvox:.3g} Gvox, {found['n']} clusters"
    return {
        f"{name}: label, CPU s per Gvox": round(found["label"] / gvox, 2),
        f"{name}: write them, CPU s per Gvox": round(found["again"] / gvox, 2),
        f"{name}: tables, CPU µs per cluster": round(1e6 * found["picks"] / found["n"], 2),
        f"{name}: worker peak, MiB": round(max(found["worker"], found["worker again"]), 1),
        f"{name}: driver peak in tables, MiB": round(found["driver"], 1),
    }


def run(workers: Any, *, small: bool) -> dict[str, Any]:
    """Compare with scipy, then see whether cost and memory stay flat as volumes grow."""
    shape = (64, 96, 96) if small else (256, 512, 512)
    sizes = [(1, 1, 1), (1, 1, 2)] if small else [(1, 1, 1), (1, 2, 2), (2, 4, 4)]
    score = score_map(shape, 0.1)
    result: dict[str, Any] = {
        "name": "label: threshold, label, statistics and picks of a stored score map",
        "shape": shape,
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tile = open_volume(store(folder / "smooth.zarr", score))
        result |= beside_scipy(workers, score, tile, folder)
        del score
        for repeats in sizes:
            result |= sized(workers, tile, repeats, folder / f"smooth{repeats}", "smooth")
        lone = open_volume(store(folder / "lone.zarr", lone_voxels(shape)))
        return result | sized(workers, lone, (1, 1, 1), folder / "lone", "lone voxels")
