"""Lists and spheres as DeePiCt's additional scripts make them.

*Merging* (its elliptical distance constraint): lists one after the other in the file's order, a
point dropped where a kept one is closer than an elliptical distance of 1. The first kept point is
compared at its position in voxels instead of its scaled position, so duplicates of it survive, and
points near its unscaled place are lost. Only x, y, z are written, without a header.

*Spheres* (its list to mask): whole-voxel offsets of at most ``radius - 1`` on each axis and at most
``radius`` in length, so that the six tips of a sphere are missing; a later sphere replaces an
earlier one; voxels are float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .merge import stand_ins

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from ..core.geometry import Box

__all__ = ["merge_as_deepict", "paint_as_deepict", "xyz_text"]


def merge_as_deepict(
    tables: Sequence[pd.DataFrame], axes: tuple[float, float, float]
) -> pd.DataFrame:
    """Merge picks tables as the published script does; positions only.

    Parameters
    ----------
    tables
        Picks tables in the order of their files.
    axes
        Semi-axes on z, y, x, voxels (the script takes them as x, y, z).

    Examples
    --------
    >>> from deepict_dask.io.picks_table import make_picks
    >>> merge_as_deepict([make_picks([[5, 5, 5], [5, 5, 5], [5, 5, 5]])], (2, 2, 2)).z.tolist()
    [5.0, 5.0]
    """
    import pandas as pd

    places = [table[["z", "y", "x"]] for table in tables if len(table)]
    zyx = pd.concat(places or [tables[0][["z", "y", "x"]]], ignore_index=True)
    points = zyx.to_numpy(np.float64)
    scaled = points / np.asarray(axes, np.float64)
    stored = scaled.copy()
    stored[:1] = points[:1]
    owners = stand_ins(scaled, stored=stored, limit=1.0)
    return zyx[owners == np.arange(len(owners))].reset_index(drop=True)


def xyz_text(table: pd.DataFrame) -> str:
    r"""Return lines ``x,y,z``: whole numbers where all are whole.

    Examples
    --------
    >>> from deepict_dask.io.picks_table import make_picks
    >>> xyz_text(make_picks([[5, 88, 9]]))
    '9,88,5\n'
    """
    xyz = table[["x", "y", "z"]].to_numpy(np.float64)
    values = xyz.astype(np.int64) if (xyz == np.rint(xyz)).all() else xyz
    return "".join(f"{x},{y},{z}\n" for x, y, z in values.tolist())


def paint_as_deepict(canvas: np.ndarray[Any, Any], rows: np.ndarray[Any, Any], box: Box) -> None:
    """Paint spheres on a canvas over a box, later ones over earlier ones.

    Parameters
    ----------
    canvas
        zyx, changed in place.
    rows
        Spheres (`spheres.SPHERE_DTYPE`) in any order; centres are rounded.
    box
        The voxels that the canvas covers.

    Examples
    --------
    >>> from deepict_dask.core.geometry import Box
    >>> from deepict_dask.particles.spheres import sphere_rows
    >>> canvas = np.zeros((21, 21, 21), np.float32)
    >>> rows = sphere_rows(np.array([[10.0, 10, 10]]), radius=8.0, values=1.0)
    >>> paint_as_deepict(canvas, rows, Box.whole((21, 21, 21)))
    >>> int(canvas.sum())
    2103
    """
    for row in np.sort(rows, order="number"):
        radius = int(row["radius"])
        centre = np.rint([row["z"], row["y"], row["x"]]).astype(np.int64)
        start = np.maximum(centre - (radius - 1), box.start)
        stop = np.minimum(centre + radius, box.stop)
        if (stop <= start).any():
            continue
        dz, dy, dx = (np.arange(a, b) - c for a, b, c in zip(start, stop, centre, strict=True))
        inside = (dz * dz)[:, None, None] + (dy * dy)[:, None] + dx * dx <= radius * radius
        part = tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, box.start, strict=True))
        canvas[part][inside] = row["value"]
