"""Which part of the network's own speed segmentation from Zarr to Zarr reaches."""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from deepict_dask.config import SegmentSettings
from deepict_dask.core.geometry import Box
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.io.ome_zarr_write import create_ome_zarr
from deepict_dask.io.volumes import open_volume
from deepict_dask.jobs.segmenting.segment import segment_volume
from deepict_dask.jobs.segmenting.windows import choose_grid
from deepict_dask.jobs.session import Session
from deepict_dask.models.checkpoint import save_model
from deepict_dask.models.registry import inference_network
from deepict_dask.models.unet3d import UNet3D, UNet3DSettings
from deepict_dask.segmentation.joint import JointSegmentOp
from deepict_dask.segmentation.window_choice import network_work
from deepict_dask.segmentation.windows import SegmentOp

if TYPE_CHECKING:
    from deepict_dask.models.inference import Precision


def _forward(path: str, shape: tuple[int, int, int], precision: Precision) -> float:
    """Return network voxels per CPU second of one whole window on one thread."""
    torch.set_num_threads(1)
    network = inference_network(path, precision=precision)
    window = torch.zeros(shape)
    network.scores(window)
    start = time.process_time()
    network.scores(window)
    return window.numel() / (time.process_time() - start)


def _measure(workers: Any, model: str, source: Path, precision: Precision) -> dict[str, float]:
    """Run the job twice; return the second run's figures and the network's."""
    session, target = Session(workers, overwrite=True, device="cpu"), source.parent / "s.zarr"
    settings = SegmentSettings(model=model, precision=precision)
    shape = open_volume(source).header.shape
    op = JointSegmentOp((SegmentOp(model, 0.0, 1.0, 0, precision=precision),))
    grid = choose_grid(op, shape, session.chunks, workers.memory_bytes)
    alone = workers.client.submit(
        _forward, model, grid.window_shape, precision, pure=False
    ).result()
    segment_volume(session, source, target, settings)
    before = sum(workers.client.run(time.process_time).values())
    start = time.perf_counter()
    segment_volume(session, source, target, settings)
    wall = time.perf_counter() - start
    cpu = sum(workers.client.run(time.process_time).values()) - before
    n = math.prod(shape)
    per_voxel = grid.n_blocks * math.prod(grid.window_shape) / n
    return {
        "output million voxels per second": round(n / wall / 1e6, 2),
        "output million voxels per CPU second": round(n / cpu / 1e6, 2),
        "network alone, million voxels per CPU second": round(alone / 1e6, 2),
        "network voxels per output voxel": round(per_voxel, 2),
        "the same, halos left out where no layer needs them": round(network_work(grid) / n, 2),
        "output rate / (network rate / network voxels)": round(n / cpu / alone * per_voxel, 2),
    }


def run(workers: Any, *, small: bool) -> dict[str, Any]:
    """Measure the job and the limit that the network alone sets."""
    shape = (48, 64, 64) if small else (128, 384, 384)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        network = UNet3D(UNet3DSettings(depth=2, initial_features=4, n_classes=1)).eval()
        model = f"{folder}/model.safetensors"
        save_model(model, network, class_names=("a",), voxel_spacing_angstrom=10.0, card={})
        source = Path(folder) / "t.zarr"
        writer = create_ome_zarr(source, VolumeHeader(shape, "float32", 10.0))
        noise = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        writer.write(Box.whole(shape), noise)
        full = _measure(workers, model, source, "float32")
        rough = _measure(workers, model, source, "bfloat16")
    return {
        "name": "segment: Zarr to Zarr, depth 2, 4 features, exact",
        "shape": shape,
        **{f"float32: {key}": value for key, value in full.items()},
        **{f"bfloat16: {key}": value for key, value in rough.items()},
    }
