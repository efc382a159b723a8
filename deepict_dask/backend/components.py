"""Connected components of a segmentation, on the CPU (cc3d) or on a GPU (cuCIM, else CuPy)."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np

from ..core.errors import ConfigError, ShapeMismatchError
from .arrays import cupy_module, is_on_device, ndimage_of, to_host

__all__ = ["label_components"]

_RANK_OF_CONNECTIVITY = {6: 1, 18: 2, 26: 3}
"""Neighbours to the rank that scikit-image and cuCIM want: axes on which a neighbour differs."""
_MOST_ON_GPU = 2**31 - 1
"""Voxels; of more, kernels of CuPy and cuCIM before spring 2026 leave the last out (cupy#9851)."""


def label_components(segmentation: Any, connectivity: int) -> tuple[Any, int]:
    """Label the connected components of a segmentation.

    Parameters
    ----------
    segmentation
        zyx array, bool or any number (non-zero is foreground), NumPy or CuPy.
    connectivity
        6, 18 or 26 neighbours.

    Returns
    -------
    labels
        int32 zyx in the same place, 0 = background, 1..n in no promised order.
    n
        Number of components.

    Raises
    ------
    ConfigError
        If the connectivity is another one.
    ShapeMismatchError
        If the array is not 3D.

    Examples
    --------
    >>> labels, n = label_components(np.eye(3, dtype=bool)[None], 26)
    >>> n, label_components(np.eye(3, dtype=bool)[None], 6)[1]
    (1, 3)
    """
    if connectivity not in _RANK_OF_CONNECTIVITY:
        raise ConfigError(f"connectivity: expected 6, 18 or 26, found {connectivity!r}")
    if segmentation.ndim != 3:
        raise ShapeMismatchError(
            f"labelling: expected a zyx volume, found {segmentation.ndim} axes {segmentation.shape}"
        )
    foreground = segmentation.astype(bool, copy=False)
    if is_on_device(foreground):
        if math.prod(foreground.shape) > _MOST_ON_GPU:
            labels, n = _label_on_cpu(to_host(foreground), connectivity)
            return cupy_module().asarray(labels), n
        return _label_on_gpu(foreground, connectivity)
    return _label_on_cpu(foreground, connectivity)


def _label_on_cpu(foreground: np.ndarray[Any, Any], connectivity: int) -> tuple[Any, int]:
    import cc3d

    shape = foreground.shape
    if shape.count(1) > 1:
        # cc3d 4.1 miscounts the labels of a single row of voxels (26 neighbours) and raises
        foreground = np.pad(foreground, [(0, n == 1) for n in shape])
    # The view is free, and a chunk never holds 2**31 components.
    labels, n = cc3d.connected_components(
        foreground, connectivity=connectivity, return_N=True, out_dtype=np.uint32
    )
    z, y, x = shape
    return labels[:z, :y, :x].view(np.int32), int(n)


def _label_on_gpu(foreground: Any, connectivity: int) -> tuple[Any, int]:
    """Label with cuCIM where it is installed, else with CuPy, from which cuCIM has its kernels."""
    rank = _RANK_OF_CONNECTIVITY[connectivity]
    try:
        measure = importlib.import_module("cucim.skimage.measure")
    except ImportError:
        # made on the host: 27 numbers
        structure = np.zeros((3, 3, 3), bool)
        structure[np.abs(np.indices((3, 3, 3)) - 1).sum(axis=0) <= rank] = True
        labels, n = ndimage_of(foreground).label(foreground, structure)
    else:
        labels, n = measure.label(foreground, connectivity=rank, return_num=True)
    return labels.astype(np.int32, copy=False), int(n)
