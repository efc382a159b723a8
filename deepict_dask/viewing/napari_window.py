"""Show an exported scene in napari: its levels lazily, labels in their colours, picks as rings."""

from __future__ import annotations

import importlib.util
import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engine.lazy import lazy_reader
from ..io.ome_labels import label_colours
from ..io.ome_metadata import attributes_of
from ..io.ome_zarr import open_ome_zarr
from ..report.histograms import picks_drawn

if TYPE_CHECKING:
    from pathlib import Path

    from .export import ExportedScene

__all__ = ["add_layers", "has_napari", "show_in_napari"]

_MAX_PICKS = 100_000
_RADIUS = 5.0
"""Voxels, where the size of a pick is not known."""
_CLEAR = (0.0, 0.0, 0.0, 0.0)


def has_napari() -> bool:
    """Say whether napari can be imported."""
    return importlib.util.find_spec("napari") is not None


def show_in_napari(exported: ExportedScene) -> None:
    """Open a window of napari and wait until it is closed."""
    import napari  # type: ignore[import-not-found,unused-ignore]

    viewer = napari.Viewer(title=exported.scene.name)
    add_layers(viewer, exported, napari.utils.DirectLabelColormap)
    napari.run()


def add_layers(viewer: Any, exported: ExportedScene, colormap: Any) -> None:
    """Add the layers of a scene to a viewer.

    Parameters
    ----------
    viewer
        napari's ``Viewer`` or ``ViewerModel``.
    exported
        What `export_scene` has made.
    colormap
        napari's ``DirectLabelColormap``.
    """
    store = exported.store
    image = _layer(store, exported.scene.name)
    viewer.add_image(**image, contrast_limits=_window(store))
    for layer in exported.scene.labels:
        path = store / "labels" / layer.name
        if not path.is_dir():
            continue
        colours: dict[int | None, Any] = {None: _CLEAR, 0: _CLEAR}
        colours |= {value: _rgba(rgb) for value, (_, rgb) in label_colours(path).items()}
        chosen = {"colormap": colormap(color_dict=colours)} if len(colours) > 2 else {}
        viewer.add_labels(**_layer(path, layer.name), opacity=0.5, **chosen)
    step, origin = np.array(image["scale"]), np.array(image["translate"])
    for points in exported.scene.points:
        found = np.array(picks_drawn(points.folder, _MAX_PICKS), float).reshape(-1, 4)
        if not len(found):
            continue
        radius = np.where(found[:, 3] > 0, found[:, 3], _RADIUS)
        layer = viewer.add_points(
            found[:, :3] * step + origin,  # in Å, so that a file saved of it is too
            name=f"{points.name}: picks", size=2 * radius * step[0], symbol="ring", opacity=0.9,
            face_color=points.colour,
        )  # fmt: skip
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            layer.out_of_slice_display = True  # a ball is seen in all planes that cut it


def _layer(store: Path, name: str) -> dict[str, Any]:
    """Return all levels of an image, lazily, and where they lie in Å."""
    (image,) = attributes_of(store)["ome"]["multiscales"]
    levels = []
    for one in image["datasets"]:
        _, reader = open_ome_zarr(store / one["path"])
        levels.append(lazy_reader(reader, reader.chunk_shape))
    header = open_ome_zarr(store)[1].header
    step = header.voxel_spacing_angstrom or 1.0
    several = len(levels) > 1
    return {
        "data": levels if several else levels[0], "multiscale": several, "name": name,
        "scale": (step,) * 3, "translate": header.origin_angstrom,
    }  # fmt: skip


def _window(store: Path) -> tuple[float, float]:
    (channel,) = attributes_of(store)["ome"]["omero"]["channels"]
    black, white = channel["window"]["start"], channel["window"]["end"]
    return (black, white) if math.isfinite(white - black) and white > black else (0.0, 1.0)


def _rgba(rgb: tuple[int, int, int]) -> tuple[float, ...]:
    return (*(value / 255 for value in rgb), 1.0)
