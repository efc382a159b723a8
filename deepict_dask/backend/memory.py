"""How much memory a GPU has left, and what to do where it is too little.

A GPU's memory is shared by CuPy and PyTorch, each with a pool of its own that keeps what was freed.
Work that runs out of it empties both pools and is tried again, then done on the host, which is
slower and gives the same result; this is said once per process.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .arrays import cupy_module, to_device, to_host
from .turn import device_turn

if TYPE_CHECKING:
    from collections.abc import Callable

    from .device import Device

__all__ = [
    "compute_on",
    "device_budget",
    "empty_pools",
    "free_device_bytes",
    "is_out_of_memory",
    "retry_with_empty_pools",
    "say_once",
]

_log = logging.getLogger("deepict_dask")
KEPT_FREE = 0.25
"""Part of a GPU's free memory that is not planned with: fragments, and what libraries take."""
LIBRARY_BYTES = 1 << 30
"""Workspaces of cuDNN and cuFFT, and the CUDA context of PyTorch."""
STEP_BYTES = 2 << 30
"""Budgets are whole steps, so that a few megabytes more or less do not change the windows."""
_SIGNS = (
    "out of memory", "ALLOC_FAILED", "cudaErrorMemoryAllocation",
    # PyTorch tries cuDNN's engines one after another and forgets why each failed
    "unable to find an engine",
)  # fmt: skip
_said: set[str] = set()


def device_budget(free_bytes: int) -> int:
    """Return the bytes that may be planned with on a GPU with so many free.

    Examples
    --------
    >>> device_budget(140 << 30) >> 30, device_budget(1 << 30)
    (104, 0)
    """
    budget = max(0, int(free_bytes * (1 - KEPT_FREE)) - LIBRARY_BYTES)
    return budget - budget % STEP_BYTES if budget > STEP_BYTES else budget


def free_device_bytes() -> int:
    """Return the free memory of the current GPU between two turns, once both pools are emptied.

    Raises
    ------
    DeviceError
        CuPy is not installed.
    """
    with device_turn():
        empty_pools()
        free, _total = cupy_module().cuda.Device().mem_info
    return int(free)


def empty_pools() -> None:
    """Give back what CuPy and PyTorch keep, where they are loaded."""
    cupy, torch = sys.modules.get("cupy"), sys.modules.get("torch")
    if cupy is not None:
        cupy.fft.config.clear_plan_cache()  # plans of this thread hold the work areas of cuFFT
        cupy.get_default_memory_pool().free_all_blocks()
    if torch is not None and torch.cuda.is_available():
        with suppress(RuntimeError):
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that a GPU has too little memory, whichever library raised it.

    Examples
    --------
    >>> is_out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"))
    True
    >>> is_out_of_memory(ValueError("shapes differ"))
    False
    """
    if type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def retry_with_empty_pools(work: Callable[[], Any]) -> Any:
    """Do work on a GPU, and once more if its memory was full of what libraries keep.

    Each library gives back its own pool before it fails, never the other's.

    Examples
    --------
    >>> retry_with_empty_pools(lambda: 4)
    4
    """
    try:
        return work()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    empty_pools()  # only now nothing refers to the arrays of the attempt: its traceback did
    return work()


def compute_on(device: Device, what: str, work: Callable[..., Any], *arrays: Any) -> Any:
    """Do work on a device, or on the host where the device has too little memory.

    Parameters
    ----------
    device
        Where to.
    what
        Names the work, for the log.
    work
        Takes the arrays. What it changes in them is lost where the device's copies were changed.
    *arrays
        NumPy or CuPy arrays, or None.

    Returns
    -------
    Any
        What ``work`` returned; an array is where it was computed.

    Examples
    --------
    >>> import numpy as np
    >>> from deepict_dask.backend import Device
    >>> compute_on(Device("cpu"), "sum", np.sum, np.arange(4))
    np.int64(6)
    """
    if not device.is_gpu:
        return work(*arrays)

    def attempt() -> Any:
        return work(*(None if each is None else to_device(each, device) for each in arrays))

    try:
        return retry_with_empty_pools(attempt)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        say_once(what, f"{what}: too little GPU memory, done on the CPU ({error})")
    empty_pools()
    return work(*(None if each is None else to_host(each) for each in arrays))


def say_once(what: str, text: str) -> None:
    """Log a warning, once for each kind of work in this process."""
    if what not in _said:
        _said.add(what)
        _log.warning(text)
