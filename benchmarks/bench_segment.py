"""Segmentation from Zarr to Zarr, beside the network alone on one window."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deepict_dask.config import SegmentSettings
from deepict_dask.core.geometry import Box
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.io.ome_zarr_write import create_ome_zarr
from deepict_dask.jobs.segment import segment_volume
from deepict_dask.jobs.session import Session
from deepict_dask.models.checkpoint import save_model
from deepict_dask.models.registry import inference_network
from deepict_dask.models.unet3d import UNet3D, UNet3DSettings


def _forward(path: str, shape: tuple[int, int, int]) -> float:
    """Return network voxels per second of one window on one thread: the body of a task."""
    torch.set_num_threads(1)
    network = inference_network(path)
    window = torch.zeros(shape)
    network.scores(window)
    start = time.perf_counter()
    network.scores(window)
    return window.numel() / (time.perf_counter() - start)


def run(workers: Any, *, small: bool) -> dict[str, Any]:
    """Measure the job and the limit that the network alone sets."""
    shape = (48, 64, 64) if small else (128, 384, 384)
    window = (48, 48, 48) if small else (112, 176, 176)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        network = UNet3D(UNet3DSettings(depth=2, initial_features=4, n_classes=1)).eval()
        model = f"{folder}/model.safetensors"
        save_model(model, network, class_names=("a",), voxel_spacing_angstrom=10.0, card={})
        writer = create_ome_zarr(f"{folder}/t.zarr", VolumeHeader(shape, "float32", 10.0))
        noise = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        writer.write(Box.whole(shape), noise)
        session = Session(workers, overwrite=True)
        source, target = Path(folder) / "t.zarr", Path(folder) / "s.zarr"
        settings = SegmentSettings(model=model)
        segment_volume(session, source, target, settings)
        futures = [
            workers.client.submit(_forward, model, window, pure=False)
            for _ in range(workers.n_workers)
        ]
        alone = sum(future.result() for future in futures)
        start = time.perf_counter()
        segment_volume(session, source, target, settings)
        rate = noise.size / (time.perf_counter() - start)
    return {
        "name": "segment: Zarr to Zarr, depth 2, 4 features, float32, exact",
        "shape": shape,
        "output million voxels per second": round(rate / 1e6, 2),
        "network alone, million voxels per second": round(alone / 1e6, 2),
        "output rate / network rate": round(rate / alone, 2),
    }
