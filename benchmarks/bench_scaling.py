"""How speeds grow with the workers, on one volume (strong) and on a volume each (weak).

Beside them, as the limit that the machine sets: processes that do nothing but run the network, each
over a window of its own, with nothing to read, to write or to wait for. Cores that share a power
budget, a cache or each other's arithmetic units give less than twice the speed for two.

Numbers of workers take turns, and of the ratios of each round the median counts: on a machine that
others share, the best of several times is one worker's lucky moment more often than two's.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from deepict_dask.config import PickSettings, SegmentSettings
from deepict_dask.engine import ClusterSettings, connect
from deepict_dask.jobs.picking.pick import pick_particles
from deepict_dask.jobs.segmenting.segment import segment_volume
from deepict_dask.jobs.session import Session
from deepict_dask.models.registry import inference_network

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
_ALONE = "the network alone"
_WINDOW = (64, 128, 128)
_ready: Any = None
"""In a process of the network alone: what it waits at until all are there."""
_Case = tuple[str, int, int]
"""A job's name, how many workers do it, and the parts of its volume."""
_ROUNDS = 5
"""How often all numbers of workers have their turn."""


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


def _networks_alone(folder: Path, n: int, seconds: float) -> float:
    """Return network voxels per second of n processes together, each on one thread."""
    context = get_context("spawn")
    ready = context.Barrier(n)
    model = str(folder / "model.safetensors")
    with ProcessPoolExecutor(n, context, _remember, (ready,)) as pool:
        return sum(pool.map(_forwards, [model] * n, [seconds] * n))


def _remember(ready: Any) -> None:
    """Give a new process what it waits at."""
    global _ready
    _ready = ready


def _forwards(model: str, seconds: float) -> float:
    """Run the network again and again, from when all processes are ready; return its voxels/s."""
    torch.set_num_threads(1)
    network, window = inference_network(model), torch.zeros(_WINDOW)
    network.scores(window)
    _ready.wait(300)
    start, n = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        network.scores(window)
        n += window.numel()
    return n / (time.perf_counter() - start)


def run(workers: Any, *, small: bool) -> dict[str, Any]:  # noqa: ARG001 - brings its own workers
    """Measure both jobs on 1, 2, 4 ... workers, on one volume and on a volume per worker."""
    shape = (32, 64, 64) if small else (256, 512, 512)
    kind = "threads" if small else "local"
    counts = (1, 2) if small else worker_counts(len(os.sched_getaffinity(0)))
    seconds: dict[_Case, list[float]] = defaultdict(list)
    outputs: dict[tuple[str, int], set[bytes]] = defaultdict(set)
    alone: dict[int, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _store_inputs(folder, _sizes(shape, counts))
        for n in counts * _ROUNDS:
            alone[n].append(_networks_alone(folder, n, 0.1 if small else 5.0))
            with connect(ClusterSettings(kind, n, "2GiB")) as own:
                session = Session(own, overwrite=True)
                for name, job, answer in _JOBS:
                    job(session, folder, 1)  # libraries are imported, models loaded
                    for size in {1, n, counts[-1]}:
                        seconds[name, n, size].append(timed(job, session, folder, size)[0])
                        outputs[name, size].add(answer(folder))
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
            "rows": [_row(name, n, seconds, shape) for name, *_ in _JOBS for n in counts]
            + [_row_alone(n, alone) for n in counts],
        },
    }  # fmt: skip


def _row_alone(n: int, alone: dict[int, list[float]]) -> list[Any]:
    """Return the limit: every process has a window of its own, so both ways of scaling are one."""
    gain = _median_ratio(alone[n], alone[1])
    return [_ALONE, n, rate(round(median(alone[n])), 1), round(gain, 3), round(gain / n, 3)]


def _row(name: str, n: int, seconds: dict[_Case, list[float]], shape: Vec) -> list[Any]:
    """Return the figures of one job on n workers; strong scaling is of the largest volume."""
    z, y, x = shape
    largest = max(size for _, _, size in seconds)
    taken = seconds[name, n, largest]
    strong = _median_ratio(seconds[name, 1, largest], taken)
    weak = _median_ratio(seconds[name, 1, 1], seconds[name, n, n])
    speed = rate(largest * z * y * x, median(taken))
    return [name, n, speed, round(strong, 3), round(weak, 3)]


def _median_ratio(above: list[float], below: list[float]) -> float:
    """Return the median over the rounds.

    >>> _median_ratio([4.0, 8.0, 9.0], [2.0, 4.0, 3.0])
    2.0
    """
    return median(a / b for a, b in zip(above, below, strict=True))
