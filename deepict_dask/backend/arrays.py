"""The library that works on an array.

An array's type says where its voxels are: a NumPy array is in the host's memory, a CuPy array on a
GPU. Kernels ask for the library that fits and run the same lines on both. Arrays of the two kinds
never mix silently, since a hidden copy over the bus costs more than most kernels.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import DeviceError
from .bus import count_bus_bytes

if TYPE_CHECKING:
    from types import ModuleType

    from .device import Device

__all__ = [
    "cupy_module",
    "fft_of",
    "from_dlpack",
    "is_on_device",
    "is_pinned",
    "namespace_of",
    "ndimage_of",
    "to_device",
    "to_host",
]


def is_on_device(array: Any) -> bool:
    """Say whether an array is a CuPy array; CuPy itself is not imported.

    Raises
    ------
    DeviceError
        If the value is neither a NumPy nor a CuPy array.

    Examples
    --------
    >>> is_on_device(np.zeros(3))
    False
    """
    if isinstance(array, (np.ndarray, np.generic)):
        return False
    if type(array).__module__.partition(".")[0] == "cupy":
        return True
    kind = f"{type(array).__module__}.{type(array).__qualname__}"
    raise DeviceError(
        f"backend: expected a NumPy or CuPy array, found {kind}; convert it with numpy.asarray"
    )


def namespace_of(*arrays: Any) -> ModuleType:
    """Return ``numpy`` or ``cupy``, whichever made the arrays.

    Parameters
    ----------
    *arrays
        One or more arrays that will be used together.

    Raises
    ------
    DeviceError
        If NumPy and CuPy arrays are mixed, or a value is neither.

    Examples
    --------
    >>> namespace_of(np.zeros(3), np.ones(3)).__name__
    'numpy'
    """
    return _library("cupy") if _all_on_device(arrays) else np


def ndimage_of(*arrays: Any) -> ModuleType:
    """Return ``scipy.ndimage`` or ``cupyx.scipy.ndimage``; errors as in `namespace_of`.

    Examples
    --------
    >>> ndimage_of(np.zeros(3)).__name__
    'scipy.ndimage'
    """
    return _library("cupyx.scipy.ndimage" if _all_on_device(arrays) else "scipy.ndimage")


def fft_of(*arrays: Any) -> ModuleType:
    """Return ``scipy.fft`` or ``cupyx.scipy.fft``; errors as in `namespace_of`.

    Both keep float32 as complex64. Only the first knows ``workers``.

    Examples
    --------
    >>> fft_of(np.zeros(3)).__name__
    'scipy.fft'
    """
    return _library("cupyx.scipy.fft" if _all_on_device(arrays) else "scipy.fft")


def to_device(array: Any, device: Device) -> Any:
    """Return the array on a device, copied only where it is elsewhere.

    Examples
    --------
    >>> from deepict_dask.backend import resolve_device
    >>> to_device(np.zeros(3), resolve_device("cpu")).shape
    (3,)
    """
    if not device.is_gpu:
        return to_host(array)
    if is_on_device(array):
        return array
    cupy = _library("cupy")
    count_bus_bytes(to_device=array.nbytes)
    if not (is_pinned(array) and array.flags.c_contiguous):
        return cupy.asarray(array)
    there = cupy.empty(array.shape, array.dtype)
    there.set(array)  # ``asarray`` would copy it to page-locked memory once more
    return there


def to_host(array: Any) -> np.ndarray[Any, Any]:
    """Return the array in the host's memory, copied only where it is on a GPU.

    Examples
    --------
    >>> voxels = np.zeros(3)
    >>> to_host(voxels) is voxels
    True
    """
    if not is_on_device(array):
        return array
    there: np.ndarray[Any, Any] = array.get()
    count_bus_bytes(to_host=there.nbytes)
    return there


def is_pinned(array: Any) -> bool:
    """Say whether a NumPy array lies in page-locked memory of CuPy's.

    Examples
    --------
    >>> is_pinned(np.zeros(3)[1:])
    False
    """
    owner = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    return type(owner).__name__ == "PinnedMemoryPointer"


def cupy_module() -> ModuleType:
    """Return ``cupy``.

    Raises
    ------
    DeviceError
        It cannot be imported.
    """
    return _library("cupy")


def from_dlpack(tensor: Any) -> Any:
    """Return a tensor of another library on the GPU as a CuPy array that shares its memory.

    Raises
    ------
    DeviceError
        CuPy cannot be imported.
    """
    return cupy_module().from_dlpack(tensor)


def _all_on_device(arrays: tuple[Any, ...]) -> bool:
    """Say where all the arrays are; refuse a mixture."""
    places = {is_on_device(array) for array in arrays}
    if len(places) != 1:
        found = ", ".join("GPU" if is_on_device(a) else "host" for a in arrays) or "no array"
        raise DeviceError(
            f"backend: expected arrays in one place, found {found}; "
            "move them with to_device or to_host first"
        )
    return places.pop()


def _library(name: str) -> ModuleType:
    """Import a library, or say which one is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DeviceError(
            f"backend: expected {name} for an array on the GPU, found: {error}; "
            "install deepict-dask[cuda12] or deepict-dask[cuda13]"
        ) from error
