"""Where the time, the memory and the disk of a run go, stage by stage.

Each job runs by itself first, then equalize to picks as one run; the stages of the run are told
apart by the line it says when one has ended.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mrcfile

from deepict_dask.config import (
    EqualizeSettings,
    PickSettings,
    RunConfig,
    SegmentSettings,
)
from deepict_dask.jobs.convert import convert_volume
from deepict_dask.jobs.equalize import equalize_volume, measure_spectrum
from deepict_dask.jobs.picking.pick import pick_particles
from deepict_dask.jobs.segmenting.segment import segment_volume
from deepict_dask.jobs.session import Session
from deepict_dask.pipeline import run_pipeline

from .measure import (
    MIB,
    SPACING_ANGSTROM,
    MostBytes,
    Peaks,
    bytes_in,
    model_2d,
    model_3d,
    noise,
    rate,
    read_store,
    timed,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from deepict_dask.engine import Workers


def _threshold(path: Path) -> float:
    """Return a threshold that about a tenth of the voxels of a score map are above."""
    import numpy as np

    return float(np.quantile(read_store(path)[::3, ::3, ::3], 0.9))


def _stages(
    session: Session, folder: Path, depth_2d: int
) -> list[tuple[str, Callable[[], object]]]:
    """Return the stages in order; each works on what the one before it left."""
    tomogram, level, score = folder / "t.zarr", folder / "e.zarr", folder / "s.zarr"
    spectrum = folder / "target.tsv"
    network, slices = (
        model_3d(folder / "3d.safetensors"),
        model_2d(folder / "2d.safetensors", depth_2d),
    )

    def pick() -> object:
        return pick_particles(
            session, score, folder / "picks",
            PickSettings(threshold=_threshold(score), min_size=5),
        )  # fmt: skip

    def equalize() -> object:
        return equalize_volume(session, tomogram, level, EqualizeSettings(target=spectrum))

    def segment(model: Path, target: Path) -> object:
        return segment_volume(session, level, target, SegmentSettings(model=str(model)))

    return [
        ("convert (MRC to Zarr)", lambda: convert_volume(session, folder / "t.mrc", tomogram)),
        ("spectrum", lambda: measure_spectrum(session, tomogram, spectrum)),
        ("equalize", equalize),
        ("segment 3D", lambda: segment(network, score)),
        (f"segment 2D (depth {depth_2d})", lambda: segment(slices, folder / "s2.zarr")),
        ("pick", pick),
    ]


def run(workers: Workers, *, small: bool) -> dict[str, Any]:
    """Measure each stage by itself, then equalize to picks as one run."""
    shape, depth_2d = ((48, 64, 64), 1) if small else ((256, 512, 512), 4)
    session = Session(workers, overwrite=True)
    rows: list[list[Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        voxels = noise(shape)
        mrcfile.write(folder / "t.mrc", voxels, voxel_size=SPACING_ANGSTROM)
        for name, stage in _stages(session, folder, depth_2d):
            with Peaks(workers) as peaks:
                seconds, _ = timed(stage)
            rows.append([name, rate(voxels.size, seconds), seconds, peaks.mib])
        whole = _run(session, folder, voxels)
    total = sum(row[2] for row in rows)
    for row in rows:
        row[2] = round(row[2] / total, 3)
    return {
        "name": "run: every stage, and equalize to picks as one run",
        "shape": shape,
        **whole,
        "stages": {
            "columns": ["stage", "Mvox/s", "share of the time of all", "peak MiB of a worker"],
            "rows": rows,
        },
    }


class _Stopwatch:
    """Notes, as a run says that a stage has ended, what the stage took."""

    def __init__(self, workers: Workers, folder: Path, n_voxels: int, disk: MostBytes) -> None:
        self._workers, self._folder, self._n_voxels, self._disk = workers, folder, n_voxels, disk
        self.rows: list[list[Any]] = []
        self._begin()

    def _begin(self) -> None:
        self._peaks = Peaks(self._workers).__enter__()
        self._start = time.perf_counter()

    def __call__(self, line: str) -> None:
        """Note the figures of the stage that the line is about."""
        if ": wrote " not in line:
            return
        seconds = time.perf_counter() - self._start
        self._peaks.__exit__()
        scratch = max(0, self._disk.forget() - bytes_in(self._folder))
        name = line.partition(": wrote ")[2]
        self.rows.append(
            [name, rate(self._n_voxels, seconds), seconds, self._peaks.mib, round(scratch / MIB, 2)]
        )
        self._begin()


def _run(session: Session, folder: Path, voxels: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Run the pipeline from a stored tomogram to picks."""
    config = RunConfig(
        tomograms=folder / "t.zarr",
        output=folder / "run",
        equalize=EqualizeSettings(target=folder / "target.tsv"),
        segment=(SegmentSettings(model=str(folder / "3d.safetensors")),),
        pick=(PickSettings(threshold=_threshold(folder / "s.zarr"), min_size=5),),
    )
    with MostBytes(folder / "run") as disk:
        watch = _Stopwatch(session.workers, folder / "run", voxels.size, disk)
        seconds, report = timed(run_pipeline, session, config, say=watch)
    for row in watch.rows:
        row[2] = round(row[2] / seconds, 3)
    return {
        "run, Mvox/s": rate(voxels.size, seconds),
        "run, seconds": round(seconds, 2),
        "run, peak MiB of a worker": max(row[3] for row in watch.rows),
        "run, bytes of outputs / bytes of the tomogram": round(
            bytes_in(folder / "run") / voxels.nbytes, 3
        ),
        "run, picks": sum(sum(one.n_picks.values()) for one in report.tomograms),
        "stages of the run": {
            "columns": [
                "output", "Mvox/s", "share of the run", "peak MiB of a worker",
                "scratch MiB, gone at the stage's end",
            ],
            "rows": watch.rows,
        },
    }  # fmt: skip
