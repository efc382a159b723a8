"""Which boxes of the tomograms are drawn, as a function of seed and step alone.

1. ``uniform``: a part (a tomogram, or what of it is not held out) with a chance that goes with
   its voxels, then any place in it.
2. ``balanced``: with chance ``centred_fraction`` a class (all alike), a particle of it or a
   labelled voxel, and a box that has it in its middle half, or at most ``largest_shift`` voxels
   from its middle; else as uniform.
3. ``labelled``: boxes round particles or labelled voxels, which lie anywhere in them, until of one
   class more than ``min_label_fraction`` of the box is labelled.
4. ``particles``: boxes round particles as in 2, whatever their class: each particle of the lists is
   drawn once, in random order, before one is drawn again.
5. ``grid``: DeePiCt's boxes. An axis of n voxels has (n + n mod inner) // inner of them, inner =
   shape - 2 overlap voxels apart, the first beginning ``overlap`` voxels before the axis does;
   what lies outside is mirrored. A box is kept where the largest class is more than
   ``min_label_fraction`` of it and does not fill it. All are drawn once before one is drawn again.

Where particles are is known from their lists; for label volumes an index is made beforehand, piece
by piece: for every piece and class the number of labelled voxels, and a few of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ConfigError, ShapeMismatchError
from ..core.geometry import Box, Grid, as_vec
from .targets import ParticleTargets
from .voxels import read_mirrored

if TYPE_CHECKING:
    from ..config.training import PatchSettings
    from ..core.geometry import Vec
    from .opening import TrainingTomogram
    from .targets import LabelTargets

__all__ = ["Part", "PartClass", "PatchBox", "Sampler", "grid_boxes", "index_part", "is_kept"]

Array = np.ndarray[Any, Any]
Reach = tuple[Sequence[int], Sequence[int]]
"""First voxel on each axis, and the one after the last."""
VOXELS_OF_A_PIECE = 8
"""Labelled voxels that the index keeps of each piece and class."""
TRIES = 50
"""Boxes that ``labelled`` looks at before it takes the fullest of them."""
_THIN_PIECE = 32


@dataclass(frozen=True, eq=False)
class Part:
    """What of a tomogram may be read: all of it, or one side of the held-out border."""

    tomogram: TrainingTomogram
    box: Box


@dataclass(frozen=True)
class PartClass:
    """What is known of one class in one part."""

    n_particles: int | None
    """None for label volumes."""
    n_voxels: int
    n_patches: int
    """Patches that hold the class, of all that tile the part."""
    places: Array
    """(m, 3) zyx voxels to draw patches round."""
    weights: Array
    """(m,) chance of each, in labelled voxels or particles."""


@dataclass(frozen=True)
class PatchBox:
    """A patch to be read: the number of its part, and a box that may reach over the part's ends."""

    part: int
    box: Box


