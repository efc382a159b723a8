"""Where DeePiCt's spectrum counts a Fourier voxel, and its kernel there.

Places are those of the shifted spectrum of the whole volume; what is held is the half spectrum in
FFT order, or some columns of it. A voxel k of the half stands for -k too, whose place may lie in
another shell (on odd axes) or meet another gain (on even axes): see `deepict_compat`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend import namespace_of, to_host
from .fourier import slabs

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..core.geometry import Box, Vec

__all__ = [
    "corner_term",
    "has_corner_shell",
    "has_odd_part",
    "shell_means",
    "shell_sums",
    "times_kernel",
]

Array = Any


def has_odd_part(shape: Vec) -> bool:
    """Say whether the kernel is mirrored between two voxels on any axis."""
    return any(n % 2 == 0 for n in shape)


def shell_sums(half: Array, shape: Vec, columns: slice = slice(None)) -> np.ndarray[Any, Any]:
    """Sum the modulus over shells; conjugates lie in the same shell or, odd, in another.

    Parameters
    ----------
    half
        Some columns of the half spectrum of a volume.
    shape
        Voxels of the volume, zyx.
    columns
        Which columns these are.

    Returns
    -------
    sums
        float64 of shape (2, shells): moduli and Fourier voxels, DC's shell first.
    """
    xp = namespace_of(half)
    n_bins = max(shape) / 2
    r_max = np.hypot(np.hypot(shape[1] / 2, shape[2] / 2), shape[0] / 2)
    # Rounding may put the corner, the last shell, into the one before; DeePiCt has one less then.
    n_shells = int(n_bins * r_max / r_max) + 1
    sums = xp.zeros((2, n_shells))
    sides = (slice(None), _with_conjugates(shape[2], columns))
    for axes, side in zip(_axes(shape, _from_centre, xp), sides, strict=True):
        axes[2] = axes[2][columns][side]
        for planes in slabs(half.shape[0], half.shape[1] * half.shape[2]):
            shell = (n_bins * _radius(axes, planes, xp) / r_max).astype(np.int32).ravel()
            modulus = xp.abs(half[planes, :, side]).ravel()
            sums[0] += xp.bincount(shell, weights=modulus, minlength=n_shells)
            sums[1] += xp.bincount(shell, minlength=n_shells)
    return to_host(sums)


def _with_conjugates(n_x: int, columns: slice) -> slice:
    """Return which of the columns stand for their conjugates too."""
    start, stop, _ = columns.indices(n_x // 2 + 1)
    return slice(max(start, 1) - start, max(start, min(stop, (n_x - 1) // 2 + 1)) - start)


def shell_means(sums: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the means over shells without that of DC, 0 where a shell is empty.

    Examples
    --------
    >>> shell_means(np.array([[7.0, 6.0, 0.0], [1, 3, 0]])).tolist()
    [2.0, 0.0]
    """
    moduli, counts = sums[:, 1:]
    return np.divide(moduli, counts, out=np.zeros_like(moduli), where=counts > 0)


def has_corner_shell(own: np.ndarray[Any, Any], shape: Vec) -> bool:
    """Say whether the last shell of a spectrum is one voxel, the corner of the Fourier box.

    By chance that can be so small that complex64 leaves few digits of it, and its gain is used for
    a whole shell near Nyquist. So it is measured by itself, with `corner_term`.
    """
    return max(shape) % 2 == 0 and len(own) == max(shape) // 2


def corner_term(voxels: Array, box: Box, shape: Vec) -> complex:
    """Return what a box adds to the corner of the Fourier box, in complex128.

    Parameters
    ----------
    voxels
        float64 zyx, prepared.
    box
        Where they lie.
    shape
        Voxels of the volume, zyx.
    """
    xp = namespace_of(voxels)
    z, y, x = (
        xp.asarray(np.exp(2j * np.pi * (np.arange(n)[where] * (n // 2) % n) / n))
        for n, where in zip(shape, box.slices, strict=True)
    )
    return complex(voxels @ x @ y @ z)


def times_kernel(
    half: Array,
    out: Array,
    gain: np.ndarray[Any, Any],
    shape: Vec,
    *,
    parity: int,
    columns: slice = slice(None),
) -> Array:
    """Multiply by the even (+1) or odd (-1) part of the kernel; the odd part also by -i.

    Parameters
    ----------
    half, out
        Some columns of the half spectrum of a volume, and where the result goes; may be the same.
    gain
        By place.
    shape
        Voxels of the volume, zyx.
    parity
        Which part.
    columns
        Which columns these are.
    """
    xp = namespace_of(half)
    of_k, of_minus_k = _axes(shape, _from_mirror, xp)
    of_k[2], of_minus_k[2] = of_k[2][columns], of_minus_k[2][columns]
    factor = np.complex64(0.5 if parity > 0 else -0.5j)
    for planes in slabs(half.shape[0], half.shape[1] * half.shape[2]):
        kernel = _kernel(_radius(of_k, planes, xp), gain, xp)
        kernel += parity * _kernel(_radius(of_minus_k, planes, xp), gain, xp)
        out[planes] = half[planes] * kernel * factor
    return out


def _kernel(radius: Array, gain: np.ndarray[Any, Any], xp: Any) -> Array:
    """Return the gain at float32 radii, as float32; 0 beyond the last place."""
    places = xp.arange(len(gain), dtype=float)
    values = xp.interp(radius.astype(np.float32), places, xp.asarray(gain), right=0)
    return values.astype(np.float32)


def _places(n: int, *, half: bool) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return shifted places i of one axis in FFT order, and those of the negative frequencies."""
    order = np.arange(n // 2 + 1 if half else n)
    negative = (-order) % n
    return (order + n // 2) % n, (negative + n // 2) % n


def _axes(
    shape: Vec, coordinate: Callable[[np.ndarray[Any, Any], int], np.ndarray[Any, Any]], xp: Any
) -> list[list[Array]]:
    """Return coordinates along z, y and x, for k and for -k."""
    pairs = [_places(n, half=axis == 2) for axis, n in enumerate(shape)]
    return [
        [xp.asarray(coordinate(pair[side], n)) for pair, n in zip(pairs, shape, strict=True)]
        for side in (0, 1)
    ]


def _radius(axes: list[Array], planes: slice, xp: Any) -> Array:
    """Return the Euclidean radius of some z planes of the half spectrum.

    Nested like DeePiCt's, since some voxels lie on the border of two shells and its rounding
    decides (1e-4 of the spectrum otherwise).
    """
    z, y, x = axes
    return xp.hypot(xp.hypot(y[:, None], x), z[planes, None, None])


def _from_centre(place: np.ndarray[Any, Any], n: int) -> np.ndarray[Any, Any]:
    """Distance to n / 2: off DC by half a voxel for odd n."""
    return place - n / 2


def _from_mirror(place: np.ndarray[Any, Any], n: int) -> np.ndarray[Any, Any]:
    """Distance in the mirrored octant: places n/2 + k and n/2 - 1 - k both have radius k."""
    if n % 2 == 0:
        return np.where(place >= n // 2, place - n // 2, n // 2 - 1 - place).astype(float)
    return np.abs(place - (n - 1) // 2).astype(float)
