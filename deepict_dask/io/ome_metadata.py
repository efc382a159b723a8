"""What the metadata of a Zarr folder says about its image.

1. Read the node's JSON: ``zarr.json`` (Zarr v3) or ``.zgroup``, ``.zarray`` and ``.zattrs`` (v2).
2. A group with ``multiscales`` is an OME-Zarr image, 0.1 to 0.5. Its full-resolution level is the
   first dataset. Axes go by name: stores with x, y, z order exist.
3. Scale and translation are those of the level, then those of the image, in the axes' units.
4. An array, or a group with one array, is read as (c)zyx with unknown spacing.

Sources: the OME-NGFF specifications 0.4 and 0.5, and stores of the CryoET Data Portal and copick.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import VolumeFormatError
from .description import angstrom_per

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..core.geometry import Vec
    from ..core.volume import VolumeHeader

__all__ = [
    "ZarrImage",
    "attributes_of",
    "find_image",
    "group_files",
    "image_attributes",
    "is_zarr",
]

Json = dict[str, Any]
OURS = "deepict_dask"
MARKERS = ("zarr.json", ".zarray", ".zgroup")
OF_GROUPS = ("zarr.json", ".zgroup", ".zattrs")
COLOURS = ("E69F00", "56B4E9", "009E73", "F0E442", "0072B2", "D55E00", "CC79A7", "FFFFFF")


@dataclass(frozen=True)
class ZarrImage:
    """Where the voxels of an image are and what its axes mean."""

    array_path: str
    version: str
    """Of OME-Zarr; empty for a plain Zarr array."""
    axes: str
    """One letter per stored axis; empty where nothing names them."""
    scale: tuple[float, ...] | None = None
    """Å per voxel on z, y, x; None where the metadata has none."""
    translation: tuple[float, ...] = (0.0, 0.0, 0.0)
    """Å on z, y, x."""
    class_names: tuple[str, ...] = ()
    every_chunk_written: bool = False
    """The store's writer leaves out no chunk, so that a missing one is damage."""
    oddities: tuple[str, ...] = ()


def is_zarr(path: Path) -> bool:
    """Say whether a folder is a Zarr group or array.

    Examples
    --------
    >>> is_zarr(Path("/"))
    False
    """
    return path.is_dir() and any((path / marker).is_file() for marker in MARKERS)


def find_image(path: str) -> ZarrImage:
    """Return the image in a Zarr folder: a group, an array, or one level of an image.

    Raises
    ------
    VolumeFormatError
        If the metadata is damaged, or there is no image or more than one.
    """
    folder = Path(path)
    if _is_array(folder):
        parent = folder.absolute().parent
        image = _image_of(parent) if is_zarr(parent) else None
        if image is not None and folder.name in _level_names(image):
            return _from_multiscales(parent, image, folder.name)
        return ZarrImage(path, "", "")
    image = _image_of(folder)
    if image is not None:
        return _from_multiscales(folder, image, None)
    return ZarrImage(str(_only_array(folder)), "", "")


def group_files(path: Path) -> list[Path]:
    """Return the metadata of the group around an array, which say what a level of an image means.

    None where the path is no Zarr array, or lies in no group.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from deepict_dask.core.volume import VolumeHeader
    >>> from deepict_dask.io.ome_zarr_write import create_ome_zarr
    >>> store = pathlib.Path(tempfile.mkdtemp(), "a.zarr")
    >>> _ = create_ome_zarr(store, VolumeHeader((2, 2, 2), "uint8", 13.48))
    >>> [file.name for file in group_files(store / "0")], group_files(store)
    (['zarr.json'], [])
    """
    try:
        is_level = _is_array(path)
    except VolumeFormatError:
        return []
    group = path.absolute().parent
    names = OF_GROUPS if is_level and is_zarr(group) else ()
    return [group / name for name in names if (group / name).is_file()]


def _image_of(folder: Path) -> Json | None:
    """Return the first image of a group, with the group's other attributes beside it."""
    attributes = attributes_of(folder)
    ome = attributes.get("ome", attributes)
    try:
        images = ome.get("multiscales", [])
        if not images:
            return None
        return {**images[0], "ome": ome, OURS: attributes.get(OURS, {})}
    except (AttributeError, TypeError, KeyError) as error:
        raise _damaged(folder, error) from error


