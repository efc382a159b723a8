"""Points of napari as CSV: ``index, axis-0, axis-1, axis-2`` and further columns, its features.

napari puts a point where its numbers say, in *world* coordinates: a list has no scale of its own.
So axes 0, 1 and 2 are z, y and x in Å (the origin of the tomogram added), as napari lays out an
OME-Zarr image whose scale is in Å; in voxels where the tomogram does not say its voxel spacing.
Source: napari's own reader and writer of this format (``napari_builtins``).
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pandas as pd

__all__ = ["napari_points_pieces"]


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
