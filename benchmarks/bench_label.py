"""Threshold, label and measure from a stored score map, beside scipy in memory."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter, label

from deepict_dask.core.geometry import Box, Grid
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.engine import SpillFolder, reduce_chunks
from deepict_dask.io.ome_zarr_write import create_ome_zarr
from deepict_dask.io.volumes import open_volume
from deepict_dask.labelling import LabelReduction, SelectSettings


def score_map(shape: tuple[int, int, int], density: float) -> np.ndarray[Any, Any]:
    """Return smooth float32 noise with this fraction of voxels above 0.5."""
    noise = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    smooth = gaussian_filter(noise, 1.5)
    level = np.quantile(smooth[::4, ::4, ::4], 1 - density)
    return (smooth - level + 0.5).astype("float32")


def run(workers: Any, *, small: bool) -> dict[str, Any]:
    """Measure once to warm up and three times to count; the best of three."""
    shape = (64, 96, 96) if small else (256, 512, 512)
    score = score_map(shape, 0.1)
    with tempfile.TemporaryDirectory() as folder:
        writer = create_ome_zarr(f"{folder}/s.zarr", VolumeHeader(shape, "float32", 10.0))
        writer.write(Box.whole(shape), score)
        reader = open_volume(f"{folder}/s.zarr")
        reduction = LabelReduction(shape, SelectSettings(threshold=0.5))
        grid = Grid(shape, writer.write_shape)
        ours, theirs, n = [], [], (0, 0)
        for i in range(4):
            start = time.perf_counter()
            root = reduce_chunks(
                workers, reduction, [reader], grid, spill=SpillFolder(tempfile.mkdtemp(dir=folder))
            )
            middle = time.perf_counter()
            _, n_scipy = label(score > 0.5, structure=np.ones((3, 3, 3)))
            end = time.perf_counter()
            n = (root.n_finished, n_scipy)
            if i:
                ours.append(middle - start)
                theirs.append(end - middle)
    return {
        "name": "label: threshold, label, statistics of a stored score map",
        "shape": shape,
        "clusters (ours, scipy)": n,
        "ours / scipy.ndimage.label in memory": round(min(ours) / min(theirs), 2),
        "ours, million voxels per second": round(score.size / min(ours) / 1e6, 1),
    }
