"""The mean of a network's scores over mirror images of a volume: test-time augmentation.

Noise and missing wedge of a tilt series about y are as they were when a volume is mirrored along z,
y or x, so a network is asked eight times about the same voxels, and errs less on the average.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from ..core.geometry import Box, as_vec

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from ..core.geometry import Vec

__all__ = ["FLIPS", "add_mean_over_flips", "mirrored_box"]

FLIPS = tuple(axes for n in range(4) for axes in itertools.combinations(range(3), n))
"""Axes of each of the eight mirror images, the first of which is the volume itself."""


def add_mean_over_flips(
    scores_of: Callable[[torch.Tensor, Box], torch.Tensor],
    window: torch.Tensor,
    wanted: Box,
    out: torch.Tensor,
) -> None:
    """Write the mean over the eight mirror images of a window, each turned back.

    Parameters
    ----------
    scores_of
        Returns the scores (czyx) of a box of a window; called once for each mirror image.
    window
        zyx.
    wanted
        Voxels of the window.
    out
        float32 czyx of the box, zeros; may be on another device.

    Examples
    --------
    >>> import torch
    >>> def first_plane(window, box):  # 1 in the first plane of what it is given
    ...     scores = torch.zeros(window.shape)
    ...     scores[0] = 1
    ...     return scores[box.slices][None]
    >>> out = torch.zeros(1, 3, 1, 1)
    >>> add_mean_over_flips(first_plane, torch.zeros(3, 1, 1), Box((0, 0, 0), (3, 1, 1)), out)
    >>> out.ravel().tolist()
    [0.5, 0.0, 0.5]
    """
    for axes in FLIPS:
        part = scores_of(window.flip(axes), mirrored_box(wanted, as_vec(window.shape), axes))
        out += part.flip([axis + 1 for axis in axes]).to(out.device)
    out /= len(FLIPS)


def mirrored_box(box: Box, shape: Vec, axes: tuple[int, ...]) -> Box:
    """Return where a box of a window lies once the window is flipped.

    Examples
    --------
    >>> mirrored_box(Box((1, 2, 3), (4, 4, 4)), (8, 8, 8), (0, 2))
    Box(start=(4, 2, 4), stop=(7, 4, 5))
    """
    ends = [
        (n - b, n - a) if axis in axes else (a, b)
        for axis, (a, b, n) in enumerate(zip(box.start, box.stop, shape, strict=True))
    ]
    return Box(as_vec([a for a, _ in ends]), as_vec([b for _, b in ends]))
