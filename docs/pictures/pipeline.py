"""A slice of a synthetic cell, the network's answer, and picks on the truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import style
import xarray as xr

from deepict_dask import pick, segment
from deepict_dask.synthetic import CellSettings, make_cell

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = (64, 192, 192)
Z = 32
NEAR = 8
LIMITS = {"threshold": 0.9, "min_size": 400, "max_size": 3000}


def draw(path: Path) -> None:
    """Draw tomogram, scores and picks."""
    cell = make_cell(CellSettings(SHAPE, n_ribosomes=60, n_fas=20, n_distractors_each=12, seed=11))
    tomogram = xr.DataArray(
        cell.tomogram, dims=("z", "y", "x"), attrs={"voxel_spacing_angstrom": 13.48}
    )
    score = segment(
        tomogram.chunk(z=64, y=96, x=96), "demo_ribosome_fas", class_name="ribosome"
    ).compute()
    found = pick(score.chunk(z=64, y=96, x=96), **LIMITS).compute()
    true = cell.picks[cell.picks["class_name"] == "ribosome"]
    figure, axes = style.panels(["tomogram, smoothed", "scores for ribosomes", "picks"], height=3.6)
    style.grey(axes[0], style.smoothed(cell.tomogram)[Z])
    axes[1].imshow(score.values[Z], cmap="viridis", vmin=0, vmax=1)
    style.bare(axes[1])
    style.grey(axes[2], style.smoothed(cell.tomogram)[Z])
    near = found[np.abs(found["z"] - Z) <= NEAR]
    axes[2].plot(near["x"], near["y"], "o", mfc="none", mec=style.ORANGE, mew=2, ms=14)
    near = true[np.abs(true["z"] - Z) <= NEAR]
    axes[2].plot(near["x"], near["y"], "x", color="#56d4ff", ms=6, mew=2)
    style.write(figure, path)
