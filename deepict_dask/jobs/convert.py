"""Any volume to any volume, a few chunks at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ConfigError, VoxelValueError
from ..core.geometry import Grid
from ..core.ops import ChunkOp
from ..engine import check_budget, fingerprint, map_chunks, request_key
from ..io.endings import kind_of
from ..io.ome_zarr_write import PACKING_BYTES
from ..io.raw_write import as_stored
from ..io.volumes import open_volume
from .pyramid import check_method, write_levels
from .volume_output import volume_output

if TYPE_CHECKING:
    from pathlib import Path

    from ..core.geometry import Block, Vec
    from .session import Session

__all__ = ["CopyOp", "convert_volume"]


@dataclass(frozen=True)
class CopyOp(ChunkOp):
    """Copy voxels, in another type or with bad voxels replaced.

    Examples
    --------
    >>> block = Grid((1, 1, 2), (1, 1, 2))[0]
    >>> CopyOp("float32", fill_nonfinite=0.0).apply(block, np.array([[[1.5, np.nan]]]))
    array([[[1.5, 0. ]]], dtype=float32)
    """

    dtype: str
    fill_nonfinite: float | None = None
    """What NaN and infinite voxels become; None keeps them."""
    source_dtype: str = "float32"
    """NumPy name of the windows' type; only ``bytes_needed`` depends on it."""
    name: str = "convert"

    def apply(self, block: Block, *windows: Any) -> Any:
        """Return the window in the op's type."""
        (window,) = windows
        if self.fill_nonfinite is not None and window.dtype.kind == "f":
            window = np.where(np.isfinite(window), window, self.fill_nonfinite)
        if np.dtype(self.dtype).kind in "iu" and window.dtype.kind == "f":
            window = self._rounded(window, block)
        elif self.dtype != "bool":
            window = as_stored(window, self.dtype, f"convert: {_place(block)}")
        return window.astype(self.dtype, copy=False)

    def _rounded(self, window: Any, block: Block) -> Any:
        """Return whole numbers that fit the type, or refuse."""
        limits = np.iinfo(self.dtype)
        whole = np.rint(window)
        if not (whole.min() >= limits.min and whole.max() <= limits.max):  # false for NaN too
            raise VoxelValueError(
                f"convert: {_place(block)}: expected values from {limits.min} to {limits.max} for "
                f"{self.dtype}, found others; choose another --dtype"
            )
        return whole

    def bytes_needed(self, window_shape: Vec) -> int:
        """Return the bytes of the window with its copies, as stored, and as written and packed."""
        source, written = np.dtype(self.source_dtype), np.dtype(self.dtype)
        per_voxel = source.itemsize + max(source.itemsize, written.itemsize) + written.itemsize
        if source.kind == "f" and self.fill_nonfinite is not None:
            per_voxel += source.itemsize + 1
        if source.kind == "f" and written.kind in "iu":
            per_voxel += source.itemsize
        elif source.kind == "f" and written.itemsize < source.itemsize:
            per_voxel += source.itemsize + 1  # those that are finite, to see whether they fit
        return math.prod(window_shape) * per_voxel + PACKING_BYTES


def _place(block: Block) -> str:
    return f"voxels {block.write.start} to {block.write.stop}"


def voxel_type(name: str) -> str:
    """Return the NumPy name of a type that voxels can have.

    Raises
    ------
    ConfigError
        It is no type of real numbers.

    Examples
    --------
    >>> voxel_type("f4")
    'float32'
    """
    try:
        found = np.dtype(name)
    except TypeError:
        found = np.dtype(object)
    if found.kind not in "biuf":
        raise ConfigError(
            f"--dtype: expected a type of real numbers such as float32, int16 or uint8, "
            f"found {name!r}"
        )
    return found.name


def convert_volume(
    session: Session,
    source: Path,
    target: Path,
    *,
    dtype: str | None = None,
    shards: Vec | None = None,
    fill_nonfinite: float | None = None,
    class_name: str | None = None,
    pyramid: str | None = None,
    allow_missing_chunks: bool = False,
) -> Path:
    """Convert a volume, or one class of a score map; the target's ending picks the format.

    ``pyramid`` (``mean`` or ``majority``) adds coarser levels to a target in OME-Zarr. Chunks that
    a Zarr store lacks are an error, or their voxels the fill value (``allow_missing_chunks``).

    Raises
    ------
    SpacingError
        The source does not say its voxel spacing and none was given.
    OutputExistsError
        The target exists.
    ConfigError
        The voxel type is none, or levels were asked for that cannot be made.
    VoxelValueError
        Voxels do not fit the type asked for.
    VolumeFormatError
        The source cannot be read, or chunks are missing.
    """
    if pyramid is not None and kind_of(target) != "zarr":
        raise ConfigError(f"{target}: expected an output ending in .zarr for --pyramid")
    wanted = None if dtype is None else voxel_type(dtype)
    source = source.absolute()  # workers may run in another folder
    request = {
        "job": "convert", "input": fingerprint(source), "dtype": wanted, "shards": shards,
        "chunks": session.chunks, "fill": fill_nonfinite,
        "spacing": session.voxel_spacing_angstrom, "class": class_name,
        **({} if pyramid is None else {"pyramid": pyramid}),
        **({"missing": "fill"} if allow_missing_chunks else {}),
    }  # fmt: skip
    with volume_output(session, target, request_key(request)) as output:
        reader = open_volume(
            source,
            voxel_spacing_angstrom=session.voxel_spacing_angstrom,
            scratch=output.scratch,
            class_name=class_name,
            allow_missing_chunks=allow_missing_chunks,
        )
        if reader.header.class_names:
            raise ConfigError(
                f"{source}: expected one class to convert, found "
                f"{', '.join(reader.header.class_names)}; choose one with --class"
            )
        own = reader.header.dtype
        op = CopyOp(wanted or own, fill_nonfinite, source_dtype=own)
        method = check_method(pyramid, op.dtype)
        sink = output.sink(replace(reader.header, dtype=op.dtype), session.chunks, shards, method)
        grid = Grid(reader.header.shape, sink.write_shape)
        check_budget("convert", op.bytes_needed(grid.window_shape), session.workers.memory_bytes)
        with (
            output.ledger(grid) as ledger,
            session.progress.stage(op.name, grid.n_blocks, ledger.n_resumed) as advance,
        ):
            map_chunks(session.workers, op, [reader], sink, grid, ledger=ledger, on_done=advance)
        if method is not None:
            write_levels(session, output.staged, output.store, sink.header, method, shards=shards)
    return target
