"""Make one OME-Zarr image of a tomogram, with levels, labels and colours, and its picks as CSV.

1. The image is copied, and its levels are made (means).
2. Each layer of labels becomes an image in ``labels/``: masks as 1 and 0, whatever their file held;
   levels by majority.
3. The store appears under its name when all of it is whole; a job that was killed goes on. A store
   of the same tomogram and the same results is kept as it is.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import DeepictError
from ..core.geometry import Box, Grid
from ..core.ops import ChunkOp
from ..engine import check_budget, fingerprint, map_chunks, request_key
from ..io.datasets.names import as_file_name
from ..io.ome_labels import finish_image, finish_labels, list_labels, read_note
from ..io.ome_zarr import open_ome_zarr
from ..io.ome_zarr_write import PACKING_BYTES, create_ome_zarr, level_writers
from ..io.picks_formats.napari import napari_points_pieces
from ..io.pyramid import level_factors
from ..io.replace import replace_file
from ..io.unpack import unpacked_for_now
from ..io.volumes import open_first_class
from ..jobs.convert import CopyOp
from ..jobs.pyramid import open_marks, write_levels
from ..jobs.volume_output import can_be_opened, volume_output
from ..report.images import contrast_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

    from ..core.geometry import Block, Vec
    from ..core.volume import VolumeHeader, VolumeReader
    from ..engine import StagedOutput
    from ..jobs.session import Session
    from ..jobs.volume_output import VolumeOutput
    from .scene import LabelLayer, PointsLayer, Scene

__all__ = ["ExportedScene", "LabelOp", "export_scene"]

_BATCH_ROWS = 100_000
_FORMAT = 1
"""Counted up when the same inputs give another store."""


@dataclass(frozen=True)
class ExportedScene:
    """What was made of a scene."""

    scene: Scene
    store: Path
    points: dict[str, Path]
    """CSV of each list that has picks."""
    notes: tuple[str, ...] = ()
    """What was left out, and why."""


@dataclass(frozen=True)
class LabelOp(ChunkOp):
    """Turn voxels into labels: those of a mask into 1 and 0, others into whole numbers.

    Examples
    --------
    >>> block = Grid((1, 1, 3), (1, 1, 3))[0]
    >>> LabelOp("uint8", is_mask=True).apply(block, np.array([[[0.0, 0.5, 255.0]]]))
    array([[[0, 1, 1]]], dtype=uint8)
    """

    dtype: str
    is_mask: bool
    least: float | None = None
    """The lowest value inside a mask; None where all but 0 is."""
    source_dtype: str = "float32"
    name: str = "labels"

    def apply(self, block: Block, *windows: Any) -> Any:  # noqa: ARG002 - the op's contract
        """Return the window as labels."""
        (window,) = windows
        if not self.is_mask:
            return window.astype(self.dtype, copy=False)
        inside = window != 0 if self.least is None else window >= self.least
        return inside.astype(self.dtype)

    def bytes_needed(self, window_shape: Vec) -> int:
        """Return the bytes of the window, its comparison and its labels as written and packed."""
        per_voxel = np.dtype(self.source_dtype).itemsize + 1 + 2 * np.dtype(self.dtype).itemsize
        return math.prod(window_shape) * per_voxel + PACKING_BYTES


def export_scene(session: Session, scene: Scene, folder: Path) -> ExportedScene:
    """Make ``NAME.zarr`` and ``NAME.LIST.points.csv`` of a scene in a folder.

    Parameters
    ----------
    session
        Workers and wishes.
    scene
        What is shown.
    folder
        Where to; made if it is not there.

    Raises
    ------
    OutputExistsError
        A store of that name is there that this did not make.
    WorkFailedError
        A volume cannot be read; what is finished is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with unpacked_for_now(folder.absolute()):
        return _exported(session, scene, folder)


def _exported(session: Session, scene: Scene, folder: Path) -> ExportedScene:
    """Make what is not there yet, or not of these settings."""
    name = as_file_name(scene.name)
    store = folder.absolute() / f"{name}.zarr"
    image = open_first_class(scene.image.absolute())
    layers, notes = _readable(scene, image.header.shape)
    request = {
        "job": "view", "format": _FORMAT, "image": fingerprint(scene.image),
        "chunks": session.chunks, "spacing": _spacing_of(session, scene),
        "labels": [
            (repr(replace(layer, path=Path(layer.path.name))), fingerprint(layer.path))
            for layer, _ in layers
        ],
    }  # fmt: skip
    key = request_key(request)
    note = read_note(store)
    if note.get("view") != key:
        ours = replace(session, overwrite=session.overwrite or "view" in note)
        with volume_output(ours, store, key) as output:
            _write_store(session, output, scene, image, layers, key)
    points = {
        one.name: path
        for one in scene.points
        if (path := _write_points(one, folder / f"{name}.{one.name}.points.csv", store))
    }
    notes += [f"{one.name}: has no picks" for one in scene.points if one.name not in points]
    return ExportedScene(scene, store, points, (*scene.notes, *notes))


