"""The three kinds of work: values declared beside their kernels, run by the engine.

* A `ChunkOp` turns windows into a window: local, with a halo that it derives.
* A `TreeReduction` measures a block, combines two results, finishes. ``combine`` is associative.
* A `SpectralOp` multiplies a volume's Fourier transform by a gain: the only step that is not local.
  A `SpectralMeasure` reduces that transform to a few numbers. Either can be done in one piece, or
  in *pieces* that fit any worker (`MeasuringPieces`, `FilteringPieces`).

An op is a small picklable value: paths and numbers, never weights or voxels. The engine knows
nothing else about it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    import numpy as np

    from .geometry import Block, Box, Grid, Vec
    from .statistics import VolumeStatistics

__all__ = [
    "ChunkOp",
    "FilteringPieces",
    "MeasuringPieces",
    "SpectralMeasure",
    "SpectralOp",
    "TreeReduction",
]

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

    @property
    def uploads(self) -> bool:
        """Whether ``apply`` takes its windows to a GPU as they were read."""
        return False

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

    def bytes_of(self, grid: Grid) -> int:
        """Return the same of the largest window of a grid."""
        return self.bytes_needed(grid.window_shape)


class TreeReduction(ABC, Generic[Partial, Result]):
    """Measure a block, combine neighbours, finish."""

    name: str

    @property
    def uploads(self) -> bool:
        """Whether ``measure`` takes its windows to a GPU as they were read."""
        return False

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


class MeasuringPieces(ABC):
    """A volume's Fourier transform in pieces: first along x, then along y and z.

    * *Rows* are a box of voxels that is whole along x. A box in z and y holds whole chunks of
      what is read and written, so no chunk is read twice.
    * A *sheet* is all z and y of a few columns of the half spectrum, of shape (columns, nz, ny);
      a column is one frequency along x, of which there are nx // 2 + 1.

    Between the two the engine turns rows into sheets, through a store. Pieces are small picklable
    values; their methods are kernels. No result depends on how the volume was cut.
    """

    scratch_dtype: str
    """NumPy name of the complex type of rows and sheets."""

    @abstractmethod
    def rows(self, box: Box, voxels: Array, statistics: VolumeStatistics) -> tuple[Array, complex]:
        """Transform voxels along x.

        Parameters
        ----------
        box
            Where the voxels lie; whole along x.
        voxels
            zyx, in the volume's type; may be overwritten.
        statistics
            Of the whole volume, finite and with contrast.

        Returns
        -------
        half
            ``scratch_dtype``, of shape (z, y, nx // 2 + 1).
        note
            A number to be summed over all rows, for ``finish``; 0 where nothing is to be noted.
        """

    @abstractmethod
    def measure(self, columns: slice, sheet: Array) -> np.ndarray[Any, Any]:
        """Finish the transform of a sheet, and reduce every column.

        Parameters
        ----------
        columns
            Which columns of the half spectrum, with start and stop.
        sheet
            (columns, nz, ny), as ``rows`` left it; overwritten.

        Returns
        -------
        sums
            float64, one entry on the first axis for each column. The engine adds them in the
            order of the columns, so that the sum is the same for sheets of any width.
        """

    @abstractmethod
    def finish(self, note: complex, sums: np.ndarray[Any, Any]) -> Any:
        """Turn the sum of all notes and of all columns into the answer."""

    @abstractmethod
    def rows_bytes(self, shape: Vec) -> int:
        """Return the peak bytes ``rows`` holds for a box, its input and output included."""

    @abstractmethod
    def sheet_bytes(self, shape: Vec) -> int:
        """Return the peak bytes the hungriest method holds for a sheet, input and output too."""


class FilteringPieces(MeasuringPieces):
    """A Fourier gain in pieces; what ``finish`` returns is the gain.

    The filtered volume may need several real volumes (``n_parts``) to be put together.
    """

    n_parts: int = 1
    """How many complex volumes ``filter`` returns."""

    @abstractmethod
    def filter(self, columns: slice, sheet: Array, gain: Any) -> tuple[Array, ...]:
        """Transform a sheet (as ``rows`` left it; overwritten) along y and z, multiply, go back.

        Returns
        -------
        parts
            ``n_parts`` sheets that still are transforms along x.
        """

    @abstractmethod
    def voxels(
        self, parts: tuple[Array, ...], gain: Any, statistics: VolumeStatistics, out: Array
    ) -> None:
        """Undo the transform along x and write the voxels into ``out``, float32 zyx.

        ``parts`` are views of shape (z, y, nx // 2 + 1) and may be overwritten.
        """

    @abstractmethod
    def voxels_bytes(self, shape: Vec) -> int:
        """Return the peak bytes ``voxels`` holds for rows, without ``out``."""


class SpectralMeasure(ABC, Generic[Result]):
    """A few numbers from a volume's Fourier transform."""

    name: str

    @abstractmethod
    def measure(self, volume: Array) -> Result:
        """Return the answer for a whole zyx volume, which is not changed."""

    @abstractmethod
    def bytes_needed(self, shape: Vec) -> int:
        """Return the peak bytes ``measure`` holds, its input included."""

    @abstractmethod
    def in_pieces(self, shape: Vec) -> MeasuringPieces:
        """Return the same measurement in pieces, whose ``finish`` returns the answer."""


class SpectralOp(ABC):
    """A Fourier gain over a whole volume."""

    name: str

    @abstractmethod
    def transform(self, volume: Array) -> np.ndarray[Any, Any]:
        """Return the filtered float32 zyx volume; may overwrite its input."""

    @abstractmethod
    def bytes_needed(self, shape: Vec) -> int:
        """Return the peak bytes ``transform`` holds, its input and output included."""

    @abstractmethod
    def in_pieces(self, shape: Vec) -> FilteringPieces:
        """Return the same transform in pieces, for volumes that do not fit a worker."""
