"""The Fourier transform of a real volume in little memory.

1. Slabs of z planes are transformed along y and x into one preallocated half spectrum, of shape
   (nz, ny, nx // 2 + 1): the other half of the frequencies are complex conjugates.
2. Slabs of y rows are transformed along z in place.

So the transform of N float32 voxels holds 4 N bytes, and the temporaries of one slab, beside its
input. Slabs also bound the temporaries of whatever is computed from the half spectrum.

The same in pieces, for volumes that do not fit: rows along x first (`rows_to_half`), then sheets
of a few columns along y and z (`sheet_forward`); columns come first there, since a plane that lies
together is transformed three times as fast as one that is strewn. These are the same
one-dimensional transforms in the same order and precision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend import fft_of, is_on_device, namespace_of
from ..core.errors import ShapeMismatchError, VoxelValueError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..core.geometry import Vec

__all__ = [
    "half_bytes",
    "half_shape",
    "half_to_rows",
    "inverse_planes",
    "require_contrast",
    "rows_to_half",
    "sheet_backward",
    "sheet_forward",
    "slab_bytes",
    "slabs",
    "subtract_and_divide",
    "to_half_spectrum",
    "to_planes",
]

Array = Any
SLAB_VOXELS = 1 << 18
"""Voxels of one slab, unless one plane holds more."""
DEVICE_SLAB_VOXELS = 1 << 25
"""The same on a GPU, where each slab costs the start of some kernels."""
SLAB_BYTES_PER_VOXEL = 48
"""Temporaries of the hungriest step on a slab (the radial mean), measured."""


def slabs(n: int, voxels_each: int, of: Array | None = None) -> Iterator[slice]:
    """Cut an axis of n planes into slices of about ``SLAB_VOXELS`` voxels.

    Slices of an array on a GPU, which ``of`` may be, are of ``DEVICE_SLAB_VOXELS``.

    Examples
    --------
    >>> list(slabs(3, 2**17))
    [slice(0, 2, None), slice(2, 3, None)]
    """
    on_device = of is not None and is_on_device(of)
    voxels = DEVICE_SLAB_VOXELS if on_device else SLAB_VOXELS
    step = max(1, voxels // max(1, voxels_each))
    for start in range(0, n, step):
        yield slice(start, min(n, start + step))


def half_shape(shape: Vec) -> Vec:
    """Return the shape of the half spectrum of a volume.

    Examples
    --------
    >>> half_shape((4, 5, 6))
    (4, 5, 4)
    """
    return (shape[0], shape[1], shape[2] // 2 + 1)


def half_bytes(shape: Vec, dtype: str = "complex64") -> int:
    """Return the bytes of the half spectrum of a volume."""
    n_z, n_y, n_x = half_shape(shape)
    return n_z * n_y * n_x * np.dtype(dtype).itemsize


def slab_bytes(shape: Vec) -> int:
    """Return the bytes of the temporaries that one slab needs."""
    n_z, n_y, n_x = shape
    largest_plane = max(n_y * n_x, n_z * (n_x // 2 + 1))
    return SLAB_BYTES_PER_VOXEL * min(n_z * n_y * n_x, max(SLAB_VOXELS, largest_plane))


def to_half_spectrum(
    volume: Array, prepare: Callable[[Array], Array], dtype: str = "complex64"
) -> Array:
    """Transform a volume; it is not changed.

    Parameters
    ----------
    volume
        zyx array of any real type, NumPy or CuPy.
    prepare
        Turns a slab of the volume into the floats that are transformed.
    dtype
        ``complex64`` or ``complex128``.

    Returns
    -------
    half
        Complex array of `half_shape`.

    Examples
    --------
    >>> volume = np.arange(24.0).reshape(2, 3, 4)
    >>> half = to_half_spectrum(volume, lambda slab: slab, "complex128")
    >>> bool(np.allclose(half, np.fft.rfftn(volume)))
    True
    """
    fft = fft_of(volume)
    half = namespace_of(volume).empty(half_shape(volume.shape), dtype)
    for planes in slabs(volume.shape[0], volume.shape[1] * volume.shape[2], volume):
        real = prepare(volume[planes]).astype(half.real.dtype, copy=False)
        half[planes] = fft.rfft2(real, axes=(1, 2), overwrite_x=True)
    for rows in slabs(half.shape[1], half.shape[0] * half.shape[2], half):
        half[:, rows] = fft.fft(half[:, rows], axis=0)
    return half


def to_planes(half: Array) -> Array:
    """Undo the transform along z, in place."""
    fft = fft_of(half)
    for rows in slabs(half.shape[1], half.shape[0] * half.shape[2], half):
        half[:, rows] = fft.ifft(half[:, rows], axis=0)
    return half


def inverse_planes(planes: Array, shape: Vec) -> Iterator[tuple[slice, Array]]:
    """Undo the transforms along y and x, slab by slab.

    Parameters
    ----------
    planes
        What `to_planes` returned.
    shape
        zyx shape of the volume.

    Yields
    ------
    where, slab
        Slice along z, and the real voxels there.

    Examples
    --------
    >>> volume = np.arange(24.0).reshape(2, 3, 4)
    >>> half = to_half_spectrum(volume, lambda slab: slab, "complex128")
    >>> [(where, slab)] = inverse_planes(to_planes(half), volume.shape)
    >>> bool(np.allclose(slab, volume))
    True
    """
    fft = fft_of(planes)
    for where in slabs(shape[0], shape[1] * shape[2], planes):
        yield where, fft.irfft2(planes[where], s=shape[1:], axes=(1, 2), overwrite_x=True)


def rows_to_half(
    voxels: Array, prepare: Callable[[Array], Array], dtype: str = "complex64"
) -> Array:
    """Transform voxels along x only.

    Parameters
    ----------
    voxels
        zyx array of any real type, whole along x.
    prepare, dtype
        As in `to_half_spectrum`.

    Examples
    --------
    >>> volume = np.arange(24.0).reshape(2, 3, 4)
    >>> half = rows_to_half(volume, lambda slab: slab, "complex128")
    >>> sheet = sheet_forward(np.moveaxis(half, 2, 0))
    >>> bool(np.allclose(np.moveaxis(sheet, 0, 2), np.fft.rfftn(volume)))
    True
    """
    fft = fft_of(voxels)
    half = namespace_of(voxels).empty(half_shape(voxels.shape), dtype)
    for planes in slabs(voxels.shape[0], voxels.shape[1] * voxels.shape[2]):
        real = prepare(voxels[planes]).astype(half.real.dtype, copy=False)
        half[planes] = fft.rfft(real, axis=2, overwrite_x=True)
    return half


def half_to_rows(half: Array, n_x: int) -> Iterator[tuple[slice, Array]]:
    """Undo the transform along x, slab by slab.

    Parameters
    ----------
    half
        (z, y, n_x // 2 + 1), in any order of memory.
    n_x
        Voxels along x.

    Yields
    ------
    where, slab
        Slice along z, and the real voxels there.

    Examples
    --------
    >>> volume = np.arange(24.0).reshape(2, 3, 4)
    >>> [(where, slab)] = half_to_rows(np.fft.rfft(volume), 4)
    >>> bool(np.allclose(slab, volume))
    True
    """
    fft, xp = fft_of(half), namespace_of(half)
    for where in slabs(half.shape[0], half.shape[1] * n_x):
        yield where, fft.irfft(xp.ascontiguousarray(half[where]), n=n_x, axis=2, overwrite_x=True)


def sheet_forward(sheet: Array) -> Array:
    """Transform a sheet (columns, nz, ny) along y, then z, in place.

    A column at a time: the cache holds it, and its rounding does not depend on its neighbours.
    """
    fft = fft_of(sheet)
    for column in sheet:
        column[...] = fft.fft(fft.fft(column, axis=1), axis=0, overwrite_x=True)
    return sheet


def sheet_backward(sheet: Array) -> Array:
    """Undo `sheet_forward` in place.

    Examples
    --------
    >>> sheet = np.arange(12.0).reshape(2, 2, 3) + 0j
    >>> bool(np.allclose(sheet_backward(sheet_forward(sheet.copy())), sheet))
    True
    """
    fft = fft_of(sheet)
    for column in sheet:
        column[...] = fft.ifft(fft.ifft(column, axis=0), axis=1, overwrite_x=True)
    return sheet


def subtract_and_divide(low: Any, divisor: Any) -> Callable[[Array], Array]:
    """Return a function that maps a slab to ``(slab - low) / divisor`` in float32.

    Examples
    --------
    >>> subtract_and_divide(1.0, 2.0)(np.array([1, 2])).tolist()
    [0.0, 0.5]
    """

    def prepare(slab: Array) -> Array:
        values = slab.astype(np.float32)
        values -= np.float32(low)
        values /= np.float32(divisor)
        return values

    return prepare


def require_contrast(volume: Array) -> tuple[float, float]:
    """Return mean and standard deviation (ddof 0), summed in float64.

    Raises
    ------
    ShapeMismatchError
        If the array is not a volume.
    VoxelValueError
        If voxels are not finite, or all equal.

    Examples
    --------
    >>> require_contrast(np.array([[[1, 3]]]))
    (2.0, 1.0)
    """
    if volume.ndim != 3 or 0 in volume.shape:
        raise ShapeMismatchError(
            f"spectrum: expected a zyx volume, found an array of shape {volume.shape}"
        )
    where = list(slabs(volume.shape[0], volume.shape[1] * volume.shape[2], volume))
    mean = sum(float(volume[s].sum(dtype=np.float64)) for s in where) / volume.size
    if not np.isfinite(mean):
        raise VoxelValueError(
            "spectrum: expected finite voxels, found NaN or infinite ones; replace them with "
            "`deepict-dask convert IN OUT --fill-nonfinite VALUE`"
        )
    squares = sum(float(((volume[s].astype(np.float64) - mean) ** 2).sum()) for s in where)
    if not squares > 0 or bool(volume.max() == volume.min()):
        raise VoxelValueError(
            f"spectrum: expected voxels of different values, found all equal to {mean}; "
            "is this the right file?"
        )
    return mean, (squares / volume.size) ** 0.5
