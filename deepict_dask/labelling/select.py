"""Which voxels of a score map (or label volume) form the segmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..backend import namespace_of
from ..core.errors import VoxelValueError

if TYPE_CHECKING:
    from ..core.geometry import Box, Vec

__all__ = ["SelectSettings", "inside_border", "select_voxels"]


@dataclass(frozen=True)
class SelectSettings:
    """How voxels are chosen.

    Examples
    --------
    >>> SelectSettings(threshold=0.5).border
    (0, 0, 0)
    """

    threshold: float | None = None
    """Voxels with a score above (never at) this are chosen."""
    label_value: int | None = None
    """Instead of a threshold: choose voxels of a label volume that equal this."""
    border: Vec = (0, 0, 0)
    """Voxels to leave out at the start of the axes z, y, x, and at the end."""
    border_end: Vec | None = None
    """Voxels to leave out at the end, where they differ from those at the start."""
    intersect: int = 0
    """Bits of the regions outside of which voxels are left out (contact mode "intersection")."""


def inside_border(box: Box, shape: Vec, low: Vec, high: Vec) -> tuple[slice, slice, slice]:
    """Return the part of a box at least ``low`` and ``high`` voxels from the volume's ends.

    Examples
    --------
    >>> from deepict_dask.core.geometry import Box
    >>> inside_border(Box((0, 0, 0), (8, 8, 8)), (8, 8, 8), (2, 0, 0), (1, 0, 0))[0]
    slice(2, 7, None)
    """
    z, y, x = (
        slice(min(max(b - a, 0), c - a), max(min(c, n - e) - a, 0))
        for a, c, n, b, e in zip(box.start, box.stop, shape, low, high, strict=True)
    )
    return (z, y, x)


def select_voxels(
    score: Any, regions: Any | None, box: Box, shape: Vec, settings: SelectSettings
) -> Any:
    """Return the segmentation of one box.

    Parameters
    ----------
    score
        zyx, any real dtype: score map, or label volume with ``label_value``.
    regions
        zyx, unsigned: bit i says whether a voxel is in region i; None without regions.
    box, shape
        Where the arrays lie, and the shape of the whole volume.
    settings
        How voxels are chosen.

    Returns
    -------
    array
        bool, zyx.

    Raises
    ------
    VoxelValueError
        The scores hold NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from deepict_dask.core.geometry import Box
    >>> score = np.array([[[0.2, 0.5, 0.7]]])
    >>> select_voxels(score, None, Box.whole((1, 1, 3)), (1, 1, 3), SelectSettings(threshold=0.5))
    array([[[False, False,  True]]])
    >>> in_both = SelectSettings(threshold=0.1, intersect=0b11)
    >>> bits = np.array([[[0b01, 0b11, 0b11]]], "uint8")
    >>> select_voxels(score, bits, Box.whole((1, 1, 3)), (1, 1, 3), in_both)
    array([[[False,  True,  True]]])
    """
    xp = namespace_of(score)
    if score.dtype.kind == "f" and bool(xp.isnan(score).any()):
        raise VoxelValueError(
            f"score map: expected numbers, found NaN in voxels {box.start} to {box.stop}; "
            "repair it first: deepict-dask convert --fill-nonfinite 0"
        )
    chosen = (
        score == settings.label_value if settings.threshold is None else score > settings.threshold
    )
    if settings.intersect and regions is not None:
        chosen &= (regions & settings.intersect) == settings.intersect
    if any(settings.border):
        kept = xp.zeros_like(chosen)
        end = settings.border if settings.border_end is None else settings.border_end
        inner = inside_border(box, shape, settings.border, end)
        kept[inner] = chosen[inner]
        chosen = kept
    return chosen
