"""How speeds grow with the workers, on one volume (strong) and on a volume each (weak)."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepict_dask.config import PickSettings, SegmentSettings
from deepict_dask.engine import ClusterSettings, connect
from deepict_dask.jobs.pick import pick_particles
from deepict_dask.jobs.segment import segment_volume
from deepict_dask.jobs.session import Session

from .bench_label import score_map
from .measure import model_3d, noise, rate, read_store, store, timed

if TYPE_CHECKING:
    from deepict_dask.core.geometry import Vec


def worker_counts(n_cores: int) -> tuple[int, ...]:
    """Return powers of two up to the cores, 1 and 2 always.

    Examples
    --------
    >>> worker_counts(1), worker_counts(12)
    ((1, 2), (1, 2, 4, 8))
    """
    return tuple(2**i for i in range(max(2, n_cores.bit_length())))


def _segment(session: Session, folder: Path, size: int) -> None:
    """Segment the noise of this many parts."""
    settings = SegmentSettings(model=str(folder / "model.safetensors"))
    segment_volume(session, folder / f"noise_{size}.zarr", folder / "scores.zarr", settings)


def _scores(folder: Path) -> bytes:
    """Return what tells these scores from others."""
    return hashlib.sha256(read_store(folder / "scores.zarr").tobytes()).digest()


def _pick(session: Session, folder: Path, size: int) -> None:
    """Pick from the score map of this many parts."""
    score = folder / f"blobs_{size}.zarr"
    pick_particles(session, score, folder / "picks", PickSettings(min_size=5))


def _picks(folder: Path) -> bytes:
    """Return the picks as they are in their file."""
    return (folder / "picks" / "picks.csv").read_bytes()


_JOBS = (("segment", _segment, _scores), ("pick", _pick, _picks))
"""Each job's name, what is timed, and what must be the same on any number of workers."""
_ROUNDS = 2
"""How often each job is done; the best time counts."""


def _sizes(shape: Vec, counts: tuple[int, ...]) -> dict[int, Vec]:
    """Return a volume of as many parts as there are workers, for each number of workers."""
    z, y, x = shape
    return {n: (n * z, y, x) for n in counts}


def _store_inputs(folder: Path, sizes: dict[int, Vec]) -> None:
    """Store the network, and tomograms and score maps of all sizes."""
    model_3d(folder / "model.safetensors")
    for n, size in sizes.items():
        store(folder / f"noise_{n}.zarr", noise(size))
        store(folder / f"blobs_{n}.zarr", score_map(size, 0.1))


def run(workers: Any, *, small: bool) -> dict[str, Any]:  # noqa: ARG001 - brings its own workers
    """Measure both jobs on 1, 2, 4 ... workers, on one volume and on a volume per worker."""
    shape = (32, 64, 64) if small else (128, 512, 512)
    kind = "threads" if small else "local"
    counts = (1, 2) if small else worker_counts(len(os.sched_getaffinity(0)))
    seconds: dict[tuple[str, int, int], float] = {}
    outputs: dict[tuple[str, int], set[bytes]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _store_inputs(folder, _sizes(shape, counts))
        for n in counts:
            with connect(ClusterSettings(kind, n, "2GiB")) as own:
                session = Session(own, overwrite=True)
                for name, job, answer in _JOBS:
                    job(session, folder, 1)  # libraries are imported, models loaded
                    for size in {1, n, counts[-1]}:
                        taken = [timed(job, session, folder, size)[0] for _ in range(_ROUNDS)]
                        seconds[name, n, size] = min(taken)
                        outputs.setdefault((name, size), set()).add(answer(folder))
    return {
        "name": "scaling: one volume, and a volume per worker",
        "shape for one worker": shape,
        "bytes are the same on any number of workers": all(
            len(found) == 1 for found in outputs.values()
        ),
        "scaling": {
            "columns": [
                "job", "workers", "Mvox/s on the largest volume",
                "strong: speed / speed of 1 worker",
                "weak: time of 1 worker on 1 volume / time of n on n",
            ],
            "rows": [_row(name, n, seconds, shape) for name, *_ in _JOBS for n in counts],
        },
    }  # fmt: skip


def _row(name: str, n: int, seconds: dict[tuple[str, int, int], float], shape: Vec) -> list[Any]:
    """Return the figures of one job on n workers; strong scaling is of the largest volume."""
    z, y, x = shape
    largest = max(size for _, _, size in seconds)
    taken = seconds[name, n, largest]
    strong = seconds[name, 1, largest] / taken
    weak = seconds[name, 1, 1] / seconds[name, n, n]
    return [name, n, rate(largest * z * y * x, taken), round(strong, 3), round(weak, 3)]
