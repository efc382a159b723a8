"""A mask to its skeleton, in one window.

1. Choose the foreground.
2. Fill holes: background that a slice across z, y or x encloses, no wider than a limit. The three
   directions look at the same mask, and a hole wider than the limit stays, so that what is filled
   depends on nothing further away than the limit. (The published script fills holes of any size,
   one direction after the other; see ``deepict_compat.py``.)
3. Erode with a cube, where asked for.
4. Thin (Lee, Kashyap and Chu, CVGIP 56, 462, 1994; scikit-image's ``skeletonize``).

Outside the volume there is background: a filament that leaves it ends about one radius inside.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..core.errors import VoxelValueError
from ..core.geometry import Box

__all__ = ["fill_small_holes", "foreground", "is_thicker", "thin"]

Array = np.ndarray[Any, Any]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


def foreground(window: Array, threshold: float = 0.5, label_value: int | None = None) -> Mask:
    """Return which voxels are filament.

    Raises
    ------
    VoxelValueError
        Voxels are NaN, or negative: no mask.

    Examples
    --------
    >>> foreground(np.array([0, 1, 255], "uint8")).tolist()
    [False, True, True]
    >>> foreground(np.array([0, 1, 2]), label_value=2).tolist()
    [False, False, True]
    """
    if not window.min(initial=0) >= 0:  # true for NaN too
        raise VoxelValueError(
            "expected a mask of 0 outside and positive numbers inside, found negative numbers or "
            "NaN; save the mask again as 0 and 1, or give a segmentation"
        )
    found: Mask = window > threshold if label_value is None else window == label_value
    return found


def bounding_box(mask: Mask) -> Box | None:
    """Return the box of the True voxels, None where there are none.

    Examples
    --------
    >>> bounding_box(np.pad(np.ones((1, 2, 1), bool), 1))
    Box(start=(1, 1, 1), stop=(2, 3, 2))
    """
    start, stop = [], []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        if len(hit) == 0:
            return None
        start.append(int(hit[0]))
        stop.append(int(hit[-1]) + 1)
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def fill_small_holes(mask: Mask, max_hole: int) -> Mask:
    """Fill what slices enclose, where it is no wider than a limit on either axis of the slice.

    Parameters
    ----------
    mask
        bool, zyx.
    max_hole
        Voxels.

    Examples
    --------
    >>> ring = np.array([[[1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1]]], bool)
    >>> int(fill_small_holes(ring, 2).sum()), int(fill_small_holes(ring, 1).sum())
    (12, 10)
    """
    filled = mask.copy()
    for axis in range(3 if max_hole else 0):
        for plane, result in zip(
            np.moveaxis(mask, axis, 0), np.moveaxis(filled, axis, 0), strict=True
        ):
            if plane.any():
                result |= _holes(plane, max_hole)
    return filled


def _holes(plane: Mask, max_hole: int) -> Mask:
    """Return the background of a slice that touches no edge and is no wider than a limit."""
    from scipy import ndimage

    labels, n = ndimage.label(~plane)
    is_hole = np.zeros(n + 1, bool)
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        sides = list(zip(box, plane.shape, strict=True))
        inside = all(side.start > 0 and side.stop < size for side, size in sides)
        is_hole[number] = inside and all(side.stop - side.start <= max_hole for side in box)
    found: Mask = is_hole[labels]
    return found


def is_thicker(mask: Mask, radius: int) -> bool:
    """Say whether a tube in the mask is thicker than a radius allows (by more than 1.5 voxels).

    A square of half width c fits into a disc of radius c * sqrt(2): the mask is too thick where a
    cube fits. So are tubes that touch side by side, a sheet: in no slice is a tube wider than its
    diameter both ways.

    Examples
    --------
    >>> is_thicker(np.ones((9, 9, 9), bool), 8), is_thicker(np.ones((9, 9, 9), bool), 2)
    (False, True)
    >>> is_thicker(np.ones((3, 9, 9), bool), 2)
    True
    """
    cube = 2 * (math.ceil(radius / math.sqrt(2)) + 1) + 1
    square = 2 * radius + 3
    boxes = [(cube,) * 3, (1, square, square), (square, 1, square), (square, square, 1)]
    return any(_holds(mask, box) for box in boxes)


def _holds(mask: Mask, box: tuple[int, int, int]) -> bool:
    """Say whether a box fits into a mask somewhere."""
    from scipy import ndimage

    if any(size < edge for size, edge in zip(mask.shape, box, strict=True)):
        return False
    narrowed = mask.astype(np.uint8)
    for axis, edge in enumerate(box):
        if edge > 1:
            narrowed = ndimage.minimum_filter1d(narrowed, edge, axis, mode="constant", cval=0)
    return bool(narrowed.any())


def thin(mask: Mask, max_hole: int, erode: int = 1) -> tuple[Mask, Mask]:
    """Return the skeleton of a window and the solid mask that was thinned.

    Parameters
    ----------
    mask
        bool, zyx.
    max_hole
        Widest hole that is filled, voxels.
    erode
        Edge of the cube to erode with.

    Examples
    --------
    >>> rod = np.zeros((7, 7, 12), bool)
    >>> rod[2:5, 2:5, 1:11] = True
    >>> skeleton, _ = thin(rod, max_hole=4)
    >>> np.argwhere(skeleton)[:, :2].min(0).tolist(), np.argwhere(skeleton)[:, :2].max(0).tolist()
    ([3, 3], [3, 3])
    """
    from scipy import ndimage
    from skimage.morphology import skeletonize

    skeleton, solid = np.zeros_like(mask), np.zeros_like(mask)
    box = bounding_box(mask)
    if box is None:
        return skeleton, solid
    inner = fill_small_holes(mask[box.slices], max_hole)
    if erode > 1:
        inner = ndimage.binary_erosion(inner, np.ones((erode,) * 3, bool))
    solid[box.slices] = inner
    # one plane alone would be thinned as an image, by other rules
    core = (slice(1, -1),) * 3
    skeleton[box.slices] = skeletonize(np.pad(inner, 1))[core]
    return skeleton, solid
