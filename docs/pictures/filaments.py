"""A mask of tubes becomes a skeleton, ordered lines, and oriented picks at equal distances."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import style
from scipy.spatial import cKDTree

from deepict_dask.core.geometry import Grid
from deepict_dask.filaments import SkeletonReduction, centrelines, filament_table
from deepict_dask.filaments.graph import decode
from deepict_dask.filaments.orientation import direction_of
from deepict_dask.filaments.settings import VoxelLengths

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

SHAPE = (40, 100, 150)
LENGTHS = VoxelLengths(step=8.0, radius=6, hole=8, min_length=20.0, max_gap=20.0, smoothing=30.0)


def draw(path: Path) -> None:
    """Draw mask, skeleton and picks, all seen along z."""
    mask = _tubes()
    op = SkeletonReduction(mask.shape, LENGTHS)
    whole = None
    for block in Grid(SHAPE, (40, 50, 50), halo=LENGTHS.halo):
        part = op.measure(block, mask[block.read.slices])
        whole = part if whole is None else op.combine(whole, part)
    assert whole is not None
    skeleton = decode(op.finalize(whole).voxels, SHAPE)
    found = centrelines(whole.voxels, SHAPE, LENGTHS)
    table = filament_table(found, LENGTHS.step, voxel_spacing_angstrom=10.0)
    figure, axes = style.panels(
        ["mask, with a gap and a crossing", "skeleton, in 6 chunks", "centrelines and picks"],
        height=2.7,
    )
    for axis in axes:
        axis.imshow(mask.any(axis=0), cmap="Greys", vmin=0, vmax=4)
        style.bare(axis)
    style.chunk_lines(axes[1], SHAPE[1:], (50, 50))
    axes[1].plot(skeleton[:, 2], skeleton[:, 1], ".", color=style.BLUE, ms=1.6)
    _picks(axes[2], found, table)
    style.write(figure, path)


def _picks(axis: Any, found: Any, table: Any) -> None:
    """Draw curves, and an arrow at each pick."""
    for filament, colour in zip(found, (style.RED, style.GREEN, style.PURPLE), strict=False):
        points = filament.curve.points
        axis.plot(points[:, 2], points[:, 1], color=colour, lw=1.2)
    way = direction_of(table[["rot_degrees", "tilt_degrees", "psi_degrees"]].to_numpy())
    axis.quiver(
        table["x"], table["y"], way[:, 2], -way[:, 1],
        color="black", scale=26, width=0.006, zorder=3,
    )  # fmt: skip
    axis.set_xlabel(f"{len(found)} filaments, {len(table)} picks")


def _tubes() -> Any:
    """Return a bent tube with a gap, and a straight one that crosses it (bool zyx)."""
    x = np.linspace(8, 142, 600)
    bent = np.stack([20 + 0 * x, 50 + 25 * np.sin(x / 32), x], axis=1)
    bent = bent[(x < 108) | (x > 116)]
    straight = np.stack(
        [np.linspace(12, 28, 400), np.linspace(8, 92, 400), 0 * x[:400] + 78], axis=1
    )
    grid = np.stack(np.indices(SHAPE), axis=-1).reshape(-1, 3)
    distance, _ = cKDTree(np.concatenate([bent, straight])).query(grid, distance_upper_bound=9)
    return (distance <= 4).reshape(SHAPE)
