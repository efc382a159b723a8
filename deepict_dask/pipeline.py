"""The whole pipeline over tomograms: the only file that knows the order of the stages.

For each tomogram: equalize (if asked for), one score map per model, one folder of picks per pick
section. Every stage leaves a finished output or none, and ``stages.json`` notes the request that
each output answers: what answers the same request is not made again.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core.errors import ConfigError, DeepictError, OutputExistsError, VolumeFormatError
from .engine import fingerprint, request_key
from .io.dataset import TomogramEntry, list_tomograms
from .jobs.equalize import equalize_volume
from .jobs.pick import pick_particles
from .jobs.segment import chosen_class, segment_volume
from .models.checkpoint import model_info
from .models.registry import resolve_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from .config import PickSettings, RunConfig, SegmentSettings
    from .jobs.session import Session

__all__ = ["RunReport", "TomogramReport", "run_pipeline", "score_map_of"]

log = logging.getLogger("deepict_dask")


@dataclass(frozen=True)
class TomogramReport:
    """What became of one tomogram."""

    name: str
    n_picks: dict[str, int] = field(default_factory=dict)
    """Picks of each pick section, by the name of its folder."""
    error: DeepictError | None = None


@dataclass(frozen=True)
class RunReport:
    """What became of a run."""

    tomograms: tuple[TomogramReport, ...]

    @property
    def failed(self) -> list[TomogramReport]:
        """The tomograms that were not finished."""
        return [report for report in self.tomograms if report.error is not None]


class StageRecord:
    """Which request each finished output of a tomogram answers.

    Parameters
    ----------
    folder
        The tomogram's folder of results.

    Examples
    --------
    >>> import tempfile
    >>> record = StageRecord(Path(tempfile.mkdtemp()))
    >>> record.answers("picks", "key"), record.note("picks", "key")
    (False, None)
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "stages.json"

    def _keys(self) -> dict[str, str]:
        try:
            keys: dict[str, str] = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return keys

    def answers(self, output: str, key: str) -> bool:
        """Say whether a finished output of this name answers the request."""
        return self._keys().get(output) == key and (self._folder / output).exists()

    def outputs(self) -> list[str]:
        """Return the names of the finished outputs that are there."""
        return [output for output in self._keys() if (self._folder / output).exists()]

    def note(self, output: str, key: str) -> None:
        """Note that an output is finished; written in one step."""
        text = json.dumps({**self._keys(), output: key}, indent=2)
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(text + "\n")
        os.replace(temporary, self._path)


def score_map_of(settings: SegmentSettings) -> str:
    """Return the name of a model's score map in a tomogram's folder.

    Examples
    --------
    >>> from deepict_dask.config import SegmentSettings
    >>> score_map_of(SegmentSettings(model="models/ribosome_D2.pth"))
    'scores_ribosome_D2.zarr'
    """
    return f"scores_{Path(settings.model).stem}.zarr"


def pick_folder_of(settings: PickSettings, number: int) -> str:
    """Return the name of a pick section's folder.

    Examples
    --------
    >>> from deepict_dask.config import PickSettings
    >>> pick_folder_of(PickSettings(class_name="ribosome"), 0)
    'picks_ribosome'
    """
    return f"picks_{settings.class_name or number}"


def run_pipeline(
    session: Session, config: RunConfig, *, say: Callable[[str], None] = lambda _text: None
) -> RunReport:
    """Run the pipeline over all tomograms; one that fails does not stop the others.

    Parameters
    ----------
    session
        Workers and wishes; outputs of other requests are replaced, finished ones are kept.
    config
        What to do.
    say
        Receives one line per finished stage.

    Raises
    ------
    ConfigError
        The config contradicts the models or the table.
    OutputExistsError
        The output folder holds something else.
    """
    entries = list_tomograms(config.tomograms)
    check_config(config, entries)
    session = replace(
        session,
        chunks=config.chunks,
        overwrite=True,
        voxel_spacing_angstrom=config.voxel_spacing_angstrom,
    )
    reports = []
    for entry in entries:
        try:
            counts = _run_one(session, config, entry, say)
            reports.append(TomogramReport(entry.name, counts))
        except DeepictError as error:
            if len(entries) == 1:
                raise
            say(f"{entry.name}: failed: {error}")
            reports.append(TomogramReport(entry.name, error=error))
    return RunReport(tuple(reports))


def check_config(config: RunConfig, entries: list[TomogramEntry]) -> None:
    """Refuse what cannot work before any work is done."""
    names = [score_map_of(s) for s in config.segment]
    folders = [pick_folder_of(p, i) for i, p in enumerate(config.pick)]
    for what, found in (("segment: models", names), ("pick: classes", folders)):
        if len(set(found)) < len(found):
            raise ConfigError(f"{what}: expected different names, found one twice in {found}")
    _check_classes(config)
    for region in config.regions:
        if region.path is not None and not region.path.exists():
            raise ConfigError(f"regions: {region.name}: expected a file, found none: {region.path}")
    for entry in entries:
        folder = config.output / entry.name
        if folder.is_dir() and any(folder.iterdir()) and not _is_ours(folder):
            raise OutputExistsError(
                f"{folder}: expected an empty folder or results of an earlier run, "
                "found other files; give another output"
            )


