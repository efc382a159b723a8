"""Finds chunks of a store of ours that cannot be read or do not hold what was written.

Every chunk of ours is written and ends with its checksum (crc32c, see `ome_zarr_write`). So each is
read as any reader would: a file that is missing, cut off or has a changed byte cannot be. A few
chunks are in memory at once.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ..core.errors import VolumeFormatError
from ..core.geometry import Box, Grid, as_vec
from .ome_zarr import ZarrReader, open_ome_zarr
from .zarr_array import open_array

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

__all__ = ["find_damage", "find_whole_blocks"]

_READERS = 4


def find_damage(path: str | os.PathLike[str]) -> str:
    """Return why a store cannot be read as a whole; nothing where every chunk can.

    Examples
    --------
    >>> import tempfile, pathlib, numpy as np
    >>> from deepict_dask.core.volume import VolumeHeader
    >>> from deepict_dask.io.ome_zarr_write import create_ome_zarr
    >>> path = pathlib.Path(tempfile.mkdtemp(), "mask.zarr")
    >>> writer = create_ome_zarr(path, VolumeHeader((2, 2, 2), "uint8", 13.48))
    >>> writer.write(Box.whole((2, 2, 2)), np.ones((2, 2, 2), "uint8"))
    >>> find_damage(path)
    ''
    >>> (path / "0/c/0/0/0").unlink()
    >>> "c/0/0/0 is missing" in find_damage(path)
    True
    """
    try:
        _, reader = open_ome_zarr(path)
    except (VolumeFormatError, OSError) as error:
        return str(error)
    boxes = _units(reader, Box.whole(reader.header.shape))
    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(lambda box: _why(reader, box), boxes)
        first = next(filter(None, found), "")
        pool.shutdown(cancel_futures=True)
    return first


def find_whole_blocks(path: str | os.PathLike[str], grid: Grid) -> Iterator[int]:
    """Yield the numbers of the blocks of which every chunk is there and can be read.

    Parameters
    ----------
    path
        A store in the making.
    grid
        Its blocks, of whole chunks.

    Examples
    --------
    >>> list(find_whole_blocks("no/such.zarr", Grid((2, 2, 2), (2, 2, 2))))
    []
    """
    try:
        _, reader = open_ome_zarr(path)
    except (VolumeFormatError, OSError):
        return

    def is_whole(number: int) -> bool:
        return not any(_why(reader, box) for box in _units(reader, grid[number].write))

    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(is_whole, range(grid.n_blocks))
        yield from (number for number, whole in enumerate(found) if whole)


def _units(reader: ZarrReader, box: Box) -> Iterator[Box]:
    """Cut a box of whole chunks (or shards) into them."""
    array = open_array(reader.array_path)
    stored = array.shards or array.chunks
    unit = as_vec([stored[reader.axes.index(letter)] for letter in "zyx"])
    for block in Grid(box.shape, unit):
        yield block.write.shift(box.start)


def _why(reader: ZarrReader, box: Box) -> str:
    """Return why a box cannot be read."""
    try:
        reader.read_channels(box)
    except (VolumeFormatError, OSError) as error:
        return str(error)
    return ""
