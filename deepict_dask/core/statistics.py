"""Mean, standard deviation and range of a volume, measured by chunks.

1. Each block is measured in small pieces, so that temporaries do not grow with the block.
2. Integers: sums and sums of squares are exact (16-bit digits in int64, then Python integers), so
   the answer does not depend on the order at all.
3. Floats: mean and sum of squared deviations in float64, merged by the formula of Chan, Golub and
   LeVeque (1979), which does not cancel where the mean is far from zero.
4. NaN and infinite voxels are left out and counted, and the first one in raster order is kept.

A caller that normalises voxels casts mean and std to float32 first: the last digits of the float64
values may differ with the chunking, the float32 ones do not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import VoxelValueError
from .geometry import as_vec
from .ops import TreeReduction

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .geometry import Block, Vec

__all__ = ["StatisticsPartial", "StatisticsReduction", "VolumeStatistics"]

Array = np.ndarray[Any, Any]
PIECE_VOXELS = 1 << 18
"""Voxels measured at a time: large enough for NumPy's speed, small enough for a cache."""
PIECE_BYTES = 48 * PIECE_VOXELS
"""Temporaries of one piece: up to four int64 digits, a mask and a contiguous copy."""


@dataclass(frozen=True)
class VolumeStatistics:
    """What is known of the voxel values of a volume.

    Examples
    --------
    >>> from deepict_dask.core.geometry import Grid
    >>> reduction = StatisticsReduction()
    >>> volume = np.arange(8, dtype="float32").reshape(2, 2, 2)
    >>> parts = [reduction.measure(block, volume[block.read.slices])
    ...          for block in Grid((2, 2, 2), (1, 2, 2))]
    >>> statistics = reduction.finalize(reduction.combine(*parts))
    >>> statistics.mean, round(statistics.std, 3), statistics.maximum, statistics.count
    (3.5, 2.291, 7.0, 8)
    """

    count: int
    """Finite voxels."""
    mean: float
    """Mean of the finite voxels; NaN where there are none."""
    std: float
    """Standard deviation of the finite voxels (ddof 0)."""
    minimum: float
    maximum: float
    n_nonfinite: int = 0
    """Voxels that are NaN or infinite."""
    first_nonfinite: Vec | None = None
    """The first of them in raster order, zyx."""

    def require_finite(self, path: str) -> None:
        """Refuse a volume with NaN or infinite voxels.

        Parameters
        ----------
        path
            The volume's file, for the message.

        Raises
        ------
        VoxelValueError
            Names the number of such voxels, the first one and the command that replaces them.

        Examples
        --------
        >>> VolumeStatistics(7, 0.0, 1.0, -1.0, 1.0, 1, (0, 1, 1)).require_finite("a.mrc")
        Traceback (most recent call last):
        ...
        deepict_dask.core.errors.VoxelValueError: a.mrc: expected finite voxels, found 1 of 8 NaN \
or infinite, the first at zyx (0, 1, 1); replace them with `deepict-dask convert a.mrc OUT \
--fill-nonfinite VALUE`
        """
        if self.n_nonfinite == 0:
            return
        raise VoxelValueError(
            f"{path}: expected finite voxels, found {self.n_nonfinite} of "
            f"{self.count + self.n_nonfinite} NaN or infinite, the first at zyx "
            f"{self.first_nonfinite}; replace them with `deepict-dask convert {path} OUT "
            "--fill-nonfinite VALUE`"
        )

    def require_contrast(self, path: str) -> None:
        """Refuse a volume whose voxels all have one value.

        Raises
        ------
        VoxelValueError
            If the maximum equals the minimum, or there are no finite voxels.

        Examples
        --------
        >>> VolumeStatistics(8, 2.0, 0.0, 2.0, 2.0).require_contrast("a.mrc")
        Traceback (most recent call last):
        ...
        deepict_dask.core.errors.VoxelValueError: a.mrc: expected voxels of different values, \
found 8 times 2.0; is this the right file?
        """
        if not self.maximum > self.minimum:
            raise VoxelValueError(
                f"{path}: expected voxels of different values, found {self.count} times "
                f"{self.minimum}; is this the right file?"
            )


@dataclass(frozen=True)
class _IntegerSums:
    """Exact sums of integer voxels."""

    count: int = 0
    total: int = 0
    total_squares: int = 0

    def merge(self, other: _IntegerSums) -> _IntegerSums:
        return _IntegerSums(
            self.count + other.count,
            self.total + other.total,
            self.total_squares + other.total_squares,
        )

    @property
    def mean(self) -> float:
        return self.total / self.count

    @property
    def std(self) -> float:
        squares = self.count * self.total_squares - self.total**2
        return math.sqrt(squares / self.count**2)


@dataclass(frozen=True)
class _FloatMoments:
    """Mean and sum of squared deviations of float voxels."""

    count: int = 0
    mean: float = 0.0
    deviations: float = 0.0

    def merge(self, other: _FloatMoments) -> _FloatMoments:
        if not (self.count and other.count):
            return self if self.count else other
        count = self.count + other.count
        step = other.mean - self.mean
        # Weighing both means keeps merge(a, b) == merge(b, a) to the last bit.
        mean = (self.count * self.mean + other.count * other.mean) / count
        apart = step * step * (self.count * other.count / count)
        return _FloatMoments(count, mean, self.deviations + other.deviations + apart)

    @property
    def std(self) -> float:
        return math.sqrt(self.deviations / self.count)


@dataclass(frozen=True)
class StatisticsPartial:
    """Statistics of some blocks, ready to be combined with those of others."""

    moments: Any
    """Exact integer sums, or float moments, by the voxels' type."""
    minimum: float
    maximum: float
    n_nonfinite: int
    first_nonfinite: Vec | None


