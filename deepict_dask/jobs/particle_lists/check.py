"""Can a pick section be meant? What a run asks before any work, of sections and their models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...core.errors import ConfigError
from ..picking.tiles import check_tile_picks
from ..segmenting.chosen_model import class_names_of

if TYPE_CHECKING:
    from ...config import PickSettings, SegmentSettings

__all__ = ["check_pick_of", "is_from_tiles"]


def is_from_tiles(model: SegmentSettings, pick: PickSettings) -> bool:
    """Say whether picks are searched in the tiles of a network, as DeepETPicker's program does.

    Examples
    --------
    >>> from deepict_dask.config import PickSettings, SegmentSettings
    >>> pick = PickSettings(method="mp-nms", diameters=(9,), compat="deepetpicker")
    >>> is_from_tiles(SegmentSettings(model="a.ckpt", compat="deepetpicker"), pick)
    True
    >>> is_from_tiles(SegmentSettings(model="a.ckpt"), pick)
    False
    """
    return pick.compat == model.compat == "deepetpicker"


def check_pick_of(model: SegmentSettings, pick: PickSettings) -> None:
    """Refuse settings that do not fit the model whose scores are picked from.

    Raises
    ------
    ConfigError
        A class is unknown, or something is asked of labels that only scores have.
    """
    if is_from_tiles(model, pick):
        check_tile_picks(model, pick)
        return
    if pick.class_names:
        raise ConfigError(
            "pick: class_names: expected none in a run, where the model names its classes, found "
            f"{', '.join(pick.class_names)}; give them under segment"
        )
    known = model.classes or class_names_of(model)
    one = pick.class_name in known and not pick.argmax
    picked = (pick.class_name or "",) if one else known
    for what in ("thresholds", "min_sizes"):
        unknown = [name for name in getattr(pick, what) if name not in picked]
        if unknown:
            raise ConfigError(
                f"pick: {what}: expected a class of {', '.join(picked)}, found {unknown[0]!r}"
            )
    if model.argmax:
        _check_of_labels(model, pick)
    elif len(known) < 2 and (pick.argmax or pick.thresholds):
        raise ConfigError(
            f"pick: argmax, thresholds: expected several classes, found {known[0]} alone; give "
            "threshold"
        )


def _check_of_labels(model: SegmentSettings, pick: PickSettings) -> None:
    """Refuse what a label volume cannot be asked for."""
    if pick.argmax or pick.thresholds or pick.threshold != type(pick)().threshold:
        raise ConfigError(
            f"pick: threshold, thresholds, argmax: expected none of them with argmax of "
            f"{model.model}, whose labels are no scores; leave one out"
        )
