"""Bytes that this process has copied between the host's memory and a GPU's.

Windows, chunks, faces and tables are moved by `deepict_dask.backend.to_device` and `to_host`, which
count here. Not counted are what PyTorch moves for networks that take NumPy arrays (2D networks,
DeepFinder's, DeepETPicker's), small tables that CuPy makes of host arrays, and single numbers.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

__all__ = ["BusBytes", "bus_bytes", "count_bus_bytes"]


@dataclass(frozen=True)
class BusBytes:
    """Bytes of arrays that went either way.

    Examples
    --------
    >>> BusBytes(10, 4) - BusBytes(8, 4)
    BusBytes(to_device=2, to_host=0)
    """

    to_device: int = 0
    to_host: int = 0

    def __add__(self, other: BusBytes) -> BusBytes:
        return BusBytes(self.to_device + other.to_device, self.to_host + other.to_host)

    def __sub__(self, other: BusBytes) -> BusBytes:
        return BusBytes(self.to_device - other.to_device, self.to_host - other.to_host)


class _Counter:
    """What all threads of the process have copied."""

    def __init__(self) -> None:
        self.lock, self.total = threading.Lock(), BusBytes()


_COUNTER = _Counter()


def bus_bytes() -> BusBytes:
    """Return what this process has copied since it began; take the difference of two calls.

    Examples
    --------
    >>> before = bus_bytes()
    >>> count_bus_bytes(to_host=12)
    >>> (bus_bytes() - before).to_host
    12
    """
    with _COUNTER.lock:
        return _COUNTER.total


def count_bus_bytes(*, to_device: int = 0, to_host: int = 0) -> None:
    """Add what has been copied."""
    with _COUNTER.lock:
        _COUNTER.total += BusBytes(to_device, to_host)
