"""Repeated means turn blobs of one size into hills; their tops are picks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import style
from mean_shift import BALLS, balls

from deepict_dask.particles.mean_pool_nms import (
    PEAK_DTYPE,
    MeanPoolSettings,
    find_peaks,
    keep_highest,
    mean_pool,
)

if TYPE_CHECKING:
    from pathlib import Path

DIAMETER = 17


def draw(path: Path) -> None:
    """Draw the mask, its means, and the picks."""
    mask = balls()
    settings = MeanPoolSettings.of_diameters([DIAMETER])
    once, means = mean_pool(mask, 1), mean_pool(mask, settings.n_pools)
    tops = np.argwhere(find_peaks(means, settings.floor))
    rows = np.zeros(len(tops), PEAK_DTYPE)
    rows["z"], rows["y"], rows["x"] = tops.T
    rows["value"] = means[tuple(tops.T)]
    picks = keep_highest(rows, settings.min_distance)
    figure, axes = style.panels(
        [
            "voxels above the threshold",
            "one mean over 5 x 5 x 5",
            f"{settings.n_pools} means, picks",
        ],
        height=2.7,
    )
    for axis, values in zip(axes, (mask, once, means), strict=True):
        axis.imshow(values[10], cmap="viridis")
        style.bare(axis)
    axes[2].plot(picks["x"], picks["y"], "*", color="#ff3b00", mec="white", ms=13, label="found")
    true = np.array(BALLS)
    axes[2].plot(true[:, 2], true[:, 1], "+", color="black", ms=9, label="true")
    axes[2].legend(loc="upper right")
    style.write(figure, path)
