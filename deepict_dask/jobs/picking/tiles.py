"""A tomogram and a DeepETPicker model to the picks of the published program.

The program searches each tile as its network returned it: tiles overlap, the scores of their pads
count as neighbours, and outside of the volume the network has seen zeros. A stored score map has
one score for each voxel, so the picks of a map differ near the borders of tiles. Here a tile is
predicted, searched and forgotten: no score is stored. `raw_picks.csv` has what was found, its
column ``label`` counts in the order of the tiles; the other lists have what the program's way of
dropping close picks leaves.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.errors import ConfigError
from ...engine import StagedOutput, check_budget, fingerprint, request_key
from ...engine.arrays import naming, read_windows, run_each, task_key
from ...engine.device_part import device_part
from ...io.picks import write_picks
from ...io.picks_table import make_picks
from ...particles.deepetpicker_compat import TileSearch, drop_as_deepetpicker
from ...particles.mean_pool_nms import MeanPoolSettings
from ..segmenting.chosen_model import BACKGROUND, choose_model, class_names_of, kind_of_model
from ..segmenting.tiles import check_tiles, tiles_op
from ..segmenting.windows import open_tomogram
from ..session import measure_statistics
from .method_sources import refuse_background
from .methods import finish_lists, frame_of
from .outputs import PICK_FILES, PickReport

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from ...config import PickSettings, SegmentSettings
    from ...core.geometry import Block, Vec
    from ...core.volume import VolumeReader
    from ...segmentation.deepetpicker_tiles import DeepETPickerOp
    from ..session import Session

__all__ = ["TilePicker", "check_tile_picks", "pick_tiles", "plan_tile_picks"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class TilePicker:
    """What a task does with one tile: predict and search."""

    op: DeepETPickerOp
    search: TileSearch
    channels: tuple[int, ...]
    """Of the network's classes, those that are searched."""

    def find(self, tile: Block, window: Array) -> Array:
        """Return the picks of a tile; ``window`` has the tomogram over ``tile.read``."""
        scores = self.op.cube(window, tile.read, self.search.corner(tile))
        return self.search.search_scores(tile, [scores[i] for i in self.channels])

    @property
    def bytes_needed(self) -> int:
        """Peak bytes of one tile."""
        edge = self.search.block
        return self.op.bytes_needed((edge, edge, edge)) + self.search.bytes_needed


def pick_tiles(
    session: Session,
    source: Path,
    target: Path,
    model: SegmentSettings,
    settings: PickSettings,
    *,
    tomogram_name: str | None = None,
) -> PickReport:
    """Pick from a tomogram as DeepETPicker's program does, its raw picks included.

    Parameters
    ----------
    session
        Workers and wishes.
    source
        Tomogram.
    target
        Folder to make: ``raw_picks.csv``, ``picks.star``, ``picks.csv``, ``motl.csv``,
        ``run.json``.
    model
        A DeepETPicker model.
    settings
        With method ``mp-nms`` and ``compat: deepetpicker``.
    tomogram_name
        Name in the STAR file; the folder's by default.

    Raises
    ------
    ConfigError
        The model is another one, or the settings ask for something else.
    ShapeMismatchError
        The tomogram is too small for a tile.
    VoxelValueError, BudgetError, OutputExistsError
        As `deepict_dask.jobs.picking.pick.pick_particles`.
    """
    check_tile_picks(model, settings)
    started, source = datetime.now(UTC), source.absolute()
    chosen = choose_model(model)
    request = {
        "job": "pick tiles", "input": fingerprint(source), "model": chosen.sha256,
        "names": class_names_of(model), "class": chosen.chosen,
        "settings": settings.model_dump(mode="json"), "spacing": session.voxel_spacing_angstrom,
    }  # fmt: skip
    key = request_key(request)
    with StagedOutput(target, key, overwrite=session.overwrite, own=PICK_FILES) as staged:
        scratch = staged.folder / "scratch"
        reader = open_tomogram(session, source, scratch, [chosen], spacing_required=False)
        planned = _picker(model, settings, reader.header.shape, session.device)
        picker = _measured(session, reader, planned)
        raw = _find(session, reader, picker)
        names = [class_names_of(model)[i] for i in picker.channels]
        name = tomogram_name or target.name
        table = _table(raw, names)
        write_picks(table, staged.folder / "raw_picks.csv", **frame_of(reader.header, name))
        kept = drop_as_deepetpicker(raw, picker.search.settings.min_distance)
        finish_lists(
            staged.folder, _table(kept, names), reader.header, name,
            inputs={"tomogram": str(source), "model": chosen.path},
            request={**request, "key": key}, started=started, n_raw_picks=len(raw),
        )  # fmt: skip
        shutil.rmtree(scratch, ignore_errors=True)
        staged.commit()
    return PickReport(target, len(kept))


