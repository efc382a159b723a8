"""How the pictures look: dark marks on white, colours that the colour-blind can tell apart."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap
from PIL import Image
from scipy.ndimage import gaussian_filter

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = (
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#888888",
)  # fmt: skip


def panels(
    titles: Sequence[str], *, height: float = 3.7, widths: Sequence[float] | None = None
) -> tuple[Any, list[Any]]:
    """Return a figure of 10 inches with a row of panels under their titles."""
    with mpl.rc_context({"font.size": 9, "axes.titlesize": 9.5, "figure.facecolor": "white"}):
        figure, axes = plt.subplots(
            1, len(titles), figsize=(10, height), width_ratios=widths, layout="constrained"
        )
        for axis, title in zip(axes, titles, strict=True):
            axis.set_title(title)
    return figure, list(axes)


def bare(axis: Any) -> None:
    """Take the ticks of a picture away."""
    axis.set_xticks([])
    axis.set_yticks([])


def grey(axis: Any, image: Any) -> None:
    """Draw a slice, cut at the 0.5th and 99.5th percentile."""
    low, high = np.percentile(image, (0.5, 99.5))
    axis.imshow(image, cmap="gray", vmin=low, vmax=high)
    bare(axis)


def smoothed(volume: Any) -> Any:
    """Return a volume for the eye, in which noise is weaker."""
    return gaussian_filter(volume, (3.0, 1.5, 1.5))


def numbers(axis: Any, labels: Any) -> None:
    """Draw a slice of labels, each number in a colour of its own, 0 white."""
    colours = [mpl.colormaps["tab20"](i % 20) for i in range(int(labels.max()))]
    axis.imshow(
        labels, cmap=ListedColormap(["white", *colours]), vmin=-0.5, vmax=labels.max() + 0.5
    )
    bare(axis)


def chunk_lines(axis: Any, shape: Sequence[int], step: Sequence[int]) -> None:
    """Draw the borders of chunks over a slice."""
    for y in range(step[0], shape[0], step[0]):
        axis.axhline(y - 0.5, color="black", lw=1.4)
    for x in range(step[1], shape[1], step[1]):
        axis.axvline(x - 0.5, color="black", lw=1.4)


def write(figure: Any, path: Path) -> None:
    """Write a figure as a small PNG, without dates or versions in it."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110, format="png")
    plt.close(figure)
    Image.open(drawn).convert("RGB").quantize(256).save(path, optimize=True)