def attributes_of(folder: Path) -> Json:
    """Return the attributes of a Zarr group or array, none where there is no such node.

    Raises
    ------
    VolumeFormatError
        The metadata is damaged.

    Examples
    --------
    >>> attributes_of(Path("no/such.zarr"))
    {}
    """
    if (folder / "zarr.json").is_file():
        attributes: Json = _json(folder / "zarr.json").get("attributes", {})
        return attributes
    return _json(folder / ".zattrs") if (folder / ".zattrs").is_file() else {}


def _json(file: Path) -> Json:
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(file, error) from error
    if not isinstance(content, dict):
        raise _damaged(file, f"expected an object, found {type(content).__name__}")
    return content


def _damaged(where: Path, error: object) -> VolumeFormatError:
    return VolumeFormatError(f"{where}: the Zarr metadata is damaged ({error}); copy it again")


def _is_array(folder: Path) -> bool:
    if (folder / "zarr.json").is_file():
        return bool(_json(folder / "zarr.json").get("node_type") == "array")
    return (folder / ".zarray").is_file()


def _only_array(folder: Path) -> Path:
    arrays = [child for child in sorted(folder.iterdir()) if is_zarr(child) and _is_array(child)]
    if len(arrays) == 1:
        return arrays[0]
    names = ", ".join(child.name for child in arrays) or "none"
    raise VolumeFormatError(
        f"{folder}: a Zarr group without OME-Zarr metadata (multiscales); arrays in it: {names}; "
        "give the path of one array"
    )


def _level_names(image: Json) -> list[str]:
    return [str(level.get("path")) for level in image.get("datasets", [])]


def _from_multiscales(folder: Path, image: Json, level_name: str | None) -> ZarrImage:
    try:
        levels = image["datasets"]
        level = next((one for one in levels if one["path"] == level_name), levels[0])
        return _read_level(folder, image, level)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, VolumeFormatError):
            raise
        raise _damaged(folder, f"{type(error).__name__}: {error}") from error


def _read_level(folder: Path, image: Json, level: Json) -> ZarrImage:
    ours, ome = image[OURS], image["ome"]
    axes = [{"name": axis} if isinstance(axis, str) else axis for axis in _axes(image)]
    letters = "".join(str(axis["name"]).lower() for axis in axes)
    if len(letters) != len(axes) or not set("zyx") <= set(letters) <= set("tczyx"):
        raise VolumeFormatError(
            f"{folder}: expected axes z, y and x (and c, t), found {[a['name'] for a in axes]}"
        )
    oddities = _axis_oddities(letters, axes)
    scale, translation = _transform(image, level, len(axes))
    if not ours.get("voxel_spacing_known", True):
        scale, oddities = None, ()
    return ZarrImage(
        array_path=str(folder / level["path"]),
        version=str(image.get("version") or ome.get("version") or "unknown"),
        axes=letters,
        scale=_zyx(scale, letters, axes) if scale else None,
        translation=_zyx(translation, letters, axes),
        class_names=_class_names(ours, ome) if "c" in letters else (),
        every_chunk_written=bool(ours.get("every_chunk_written")),
        oddities=oddities,
    )


def _axes(image: Json) -> list[Any]:
    """Return the axes; before version 0.3 they were always t, c, z, y, x."""
    return image.get("axes") or list("tczyx")


def _axis_oddities(letters: str, axes: list[Json]) -> tuple[str, ...]:
    order = "".join(letter for letter in letters if letter in "zyx")
    units = {
        axis.get("unit") for letter, axis in zip(letters, axes, strict=True) if letter in "zyx"
    }
    unknown = sorted(str(unit) for unit in units if unit and angstrom_per(unit) is None)
    found = [
        f"axes are stored in the order {order}; read as zyx" if order != "zyx" else "",
        "the scale has no unit; taken as Å" if None in units else "",
        f"the scale's unit {', '.join(unknown)} is not known; taken as Å" if unknown else "",
    ]
    return tuple(text for text in found if text)


