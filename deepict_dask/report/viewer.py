"""The viewer of a tomogram: slices along z with a slider, central slices along y and x, layers.

All pictures are in the page. What can be laid over the grey values: the segmentation and the picks
of each folder of picks, and the region masks. A layer that cannot be shown is named with the
reason, and the others are shown without it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import DeepictError
from ..io.volumes import open_first_class
from .elements import Html, element, script_data
from .histograms import picks_drawn
from .images import contrast_of, grey_uri, mask_uri, thumbnail_uri
from .views import plan_views, read_views

if TYPE_CHECKING:
    from pathlib import Path

    from ..core.volume import VolumeHeader, VolumeReader
    from .sources import TomogramSource
    from .views import ViewPlan

__all__ = ["COLOURS", "REGION_COLOURS", "Viewer", "make_viewer"]

Array = np.ndarray[Any, Any]

COLOURS = ("#e69f00", "#56b4e9", "#f0e442", "#d55e00", "#009e73", "#cc79a7")
"""Of folders of picks; told apart by most people who see few colours (Okabe and Ito, 2008)."""
REGION_COLOURS = ("#cc79a7", "#009e73", "#0072b2", "#d55e00")
MAX_DRAWN = 10_000
"""Picks of a folder that are drawn, the best ones."""
_MAX_MASKS = 12
_SOLID = "segmentation"


@dataclass
class Viewer:
    """The viewer as markup, and what was learnt while it was made."""

    markup: Html | None = None
    """None where there is no volume to show."""
    header: VolumeHeader | None = None
    shown: str = ""
    """Which volume is behind the layers."""
    thumbnail: str | None = None
    notes: list[str] = field(default_factory=list)
    """What is not shown, and why."""


def make_viewer(source: TomogramSource) -> Viewer:
    """Make the viewer of a tomogram from what is there."""
    viewer = Viewer()
    reader = _background(source, viewer)
    if reader is None:
        viewer.notes.append("no slices are shown: no volume could be read")
        return viewer
    plan = plan_views(reader.header.shape)
    try:
        views = read_views(reader, plan)
    except DeepictError as error:
        viewer.notes.append(f"no slices are shown: {error}")
        return viewer
    contrast = contrast_of(views.z)
    grey = {
        "z": [grey_uri(contrast.apply(one)) for one in views.z],
        "y": [grey_uri(contrast.apply(views.y))],
        "x": [grey_uri(contrast.apply(views.x))],
    }
    viewer.header = reader.header
    viewer.thumbnail = thumbnail_uri(contrast.apply(views.z[plan.middle]))
    del views  # room for those of the masks
    layers = [*_mask_layers(source, plan, viewer.notes), *_pick_layers(source, viewer.notes)]
    scene = _Scene(source.name, plan, grey, layers, reader.header.voxel_spacing_angstrom)
    viewer.markup = scene.markup()
    return viewer


def _background(source: TomogramSource, viewer: Viewer) -> VolumeReader | None:
    """Return the volume behind the layers: the tomogram, or what was made of it."""
    candidates = [
        ("tomogram", source.tomogram),
        ("equalized tomogram", source.equalized),
        *(("score map", path) for path in source.score_maps),
    ]
    if source.tomogram is None:
        viewer.notes.append(
            "the tomogram's file is not known: give it with `deepict-dask report --tomogram`"
        )
    for kind, path in candidates:
        if path is None:
            continue
        try:
            reader = open_first_class(
                path, source.voxel_spacing_angstrom if kind == "tomogram" else None
            )
        except (DeepictError, OSError) as error:
            viewer.notes.append(f"the {kind} is not shown: {error}")
            continue
        viewer.shown = f"{kind} {path}"
        return reader
    return None


@dataclass(frozen=True)
class _Mask:
    """A volume to be laid over the slices."""

    name: str
    path: Path
    colour: str
    kind: str
    """region or segmentation."""
    least: float | None = None
    """The lowest value inside; None where all but 0 is."""

    def images(self, plan: ViewPlan) -> dict[str, list[str | None]]:
        """Return the pictures by axis: of pixels at least half of which are inside."""
        reader = open_first_class(self.path)
        if reader.header.shape != plan.shape:
            raise DeepictError(
                f"{self.path}: expected {plan.shape} voxels, as the tomogram has, found "
                f"{reader.header.shape}"
            )
        views = read_views(reader, plan, self._is_inside)
        shape = _outline if self.kind == "region" else np.asarray
        return {
            axis: [mask_uri(shape(one >= 0.5), self.colour) for one in images]
            for axis, images in (("z", views.z), ("y", views.y[None]), ("x", views.x[None]))
        }

    def _is_inside(self, voxels: Array) -> Array:
        inside: Array = voxels != 0 if self.least is None else voxels >= self.least
        return inside


def _masks(source: TomogramSource) -> list[_Mask]:
    """Return the region masks and segmentations of a tomogram."""
    regions = [
        _Mask(f"region {name}", path, REGION_COLOURS[i % len(REGION_COLOURS)], "region")
        for i, (name, path) in enumerate(source.regions.items())
    ]
    made = [
        _Mask(f"{one.name}: segmentation", one.segmentation, COLOURS[i % len(COLOURS)], _SOLID)
        for i, one in enumerate(source.picks)
        if one.segmentation is not None
    ]
    others = [
        _Mask(f"{name} from 0.5", path, COLOURS[i % len(COLOURS)], _SOLID, 0.5)
        for i, (name, path) in enumerate(source.volumes.items())
    ]
    return [*regions, *made, *others]


def _mask_layers(source: TomogramSource, plan: ViewPlan, notes: list[str]) -> list[dict[str, Any]]:
    """Return the layers of region masks and segmentations."""
    masks = _masks(source)
    if len(masks) > _MAX_MASKS:
        left_out = ", ".join(mask.name for mask in masks[_MAX_MASKS:])
        notes.append(f"only {_MAX_MASKS} masks are overlaid; left out: {left_out}")
    layers = []
    for mask in masks[:_MAX_MASKS]:
        try:
            images = mask.images(plan)
        except (DeepictError, OSError) as error:
            notes.append(f"{mask.name} is not overlaid: {error}")
            continue
        layers.append({"name": mask.name, "kind": mask.kind, "colour": mask.colour, **images})
    return layers


def _outline(mask: Array) -> Array:
    """Return the pixels of a mask beside others; where the picture ends there is no line."""
    padded = np.pad(mask, 1, mode="edge")
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    edge: Array = mask & ~inside
    return edge


def _pick_layers(source: TomogramSource, notes: list[str]) -> list[dict[str, Any]]:
    """Return the layers of picks, as points."""
    layers = []
    for i, one in enumerate(source.picks):
        try:
            points = picks_drawn(one.folder, MAX_DRAWN)
        except FileNotFoundError as error:
            notes.append(f"{one.name}: picks are not drawn: {error.filename} is gone")
            continue
        except (OSError, ValueError, KeyError) as error:
            notes.append(f"{one.name}: picks are not drawn: {error}")
            continue
        if one.n_picks > len(points):
            notes.append(f"{one.name}: the best {len(points)} of {one.n_picks} picks are drawn")
        colour = COLOURS[i % len(COLOURS)]
        layers.append(
            {"name": f"{one.name}: picks", "kind": "picks", "colour": colour, "points": points}
        )
    return layers


@dataclass(frozen=True)
class _Scene:
    """What the figures of a viewer show."""

    name: str
    plan: ViewPlan
    grey: dict[str, list[str]]
    """Pictures by axis."""
    layers: list[dict[str, Any]]
    voxel_spacing_angstrom: float | None

    def markup(self) -> Html:
        """Return the viewer; its script moves the slider and hides layers."""
        plan = self.plan
        data = {
            "factor": plan.factor, "shape": plan.shape, "slabs": plan.slabs,
            "central": plan.central, "grey": self.grey, "layers": self.layers,
        }  # fmt: skip
        sides = element("div", self.figure("y"), self.figure("x"), class_="sides")
        return element(
            "section",
            _layer_controls(self.layers),
            element("div", self.figure("z"), sides, class_="views"),
            script_data(data, class_="viewer-data"),
            class_="viewer",
            aria_label=f"slices of {self.name}",
        )

    def figure(self, axis: str) -> Html:
        """Return one direction: the picture, the layers over it, what it shows."""
        plan, number = self.plan, "zyx".index(axis)
        rows, columns = (n for i, n in enumerate(plan.pixels) if i != number)
        uri = self.grey[axis][plan.middle if axis == "z" else 0]
        overlays = [
            element("img", alt="", class_=f"layer {layer['kind']}", data_layer=i, hidden=True)
            for i, layer in enumerate(self.layers)
            if layer["kind"] != "picks"
        ]
        size = f"0 0 {columns * plan.factor} {rows * plan.factor}"
        marks = element("svg", class_="marks", viewbox=size, aria_hidden="true", focusable="false")
        alt = f"{self.name}: slice at {self._planes(axis)}"
        return element(
            "figure",
            element(
                "div", element("img", src=uri, alt=alt, class_="grey", width=columns, height=rows),
                *overlays, marks, class_="stack", style=f"aspect-ratio:{columns}/{rows}",
            ),
            self._slider() if axis == "z" else None,
            element("figcaption", self._caption(axis)),
            class_=f"view view-{axis}",
            data_view=axis,
        )  # fmt: skip

    def _planes(self, axis: str) -> str:
        """Say which planes a picture shows at first."""
        plan, number = self.plan, "zyx".index(axis)
        first, behind = plan.slabs[plan.middle] if axis == "z" else plan.central[number]
        which = f"{first}" if behind == first + 1 else f"{first} to {behind - 1}"
        return f"{axis} = {which} of 0 to {plan.shape[number] - 1}"

    def _caption(self, axis: str) -> str:
        across, down = {"z": ("x", "y"), "y": ("x", "z"), "x": ("y", "z")}[axis]
        caption = f"{axis} slice: {across} to the right, {down} down"
        if self.voxel_spacing_angstrom is None:
            return caption
        size = self.plan.shape["zyx".index(across)] * self.voxel_spacing_angstrom / 10
        return f"{caption}; {size:.0f} nm wide"

    def _slider(self) -> Html:
        last, start = len(self.plan.slabs) - 1, self.plan.middle
        return element(
            "div",
            element("label", "z slice ", for_="z-slider"),
            element(
                "input", type="range", id="z-slider", min=0, max=last, value=start,
                class_="z-slider",
            ),
            element("output", self._planes("z"), for_="z-slider", class_="z-place"),
            class_="slider",
        )  # fmt: skip


def _layer_controls(layers: list[dict[str, Any]]) -> Html | None:
    """Return a box to tick for each layer, and the opacity of masks."""
    if not layers:
        return None
    boxes = [
        element(
            "label",
            element("input", type="checkbox", checked=True, data_layer=i),
            element("span", class_=f"swatch {layer['kind']}", style=f"--colour:{layer['colour']}"),
            layer["name"],
        )
        for i, layer in enumerate(layers)
    ]
    opacity = element(
        "label", "opacity of segmentations ",
        element("input", type="range", min=0, max=100, value=35, class_="opacity"),
        class_="opacity-label",
    )  # fmt: skip
    return element("fieldset", element("legend", "Layers"), *boxes, opacity, class_="layers")
