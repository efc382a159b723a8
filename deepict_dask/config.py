"""Settings: strict, frozen, units in the names, every default written once.

A misspelt key is refused by its name. `load_run_config` reads the YAML of ``deepict-dask run``;
the command line builds the same stage settings from its options.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from .core.errors import ConfigError

__all__ = [
    "ClusterConfig",
    "EqualizeSettings",
    "PickSettings",
    "RegionSettings",
    "RunConfig",
    "SegmentSettings",
    "dump_run_config",
    "load_run_config",
    "settings_from",
]

ContactMode = Literal["intersection", "contact", "colocalization"]
ChunkShape = tuple[PositiveInt, PositiveInt, PositiveInt]
Border = tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt]


class Strict(BaseModel):
    """Base of all settings: unknown keys are refused, values cannot change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False
    )


class EqualizeSettings(Strict):
    """Amplitude matching: make tomograms alike before the network sees them.

    Examples
    --------
    >>> EqualizeSettings(target="target.tsv").compat is None
    True
    """

    target: Path
    """Spectrum to match (.tsv)."""
    cutoff: NonNegativeFloat | None = None
    """Low-pass cut-off: 1/Å, or spectrum bins with ``compat: deepict``."""
    smoothing: NonNegativeFloat = 0.0
    """Width of the cut-off, in the unit of ``cutoff``."""
    compat: Literal["deepict"] | None = None
    """Reproduce the published filter exactly."""


class RegionSettings(Strict):
    """A region mask (lamella, cytosol, organelle), from a file or a column of the table."""

    name: str
    path: Path | None = None
    """One mask file for every tomogram."""
    column: str | None = None
    """Column of the dataset table with each tomogram's mask file; an empty cell means no mask."""

    @model_validator(mode="after")
    def _one_source(self) -> RegionSettings:
        if (self.path is None) == (self.column is None):
            found = "neither" if self.path is None else "both"
            raise ValueError(f"region {self.name!r}: expected either path or column, found {found}")
        return self


class SegmentSettings(Strict):
    """One model over the tomogram.

    Examples
    --------
    >>> SegmentSettings(model="ribosome.pth").classes is None
    True
    """

    model: str
    """A model file, or the name of a bundled model."""
    classes: tuple[str, ...] | None = None
    """Which of the model's classes to keep; all by default."""
    compat: Literal["deepict"] | None = None
    """Reproduce the published tiling, with its seams and its uncovered border."""


class PickSettings(Strict):
    """Score map to segmentation, clusters and picks.

    Examples
    --------
    >>> PickSettings(threshold=0.6).connectivity
    26
    """

    class_name: Annotated[str | None, Field(alias="class")] = None
    """Class of a multi-class score map; may be left out where there is one class."""
    threshold: float = 0.5
    """Voxels with a score above this are chosen."""
    label_value: int | None = None
    """Instead of a threshold: voxels of a label volume that equal this."""
    min_size: NonNegativeInt = 1
    """Smallest cluster in voxels, inclusive (exclusive with ``compat: deepict``)."""
    max_size: PositiveInt | None = None
    """Largest cluster in voxels, inclusive."""
    connectivity: Literal[6, 18, 26] = 26
    """Neighbours of a voxel: faces, and edges, and corners."""
    border: Border = (0, 0, 0)
    """Voxels to leave out at both ends of the axes z, y, x."""
    region: str | None = None
    """Name of a region of the config (a path on the command line)."""
    contact_mode: ContactMode = "intersection"
    """What a cluster has to do with the region to be kept."""
    contact_distance: NonNegativeInt = 10
    """For colocalization: largest chessboard distance of the centroid to the region, in voxels."""
    label_map: bool = False
    """Also write the label map (0 background, 1..n clusters in raster order)."""
    format: Literal["zarr", "mrc"] = "zarr"
    """Format of the segmentation and the label map."""
    compat: Literal["deepict"] | None = None
    """Reproduce the published post-processing."""

    @model_validator(mode="after")
    def _limits(self) -> PickSettings:
        if self.max_size is not None and self.max_size < self.min_size:
            raise ValueError(
                f"max_size: expected at least min_size, which is {self.min_size}, "
                f"found {self.max_size}"
            )
        return self