def _transform(image: Json, level: Json, rank: int) -> tuple[list[float] | None, list[float]]:
    """Return scale and translation of a level: its own, then those of the whole image."""
    scale, translation, found = [1.0] * rank, [0.0] * rank, False
    for step in _transformations(level) + _transformations(image):
        if step["type"] == "scale":
            factors = [float(factor) for factor in step["scale"]]
            scale = [a * b for a, b in zip(scale, factors, strict=True)]
            translation = [a * b for a, b in zip(translation, factors, strict=True)]
            found = True
        elif step["type"] == "translation":
            offsets = [float(offset) for offset in step["translation"]]
            translation = [a + b for a, b in zip(translation, offsets, strict=True)]
    return (scale if found else None), translation


def _transformations(item: Json) -> list[Json]:
    return list(item.get("coordinateTransformations", []))


def _zyx(values: list[float], letters: str, axes: list[Json]) -> tuple[float, ...]:
    """Return the values of z, y, x in Å."""
    places = [letters.index(letter) for letter in "zyx"]
    return tuple(
        round(values[place] * (angstrom_per(axes[place].get("unit")) or 1.0), 9) for place in places
    )


def _class_names(ours: Json, ome: Json) -> tuple[str, ...]:
    """Return our class names, or the labels of OMERO's channels."""
    if ours.get("class_names"):
        return tuple(str(name) for name in ours["class_names"])
    channels = ome.get("omero", {}).get("channels", [])
    return tuple(str(channel.get("label", number)) for number, channel in enumerate(channels))


def image_attributes(
    name: str,
    header: VolumeHeader,
    factors: Sequence[Vec] = ((1, 1, 1),),
    method: str | None = None,
) -> Json:
    """Return the attributes of an OME-Zarr 0.5 group with levels ``"0"``, ``"1"`` and so on.

    Parameters
    ----------
    name
        What viewers call the image.
    header
        Shape (zyx), spacing and origin (Å), class names.
    factors
        How many voxels of level 0 a voxel of each level stands for (zyx).
    method
        How coarser levels were made.

    Examples
    --------
    >>> from deepict_dask.core.volume import VolumeHeader
    >>> image_attributes("tomo", VolumeHeader((4, 4, 4), "uint8", 10.0))["ome"]["version"]
    '0.5'
    """
    image: Json = {
        "name": name,
        "axes": _our_axes(header),
        "datasets": [
            {"path": str(number), "coordinateTransformations": _steps(header, each)}
            for number, each in enumerate(factors)
        ],
    }
    if method is not None:
        image["type"] = method
    spacing = header.voxel_spacing_angstrom
    ours: Json = {"every_chunk_written": True, "voxel_spacing_known": spacing is not None}
    ome: Json = {"version": "0.5", "multiscales": [image]}
    if header.class_names:
        ours["class_names"] = list(header.class_names)
        ome["omero"] = {"channels": [_channel(*item) for item in enumerate(header.class_names)]}
    return {"ome": ome, OURS: ours}


def _steps(header: VolumeHeader, factors: Vec) -> list[Json]:
    """Return scale and translation of a level: where the centre of its first voxel lies."""
    spacing = float(header.voxel_spacing_angstrom or 1.0)
    lead = [(1.0, 0.0)] if header.class_names else []
    pairs = zip(factors, header.origin_angstrom, strict=True)
    axes = [*lead, *((f * spacing, float(start) + (f - 1) / 2 * spacing) for f, start in pairs)]
    steps: list[Json] = [{"type": "scale", "scale": [scale for scale, _ in axes]}]
    if any(offset for _, offset in axes):
        steps.append({"type": "translation", "translation": [offset for _, offset in axes]})
    return steps


def _our_axes(header: VolumeHeader) -> list[Json]:
    unit = {} if header.voxel_spacing_angstrom is None else {"unit": "angstrom"}
    space = [{"name": axis, "type": "space", **unit} for axis in "zyx"]
    return [{"name": "c", "type": "channel"}, *space] if header.class_names else space


def _channel(number: int, name: str) -> Json:
    return {
        "label": name,
        "color": COLOURS[number % len(COLOURS)],
        "active": True,
        "window": {"min": 0.0, "max": 1.0, "start": 0.0, "end": 1.0},
    }
