"""Open what a training config names: tomograms, particle lists and label volumes, all checked.

Whatever would train a network wrongly is refused by name: a column that is not there, an empty cell
(a tomogram that nobody annotated is not one without particles), shapes that differ, particles
outside, voxels that are NaN, voxel spacings more than 5 % apart.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import (
    ConfigError,
    PicksFormatError,
    ShapeMismatchError,
    SpacingError,
    VolumeFormatError,
)
from ..core.geometry import Box, Grid
from ..core.statistics import StatisticsReduction
from ..io.dataset import read_dataset
from ..io.picks import read_picks
from ..io.volumes import open_volume
from .orientations import rotations_of
from .targets import (
    Ball,
    LabelTargets,
    ParticleTargets,
    Targets,
    TurnedMask,
    particle_targets,
    radius_in_voxels,
)
from .voxels import PIECE, KeptVolume, NormalisedTomogram

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd

    from ..config.training import ClassSettings, TrainConfig
    from ..core.geometry import Vec
    from ..core.statistics import VolumeStatistics
    from ..core.volume import VolumeReader
    from ..io.datasets.entry import TomogramEntry

__all__ = ["TrainingTomogram", "choose_entries", "given_particles", "open_tomograms"]

_log = logging.getLogger(__name__)
SPACING_TOLERANCE = 0.05
STRAYS_TOLERATED = 0.05
"""Part of a particle list that may lie outside the tomogram, and is left out."""
SOFTMAX_KINDS = ("deepfinder", "deepetpicker")
OF_THE_TOMOGRAM = ("name", "tomogram", "tomo_name", "tomo", "voxel_spacing_angstrom")
"""Columns of a table from which no class is made."""


@dataclass(frozen=True, eq=False)
class TrainingTomogram:
    """One tomogram and what the network should answer in it; picklable."""

    name: str
    path: str
    shape: Vec
    voxel_spacing_angstrom: float
    mean: float
    """Of all voxels, as prediction measures it."""
    std: float
    voxels: VolumeReader
    """``read(box)`` returns normalised float32 zyx."""
    targets: Targets
    """``read(box)`` returns uint8 (classes, z, y, x)."""
    inputs: dict[str, Any] = field(default_factory=dict)
    """Paths and hashes of the tomogram and of what each class is made from."""


def choose_entries(
    config: TrainConfig, tomograms: Sequence[str] | None, held_out: Sequence[str] | None
) -> tuple[list[TomogramEntry], list[TomogramEntry]]:
    """Return what to train on, and whole tomograms to validate on.

    Parameters
    ----------
    config
        Names the dataset and, unless names are given, what is held out.
    tomograms
        Names to train on; all that are not held out by default.
    held_out
        Names to validate on; those of the config by default.

    Raises
    ------
    ConfigError
        A name is not in the dataset or on both sides, or nothing is left to train on.
    """
    entries = {entry.name: entry for entry in read_dataset(config.tomograms).entries}
    out = list(config.validation.tomograms if held_out is None else held_out)
    names = [name for name in entries if name not in out] if tomograms is None else list(tomograms)
    unknown = [name for name in (*names, *out) if name not in entries]
    both = sorted(set(names) & set(out))
    if unknown:
        where = "validation.tomograms" if {*unknown} <= {*out} else "training"
        raise ConfigError(
            f"{where}: expected names of tomograms of {config.tomograms} "
            f"({', '.join(entries)}), found unknown: {', '.join(unknown)}; correct the name"
        )
    if both:
        raise ConfigError(
            f"{config.tomograms}: expected each tomogram either in training or in validation, "
            f"found on both sides: {', '.join(both)}; take it out of one of them"
        )
    if not names:
        raise ConfigError(
            f"{config.tomograms}: expected a tomogram to train on, found all of them held out; "
            "name fewer under validation"
        )
    return [entries[name] for name in names], [entries[name] for name in out]


def open_tomograms(
    config: TrainConfig, entries: Sequence[TomogramEntry], keep_bytes: int
) -> list[TrainingTomogram]:
    """Open tomograms, measure each once, and lay out its targets.

    Parameters
    ----------
    config
        Classes and voxel spacing.
    entries
        Tomograms of the dataset.
    keep_bytes
        Memory for whole normalised tomograms and label volumes; those that no longer fit are read
        box by box.

    Raises
    ------
    ConfigError, VolumeFormatError, VoxelValueError, PicksFormatError
        As the module says.
    ShapeMismatchError
        A label volume is not of the tomogram's shape.
    SpacingError
        Voxel spacings differ by more than 5 %.
    """
    memory = _Memory(keep_bytes)
    found = [_open(config, entry, memory) for entry in entries]
    _check_spacings(found)
    return found


def _check_spacings(tomograms: Sequence[TrainingTomogram]) -> None:
    first = tomograms[0]
    for other in tomograms:
        ratio = other.voxel_spacing_angstrom / first.voxel_spacing_angstrom
        if not 1 / (1 + SPACING_TOLERANCE) <= ratio <= 1 + SPACING_TOLERANCE:
            raise SpacingError(
                f"{other.path}: expected voxels within 5 % of the {first.voxel_spacing_angstrom:g} "
                f"Å of {first.name}, found {other.voxel_spacing_angstrom:g} Å; bring all tomograms "
                "to one voxel size, or leave some out"
            )


@dataclass
class _Memory:
    """What is left of the memory for whole volumes."""

    n_bytes: int

    def kept(self, reader: VolumeReader) -> VolumeReader:
        """Return a reader that keeps the volume, where it fits."""
        if reader.header.n_bytes > self.n_bytes:
            return reader
        self.n_bytes -= reader.header.n_bytes
        return KeptVolume(reader)


def _open(config: TrainConfig, entry: TomogramEntry, memory: _Memory) -> TrainingTomogram:
    from ..engine.content import fingerprint

    path = entry.path.absolute()
    reader = open_volume(
        path, voxel_spacing_angstrom=config.voxel_spacing_angstrom or entry.voxel_spacing_angstrom
    )
    statistics = _measured(reader)
    statistics.require_finite(str(path))
    statistics.require_contrast(str(path))
    header = reader.header
    spacing = float(header.voxel_spacing_angstrom or 0)
    mean, std = statistics.mean, statistics.std
    voxels = memory.kept(NormalisedTomogram(reader, mean, std))
    opener = _ClassOpener(entry, header.shape, spacing, memory, dataset=config.tomograms)
    classes = {name: opener.open(name, settings) for name, settings in config.classes.items()}
    exclusive = config.network.kind in SOFTMAX_KINDS
    targets = Targets(tuple(target for target, _ in classes.values()), exclusive)
    inputs = {"path": str(path), "sha256": fingerprint(path)}
    sources = {
        name: [{"path": str(p), "sha256": fingerprint(p)} for p in paths]
        for name, (_, paths) in classes.items()
    }
    return TrainingTomogram(
        entry.name, str(path), header.shape, spacing, mean, std, voxels, targets,
        {**inputs, "classes": sources},
    )  # fmt: skip


def _measured(reader: VolumeReader) -> VolumeStatistics:
    """Return mean and standard deviation, read piece by piece."""
    reduction = StatisticsReduction(reader.header.dtype)
    blocks = iter(Grid(reader.header.shape, PIECE))
    block = next(blocks)
    partial = reduction.measure(block, reader.read(block.read))
    for block in blocks:
        partial = reduction.combine(partial, reduction.measure(block, reader.read(block.read)))
    return reduction.finalize(partial)


@dataclass(frozen=True)
class _ClassOpener:
    """Finds and opens what the classes of one tomogram are made from."""

    entry: TomogramEntry
    shape: Vec
    voxel_spacing_angstrom: float
    memory: _Memory = field(default_factory=lambda: _Memory(0))
    label_volumes: dict[Path, VolumeReader] = field(default_factory=dict)
    dataset: Path | None = None
    """Where the tomogram comes from, for messages."""

    def open(
        self, name: str, settings: ClassSettings
    ) -> tuple[ParticleTargets | LabelTargets, list[Path]]:
        """Return a class and the files it is made from."""
        if settings.labels is not None:
            paths = self._files(name, "labels", settings.labels)
            return self._labels(paths[0], name, settings), paths[:1]
        tables, paths = self.particles(name, settings)
        points = [table[["z", "y", "x"]].to_numpy(np.float64) for table in tables]
        stamp = self._stamp(settings, tables, paths)
        return particle_targets(np.concatenate(points), stamp), paths

    def particles(
        self, name: str, settings: ClassSettings
    ) -> tuple[list[pd.DataFrame], list[Path]]:
        """Return the particles of a class, a table for each of its files."""
        assert settings.picks is not None
        paths = self._files(name, "picks", settings.picks)
        return [self._picks(path, name, settings) for path in paths], paths

    def _files(self, name: str, key: str, column: str) -> list[Path]:
        """Return the files of a column or label; refuse one that is not there."""
        entry = self.entry
        found = list(entry.picks.get(column, ())) if key == "picks" else []
        if not found and column in entry.files:
            found = [entry.files[column]]
        if found:
            return [path.absolute() for path in found]
        known = sorted({*entry.columns, *entry.picks} - set(OF_THE_TOMOGRAM))
        source = "" if self.dataset is None else f"{self.dataset}: "
        if column in known:
            raise ConfigError(
                f"{source}tomogram {entry.name}: class {name}: expected a file under "
                f"{column}, found none; add it (an empty list where there are no particles), or "
                "leave the tomogram out"
            )
        raise ConfigError(
            f"{source}tomogram {entry.name}: class {name}: expected {key} to be one of "
            f"{', '.join(known) or 'nothing: the dataset has no further files'}, found {column}"
        )

    def _labels(self, path: Path, name: str, settings: ClassSettings) -> LabelTargets:
        if path not in self.label_volumes:
            try:
                volume = self._label_volume(path)
            except VolumeFormatError as error:
                raise VolumeFormatError(
                    f"tomogram {self.entry.name}: class {name}: expected a label volume under "
                    f"labels, found {error}; a particle list goes under picks, with radius_nm"
                ) from None
            self.label_volumes[path] = self.memory.kept(volume)
        return LabelTargets(self.label_volumes[path], settings.values)

    def _label_volume(self, path: Path) -> VolumeReader:
        reader = open_volume(path, spacing_required=False)
        if reader.header.shape != self.shape:
            raise ShapeMismatchError(
                f"{path}: expected a label volume of {self.shape} voxels (zyx) as tomogram "
                f"{self.entry.name} has, found {reader.header.shape}; crop or pad one of them"
            )
        return reader

    def _picks(self, path: Path, name: str, settings: ClassSettings) -> pd.DataFrame:
        """Return the particles of a class that lie in the tomogram."""
        known: dict[str, Any] = {
            "voxel_spacing_angstrom": self.voxel_spacing_angstrom, "tomogram_shape": self.shape,
        }  # fmt: skip
        table = read_picks(path, **known)
        if "tomogram_name" in table.columns and table["tomogram_name"].nunique() > 1:
            table = read_picks(path, tomogram_name=self.entry.name, **known)
        if settings.class_name is not None:
            table = _of_class(table, settings.class_name, path)
        zyx = table[["z", "y", "x"]].to_numpy()
        inside: np.ndarray[Any, Any] = np.all(
            (zyx >= -0.5) & (zyx <= np.array(self.shape) - 0.5), axis=1
        )
        strays = int((~inside).sum())
        if strays > STRAYS_TOLERATED * len(table):
            raise PicksFormatError(
                f"{path}: class {name}: expected particles inside tomogram {self.entry.name} of "
                f"{self.shape} voxels (zyx), found {strays} of {len(table)} outside; check the "
                "order of the axes, the voxel spacing and that the list belongs to this tomogram"
            )
        return table[inside].reset_index(drop=True)

    def _stamp(
        self, settings: ClassSettings, tables: list[pd.DataFrame], paths: list[Path]
    ) -> Ball | TurnedMask:
        if settings.shape == "mask":
            assert settings.mask_file is not None
            mask = self._mask(settings.mask_file)
            turns = [rotations_of(t, p) for t, p in zip(tables, paths, strict=True)]
            return TurnedMask(mask, np.concatenate(turns))
        radius = settings.radius_voxels
        if radius is None:
            assert settings.radius_nm is not None
            radius = radius_in_voxels(settings.radius_nm, self.voxel_spacing_angstrom)
        return Ball(radius, settings.shape)

    def _mask(self, path: Path) -> np.ndarray[Any, Any]:
        reader = open_volume(path, spacing_required=False)
        spacing = reader.header.voxel_spacing_angstrom
        ratio = 1.0 if not spacing else spacing / self.voxel_spacing_angstrom
        if not 1 / (1 + SPACING_TOLERANCE) <= ratio <= 1 + SPACING_TOLERANCE:
            raise SpacingError(
                f"{path}: expected a mask with the tomogram's voxels of "
                f"{self.voxel_spacing_angstrom:g} Å, found {spacing:g} Å; scale the mask"
            )
        mask = reader.read(Box.whole(reader.header.shape))
        if not np.any(mask):
            raise ConfigError(f"{path}: expected the shape of a particle, found only zeros")
        return mask


def given_particles(
    entry: TomogramEntry, name: str, settings: ClassSettings, shape: Vec, spacing_angstrom: float
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return where the particles of a class of a tomogram are, as training takes them.

    Parameters
    ----------
    entry
        The tomogram.
    name, settings
        A class with ``picks``.
    shape, spacing_angstrom
        Of the tomogram: voxels on z, y, x, and the edge of a voxel in Å.

    Returns
    -------
    ndarray
        float64 (n, 3), zyx voxels.

    Raises
    ------
    ConfigError, PicksFormatError
        There is no list, or it is not of this tomogram.
    """
    tables, _ = _ClassOpener(entry, shape, spacing_angstrom).particles(name, settings)
    return np.concatenate([table[["z", "y", "x"]].to_numpy(np.float64) for table in tables])


def _of_class(table: pd.DataFrame, name: str, path: Path) -> pd.DataFrame:
    """Return the rows of one class of a list with several, by the class's name or number."""
    columns = [column for column in ("class_name", "class_number") if column in table.columns]
    if not columns and len(table):
        raise PicksFormatError(
            f"{path}: expected a column class_name (or class_number) with {name!r}, found "
            f"{', '.join(table.columns)}; leave out class_name where a list holds one class"
        )
    chosen = np.zeros(len(table), bool)
    for column in columns:
        chosen |= (table[column].astype(str) == name).to_numpy()
    return table[chosen].reset_index(drop=True)