def _spacing_of(session: Session, scene: Scene) -> float | None:
    """Return the voxel spacing (Å) that is given now, or was given to the run."""
    return session.voxel_spacing_angstrom or scene.voxel_spacing_angstrom


def _readable(scene: Scene, shape: Vec) -> tuple[list[tuple[LabelLayer, VolumeReader]], list[str]]:
    """Return the layers that can be laid over the image, and why others cannot."""
    found: list[tuple[LabelLayer, VolumeReader]] = []
    notes: list[str] = []
    for layer in scene.labels:
        try:
            reader = open_first_class(layer.path.absolute())
        except (DeepictError, OSError) as error:
            notes.append(f"{layer.name}: not shown: {error}")
            continue
        if reader.header.shape != shape:
            notes.append(
                f"{layer.name}: not shown: {layer.path}: expected {shape} voxels, as the tomogram "
                f"has, found {reader.header.shape}"
            )
            continue
        found.append((layer, reader))
    return found, notes


def _write_store(  # noqa: PLR0917 - private
    session: Session,
    output: VolumeOutput,
    scene: Scene,
    image: VolumeReader,
    layers: list[tuple[LabelLayer, VolumeReader]],
    key: str,
) -> None:
    """Write image and labels into the store in the making."""
    shown = replace(session, progress=session.progress.named(scene.name))
    store = output.store
    header = replace(image.header, class_names=())
    if (spacing := _spacing_of(session, scene)) is not None:
        header = replace(header, voxel_spacing_angstrom=spacing)
    sink = output.sink(header, session.chunks, None, "mean")
    grid = Grid(header.shape, sink.write_shape)
    op = CopyOp(header.dtype, source_dtype=header.dtype, name="copy")
    check_budget(op.name, op.bytes_needed(grid.window_shape), session.workers.memory_bytes)
    with (
        output.ledger(grid) as ledger,
        shown.progress.stage(op.name, grid.n_blocks, ledger.n_resumed) as advance,
    ):
        map_chunks(session.workers, op, [image], sink, grid, ledger=ledger, on_done=advance)
    write_levels(shown, output.staged, store, header, "mean")
    for layer, reader in layers:
        _write_labels(shown, output.staged, header, layer, reader, store / "labels" / layer.name)
    if layers:
        list_labels(store, [layer.name for layer, _ in layers])
    finish_image(store, scene.name, _window(store, header), {"view": key})


def _write_labels(  # noqa: PLR0917 - private
    session: Session,
    staged: StagedOutput,
    image: VolumeHeader,
    layer: LabelLayer,
    reader: VolumeReader,
    store: Path,
) -> None:
    """Write one layer with its levels; it lies where the image lies, whatever its file says."""
    own = reader.header.dtype
    is_mask = layer.kind == "mask"
    dtype = "uint32" if layer.kind == "objects" else "uint8"
    op = LabelOp(dtype, is_mask, layer.least, own, f"labels {layer.name}")
    header = replace(image, dtype=dtype)
    if not (staged.resumed and can_be_opened(store)):
        create_ome_zarr(store, header, chunks=session.chunks, overwrite=True, pyramid="majority")
    sink = level_writers(store, header, chunks=session.chunks)[0]
    grid = Grid(header.shape, sink.write_shape)
    check_budget(op.name, op.bytes_needed(grid.window_shape), session.workers.memory_bytes)
    with (
        open_marks(staged, sink, grid) as ledger,
        session.progress.stage(op.name, grid.n_blocks, ledger.n_resumed) as advance,
    ):
        map_chunks(session.workers, op, [reader], sink, grid, ledger=ledger, on_done=advance)
    write_levels(session, staged, store, header, "majority")
    finish_labels(store, layer.name, layer.names, layer.colours)


def _window(store: Path, header: VolumeHeader) -> tuple[float, float]:
    """Return the values shown as black and as white: percentiles of the coarsest level."""
    last = len(level_factors(header.shape)) - 1
    _, reader = open_ome_zarr(f"{store}/{last}")
    contrast = contrast_of(reader.read(Box.whole(reader.header.shape)).astype(np.float32))
    return contrast.black, contrast.white


def _write_points(layer: PointsLayer, path: Path, store: Path) -> Path | None:
    """Write the picks of a list for napari; nothing where there are none, which it cannot read."""
    header = open_ome_zarr(store)[1].header
    step = header.voxel_spacing_angstrom or 1.0
    pieces = napari_points_pieces(_batches(layer), (step, step, step), header.origin_angstrom)
    first = next(pieces, b"")
    if first.count(b"\n") < 2:  # the names of the columns at most
        path.unlink(missing_ok=True)
        return None
    replace_file(path, itertools.chain([first], pieces))
    return path


def _batches(layer: PointsLayer) -> Iterator[pd.DataFrame]:
    import pandas as pd

    with pd.read_csv(layer.folder / "picks.csv", chunksize=_BATCH_ROWS) as batches:
        yield from batches
