"""A folder of the CryoET Data Portal: a data set, several of them, or one run.

1. A run is a folder with ``Reconstructions/VoxelSpacing13.480/Tomograms/100/TS_026.zarr`` (or
   ``.mrc``). Before 2025 it was ``Tomograms/VoxelSpacing13.480/CanonicalTomogram/TS_026.zarr``.
2. Labels of a tomogram are its voxel spacing, the folder it is in (``100``) and, where
   ``tomogram_metadata.json`` is there, its ``processing`` (raw, filtered, denoised).
3. A tomogram that is there as ``.zarr`` and as ``.mrc`` is read from the ``.zarr``.
4. ``Annotations/101/OBJECT-1.0_segmentationmask.zarr`` are further files called ``OBJECT``,
   ``..._point.ndjson`` and ``..._orientedpoint.ndjson`` are particle lists of it. Where a run has
   several of one object, they are called ``OBJECT_101_point`` in all runs.
5. The voxel spacing is the one in the folder's name.

Source: the layout that the portal's ingestion writes, and paths of its data sets 10000 to 10445.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from ...core.errors import ConfigError
from ..endings import kind_of
from .choice import Candidate, choose
from .entry import Dataset, TomogramEntry
from .names import lists_by_key, shortest_keys
from .spacing_folders import spacing_folders
from .walk import subfolders

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["find_portal_runs", "read_portal_source"]

_HOMES = ("Reconstructions", "Tomograms")
_DEPTH = 2
_ANNOTATION = re.compile(
    r"(?:(?P<number>\d+)-)?(?P<object>.+)-(?P<version>[\d.]+)_(?P<shape>[a-z]+)"
)


def find_portal_runs(folder: Path, depth: int = _DEPTH) -> list[Path]:
    """Return the folders of runs: this one, or those up to two levels below.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "10000/TS_026/Reconstructions/VoxelSpacing13.480").mkdir(parents=True)
    >>> [run.name for run in find_portal_runs(folder)]
    ['TS_026']
    """
    if any(True for home in _HOMES for _ in spacing_folders(folder / home)):
        return [folder]
    if depth == 0:
        return []
    return [run for child in subfolders(folder) for run in find_portal_runs(child, depth - 1)]


def read_portal_source(source: Path, runs: list[Path], wanted: str) -> Dataset:
    """Return the tomograms of runs.

    Parameters
    ----------
    source
        The folder the user gave.
    runs
        Folders of runs, see `find_portal_runs`.
    wanted
        Labels, such as ``13.480/101`` or ``denoised``; empty where each run has one tomogram.

    Raises
    ------
    ConfigError
        A run has several tomograms and none was chosen, or no run has one.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> run = Path(tempfile.mkdtemp()) / "TS_026"
    >>> (run / "Reconstructions/VoxelSpacing13.480/Tomograms/100/TS_026.zarr").mkdir(parents=True)
    >>> read_portal_source(run, [run], "").entries[0].name
    'TS_026'
    """
    names = {run: _name(run, source) for run in runs}
    candidates = {names[run]: list(_candidates(run)) for run in runs}
    if not any(candidates.values()):
        raise ConfigError(
            f"{source}: expected Reconstructions/VoxelSpacing*/Tomograms/*/*.zarr or .mrc in "
            f"{len(runs)} runs of the CryoET Data Portal, found no tomogram"
        )
    chosen = choose(source, candidates, wanted)
    by_name = {name: run for run, name in names.items()}
    spacings = {name: taken.labels[0] for name, taken in chosen.of_run.items()}
    lists = lists_by_key({name: list(_lists(by_name[name], s)) for name, s in spacings.items()})
    entries = tuple(
        TomogramEntry(
            name,
            taken.path,
            _masks(by_name[name], spacings[name]),
            taken.voxel_spacing_angstrom,
            lists[name],
        )
        for name, taken in chosen.of_run.items()
    )
    return Dataset("CryoET Data Portal", entries, chosen.notes, chosen.warnings)


def _name(run: Path, source: Path) -> str:
    """Return the run's name, after that of its data set where the source is above it."""
    return "_".join(run.relative_to(source).parts) or run.absolute().name


def _masks(run: Path, spacing: str) -> dict[str, Path]:
    """Return the masks of one voxel spacing by their objects."""
    return shortest_keys(
        (name, f"{name}_{number}", path)
        for path, number, name, shape in _annotations(run, spacing)
        if shape.endswith("mask")
    )


def _lists(run: Path, spacing: str) -> Iterator[tuple[str, str, Path]]:
    """Yield object, object with number and shape, and file of the particle lists."""
    for path, number, name, shape in _annotations(run, spacing):
        if path.suffix == ".ndjson" and not shape.endswith("mask"):
            yield name, f"{name}_{number}_{shape}", path


def _candidates(run: Path) -> Iterator[Candidate]:
    for home in _HOMES:
        for place, text, spacing in spacing_folders(run / home):
            tomograms = place / "Tomograms" if home == "Reconstructions" else place
            for folder in subfolders(tomograms) if tomograms.is_dir() else ():
                if folder.name != "Annotations":
                    labels = (text, folder.name, *_processing(folder))
                    yield from (Candidate(labels, path, spacing) for path in _volumes(folder))


def _volumes(folder: Path) -> list[Path]:
    """Return the volumes of a folder, each once: as Zarr where it is there in both ways."""
    found = sorted(path for path in folder.glob("*.*") if kind_of(path) in ("zarr", "mrc"))
    by_stem = {path.stem: path for path in found}  # .zarr comes after .mrc
    return [path for path in by_stem.values() if not path.name.startswith(".")]


def _processing(folder: Path) -> tuple[str, ...]:
    """Return how a tomogram was processed, where its metadata say so."""
    try:
        content = json.loads((folder / "tomogram_metadata.json").read_text("utf-8"))
        return (str(content["processing"]),)
    except (OSError, ValueError, KeyError, TypeError):
        return ()  # the label is one more way to choose; without it there is the folder's name


def _annotations(run: Path, spacing: str) -> Iterator[tuple[Path, str, str, str]]:
    """Yield file, number, object and shape of the annotations of one voxel spacing."""
    for home in _HOMES:
        folder = run / home / f"VoxelSpacing{spacing}" / "Annotations"
        found = sorted([*folder.glob("*.*"), *folder.glob("*/*.*")])
        stems = {path.with_suffix(""): path for path in found if path.suffix != ".json"}
        for stem, path in stems.items():
            match = _ANNOTATION.fullmatch(stem.name)
            if match is not None:
                yield path, match["number"] or path.parent.name, match["object"], match["shape"]
