"""The mean that DeePiCt subtracts: float32 sums of 8192 voxels, added up in float32.

DeePiCt calls ``np.mean`` on the volume as read. There NumPy sums through a buffer of 8192 voxels
in raster order, and a float32 total of millions of voxels loses its last digits: up to some 1e-5 of
a standard deviation, which the network turns into 5e-5 of a score. To agree with published maps to
1e-5 the same digits must be lost. By default ours sums exactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["buffered_mean"]

_BUFFER = 8192
"""Elements of NumPy's iteration buffer (np.getbufsize())."""


def buffered_mean(slabs: Iterable[np.ndarray[Any, Any]]) -> float:
    """Return the mean of a float32 volume as DeePiCt computes it.

    Parameters
    ----------
    slabs
        float32 pieces of the volume in raster order.

    Examples
    --------
    >>> volume = np.random.default_rng(0).normal(38, 5, (9, 40, 50)).astype("float32")
    >>> buffered_mean([volume[:4], volume[4:]]) == float(volume.astype(">f4").mean())
    True
    """
    total, count = np.float32(0), 0
    rest = np.empty(0, np.float32)
    for slab in slabs:
        count += slab.size
        flat = np.concatenate([rest, slab.ravel()])
        whole = len(flat) // _BUFFER * _BUFFER
        sums = np.add.reduce(flat[:whole].reshape(-1, _BUFFER), axis=1)
        total = np.add.accumulate(np.concatenate([[total], sums]), dtype=np.float32)[-1]
        rest = flat[whole:]
    total = np.float32(total + np.add.reduce(rest))
    return float(total / np.float32(count))
