"""What a run makes for each tomogram, by name, and whether its config can be meant.

A tomogram's folder holds ``equalized.zarr``, ``scores_<model>.zarr`` for every model whose scores
are stored, the mask ``region_<name>.zarr`` for every region that a model makes, and
``picks_<name>`` for every pick section.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .config import SegmentSettings
from .core.errors import ConfigError, OutputExistsError, WorkFailedError
from .engine.staging import remove
from .io.dataset import list_tomograms
from .jobs.particle_lists.check import check_pick_of, is_from_tiles
from .jobs.picking.method_sources import refuse_background
from .jobs.runs.stage_record import StageRecord
from .jobs.segmenting.chosen_model import (
    BACKGROUND,
    check_3d_options,
    check_argmax,
    chosen_class,
    class_names_of,
    is_2d,
    is_unet3d,
)
from .jobs.segmenting.model_fit import check_equalization
from .models.checkpoint import model_info
from .models.registry import resolve_model

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .config import PickSettings, RegionSettings, RunConfig
    from .io.dataset import TomogramEntry

__all__ = [
    "EQUALIZED",
    "are_many",
    "check_config",
    "expected_outputs",
    "is_mask_at_once",
    "model_of_pick",
    "model_of_region",
    "models_of",
    "pick_folder_of",
    "pick_folders",
    "region_mask_of",
    "remove_results",
    "score_map_of",
    "stored_models",
    "unstored_models",
    "warn_of_models",
]

EQUALIZED = "equalized.zarr"
_RECORD = "stages.json"
_UNFINISHED = (".partial", ".lock")
"""Endings of what stands beside an output while it is made."""
_MANY = 8
"""As many tomograms as are in flight at most."""
log = logging.getLogger("deepict_dask")


def score_map_of(settings: SegmentSettings) -> str:
    """Return the name of a model's score map in a tomogram's folder.

    Examples
    --------
    >>> score_map_of(SegmentSettings(model="models/ribosome_D2.pth"))
    'scores_ribosome_D2.zarr'
    """
    return f"{'labels' if settings.argmax else 'scores'}_{Path(settings.model).stem}.zarr"


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
        average_flips=region.average_flips,
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


def model_of_pick(config: RunConfig, pick: PickSettings) -> SegmentSettings:
    """Return the model whose scores a pick section is made of: the first that has its class.

    Raises
    ------
    ConfigError
        No model has it.
    """
    for settings in config.segment:
        names = settings.classes or class_names_of(settings)
        if len(config.segment) == 1 or pick.class_name in names:
            return settings
    raise ConfigError(f"pick: no model of the config has the class {pick.class_name!r}")


def unstored_models(config: RunConfig) -> list[SegmentSettings]:
    """Return the models whose scores are labelled as they are predicted, and not stored.

    With ``keep_scores: false`` these are DeePiCt's 3D models that nothing but pick sections needs,
    and DeepETPicker's that are picked from tile by tile. Published results (``compat``), other
    methods than components, other models and models of regions go through a stored map.
    """
    if config.keep_scores:
        return []
    stored = [model_of_region(r) for r in config.regions if r.model is not None]
    stored += [model_of_pick(config, pick) for pick in config.pick if _needs_map(config, pick)]
    return [
        s for s in config.segment
        if s not in stored
        and (is_unet3d(s.model) if s.compat is None else s.compat == "deepetpicker")
    ]  # fmt: skip


def _needs_map(config: RunConfig, pick: PickSettings) -> bool:
    """Say whether a pick section is made of a score map only."""
    model = model_of_pick(config, pick)
    if is_from_tiles(model, pick):
        return False
    return pick.compat is not None or pick.method != "components" or model.compat is not None


def is_mask_at_once(config: RunConfig, region: RegionSettings) -> bool:
    """Say whether a region's mask is made without storing the scores of its 2D model.

    So it is with ``keep_scores: false`` where nothing else needs these scores.
    """
    if config.keep_scores or region.model is None or region.compat is not None:
        return False
    others = [r for r in config.regions if r is not region and r.model is not None]
    users = [*config.segment, *(model_of_region(r) for r in others)]
    return model_of_region(region) not in users and is_2d(region.model)


def stored_models(config: RunConfig) -> list[SegmentSettings]:
    """Return the models of a config whose score maps are made."""
    at_once = [model_of_region(r) for r in config.regions if is_mask_at_once(config, r)]
    unstored = unstored_models(config)
    return [s for s in models_of(config) if s not in unstored and s not in at_once]


def expected_outputs(config: RunConfig) -> list[str]:
    """Return the names of what a run makes for each tomogram, in the order it is made.

    Examples
    --------
    >>> from deepict_dask.config import RunConfig
    >>> compartments = {"name": "cytosol", "model": "compartments.h5"}
    >>> expected_outputs(RunConfig(tomograms="t.mrc", output="out", regions=(compartments,)))
    ['scores_compartments.zarr', 'region_cytosol.zarr']
    """
    first = [] if config.equalize is None else [EQUALIZED]
    maps = [score_map_of(settings) for settings in stored_models(config)]
    masks = [region_mask_of(region) for region in config.regions if region.model is not None]
    return [*first, *maps, *masks, *pick_folders(config)]


def pick_folders(config: RunConfig) -> list[str]:
    """Return the names of the folders of picks."""
    return [pick_folder_of(pick, i) for i, pick in enumerate(config.pick)]


def are_many(n_tomograms: int) -> bool:
    """Say whether a run has so many tomograms that small ones need not be cut to feed the workers.

    It follows the dataset, not the workers: results are the same for any number of these.

    Examples
    --------
    >>> are_many(2), are_many(24)
    (False, True)
    """
    return n_tomograms >= _MANY


def remove_results(config: RunConfig) -> None:
    """Remove what earlier runs made for a config's tomograms; other files there are left.

    Raises
    ------
    OutputExistsError
        A folder holds nothing of a run but other files.
    WorkFailedError
        A file cannot be removed.
    """
    entries = list_tomograms(config.tomograms)
    check_config(config, entries)
    for entry in entries:
        folder = config.output / entry.name
        with _removing(folder):
            if folder.is_dir():
                _remove_outputs(folder, expected_outputs(config))


def _remove_outputs(folder: Path, expected: list[str]) -> None:
    """Remove outputs by name, unfinished ones too, then their record; a link is kept."""
    names = [*expected, *StageRecord(folder).forget()]
    endings = ("", *_UNFINISHED, ".replaced")
    ours = {name + ending for name in names for ending in endings}
    for path in [path for path in folder.iterdir() if path.name in ours]:
        with _removing(path):
            remove(path)
    (folder / _RECORD).unlink(missing_ok=True)
    if not folder.is_symlink() and not any(folder.iterdir()):
        folder.rmdir()


@contextmanager
def _removing(path: Path) -> Iterator[None]:
    """Name what cannot be removed."""
    try:
        yield
    except OSError as error:
        raise WorkFailedError(
            f"{path}: expected results that can be removed, found: {error.strerror or error} "
            f"({error.filename or path}); remove them yourself, or give another output"
        ) from error


def warn_of_models(config: RunConfig) -> None:
    """Say of each model once what a run does not do that it expects."""
    if config.equalize is None:
        for model in dict.fromkeys(settings.model for settings in models_of(config)):
            check_equalization(model)


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
    _refuse_twice("segment: models", names)
    _refuse_twice("pick: names (or classes, where there is no name)", pick_folders(config))
    _check_classes(config)
    _refuse_idle(config)
    for settings in models_of(config):
        check_3d_options(settings)
    for region in config.regions:
        _check_region(region)
        _check_column(region, entries)
    expected = expected_outputs(config)
    for entry in entries:
        folder = config.output / entry.name
        if folder.is_dir() and any(folder.iterdir()) and not _is_ours(folder, expected):
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


def _check_column(region: RegionSettings, entries: list[TomogramEntry]) -> None:
    """Refuse a column that the source does not have: every tomogram would go without a mask."""
    known = sorted(entries[0].columns) if entries else []
    if region.column is None or region.column in known:
        return
    if [entry.kind for entry in entries] == ["volume"]:  # the config of a table, tried on one file
        log.warning("%s: has no %s: it runs without this mask", entries[0].path, region.column)
    else:
        raise ConfigError(
            f"regions: {region.name}: column: expected one of the tomograms' "
            f"{', '.join(known) or '(it has none)'}, found {region.column}; "
            "`deepict-dask dataset list` shows them"
        )


def _check_classes(config: RunConfig) -> None:
    """Refuse pick sections whose class no model has, or more than one."""
    known: list[str] = []
    for segment in config.segment:
        names = class_names_of(segment)
        chosen_class(names, segment.classes, segment.model)
        check_argmax(segment)
        known += segment.classes or names
    particles = [name for name in known if name != BACKGROUND]
    for pick in config.pick:
        if not config.segment:
            raise ConfigError("pick: expected a model under segment to pick from, found none")
        refuse_background(pick, "pick")
        together = pick.method != "components" and len(config.segment) == 1
        wanted = f"pick: class: expected one of the models' classes {', '.join(particles)}"
        if pick.class_name is not None and pick.class_name not in known:
            raise ConfigError(f"{wanted}, found {pick.class_name}")
        if pick.class_name is None and len(known) > 1 and not together:
            raise ConfigError(f"{wanted}, found none")
        _refuse_two_models(config, pick)
        check_pick_of(model_of_pick(config, pick), pick)


def _refuse_two_models(config: RunConfig, pick: PickSettings) -> None:
    """Refuse a class that more than one model has: nothing says whose scores are meant."""
    known = {str(s.model): s.classes or class_names_of(s) for s in config.segment}
    having = [model for model, names in known.items() if pick.class_name in names]
    if len(having) > 1:
        raise ConfigError(
            f"pick: class: expected a class of one model, found {pick.class_name} of "
            f"{' and '.join(having)}; give the classes names of their own "
            "(class_names under segment)"
        )


def _refuse_idle(config: RunConfig) -> None:
    """Refuse models that would leave nothing."""
    picked = [model_of_pick(config, pick) for pick in config.pick]
    for settings in unstored_models(config):
        if settings not in picked:
            raise ConfigError(
                f"segment: {settings.model}: expected a pick section of its classes with "
                "keep_scores: false, found none; pick from it, leave it out, or keep the scores"
            )


def _is_ours(folder: Path, expected: list[str]) -> bool:
    """Say whether a folder holds results (or unfinished results) of a run."""
    known = {_RECORD, *(name + ending for name in expected for ending in _UNFINISHED)}
    return any(path.name in known for path in folder.iterdir())
