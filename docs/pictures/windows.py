"""Why windows have a halo: what the bundled network answers in pieces, with and without one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import style
import xarray as xr
from matplotlib.patches import Rectangle

from deepict_dask import segment
from deepict_dask.core.geometry import Grid
from deepict_dask.models.registry import bundled_models, loaded_model
from deepict_dask.synthetic import CellSettings, make_cell

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

MODEL = "demo_ribosome_fas"
SHAPE = (32, 224, 224)
CHUNK = (32, 112, 112)
_LEAST = 1e-8


def draw(path: Path) -> None:
    """Draw the windows, and how far pieces differ from the whole."""
    cell = make_cell(CellSettings(SHAPE, n_ribosomes=36, n_fas=12, n_distractors_each=6, seed=3))
    tomogram = xr.DataArray(cell.tomogram, dims=("z", "y", "x"))
    whole = segment(tomogram.chunk(z=32, y=224, x=224), MODEL, class_name="ribosome").values
    exact = segment(tomogram.chunk(z=32, y=112, x=112), MODEL, class_name="ribosome").values
    cut = np.empty_like(whole)
    for block in Grid(SHAPE, CHUNK):
        where = block.write.slices
        cut[where] = _alone(cell.tomogram, where)
    figure, axes = style.panels(
        ["read (dashed) and written (filled)", "without halo: difference", "with halo: none"],
        height=3.6, widths=(1, 1.2, 1.2),
    )  # fmt: skip
    _windows(axes[0])
    for axis, scores in zip(axes[1:], (cut, exact), strict=True):
        difference = np.log10(np.abs(scores - whole)[16] + _LEAST)
        image = axis.imshow(difference, cmap="magma", vmin=-8, vmax=0)
        style.bare(axis)
        bar = figure.colorbar(image, ax=axis, shrink=0.85)
        bar.set_ticks([-8, -6, -4, -2, 0], labels=["none", "1e-6", "1e-4", "0.01", "1"])
    style.write(figure, path)


def _alone(volume: Any, where: tuple[slice, slice, slice]) -> Any:
    """Return scores of a piece for which the volume beyond its borders is not there."""
    from deepict_dask.segmentation.windows import normalise, predict_window

    network = loaded_model(bundled_models()[MODEL]).network
    piece = normalise(volume[where], float(volume.mean()), float(volume.std()))
    return predict_window(network, piece)[0]


def _windows(axis: Any) -> None:
    halo = loaded_model(bundled_models()[MODEL]).network.settings.halo
    grid = Grid((1, 480, 480), (1, 120, 120), halo=(0, halo, halo))
    for block in grid:
        (_, y, x), (_, height, width) = block.write.start, block.write.shape
        axis.add_patch(Rectangle((x, y), width, height, fill=False, ec=style.GREY, lw=0.8))
    for number, colour in ((0, style.ORANGE), (6, style.BLUE)):
        block = grid[number]
        for box, look in (
            (block.write, {"fc": colour, "alpha": 0.6}),
            (block.read, {"fc": "none", "ec": colour, "ls": "--", "lw": 2}),
        ):
            (_, y, x), (_, height, width) = box.start, box.shape
            axis.add_patch(Rectangle((x, y), width, height, **look))
    axis.set(xlim=(-12, 492), ylim=(492, -12), aspect="equal")
    axis.set_xlabel(f"halo of this network: {halo} voxels")
    style.bare(axis)