class ClusterConfig(Strict):
    """Where the work runs."""

    kind: str = "local"
    """"local" or tcp://HOST:PORT of a running Dask scheduler."""
    workers: PositiveInt | None = None
    """Number of workers; as many as cores and memory allow by default."""
    memory: str | None = None
    """Memory of each worker, such as 4GiB."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the networks run."""


class RunConfig(Strict):
    """The whole pipeline over one or many tomograms."""

    tomograms: Path
    """A volume, a glob pattern, or a CSV table with the columns ``name`` and ``tomogram``."""
    output: Path
    """Folder of the results, one sub-folder for each tomogram."""
    voxel_spacing_angstrom: PositiveFloat | None = None
    """Overrides what the files say."""
    chunks: ChunkShape = (128, 128, 128)
    """Chunks of the stores, voxels on z, y, x."""
    equalize: EqualizeSettings | None = None
    regions: tuple[RegionSettings, ...] = ()
    segment: tuple[SegmentSettings, ...] = Field(min_length=1)
    pick: tuple[PickSettings, ...] = ()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _regions_are_known(self) -> RunConfig:
        known = [region.name for region in self.regions]
        for pick in self.pick:
            if pick.region is not None and pick.region not in known:
                raise ValueError(
                    f"pick: region: expected one of {', '.join(known) or 'none, as none is given'}"
                    f", found {pick.region!r}; declare it under regions"
                )
        return self

    def relative_to(self, folder: Path) -> RunConfig:
        """Return the config with paths taken from the folder of its file."""
        regions = [
            r if r.path is None else r.model_copy(update={"path": folder / r.path})
            for r in self.regions
        ]
        update: dict[str, Any] = {
            "tomograms": folder / self.tomograms,
            "output": folder / self.output,
            "regions": tuple(regions),
            "segment": tuple(_model_beside(s, folder) for s in self.segment),
        }
        if self.equalize is not None:
            target = folder / self.equalize.target
            update["equalize"] = self.equalize.model_copy(update={"target": target})
        return self.model_copy(update=update)


def _model_beside(settings: SegmentSettings, folder: Path) -> SegmentSettings:
    """Take a model path from the config's folder, if there is such a file; else it is a name."""
    beside = folder / settings.model
    return settings.model_copy(update={"model": str(beside)}) if beside.is_file() else settings


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
        problems = "; ".join(_problem(problem, model) for problem in error.errors())
        raise ConfigError(f"{where}: {problems}") from None


def _problem(problem: Any, model: type[BaseModel]) -> str:
    """Say one problem of a config in words."""
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        fields = _model_at(model, problem["loc"][:-1]).model_fields
        known = ", ".join(field.alias or name for name, field in fields.items())
        return f"{where}: unknown key (known keys: {known})"
    if problem["type"] == "missing":
        return f"{where}: is required, found nothing"
    message = problem["msg"].removeprefix("Value error, ")
    found = "" if problem["type"] == "value_error" else f", found {problem['input']!r}"
    return f"{where}: {message}{found}".removeprefix(": ")


def _model_at(model: type[BaseModel], path: tuple[str | int, ...]) -> type[BaseModel]:
    """Return the settings model that a path of keys leads to."""
    nested: dict[str, type[BaseModel]] = {
        "equalize": EqualizeSettings,
        "regions": RegionSettings,
        "segment": SegmentSettings,
        "pick": PickSettings,
        "cluster": ClusterConfig,
    }
    names = [part for part in path if isinstance(part, str)]
    return nested[names[-1]] if names and names[-1] in nested else model


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
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(
            f"{path}: expected a config file, found: {error.strerror}; check the path"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: expected YAML, found something else: {reason}") from None
    if isinstance(values, dict) and {"dataset_table", "tomos_sets"} & values.keys():
        raise ConfigError(
            f"{path}: expected a config of deepict-dask, found one of DeePiCt, which is not read "
            "yet; write a new one: README, sections 'A first real run' and 'Coming from DeePiCt'"
        )
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys such as tomograms and output, found none")
    config: RunConfig = settings_from(RunConfig, values, str(path))
    return config.relative_to(path.parent.absolute())


def dump_run_config(config: RunConfig) -> str:
    """Return the resolved config as YAML, every default spelt out.

    Examples
    --------
    >>> config = RunConfig(tomograms="t.mrc", output="out", segment=({"model": "m.pth"},))
    >>> "voxel_spacing_angstrom: null" in dump_run_config(config)
    True
    """
    values = config.model_dump(mode="json", by_alias=True)
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
