"""What a run makes for each tomogram, by name, and whether its config can be meant.

A tomogram's folder holds ``equalized.zarr``, ``scores_<model>.zarr`` for every model, the mask
``region_<name>.zarr`` for every region that a model makes, and ``picks_<name>`` for every pick
section.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .config import SegmentSettings
from .core.errors import ConfigError, OutputExistsError
from .jobs.chosen_model import chosen_class
from .models.checkpoint import model_info
from .models.registry import resolve_model

if TYPE_CHECKING:
    from .config import PickSettings, RegionSettings, RunConfig
    from .io.dataset import TomogramEntry

__all__ = [
    "EQUALIZED",
    "check_config",
    "model_of_region",
    "models_of",
    "pick_folder_of",
    "region_mask_of",
    "score_map_of",
]

EQUALIZED = "equalized.zarr"


def score_map_of(settings: SegmentSettings) -> str:
    """Return the name of a model's score map in a tomogram's folder.

    Examples
    --------
    >>> score_map_of(SegmentSettings(model="models/ribosome_D2.pth"))
    'scores_ribosome_D2.zarr'
    """
    return f"scores_{Path(settings.model).stem}.zarr"


def region_mask_of(region: RegionSettings) -> str:
    """Return the name of the mask that a model makes.

    Examples
    --------
    >>> from deepict_dask.config import RegionSettings
    >>> region_mask_of(RegionSettings(name="cytosol", model="cytosol.h5"))
    'region_cytosol.zarr'
    """
    return f"region_{region.name}.zarr"


def pick_folder_of(settings: PickSettings, number: int) -> str:
    """Return the name of a pick section's folder.

    Examples
    --------
    >>> from deepict_dask.config import PickSettings
    >>> pick_folder_of(PickSettings(class_name="ribosome"), 0)
    'picks_ribosome'
    """
    return f"picks_{settings.name or settings.class_name or number}"


def model_of_region(region: RegionSettings) -> SegmentSettings:
    """Return the model behind a region, as a segment section has it.

    Examples
    --------
    >>> from deepict_dask.config import RegionSettings
    >>> model_of_region(RegionSettings(name="cytosol", model="cytosol.h5")).model
    'cytosol.h5'
    """
    assert region.model is not None
    return SegmentSettings(
        model=region.model,
        compat=region.compat,
        tiling=region.tiling,
        precision=region.precision,
    )


def models_of(config: RunConfig) -> list[SegmentSettings]:
    """Return every model of a config once: of the segment sections, then of the regions.

    Examples
    --------
    >>> from deepict_dask.config import RunConfig
    >>> cytosol = {"name": "cytosol", "model": "compartments.h5"}
    >>> found = models_of(RunConfig(tomograms="t.mrc", output="out", regions=(cytosol,)))
    >>> [settings.model for settings in found]
    ['compartments.h5']
    """
    of_regions = [model_of_region(r) for r in config.regions if r.model is not None]
    return [*config.segment, *(s for s in dict.fromkeys(of_regions) if s not in config.segment)]


def check_config(config: RunConfig, entries: list[TomogramEntry]) -> None:
    """Refuse what cannot work before any work is done.

    Raises
    ------
    ConfigError
        The config contradicts itself, its models or its files.
    OutputExistsError
        The output folder holds something else.
    """
    names = [score_map_of(settings) for settings in models_of(config)]
    folders = [pick_folder_of(pick, i) for i, pick in enumerate(config.pick)]
    _refuse_twice("segment: models", names)
    _refuse_twice("pick: names (or classes, where there is no name)", folders)
    _check_classes(config)
    for region in config.regions:
        _check_region(region)
    for entry in entries:
        folder = config.output / entry.name
        if folder.is_dir() and any(folder.iterdir()) and not _is_ours(folder):
            raise OutputExistsError(
                f"{folder}: expected an empty folder or results of an earlier run, "
                "found other files; give another output"
            )


def _refuse_twice(what: str, names: list[str]) -> None:
    if len(set(names)) < len(names):
        raise ConfigError(f"{what}: expected different names, found one twice in {names}")


def _check_region(region: RegionSettings) -> None:
    """Refuse a region whose file is absent or whose model lacks its class."""
    if region.path is not None and not region.path.exists():
        raise ConfigError(f"regions: {region.name}: expected a file, found none: {region.path}")
    if region.model is None:
        return
    names = model_info(resolve_model(region.model)).class_names
    if region.class_name is None and len(names) > 1:
        raise ConfigError(
            f"regions: {region.name}: class: expected one of {', '.join(names)}, found none"
        )
    if region.class_name is not None and region.class_name not in names:
        raise ConfigError(
            f"regions: {region.name}: class: expected one of {', '.join(names)}, "
            f"found {region.class_name}"
        )


def _check_classes(config: RunConfig) -> None:
    """Refuse pick sections whose class no model has."""
    known: list[str] = []
    for segment in config.segment:
        names = model_info(resolve_model(segment.model)).class_names
        chosen_class(names, segment.classes, segment.model)
        known += segment.classes or names
    for pick in config.pick:
        if not config.segment:
            raise ConfigError("pick: expected a model under segment to pick from, found none")
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
