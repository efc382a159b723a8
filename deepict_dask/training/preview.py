"""What would be trained on, as a table and a picture, before any training.

Above in the picture: of each tomogram the slice with the most labels, smoothed so that an eye sees
something, without and with the outlines of the classes, held-out parts framed. Below: middle slices
of patches of the first batches, changed by the augmentation, smoothed, and as the network will see
them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.geometry import Box

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .data import TrainingData
    from .opening import TrainingTomogram
    from .sampling import Part

__all__ = ["counts_text", "write_preview"]

Array = np.ndarray[Any, Any]
_MOST_TOMOGRAMS = 4
_MOST_PIXELS = 600
_INCHES = 4.0
_COLOURS = ("#ffd500", "#00e0ff", "#ff5ccd", "#7dff3a", "#ff7a1a", "#b48cff")
"""Seen on grey."""
_SLICES_LOOKED_AT = 16
_COLUMNS = 4
_SMOOTHING_VOXELS = 2.0
_SLAB = 5
"""Slices on either side that smoothing needs."""


def counts_text(data: TrainingData) -> str:
    """Return the counts of `TrainingData.counts` as lines of text, with a line on the patches."""
    table = data.counts()
    table["fraction"] = table["fraction"].map(lambda part: f"{100 * part:.2f} %")
    lines = table.to_string(index=False, na_rep="-").splitlines()
    settings, size = data.config.patches, " x ".join(map(str, data.patch_shape))
    kept = data.sampler.n_grid_patches
    said = f"patches of {size} voxels (zyx), sampling {settings.sampling}"
    if kept:
        said += f", of which the grid keeps {kept}"
    return "\n".join([*lines, "", f"{said}; {data.n_validation_patches} for validation"])


def write_preview(data: TrainingData, path: Path, *, n_patches: int = 4) -> None:
    """Write a picture of the tomograms and of some patches.

    Parameters
    ----------
    data
        What `deepict_dask.training.data.open_training_data` returned.
    path
        A ``.png``, which is replaced.
    n_patches
        Patches shown, from the first batches.
    """
    from matplotlib.figure import Figure

    shown = _shown_slices(data)
    panels: list[Callable[[Axes], None]] = []
    for parts, z in shown:
        panels += _tomogram_panels(data, parts, z)
    panels += [_nothing] * (-len(panels) % _COLUMNS)
    patches = _first_patches(data, n_patches)
    for title, smooth in (("smoothed", True), ("as the network sees it", False)):
        panels += [_patch_panel(data, pair, f"patch {n}, {title}", smooth=smooth)
                   for n, pair in enumerate(patches)]  # fmt: skip
        panels += [_nothing] * (-len(panels) % _COLUMNS)
    n_rows = len(panels) // _COLUMNS
    figure = Figure(figsize=(_INCHES * _COLUMNS, _INCHES * n_rows), layout="constrained")
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(n_rows, _COLUMNS, number + 1)
        axes.set_axis_off()
        panel(axes)
    _legend(figure, data)
    figure.savefig(path, dpi=100)


def _nothing(axes: Axes) -> None:
    """Leave a panel empty."""
    del axes


def _shown_slices(data: TrainingData) -> list[tuple[list[Part], int]]:
    """Return parts of the first tomograms and a slice of each; of the last two, to fill a row."""
    by_name: dict[str, list[Part]] = {}
    for part in (*data.training, *data.validation):
        by_name.setdefault(part.tomogram.name, []).append(part)
    parts = list(by_name.values())[:_MOST_TOMOGRAMS]
    best = [_fullest_slices(one[0].tomogram) for one in parts]
    shown = [(one, slices[0]) for one, slices in zip(parts, best, strict=True)]
    if len(shown) % 2 and len(best[-1]) > 1:
        shown.append((parts[-1], best[-1][1]))
    return shown


def _fullest_slices(tomogram: TrainingTomogram) -> list[int]:
    """Return the slice with the most labels, and that with the most of those apart from it."""
    nz, ny, nx = tomogram.shape
    every = max(1, nz // _SLICES_LOOKED_AT)
    labelled = {
        z: int(np.count_nonzero(
            tomogram.targets.read(Box((z, 0, 0), (z + 1, ny, nx)))[:, 0].any(axis=0)
        ))
        for z in range(nz // (2 * _SLICES_LOOKED_AT), nz, every)
    }  # fmt: skip
    first = max(labelled, key=lambda z: labelled[z])
    apart = [z for z in labelled if abs(z - first) > 2 * every]
    apart = apart or [z for z in labelled if z != first]
    return [first, *sorted(apart, key=lambda z: -labelled[z])[:1]]


def _first_patches(data: TrainingData, number: int) -> list[tuple[Array, Array]]:
    """Return patches (z, y, x) and targets (classes, z, y, x)."""
    found: list[tuple[Array, Array]] = []
    step = 0
    while len(found) < number:
        images, targets = data.batch(step)
        pairs = zip(images, targets, strict=True)
        found += [(image[0], target) for image, target in pairs]
        step += 1
    return found[:number]


def _tomogram_panels(data: TrainingData, parts: list[Part], z: int) -> list[Callable[[Axes], None]]:
    """Return what draws a slice without and with its classes; of a large one every k-th voxel."""
    tomogram = parts[0].tomogram
    _, ny, nx = tomogram.shape
    step = max(1, max(ny, nx) // _MOST_PIXELS)
    target = tomogram.targets.read(Box((z, 0, 0), (z + 1, ny, nx)))[:, 0, ::step, ::step]
    smooth = _smoothed(tomogram, z)[::step, ::step]
    edge = tomogram.voxel_spacing_angstrom * step

    def plain(axes: Axes) -> None:
        _draw(axes, smooth, None, f"{tomogram.name}, slice z = {z}, smoothed", edge)

    def labelled(axes: Axes) -> None:
        held_out = [part for part in parts if part in data.validation]
        title = "what is to be learned" + ("; framed: held out" if held_out else "")
        _draw(axes, smooth, target, title, edge)
        for part in held_out:
            _frame(axes, part.box, step)

    return [plain, labelled]


def _patch_panel(
    data: TrainingData, patch: tuple[Array, Array], title: str, *, smooth: bool
) -> Callable[[Axes], None]:
    """Return what draws the middle slice of a patch."""
    from scipy.ndimage import gaussian_filter

    image, target = patch
    middle = len(image) // 2
    if smooth:
        image = gaussian_filter(image, _SMOOTHING_VOXELS, truncate=2.5)

    def draw(axes: Axes) -> None:
        _draw(axes, image[middle], target[:, middle], title, data.voxel_spacing_angstrom)

    return draw


def _smoothed(tomogram: TrainingTomogram, z: int) -> Array:
    """Return a slice of the tomogram, low-passed in three dimensions."""
    from scipy.ndimage import gaussian_filter

    nz, ny, nx = tomogram.shape
    low, high = max(0, z - _SLAB), min(nz, z + _SLAB + 1)
    slab = tomogram.voxels.read(Box((low, 0, 0), (high, ny, nx)))
    found: Array = gaussian_filter(slab, _SMOOTHING_VOXELS, truncate=2.5)[z - low]
    return found


def _frame(axes: Axes, box: Box, step: int) -> None:
    from matplotlib.patches import Rectangle

    (_, y, x), (_, height, width) = box.start, box.shape
    corner = x / step - 0.5, y / step - 0.5
    axes.add_patch(
        Rectangle(corner, width / step, height / step, fill=False, edgecolor="white", lw=2)
    )


def _draw(axes: Axes, image: Array, target: Array | None, title: str, edge: float) -> None:
    """Draw a slice, the outlines of its classes and a scale bar; ``edge`` of a pixel is in Å."""
    low, high = np.percentile(image, [1, 99])
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    for number, labels in enumerate(() if target is None else target):
        if labels.any():
            framed = np.pad(labels > 0, 1).astype(np.float32)  # so that outlines close at the rim
            places = [np.arange(-1, n + 1) for n in labels.shape[::-1]]
            axes.contour(*places, framed, levels=[0.5], colors=[_colour(number)], linewidths=1.5)
    axes.set_xlim(-0.5, image.shape[1] - 0.5)
    axes.set_ylim(image.shape[0] - 0.5, -0.5)
    axes.set_title(title, fontsize=11)
    _scale_bar(axes, image.shape, edge)


def _scale_bar(axes: Axes, shape: tuple[int, ...], edge: float) -> None:
    """Draw a bar of a round length of at most a third of the width."""
    from matplotlib.patheffects import withStroke

    length = round_length(shape[1] * edge / 10 / 3)
    if length <= 0:
        return
    width, margin = length * 10 / edge, 0.04 * shape[1]
    y = shape[0] - 0.5 - 0.05 * shape[0]
    dark = [withStroke(linewidth=5, foreground="black")]
    axes.plot([margin, margin + width], [y, y], color="white", lw=3, path_effects=dark)
    axes.text(
        margin + width / 2, y - 0.02 * shape[0], f"{length:g} nm", color="white", fontsize=10,
        ha="center", va="bottom", path_effects=[withStroke(linewidth=3, foreground="black")],
    )  # fmt: skip


def round_length(most: float) -> float:
    """Return the largest of 1, 2 and 5 times a power of ten that is not above a length.

    Examples
    --------
    >>> [round_length(most) for most in (1.0, 49, 51, 0.3)]
    [1.0, 20.0, 50.0, 0.2]
    >>> round_length(0)
    0.0
    """
    if most <= 0:
        return 0.0
    power = 10.0 ** np.floor(np.log10(most))
    return float(max(factor for factor in (1, 2, 5) if factor * power <= most) * power)


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _legend(figure: Figure, data: TrainingData) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=_colour(number), lw=3, label=name)
        for number, name in enumerate(data.class_names)
    ]
    legend = figure.legend(
        handles=handles, loc="outside lower center", ncols=min(6, len(handles)), fontsize=12
    )
    legend.get_frame().set_facecolor("#606060")
    for text in legend.get_texts():
        text.set_color("white")
