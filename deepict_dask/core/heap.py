"""Let the C library keep freed memory for the next chunk, and give it back after the last one.

Dask starts its workers with ``MALLOC_TRIM_THRESHOLD_=65536``. That also stops glibc from learning
that blocks of some MiB come again and again: each is mapped afresh, and the kernel clears its pages
each time. Of the time to read chunks that was two thirds, of a network's as long as half of its
arithmetic.

Workers start with thresholds a little above a chunk (`HEAP_ENVIRONMENT`): larger arrays are given
back at once, for what is left of them in a heap was seen to exceed what a task had been planned to
hold. A process that makes a network takes the thresholds that glibc reaches by itself elsewhere;
what is left after a window, some 90 MiB, would be missing where the worker's next task is of
another kind and planned to fill it.

A training has its process to itself and needs the same blocks in each step, from threads of its
own. glibc gives such threads heaps in pieces of 64 MiB, which it returns and asks for again at each
large block: `one_heap` keeps all in one heap until the training ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["HEAP_ENVIRONMENT", "give_back_heap", "keep_heap", "one_heap"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Numbers of the parameters, from glibc's ``malloc.h``."""
MAPPED_BYTES = 32 << 20
"""Blocks from this size on are mapped one by one: the most that glibc takes."""
KEPT_BYTES = 2 * MAPPED_BYTES
"""Free memory at the heap's end from which on it is given back."""
_LARGEST = 2**31 - 1
"""The most that ``mallopt``, which takes an int, can be told."""
CHUNK_BYTES = 9 << 20
"""A chunk of 128 x 128 x 128 float32 voxels, and what is stored with it."""
HEAP_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(CHUNK_BYTES),
    "MALLOC_TRIM_THRESHOLD_": str(2 * CHUNK_BYTES),
}
"""Of processes that are yet to start."""


@lru_cache(maxsize=1)
def keep_heap() -> bool:
    """Set the thresholds of this process once; say whether its C library has them.

    Examples
    --------
    >>> keep_heap() in (True, False)
    True
    """
    mallopt = _function("mallopt")
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES) and mallopt(M_TRIM_THRESHOLD, KEPT_BYTES))


def give_back_heap() -> bool:
    """Give freed memory back to the system (measured: 12 ms for 150 MiB); say whether some was.

    Examples
    --------
    >>> give_back_heap() in (True, False)
    True
    """
    trim = _function("malloc_trim")
    return trim is not None and bool(trim(0))


@contextlib.contextmanager
def one_heap() -> Iterator[bool]:
    """Keep what is freed, of all threads started within, until the end; say whether it is so.

    Afterwards free memory is given back and the thresholds are those of `keep_heap`. That threads
    share a heap remains.

    Examples
    --------
    >>> with one_heap() as is_kept:
    ...     is_kept in (True, False)
    True
    """
    mallopt = _function("mallopt")
    if mallopt is None:
        yield False
        return
    mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)  # where the next is refused: before glibc 2.35
    can_keep = bool(mallopt(M_MMAP_THRESHOLD, _LARGEST))
    mallopt(M_TRIM_THRESHOLD, _LARGEST)
    mallopt(M_ARENA_MAX, 1)
    try:
        yield can_keep
    finally:
        mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        give_back_heap()


def _function(name: str) -> Any:
    """Return a function of glibc, None elsewhere."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
