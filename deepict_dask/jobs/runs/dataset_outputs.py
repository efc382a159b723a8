"""The picks of a whole dataset as one table, from the folders of the tomograms that are done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...core.errors import DeepictError
from ...io.dataset_picks import PicksFile, write_dataset_picks
from ...io.volumes import open_volume
from ..picking.outputs import spacing_of_picks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from .summary import TomogramReport

__all__ = ["write_dataset"]


def write_dataset(output: Path, reports: Sequence[TomogramReport]) -> int:
    """Write ``dataset.parquet``; return how many picks it holds.

    Parameters
    ----------
    output
        The run's output folder.
    reports
        What became of the tomograms, in the order of the table; those that are done count.

    Raises
    ------
    PicksFormatError
        A list of picks cannot be read.
    """
    return write_dataset_picks(_lists(output, reports), output / "dataset.parquet")


def _lists(output: Path, reports: Sequence[TomogramReport]) -> Iterator[PicksFile]:
    for report in reports:
        for name in report.n_picks if report.state == "done" else ():
            folder = output / report.name / name
            spacing = spacing_of_picks(folder, _spacing_of_volumes)
            yield PicksFile(folder / "picks.csv", report.name, name, spacing)


def _spacing_of_volumes(folder: Path) -> float | None:
    """Return the voxel spacing that the volumes of a folder of picks state, or those beside it."""
    for place in (folder, folder.parent):
        for ending in ("*.zarr", "*.mrc"):
            for path in sorted(place.glob(ending)):
                try:
                    header = open_volume(path, spacing_required=False).header
                except DeepictError:
                    continue  # unfinished, or of somebody else
                if header.voxel_spacing_angstrom is not None:
                    return header.voxel_spacing_angstrom
    return None
