"""Whether the peaks of workers stay within what was planned, however large the volume is."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepict_dask.config import PickSettings, SegmentSettings
from deepict_dask.engine import ClusterSettings, connect
from deepict_dask.engine.budget import parse_bytes
from deepict_dask.jobs.convert import convert_volume
from deepict_dask.jobs.picking.pick import pick_particles
from deepict_dask.jobs.segmenting.segment import segment_volume
from deepict_dask.jobs.session import Session

from .bench_label import score_map
from .measure import MIB, Peaks, model_3d, noise, repeated_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from deepict_dask.core.geometry import Vec

_BUDGET = "1GiB"
_SHAPES: tuple[Vec, ...] = ((256, 512, 512), (512, 512, 1024), (1024, 1024, 1024))
_SMALL: tuple[Vec, ...] = ((48, 48, 48), (48, 48, 96))


def _jobs(
    session: Session, folder: Path, source: Path, blobs: Path
) -> list[tuple[str, Callable[[], object]]]:
    """Return the jobs whose peaks are measured."""
    settings = SegmentSettings(model=str(folder / "model.safetensors"))
    pick = PickSettings(min_size=5)
    return [
        ("convert", lambda: convert_volume(session, source, folder / "copy.zarr")),
        ("pick", lambda: pick_particles(session, blobs, folder / "picks", pick)),
        ("segment", lambda: segment_volume(session, source, folder / "scores.zarr", settings)),
    ]


def _peaks_of(folder: Path, shape: Vec, kind: str, tiles: tuple[Any, Any]) -> dict[str, float]:
    """Return the peak of a fresh worker for each job, in MiB."""
    found = {}
    source = repeated_store(folder / "t.zarr", shape, tiles[0])
    blobs = repeated_store(folder / "b.zarr", shape, tiles[1])
    for i in range(3):
        with connect(ClusterSettings(kind, 1, _BUDGET)) as workers:
            name, job = _jobs(Session(workers, overwrite=True), folder, source, blobs)[i]
            with Peaks(workers) as peaks:
                job()
        found[name] = peaks.mib
        for made in ("copy.zarr", "picks", "scores.zarr"):
            shutil.rmtree(folder / made, ignore_errors=True)
    shutil.rmtree(source)
    shutil.rmtree(blobs)
    return found


def run(workers: Any, *, small: bool) -> dict[str, Any]:  # noqa: ARG001 - brings its own workers
    """Measure convert, pick and segment on volumes of 0.25, 1 and 4 GiB in workers of 1 GiB."""
    shapes, kind = (_SMALL, "threads") if small else (_SHAPES, "local")
    side = 48 if small else 128
    tiles = (noise((side,) * 3), score_map((side,) * 3, 0.1))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model_3d(folder / "model.safetensors")
        peaks = [_peaks_of(folder, shape, kind, tiles) for shape in shapes]
    planned = parse_bytes(_BUDGET) / MIB
    rows = [
        [name, *(found[name] for found in peaks), planned, round(_spread(name, peaks), 3)]
        for name in peaks[0]
    ]
    sizes = [f"{np.prod(shape) * 4 / 2**30:.2g} GiB volume, MiB" for shape in shapes]
    return {
        "name": f"memory: peaks of one worker of {_BUDGET}, by size of the volume",
        "largest peak / budget": round(max(max(found.values()) for found in peaks) / planned, 3),
        "peaks": {
            "columns": ["job", *sizes, "budget, MiB", "largest / smallest peak"],
            "rows": rows,
        },
    }


def _spread(name: str, peaks: list[dict[str, float]]) -> float:
    sizes = [found[name] for found in peaks]
    return max(sizes) / min(sizes)
