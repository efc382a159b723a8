"""What a network is trained on and tested on, batch by batch.

1. Tomograms, particle lists and label volumes stay where they are; a batch reads what it needs
   (`deepict_dask.training.opening`). Tomograms that fit a memory budget are kept, normalised.
2. Whole tomograms are held out, or the end of each along an axis. A training patch is read from its
   own side of that border only, and so is what its augmentation fetches round it.
3. A batch is a function of seed and step: training goes on after a kill as if it had not stopped,
   without any state of random numbers on disk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ConfigError
from ..core.geometry import Box, Grid, as_vec
from .augment import Augmentation
from .f1_alpha import ParticlesOfPatch, PickCounter
from .opening import TrainingTomogram, choose_entries, open_tomograms
from .sampling import Part, PatchBox, Sampler, index_part
from .targets import ParticleTargets
from .voxels import read_mirrored

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd

    from ..config.training import TrainConfig, ValidationSettings
    from ..core.geometry import Vec
    from .sampling import PartClass

__all__ = ["TrainingData", "TrainingTomogram", "open_training_data"]

Floats = np.ndarray[Any, np.dtype[np.float32]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Batch = tuple[Floats, Floats]

KEEP_BYTES = 1 << 30
"""Memory for whole normalised tomograms and label volumes."""


def open_training_data(
    config: TrainConfig,
    *,
    tomograms: Sequence[str] | None = None,
    held_out: Sequence[str] | None = None,
    keep_bytes: int = KEEP_BYTES,
) -> TrainingData:
    r"""Open and check everything that a config names, and measure it once.

    Parameters
    ----------
    config
        The dataset, classes, patches, augmentation, what is held out, and the seed.
    tomograms, held_out
        Names to train and to validate on, instead of the config's; with ``held_out`` no part of a
        training tomogram is held out.
    keep_bytes
        Tomograms (normalised) and label volumes are kept in memory as long as they fit this, in the
        order of the dataset; others are read by box.

    Raises
    ------
    ConfigError
        An unknown column or name, or a class without a labelled voxel in what is trained on.
    ShapeMismatchError
        A label volume of another shape, or a tomogram smaller than a patch.
    SpacingError, VoxelValueError, PicksFormatError, VolumeFormatError
        Voxel spacings that differ by more than 5 %, voxels that are NaN, particles outside.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from deepict_dask.config.training import TrainConfig
    >>> from deepict_dask.synthetic import CellSettings, make_cell, write_cell
    >>> folder = Path(tempfile.mkdtemp())
    >>> settings = CellSettings((48, 64, 64), n_ribosomes=3, n_fas=0, n_distractors_each=0)
    >>> files = write_cell(make_cell(settings), folder)
    >>> _ = (folder / "cells.csv").write_text("name,tomogram,truth\ncell,tomogram.mrc,truth.csv")
    >>> data = open_training_data(TrainConfig(
    ...     tomograms=folder / "cells.csv", output=folder / "model", patches={"shape": (32,) * 3},
    ...     classes={"ribosome": {"picks": "truth", "radius_nm": 10.8}},
    ... ))
    >>> [part.shape for part in data.batch(0)], data.counts()["particles"].tolist()
    ([(4, 1, 32, 32, 32), (4, 1, 32, 32, 32)], [3])
    """
    train, out = choose_entries(config, tomograms, held_out)
    opened = open_tomograms(config, [*train, *out], keep_bytes)
    if held_out is None and config.validation.fraction:
        sides = [_divided(tomogram, config.validation) for tomogram in opened]
        training, validation = [a for a, _ in sides], [b for _, b in sides]
    else:
        whole = [Part(tomogram, Box.whole(tomogram.shape)) for tomogram in opened]
        training, validation = whole[: len(train)], whole[len(train) :]
    return TrainingData(config, training, validation)


def _divided(tomogram: TrainingTomogram, settings: ValidationSettings) -> tuple[Part, Part]:
    """Return what is trained on, and the end of the tomogram that is held out."""
    axis = "zyx".index(settings.axis)
    size = tomogram.shape[axis]
    held_out = round(settings.fraction * size)
    if not 0 < held_out < size:
        raise ConfigError(
            f"validation: fraction: expected a part of the {size} voxels on {settings.axis} of "
            f"{tomogram.name}, found {settings.fraction:g}, which is {held_out}"
        )
    border = [*tomogram.shape]
    border[axis] = size - held_out
    start = [0, 0, 0]
    start[axis] = size - held_out
    first, second = Box((0, 0, 0), as_vec(border)), Box(as_vec(start), tomogram.shape)
    return Part(tomogram, first), Part(tomogram, second)


@dataclass(frozen=True)
class _Counts:
    """What is known of the parts of one side, by part and class."""

    role: str
    parts: Sequence[Part]
    classes: Sequence[Sequence[PartClass]]


class TrainingData:
    """Batches for training and validation; picklable, opens files when it reads.

    Parameters
    ----------
    config
        Patches, augmentation, batch size, seed and classes.
    training, validation
        Parts of tomograms; no voxel may be in both.

    Raises
    ------
    ConfigError, ShapeMismatchError
        A class without labels, or a part smaller than a patch.
    """

    def __init__(
        self, config: TrainConfig, training: Sequence[Part], validation: Sequence[Part]
    ) -> None:
        self.config = config
        self.class_names = tuple(config.classes)
        self.training, self.validation = tuple(training), tuple(validation)
        shape = as_vec(config.patches.shape)
        if config.network.kind == "unet2d":
            shape = (1, shape[1], shape[2])
        self.patch_shape = shape
        self._augmentation = Augmentation(config.augment, shape)
        sides = (("training", self.training), ("validation", self.validation))
        self._known = tuple(
            _Counts(role, parts, [index_part(part, shape) for part in parts])
            for role, parts in sides
        )
        self._check_classes()
        self.sampler = Sampler(
            self.training, self._known[0].classes, config.patches, shape, config.seed
        )

    def _check_classes(self) -> None:
        for number, name in enumerate(self.class_names):
            if not any(known[number].n_voxels for known in self._known[0].classes):
                names = ", ".join(part.tomogram.name for part in self.training)
                raise ConfigError(
                    f"class {name}: expected labelled voxels in what is trained on ({names}), "
                    "found none; check its list or label volume and values, or leave the class out"
                )

    @property
    def voxel_spacing_angstrom(self) -> float:
        """Mean edge of a voxel of the training tomograms, Å."""
        return float(np.mean([part.tomogram.voxel_spacing_angstrom for part in self.training]))

    @property
    def inputs(self) -> dict[str, dict[str, Any]]:
        """For each tomogram: path and sha256, role, and those of the files of each class."""
        found: dict[str, dict[str, Any]] = {}
        for known in self._known:
            for part in known.parts:
                name = part.tomogram.name
                roles = [*found.get(name, {}).get("roles", []), known.role]
                found[name] = {**part.tomogram.inputs, "roles": roles}
        return found

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, the same at every call.

        Parameters
        ----------
        step
            From 0.

        Returns
        -------
        tuple of ndarray
            Normalised patches (n, 1, z, y, x) and targets (n, classes, z, y, x), 0 or 1, both
            float32; z is 1 for a 2D network.
        """
        size = self.config.optimizer.batch_size
        return _stacked([self._augmented(step, slot, size) for slot in range(size)])

    def patch_of(self, step: int, slot: int) -> PatchBox:
        """Return where a patch of a batch comes from."""
        size = self.config.optimizer.batch_size
        return self.sampler.draw(step, slot, size, self._rng(step, slot))

    def _rng(self, step: int, slot: int) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, step, slot])

    def _augmented(self, step: int, slot: int, size: int) -> tuple[Floats, Bytes]:
        rng = self._rng(step, slot)
        patch = self.sampler.draw(step, slot, size, rng)
        part = self.training[patch.part]
        margin = self._augmentation.margin
        grown = Box(
            as_vec(np.subtract(patch.box.start, margin)), as_vec(np.add(patch.box.stop, margin))
        )
        read = _read(part, grown)
        if not self.config.augment.tomogram_noise:
            return self._augmentation.apply(*read, rng)
        other = self.sampler.anywhere(rng)
        noise = _read_voxels(self.training[other.part], other.box)
        return self._augmentation.apply(*read, rng, noise)

    @property
    def n_validation_patches(self) -> int:
        """Patches that tile what is held out."""
        return sum(self._tiles(part).n_blocks for part in self.validation)

    def validation_batches(self, limit: int | None = None) -> Iterator[Batch]:
        """Yield what is held out, patch by patch without overlap; the last batch may be smaller.

        Patches at the far ends are filled up with mirrored voxels.

        Parameters
        ----------
        limit
            Take at most so many patches, evenly chosen; always the same ones.
        """
        patches = self._validation_patches(limit)
        size = self.config.optimizer.batch_size
        for first in range(0, len(patches), size):
            yield _stacked([_read(part, box) for part, box in patches[first : first + size]])

    def validation_ends(self, limit: int | None = None) -> Iterator[list[Vec]]:
        """Yield how many voxels of each patch of `validation_batches` are no mirrored ones, zyx."""
        ends = [_end_in(part, box) for part, box in self._validation_patches(limit)]
        size = self.config.optimizer.batch_size
        for first in range(0, len(ends), size):
            yield ends[first : first + size]

    def pick_counter(self, limit: int | None = None) -> PickCounter:
        """Return what counts picks in the patches of `validation_batches`."""
        patches = self._validation_patches(limit)
        targets = self.training[0].tomogram.targets.classes
        return PickCounter(
            [_particles_of(part, box) for part, box in patches],
            [one.stamp.reach if isinstance(one, ParticleTargets) else None for one in targets],
        )

    def _validation_patches(self, limit: int | None) -> list[tuple[Part, Box]]:
        patches = [
            (part, self._patch_at(part, tile.write.start))
            for part in self.validation
            for tile in self._tiles(part)
        ]
        if limit is None or limit >= len(patches):
            return patches
        return [patches[k * len(patches) // limit] for k in range(limit)]

    def _tiles(self, part: Part) -> Grid:
        return Grid(part.box.shape, self.patch_shape)

    def _patch_at(self, part: Part, start: Sequence[int]) -> Box:
        low = np.add(part.box.start, start)
        return Box(as_vec(low), as_vec(low + np.array(self.patch_shape)))

    def counts(self) -> pd.DataFrame:
        """Return what there is of each class, one row per side, tomogram and class.

        Columns: ``role`` (training or validation), ``tomogram``, ``class_name``, ``particles``
        (missing for label volumes), ``labelled_voxels``, ``fraction`` (of the part's voxels),
        ``patches`` (of those that tile the part, how many hold the class), ``all_patches``.
        """
        import pandas as pd

        rows = []
        for known in self._known:
            for part, classes in zip(known.parts, known.classes, strict=True):
                for name, one in zip(self.class_names, classes, strict=True):
                    rows.append({
                        "role": known.role, "tomogram": part.tomogram.name, "class_name": name,
                        "particles": one.n_particles, "labelled_voxels": one.n_voxels,
                        "fraction": one.n_voxels / part.box.n_voxels, "patches": one.n_patches,
                        "all_patches": self._tiles(part).n_blocks,
                    })  # fmt: skip
        table = pd.DataFrame(rows)
        return table.astype({"particles": "Int64"})


def _read(part: Part, box: Box) -> tuple[Floats, Bytes]:
    """Return image (z, y, x) and target (classes, z, y, x) of a box, mirrored beyond its part."""
    return _read_voxels(part, box), read_mirrored(part.tomogram.targets.read, box, part.box)


def _read_voxels(part: Part, box: Box) -> Floats:
    found: Floats = read_mirrored(part.tomogram.voxels.read, box, part.box)
    return found


def _particles_of(part: Part, box: Box) -> ParticlesOfPatch:
    """Return the particles of a part that reach a patch of it."""
    centres: list[Any] = []
    for one in part.tomogram.targets.classes:
        if not isinstance(one, ParticleTargets):
            centres.append(None)
            continue
        margin = math.ceil(one.stamp.reach)
        grown = Box(as_vec(np.subtract(box.start, margin)), as_vec(np.add(box.stop, margin)))
        points = one.within(part.box)
        near = ((points >= grown.start) & (points < grown.stop)).all(axis=1)
        centres.append(points[near] - box.start)
    return ParticlesOfPatch(tuple(centres), _end_in(part, box))


def _end_in(part: Part, box: Box) -> Vec:
    """Return how many voxels of a patch lie in its part, on each axis."""
    return as_vec(np.minimum(box.stop, part.box.stop) - np.array(box.start))


def _stacked(patches: Sequence[tuple[Floats, Bytes]]) -> Batch:
    images = np.stack([image[None] for image, _ in patches])
    return images, np.stack([target for _, target in patches]).astype(np.float32)