def check_tile_picks(model: SegmentSettings, settings: PickSettings) -> None:
    """Refuse what the published program does not do, and classes that the model lacks.

    Raises
    ------
    ConfigError
        As `pick_tiles`.
    """
    check_tiles(model)
    kind = kind_of_model(model.model)
    if kind != "deepetpicker" or settings.compat != "deepetpicker":
        raise ConfigError(
            f"{model.model}: expected a DeepETPicker model, method mp-nms and compat deepetpicker "
            f"to pick from its tiles, found a {kind} model, {settings.method} and compat "
            f"{settings.compat or 'none'}; segment first, then pick from the score map"
        )
    if settings.label_value is not None or settings.class_names:
        raise ConfigError(
            "label_value, class_names: expected none where a network is searched, found "
            "one; choose a class with --class"
        )
    if settings.all_contacts or settings.distances:
        raise ConfigError(
            "region, contacts, distances: expected none where tiles of a network are searched, "
            "found some; segment first, then pick from the score map"
        )
    refuse_background(settings, model.model)
    channels, names = _channels(model, settings), class_names_of(model)
    if len(settings.diameters) > len(channels):
        raise ConfigError(
            f"diameters: expected one, or one for each of {len(channels)} classes, found "
            f"{len(settings.diameters)}; give fewer"
        )
    unknown = [name for name in settings.thresholds if name not in names]
    if unknown:
        raise ConfigError(
            f"thresholds: expected a class of {', '.join(names)}, found {unknown[0]!r}; correct it"
        )


def _channels(model: SegmentSettings, settings: PickSettings) -> tuple[int, ...]:
    """Return the network's channels that are searched: of one class, or of all particles."""
    names = class_names_of(model)
    wanted = settings.class_name or (model.classes[0] if model.classes else None)
    if wanted is None:
        return tuple(i for i, name in enumerate(names) if name != BACKGROUND)
    if wanted not in names:
        raise ConfigError(f"class: expected one of {', '.join(names)}, found {wanted!r}")
    return (names.index(wanted),)


def _picker(
    model: SegmentSettings, settings: PickSettings, shape: Vec, device: str = "cpu"
) -> TilePicker:
    """Return what tasks do, for a tomogram that is yet to be measured."""
    whole = model.model_copy(update={"classes": None})
    op: Any = tiles_op(whole, choose_model(whole), shape, device)
    channels, names = _channels(model, settings), class_names_of(model)
    limits = [settings.thresholds.get(names[i], settings.threshold) for i in channels]
    rules = MeanPoolSettings.of_diameters(settings.diameters, thresholds=limits)
    tiles = op.settings
    search = TileSearch(shape, rules, tiles.block_size, tiles.pad_size)
    return TilePicker(op, search, channels)


def plan_tile_picks(model: SegmentSettings, settings: PickSettings, shape: Vec) -> tuple[int, int]:
    """Return how many tiles a tomogram has, and the bytes of one."""
    picker = _picker(model, settings, shape)
    return picker.search.n_tiles, picker.bytes_needed


def _measured(session: Session, reader: VolumeReader, picker: TilePicker) -> TilePicker:
    """Measure the tomogram; refuse one that no network can be given, or a tile no worker can."""
    check_budget("mp-nms", picker.bytes_needed, session.workers.memory_bytes, torch=True)
    found = measure_statistics(session, reader, name="statistics")
    found.require_finite(reader.path)
    found.require_contrast(reader.path)
    op = picker.op.measured(found.mean, found.std)
    return TilePicker(op, picker.search, picker.channels)


def _find(session: Session, reader: VolumeReader, picker: TilePicker) -> Array:
    """Return the picks of all tiles, in their order."""
    workers = session.workers
    tiles = {tile.number: tile for tile in picker.search.tiles()}

    def submit(number: int) -> Any:
        return workers.client.submit(
            find_in_tile, picker, reader, tiles[number],
            pure=False, key=task_key("mp-nms", number), **workers.placed(picker.op),
        )  # fmt: skip

    found: dict[int, Array] = {}
    with session.progress.stage("mp-nms", len(tiles)) as advance:
        for number, rows in run_each(workers, submit, tiles, stage="mp-nms", where=reader.path):
            found[number] = rows
            advance(1)
    return np.concatenate([found[number] for number in tiles])


def find_in_tile(picker: TilePicker, reader: VolumeReader, tile: Block) -> Array:
    """Predict and search one tile: the body of a task."""
    (window,) = read_windows([reader], tile)
    with naming(reader.path), device_part(picker.op):
        return picker.find(tile, window)


def _table(rows: Array, names: list[str]) -> pd.DataFrame:
    """Return picks as a table."""
    return make_picks(
        np.stack([rows[name] for name in "zyx"], axis=1),
        rows["value"],
        label=np.arange(1, len(rows) + 1),
        class_name=[names[channel] for channel in rows["channel"].tolist()],
    )
