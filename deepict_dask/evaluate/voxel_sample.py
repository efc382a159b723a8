"""Choose voxels at random so that neither chunks nor workers change the choice.

1. Every voxel has a ticket: a 64-bit hash of a seed and of its place in the whole volume. No two
   voxels of a volume have the same ticket, because the hash is a bijection (SplitMix64).
2. The sample of n voxels is those with the n lowest tickets. The n lowest of a volume are among the
   n lowest of its parts, so samples of parts merge into that of the whole.

Thus one pass over a volume is enough, also where only voxels inside a region may be chosen and
nobody knows how many there are.

References
----------
Steele, Lea, Flood, Fast splittable pseudorandom number generators, OOPSLA 2014.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["SAMPLE_BYTES", "VoxelSample", "tickets"]

SAMPLE_BYTES = 8 + 8 + 1
"""Bytes of a voxel in a sample."""

_STEP = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_MASK = (1 << 64) - 1

Array = np.ndarray[Any, Any]


def _mixed_seed(seed: int) -> int:
    """Return 64 bits that differ much where seeds differ little."""
    return int(_mix(np.array([(seed + 1) * _STEP & _MASK], np.uint64))[0])


def _mix(values: Array) -> Array:
    """Scramble uint64 in place; no two values become one."""
    for shift, factor in _MIX:
        values ^= values >> np.uint64(shift)
        values *= np.uint64(factor)
    values ^= values >> np.uint64(31)
    return values


def tickets(places: Array, seed: int) -> Array:
    """Return the ticket of each voxel.

    Parameters
    ----------
    places
        Rows of voxels in raster order of the whole volume, int64.
    seed
        Another seed gives other tickets.

    Returns
    -------
    ndarray
        uint64, evenly spread.

    Examples
    --------
    >>> chosen = tickets(np.arange(10**5), seed=0) < 2**63
    >>> bool(abs(chosen.mean() - 0.5) < 0.01)
    True
    """
    values = np.asarray(places).astype(np.uint64)
    values *= np.uint64(_STEP)
    values += np.uint64(_mixed_seed(seed))
    return _mix(values)


@dataclass(frozen=True)
class VoxelSample:
    """Some voxels with their score and whether they are true.

    Examples
    --------
    >>> sample = VoxelSample.none()
    >>> sample = sample.add(np.arange(8), np.linspace(0, 1, 8), np.ones(8, bool), n=3, seed=1)
    >>> len(sample.ticket), sample.merge(sample, 2).ticket.tolist() == sample.ticket[:2].tolist()
    (3, False)
    """

    ticket: Array
    """uint64, in no order."""
    score: Array
    """float64."""
    true: Array
    """bool."""

    @classmethod
    def none(cls) -> VoxelSample:
        """Return an empty sample."""
        return cls(np.zeros(0, np.uint64), np.zeros(0), np.zeros(0, np.bool_))

    def add(self, places: Array, score: Array, true: Array, *, n: int, seed: int) -> VoxelSample:
        """Return the ``n`` lowest of this sample and more voxels (flat arrays of one length)."""
        drawn = tickets(places, seed)
        if len(self.ticket) == n > 0:  # most voxels are above the highest so far
            near = np.flatnonzero(drawn < self.ticket.max())
            drawn, score, true = drawn[near], score[near], true[near]
        new = VoxelSample(drawn, score.astype(np.float64), true)
        return self.merge(new._lowest(n), n)

    def merge(self, other: VoxelSample, n: int) -> VoxelSample:
        """Return the ``n`` lowest of two samples of different voxels."""
        both = VoxelSample(
            np.concatenate([self.ticket, other.ticket]),
            np.concatenate([self.score, other.score]),
            np.concatenate([self.true, other.true]),
        )
        return both._lowest(n)

    def in_order(self) -> VoxelSample:
        """Return the sample by rising ticket: one order, however it came together."""
        return self._rows(np.argsort(self.ticket))

    def _lowest(self, n: int) -> VoxelSample:
        if len(self.ticket) <= n:
            return self
        return self._rows(np.argpartition(self.ticket, n - 1)[:n] if n else np.zeros(0, np.int64))

    def _rows(self, rows: Array) -> VoxelSample:
        return VoxelSample(self.ticket[rows], self.score[rows], self.true[rows])
