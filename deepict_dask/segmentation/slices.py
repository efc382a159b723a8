"""Apply a 2D network to a volume of any size, slice by slice, exactly.

What is the exact result? The whole volume is normalised; every slice is padded at its far end in y
and x to a multiple of 2**depth (by reflection, or by repeating the last voxel where an axis is too
short to reflect), and the network is applied to it once. Windows give the same numbers to 1e-5:

1. in y and x a window holds every voxel that its write box depends on, and starts on a multiple of
   2**depth, as in `windows`; in z a slice depends on itself alone;
2. smoothing along z, if asked for, is done in the same task: a window then has a halo in z too, and
   predicts those slices; the sums are those of the whole volume (see `smoothing`).

Which windows? Slabs of whole slices repeat no voxel in y and x, but the halo in z; columns through
all of z the other way round; blocks are in between. `choose_slice_window` takes what needs the
fewest network voxels within the budget, so a thin tomogram is done in one pass over its slices.

However large a window is, its slices go through the network a few at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..core.errors import BudgetError
from ..core.geometry import Grid, ceil_to
from ..core.ops import ChunkOp
from ..models.inference2d import InferenceUNet2D, network_bytes_2d
from ..models.registry import inference_network_2d, loaded_unet2d
from ..models.unet2d import UNet2D, UNet2DSettings
from .smoothing import check_smoothing, gaussian_reach, smooth_along_z, voxels_above
from .window_choice import whole_chunk_shapes
from .windows import chosen_class, normalise

if TYPE_CHECKING:
    from ..core.geometry import Block, Vec
    from ..models.registry import PinnedModel

__all__ = [
    "SliceGrid",
    "SliceSegmentOp",
    "choose_slice_window",
    "fixed_bytes_2d",
    "pad_slices",
    "predict_slices",
    "slices_at_once",
]

Array = np.ndarray[Any, Any]

FIXED_BYTES = 290 << 20
"""Resident bytes after torch, a small model and a few small slices (measured: 255-276 MiB)."""
BATCH_BYTES = 128 << 20
"""Slices go through the network together up to this; one alone may need more."""
MOST_FOR_SHARING = 1.5
"""Work, as a multiple of the least, that may be done to keep several workers busy."""


class SliceGrid(Grid):
    """A grid whose alignment, and whose windows of one shape, are of y and x only.

    A slice depends on no other, so along z a window starts and stops where the halo does.

    Examples
    --------
    >>> grid = SliceGrid((50, 480, 480), (20, 480, 240), halo=(3, 112, 112), align=16)
    >>> grid[1].read, grid[2].read
    (Box(start=(0, 0, 128), stop=(23, 480, 480)), Box(start=(17, 0, 0), stop=(43, 480, 352)))
    >>> grid.window_shape
    (26, 480, 352)
    """

    def _needed(self, axis: int, i: int) -> tuple[int, int]:
        if axis > 0:
            return super()._needed(axis, i)
        size, step, halo = self.shape[0], self.write_shape[0], self.halo[0]
        return max(0, i * step - halo), min(size, (i + 1) * step + halo)

    def _axis(self, axis: int, i: int) -> tuple[int, int, int, int]:
        if axis > 0:
            return super()._axis(axis, i)
        size, step = self.shape[0], self.write_shape[0]
        return i * step, min(size, (i + 1) * step), *self._needed(0, i)


def pad_slices(slices: Array, align: int) -> Array:
    """Return slices whose y and x are multiples of ``align``; themselves where they already are.

    Parameters
    ----------
    slices
        zyx. New voxels at the far ends mirror the last ones (without repeating the last); an axis
        too short for that repeats its last voxel.
    align
        2**depth of the network.

    Examples
    --------
    >>> pad_slices(np.array([[[1, 2, 3, 4, 5, 6]]]), 4).tolist()[0][3]
    [1, 2, 3, 4, 5, 6, 5, 4]
    """
    for axis in (1, 2):
        n = slices.shape[axis]
        extra = -n % align
        if extra:
            widths = [(0, extra if a == axis else 0) for a in range(3)]
            slices = np.pad(slices, widths, mode="reflect" if extra < n else "edge")
    return slices


def predict_slices(network: UNet2D | InferenceUNet2D, slices: Array) -> Array:
    """Return the scores of a few normalised slices.

    Parameters
    ----------
    network
        In eval mode. Pass an `InferenceUNet2D` where many slices follow.
    slices
        float32 zyx, normalised, of any shape; all of them are held at once.

    Returns
    -------
    numpy.ndarray
        float32 czyx scores, 0..1, of the slices' shape.

    Examples
    --------
    >>> network = UNet2D(UNet2DSettings(depth=1, initial_features=2, n_classes=3)).eval()
    >>> predict_slices(network, np.zeros((5, 6, 7), dtype="float32")).shape
    (3, 5, 6, 7)
    """
    arranged = InferenceUNet2D(network) if isinstance(network, UNet2D) else network
    _, y, x = slices.shape
    padded = pad_slices(slices, arranged.settings.align)
    on_device = torch.from_numpy(np.ascontiguousarray(padded)).to(arranged.device)
    scores: Array = arranged.scores(on_device).cpu().numpy()
    return np.moveaxis(scores, 1, 0)[..., :y, :x]


def slices_at_once(settings: UNet2DSettings, height: int, width: int) -> int:
    """Return how many slices (or tiles) of a size go through the network together.

    Examples
    --------
    >>> slices_at_once(UNet2DSettings(depth=4, initial_features=16), 4096, 4096)
    1
    """
    return max(1, BATCH_BYTES // network_bytes_2d(settings, 1, height, width))


def fixed_bytes_2d(settings: UNet2DSettings) -> int:
    """Return the resident bytes of a process before its first window: torch, and the weights."""
    shapes = UNet2D.state_shapes(settings).values()
    # as loaded, and arranged for prediction with up to four times as many numbers
    return FIXED_BYTES + 5 * 4 * sum(math.prod(shape) for shape in shapes)


@dataclass(frozen=True)
class SliceSegmentOp(ChunkOp):
    """A 2D network's scores of a tomogram; optionally smoothed along z, and cut at a threshold.

    The one source is the tomogram. The result is zyx for one class, czyx for all: float32 scores,
    or a uint8 mask with a threshold. Use a `SliceGrid`.

    Raises
    ------
    ConfigError
        ``z_sigma`` is negative, or a number is not finite.

    Examples
    --------
    >>> op = SliceSegmentOp("cytosol.h5", mean=0.0, std=1.0, class_index=0, threshold=0.5)
    >>> op.name, op.dtype, op.z_reach
    ('segment', 'uint8', 0)
    """

    model_path: str | PinnedModel
    mean: float
    """Of the whole tomogram."""
    std: float
    """Of the whole tomogram."""
    class_index: int | None = None
    """Channel to return; all of them for None."""
    device: str = "cpu"
    """"cpu", "cuda" or "cuda:N"; must be there."""
    z_sigma: float = 0.0
    """Standard deviation, in voxels, of a Gaussian along z over the scores."""
    threshold: float | None = None
    """Return 1 where the (smoothed) score is above this; None and 0 return scores."""
    source_dtype: str = "float32"
    """NumPy name of the windows' type; only ``bytes_needed`` depends on it."""
    name: str = "segment"

    def __post_init__(self) -> None:
        check_smoothing(self.z_sigma, self.threshold)

    @property
    def dtype(self) -> str:  # type: ignore[override]
        """uint8 for a mask, float32 for scores."""
        return "uint8" if self.threshold else "float32"

    @property
    def settings(self) -> UNet2DSettings:
        """The network's architecture; loads the model on first use."""
        return loaded_unet2d(self.model_path).settings

    @property
    def z_reach(self) -> int:
        """Slices that smoothing needs on either side."""
        return gaussian_reach(self.z_sigma)

    @property
    def halo(self) -> Vec:
        """Voxels a window needs on every side, derived from the kernel and the network."""
        in_slice = self.settings.halo
        return (self.z_reach, in_slice, in_slice)

    @property
    def align(self) -> int:
        """Windows start on multiples of this in y and x."""
        return self.settings.align

    def apply(self, block: Block, *windows: Any) -> Array:
        """Return the result over ``block.read``; smoothed over ``block.write`` only."""
        scores = self._scores(windows[0])
        _, rows, columns = block.write.slices_in(block.read)
        smooth_along_z(scores[..., rows, columns], self.z_sigma)
        result = voxels_above(scores, self.threshold)
        return result if self.class_index is None else result[0]

    def _scores(self, window: Array) -> Array:
        """Return the scores of all slices of a window, with an axis of channels."""
        network = inference_network_2d(self.model_path, self.device)
        n_slices, height, width = window.shape
        scores = np.empty((self._n_kept, *window.shape), dtype=np.float32)
        step = slices_at_once(self.settings, height, width)
        for z in range(0, n_slices, step):
            part = normalise(window[z : z + step], self.mean, self.std)
            scores[:, z : z + step] = chosen_class(predict_slices(network, part), self.class_index)
        return scores

    @property
    def _n_kept(self) -> int:
        return self.settings.n_classes if self.class_index is None else 1

    def bytes_needed(self, window_shape: Vec) -> int:
        """Return the peak bytes of one window: as read, its scores and mask, a batch's network."""
        n = math.prod(window_shape)
        mask = 1 if self.threshold else 0
        per_voxel = np.dtype(self.source_dtype).itemsize + self._n_kept * (4 + mask)
        return n * per_voxel + self._batch_bytes(window_shape)

    def _batch_bytes(self, window_shape: Vec) -> int:
        """Return the bytes of the slices at once: normalised, padded, and in the network."""
        n_slices, *sides = window_shape
        height, width = (ceil_to(side, self.align) for side in sides)
        n = min(n_slices, slices_at_once(self.settings, height, width))
        return 2 * 4 * n * height * width + network_bytes_2d(self.settings, n, height, width)

    @property
    def fixed_bytes(self) -> int:
        """Resident bytes of a process before its first window."""
        return fixed_bytes_2d(self.settings)


