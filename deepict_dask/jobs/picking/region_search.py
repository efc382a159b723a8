"""Distances of points to regions, from the chunks that hold points.

Points of one chunk are one task, for all regions that are searched. A task is told which parts of a
region its points can reach, and reads those that can be nearest (`deepict_dask.regions`): never
more than one chunk of one mask at a time, however far the search goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.geometry import Block
from ...engine import check_budget
from ...engine.arrays import read_windows, run_each, task_key
from ...regions import MaskSurvey, distance_bytes, nearest_distances, parts_in_reach

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...core.geometry import Box, Grid
    from ...core.volume import VolumeReader
    from ...regions.distance import Metric
    from ..session import Session

__all__ = ["Region", "Search", "search_chunk", "search_regions"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Region:
    """A region of one tomogram."""

    name: str
    reader: VolumeReader
    survey: MaskSurvey


@dataclass(frozen=True)
class Search:
    """Up to what distance to look for one region, in voxels."""

    region: Region
    limit: float
    metric: Metric = "euclidean"


def search_regions(
    session: Session, searches: Sequence[Search], points: Array, grid: Grid
) -> Array:
    """Return the distance of each point to each region that is searched.

    Parameters
    ----------
    session
        Workers.
    searches
        Regions, limits, metrics.
    points
        Integer voxel positions, shape (n, 3), zyx.
    grid
        The chunks; points of one chunk are one task.

    Returns
    -------
    array
        float64, shape (number of searches, n), voxels; NaN beyond the limit of a search.

    Raises
    ------
    BudgetError
        A task would need more memory than a worker has.
    """
    found = np.full((len(searches), len(points)), np.nan)
    if len(searches) == 0 or len(points) == 0:
        return found
    members = _by_chunk(points, grid)
    _check_memory(session, searches, grid, max(len(places) for places in members.values()))

    def submit(number: int) -> Any:
        some = points[members[number]]
        return session.workers.client.submit(
            search_chunk, [_within_reach(search, some) for search in searches], some,
            pure=False, key=task_key("distances", number), **session.workers.placed(),
        )  # fmt: skip

    where = ", ".join(dict.fromkeys(search.region.reader.path for search in searches))
    with session.progress.stage("distances", len(members)) as advance:
        for number, distances in run_each(
            session.workers, submit, members, stage="distances", where=where
        ):
            found[:, members[number]] = distances
            advance(1)
    return found


def _by_chunk(points: Array, grid: Grid) -> dict[int, Array]:
    """Return the places of the points of each chunk that has some, by the chunk's number."""
    owners = np.ravel_multi_index((points // grid.write_shape).T, grid.counts)
    order = np.argsort(owners, kind="stable")
    numbers, counts = np.unique(owners, return_counts=True)
    places = np.split(order, np.cumsum(counts)[:-1])
    return {int(number): some for number, some in zip(numbers, places, strict=True)}


def _check_memory(
    session: Session, searches: Sequence[Search], grid: Grid, most_points: int
) -> None:
    """Refuse searches whose tasks would not fit a worker."""
    dtypes = {search.region.reader.header.dtype for search in searches}
    needed = max(distance_bytes(grid.window_shape, dtype, most_points) for dtype in dtypes)
    check_budget("distances", needed, session.workers.memory_bytes)


def _within_reach(search: Search, points: Array) -> Search:
    """Return a search with the parts that some points can reach: what travels to a task."""
    region = search.region
    parts = parts_in_reach(region.survey.parts, points, search.limit + 1)
    return Search(
        Region(region.name, region.reader, MaskSurvey(parts)), search.limit, search.metric
    )


def search_chunk(searches: Sequence[Search], points: Array) -> Array:
    """Measure the points of one chunk: the body of a task."""
    found = [_search_region(search, points) for search in searches]
    return np.where(np.isfinite(found), found, np.nan)


def _search_region(search: Search, points: Array) -> Array:
    """Measure the distances of some points to one region."""
    reader = search.region.reader

    def read(box: Box) -> Array:
        (window,) = read_windows([reader], Block(0, (0, 0, 0), read=box, write=box))
        return window

    parts = search.region.survey.parts
    return nearest_distances(read, parts, points, search.limit, search.metric)
