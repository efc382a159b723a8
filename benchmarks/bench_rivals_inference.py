"""How fast one network goes over one tomogram: MONAI's windows, raw runtimes, and us.

MONAI runs the torch network on the whole volume in memory. The raw rates are of one window again
and again, without reading, stitching and writing: the limit for any tiling, once divided by the
network voxels per output voxel. Every rival has a process of its own, and as many threads as there
are workers.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepict_dask.config import SegmentSettings
from deepict_dask.jobs.segmenting.segment import segment_volume
from deepict_dask.jobs.session import Session
from deepict_dask.segmentation.window_choice import network_work

from .measure import (
    NOT_INSTALLED,
    Peaks,
    in_process,
    installed,
    model_3d,
    noise,
    rate,
    read_store,
    store,
    timed,
    timed_read,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from deepict_dask.core.geometry import Block, Grid, Vec
    from deepict_dask.engine import Workers
    from deepict_dask.segmentation.joint import JointSegmentOp

_RUNTIMES = {
    "torch": ("torch",),
    "ONNX Runtime": ("onnx", "onnxruntime"),
    "OpenVINO": ("onnx", "openvino"),
}


def _network(path: str, n_threads: int) -> Any:
    """Return the network with its sigmoid, in torch."""
    import torch

    from deepict_dask.models.checkpoint import load_checkpoint

    torch.set_num_threads(n_threads)
    return torch.nn.Sequential(load_checkpoint(path).network, torch.nn.Sigmoid()).eval()


def _normalised(path: str) -> Any:
    """Return a stored tomogram as the network is given it, of mean 0 and deviation 1."""
    volume = read_store(path)
    return (volume - volume.mean(dtype=np.float64)) / volume.std(dtype=np.float64)


def _whole(model: str, path: str, target: str, n_threads: int) -> float:
    """Predict the whole volume in one call, save the scores, return the seconds."""
    import torch

    network = _network(model, n_threads)
    volume = torch.from_numpy(_normalised(path).astype(np.float32))[None, None]
    with torch.inference_mode():
        seconds, scores = timed(network, volume)
    np.save(target, scores[0, 0].numpy())
    return seconds


def _monai(
    model: str, path: str, whole: str, tiling: tuple[int, float], n_threads: int
) -> tuple[float, float, float, float]:
    """Return seconds with and without reading, network voxels per voxel, largest difference."""
    import torch
    from monai.inferers.utils import sliding_window_inference

    network, (window, overlap) = _network(model, n_threads), tiling
    seen = 0

    def predict(windows: Any) -> Any:
        nonlocal seen
        seen += windows.numel()
        return network(windows)

    timed_read(path)
    reading, voxels = timed(_normalised, path)
    volume = torch.from_numpy(voxels.astype(np.float32))[None, None]
    scores: Any
    with torch.inference_mode():
        computing, scores = timed(
            sliding_window_inference, volume, (window,) * 3, 1, predict, overlap=overlap
        )
    difference = float(np.abs(scores[0, 0].numpy() - np.load(whole)).max())
    return reading + computing, computing, seen / voxels.size, difference


def _forward(model: str, runtime: str, shape: Vec, n_threads: int) -> tuple[float, float]:
    """Return network voxels per second of one window, and the largest difference from torch."""
    import torch

    network = _network(model, n_threads)
    window = torch.from_numpy(noise(shape))[None, None]
    call = _RUNNERS[runtime](network, window, n_threads)
    with torch.inference_mode():
        expected = network(window).numpy()
        difference = float(np.abs(np.asarray(call()) - expected).max())
        seconds = min(timed(call)[0] for _ in range(3))
    return window.numel() / seconds, difference


def _run_torch(network: Any, window: Any, n_threads: int) -> Callable[[], Any]:  # noqa: ARG001
    return lambda: network(window)


def _onnx_bytes(network: Any, window: Any) -> bytes:
    """Return the network as ONNX, of one static shape."""
    import io
    import warnings

    import torch

    file: Any = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (window,), file, dynamo=False, opset_version=17)
    made: bytes = file.getvalue()
    return made


def _run_onnx(network: Any, window: Any, n_threads: int) -> Callable[[], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    session = onnxruntime.InferenceSession(
        _onnx_bytes(network, window), options, providers=["CPUExecutionProvider"]
    )
    feed = {session.get_inputs()[0].name: window.numpy()}
    return lambda: session.run(None, feed)[0]


def _run_openvino(network: Any, window: Any, n_threads: int) -> Callable[[], Any]:
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(_onnx_bytes(network, window), b""),
        "CPU",
        {
            "INFERENCE_NUM_THREADS": n_threads,
            "INFERENCE_PRECISION_HINT": "f32",
            "ENABLE_CPU_PINNING": False,
        },
    )
    array = window.numpy()
    return lambda: compiled([array])[0]


_RUNNERS: dict[str, Callable[[Any, Any, int], Callable[[], Any]]] = {
    "torch": _run_torch,
    "ONNX Runtime": _run_onnx,
    "OpenVINO": _run_openvino,
}


def _limits(model: str, shape: Vec, n_threads: int) -> list[list[Any]]:
    """Return a row for each runtime: raw network Mvox/s."""
    rows: list[list[Any]] = []
    for runtime, modules in _RUNTIMES.items():
        name = f"{runtime}, one window again and again"
        if not all(map(installed, modules)):
            rows.append([name, None, NOT_INSTALLED, 1.0, None, None])
            continue
        (found, difference), peak = in_process(_forward, model, runtime, shape, n_threads)
        rows.append([name, None, round(found / 1e6, 3), 1.0, peak, difference])
    return rows


def _our_windows(shape: Vec, model: str, workers: Workers) -> tuple[JointSegmentOp, Grid]:
    """Return the op and the windows that our job chooses."""
    from deepict_dask.jobs.segmenting.windows import choose_grid
    from deepict_dask.segmentation.joint import JointSegmentOp
    from deepict_dask.segmentation.windows import SegmentOp

    op = JointSegmentOp((SegmentOp(model, 0.0, 1.0),))
    return op, choose_grid(op, shape, (128, 128, 128), workers.memory_bytes)


def _predict_nothing(op: JointSegmentOp, block: Block) -> None:
    """Let the network go over a window of zeros: the body of a task."""
    op.apply(block, np.zeros(block.read.shape, np.float32))


def _computing_s(op: JointSegmentOp, grid: Grid, workers: Workers) -> float:
    """Return the seconds of all windows of our job without reading and writing."""
    blocks = list(grid)
    submit = workers.client.submit

    def all_windows() -> None:
        tasks = [submit(_predict_nothing, op, block, pure=False) for block in blocks]
        workers.client.gather(tasks)

    return timed(all_windows)[0]


def run(workers: Workers, *, small: bool) -> dict[str, Any]:
    """Measure rivals, raw runtimes and our job on one tomogram."""
    shape, window = ((48, 80, 80), 32) if small else ((256, 512, 512), 96)
    n, threads = int(np.prod(shape)), workers.n_workers
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = str(model_3d(folder / "m.safetensors"))
        path, whole = str(store(folder / "t.zarr", noise(shape))), str(folder / "whole.npy")
        seconds, peak = in_process(_whole, model, path, whole, threads)
        rows = [["torch, the whole volume at once", None, rate(n, seconds), 1.0, peak, 0.0]]
        rows += _monai_rows(model, path, whole, window, threads)
        limits = _limits(model, (window,) * 3, threads)
        ours = _ours(workers, model, folder, whole)
        op, grid = _our_windows(shape, model, workers)
        ours[2] = rate(n, _computing_s(op, grid, workers))
    per_voxel = network_work(grid) / n
    best = max(row[2] for row in limits if isinstance(row[2], float))
    ours[3] = round(per_voxel, 3)
    monai = {row[0]: row[1] for row in rows if isinstance(row[1], float)}
    return {
        "name": "rivals, inference: depth 2, 4 features, float32",
        "shape": shape,
        "ours / (best raw rate / our network voxels per voxel)": round(
            ours[1] / (best / per_voxel), 3
        ),
        "ours / rival, reading included (above 1: we are faster)": {
            name: round(ours[1] / found, 3) for name, found in monai.items()
        },
        "rates": {
            "columns": [
                "what", "Mvox/s from store", "Mvox/s without reading and writing",
                "network voxels per voxel", "peak MiB of a process",
                "largest difference from the whole volume",
            ],
            "rows": [*rows, *limits, ours],
        },
    }  # fmt: skip


def _monai_rows(model: str, path: str, whole: str, window: int, threads: int) -> list[list[Any]]:
    """Return a row for each overlap of MONAI's windows."""
    rows: list[list[Any]] = []
    n = np.load(whole, mmap_mode="r").size
    for overlap in (0.25, 0.5):
        name = f"MONAI sliding windows of {window}^3, overlap {overlap}"
        if not installed("monai"):
            rows.append([name, NOT_INSTALLED, None, None, None, None])
            continue
        (reading, computing, per_voxel, difference), peak = in_process(
            _monai, model, path, whole, (window, overlap), threads
        )
        rows.append(
            [name, rate(n, reading), rate(n, computing), round(per_voxel, 3), peak, difference]
        )
    return rows


def _ours(workers: Workers, model: str, folder: Path, whole: str) -> list[Any]:
    """Segment from store to store, once to warm up; the best of three counts, as of runtimes."""
    session = Session(workers, overwrite=True)
    source, target = folder / "t.zarr", folder / "s.zarr"
    settings = SegmentSettings(model=model)
    segment_volume(session, source, target, settings)
    with Peaks(workers) as peaks:
        seconds = min(timed(segment_volume, session, source, target, settings)[0] for _ in range(3))
    expected = np.load(whole)
    difference = float(np.abs(read_store(target) - expected).max())
    return ["deepict-dask", rate(expected.size, seconds), None, None, peaks.mib, difference]
