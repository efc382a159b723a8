"""Choose how scores become particles or a compartment, on cells whose truth is known.

Of a class of particles: threshold, smallest and largest cluster, by the F1 of the picks. Of a
compartment: threshold and smoothing along z, by the Dice coefficients of both its sides. Everything
is in memory: this is for the small cells of the demonstration and of the benchmarks.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..evaluate.picks import score_picks
from ..models.unet3d import UNet3D
from ..segmentation.smoothing import smooth_along_z
from ..segmentation.windows import normalise, predict_window
from .networks import is_flat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..models.architecture import Network

__all__ = [
    "MaskLimits",
    "PickLimits",
    "choose_mask_limits",
    "choose_pick_limits",
    "dice_coefficients",
    "find_picks",
    "mask_of",
    "standardized",
    "whole_scores",
]

Floats = np.ndarray[Any, np.dtype[np.float32]]
Points = np.ndarray[Any, np.dtype[np.float64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]

PICK_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
MIN_SIZES = (25, 50, 100, 200, 300, 400, 500, 600, 700, 800, 1000, 1200, 1400, 1600, 1800, 2000)
MAX_SIZES = (3000, 4000, 5000, 20000)
MASK_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
Z_SIGMAS = (0.0, 2.0, 4.0, 6.0, 8.0)
"""In voxels."""
SLICES_AT_ONCE = 8


def standardized(volume: np.ndarray[Any, Any]) -> Floats:
    """Return a volume minus its mean, over its standard deviation, both of all voxels.

    Raises
    ------
    VoxelValueError
        If all voxels are equal, or one is not finite.

    Examples
    --------
    >>> standardized(np.array([[[1, 3]]]))
    array([[[-1.,  1.]]], dtype=float32)
    """
    mean, std = float(volume.mean(dtype=np.float64)), float(volume.std(dtype=np.float64))
    found: Floats = normalise(volume, mean, std)
    return found


def whole_scores(network: Network, tomogram: Floats, *, average_flips: bool = False) -> Floats:
    """Return the scores of a small tomogram, predicted whole, or slice by slice.

    Parameters
    ----------
    network
        In evaluation mode, with a sigmoid for each class; 3D or 2D.
    tomogram
        Zyx, of which each axis that the network pools is a multiple of its pooling cell.
    average_flips
        Of a 3D U-Net: the mean over the eight mirror images.

    Returns
    -------
    ndarray
        Float32 (classes, z, y, x), 0 to 1.

    Examples
    --------
    >>> from deepict_dask.models.unet3d import UNet3D, UNet3DSettings
    >>> network = UNet3D(UNet3DSettings(depth=1, initial_features=2)).eval()
    >>> whole_scores(network, np.random.default_rng(0).random((4, 4, 4), np.float32)).shape
    (1, 4, 4, 4)
    """
    if isinstance(network, UNet3D):
        found: Floats = predict_window(network, standardized(tomogram), average_flips=average_flips)
        return found
    voxels = torch.from_numpy(standardized(tomogram))
    with torch.inference_mode():
        if is_flat(network.settings):
            parts = [network(part) for part in voxels[:, None].split(SLICES_AT_ONCE)]
            logits = torch.cat(parts).transpose(0, 1)
        else:
            logits = network(voxels[None, None])[0]
        return torch.sigmoid(logits).numpy()


@dataclass(frozen=True)
class PickLimits:
    """Which components of a score map are picks: min_size <= n_voxels <= max_size."""

    threshold: float
    min_size: int
    max_size: int


def find_picks(scores: Floats, limits: PickLimits) -> Points:
    """Return centroids of the 26-connected components of a thresholded score map.

    Parameters
    ----------
    scores
        Float32, zyx.
    limits
        Threshold and sizes.

    Returns
    -------
    ndarray
        Float64, (n, 3), zyx voxels.

    Examples
    --------
    >>> scores = np.zeros((8, 8, 8), np.float32)
    >>> scores[2:5, 2:5, 2:5] = 0.9
    >>> find_picks(scores, PickLimits(0.5, 20, 30)).tolist()
    [[3.0, 3.0, 3.0]]
    """
    sizes, centroids = _components(scores, limits.threshold)
    return centroids[(sizes >= limits.min_size) & (sizes <= limits.max_size)]


def choose_pick_limits(
    scored: Sequence[tuple[Floats, Floats]],
    match_radius: float,
    thresholds: tuple[float, ...] = PICK_THRESHOLDS,
) -> PickLimits:
    """Return the limits of the highest mean F1.

    Parameters
    ----------
    scored
        Pairs of a score map (zyx) and its true centres (n, 3).
    match_radius
        Farthest that a pick may lie from its particle, in voxels.
    thresholds
        Those to try.

    Examples
    --------
    >>> scores = np.zeros((16, 16, 16), np.float32)
    >>> scores[2:6, 2:6, 2:6] = 0.65
    >>> choose_pick_limits([(scores, np.array([[3.5, 3.5, 3.5]]))], 3.0).threshold
    0.1
    """
    best, best_f1 = PickLimits(thresholds[0], MIN_SIZES[0], MAX_SIZES[-1]), -1.0
    for threshold in thresholds:
        found = [(*_components(scores, threshold), truth) for scores, truth in scored]
        for low, high in itertools.product(MIN_SIZES, MAX_SIZES):
            f1s = [
                score_picks(centroids[(sizes >= low) & (sizes <= high)], truth, match_radius).f1
                for sizes, centroids, truth in found
            ]
            f1 = float(np.mean(f1s))
            if f1 > best_f1:
                best, best_f1 = PickLimits(threshold, low, high), f1
    return best


def _components(scores: Floats, threshold: float) -> tuple[Points, Points]:
    """Return voxel counts and centroids of the components above a threshold."""
    import cc3d

    table = cc3d.statistics(cc3d.connected_components(scores > threshold, connectivity=26))
    return table["voxel_counts"][1:], table["centroids"][1:]


@dataclass(frozen=True)
class MaskLimits:
    """How scores become a mask: smoothed along z, then above a threshold."""

    threshold: float
    z_sigma: float


def mask_of(scores: Floats, limits: MaskLimits) -> Bools:
    """Return where smoothed scores are above the threshold.

    Examples
    --------
    >>> scores = np.zeros((5, 1, 1), np.float32)
    >>> scores[2] = 1
    >>> mask_of(scores, MaskLimits(threshold=0.2, z_sigma=1.0))[:, 0, 0].tolist()
    [False, True, True, True, False]
    """
    smoothed = scores.copy()
    if limits.z_sigma:
        smooth_along_z(smoothed, limits.z_sigma)
    found: Bools = smoothed > limits.threshold
    return found


def dice_coefficients(found: Bools, true: Bools) -> tuple[float, float]:
    """Return the Dice coefficients of what is inside and of what is outside.

    Examples
    --------
    >>> dice_coefficients(np.array([True, True, False]), np.array([True, False, False]))
    (0.6666666666666666, 0.6666666666666666)
    """
    inside, outside = (
        2 * int((a & b).sum()) / max(1, int(a.sum()) + int(b.sum()))
        for a, b in ((found, true), (~found, ~true))
    )
    return inside, outside


def choose_mask_limits(scored: Sequence[tuple[Floats, Bools]]) -> MaskLimits:
    """Return the limits of the highest mean of all Dice coefficients.

    Parameters
    ----------
    scored
        Pairs of scores and truth, both zyx.

    Examples
    --------
    >>> scores = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 8, 8)
    >>> choose_mask_limits([(scores, scores > 0.6)])
    MaskLimits(threshold=0.6, z_sigma=0.0)
    """
    best, highest = MaskLimits(MASK_THRESHOLDS[0], Z_SIGMAS[0]), -1.0
    for threshold, z_sigma in itertools.product(MASK_THRESHOLDS, Z_SIGMAS):
        limits = MaskLimits(threshold, z_sigma)
        mean = float(
            np.mean([dice_coefficients(mask_of(scores, limits), true) for scores, true in scored])
        )
        if mean > highest:
            best, highest = limits, mean
    return best