def choose_slice_window(
    shape: Vec, chunk_shape: Vec, op: SliceSegmentOp, budget_bytes: int, *, n_workers: int = 1
) -> SliceGrid:
    """Return the grid that needs the least work within a budget.

    Parameters
    ----------
    shape
        Voxels of the volume, zyx.
    chunk_shape
        Chunk (or shard) of the output's store; blocks write whole ones.
    op
        What will be computed.
    budget_bytes
        Bytes one task may hold.
    n_workers
        Who share the work: what they need together is counted in rounds of this many blocks. To
        feed all of them may cost half as much again as the least, not more.

    Returns
    -------
    SliceGrid
        Of columns, slabs or blocks; windows have one shape in y and x.

    Raises
    ------
    BudgetError
        Not even one chunk fits.
    """
    grids = [
        SliceGrid(shape, write_shape, op.halo, op.align, one_shape=True)
        for write_shape in whole_chunk_shapes(shape, chunk_shape)
    ]
    fitting = [
        (_network_voxels(grid), grid)
        for grid in grids
        if op.bytes_needed(grid.window_shape) <= budget_bytes
    ]
    if not fitting:
        raise _does_not_fit(shape, chunk_shape, op, budget_bytes)
    least = min(voxels for voxels, _ in fitting)

    def cost(choice: tuple[int, SliceGrid]) -> tuple[int, int, int]:
        voxels, grid = choice
        rounds = -(-grid.n_blocks // n_workers)
        return min(voxels, rounds * math.prod(grid.window_shape)), voxels, grid.n_blocks

    cheap = [choice for choice in fitting if choice[0] <= MOST_FOR_SHARING * least]
    return min(cheap, key=cost)[1]


def _network_voxels(grid: SliceGrid) -> int:
    """Return the voxels that all windows have together; at the volume's ends they are thinner."""
    n_z, n_y, n_x = grid.counts
    _, height, width = grid.window_shape
    slices = sum(grid.at((i, 0, 0)).read.shape[0] for i in range(n_z))
    return slices * n_y * height * n_x * width


def _does_not_fit(
    shape: Vec, chunk_shape: Vec, op: SliceSegmentOp, budget_bytes: int
) -> BudgetError:
    """Say what one chunk needs, and that thinner chunks or more memory would do."""
    halo_z, halo, _ = op.halo
    window = SliceGrid(shape, chunk_shape, op.halo, op.align, one_shape=True).window_shape
    thin = SliceGrid(shape, (1, *chunk_shape[1:]), op.halo, op.align, one_shape=True).window_shape
    needed, least = op.bytes_needed(window), op.bytes_needed(thin)
    chunks = "x".join(map(str, (1, *chunk_shape[1:])))
    advice = f"chunks of {chunks} would need {least >> 20} MiB"
    if least > budget_bytes:
        advice = f"even {advice}, so give each worker more with --memory"
    return BudgetError(
        f"{op.name} needs {needed >> 20} MiB per task (window {'x'.join(map(str, window))}, halo "
        f"{halo_z} in z, {halo} in y and x) but the budget is {budget_bytes >> 20} MiB; {advice}"
    )
