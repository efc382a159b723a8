"""Labels beside an image in OME-Zarr 0.5, with a colour and a name for each value.

``IMAGE/labels`` lists the label images, each an image of its own with ``image-label``: colours as
red, green, blue and opacity from 0 to 255, and the image it belongs to. Source: the OME-NGFF
specification 0.5, "labels".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core.errors import VolumeFormatError
from .ome_metadata import OURS, attributes_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["finish_image", "finish_labels", "label_colours", "list_labels", "read_note"]

Json = dict[str, Any]
_OPAQUE = 255
_LABELS = "labels"


def list_labels(image: Path, names: Sequence[str]) -> None:
    """Say which label images there are in the folder ``labels`` of an image."""
    import zarr

    group = zarr.open_group(image / _LABELS, mode="a", zarr_format=3)
    group.attrs.put({"ome": {"version": "0.5", "labels": list(names)}})


def finish_labels(store: Path, name: str, names: Sequence[str], colours: Sequence[str]) -> None:
    """Give a label image its name, and names and colours to its values 1, 2 and so on.

    Parameters
    ----------
    store
        ``IMAGE/labels/NAME``, with its levels.
    name
        What viewers call it.
    names, colours
        Of the values; ``#rrggbb``. None for objects, which viewers colour by themselves.
    """
    values = range(1, len(names) + 1)
    label: Json = {"source": {"image": "../../"}}
    if names:
        label["colors"] = [
            {"label-value": value, "rgba": [*_rgb(colour), _OPAQUE]}
            for value, colour in zip(values, colours, strict=True)
        ]
        label["properties"] = [
            {"label-value": value, "class": one} for value, one in zip(values, names, strict=True)
        ]
    _update(store, name, {"image-label": label}, {})


def finish_image(store: Path, name: str, window: tuple[float, float], note: Json) -> None:
    """Give an image its name, the values shown as black and white, and a note of ours."""
    black, white = window
    shown = {"min": black, "max": white, "start": black, "end": white}
    channel = {"label": name, "color": "FFFFFF", "active": True, "window": shown}
    _update(store, name, {"omero": {"channels": [channel]}}, note)


def read_note(store: Path) -> Json:
    """Return our note of an image, nothing where there is no image of ours.

    Examples
    --------
    >>> from pathlib import Path
    >>> read_note(Path("no/such.zarr"))
    {}
    """
    try:
        return dict(attributes_of(store).get(OURS, {}))
    except (VolumeFormatError, TypeError, ValueError):
        return {}


def label_colours(store: Path) -> dict[int, tuple[str, tuple[int, int, int]]]:
    """Return name and colour (red, green, blue) of the values of a label image.

    Examples
    --------
    >>> from pathlib import Path
    >>> label_colours(Path("no/such.zarr"))
    {}
    """
    label = attributes_of(store).get("ome", {}).get("image-label", {})
    names = {one["label-value"]: one["class"] for one in label.get("properties", [])}
    return {
        one["label-value"]: (names.get(one["label-value"], ""), tuple(one["rgba"][:3]))
        for one in label.get("colors", [])
    }


def _rgb(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def _update(store: Path, name: str, ome: Json, ours: Json) -> None:
    import zarr

    group = zarr.open_group(store, mode="r+")
    attributes = dict(group.attrs)
    known: Any = attributes["ome"]
    images = [{**known["multiscales"][0], "name": name}]
    attributes["ome"] = {**known, "multiscales": images, **ome}
    old: Any = attributes.get(OURS, {})
    attributes[OURS] = {**old, **ours}
    group.attrs.put(attributes)
