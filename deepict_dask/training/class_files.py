"""Open what the classes of one tomogram are made from: particle lists, masks, label volumes.

A column that is not there, an empty cell, a list of another tomogram, particles outside and label
volumes of another shape are refused by name.
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
from ..core.geometry import Box
from ..io.picks import read_picks
from ..io.picks_table import check_one_tomogram
from ..io.volumes import open_volume
from .orientations import rotations_of
from .targets import (
    Ball,
    LabelTargets,
    ParticleTargets,
    TurnedMask,
    particle_targets,
    radius_in_voxels,
)
from .voxels import KeptVolume

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from ..config.training import ClassSettings
    from ..core.geometry import Vec
    from ..core.volume import VolumeReader
    from ..io.datasets.entry import TomogramEntry

__all__ = ["ClassOpener", "SpareMemory", "given_particles"]

_log = logging.getLogger(__name__)
SPACING_TOLERANCE = 0.05
STRAYS_TOLERATED = 0.05
"""Part of a particle list that may lie outside the tomogram, and is left out."""
OF_THE_TOMOGRAM = ("name", "tomogram", "tomo_name", "tomo", "voxel_spacing_angstrom")
"""Columns of a table from which no class is made."""


@dataclass
class SpareMemory:
    """What is left of the memory for whole volumes."""

    n_bytes: int

    def kept(self, reader: VolumeReader) -> VolumeReader:
        """Return a reader that keeps the volume, where it fits."""
        if reader.header.n_bytes > self.n_bytes:
            return reader
        self.n_bytes -= reader.header.n_bytes
        return KeptVolume(reader)


@dataclass(frozen=True)
class ClassOpener:
    """Finds and opens what the classes of one tomogram are made from."""

    entry: TomogramEntry
    shape: Vec
    voxel_spacing_angstrom: float
    memory: SpareMemory = field(default_factory=lambda: SpareMemory(0))
    label_volumes: dict[Path, VolumeReader] = field(default_factory=dict)
    dataset: Path | None = None
    """Where the tomogram comes from, for messages."""
    others: frozenset[str] = frozenset()
    """Names of the dataset's other tomograms."""

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
        made_from = [*paths, settings.mask_file.absolute()] if settings.mask_file else paths
        return particle_targets(np.concatenate(points), stamp), made_from

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
        check_one_tomogram(table, path, "give each tomogram a list of its own")
        self._refuse_list_of_another(table, path)
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

    def _refuse_list_of_another(self, table: pd.DataFrame, path: Path) -> None:
        """Refuse a list whose one tomogram is another of the dataset."""
        names = set(table["tomogram_name"]) if "tomogram_name" in table.columns else set()
        if names and names <= self.others:
            raise PicksFormatError(
                f"{path}: expected particles of tomogram {self.entry.name}, found those of "
                f"{', '.join(names)}; give each tomogram its own list"
            )

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
    tables, _ = ClassOpener(entry, shape, spacing_angstrom).particles(name, settings)
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
