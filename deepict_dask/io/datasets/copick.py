"""A copick project on a file system: its folder, or its config (JSON).

1. ``overlay_root`` and ``static_root`` of the config are folders (``local:///data/x``, ``/data/x``,
   or relative to the config). What is on a server cannot be opened, and that is said.
2. A run is a folder of ``ExperimentRuns``. Its tomograms are ``VoxelSpacing10.000/TYPE.zarr``; the
   stores of features (``..._features.zarr``) are none. Labels are the spacing and the type.
3. ``Segmentations/10.000_USER_SESSION_NAME.zarr`` are further files called ``NAME``, of the
   tomogram's spacing. ``Picks/USER_SESSION_OBJECT.json`` are particle lists of ``OBJECT``.
4. The voxel spacing is the one in the folder's name.

Source: the layout that copick 1.27 writes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import ConfigError
from .choice import Candidate, choose
from .entry import Dataset, TomogramEntry
from .names import lists_by_key, shortest_keys
from .spacing_folders import spacing_folders
from .walk import subfolders

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["find_copick_config", "is_copick_folder", "read_copick_source"]

RUNS = "ExperimentRuns"
_ROOTS = ("static_root", "overlay_root")


def is_copick_folder(folder: Path) -> bool:
    """Say whether a folder holds runs as copick keeps them."""
    return (folder / RUNS).is_dir()


def find_copick_config(folder: Path) -> Path | None:
    """Return the one config of copick in a folder, None where there is none, or several."""
    found = [path for path in sorted(folder.glob("*.json")) if _is_config(path)]
    return found[0] if len(found) == 1 else None


def _is_config(path: Path) -> bool:
    try:
        return any(root in _json(path) for root in _ROOTS)
    except ConfigError:
        return False


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: expected a config of copick (JSON), found: {error}") from None
    return content if isinstance(content, dict) else {}


def read_copick_source(source: Path, wanted: str) -> Dataset:
    """Return the tomograms of a copick project.

    Parameters
    ----------
    source
        The config, or the folder with ``ExperimentRuns``.
    wanted
        Voxel spacing and type of tomogram, such as ``10.000/wbp``; empty where there is one only.

    Raises
    ------
    ConfigError
        There is no run, no tomogram, or several of one run and none was chosen.

    Examples
    --------
    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> (root / "ExperimentRuns/TS_1/VoxelSpacing10.000/wbp.zarr").mkdir(parents=True)
    >>> entry = read_copick_source(root, "").entries[0]
    >>> entry.name, entry.path.name, entry.voxel_spacing_angstrom
    ('TS_1', 'wbp.zarr', 10.0)
    """
    roots, notes = ([source], ()) if source.is_dir() else _roots_of(source)
    runs: dict[str, list[Path]] = {}
    for root in roots:
        for folder in subfolders(root / RUNS):
            runs.setdefault(folder.name, []).append(folder)
    if not runs:
        raise ConfigError(f"{source}: expected runs in {RUNS}, found none")
    candidates = {name: list(_candidates(folders)) for name, folders in runs.items()}
    chosen = choose(source, candidates, wanted)
    lists = lists_by_key({name: list(_lists(folders)) for name, folders in runs.items()})
    entries = tuple(
        TomogramEntry(
            name,
            taken.path,
            _segmentations(runs[name], taken.voxel_spacing_angstrom),
            taken.voxel_spacing_angstrom,
            lists[name],
        )
        for name, taken in chosen.of_run.items()
    )
    return Dataset("copick", entries, (*notes, *chosen.notes), chosen.warnings)


def _roots_of(config: Path) -> tuple[list[Path], tuple[str, ...]]:
    """Return the folders that a config names, and what there is to say about the others."""
    content = _json(config)
    named = {key: str(content[key]) for key in _ROOTS if content.get(key)}
    if not named:
        raise ConfigError(
            f"{config}: expected overlay_root or static_root (a config of copick), "
            f"found {', '.join(content) or 'nothing'}"
        )
    folders = {key: _local(text, config) for key, text in named.items()}
    roots = [
        folder for folder in folders.values() if folder is not None and is_copick_folder(folder)
    ]
    absent = [f"{key} {text}" for key, text in named.items() if folders[key] not in roots]
    if content.get("dataset_ids"):
        absent.append(f"data sets {content['dataset_ids']} of the CryoET Data Portal")
    if not roots:
        raise ConfigError(
            f"{config}: expected a folder of this machine with {RUNS}, found none: "
            f"{'; '.join(absent)}"
        )
    notes = tuple(f"not on this machine, left out: {text}" for text in absent)
    return list(dict.fromkeys(roots)), notes


def _local(text: str, config: Path) -> Path | None:
    """Return the folder that a root means, None where it is on a server."""
    scheme, found, rest = text.partition("://")
    if found and scheme not in ("local", "file"):
        return None
    path = Path(rest if found else text)
    beside = config.parent / path
    return beside if beside.exists() else path


def _candidates(folders: Iterable[Path]) -> Iterator[Candidate]:
    """Yield the tomograms of a run; the same one in both roots counts once."""
    seen = set()
    for folder in folders:
        for place, text, spacing in spacing_folders(folder):
            for store in sorted(place.glob("*.zarr")):
                labels = (text, store.stem)
                if not store.stem.endswith("_features") and labels not in seen:
                    seen.add(labels)
                    yield Candidate(labels, store, spacing)


def _segmentations(folders: Iterable[Path], spacing: float | None) -> dict[str, Path]:
    """Return the segmentations of one voxel spacing by their names."""
    found = []
    for folder in folders:
        for store in sorted((folder / "Segmentations").glob("*.zarr")):
            text, _, rest = store.stem.removesuffix("-multilabel").partition("_")
            if _is_number(text) and spacing is not None and abs(float(text) - spacing) < 5e-4:
                found.append((rest.split("_", 2)[-1], rest, store))
    return shortest_keys(found)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _lists(folders: Iterable[Path]) -> Iterator[tuple[str, str, Path]]:
    """Yield object, user with session and object, and file of the particle lists of a run."""
    for folder in folders:
        for path in sorted((folder / "Picks").glob("*.json")):
            yield path.stem.split("_", 2)[-1], path.stem, path
