"""What picks that are points have to do with regions: which lie inside or near, how far all are.

Clusters are looked at voxel by voxel while they are labelled (`regions`). Mean shift and
mean-pooling suppression give points, and a point is in a region if its voxel is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...core.geometry import Grid, as_vec
from .region_search import search_regions
from .regions import open_regions

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pandas as pd

    from .method_sources import MethodSources

__all__ = ["picks_by_regions"]


def picks_by_regions(
    job: MethodSources, picks: pd.DataFrame, regions: Mapping[str, Path]
) -> pd.DataFrame:
    """Return the picks that the regions let pass, with their distances to the regions.

    Parameters
    ----------
    job
        Its settings say what restricts the picks, and what is measured.
    picks
        With columns z, y, x in voxels.
    regions
        Mask files by the names of their regions.

    Raises
    ------
    ShapeMismatchError, VoxelValueError, ConfigError, SpacingError
        As of `open_regions`.
    """
    # shapes that differ are refused with compat too: its programs know no masks
    settings = job.settings.model_copy(update={"compat": None})
    _, masks = open_regions(
        job.session, job.sources[0], regions, settings, scratch=job.scratch / "masks"
    )
    shape = job.header.shape
    grid = Grid(shape, as_vec(np.minimum(job.session.chunks, shape)))
    points = np.rint(picks[["z", "y", "x"]].to_numpy(np.float64)).astype(np.int64)
    points = np.clip(points, 0, np.subtract(shape, 1))
    found = search_regions(job.session, [*masks.inside, *masks.nearness], points, grid)
    kept = ~np.isnan(found).any(axis=0)
    measured = search_regions(job.session, masks.measured, points[kept], grid)
    return picks[kept].reset_index(drop=True).assign(**masks.columns(measured))
