"""The config of ``deepict-dask run``: one YAML file, a misspelt key refused by its name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import yaml
from pydantic import (
    BaseModel,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from ..core.errors import ConfigError
from .stages import (
    EqualizeSettings,
    PickSettings,
    RegionSettings,
    SegmentSettings,
    Strict,
)
from .yaml_text import values_of_yaml

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "ClusterConfig",
    "DatasetConfig",
    "RunConfig",
    "dump_config",
    "load_run_config",
    "read_config_file",
    "settings_from",
]

ChunkShape = tuple[PositiveInt, PositiveInt, PositiveInt]


class ClusterConfig(Strict):
    """Where the work runs."""

    kind: str = "local"
    """"local", slurm:PROFILE.yaml (also pbs:, lsf: and sge:), or tcp://HOST:PORT or
    scheduler-file:PATH of a running Dask scheduler."""
    workers: PositiveInt | None = None
    """Number of workers; as many as cores and memory allow by default."""
    memory: str | None = None
    """Memory of each worker, such as 4GiB."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the networks run."""
    tomograms_in_flight: PositiveInt | None = None
    """How many tomograms run at a time; 2 to 8 by default, by the number of workers."""


class DatasetConfig(Strict):
    """What all that is done with a dataset has in common."""

    tomograms: Path
    """Any source of `deepict_dask.io.dataset`: a volume, pattern, folder, table or project."""
    output: Path
    """Folder of what is made."""
    voxel_spacing_angstrom: PositiveFloat | None = None
    """Overrides what the files say."""
    equalize: EqualizeSettings | None = None
    """Equalize the tomograms first."""
    cluster: ClusterConfig = ClusterConfig()

    @field_validator("tomograms", "output", mode="before")
    @classmethod
    def _number_is_a_name(cls, value: Any) -> Any:
        """Take ``10988``, which YAML reads as a number, for the folder of that name."""
        is_number = isinstance(value, int) and not isinstance(value, bool)
        return str(value) if is_number else value

    def relative_to(self, folder: Path) -> Self:
        """Return the config with paths taken from the folder of its file."""
        kind = _kind_beside(self.cluster.kind, folder)
        update: dict[str, Any] = {
            "tomograms": folder / self.tomograms,
            "output": folder / self.output,
            "cluster": self.cluster.model_copy(update={"kind": kind}),
        }
        if self.equalize is not None:
            target = folder / self.equalize.target
            update["equalize"] = self.equalize.model_copy(update={"target": target})
        return self.model_copy(update=update)


class RunConfig(DatasetConfig):
    """The whole pipeline over one or many tomograms, each with a sub-folder of the output."""

    chunks: ChunkShape = (128, 128, 128)
    """Chunks of the stores, voxels on z, y, x."""
    regions: tuple[RegionSettings, ...] = ()
    segment: tuple[SegmentSettings, ...] = ()
    keep_scores: bool = True
    """Whether score maps are outputs. Otherwise picks are made in one pass from the tomogram, with
    about half the disk; another threshold then runs the networks again."""
    pick: tuple[PickSettings, ...] = ()

    @model_validator(mode="after")
    def _regions_are_known(self) -> RunConfig:
        known = [region.name for region in self.regions]
        for pick in self.pick:
            if pick.region is None and pick.contact_mode != "intersection":
                raise ValueError(
                    f"pick: contact_mode: expected a region with it, found {pick.contact_mode} "
                    "alone; give region, or contacts with a mode each"
                )
            if pick.idle_distance:
                raise ValueError(
                    f"pick: contact_distance: expected a region with contact_mode colocalization, "
                    f"found {pick.contact_mode} {'with' if pick.region else 'without'} a region; "
                    "other modes have no distance"
                )
            wanted = [contact.region for contact in pick.all_contacts] + [*(pick.distances or ())]
            for name in wanted:
                if name not in known:
                    names = ", ".join(known) or "none, as none is given"
                    raise ValueError(
                        f"pick: region: expected one of {names}, found {name!r}; declare it under "
                        "regions"
                    )
        if len(set(known)) < len(known):
            raise ValueError(f"regions: expected different names, found {', '.join(known)}")
        if not self.segment and not any(region.model for region in self.regions):
            raise ValueError("segment: expected at least one model here or under regions")
        if not self.keep_scores and not self.pick:
            raise ValueError("keep_scores: expected true where nothing is picked, found false")
        return self

    def relative_to(self, folder: Path) -> Self:
        """Return the config with paths taken from the folder of its file."""
        regions = tuple(_region_beside(region, folder) for region in self.regions)
        segment = tuple(
            s.model_copy(update={"model": model_beside(s.model, folder)}) for s in self.segment
        )
        update = {"regions": regions, "segment": segment}
        return super().relative_to(folder).model_copy(update=update)


def model_beside(model: str, folder: Path) -> str:
    """Take a model path from the config's folder, if there is such a file; else it is a name."""
    beside = folder / model
    return str(beside) if beside.is_file() else model


def _kind_beside(kind: str, folder: Path) -> str:
    """Take a profile or scheduler file from the config's folder, if there is such a file."""
    name, colon, path = kind.partition(":")
    beside = folder / path
    return f"{name}:{beside}" if colon and path and beside.is_file() else kind


