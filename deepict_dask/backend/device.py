"""Find a GPU that works, or say what is missing.

Asked in the order in which things break: the CuPy package, the driver, a GPU, a first kernel (which
fails where CuPy was built for another CUDA version than the machine's), and PyTorch's build.
"""

from __future__ import annotations

import functools
import importlib
import logging
from dataclasses import dataclass
from typing import Any

from ..core.errors import ConfigError, DeviceError

__all__ = ["Device", "count_gpus", "resolve_device"]

_log = logging.getLogger(__name__)

LEAST_FREE_BYTES = 2 << 30
"""Free memory of a GPU below which nothing is worth starting: libraries alone take one GiB."""


@dataclass(frozen=True)
class Device:
    """Where arrays are computed.

    Examples
    --------
    >>> Device("cpu").is_gpu
    False
    """

    name: str
    """``cpu`` or ``cuda``."""
    description: str = ""
    """The GPU's name and memory, for people."""

    @property
    def is_gpu(self) -> bool:
        """Whether arrays live on a GPU."""
        return self.name == "cuda"


def resolve_device(name: str) -> Device:
    """Return the device that a user asked for.

    Parameters
    ----------
    name
        ``cpu``; ``cuda``, which fails where no GPU works; or ``auto``, which takes a GPU that
        works, else the CPU, and logs its choice once per process.

    Raises
    ------
    DeviceError
        If ``cuda`` was asked for and does not work; the message says what is missing.
    ConfigError
        If the name is another one.

    Examples
    --------
    >>> resolve_device("cpu")
    Device(name='cpu', description='')
    """
    if name == "cpu":
        return Device("cpu")
    if name == "cuda":
        return _find_gpu()
    if name == "auto":
        return _choose()
    raise ConfigError(f"device: expected auto, cpu or cuda, found {name!r}")


@functools.cache
def _choose() -> Device:
    """Take a GPU that works, else the CPU; cached, so that it is logged once."""
    try:
        device = _find_gpu()
    except DeviceError as error:
        _log.info("device auto: using the CPU (%s)", error)
        return Device("cpu")
    _log.info("device auto: using the GPU %s", device.description)
    return device


def _find_gpu() -> Device:
    """Return the current GPU after a trial kernel, or say what is missing."""
    cupy = _import_cupy()
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except (RuntimeError, OSError, ImportError) as error:
        raise _absent(f"no usable NVIDIA driver ({error}); check nvidia-smi") from error
    if count == 0:
        raise _absent("a driver but no GPU; check CUDA_VISIBLE_DEVICES and the job's request")
    try:
        cupy.arange(2).sum().get()
        found = Device("cuda", _describe(cupy))
        free, _total = cupy.cuda.Device().mem_info
    except Exception as error:  # CuPy's (a driver's, a compiler's) have no common base below it
        raise _absent(
            f"a GPU on which CuPy's build cannot run ({error}); install the extra that fits the "
            "driver: deepict-dask[cuda12] or deepict-dask[cuda13]"
        ) from error
    if free < LEAST_FREE_BYTES:
        raise _absent(
            f"{free / 2**30:.1f} GiB free on {found.description}, less than "
            f"{LEAST_FREE_BYTES >> 30} GiB; wait for other programs on it (nvidia-smi lists them)"
        )
    if not _torch_is_for_cuda():
        raise _absent(
            f"{found.description} and a PyTorch that cannot use it; install PyTorch's build for "
            "CUDA (pytorch.org)"
        )
    return found


def _torch_is_for_cuda() -> bool:
    """Say whether networks would run on the GPU that CuPy has found."""
    return bool(importlib.import_module("torch").cuda.is_available())


def count_gpus() -> int:
    """Return how many GPUs this process sees, 0 without CuPy or a driver."""
    try:
        return int(_import_cupy().cuda.runtime.getDeviceCount())
    except (DeviceError, RuntimeError, OSError):
        return 0


def _import_cupy() -> Any:
    """Import CuPy, or say that the package or a library it needs is missing."""
    try:
        return importlib.import_module("cupy")
    except ModuleNotFoundError as error:
        raise _absent(
            f"no CuPy ({error}); install deepict-dask[cuda12] or deepict-dask[cuda13]"
        ) from error
    except ImportError as error:
        raise _absent(f"a CuPy build that cannot be loaded ({error})") from error


def _describe(cupy: Any) -> str:
    """Return name and memory of the current GPU."""
    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    gib = properties["totalGlobalMem"] / 2**30
    return f"{properties['name'].decode()} ({gib:.0f} GiB)"


def _absent(found: str) -> DeviceError:
    """Return the error for a GPU that does not work."""
    return DeviceError(f"device cuda: expected a working GPU, found {found}; or use --device cpu")
