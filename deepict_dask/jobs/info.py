"""Describe a volume: what its header says, what its voxels are, what is odd about it."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any

from ..core.geometry import Grid
from ..core.statistics import StatisticsReduction
from ..io.volumes import describe, open_volume

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["describe_volume", "info_lines"]


def describe_volume(path: Path, *, statistics: bool = True) -> dict[str, Any]:
    """Return what is known of a volume as plain values.

    Parameters
    ----------
    path
        A volume.
    statistics
        Read the voxels too, slab by slab in this process.

    Raises
    ------
    VolumeFormatError
        The file is no volume.
    """
    with tempfile.TemporaryDirectory(prefix="deepict-dask-") as scratch:
        found = describe(path, scratch=scratch).as_dict()
        if statistics:
            found["statistics"] = _statistics(path, scratch, found.get("class_names") or [None])
    return found


def _statistics(path: Path, scratch: str, classes: list[str | None]) -> list[dict[str, Any]]:
    """Return the statistics of each class."""
    results = []
    for name in classes:
        reader = open_volume(path, scratch=scratch, spacing_required=False, class_name=name)
        shape = reader.header.shape
        depth = max(1, (32 << 20) // (shape[1] * shape[2] * 4))
        reduction = StatisticsReduction(reader.header.dtype)
        partial = None
        for block in Grid(shape, (min(depth, shape[0]), shape[1], shape[2])):
            piece = reduction.measure(block, reader.read(block.read))
            partial = piece if partial is None else reduction.combine(partial, piece)
        assert partial is not None  # a grid has at least one block
        values = reduction.finalize(partial)
        entry = {
            "mean": values.mean, "std": values.std, "minimum": values.minimum,
            "maximum": values.maximum, "n_nonfinite": values.n_nonfinite,
        }  # fmt: skip
        results.append(entry if name is None else {"class": name, **entry})
    return results


def info_lines(found: dict[str, Any]) -> list[str]:
    """Return a description as lines for people.

    Examples
    --------
    >>> info_lines({"shape": [1, 2, 3], "oddities": ["no MAP"]})
    ['shape (z y x)        1 2 3', 'odd                  no MAP']
    """
    lines = []
    for key, value in found.items():
        if key == "oddities":
            lines += [f"{'odd':<20} {text}" for text in value]
        elif key == "statistics":
            lines += [_statistics_line(entry) for entry in value]
        elif key == "voxel_spacing_angstrom" and value is None:
            lines.append(f"{key:<20} unknown")
        elif key != "warnings" and value not in (None, "", [], ()):
            text = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            lines.append(f"{'shape (z y x)' if key == 'shape' else key:<20} {text}")
    return lines


def _statistics_line(entry: dict[str, Any]) -> str:
    values = ", ".join(
        f"{key} {value:.6g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in entry.items()
    )
    return f"{'voxels':<20} {values}"
