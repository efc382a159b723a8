"""What of a tomogram's results is shown: one image, labels with their colours, lists of picks.

The image is the tomogram, or what was made of it where its file is gone. Each region mask, each
segmentation, each label map and each label volume of a model is a layer of labels, since they may
overlap. Colours are those of the report.
"""

from __future__ import annotations

import colorsys
import tempfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ..core.errors import ConfigError, DeepictError
from ..io.unpack import unpacked_for_now
from ..io.volumes import open_first_class
from ..report.sources import read_source
from ..report.viewer import COLOURS, REGION_COLOURS

if TYPE_CHECKING:
    from pathlib import Path

    from ..report.sources import PicksSource, TomogramSource

__all__ = ["LabelLayer", "PointsLayer", "Scene", "distinct_colours", "scenes_of"]

Kind = Literal["mask", "classes", "objects"]
_GOLDEN = 0.618
_MANY_CLASSES = 32
"""Of a model whose classes nothing names."""
_HALF = 0.5
"""Published score maps are cut here, as in the report."""


@dataclass(frozen=True)
class LabelLayer:
    """A volume to be laid over the image."""

    name: str
    path: Path
    kind: Kind
    """A ``mask`` (what is not 0 is 1), ``classes`` by number, or ``objects`` by number."""
    names: tuple[str, ...] = ()
    """Of the values 1, 2 and so on; nothing for objects."""
    colours: tuple[str, ...] = ()
    """Of the same values, ``#rrggbb``."""
    least: float | None = None
    """The lowest value inside a mask; None where all but 0 is."""


@dataclass(frozen=True)
class PointsLayer:
    """A list of picks."""

    name: str
    folder: Path
    """Holds ``picks.csv``: z, y, x in voxels."""
    colour: str


@dataclass(frozen=True)
class Scene:
    """One tomogram with its layers."""

    name: str
    image: Path
    labels: tuple[LabelLayer, ...] = ()
    points: tuple[PointsLayer, ...] = ()
    notes: list[str] = field(default_factory=list)
    """What is not shown, and why."""
    voxel_spacing_angstrom: float | None = None
    """Of the image, Å, where the run was told another than its header's."""


def scenes_of(
    folder: Path, *, only: str | None = None, tomogram: Path | None = None
) -> list[Scene]:
    """Return what there is to show of a run or a folder of picks, one scene for each tomogram.

    Parameters
    ----------
    folder
        What `deepict-dask run` or `deepict-dask pick` has made.
    only
        Name of one tomogram.
    tomogram
        The tomogram behind a folder of picks, where it is not known.

    Raises
    ------
    ConfigError
        The folder is neither, or nothing of it can be shown.
    """
    run = read_source(folder, tomogram=tomogram)
    names = [one.name for one in run.tomograms]
    if only is not None and only not in names:
        raise ConfigError(f"--only: expected one of {', '.join(names)}, found {only}")
    chosen = [one for one in run.tomograms if only in (None, one.name)]
    found = [scene for scene in map(_scene, chosen) if scene is not None]
    if not found:
        raise ConfigError(
            f"{folder}: expected a tomogram, or a volume made of one, that can be read, found none;"
            " give the tomogram with --tomogram"
        )
    return found


def _scene(source: TomogramSource) -> Scene | None:
    notes: list[str] = []
    image = _image(source, notes)
    if image is None:
        return None
    points = [
        PointsLayer(one.name, one.folder, COLOURS[i % len(COLOURS)])
        for i, one in enumerate(source.picks)
        if (one.folder / "picks.csv").is_file()
    ]
    spacing = source.voxel_spacing_angstrom if image == source.tomogram else None
    return Scene(source.name, image, tuple(_labels(source)), tuple(points), notes, spacing)


def _image(source: TomogramSource, notes: list[str]) -> Path | None:
    """Return the first volume of a tomogram that can be opened."""
    for path in (source.tomogram, source.equalized, *source.score_maps):
        if path is None:
            continue
        try:
            with unpacked_for_now(tempfile.gettempdir()):
                open_first_class(path)
        except (DeepictError, OSError) as error:
            notes.append(f"{source.name}: not shown: {error}")
        else:
            return path
    return None


def _labels(source: TomogramSource) -> list[LabelLayer]:
    regions = [
        LabelLayer(
            f"region_{name}", path, "mask", (name,), (REGION_COLOURS[i % len(REGION_COLOURS)],)
        )
        for i, (name, path) in enumerate(source.regions.items())
    ]
    found = [layer for i, one in enumerate(source.picks) for layer in _of_picks(one, i)]
    classes = [
        _of_model(path, source.picks) for path in sorted(source.folder.glob("labels_*.zarr"))
    ]
    published = [
        LabelLayer(name, path, "mask", (name,), (COLOURS[i % len(COLOURS)],), _HALF)
        for i, (name, path) in enumerate(source.volumes.items())
    ]
    return [*regions, *found, *classes, *published]


def _of_picks(picks: PicksSource, number: int) -> list[LabelLayer]:
    """Return the segmentation and the label map of a folder of picks."""
    colour = COLOURS[number % len(COLOURS)]
    name = str(picks.settings.get("class_name") or picks.name.removeprefix("picks_"))
    layers = []
    if picks.segmentation is not None:
        layers.append(LabelLayer(picks.name, picks.segmentation, "mask", (name,), (colour,)))
    for ending in (".zarr", ".mrc"):
        path = picks.folder / f"label_map{ending}"
        if path.exists():
            layers.append(LabelLayer(f"{picks.name}_objects", path, "objects"))
    return layers


def _of_model(path: Path, picks: tuple[PicksSource, ...]) -> LabelLayer:
    """Return the label volume of a model; its picks' records name the classes."""
    names: tuple[str, ...] = ()
    for one in picks:
        if one.record.get("inputs", {}).get("score") == str(path):
            known = one.settings.get("class_names") or ()
            names = names or tuple(known)[1:]  # the first is the background
    names = names or tuple(f"class {number}" for number in range(1, _MANY_CLASSES + 1))
    colours = distinct_colours(len(names))
    return LabelLayer(path.name.removesuffix(".zarr"), path, "classes", names, colours)


def distinct_colours(n: int) -> tuple[str, ...]:
    """Return a colour for each of some classes: those of the report, then hues far from the last.

    Examples
    --------
    >>> len(set(distinct_colours(20))), distinct_colours(1)
    (20, ('#e69f00',))
    """
    more = []
    for number in range(n - len(COLOURS)):
        rgb = colorsys.hls_to_rgb(number * _GOLDEN % 1, 0.6, 0.7)
        more.append("#" + "".join(f"{round(255 * part):02x}" for part in rgb))
    return (*COLOURS[:n], *more)
