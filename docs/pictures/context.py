"""The three contact modes on the same clusters, and the distance to a region."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import style
from scipy import ndimage

from deepict_dask.core.geometry import Grid
from deepict_dask.labelling import LabelReduction, SelectSettings
from deepict_dask.labelling.merge import KeepRule
from deepict_dask.particles.tables import centroids
from deepict_dask.regions import SurveyReduction, nearest_distances

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

SHAPE = (1, 60, 80)
DISTANCE = 6
CENTRES = ((12, 12), (14, 42), (30, 22), (26, 55), (46, 16), (40, 40), (50, 66), (10, 70))


def draw(path: Path) -> None:
    """Draw which clusters each mode keeps, and distances from everywhere."""
    y, x = np.indices(SHAPE[1:])
    region = ((y - 60) ** 2 / 30**2 + (x - 30) ** 2 / 42**2 < 1)[None].astype("uint8")
    discs = [(y - b) ** 2 + (x - a) ** 2 <= 25 for b, a in CENTRES]
    score = np.any(discs, axis=0)[None].astype("float32")
    kept = {
        "intersection: cut at the region": _kept(score, region, SelectSettings(0.5, intersect=1)),
        "contact: shares a voxel": _kept(score, region, rule=KeepRule(must_touch=(0,))),
        f"colocalization: centre within {DISTANCE}": _near(score, region),
    }
    figure, axes = style.panels([*kept, "distance to the region (voxels)"], height=2.3)
    for axis, chosen in zip(axes, kept.values(), strict=False):
        image = np.ones((*SHAPE[1:], 3))
        image[region[0] > 0] = (0.80, 0.87, 0.95)
        image[score[0] > 0] = (0.75, 0.75, 0.75)
        image[chosen[0]] = (0.84, 0.37, 0.0)
        axis.imshow(image)
        style.bare(axis)
    everywhere = np.stack([np.zeros(y.size, int), y.ravel(), x.ravel()], axis=1)
    distance = _distances(region, everywhere, 40, "euclidean").reshape(SHAPE[1:])
    image = axes[3].imshow(distance, cmap="viridis")
    axes[3].contour(region[0], levels=[0.5], colors="white")
    style.bare(axes[3])
    figure.colorbar(image, ax=axes[3], shrink=0.9)
    style.write(figure, path)


def _rows(score: Any, region: Any, select: SelectSettings, rule: KeepRule) -> Any:
    """Return the cluster rows that are kept."""
    (block,) = Grid(SHAPE, SHAPE)
    reduction = LabelReduction(SHAPE, select, rule=rule, n_regions=1)
    return reduction.finalize(reduction.measure(block, score, region)).kept


def _kept(
    score: Any,
    region: Any,
    select: SelectSettings = SelectSettings(0.5),  # noqa: B008 -- a frozen value
    rule: KeepRule = KeepRule(),  # noqa: B008 -- a frozen value
) -> Any:
    """Return the voxels of the clusters that are kept."""
    rows = _rows(score, region, select, rule)
    chosen = (score > 0.5) & (region > 0) if select.intersect else score > 0.5
    labels, _ = ndimage.label(chosen, np.ones((3, 3, 3)))
    first = np.unravel_index(rows["first_voxel"], SHAPE)
    return np.isin(labels, labels[first])


def _near(score: Any, region: Any) -> Any:
    """Return the voxels of the clusters whose centroid is near the region."""
    rows = _rows(score, region, SelectSettings(0.5), KeepRule())
    points = np.rint(centroids(rows)).astype(int)
    near = _distances(region, points, DISTANCE, "chessboard") <= DISTANCE
    labels, _ = ndimage.label(score > 0.5, np.ones((3, 3, 3)))
    first = np.unravel_index(rows["first_voxel"][near], SHAPE)
    return np.isin(labels, labels[first])


def _distances(region: Any, points: Any, limit: float, metric: Any) -> Any:
    """Return distances of points to the region, which is looked for in chunks."""
    survey = SurveyReduction()
    parts = [survey.measure(b, region[b.read.slices]).parts for b in Grid(SHAPE, (1, 20, 20))]
    return nearest_distances(
        lambda box: region[box.slices], np.concatenate(parts), points, limit, metric
    )
