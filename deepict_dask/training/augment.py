"""Change patches before a network sees them, image and target alike.

1. Turn about z, change of size and elastic displacement, in one interpolation (cubic splines for
   the image, the nearest voxel for the target, which stays 0 or 1), so that noise is smoothed once
   at most. The displacement is a cubic B-spline over knots 16 voxels apart: never longer than asked
   for. Half of the patches are not moved, so that noise is also seen as prediction sees it.
2. Flips along each axis, half turns about y, and quarter turns about z.
3. Noise of the tomograms: a patch from anywhere, flipped by chance, is subtracted with a weight,
   and the sum brought back to its old deviation. Noise is as likely with either sign, while
   particles of that patch have the contrast of none and so stay background.
4. Contrast and brightness, then Gaussian noise, then salt and pepper. 3 and 4: the image only.

Strengths are drawn anew for each patch, from 0 to the setting. The steps are those of DeePiCt's
paper (de Teresa-Trueba et al. 2023), whose program makes them but trains on the patches without,
and of DeepFinder and DeepETPicker (half turns, size); 3 is ours. MONAI has most of them, but
interpolates in each, and has no salt and pepper.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ConfigError
from ..core.geometry import as_vec

if TYPE_CHECKING:
    from ..config.training import AugmentSettings
    from ..core.geometry import Vec

__all__ = ["Augmentation", "elastic_displacement"]

Array = np.ndarray[Any, Any]
Floats = np.ndarray[Any, np.dtype[np.float32]]

MOVED_PART = 0.5
"""Chance that a patch is turned and displaced."""
KNOT_VOXELS = 16
_SPLINE_MARGIN = 2
"""Voxels beyond a place that an interpolation needs."""
_FILTER_MARGIN = 8
"""Voxels beyond which a spline's coefficients change by less than 1e-4 of a voxel's value."""


@dataclass(frozen=True)
class Augmentation:
    """What is done to each patch.

    Raises
    ------
    ConfigError
        Quarter turns of patches that are not square in y and x.

    Examples
    --------
    >>> from deepict_dask.config.training import AugmentSettings
    >>> change = Augmentation(AugmentSettings(flips=False, gaussian_noise=0.1), (4, 4, 4))
    >>> image, target = np.zeros((4, 4, 4), np.float32), np.ones((1, 4, 4, 4), np.uint8)
    >>> noisy, same = change.apply(image, target, np.random.default_rng(0))
    >>> bool(noisy.std() > 0), bool((same == target).all())
    (True, True)
    """

    settings: AugmentSettings
    shape: Vec
    """Of a patch, zyx."""

    def __post_init__(self) -> None:
        if self.settings.quarter_turns and self.shape[1] != self.shape[2]:
            raise ConfigError(
                f"augment: quarter_turns: expected patches that are square in y and x, found "
                f"{self.shape}; give a square patch or turn them off"
            )

    @property
    def margin(self) -> Vec:
        """Voxels round a patch, zyx, that turns and displacements may fetch from."""
        settings = self.settings
        if not (settings.rotation_degrees or settings.elastic or settings.scale):
            return (0, 0, 0)
        away = math.ceil(settings.elastic) + _SPLINE_MARGIN
        nz, ny, nx = self.shape
        reach = (0, _reach(ny, nx, settings.rotation_degrees),
                 _reach(nx, ny, settings.rotation_degrees))  # fmt: skip
        z, y, x = (
            r + math.ceil(settings.scale * (n / 2 + r)) + away
            for n, r in zip(self.shape, reach, strict=True)
        )
        return (z if nz > 1 and (settings.elastic or settings.scale) else 0, y, x)

    def apply(
        self,
        image: Floats,
        target: Array,
        rng: np.random.Generator,
        elsewhere: Floats | None = None,
    ) -> tuple[Floats, Array]:
        """Return a changed patch and target.

        Parameters
        ----------
        image
            Float32, zyx, the patch grown by ``margin`` on both sides of each axis.
        target
            Uint8 (classes, z, y, x) over the same voxels.
        rng
            Of this patch.
        elsewhere
            Float32, zyx, of the patch's shape: voxels to take noise from, with ``tomogram_noise``.

        Returns
        -------
        tuple of ndarray
            Float32 (z, y, x) and uint8 (classes, z, y, x), of the patch's shape.
        """
        if any(self.margin) and rng.random() < MOVED_PART:
            image, target = self._moved(image, target, rng)
        elif any(self.margin):
            inner = tuple(slice(m, m + n) for m, n in zip(self.margin, self.shape, strict=True))
            image, target = image[inner], target[:, *inner]
        image, target = self._mirrored(image, target, rng)
        if elsewhere is not None:
            image = self._with_noise_of(elsewhere, image, rng)
        return self._coloured(image, rng), np.ascontiguousarray(target)

    def _moved(
        self, image: Floats, target: Array, rng: np.random.Generator
    ) -> tuple[Floats, Array]:
        settings = self.settings
        angle = math.radians(rng.uniform(-1, 1) * settings.rotation_degrees)
        size = 1 + rng.uniform(-1, 1) * settings.scale if settings.scale else 1.0
        places = self._turned(angle, size)
        if not (settings.elastic or settings.scale):
            return _cubic_in_slices(image, places[1:, 0]), _nearest(target, places)
        if settings.elastic:
            longest = rng.uniform(0, settings.elastic)
            places = places + elastic_displacement(self.shape, longest, rng)
        return _cubic(image, places), _nearest(target, places)

    def _turned(self, angle: float, size: float) -> Floats:
        """Return where the patch's voxels come from in the grown patch, (3, z, y, x).

        They come from a region ``size`` times as large as the patch.
        """
        axes = [
            (np.arange(n, dtype=np.float32) - np.float32((n - 1) / 2)) * np.float32(size)
            for n in self.shape
        ]
        z, y, x = np.meshgrid(*axes, indexing="ij")
        cosine, sine = np.float32(math.cos(angle)), np.float32(math.sin(angle))
        places = np.stack([z, cosine * y - sine * x, sine * y + cosine * x])
        centre = [(n - 1) / 2 + m for n, m in zip(self.shape, self.margin, strict=True)]
        places += np.array(centre, np.float32).reshape(3, 1, 1, 1)
        return places

    def _mirrored(
        self, image: Floats, target: Array, rng: np.random.Generator
    ) -> tuple[Floats, Array]:
        """Flip and turn; axes are counted from the end, so channels stay."""
        if self.settings.flips:
            axes = tuple(int(axis) for axis in np.flatnonzero(rng.integers(0, 2, 3)) - 3)
            image, target = np.flip(image, axes), np.flip(target, axes)
        if self.settings.half_turns and rng.integers(2):
            image, target = np.flip(image, (-3, -1)), np.flip(target, (-3, -1))
        if self.settings.quarter_turns:
            turns = int(rng.integers(4))
            image, target = np.rot90(image, turns, (-2, -1)), np.rot90(target, turns, (-2, -1))
        return image, target

    def _with_noise_of(self, elsewhere: Floats, image: Floats, rng: np.random.Generator) -> Floats:
        weight = np.float32(rng.uniform(0, self.settings.tomogram_noise))
        axes = tuple(int(axis) for axis in np.flatnonzero(rng.integers(0, 2, 3)))
        mixed: Floats = image - weight * np.flip(elsewhere, axes)
        return mixed / np.sqrt(1 + weight**2)

    def _coloured(self, image: Floats, rng: np.random.Generator) -> Floats:
        """Return a new image with another contrast and with noise."""
        settings = self.settings
        image = np.array(image, np.float32, order="C")
        if settings.contrast:
            factor, shift = rng.uniform(-settings.contrast, settings.contrast, 2)
            image = image * np.float32(1 + factor) + np.float32(shift)
        if settings.gaussian_noise:
            sigma = np.float32(rng.uniform(0, settings.gaussian_noise))
            image += sigma * rng.standard_normal(image.shape, np.float32)
        if settings.salt_and_pepper:
            _salt_and_pepper(
                image, rng.uniform(0, settings.salt_and_pepper),
                rng.uniform(0, settings.salt_and_pepper_amplitude), rng,
            )  # fmt: skip
        return image


def _reach(n: int, other: int, degrees: float) -> int:
    """Return how far the corners of a turned patch reach over its end on an axis of n voxels."""
    angle = min(math.radians(degrees), math.atan2(other, n))  # the largest reach of all turns
    return max(0, math.ceil((n * math.cos(angle) + other * math.sin(angle) - n) / 2))


def _salt_and_pepper(image: Floats, part: float, size: float, rng: np.random.Generator) -> None:
    """Replace a part of the voxels by plus or minus a size, in place."""
    chance = rng.random(image.shape, np.float32)
    image[chance < part / 2] = size
    image[(chance >= part / 2) & (chance < part)] = -size


def elastic_displacement(shape: Vec, size: float, rng: np.random.Generator) -> Floats:
    """Return a smooth random displacement.

    Parameters
    ----------
    shape
        Voxels, zyx. An axis of one voxel is not displaced.
    size
        No displacement is longer, voxels.
    rng
        Its state is used up by as many draws as there are knots.

    Returns
    -------
    ndarray
        Float32 (3, z, y, x), voxels on z, y, x.

    Examples
    --------
    >>> moved = elastic_displacement((1, 32, 32), 2.0, np.random.default_rng(0))
    >>> moved.shape, bool(np.abs(moved[0]).max() == 0), bool(np.abs(moved).max() <= 2)
    ((3, 1, 32, 32), True, True)
    """
    weights = [_spline_weights(n) for n in shape]
    knots = rng.uniform(-1, 1, (3, *(w.shape[1] for w in weights)))
    knots *= np.array([n > 1 for n in shape]).reshape(3, 1, 1, 1)
    # a mean of vectors that are no longer than ``size`` is no longer either
    knots *= size / np.maximum(1, np.sqrt((knots**2).sum(axis=0)))
    wz, wy, wx = (w.astype(np.float32) for w in weights)
    along_x = knots.astype(np.float32) @ wx.T
    along_y = np.matmul(wy, along_x)
    moved: Floats = np.tensordot(along_y, wz, axes=([1], [1])).transpose(0, 3, 1, 2)
    return moved


def _spline_weights(n: int) -> Array:
    """Return the weight of each knot (columns) at each voxel (rows) of a cubic B-spline."""
    if n == 1:
        return np.ones((1, 1))
    place = np.arange(n) / KNOT_VOXELS
    knot = np.arange(-1, math.ceil((n - 1) / KNOT_VOXELS) + 2)
    t = np.abs(place[:, None] - knot)
    near, far = (4 - 6 * t**2 + 3 * t**3) / 6, np.clip(2 - t, 0, None) ** 3 / 6
    return np.where(t < 1, near, far)


def _cubic(image: Floats, places: Floats) -> Floats:
    """Return the image at places, from splines over what lies near them."""
    from scipy.ndimage import map_coordinates

    axes = tuple(range(1, places.ndim))
    low = np.clip(np.floor(places.min(axis=axes)) - _FILTER_MARGIN, 0, None).astype(int)
    high = np.ceil(places.max(axis=axes)).astype(int) + _FILTER_MARGIN + 1
    near = image[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    inside = places - low.astype(np.float32).reshape(-1, *(1 for _ in axes))
    found: Floats = map_coordinates(near, inside, order=3, mode="mirror", output=np.float32)
    return found


def _cubic_in_slices(image: Floats, places: Floats) -> Floats:
    """Return the image where each slice is moved within itself, all alike: a quarter of the work.

    ``places`` is (2, y, x).
    """
    return np.stack([_cubic(plane, places) for plane in image])


def _nearest(target: Array, places: Floats) -> Array:
    """Return the voxels that are nearest to places; outside, those at the end."""
    last = as_vec(np.array(target.shape[1:]) - 1)
    z, y, x = (
        np.clip(np.rint(axis), 0, n).astype(np.int32) for axis, n in zip(places, last, strict=True)
    )
    found: Array = target[:, z, y, x]
    return found
