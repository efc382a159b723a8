"""Smooth a score map along z and cut it at a threshold: the last step of a 2D segmentation.

A 2D network sees one slice at a time, so its scores jump from slice to slice. A Gaussian along z
joins them, and voxels above a threshold are the organelle.

1. The kernel has ``int(4 * sigma + 0.5)`` slices on both sides (SciPy's ``truncate`` of 4), which
   is the halo; y and x need none.
2. A window ends in front of the volume's end or at it. Only there the slices are reflected, again
   and again where the volume is thinner than the kernel. A window that is cut off at one end holds
   all that its reflection reads, so SciPy on the window does what SciPy on the volume does.
3. Each sum adds the same numbers in the same order as on the whole volume (float64, rounded to
   float32): equal bit for bit, whatever the chunks.
4. Above the threshold means above it, not at it.

Source: behaviour of the 2D post-processing of github.com/ZauggGroup/DeePiCt at 4a96629, where a
threshold of 0 means none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ConfigError, VoxelValueError
from ..core.ops import ChunkOp

if TYPE_CHECKING:
    from ..core.geometry import Block, Vec

__all__ = ["SmoothOp", "check_smoothing", "gaussian_reach", "smooth_along_z", "voxels_above"]

Array = np.ndarray[Any, Any]

TRUNCATE = 4.0
"""Standard deviations after which the kernel ends."""


def gaussian_reach(sigma: float) -> int:
    """Return how many slices a kernel has on either side.

    Examples
    --------
    >>> gaussian_reach(5.0), gaussian_reach(0.0)
    (20, 0)
    """
    return int(TRUNCATE * sigma + 0.5)


def check_smoothing(sigma: float, threshold: float | None) -> None:
    """Refuse what is no width or no threshold.

    Raises
    ------
    ConfigError
        ``sigma`` is negative or not finite, or ``threshold`` is not finite.

    Examples
    --------
    >>> check_smoothing(-1.0, 0.5)
    Traceback (most recent call last):
    ...
    deepict_dask.core.errors.ConfigError: z_sigma: expected a number of voxels, 0 for none, found -1
    """
    if not (math.isfinite(sigma) and sigma >= 0):
        raise ConfigError(f"z_sigma: expected a number of voxels, 0 for none, found {sigma:g}")
    if threshold is not None and not math.isfinite(threshold):
        raise ConfigError(f"threshold: expected a finite score, 0 for none, found {threshold:g}")


def smooth_along_z(scores: Array, sigma: float) -> None:
    """Smooth in place with a Gaussian along z; the ends are reflected.

    One row along x is smoothed for all z at a time: what is held besides is one such row, and the
    processor's cache keeps it.

    Parameters
    ----------
    scores
        float32, zyx or czyx; may be a view.
    sigma
        Standard deviation in voxels; 0 changes nothing.

    Examples
    --------
    >>> scores = np.array([0, 0, 1, 0, 0], dtype="float32").reshape(5, 1, 1)
    >>> smooth_along_z(scores, sigma=0.5)
    >>> scores.ravel().astype(float).round(3).tolist()
    [0.0, 0.106, 0.787, 0.106, 0.0]
    """
    from scipy.ndimage import gaussian_filter1d

    if gaussian_reach(sigma) == 0:
        return
    for y in range(scores.shape[-2]):
        row = scores[..., y, :]
        row[...] = gaussian_filter1d(row, sigma, axis=-2, mode="reflect", truncate=TRUNCATE)


def voxels_above(scores: Array, threshold: float | None) -> Array:
    """Return 1 where a score is above the threshold and 0 elsewhere; the scores without one.

    Parameters
    ----------
    scores
        float32 of any shape. NaN is above nothing.
    threshold
        None and 0 leave the scores as they are.

    Returns
    -------
    numpy.ndarray
        uint8, or the float32 scores.

    Examples
    --------
    >>> voxels_above(np.array([0.4, 0.5, 0.6], dtype="float32"), 0.5).tolist()
    [0, 0, 1]
    """
    return (scores > threshold).view(np.uint8) if threshold else scores


@dataclass(frozen=True)
class SmoothOp(ChunkOp):
    """A stored score map, smoothed along z and cut at a threshold.

    The one source is the score map, of any real type. The result is zyx: a uint8 mask, or float32
    scores where ``threshold`` is None or 0.

    Raises
    ------
    ConfigError
        ``sigma`` is negative, or a number is not finite.

    Examples
    --------
    >>> op = SmoothOp(sigma=5.0, threshold=0.5)
    >>> op.halo, op.dtype
    ((20, 0, 0), 'uint8')
    """

    sigma: float
    """Standard deviation along z in voxels."""
    threshold: float | None = None
    keep_nan: bool = False
    """Take NaN scores, which DeePiCt's tiles may leave, for outside instead of refusing them."""
    source_dtype: str = "float32"
    """NumPy name of the windows' type; only ``bytes_needed`` depends on it."""
    name: str = "polish"

    def __post_init__(self) -> None:
        check_smoothing(self.sigma, self.threshold)

    @property
    def dtype(self) -> str:  # type: ignore[override]
        """uint8 for a mask, float32 for scores."""
        return "uint8" if self.threshold else "float32"

    @property
    def halo(self) -> Vec:
        """Slices needed on both sides, derived from the kernel."""
        return (gaussian_reach(self.sigma), 0, 0)

    def apply(self, block: Block, *windows: Any) -> Array:
        """Return the result over ``block.read``; right over ``block.write`` only.

        Raises
        ------
        VoxelValueError
            Scores are NaN, and ``keep_nan`` is not set.
        """
        scores = np.array(windows[0], dtype=np.float32)
        if not self.keep_nan:
            _refuse_nan(scores, block)
        smooth_along_z(scores, self.sigma)
        return voxels_above(scores, self.threshold)

    def bytes_needed(self, window_shape: Vec) -> int:
        """Return the peak bytes of one window: as read, smoothed, cut, and packed for the store."""
        per_voxel = np.dtype(self.source_dtype).itemsize + 4 + 2 * np.dtype(self.dtype).itemsize
        return math.prod(window_shape) * per_voxel


def _refuse_nan(scores: Array, block: Block) -> None:
    """Refuse NaN, which smoothing would spread silently."""
    bad = np.isnan(scores)
    if bad.any():
        first = np.unravel_index(int(np.argmax(bad)), scores.shape)
        place = tuple(int(a) + b for a, b in zip(first, block.read.start, strict=True))
        raise VoxelValueError(
            f"expected scores, found NaN, the first of this block at zyx {place}; predict again "
            "without --compat deepict, whose tiles may leave gaps, or polish with "
            "--compat deepict, which takes NaN for outside"
        )
