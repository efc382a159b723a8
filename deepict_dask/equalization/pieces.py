"""The same spectra and filters in pieces, for volumes that do not fit a worker.

`core.ops` says what rows and sheets are. Every step calls the kernels of the whole-volume path on
a part of its arrays, in the same order and precision, so the two agree to rounding errors:

* physical: rows and sheets are complex64; the filtered volume is one half spectrum.
* deepict: the filter takes two (see `deepict_compat`); its spectrum alone is measured in
  complex128, for filtering in complex64, both as on whole volumes.

A sheet is worked on a column at a time, so that the temporaries are those of one column.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend import namespace_of
from ..core.geometry import Box
from ..core.ops import FilteringPieces, MeasuringPieces
from ..core.spectrum import Spectrum
from .deepict_compat import to_unit_range
from .deepict_shells import (
    corner_term,
    has_corner_shell,
    has_odd_part,
    shell_means,
    shell_sums,
    times_kernel,
)
from .fourier import (
    SLAB_BYTES_PER_VOXEL,
    SLAB_VOXELS,
    half_bytes,
    half_to_rows,
    rows_to_half,
    sheet_backward,
    sheet_forward,
    slabs,
    subtract_and_divide,
)
from .gain import Gain, apply_gain
from .spectrum import RadialKnots, amplitude_sums, means_at_knots, spectrum_at_knots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..core.geometry import Vec
    from ..core.statistics import VolumeStatistics

__all__ = ["DeepictFilter", "DeepictPieces", "PhysicalFilter", "PhysicalPieces"]

Array = Any


@dataclass(frozen=True)
class _Pieces(MeasuringPieces):
    """What the two modes share."""

    shape: Vec
    """Voxels of the volume, zyx."""
    source_dtype: str = "float32"
    """NumPy name of its type; for the bytes only."""
    scratch_dtype: str = "complex64"

    def rows_bytes(self, shape: Vec) -> int:
        """Return the bytes of the voxels, of their half spectrum, and of one slab's temporaries."""
        voxels = math.prod(shape) * np.dtype(self.source_dtype).itemsize
        return voxels + half_bytes(shape, self.scratch_dtype) + _slab_of(shape)

    def sheet_bytes(self, shape: Vec) -> int:
        """Return the bytes of the sheet, of one transformed column and of its temporaries."""
        columns = 1 + self._sheets_held * shape[0]
        plane = shape[1] * shape[2]
        return columns * plane * np.dtype(self.scratch_dtype).itemsize + _slab_of((*shape[1:], 1))

    @property
    def _sheets_held(self) -> int:
        """Arrays as large as the sheet."""
        return 1

    def _measured(self, columns: slice, sheet: Array, sums: Callable[..., Array]) -> Array:
        """Transform along y and z; stack what ``sums`` makes of each column."""
        sheet_forward(sheet)
        return np.stack([sums(one, columns=where) for where, one in _each(columns, sheet)])


@dataclass(frozen=True)
class PhysicalPieces(_Pieces):
    """The spectrum by frequency in 1/Å; ``finish`` returns a `Spectrum`.

    Examples
    --------
    >>> pieces = PhysicalPieces((6, 7, 8), voxel_spacing_angstrom=10.0)
    >>> pieces.measure(slice(2, 4), np.ones((2, 6, 7), np.complex64)).shape
    (2, 2, 8)
    """

    voxel_spacing_angstrom: float = math.nan

    @property
    def knots(self) -> RadialKnots:
        """Where the spectrum is measured."""
        return RadialKnots(self.shape, self.voxel_spacing_angstrom)

    def rows(self, box: Box, voxels: Array, statistics: VolumeStatistics) -> tuple[Array, complex]:  # noqa: ARG002
        """Transform voxels along x, normalised with the mean and deviation of the volume."""
        prepare = subtract_and_divide(statistics.mean, statistics.std)
        return rows_to_half(voxels, prepare, self.scratch_dtype), 0j

    def measure(self, columns: slice, sheet: Array) -> np.ndarray[Any, Any]:
        """Return sums of amplitudes and numbers of voxels, (columns, 2, knots + 1)."""
        return self._measured(
            columns, sheet, lambda one, columns: amplitude_sums(one, self.knots, columns)
        )

    def finish(self, note: complex, sums: np.ndarray[Any, Any]) -> Any:  # noqa: ARG002
        """Return the spectrum."""
        return spectrum_at_knots(means_at_knots(sums)[0], self.knots)


@dataclass(frozen=True)
class PhysicalFilter(PhysicalPieces, FilteringPieces):
    """Matching by frequency in 1/Å; ``finish`` returns a `Gain`."""

    match: Callable[..., Gain] | None = None
    """Gain from knots, own amplitude and voxels there: `EqualizeOp.gain_of`."""

    def finish(self, note: complex, sums: np.ndarray[Any, Any]) -> Gain:  # noqa: ARG002
        """Return the gain."""
        assert self.match is not None  # the op that makes the pieces gives it
        return self.match(self.knots, *means_at_knots(sums))

    def filter(self, columns: slice, sheet: Array, gain: Gain) -> tuple[Array, ...]:
        """Multiply a sheet by the gain."""
        sheet_forward(sheet)
        for where, one in _each(columns, sheet):
            apply_gain(one, gain, self.knots, where)
        return (sheet_backward(sheet),)

    def voxels(
        self,
        parts: tuple[Array, ...],
        gain: Gain,  # noqa: ARG002
        statistics: VolumeStatistics,
        out: Array,
    ) -> None:
        """Undo the transform along x, and the normalisation."""
        for where, slab in half_to_rows(parts[0], self.shape[2]):
            slab *= np.float32(statistics.std)
            slab += np.float32(statistics.mean)
            out[where] = slab

    def voxels_bytes(self, shape: Vec) -> int:
        """Return the bytes of the parts and of one slab's temporaries."""
        return self.n_parts * half_bytes(shape, self.scratch_dtype) + _slab_of(shape)