def index_part(part: Part, patch_shape: Vec) -> list[PartClass]:
    """Count what a part holds of each class, piece by piece.

    Parameters
    ----------
    part
        Where.
    patch_shape
        Voxels of a patch, zyx. A piece is a row of patches along x (whole lines of a file), or a
        stack of rows of flat ones.

    Returns
    -------
    list of PartClass
        One for each class.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from deepict_dask.training.targets import Ball, Targets, particle_targets
    >>> targets = Targets((particle_targets(np.array([[4, 4, 4]]), Ball(1)),))
    >>> part = Part(SimpleNamespace(targets=targets), Box((0, 0, 0), (5, 8, 8)))
    >>> found = index_part(part, (4, 4, 4))[0]
    >>> found.n_particles, found.n_voxels, found.n_patches
    (1, 6, 4)
    """
    targets = part.tomogram.targets
    thick = patch_shape[0]
    step = (max(1, _THIN_PIECE // thick) * thick, patch_shape[1], part.box.shape[2])
    tallies = [_Tally() for _ in targets.classes]
    for block in Grid(part.box.shape, as_vec(np.minimum(step, part.box.shape))):
        box = block.write.shift(part.box.start)
        for tally, labels in zip(tallies, targets.read(box), strict=True):
            for x in range(0, labels.shape[2], patch_shape[2]):
                corner = np.add(box.start, (0, 0, x))
                tally.add(labels[:, :, x : x + patch_shape[2]], corner, thick)
    pairs = zip(targets.classes, tallies, strict=True)
    return [_class_of(target, part.box, tally) for target, tally in pairs]


@dataclass
class _Tally:
    """What was found of one class so far."""

    n_voxels: int = 0
    n_patches: int = 0
    places: list[Array] = field(default_factory=lambda: [np.zeros((0, 3), np.int64)])
    weights: list[Array] = field(default_factory=lambda: [np.zeros(0)])

    def add(self, labels: Array, corner: Array, thick: int) -> None:
        """Count the labels of one patch, or of a stack of patches, that begins at a corner."""
        count = int(np.count_nonzero(labels))
        if not count:
            return
        self.n_voxels += count
        self.n_patches += _filled_slabs(labels, thick)
        some = _some_voxels(labels, count)
        self.places.append(some + corner)
        self.weights.append(np.full(len(some), count / len(some)))


def _class_of(target: ParticleTargets | LabelTargets, box: Box, tally: _Tally) -> PartClass:
    counts = tally.n_voxels, tally.n_patches
    if isinstance(target, ParticleTargets):
        points = np.rint(target.within(box)).astype(np.int64)
        return PartClass(len(points), *counts, points, np.ones(len(points)))
    return PartClass(None, *counts, np.concatenate(tally.places), np.concatenate(tally.weights))


def _filled_slabs(labels: Array, thick: int) -> int:
    """Return how many of the patches that a piece is a stack of hold something."""
    filled: Array = np.any(labels, axis=(1, 2))
    return sum(bool(filled[z : z + thick].any()) for z in range(0, len(filled), thick))


def _some_voxels(labels: Array, count: int) -> Array:
    """Return evenly chosen labelled voxels (m, 3)."""
    number = min(count, VOXELS_OF_A_PIECE)
    chosen = np.flatnonzero(labels)[(2 * np.arange(number) + 1) * count // (2 * number)]
    return np.stack(np.unravel_index(chosen, labels.shape), axis=-1)


def is_kept(target: Array, min_label_fraction: float) -> bool:
    """Say whether the reference keeps a patch.

    Parameters
    ----------
    target
        (classes, z, y, x), 0 or 1.
    min_label_fraction
        The largest class must be more than this part of the patch, and less than all of it.

    Examples
    --------
    >>> target = np.array([[[[1, 0, 0, 0]]], [[[1, 1, 0, 0]]]])
    >>> is_kept(target, 0.25), is_kept(target, 0.5)
    (True, False)
    """
    return bool(min_label_fraction < _fullest(target) < 1)


def _fullest(target: Array) -> float:
    counts = [np.count_nonzero(labels) for labels in target]
    return float(max(counts) / target[0].size)


def grid_boxes(box: Box, shape: Vec, overlap: int) -> list[Box]:
    """Return the reference's boxes over a part, in raster order.

    Parameters
    ----------
    box
        The part.
    shape
        Of a patch.
    overlap
        Voxels on each side that neighbours share; none along z for a flat patch.

    Raises
    ------
    ConfigError
        The overlap leaves nothing of a patch.

    Examples
    --------
    >>> found = grid_boxes(Box.whole((1, 1, 9)), (1, 1, 8), overlap=2)
    >>> [b.start[2] for b in found]
    [-2, 2]
    """
    overlaps = [0 if n == 1 else overlap for n in shape]
    inner = [n - 2 * o for n, o in zip(shape, overlaps, strict=True)]
    if min(inner) < 1:
        raise ConfigError(
            f"patches: expected an overlap below half of {shape}, found {overlap}; lower it"
        )
    counts = [(n + n % i) // i for n, i in zip(box.shape, inner, strict=True)]
    found = []
    for index in itertools.product(*map(range, counts)):
        start = [
            b + k * i - o for b, k, i, o in zip(box.start, index, inner, overlaps, strict=True)
        ]
        found.append(Box(as_vec(start), as_vec(np.add(start, shape))))
    return found


@dataclass(frozen=True, eq=False)
class Sampler:
    """Draws patches of the training parts; the same for the same seed, step and number.

    Raises
    ------
    ShapeMismatchError
        A part is smaller than a patch.
    ConfigError
        No patch would hold a label.
    """

    parts: Sequence[Part]
    classes: Sequence[Sequence[PartClass]]
    """For each part, what `index_part` found."""
    settings: PatchSettings
    shape: Vec
    """Of a patch, zyx."""
    seed: int
    _places: list[tuple[Array, Array, Array]] = field(init=False, repr=False)
    _kept: list[PatchBox] = field(init=False, repr=False)
    _listed: list[tuple[int, Array]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for part in self.parts:
            self._check_size(part)
        places = [self._places_of(number) for number in range(len(self.classes[0]))]
        object.__setattr__(self, "_places", [found for found in places if len(found[1])])
        kept = self._kept_of_the_grid() if self.settings.sampling == "grid" else []
        object.__setattr__(self, "_kept", kept)
        listed = self._particles() if self.settings.sampling == "particles" else []
        object.__setattr__(self, "_listed", listed)

    def _check_size(self, part: Part) -> None:
        if self.settings.sampling == "grid":
            return
        if any(n < p for n, p in zip(part.box.shape, self.shape, strict=True)):
            raise ShapeMismatchError(
                f"{part.tomogram.path}: expected at least the {self.shape} voxels (zyx) of a patch "
                f"to train on, found {part.box.shape}; give a smaller patches: shape:, or hold out "
                "whole tomograms"
            )

    def _places_of(self, number: int) -> tuple[Array, Array, Array]:
        """Return for one class the parts (m,), places (m, 3) and added-up weights (m,)."""
        found = [known[number] for known in self.classes]
        parts = np.repeat(np.arange(len(found)), [len(one.places) for one in found])
        places = np.concatenate([one.places for one in found])
        return parts, places, np.cumsum(np.concatenate([one.weights for one in found]))

    def _particles(self) -> list[tuple[int, Array]]:
        """Return the part and the place of each particle of the lists."""
        found = [
            (number, place)
            for number, classes in enumerate(self.classes)
            for one in classes
            for place in (one.places if one.n_particles is not None else ())
        ]
        if not found:
            raise ConfigError(
                "patches: sampling: particles: expected a class with a particle list, found label "
                "volumes only; choose balanced"
            )
        return found

    def _kept_of_the_grid(self) -> list[PatchBox]:
        least = self.settings.min_label_fraction
        boxes = (
            PatchBox(number, box)
            for number, part in enumerate(self.parts)
            for box in grid_boxes(part.box, self.shape, self.settings.overlap)
        )
        kept = [patch for patch in boxes if is_kept(self._target(patch), least)]
        if not kept:
            raise ConfigError(
                f"patches: expected some of the grid's patches of {self.shape} to be labelled in "
                f"more than {least:g} of their voxels (and not in all), "
                "found none; lower min_label_fraction"
            )
        return kept

    @property
    def n_grid_patches(self) -> int:
        """Patches that the grid keeps; 0 for other ways of sampling."""
        return len(self._kept)

    def draw(self, step: int, slot: int, size: int, rng: np.random.Generator) -> PatchBox:
        """Return one patch of a batch.

        Parameters
        ----------
        step, slot, size
            Number of the batch, of the patch in it, and patches of a batch.
        rng
            Of this patch alone.
        """
        if self.settings.sampling == "grid":
            return self._kept[self._turn(step * size + slot, len(self._kept))]
        if self.settings.sampling == "particles":
            number, place = self._listed[self._turn(step * size + slot, len(self._listed))]
            return self._round(number, place, rng, self._reach())
        if self.settings.sampling == "labelled":
            return self._labelled(rng)
        if self.settings.sampling == "balanced" and rng.random() < self.settings.centred_fraction:
            return self._round_a_place(rng, self._reach())
        return self.anywhere(rng)

    def _turn(self, number: int, of: int) -> int:
        """Return which of some things has its turn, where all come before one comes again."""
        turn, place = divmod(number, of)
        return int(np.random.default_rng([self.seed, turn]).permutation(of)[place])

    def _reach(self) -> Reach:
        """Return where in a patch the place may lie that it is drawn round."""
        shift = self.settings.largest_shift
        if shift is None:
            return [n // 4 for n in self.shape], [n - n // 4 for n in self.shape]
        return (
            [max(0, n // 2 - shift) for n in self.shape],
            [min(n, n // 2 + shift + 1) for n in self.shape],
        )

    def anywhere(self, rng: np.random.Generator) -> PatchBox:
        """Return a patch of any place; every voxel of the parts counts the same."""
        voxels = np.cumsum([part.box.n_voxels for part in self.parts])
        number = int(np.searchsorted(voxels, rng.integers(voxels[-1]), side="right"))
        part = self.parts[number].box
        spare = np.maximum(np.subtract(part.shape, self.shape), 0)
        return self._at(number, np.add(part.start, rng.integers(spare + 1)))

    def _round_a_place(self, rng: np.random.Generator, reach: Reach) -> PatchBox:
        """Return a patch with a place of some class in it."""
        if not self._places:
            return self.anywhere(rng)
        parts, places, weights = self._places[int(rng.integers(len(self._places)))]
        row = int(np.searchsorted(weights, rng.random() * weights[-1], side="right"))
        row = min(row, len(parts) - 1)
        return self._round(int(parts[row]), places[row], rng, reach)

    def _round(self, number: int, place: Array, rng: np.random.Generator, reach: Reach) -> PatchBox:
        away = rng.integers(*reach)
        box = self.parts[number].box
        last = np.subtract(box.stop, self.shape)
        return self._at(number, np.clip(place - away, box.start, last))

    def _labelled(self, rng: np.random.Generator) -> PatchBox:
        best, fullest = self._round_a_place(rng, ((0, 0, 0), self.shape)), -math.inf
        found = best
        for _ in range(TRIES):
            fraction = _fullest(self._target(found))
            if fraction > fullest:
                best, fullest = found, fraction
            if fraction > self.settings.min_label_fraction:
                break
            found = self._round_a_place(rng, ((0, 0, 0), self.shape))
        return best

    def _at(self, number: int, start: Array) -> PatchBox:
        return PatchBox(number, Box(as_vec(start), as_vec(start + np.array(self.shape))))

    def _target(self, patch: PatchBox) -> Array:
        part = self.parts[patch.part]
        return read_mirrored(part.tomogram.targets.read, patch.box, part.box)
