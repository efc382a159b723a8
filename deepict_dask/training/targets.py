"""Turn picks and label volumes into what a network should answer, box by box.

1. Particles: a shape is painted at every centre that reaches the box that is asked for, so that no
   target volume is ever held. A voxel belongs to a ball if its own centre lies within the radius:
   a ball of 8 voxels (10.8 nm at 13.48 Å, as DeePiCt's paper uses for ribosomes) holds 2109.
2. DeepETPicker's shapes lie round whole voxels (positions are cut off) and have a whole radius r:
   ``ball`` is d^2 <= r^2, ``cube`` |d| <= r on each axis, ``tball`` that cube cut by d^2 <= 2 r^2.
   The union of all particles is painted: that program also changes what older particles have in
   the cube of a newer one, which is not repeated.
3. A mask is turned by each particle's angles (`deepict_dask.training.orientations`) and placed with
   its voxel n // 2 on the centre. A voxel belongs to it where the mask, linearly interpolated,
   exceeds 1/2.
4. A label volume is read where it lies; a class is some of its values, or all but 0 (a mask or a
   score map of floats: all above 1/2).

Classes may overlap, as those of a network with sigmoids may. For a network with one answer per
voxel (softmax) the class that is named later wins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..core.errors import ConfigError
from ..core.geometry import Box, as_vec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..core.geometry import Vec
    from ..core.volume import VolumeReader

__all__ = [
    "Ball",
    "LabelTargets",
    "ParticleTargets",
    "Targets",
    "TurnedMask",
    "particle_targets",
    "radius_in_voxels",
    "sphere_target",
]

Array = np.ndarray[Any, Any]
Floats = np.ndarray[Any, np.dtype[np.float64]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def radius_in_voxels(radius_nm: float, voxel_spacing_angstrom: float) -> float:
    """Return a radius given in nm in voxels.

    Examples
    --------
    >>> round(radius_in_voxels(10.8, 13.48), 2)
    8.01
    """
    return radius_nm * 10 / voxel_spacing_angstrom


def sphere_target(centres: Array, shape: Vec, radius: float) -> Bytes:
    """Return balls round centres.

    Parameters
    ----------
    centres
        Array (n, 3) of zyx voxels, whole or not; balls may leave the volume.
    shape
        Voxels of the volume, zyx.
    radius
        In voxels.

    Returns
    -------
    ndarray
        Uint8, zyx, 1 inside a ball.

    Raises
    ------
    ConfigError
        If the radius is not positive or the centres are not an (n, 3) array.

    Examples
    --------
    >>> int(sphere_target(np.array([[4, 4, 4]]), (9, 9, 9), radius=1).sum())
    7
    """
    points = np.asarray(centres, np.float64)
    if radius <= 0 or points.ndim != 2 or points.shape[1] != 3:
        raise ConfigError(
            f"targets: expected a positive radius and centres of shape (n, 3), found radius "
            f"{radius:g} and shape {points.shape}; give zyx voxels"
        )
    return particle_targets(points, Ball(radius)).read(Box.whole(as_vec(shape)))


class Stamp(Protocol):
    """The shape of each particle of a class."""

    @property
    def reach(self) -> float:
        """Voxels from a centre beyond which nothing is painted, on each axis."""
        ...

    def inside(self, offsets: list[Floats], number: int, /) -> Array:
        """Return where the particle of a number is, bool zyx, for offsets on three axes."""
        ...


@dataclass(frozen=True)
class Ball:
    """Spheres, and DeepETPicker's shapes.

    Examples
    --------
    >>> axis = np.arange(-3.0, 4.0)
    >>> [int(Ball(3, kind).inside([axis] * 3, 0).sum()) for kind in ("ball", "tball", "cube")]
    [123, 287, 343]
    """

    reach: float
    """Radius in voxels."""
    kind: str = "sphere"

    def inside(self, offsets: list[Floats], _number: int) -> Array:
        """Return where the particle is; all are alike."""
        z, y, x = offsets
        square = z[:, None, None] ** 2 + y[:, None] ** 2 + x**2
        if self.kind == "cube":
            return np.ones(square.shape, bool)
        found: Array = square <= self.reach**2 * (2 if self.kind == "tball" else 1)
        return found


@dataclass(frozen=True, eq=False)
class TurnedMask:
    """One mask, turned for each particle.

    Examples
    --------
    >>> mask = np.zeros((3, 3, 3), np.uint8)
    >>> mask[1, 1, :2] = 1  # points along -x
    >>> quarter = np.array([[[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]])  # x to y
    >>> axis = np.arange(-1.0, 2.0)
    >>> np.argwhere(TurnedMask(mask, quarter).inside([axis] * 3, 0)).tolist()
    [[1, 0, 1], [1, 1, 1]]
    """

    mask: Array
    """Zyx; whole numbers count where they are not 0, others above 1/2."""
    rotations: Floats
    """(n, 3, 3), columns are the particle's axes x, y, z in the tomogram's x, y, z."""

    @cached_property
    def solid(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The mask as 0 and 1."""
        found = self.mask != 0 if self.mask.dtype.kind in "iub" else self.mask > 0.5
        return found.astype(np.float32)

    @cached_property
    def reach(self) -> float:
        """Voxels from the centre to the mask's farthest voxel, and one for the interpolation."""
        filled = np.argwhere(self.solid) - np.array(self.mask.shape) // 2
        return float(np.sqrt((filled**2).sum(axis=1).max(initial=0))) + 1

    def inside(self, offsets: list[Floats], number: int) -> Array:
        """Return where the turned mask is."""
        from scipy.ndimage import map_coordinates

        turn = self.rotations[number][::-1, ::-1]  # axes zyx on both sides
        grid = np.stack(np.meshgrid(*offsets, indexing="ij"))
        points = np.einsum("ji,j...->i...", turn, grid)
        centre = np.array(self.mask.shape).reshape(3, 1, 1, 1) // 2
        # zeros lie round the mask, and at its faces too it is interpolated
        values = map_coordinates(
            self.solid, points + centre, order=1, mode="grid-constant", prefilter=False
        )
        found: Array = values > 0.5
        return found


@dataclass(frozen=True, eq=False)
class ParticleTargets:
    """A class that is made from a particle list; see `particle_targets`.

    Examples
    --------
    >>> targets = particle_targets(np.array([[4.0, 4, 4]]), Ball(1))
    >>> int(targets.read(Box((4, 4, 4), (9, 9, 9))).sum())
    4
    """

    points: Floats
    """(n, 3) zyx voxels, by rising z."""
    order: np.ndarray[Any, np.dtype[np.int64]]
    """Number of each point in the list."""
    stamp: Stamp

    def read(self, box: Box) -> Bytes:
        """Return the class in a box, uint8 zyx, 0 or 1; the box may leave the tomogram."""
        target = np.zeros(box.shape, np.uint8)
        reach = self.stamp.reach
        for row in self._near(box, reach):
            point = self.points[row]
            low = np.maximum(np.ceil(point - reach), box.start).astype(int)
            high = np.minimum(np.floor(point + reach) + 1, box.stop).astype(int)
            if (high <= low).any():
                continue
            offsets = [np.arange(a, b) - c for a, b, c in zip(low, high, point, strict=True)]
            inner = Box(as_vec(low), as_vec(high)).slices_in(box)
            target[inner] |= self.stamp.inside(offsets, int(self.order[row]))
        return target

    def within(self, box: Box) -> Floats:
        """Return the centres in a box (n, 3), voxel centres being at whole numbers."""
        low, high = np.array(box.start) - 0.5, np.array(box.stop) - 0.5
        return self.points[((self.points >= low) & (self.points < high)).all(axis=1)]

    def _near(self, box: Box, reach: float) -> Iterator[int]:
        first, last = np.searchsorted(
            self.points[:, 0], [box.start[0] - reach, box.stop[0] + reach]
        )
        some = self.points[first:last, 1:]
        low, high = np.array(box.start[1:]) - reach, np.array(box.stop[1:]) + reach
        near = ((some >= low) & (some <= high)).all(axis=1)
        return (int(first + row) for row in np.flatnonzero(near))


def particle_targets(points: Array, stamp: Stamp) -> ParticleTargets:
    """Return the targets of a particle list.

    Parameters
    ----------
    points
        (n, 3) zyx voxels, whole or not; in the order of a mask's rotations.
    stamp
        Shape of each. DeepETPicker's shapes get whole positions and a whole radius.

    Examples
    --------
    >>> particle_targets(np.array([[1.7, 2, 3]]), Ball(3.2, "cube")).points.tolist()
    [[1.0, 2.0, 3.0]]
    """
    centres = np.asarray(points, np.float64).reshape(-1, 3)
    if isinstance(stamp, Ball) and stamp.kind != "sphere":
        stamp = Ball(max(1.0, math.floor(stamp.reach + 0.5)), stamp.kind)
        centres = np.trunc(centres)
    order = np.argsort(centres[:, 0], kind="stable")
    return ParticleTargets(centres[order], order, stamp)


@dataclass(frozen=True)
class LabelTargets:
    """A class that is some of the values of a label volume.

    Examples
    --------
    >>> from deepict_dask.io.array import ArrayReader
    >>> labels = ArrayReader(np.array([[[0, 1, 2, 3]]], np.uint8))
    >>> LabelTargets(labels, (1, 3)).read(Box.whole((1, 1, 4))).tolist()
    [[[0, 1, 0, 1]]]
    """

    reader: VolumeReader
    values: tuple[int, ...] | None = None
    """All but 0 where None; of floats, all above 1/2, so that a score map serves too."""

    def read(self, box: Box) -> Bytes:
        """Return the class in a box, uint8 zyx, 0 or 1."""
        return self.among(self.reader.read(box))

    def among(self, labels: Array) -> Bytes:
        """Return the class among labels that were read."""
        if self.values is not None:
            return np.isin(labels, self.values).astype(np.uint8)
        found = labels > 0.5 if labels.dtype.kind == "f" else labels != 0
        return found.astype(np.uint8)


@dataclass(frozen=True)
class Targets:
    """All classes of one tomogram.

    Examples
    --------
    >>> point = particle_targets(np.zeros((1, 3)), Ball(1))
    >>> Targets((point, point), exclusive=True).read(Box.whole((1, 1, 2)))[:, 0, 0].tolist()
    [[0, 0], [1, 1]]
    """

    classes: tuple[ParticleTargets | LabelTargets, ...]
    exclusive: bool = False
    """Give a voxel to one class only, the last that has it."""

    def read(self, box: Box) -> Bytes:
        """Return all classes in a box, uint8 (classes, z, y, x), each label volume read once."""
        read: dict[str, Array] = {}
        found = np.empty((len(self.classes), *box.shape), np.uint8)
        for channel, target in enumerate(self.classes):
            found[channel] = self._one(target, box, read)
        for channel in range(len(found) - 1, 0, -1) if self.exclusive else ():
            found[:channel] &= 1 - found[channel]
        return found

    def _one(
        self, target: ParticleTargets | LabelTargets, box: Box, read: dict[str, Array]
    ) -> Bytes:
        if isinstance(target, ParticleTargets):
            return target.read(box)
        if target.reader.path not in read:
            read[target.reader.path] = target.reader.read(box)
        return target.among(read[target.reader.path])
