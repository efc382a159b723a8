"""The lists of particles that rounds of annotation begin with, tomogram by tomogram.

Some tomograms have a list of each class, others have none yet.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...io.dataset import list_tomograms
from ...io.picks import write_picks
from ...io.picks_table import make_picks
from ...io.volumes import open_volume

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from ...config.training import TrainConfig
    from ...core.geometry import Vec
    from ...io.datasets.entry import TomogramEntry

    Floats = np.ndarray[Any, np.dtype[np.float64]]

__all__ = ["RoundLists", "given_counts", "has_list", "open_lists"]


@dataclass
class RoundLists:
    """The tomograms and where their lists are now."""

    entries: list[TomogramEntry]
    given: dict[str, dict[str, Path]] = field(default_factory=dict)
    """By tomogram and class, the lists that were given, in voxels."""
    current: dict[str, dict[str, Path]] = field(default_factory=dict)
    """By tomogram and class, what is trained on."""
    n_picks: dict[tuple[str, str], int] = field(default_factory=dict)
    """Picks of the current lists, by tomogram and class."""
    shapes: dict[str, Any] = field(default_factory=dict)
    spacings: dict[str, float] = field(default_factory=dict)
    """Edge of a voxel, Å, by tomogram."""


def open_lists(config: TrainConfig, output: Path) -> RoundLists:
    """Bring the given lists into one form, ``given/CLASS/TOMOGRAM.csv``."""
    lists = RoundLists(list_tomograms(config.tomograms))
    for entry in lists.entries:
        shape, edge = _measures(config, entry)
        lists.shapes[entry.name], lists.spacings[entry.name] = shape, edge
        lists.given[entry.name] = {}
        for name, points in _given_points(config, entry, shape, edge).items():
            path = output / "given" / name / f"{entry.name}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_picks(make_picks(points), path)
            lists.given[entry.name][name] = path
            lists.n_picks[entry.name, name] = len(points)
        lists.current[entry.name] = dict(lists.given[entry.name])
    return lists


def _measures(config: TrainConfig, entry: TomogramEntry) -> tuple[Vec, float]:
    """Return a tomogram's shape and the edge of its voxels in Å."""
    spacing = entry.told_spacing(config.voxel_spacing_angstrom)
    header = open_volume(entry.path, voxel_spacing_angstrom=spacing).header
    return header.shape, float(header.voxel_spacing_angstrom or 0)


def _given_points(
    config: TrainConfig, entry: TomogramEntry, shape: Vec, edge: float
) -> dict[str, Floats]:
    """Return the particles of each class that has a list, (n, 3) zyx in voxels."""
    from ...training.class_files import given_particles

    return {
        name: given_particles(entry, name, settings, shape, edge)
        for name, settings in config.classes.items()
        if settings.picks is not None and has_list(entry, settings.picks)
    }


def has_list(entry: TomogramEntry, column: str) -> bool:
    """Say whether a list was given; a column that no tomogram has is an error."""
    if column not in {*entry.columns, *entry.picks, *entry.files}:
        return True  # opening it names the columns that there are
    return bool(entry.picks.get(column)) or column in entry.files


def given_counts(config: TrainConfig, entry: TomogramEntry) -> str:
    """Return how many particles of each class were given, as text."""
    given = _given_points(config, entry, *_measures(config, entry))
    return ", ".join(f"{len(points)} {name}" for name, points in given.items()) or "no lists"
