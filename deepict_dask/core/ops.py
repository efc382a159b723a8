"""The three kinds of work: values declared beside their kernels, run by the engine.

* A `ChunkOp` turns windows into a window: local, with a halo that it derives.
* A `TreeReduction` measures a block, combines two results, finishes. ``combine`` is associative.
* A `SpectralOp` multiplies a volume's Fourier transform by a gain: the only step that is not local.

An op is a small picklable value: paths and numbers, never weights or voxels. The engine knows
nothing else about it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    import numpy as np

    from .geometry import Block, Vec

__all__ = ["ChunkOp", "SpectralOp", "TreeReduction"]

Array = Any
Partial = TypeVar("Partial")
Result = TypeVar("Result")


class ChunkOp(ABC):
    """Windows in, a window out.

    Examples
    --------
    >>> import numpy as np
    >>> from deepict_dask.core.geometry import Grid
    >>> class Double(ChunkOp):
    ...     name = "double"
    ...     dtype = "float32"
    ...     def apply(self, block, window):
    ...         return 2 * window
    ...     def bytes_needed(self, window_shape):
    ...         return 8 * int(np.prod(window_shape))
    >>> block = Grid((2, 2, 2), (2, 2, 2))[0]
    >>> float(Double().apply(block, np.ones((2, 2, 2))).sum())
    16.0
    """

    name: str
    """The stage, as progress bars and messages show it."""
    dtype: str
    """NumPy name of what ``apply`` returns."""

    @property
    def halo(self) -> Vec:
        """Voxels needed on every side of a voxel to compute it; derived, never configured."""
        return (0, 0, 0)

    @property
    def align(self) -> int:
        """Windows must start on multiples of this."""
        return 1

    @abstractmethod
    def apply(self, block: Block, *windows: Array) -> np.ndarray[Any, Any]:
        """Return the result over ``block.read`` (zyx, or czyx); the engine crops it.

        Parameters
        ----------
        block
            Where the windows lie in the volume.
        *windows
            One zyx array over ``block.read`` for each source, in the source's dtype.
        """

    @abstractmethod
    def bytes_needed(self, window_shape: Vec) -> int:
        """Return the peak bytes one ``apply`` holds for a window, with its inputs and output."""


class TreeReduction(ABC, Generic[Partial, Result]):
    """Measure a block, combine neighbours, finish."""

    name: str

    @abstractmethod
    def measure(self, block: Block, *windows: Array) -> Partial:
        """Reduce one block to a partial result."""

    @abstractmethod
    def combine(self, left: Partial, right: Partial) -> Partial:
        """Merge two partial results; associative, so that the tree's shape does not matter."""

    @abstractmethod
    def finalize(self, partial: Partial) -> Result:
        """Turn the root's partial result into the answer."""

    @abstractmethod
    def bytes_needed(self, window_shape: Vec) -> int:
        """Return the peak bytes one ``measure`` holds for a window, its inputs included."""


class SpectralOp(ABC):
    """A Fourier gain over a whole volume."""

    name: str

    @abstractmethod
    def transform(self, volume: Array) -> np.ndarray[Any, Any]:
        """Return the filtered float32 zyx volume; may overwrite its input."""

    @abstractmethod
    def bytes_needed(self, shape: Vec) -> int:
        """Return the peak bytes ``transform`` holds, its input and output included."""
