"""Sample training patches from volumes in memory.

1. A volume is normalised as it will be at prediction: (v - mean) / std of the whole tomogram.
2. A volume is drawn with equal chance, then a place: with ``centred_fraction`` so that a random
   target voxel lies in the patch's middle half, otherwise anywhere.
3. The patch is flipped along a random choice of axes, which leaves a missing wedge round z in
   place. Quarter turns about z swap the tilt axis with x: they are off unless asked for, and are
   right only where the wedge is not seen, or is the same about x and y. No other rotation is done.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ConfigError, ShapeMismatchError, VoxelValueError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PatchSampler", "standardized"]

Floats = np.ndarray[Any, np.dtype[np.float32]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


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
    if not np.isfinite(std) or std == 0:
        raise VoxelValueError(
            f"training volume: expected finite voxels that differ, found standard deviation {std}; "
            "mask or replace bad voxels"
        )
    return ((volume - np.float32(mean)) / np.float32(std)).astype(np.float32)


@dataclass(frozen=True)
class PatchSampler:
    """Draws patches and their targets.

    Raises
    ------
    ShapeMismatchError
        If volumes and targets do not belong together or a volume is smaller than a patch.
    ConfigError
        If quarter turns are asked for with patches that are not square in y and x.

    Examples
    --------
    >>> volume = np.arange(512, dtype=np.float32).reshape(8, 8, 8)
    >>> sampler = PatchSampler([volume], [np.zeros((1, 8, 8, 8), np.uint8)], patch_shape=(4, 4, 4))
    >>> patches, targets = sampler.batch(2, np.random.default_rng(0))
    >>> patches.shape, targets.shape
    ((2, 1, 4, 4, 4), (2, 1, 4, 4, 4))
    """

    volumes: Sequence[Floats]
    """Normalised tomograms, float32, zyx."""
    targets: Sequence[Bytes]
    """One mask per class for each volume, uint8, czyx."""
    patch_shape: tuple[int, int, int] = (64, 64, 64)
    flips: bool = True
    quarter_turns: bool = False
    centred_fraction: float = 0.0
    """Part of the patches that are sure to hold target voxels."""
    _filled: list[Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.volumes or len(self.volumes) != len(self.targets):
            raise ShapeMismatchError(
                f"training: expected one target per volume and at least one, found "
                f"{len(self.volumes)} volumes and {len(self.targets)} targets"
            )
        for number, (volume, target) in enumerate(zip(self.volumes, self.targets, strict=True)):
            self._check(number, volume.shape, target.shape)
        if self.quarter_turns and self.patch_shape[1] != self.patch_shape[2]:
            raise ConfigError(
                f"training: quarter turns need patches that are square in y and x, found "
                f"{self.patch_shape}; give a square patch or turn them off"
            )
        filled = [np.flatnonzero(target.any(axis=0)) for target in self.targets]
        object.__setattr__(self, "_filled", filled)

    def _check(self, number: int, volume: tuple[int, ...], target: tuple[int, ...]) -> None:
        if len(target) != 4 or target[1:] != volume:
            raise ShapeMismatchError(
                f"training: target {number} must be (classes, *{volume}), found {target}"
            )
        if any(n < p for n, p in zip(volume, self.patch_shape, strict=True)):
            raise ShapeMismatchError(
                f"training: volume {number} of {volume} voxels is smaller than a patch of "
                f"{self.patch_shape}; give a smaller patch"
            )

    def batch(self, size: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Return ``size`` patches (b, 1, z, y, x) and targets (b, c, z, y, x), both float32."""
        pairs = [self._pair(rng) for _ in range(size)]
        patches = np.stack([patch for patch, _ in pairs])
        targets = np.stack([target for _, target in pairs])
        return patches, targets.astype(np.float32)

    def _pair(self, rng: np.random.Generator) -> tuple[Floats, Bytes]:
        number = int(rng.integers(len(self.volumes)))
        start = self._start(number, rng)
        box = tuple(slice(a, a + p) for a, p in zip(start, self.patch_shape, strict=True))
        patch, target = self.volumes[number][box][None], self.targets[number][(slice(None), *box)]
        return self._moved(patch, target, rng)

    def _start(self, number: int, rng: np.random.Generator) -> list[int]:
        volume, filled = self.volumes[number], self._filled[number]
        last = [n - p for n, p in zip(volume.shape, self.patch_shape, strict=True)]
        if not filled.size or rng.random() >= self.centred_fraction:
            return [int(rng.integers(n + 1)) for n in last]
        voxel = np.unravel_index(filled[rng.integers(filled.size)], volume.shape)
        return [
            int(np.clip(v - rng.integers(p // 4, p - p // 4), 0, n))
            for v, p, n in zip(voxel, self.patch_shape, last, strict=True)
        ]

    def _moved(self, patch: Floats, target: Bytes, rng: np.random.Generator) -> tuple[Any, Any]:
        """Move patch and target alike; axes are counted from the end, so channels stay."""
        if self.flips:
            axes = tuple(int(axis) for axis in np.flatnonzero(rng.integers(0, 2, 3)) - 3)
            patch, target = np.flip(patch, axes), np.flip(target, axes)
        if self.quarter_turns:
            turns = int(rng.integers(4))
            patch, target = np.rot90(patch, turns, (-2, -1)), np.rot90(target, turns, (-2, -1))
        return patch, target
