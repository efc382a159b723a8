"""What benchmarks need: inputs, times, peaks of processes, rivals in processes of their own."""

from __future__ import annotations

import importlib.util
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from deepict_dask.core.geometry import Box, Grid
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.io.ome_zarr_write import create_ome_zarr

if TYPE_CHECKING:
    from collections.abc import Callable

    from deepict_dask.core.geometry import Vec
    from deepict_dask.engine import Workers

MIB = 1 << 20
NOT_INSTALLED = "not installed"
SPACING_ANGSTROM = 10.0
Result = TypeVar("Result")


def installed(module: str) -> bool:
    """Say whether a rival can be imported."""
    return importlib.util.find_spec(module) is not None


def timed(function: Callable[..., Result], *arguments: Any, **options: Any) -> tuple[float, Result]:
    """Return the seconds a call takes, and its result."""
    start = time.perf_counter()
    result = function(*arguments, **options)
    return time.perf_counter() - start, result


def rate(n_voxels: int, seconds: float) -> float:
    """Return million voxels per second."""
    return round(n_voxels / seconds / 1e6, 3)


def peak_bytes(pid: int) -> int:
    """Return the largest resident size of a process since its peak was last forgotten."""
    with suppress(OSError, IndexError):
        status = Path(f"/proc/{pid}/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    return 0


def forget_peak(pid: int) -> None:
    """Let the peak of a process start from what it holds now (Linux)."""
    with suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


class Peaks:
    """The largest resident size that any worker reaches inside the block, in MiB.

    Workers that are threads share this process, whose size then is the figure.
    """

    def __init__(self, workers: Workers) -> None:
        self._pids = set(workers.client.run(os.getpid).values())
        self.mib = 0.0

    def __enter__(self) -> Peaks:
        for pid in self._pids:
            forget_peak(pid)
        return self

    def __exit__(self, *exc: object) -> None:
        self.mib = round(max(peak_bytes(pid) for pid in self._pids) / MIB, 1)


def bytes_in(folder: Path) -> int:
    """Return the bytes of all files below a folder; files that vanish meanwhile count nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


class MostBytes:
    """The most bytes that a folder is seen to hold inside the block, looked at every 50 ms."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.most = 0

    def __enter__(self) -> MostBytes:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._end.wait(0.05):
            self.most = max(self.most, bytes_in(self._folder))

    def forget(self) -> int:
        """Return the most bytes since the block or the last call began."""
        most, self.most = max(self.most, bytes_in(self._folder)), 0
        return most


def in_process(function: Callable[..., Result], *arguments: Any) -> tuple[Result, float]:
    """Run a function in a new process; return its result and the peak of the process in MiB."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        result, peak = pool.submit(_with_peak, function, arguments).result()
    return result, round(peak / MIB, 1)


def _with_peak(function: Callable[..., Result], arguments: tuple[Any, ...]) -> tuple[Result, int]:
    os.environ["OMP_NUM_THREADS"] = str(len(os.sched_getaffinity(0)))
    return function(*arguments), peak_bytes(os.getpid())


def noise(shape: Vec, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return float32 noise."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def store(path: Path, voxels: np.ndarray[Any, Any]) -> Path:
    """Write an array as OME-Zarr in the default chunks."""
    header = VolumeHeader(voxels.shape, str(voxels.dtype), SPACING_ANGSTROM)
    create_ome_zarr(path, header).write(Box.whole(voxels.shape), voxels)
    return path


def repeated_store(path: Path, shape: Vec, tile: np.ndarray[Any, Any]) -> Path:
    """Write one tile over and over, a chunk each, so that a large volume costs little to make."""
    header = VolumeHeader(shape, str(tile.dtype), SPACING_ANGSTROM)
    writer = create_ome_zarr(path, header, chunks=tile.shape)
    for block in Grid(shape, writer.write_shape):
        corner = tuple(slice(0, size) for size in block.write.shape)
        writer.write(block.write, tile[corner])
    return path


def model_3d(path: Path) -> Path:
    """Write the published 3D network (depth 2, 4 features) with random weights."""
    import torch

    from deepict_dask.models.checkpoint import save_model
    from deepict_dask.models.unet3d import UNet3D, UNet3DSettings

    torch.manual_seed(0)
    network = UNet3D(UNet3DSettings(depth=2, initial_features=4, n_classes=1)).eval()
    save_model(path, network, class_names=("a",), voxel_spacing_angstrom=SPACING_ANGSTROM)
    return path


def model_2d(path: Path, depth: int) -> Path:
    """Write a 2D network with random weights."""
    import torch

    from deepict_dask.models.checkpoint import save_model
    from deepict_dask.models.unet2d import UNet2D, UNet2DSettings

    torch.manual_seed(0)
    network = UNet2D(UNet2DSettings(depth=depth, initial_features=4, n_classes=1)).eval()
    save_model(path, network, class_names=("a",), voxel_spacing_angstrom=SPACING_ANGSTROM)
    return path


def read_store(path: str | Path) -> np.ndarray[Any, Any]:
    """Return all voxels of a store."""
    from deepict_dask.io.volumes import open_volume

    reader = open_volume(path)
    return reader.read(Box.whole(reader.header.shape))


def timed_read(path: str) -> tuple[float, np.ndarray[Any, Any]]:
    """Return the seconds of reading a store, libraries loaded before, and its voxels."""
    from deepict_dask.io.volumes import open_volume

    open_volume(path).read(Box((0, 0, 0), (1, 1, 1)))
    return timed(read_store, path)
