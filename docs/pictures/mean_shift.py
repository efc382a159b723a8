"""Particles that touch are one component; mean shift finds their middles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import style
import xarray as xr

from deepict_dask import label
from deepict_dask.core.geometry import Box, Grid
from deepict_dask.particles.mean_shift import find_centres, start_paths
from deepict_dask.particles.row_sums import RowSums

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

SHAPE = (21, 60, 84)
BALLS = ((10, 18, 18), (10, 28, 32), (10, 19, 45), (10, 42, 52), (10, 44, 68))
RADIUS = 8
BANDWIDTH = 8.0


def draw(path: Path) -> None:
    """Draw the component, the paths from the bins, and the centres."""
    labelled = balls()
    score = xr.DataArray(labelled.astype("float32"), dims=("z", "y", "x"))
    components = label(score, threshold=0.5).values
    figure, axes = style.panels(
        ["connected components", "paths from bins to the densest places", "centres"], height=2.7
    )
    style.numbers(axes[0], components[10])
    axes[0].set_xlabel(f"{components.max()} clusters of {len(BALLS)} particles")
    for axis in axes[1:]:
        axis.imshow(labelled[10], cmap="Greys", vmin=0, vmax=3)
        style.bare(axis)
    for line in _paths(labelled):
        axes[1].plot(line[:, 2], line[:, 1], color=style.BLUE, lw=0.9, marker=".", ms=2.5)
    centres = find_centres(labelled, BANDWIDTH)
    axes[2].plot(centres[:, 2], centres[:, 1], "*", color=style.RED, ms=12, label="found")
    true = np.array(BALLS)
    axes[2].plot(true[:, 2], true[:, 1], "+", color="black", ms=9, label="true")
    axes[2].legend(loc="upper right")
    style.write(figure, path)


def balls() -> Any:
    """Return balls that touch (bool zyx)."""
    grid = np.stack(np.indices(SHAPE), axis=-1)
    return np.any([np.square(grid - ball).sum(axis=-1) <= RADIUS**2 for ball in BALLS], axis=0)


def _paths(labelled: Any) -> list[Any]:
    """Return the places of each path that starts near the middle slice, zyx."""
    (block,) = Grid(SHAPE, SHAPE)
    starts = start_paths(labelled, block, BANDWIDTH)
    starts = starts[np.abs(starts["z"] - 10) <= BANDWIDTH / 2]
    rows = RowSums.of(labelled, Box.whole(SHAPE))
    here = np.stack([starts[name] for name in "zyx"], axis=1)
    places = [here]
    for _ in range(30):
        sums, counts = rows.of_balls(here, BANDWIDTH)
        here = sums / np.maximum(counts, 1)[:, None]
        places.append(here)
    return list(np.stack(places, axis=1))