@dataclass(frozen=True)
class DeepictPieces(_Pieces):
    """DeePiCt's spectrum by place; ``finish`` returns a `Spectrum`."""

    def rows(self, box: Box, voxels: Array, statistics: VolumeStatistics) -> tuple[Array, complex]:  # noqa: ARG002
        """Transform voxels along x, mapped to 0..1 less their mean."""
        return rows_to_half(voxels, _prepare(statistics)[0], self.scratch_dtype), 0j

    def measure(self, columns: slice, sheet: Array) -> np.ndarray[Any, Any]:
        """Return sums of moduli and numbers of voxels, (columns, 2, shells)."""
        return self._measured(
            columns, sheet, lambda one, columns: shell_sums(one, self.shape, columns)
        )

    def finish(self, note: complex, sums: np.ndarray[Any, Any]) -> Any:  # noqa: ARG002
        """Return the spectrum."""
        return Spectrum(tuple(shell_means(sums).tolist()), shape=self.shape)


@dataclass(frozen=True)
class DeepictFilter(DeepictPieces, FilteringPieces):
    """DeePiCt's filter; ``finish`` returns the gain by place."""

    match: Callable[..., np.ndarray[Any, Any]] | None = None
    """Gain from the own spectrum: `EqualizeOp.gain_by_place`."""

    @property
    def n_parts(self) -> int:  # type: ignore[override]
        """Two where the kernel is mirrored between two voxels."""
        return 2 if has_odd_part(self.shape) else 1

    @property
    def _sheets_held(self) -> int:
        return self.n_parts

    def rows(self, box: Box, voxels: Array, statistics: VolumeStatistics) -> tuple[Array, complex]:
        """Transform voxels along x; note what they add to the corner of the Fourier box."""
        half, _ = super().rows(box, voxels, statistics)
        if max(self.shape) % 2:
            return half, 0j  # no shell is the corner alone
        prepare = _prepare(statistics)[0]
        terms = (
            corner_term(prepare(voxels[where]), _part_of(box, where), self.shape)
            for where in slabs(voxels.shape[0], voxels.shape[1] * voxels.shape[2])
        )
        return half, sum(terms, start=0j)

    def finish(self, note: complex, sums: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the gain."""
        assert self.match is not None  # the op that makes the pieces gives it
        own = shell_means(sums)
        if has_corner_shell(own, self.shape):
            own[-1] = abs(note)
        return self.match(own)

    def filter(self, columns: slice, sheet: Array, gain: np.ndarray[Any, Any]) -> tuple[Array, ...]:
        """Multiply a sheet by the even part of the kernel and, in place, by the odd part."""
        sheet_forward(sheet)
        parts = (namespace_of(sheet).empty_like(sheet), sheet) if self.n_parts == 2 else (sheet,)
        for number, (where, one) in enumerate(_each(columns, sheet)):
            for part, parity in zip(parts, (1, -1), strict=False):
                place = part[number][:, :, None]
                times_kernel(one, place, gain, self.shape, parity=parity, columns=where)
        return tuple(sheet_backward(part) for part in parts)

    def voxels(
        self,
        parts: tuple[Array, ...],
        gain: np.ndarray[Any, Any],
        statistics: VolumeStatistics,
        out: Array,
    ) -> None:
        """Undo the transforms along x, put the mean back, and take the modulus."""
        xp = namespace_of(out)
        mean = np.float32(_prepare(statistics)[1] * gain[0])
        for where, slab in half_to_rows(parts[0], self.shape[2]):
            slab += mean
            out[where] = xp.abs(slab)
        for part in parts[1:]:
            for where, slab in half_to_rows(part, self.shape[2]):
                out[where] = xp.hypot(out[where], slab)

    def voxels_bytes(self, shape: Vec) -> int:
        """Return the bytes of the parts and of one slab's temporaries."""
        return self.n_parts * half_bytes(shape, self.scratch_dtype) + _slab_of(shape)


def _prepare(statistics: VolumeStatistics) -> tuple[Callable[[Array], Array], float]:
    """Return `to_unit_range` of a whole volume."""
    return to_unit_range(statistics.mean, statistics.minimum, statistics.maximum)


def _part_of(box: Box, where: slice) -> Box:
    """Return some z planes of a box."""
    z, y, x = box.start
    return Box((z + where.start, y, x), (z + where.stop, *box.stop[1:]))


def _each(columns: slice, sheet: Array) -> Iterator[tuple[slice, Array]]:
    """Yield each column of a sheet as a half spectrum (nz, ny, 1), and which it is."""
    for number, column in enumerate(sheet, columns.start):
        yield slice(number, number + 1), column[:, :, None]


def _slab_of(shape: Vec) -> int:
    """Return the bytes of the temporaries of one slab of z planes."""
    plane = shape[1] * shape[2]
    return SLAB_BYTES_PER_VOXEL * min(shape[0] * plane, max(SLAB_VOXELS, plane))
