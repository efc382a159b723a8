"""Labels of four chunks become those of the volume: faces are compared, names handed down."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import style
import xarray as xr
from scipy.ndimage import gaussian_filter

from deepict_dask import label
from deepict_dask.core.geometry import Grid
from deepict_dask.labelling import LabelReduction, SelectSettings

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

SHAPE = (1, 36, 48)
CHUNK = (1, 18, 24)
THRESHOLD = 0.22


def draw(path: Path) -> None:
    """Draw labels of each chunk alone, what two joined chunks remember, and the final labels."""
    noise = np.random.default_rng(5).normal(size=SHAPE)
    score = gaussian_filter(noise, (0, 2.2, 2.2), mode="wrap")
    score = (score / np.abs(score).max()).astype("float32")
    grid = Grid(SHAPE, CHUNK)
    data = xr.DataArray(score, dims=("z", "y", "x"))
    alone = np.zeros(SHAPE, int)
    for block in grid:
        alone[block.write.slices] = label(data[block.write.slices], threshold=THRESHOLD).values
    reduction = LabelReduction(SHAPE, SelectSettings(threshold=THRESHOLD))
    nodes = [reduction.measure(block, score[block.read.slices]) for block in grid]
    joined = reduction.combine(nodes[0], nodes[1])
    final = label(data.chunk(y=CHUNK[1], x=CHUNK[2]), threshold=THRESHOLD).values
    figure, axes = style.panels(
        ["1. each chunk for itself", "2. what the upper two remember", "3. the volume's labels"],
        height=3.0,
    )
    for axis, labels in zip(axes, (alone, _faces(joined), final), strict=True):
        style.numbers(axis, labels[0])
        style.chunk_lines(axis, SHAPE[1:], CHUNK[1:])
    for axis, labels in zip(axes[::2], (alone, final), strict=True):
        _name(axis, labels[0], CHUNK[1:] if labels is alone else SHAPE[1:])
    finished = joined.n_finished
    axes[1].set_xlabel(
        f"one face; rows of {len(joined.open_rows)} open clusters; {finished} finished"
    )
    style.write(figure, path)


def _faces(node: Any) -> Any:
    """Return the labels that a node still holds, where they lie."""
    held = np.zeros(SHAPE, int)
    (_, y0, x0), (_, y1, x1) = node.box.start, node.box.stop
    held[:, y1 - 1, x0:x1] = node.faces[1, 1]
    assert set(node.faces) == {(1, 1)}
    assert y0 == 0
    return held


def _name(axis: Any, labels: Any, chunk: tuple[int, int]) -> None:
    """Write each label at its middle, chunk by chunk."""
    for y0 in range(0, labels.shape[0], chunk[0]):
        for x0 in range(0, labels.shape[1], chunk[1]):
            part = labels[y0 : y0 + chunk[0], x0 : x0 + chunk[1]]
            for number in np.unique(part[part > 0]):
                places = np.argwhere(part == number)
                y, x = places[np.abs(places - places.mean(axis=0)).sum(axis=1).argmin()]
                axis.text(
                    x0 + x, y0 + y, str(number), ha="center", va="center", fontsize=8, weight="bold"
                )