@dataclass(frozen=True)
class StatisticsReduction(TreeReduction[StatisticsPartial, VolumeStatistics]):
    """Statistics of a volume of any real type; chunked equals whole.

    Integer volumes agree with any chunking exactly, float volumes to about 1e-14 relative.

    Examples
    --------
    >>> StatisticsReduction("int16").bytes_needed((64, 64, 64)) < 16 * 2**20
    True
    """

    dtype: str = "float32"
    """NumPy name of the windows' type; only ``bytes_needed`` depends on it."""
    name: str = field(default="statistics", init=False)

    def measure(self, block: Block, *windows: Array) -> StatisticsPartial:
        """Measure the write box of one window (zyx, any real dtype)."""
        voxels = np.asarray(block.crop(windows[0]))
        if voxels.dtype.kind in "iub":
            return _measure_integers(voxels)
        partial = _measure_floats(voxels)
        if partial.n_nonfinite == 0:
            return partial
        first = np.argmax(~np.isfinite(voxels))
        inside = np.unravel_index(first, voxels.shape)
        position = [int(a) + b for a, b in zip(inside, block.write.start, strict=True)]
        return _with_first(partial, as_vec(position))

    def combine(self, left: StatisticsPartial, right: StatisticsPartial) -> StatisticsPartial:
        """Merge the statistics of two disjoint sets of voxels."""
        found = [p.first_nonfinite for p in (left, right) if p.first_nonfinite is not None]
        return StatisticsPartial(
            left.moments.merge(right.moments),
            min(left.minimum, right.minimum),
            max(left.maximum, right.maximum),
            left.n_nonfinite + right.n_nonfinite,
            min(found, default=None),
        )

    def finalize(self, partial: StatisticsPartial) -> VolumeStatistics:
        """Return the statistics of the whole."""
        moments = partial.moments
        known = moments.count > 0
        return VolumeStatistics(
            count=moments.count,
            mean=moments.mean if known else math.nan,
            std=moments.std if known else math.nan,
            minimum=partial.minimum if known else math.nan,
            maximum=partial.maximum if known else math.nan,
            n_nonfinite=partial.n_nonfinite,
            first_nonfinite=partial.first_nonfinite,
        )

    def bytes_needed(self, window_shape: Vec) -> int:
        """Return the window's bytes, a byte a voxel to find bad voxels, and one piece's."""
        return math.prod(window_shape) * (np.dtype(self.dtype).itemsize + 2) + PIECE_BYTES


def _with_first(partial: StatisticsPartial, position: Vec) -> StatisticsPartial:
    """Return the partial with the place of its first bad voxel."""
    return StatisticsPartial(
        partial.moments, partial.minimum, partial.maximum, partial.n_nonfinite, position
    )


def _pieces(voxels: Array) -> Iterator[Array]:
    """Cut a zyx array into views of at most about ``PIECE_VOXELS``."""
    n_z, n_y, n_x = voxels.shape
    z_step = max(1, PIECE_VOXELS // max(1, n_y * n_x))
    y_step = n_y if n_y * n_x <= PIECE_VOXELS else max(1, PIECE_VOXELS // n_x)
    for z in range(0, n_z, z_step):
        for y in range(0, n_y, max(1, y_step)):
            yield voxels[z : z + z_step, y : y + y_step]


def _measure_integers(voxels: Array) -> StatisticsPartial:
    """Measure an integer or bool array exactly."""
    values = voxels.view(np.uint8) if voxels.dtype.kind == "b" else voxels
    sums = _IntegerSums()
    for piece in _pieces(values):
        sums = sums.merge(_integer_sums(piece.ravel()))
    low, high = (int(values.min()), int(values.max())) if values.size else (math.inf, -math.inf)
    return StatisticsPartial(sums, low, high, 0, None)


def _integer_sums(values: Array) -> _IntegerSums:
    """Sum values and squares exactly, by signed 16-bit digits whose products fit int64."""
    digits = _digits(values)
    total = sum(int(d.sum()) << (16 * k) for k, d in enumerate(digits))
    squares = sum(
        int(np.dot(a, b)) << (16 * (j + k))
        for j, a in enumerate(digits)
        for k, b in enumerate(digits)
    )
    return _IntegerSums(values.size, total, squares)


def _digits(values: Array) -> list[Array]:
    """Return int64 digits, least first: ``values == sum(digit << 16 * k)``."""
    n_digits = max(1, values.dtype.itemsize // 2)
    digits = [
        ((values >> values.dtype.type(16 * k)) & values.dtype.type(0xFFFF)).astype(np.int64)
        for k in range(n_digits - 1)
    ]
    top = values >> values.dtype.type(16 * (n_digits - 1)) if n_digits > 1 else values
    return [*digits, top.astype(np.int64)]


def _measure_floats(voxels: Array) -> StatisticsPartial:
    """Measure the finite voxels of a float array."""
    moments, low, high, n_bad = _FloatMoments(), math.inf, -math.inf, 0
    for piece in _pieces(voxels):
        finite = np.isfinite(piece)
        values = piece[finite] if not finite.all() else piece.ravel()
        n_bad += piece.size - values.size
        if values.size:
            moments = moments.merge(_float_moments(values.astype(np.float64)))
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    return StatisticsPartial(moments, low, high, n_bad, None)


def _float_moments(values: Array) -> _FloatMoments:
    """Return the moments of one float64 piece (NumPy sums pairwise); overwrites it."""
    mean = float(values.mean())
    values -= mean
    return _FloatMoments(values.size, mean, float(np.dot(values, values)))