def _check_classes(config: RunConfig) -> None:
    """Refuse pick sections whose class no model has."""
    known: list[str] = []
    for segment in config.segment:
        names = model_info(resolve_model(segment.model)).class_names
        chosen_class(names, segment.classes, segment.model)
        known += segment.classes or names
    for pick in config.pick:
        if pick.class_name is not None and pick.class_name not in known:
            raise ConfigError(
                f"pick: class: expected one of the models' classes {', '.join(known)}, "
                f"found {pick.class_name}"
            )
        if pick.class_name is None and len(known) > 1:
            raise ConfigError(
                f"pick: class: expected one of the models' classes {', '.join(known)}, found none"
            )


def _is_ours(folder: Path) -> bool:
    """Say whether a folder holds results (or unfinished results) of a run."""
    known = {"stages.json"}
    endings = (".partial", ".lock")
    return any(path.name in known or path.name.endswith(endings) for path in folder.iterdir())


def _run_one(
    session: Session, config: RunConfig, entry: TomogramEntry, say: Callable[[str], None]
) -> dict[str, int]:
    """Run all stages of one tomogram."""
    if not entry.path.exists():
        raise VolumeFormatError(
            f"{entry.path}: expected a tomogram, found no such file; check the path"
        )
    folder = config.output / entry.name
    folder.mkdir(parents=True, exist_ok=True)
    stages = _Stages(session, config, entry, folder, StageRecord(folder), say)
    tomogram = stages.equalize()
    maps = {segment: stages.segment(tomogram, segment) for segment in config.segment}
    counts = {
        pick_folder_of(pick, i): stages.pick(stages.map_for(pick, maps), pick, i)
        for i, pick in enumerate(config.pick)
    }
    current = {"equalized.zarr", *counts, *(path.name for path in maps.values())}
    for output in stages.record.outputs():
        if output not in current or (output == "equalized.zarr" and config.equalize is None):
            say(f"{entry.name}: {output} is of an earlier config and was left as it is")
    return counts


@dataclass(frozen=True)
class _Stages:
    """The stages of one tomogram, each made once."""

    session: Session
    config: RunConfig
    entry: TomogramEntry
    folder: Path
    record: StageRecord
    say: Callable[[str], None]

    def _make(self, output: str, request: dict[str, Any], make: Callable[[Path], Any]) -> Path:
        """Make an output unless a finished one answers the same request."""
        target = self.folder / output
        key = request_key({**request, "chunks": self.session.chunks,
                           "spacing": self.session.voxel_spacing_angstrom})  # fmt: skip
        if self.record.answers(output, key):
            self.say(f"{self.entry.name}: {output} is up to date")
        else:
            make(target)
            self.record.note(output, key)
            self.say(f"{self.entry.name}: wrote {output}")
        return target

    def equalize(self) -> Path:
        """Return the tomogram the networks see."""
        settings = self.config.equalize
        if settings is None:
            return self.entry.path
        request = {
            "input": fingerprint(self.entry.path), "target": fingerprint(settings.target),
            "settings": settings.model_dump(mode="json"),
        }  # fmt: skip
        return self._make(
            "equalized.zarr",
            request,
            lambda target: equalize_volume(self.session, self.entry.path, target, settings),
        )

    def segment(self, tomogram: Path, settings: SegmentSettings) -> Path:
        """Return a model's score map."""
        region = self._compat_region() if settings.compat else None
        request = {
            "input": fingerprint(tomogram), "model": fingerprint(resolve_model(settings.model)),
            "settings": settings.model_dump(mode="json"),
            "region": region and fingerprint(region),
        }  # fmt: skip
        return self._make(
            score_map_of(settings),
            request,
            lambda target: segment_volume(self.session, tomogram, target, settings, region=region),
        )

    def _compat_region(self) -> Path | None:
        """Return the mask that limits published-style prediction: the one all picks use."""
        names = {pick.region for pick in self.config.pick if pick.region is not None}
        return self.region_file(names.pop()) if len(names) == 1 else None

    def region_file(self, name: str) -> Path | None:
        """Return this tomogram's file of a region, None where the table has none."""
        region = next(r for r in self.config.regions if r.name == name)
        return region.path if region.column is None else self.entry.file_of(region.column)

    def map_for(self, pick: PickSettings, maps: dict[SegmentSettings, Path]) -> Path:
        """Return the score map that has the class of a pick section."""
        from .models.registry import loaded_model

        if len(maps) == 1:
            return next(iter(maps.values()))
        for settings, path in maps.items():
            if pick.class_name in loaded_model(resolve_model(settings.model)).class_names:
                return path
        raise ConfigError(f"pick: no model of the config has the class {pick.class_name!r}")

    def pick(self, score: Path, settings: PickSettings, number: int) -> int:
        """Make the picks of one section and return how many there are."""
        region = None if settings.region is None else self.region_file(settings.region)
        request = {
            "input": fingerprint(score), "region": region and fingerprint(region),
            "settings": settings.model_dump(mode="json"),
        }  # fmt: skip
        folder = self._make(
            pick_folder_of(settings, number),
            request,
            lambda target: pick_particles(
                self.session, score, target, settings,
                region=region, tomogram_name=self.entry.name,
            ),
        )  # fmt: skip
        n_picks: int = json.loads((folder / "run.json").read_text())["n_picks"]
        self.say(f"{self.entry.name}: {n_picks} picks in {folder}")
        return n_picks
