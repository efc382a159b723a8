"""Points of napari as CSV: ``index, axis-0, axis-1, axis-2`` and further columns, its features.

napari puts a point where its numbers say, in *world* coordinates: a list has no scale of its own.
So axes 0, 1 and 2 are z, y and x in Å (the origin of the tomogram added), as napari lays out an
OME-Zarr image whose scale is in Å; in voxels where the tomogram does not say its voxel spacing.
A layer that is drawn anew in napari has the scale of the image instead, and its file is in voxels:
the file does not say which, so it is read as this format only where that is asked for.
Source: napari's own reader and writer of this format (``napari_builtins``).
"""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING

from ...core.errors import PicksFormatError
from ..picks_csv import picks_from_text, read_list_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import pandas as pd

    from ..picks_table import TomogramFrame

__all__ = ["dump_napari", "load_napari", "napari_points_pieces"]

_AXES = {"axis-0": "z", "axis-1": "y", "axis-2": "x"}


def load_napari(path: Path, frame: TomogramFrame) -> pd.DataFrame:
    """Read points of a layer in Å, as `view` makes them; an origin of the tomogram is not known.

    Raises
    ------
    SpacingError
        The frame has no voxel spacing.
    PicksFormatError
        It is another table, or a position is no number.
    """
    table = read_list_text(path)
    if not table.has_header or not set(_AXES) <= set(table.rows[0]):
        raise PicksFormatError(
            f"{path}: expected a header with {', '.join(_AXES)}, as napari writes it, found another"
        )
    spacing = frame.need_spacing(path)
    header = tuple(_AXES.get(name, name) for name in table.rows[0])
    picks = picks_from_text(replace(table, rows=(header, *table.rows[1:])))
    picks[["z", "y", "x"]] /= spacing
    return picks.drop(columns="index", errors="ignore")


def dump_napari(table: pd.DataFrame, frame: TomogramFrame) -> bytes:
    """Return the bytes of a list in Å; an origin of the tomogram is not known."""
    step = frame.need_spacing("napari's points")
    return b"".join(napari_points_pieces([table], (step, step, step), (0.0, 0.0, 0.0)))


def napari_points_pieces(
    tables: Iterable[pd.DataFrame],
    scale: tuple[float, float, float],
    translation: tuple[float, float, float],
) -> Iterator[bytes]:
    """Yield the file's bytes, table by table.

    Parameters
    ----------
    tables
        ``z, y, x`` in voxels and any other columns, the same in all.
    scale, translation
        Å per voxel, and where the centre of voxel 0 lies in Å; zyx.

    Examples
    --------
    >>> from deepict_dask.io.picks_table import make_picks
    >>> pieces = napari_points_pieces([make_picks([[5, 88, 9]], [0.75])], (10.0,) * 3, (0, 0, 1))
    >>> b"".join(pieces).decode().splitlines()
    ['index,axis-0,axis-1,axis-2,score', '0,50.0,880.0,91.0,0.75']
    """
    n = 0
    for table in tables:
        others = table.drop(columns=["z", "y", "x"]).reset_index(drop=True)
        for axis, (name, step, start) in enumerate(zip("zyx", scale, translation, strict=True)):
            world = table[name].to_numpy(float) * step + start
            others.insert(axis, f"axis-{axis}", world.round(3))
        others.insert(0, "index", range(n, n + len(table)))
        text = io.StringIO()
        others.to_csv(text, index=False, header=n == 0, lineterminator="\n")
        n += len(table)
        yield text.getvalue().encode()
