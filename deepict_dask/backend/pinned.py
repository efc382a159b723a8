"""Windows in page-locked memory of the host, which a GPU fetches by itself.

CuPy copies an ordinary array to such memory before it uploads it, and does so while the GPU waits.
A copy that is made where the window is read is uploaded as it is.
"""

from __future__ import annotations

import importlib
import threading
from typing import TYPE_CHECKING, Any

from .arrays import cupy_module, is_pinned
from .memory import is_out_of_memory, say_once

if TYPE_CHECKING:
    import numpy as np

__all__ = ["pinned"]


class _Kept:
    """The size of the blocks that CuPy keeps of copies that are gone, for further ones."""

    def __init__(self) -> None:
        self.lock, self.n_bytes = threading.Lock(), 0


_KEPT = _Kept()


def pinned(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return a copy in page-locked memory; the array itself where it is there or none is left.

    Windows of one shape share a few blocks; those of another shape are given back first.

    Parameters
    ----------
    array
        NumPy, of any shape and of a type that CuPy has.

    Raises
    ------
    DeviceError
        CuPy cannot be imported.
    """
    cupy = cupy_module()
    if is_pinned(array):
        return array
    with _KEPT.lock:
        if array.nbytes != _KEPT.n_bytes:
            cupy.get_default_pinned_memory_pool().free_all_blocks()
            _KEPT.n_bytes = array.nbytes
    try:
        copy: np.ndarray[Any, Any] = importlib.import_module("cupyx").empty_pinned(
            array.shape, array.dtype
        )
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        say_once("pinned", f"GPU: too little page-locked memory, windows go without it ({error})")
        return array
    copy[...] = array
    return copy
