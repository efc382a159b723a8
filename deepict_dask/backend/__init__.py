"""NumPy or CuPy, decided by the array: the only place that imports cupy, cupyx and cucim."""

from .arrays import fft_of, is_on_device, namespace_of, ndimage_of, to_device, to_host
from .components import label_components
from .device import Device, resolve_device

__all__ = [
    "Device",
    "fft_of",
    "is_on_device",
    "label_components",
    "namespace_of",
    "ndimage_of",
    "resolve_device",
    "to_device",
    "to_host",
]
