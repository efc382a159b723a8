"""Let the C library keep freed memory for the next slab, rather than give back every page at once.

Dask starts its workers with ``MALLOC_TRIM_THRESHOLD_=65536``. That also stops glibc from learning
that blocks of some MiB come again and again: each is mapped afresh, and the kernel clears its pages
each time, which took as long as half of the network's arithmetic. The thresholds set here are those
that glibc reaches by itself elsewhere.
"""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache

__all__ = ["keep_heap"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of the parameters, from glibc's ``malloc.h``."""
MAPPED_BYTES = 32 << 20
"""Blocks from this size on are mapped one by one: the most that glibc takes."""


@lru_cache(maxsize=1)
def keep_heap() -> bool:
    """Set the thresholds of this process once; say whether its C library has them.

    Examples
    --------
    >>> keep_heap() in (True, False)
    True
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(
        mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES) and mallopt(M_TRIM_THRESHOLD, 2 * MAPPED_BYTES)
    )
