"""NumPy or CuPy, decided by the array: the only place that imports cupy, cupyx and cucim."""

from .arrays import fft_of, from_dlpack, is_on_device, namespace_of, ndimage_of, to_device, to_host
from .bus import BusBytes, bus_bytes
from .components import label_components
from .device import Device, count_gpus, resolve_device
from .memory import (
    compute_on,
    device_budget,
    empty_pools,
    free_device_bytes,
    is_out_of_memory,
    retry_with_empty_pools,
    say_once,
)
from .pinned import pinned
from .turn import after_turn, device_turn

__all__ = [
    "BusBytes",
    "Device",
    "after_turn",
    "bus_bytes",
    "compute_on",
    "count_gpus",
    "device_budget",
    "device_turn",
    "empty_pools",
    "fft_of",
    "free_device_bytes",
    "from_dlpack",
    "is_on_device",
    "is_out_of_memory",
    "label_components",
    "namespace_of",
    "ndimage_of",
    "pinned",
    "resolve_device",
    "retry_with_empty_pools",
    "say_once",
    "to_device",
    "to_host",
]
