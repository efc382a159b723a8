"""How fast equalization is from Zarr to Zarr, in one piece and in pieces, beside scipy.fft.

The rival is a Fourier transform of the whole volume forth and back in memory: the bare minimum.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepict_dask.config import EqualizeSettings
from deepict_dask.core.errors import BudgetError
from deepict_dask.engine.budget import BASELINE_BYTES
from deepict_dask.engine.spectral import plan_spectral
from deepict_dask.io.volumes import open_volume
from deepict_dask.jobs.equalize import equalize_volume, measure_spectrum, plan_equalize
from deepict_dask.jobs.session import Session

from .measure import Peaks, in_process, noise, rate, read_store, store, timed, timed_read

if TYPE_CHECKING:
    from deepict_dask.core.geometry import Vec
    from deepict_dask.engine import Workers


def _scipy(path: str) -> tuple[float, float]:
    """Return seconds of reading, and of a Fourier transform forth and back: the bare minimum."""
    from scipy import fft

    reading, volume = timed_read(path)
    computing, _ = timed(lambda: fft.irfftn(fft.rfftn(volume, overwrite_x=True), volume.shape))
    return reading, computing


def _whole(source: str, target: str) -> np.ndarray[Any, Any]:
    """Return the volume equalized in one piece in memory."""
    op = plan_equalize(EqualizeSettings(target=Path(target)), open_volume(source))
    whole: np.ndarray[Any, Any] = op.transform(read_store(source))
    return whole


def _job(
    workers: Workers, folder: Path, name: str, whole: np.ndarray[Any, Any], chunks: Vec
) -> list[Any]:
    """Equalize by the job; return a row of figures."""
    target = folder / f"{name}.zarr"
    settings = EqualizeSettings(target=folder / "target.tsv")
    session = Session(workers, overwrite=True, chunks=chunks)
    try:
        equalize_volume(session, folder / "t.zarr", target, settings)  # once to warm up
        with Peaks(workers) as peaks:
            seconds, _ = timed(equalize_volume, session, folder / "t.zarr", target, settings)
    except BudgetError as error:
        return [name, f"refused: {error}", None, None, None]
    difference = float(np.abs(read_store(target) - whole).max() / whole.std())
    return [name, rate(whole.size, seconds), None, peaks.mib, difference]


def run(workers: Workers, *, small: bool) -> dict[str, Any]:
    """Measure the job with plenty of memory, and with too little for one piece."""
    shape, side = ((64, 64, 96), 16) if small else ((256, 512, 512), 128)
    chunks = (side, side, side)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = store(folder / "t.zarr", noise(shape))
        other = store(folder / "o.zarr", noise(shape, 1).cumsum(axis=2, dtype=np.float32))
        measure_spectrum(Session(workers), other, folder / "target.tsv")
        op = plan_equalize(EqualizeSettings(target=folder / "target.tsv"), open_volume(source))
        whole = _whole(str(source), str(folder / "target.tsv"))
        (reading, computing), peak = in_process(_scipy, str(source))
        n, both = whole.size, reading + computing
        rows: list[list[Any]] = [
            ["scipy.fft forth and back", rate(n, both), rate(n, computing), peak, None]
        ]
        rows.append(_job(workers, folder, "in one piece", whole, chunks))
        tight = BASELINE_BYTES + op.bytes_needed(shape) // (1 if small else 2)
        rows.append(
            _job(replace(workers, memory_bytes=tight), folder, "out of core", whole, chunks)
        )
        plan = plan_spectral(op, shape, chunks, tight)
    ours = [row[1] for row in rows[1:] if isinstance(row[1], float)]
    return {
        "name": "equalize: Zarr to Zarr, beside scipy.fft over the whole volume",
        "shape": shape,
        "ours / scipy.fft, reading included": round(ours[0] / rows[0][1], 3),
        "out of core / in one piece": round(ours[1] / ours[0], 3) if len(ours) > 1 else "refused",
        "out of core, plan": str(plan),
        "rates": {
            "columns": [
                "what", "Mvox/s from store", "Mvox/s without reading and writing",
                "peak MiB of a worker", "largest difference, in standard deviations",
            ],
            "rows": rows,
        },
    }  # fmt: skip
