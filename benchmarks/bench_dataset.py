"""How much of a single tomogram's rate a dataset of small tomograms reaches, one or more at a time.

The rate to compare with is that of a run of one such tomogram (the best of three), and of one that
is larger: its begin and end count less, but its windows repeat more of their halo. Beside them:
what the process that holds the scheduler and the drivers grows by as tomograms come and go.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from deepict_dask.batch import tomograms_in_flight
from deepict_dask.config import PickSettings, RunConfig, SegmentSettings
from deepict_dask.jobs.segmenting.segment import segment_volume
from deepict_dask.jobs.session import Session
from deepict_dask.pipeline import run_pipeline

from .bench_run import _threshold
from .measure import MIB, model_3d, noise, rate, store, timed

if TYPE_CHECKING:
    from deepict_dask.core.geometry import Vec
    from deepict_dask.engine import Workers


class _Watch:
    """Notes what the process holds, and what the scheduler knows, each time a tomogram ends."""

    def __init__(self, workers: Workers) -> None:
        self._scheduler = workers.client.cluster.scheduler
        self.rows: list[list[Any]] = []

    def __call__(self, line: str) -> None:
        """Take a figure where the line is the last of a tomogram."""
        if ": " in line and " picks in " in line:
            mib = round(psutil.Process().memory_info().rss / MIB, 1)
            self.rows.append([len(self.rows) + 1, mib, len(self._scheduler.tasks)])


def _config(folder: Path, name: str, threshold: float, in_flight: int) -> RunConfig:
    return RunConfig.model_validate(
        {
            "tomograms": folder / f"{name}*.zarr",
            "output": folder / f"out_{name}_{in_flight}",
            "chunks": (64, 64, 64),
            "segment": [SegmentSettings(model=str(folder / "net.safetensors"))],
            "pick": [PickSettings(threshold=threshold, min_size=5)],
            "cluster": {"tomograms_in_flight": in_flight},
        }
    )


def run(workers: Workers, *, small: bool) -> dict[str, Any]:
    """Measure one large tomogram, then the dataset one by one and as it runs by default."""
    shape, large, n = ((24, 48, 48), (48, 48, 96), 4) if small else ((96, 160, 160), (192,) * 3, 24)
    default = tomograms_in_flight(workers.n_workers)
    session = Session(workers, overwrite=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model_3d(folder / "net.safetensors")
        threshold = _prepared(session, folder, shape, large, n)
        lone = [timed(run_pipeline, session, _config(folder, f"small0{i}", threshold, 1))[0]
                for i in range(3)]  # fmt: skip
        single, _ = timed(run_pipeline, session, _config(folder, "large", threshold, 1))
        seconds, watches = {}, {}
        for in_flight in (1, default):
            watches[in_flight] = _Watch(workers)
            seconds[in_flight], report = timed(
                run_pipeline, session, _config(folder, "small", threshold, in_flight),
                say=watches[in_flight],
            )  # fmt: skip
            assert not report.failed
    alone, beside = rate(math.prod(shape), min(lone)), rate(math.prod(large), single)
    rows = []
    for in_flight, each in seconds.items():
        reached = rate(n * math.prod(shape), each)
        shares = [round(reached / alone, 3), round(reached / beside, 3)]
        rows.append([in_flight, reached, round(each, 1), *shares])
    memory = watches[default].rows
    return {
        "name": "dataset: many small tomograms beside one large one",
        "tomograms": n, "shape of each": shape, "shape of the large one": large,
        "one tomogram alone, Mvox/s": alone, "the large one, Mvox/s": beside,
        "most tasks known to the scheduler": max(row[2] for row in memory),
        "rates": {
            "columns": [
                "tomograms at a time", "Mvox/s", "seconds", "of one alone", "of the large one",
            ],
            "rows": rows,
        },
        "memory": {
            "columns": ["tomograms done", "MiB of scheduler and drivers", "tasks known"],
            "rows": [row for row in memory if row[0] in {1, 2, 4, 8, 12, 16, 20, 24}],
        },
    }  # fmt: skip


def _prepared(session: Session, folder: Path, shape: Vec, large: Vec, n: int) -> float:
    """Write the tomograms, warm the workers up, and return a threshold with some picks."""
    store(folder / "large.zarr", noise(large))
    for i in range(n):
        store(folder / f"small{i:02}.zarr", noise(shape, seed=i))
    settings = SegmentSettings(model=str(folder / "net.safetensors"))
    segment_volume(session, folder / "small00.zarr", folder / "warm.zarr", settings)
    return _threshold(folder / "warm.zarr")
