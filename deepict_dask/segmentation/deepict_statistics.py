"""Mean and standard deviation of a tomogram to the last bit of DeePiCt's.

DeePiCt calls ``np.mean`` and ``np.std`` on the whole volume. On float32 these add in float32, and
the NumPy of its time (checked: 1.23.5) adds a 3D array in buffers of 8192 voxels:

1. each buffer, in C order, is summed pairwise in float32;
2. the buffers' sums are added one after the other in float32.

The mean of a tomogram then misses the true one by some units in the last place, which moves scores
where they are steep by up to 5e-5 (measured), so a comparison with DeePiCt needs the same miss. A
volume is read in order, slab by slab, twice; other types are summed in float64, as NumPy does.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.geometry import Box

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..core.volume import VolumeReader

__all__ = ["deepict_statistics", "statistics_of"]

Array = np.ndarray[Any, Any]

BUFFER = 8192
"""Voxels NumPy buffered in one reduction step (its default buffer size)."""
SLAB_BYTES = 64 << 20
"""Bytes read at a time."""
PART_BYTES = 8 << 20
"""Bytes of float64 that are added at a time: there are four such arrays at once."""


def deepict_statistics(volume: Array) -> tuple[float, float]:
    """Return mean and standard deviation of an array as DeePiCt would.

    Parameters
    ----------
    volume
        zyx.

    Examples
    --------
    >>> deepict_statistics(np.array([[[1, 3]]], dtype="float32"))
    (2.0, 1.0)
    """
    return _statistics(lambda: iter([volume]), volume.size, volume.dtype)


def statistics_of(reader: VolumeReader) -> tuple[float, float]:
    """Return mean and standard deviation of a volume as DeePiCt would, in bounded memory.

    Parameters
    ----------
    reader
        Read twice, in slabs along z.
    """
    header = reader.header
    plane = header.shape[1] * header.shape[2]
    depth = max(1, SLAB_BYTES // (plane * np.dtype(header.dtype).itemsize))
    n_together = max(1, PART_BYTES // (plane * np.dtype(np.float64).itemsize))

    def slabs() -> Iterator[Array]:
        for z in range(0, header.shape[0], depth):
            stop = min(header.shape[0], z + depth)
            slab = reader.read(Box((z, 0, 0), (stop, *header.shape[1:])))
            yield from (slab[i : i + n_together] for i in range(0, len(slab), n_together))
            del slab  # before the next one is read

    return _statistics(slabs, header.n_voxels, np.dtype(header.dtype))


def _statistics(
    slabs: Callable[[], Iterator[Array]], n_voxels: int, dtype: np.dtype[Any]
) -> tuple[float, float]:
    """Return mean and standard deviation from two passes over slabs."""
    kind = np.float32 if dtype.kind == "f" and dtype.itemsize == 4 else np.float64
    mean = kind(float(_ordered_sum(slabs(), kind)) / n_voxels)
    squares = (np.square(np.subtract(slab, mean, dtype=kind)) for slab in slabs())
    variance = kind(float(_ordered_sum(squares, kind)) / n_voxels)
    return float(mean), float(kind(math.sqrt(variance)))


def _ordered_sum(slabs: Iterator[Array], kind: type[np.floating[Any]]) -> np.floating[Any]:
    """Add slabs as one array in C order, by buffers; buffers may span slabs."""
    total, rest = kind(0), np.empty(0, dtype=kind)
    for slab in slabs:
        flat = np.concatenate([rest, slab.astype(kind, copy=False).ravel()])
        whole = flat.size // BUFFER * BUFFER
        total = _add_one_by_one(total, flat[:whole].reshape(-1, BUFFER).sum(axis=1, dtype=kind))
        rest = flat[whole:]
    return _add_one_by_one(total, rest.sum(dtype=kind, keepdims=True))


def _add_one_by_one(total: Any, values: Array) -> Any:
    """Return total + values[0] + values[1] + ..., rounding after each."""
    return np.add.accumulate(np.concatenate([[total], values]), dtype=values.dtype)[-1]