def _region_beside(region: RegionSettings, folder: Path) -> RegionSettings:
    """Take a region's files from the config's folder."""
    update: dict[str, Any] = {}
    if region.path is not None:
        update["path"] = folder / region.path
    if region.model is not None:
        update["model"] = model_beside(region.model, folder)
    return region.model_copy(update=update)


def settings_from(model: type[BaseModel], values: dict[str, Any], where: str) -> Any:
    """Build settings, with every problem named.

    Raises
    ------
    ConfigError
        A key is unknown or missing, or a value is out of range.

    Examples
    --------
    >>> settings_from(PickSettings, {"threshold": 0.5}, "command line").threshold
    0.5
    >>> settings_from(PickSettings, {"treshold": 0.5}, "run.yaml")
    Traceback (most recent call last):
    ...
    deepict_dask.core.errors.ConfigError: run.yaml: treshold: unknown key (known keys: class, ...
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(_problems(error.errors(), model))
        raise ConfigError(f"{where}: {problems}") from None


def _problems(errors: Sequence[Any], model: type[BaseModel]) -> list[str]:
    """Say problems in words; of keys that are unknown in one place, its known ones once."""
    misspelt: dict[tuple[Any, ...], list[str]] = {}
    for problem in errors:
        if problem["type"] == "extra_forbidden":
            misspelt.setdefault(problem["loc"][:-1], []).append(_place(problem))
    said = []
    for problem in errors:
        if problem["type"] != "extra_forbidden":
            said.append(_problem(problem))
            continue
        keys = misspelt.pop(problem["loc"][:-1], None)
        if keys is not None:
            s = "s" * (len(keys) > 1)
            known = ", ".join(_keys_of(_model_at(model, problem["loc"][:-1])))
            said.append(f"{', '.join(keys)}: unknown key{s} (known keys: {known})")
    return said


def _place(problem: Any) -> str:
    return ".".join(str(part) for part in problem["loc"])


def _keys_of(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _problem(problem: Any) -> str:
    """Say one problem of a config in words."""
    where = _place(problem)
    if problem["type"] == "missing":
        return f"{where}: is required, found nothing"
    message = problem["msg"].removeprefix("Value error, ")
    found = "" if problem["type"] == "value_error" else f", found {problem['input']!r}"
    return f"{where}: {message}{found}".removeprefix(": ")


def _model_at(model: type[BaseModel], path: tuple[str | int, ...]) -> type[BaseModel]:
    """Return the settings model that a path of keys leads to."""
    for part in path:
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        if part in fields:
            model = _settings_in(fields[str(part)].annotation) or model
    return model


def _settings_in(annotation: Any) -> type[BaseModel] | None:
    """Return the settings model that a field holds: itself, or in a tuple, dict or union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_settings_in, get_args(annotation))), None)


def read_config_file(path: Path) -> dict[str, Any]:
    """Return the keys of a YAML file, ours or another program's.

    Raises
    ------
    ConfigError
        The file is absent, no YAML, has no keys or one twice.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "run.yaml"
    >>> path.write_text("output: results")
    15
    >>> read_config_file(path)
    {'output': 'results'}
    """
    try:
        values = values_of_yaml(path.read_text())
    except OSError as error:
        raise ConfigError(
            f"{path}: expected a config file, found: {error.strerror}; check the path"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}{_yaml_problem(error)}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys such as tomograms and output, found none")
    return values


def _yaml_problem(error: Exception) -> str:
    """Say where a file stops being YAML and why, to stand after its path."""
    if isinstance(error, UnicodeDecodeError):
        return f": expected YAML in UTF-8, found byte {error.start} that is not; save it as UTF-8"
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f": expected YAML, found something else: {' '.join(str(error).split())}"
    why = getattr(error, "problem", None) or "something else"
    context = getattr(error, "context", None)
    return (
        f", line {mark.line + 1}, column {mark.column + 1}: expected YAML, found: {why}"
        + (f" ({context})" if context else "")
        + "; check colons, indents, brackets and quotes there and just above"
    )


def load_run_config(path: Path) -> RunConfig:
    r"""Read the YAML of ``deepict-dask run``; its paths are relative to its folder.

    Raises
    ------
    ConfigError
        The file is absent, no YAML, or has unknown, missing or contradictory keys.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "run.yaml"
    >>> _ = path.write_text("tomograms: t.mrc\noutput: out\nsegment: [{model: m.pth}]")
    >>> load_run_config(path).tomograms.name
    't.mrc'
    """
    values = read_config_file(path)
    config: RunConfig = settings_from(RunConfig, values, str(path))
    return config.relative_to(path.parent.absolute())


def dump_config(config: DatasetConfig) -> str:
    """Return the resolved config as YAML, every default spelt out.

    Examples
    --------
    >>> config = RunConfig(tomograms="t.mrc", output="out", segment=({"model": "m.pth"},))
    >>> "voxel_spacing_angstrom: null" in dump_config(config)
    True
    """
    values = config.model_dump(mode="json", by_alias=True)
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
