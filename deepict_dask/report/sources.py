"""What there is to report, from what a run or a pick leaves on disk; nothing else is needed.

A run's output folder is known by its plan (`jobs.runs.journal`), a folder of picks by its
``run.json``. What an unfinished or failed run has not made is simply absent here.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError
from ..jobs.runs.status import OutputStatus, TomogramStatus, read_status

log = logging.getLogger("deepict_dask")

__all__ = ["PicksSource", "RunSource", "TomogramSource", "read_source"]

_RECORD, _EQUALIZED = "run.json", "equalized.zarr"
_LISTS = ("picks.csv", "clusters.parquet")
_REGION, _PICKS = "region_", "picks_"
# Names as in `run_outputs`, which is not imported: it loads torch, 100 MB that no report needs.


@dataclass(frozen=True)
class PicksSource:
    """A finished folder of picks."""

    name: str
    folder: Path
    record: dict[str, Any]
    """What ``run.json`` says."""

    @property
    def settings(self) -> dict[str, Any]:
        """How the picks were made."""
        found: dict[str, Any] = self.record.get("request", {}).get("settings", {})
        return found

    @property
    def n_picks(self) -> int:
        """Number of picks."""
        return int(self.record.get("n_picks", 0))

    @property
    def regions(self) -> dict[str, Path]:
        """Masks that were used, by the name of the region."""
        given = self.record.get("inputs", {}).get("regions", {})
        return {name: Path(path) for name, path in given.items()}

    @property
    def segmentation(self) -> Path | None:
        """The segmentation, None where the method makes none."""
        for name in ("segmentation.zarr", "segmentation.mrc"):
            if (self.folder / name).exists():
                return self.folder / name
        return None


@dataclass(frozen=True)
class TomogramSource:
    """One tomogram of a run, and what was made of it."""

    name: str
    folder: Path
    state: str
    """waiting, running, stopped, done, failed or unfinished."""
    reason: str = ""
    seconds: float | None = None
    tomogram: Path | None = None
    """The file, None where it is not known."""
    voxel_spacing_angstrom: float | None = None
    """Of the tomogram, Å, as the run was told; None where its header counts."""
    outputs: tuple[OutputStatus, ...] = ()
    picks: tuple[PicksSource, ...] = ()
    expected_picks: tuple[str, ...] = ()
    """Names of folders of picks that were asked for."""
    damaged: tuple[str, ...] = ()
    """Folders of picks that cannot be read, and why."""
    counts: dict[str, int] = field(default_factory=dict)
    """Picks as the run has counted them."""
    volumes: dict[str, Path] = field(default_factory=dict)
    """Finished volumes of a run with a config of DeePiCt, which has its own places and names."""
    warnings: tuple[str, ...] = ()
    """What was odd about the tomogram before any network ran."""

    def n_picks(self, name: str) -> int | None:
        """Return how many picks of a name there are, None where that is not known."""
        return next((one.n_picks for one in self.picks if one.name == name), self.counts.get(name))

    @property
    def equalized(self) -> Path | None:
        """The equalized tomogram."""
        path = self.folder / _EQUALIZED
        return path if path.exists() else None

    @property
    def score_maps(self) -> list[Path]:
        """Score maps that are stored; of a folder of picks the one that it was made from."""
        found = sorted(self.folder.glob("scores_*.zarr"))
        given = [one.record.get("inputs", {}).get("score") for one in self.picks]
        known = [Path(path) for path in dict.fromkeys(given) if path]
        return [*found, *(path for path in known if path not in found and path.exists())]

    @property
    def regions(self) -> dict[str, Path]:
        """Region masks by name: those that were made, and those that picks used."""
        made = self.folder.glob(f"{_REGION}*.zarr")
        found = {path.stem.removeprefix(_REGION): path for path in sorted(made)}
        for one in self.picks:
            found = {**one.regions, **found}
        return found


@dataclass(frozen=True)
class RunSource:
    """A run, or one folder of picks."""

    folder: Path
    kind: str
    """run or picks."""
    tomograms: tuple[TomogramSource, ...]
    versions: dict[str, str] = field(default_factory=dict)
    started: str = ""
    by: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] | None = None
    """All settings, None where an older version left none."""

    @property
    def pick_names(self) -> list[str]:
        """Names of all folders of picks, in the order of the run."""
        names = [name for one in self.tomograms for name in one.expected_picks]
        return list(dict.fromkeys(names))


def read_source(folder: Path, *, tomogram: Path | None = None) -> RunSource:
    """Return what there is to report in a folder.

    Parameters
    ----------
    folder
        Output folder of a run, or a folder of picks.
    tomogram
        The tomogram behind a folder of picks, where it is not known.

    Raises
    ------
    ConfigError
        It is neither.

    Examples
    --------
    >>> import tempfile
    >>> read_source(Path(tempfile.mkdtemp()))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    deepict_dask.core.errors.ConfigError: ...: expected the output folder of a run or a folder ...
    """
    folder = folder.absolute()
    if (folder / _RECORD).is_file():
        return _picks_alone(folder, tomogram)
    try:
        status = read_status(folder)
    except ConfigError:
        raise ConfigError(
            f"{folder}: expected the output folder of a run or a folder of picks, found neither a "
            f"plan of a run nor {_RECORD}; give the folder that the config names as output"
        ) from None
    inputs = status.plan.get("inputs", {})
    if tomogram is not None:
        if len(status.tomograms) != 1:
            raise ConfigError(
                f"--tomogram: expected a folder of picks or a run of one tomogram, found "
                f"{len(status.tomograms)} tomograms in {folder}; leave it out"
            )
        if not tomogram.exists():
            raise _no_tomogram(tomogram)
        inputs = {status.tomograms[0].tomogram: str(tomogram)}
    places, spacings = status.plan.get("places", {}), status.plan.get("spacings", {})
    found = [
        _tomogram(
            folder / one.tomogram, one, inputs, spacings.get(one.tomogram),
            places.get(one.tomogram, {}),
        )
        for one in status.tomograms
    ]  # fmt: skip
    plan = status.plan
    return RunSource(
        folder, "run", tuple(found), plan.get("versions", {}), plan.get("started", ""),
        plan.get("by", {}), plan.get("config"),
    )  # fmt: skip


def _picks_alone(folder: Path, tomogram: Path | None) -> RunSource:
    """Return a folder of picks as a run of one tomogram."""
    if tomogram is not None and not tomogram.exists():
        raise _no_tomogram(tomogram)
    record = _read_record(folder)
    one = PicksSource(folder.name, folder, record)
    reason = _lists_gone(folder)
    given = record.get("inputs", {}).get("tomogram")
    source = TomogramSource(
        folder.name,
        folder,
        "failed" if reason else "done",
        reason,
        tomogram=tomogram or (Path(given) if given else None),
        voxel_spacing_angstrom=record.get("voxel_spacing_angstrom"),
        picks=() if reason else (one,),
        expected_picks=(one.name,),
    )
    config = {"pick": [one.settings]}
    return RunSource(
        folder,
        "picks",
        (source,),
        record.get("versions", {}),
        record.get("started", ""),
        {},
        config,
    )


def _no_tomogram(path: Path) -> ConfigError:
    return ConfigError(
        f"--tomogram {path}: expected a tomogram, found no such file; check the path"
    )


def _lists_gone(folder: Path) -> str:
    """Return why a folder of picks has nothing to show, also as a warning; empty where it has."""
    if any((folder / name).exists() for name in _LISTS):
        return ""
    reason = f"{' and '.join(_LISTS)} are gone from {folder}; make the picks again"
    log.warning("%s", reason)
    return reason


def _tomogram(
    folder: Path, one: TomogramStatus, inputs: dict[str, str], spacing: float | None,
    places: dict[str, dict[str, str]],
) -> TomogramSource:  # fmt: skip
    """Return one tomogram of a run with its finished folders of picks."""
    picks, damaged = [], []
    for each in one.outputs:
        place = folder / each.output
        if each.state not in ("done", "earlier") or not (place / _RECORD).is_file():
            continue
        gone = _lists_gone(place)
        if gone:
            damaged.append(f"{each.output}: not shown: {gone}")
            continue
        try:
            picks.append(PicksSource(each.output, place, _read_record(place)))
        except ConfigError as error:
            damaged.append(f"{each.output}: not shown: {error}")
    return TomogramSource(
        one.tomogram,
        folder,
        one.state,
        one.reason,
        one.seconds,
        Path(inputs[one.tomogram]) if one.tomogram in inputs else None,
        spacing,
        one.outputs,
        tuple(picks),
        (*(o.output for o in one.outputs if o.output.startswith(_PICKS)), *one.picks),
        tuple(damaged),
        one.picks,
        {
            each.output: Path(places[each.output]["path"])
            for each in one.outputs
            if each.state == "done" and each.output in places and _is_overlay(each.output)
        },
        one.warnings,
    )


def _is_overlay(output: str) -> bool:
    """Say whether a file of DeePiCt's is of scores or a mask: a filtered tomogram is neither."""
    return output.endswith(".mrc") and not output.endswith("_filtered.mrc")


def _read_record(folder: Path) -> dict[str, Any]:
    """Return what a folder of picks says of itself.

    Raises
    ------
    ConfigError
        It is damaged.
    """
    path = folder / _RECORD
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: expected the record of a pick, found {error}; run `deepict-dask run` again"
        ) from error
    if not isinstance(record, dict):
        raise ConfigError(f"{path}: expected the record of a pick, found {type(record).__name__}")
    return record
