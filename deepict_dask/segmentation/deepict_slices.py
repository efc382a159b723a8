"""DeePiCt's own tiling of slices for its 2D network, to compare with its published results.

1. Of Z slices, ``Z // 2 - n // 2`` to ``Z // 2 + n // 2`` are predicted, where n is the smaller of
   Z and the z cut-off: an odd n loses a slice, so an odd Z loses its last one. No cut-off (0) keeps
   all slices.
2. They are normalised by their own mean and standard deviation, and extended by ``crop`` reflected
   voxels in y and x.
3. A fixed number of rows and columns of tiles is spread evenly: row i starts at ``int(i * stride)``
   where the stride is the free length over the number of rows less one.
4. ``crop`` voxels are cut off every side of a predicted tile; where tiles overlap the mean is taken
   (in float64). Slices that are too large for the tiles show stripes of NaN (0 / 0) between them.
5. With ``compensate_crop`` the slices that were cut off return as zeros, as many at both ends: an
   odd Z has still one slice fewer.

Tiles of a slice depend on that slice alone, so blocks are any slabs of whole slices.

Where DeePiCt crashes or cuts tiles at negative places (a slice with its extension is smaller than a
tile), an error says so.

Source: behaviour of github.com/ZauggGroup/DeePiCt at 4a96629 (the paper's text differs).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ShapeMismatchError
from ..core.geometry import Box, Grid
from ..core.ops import ChunkOp
from ..models.inference2d import network_bytes_2d
from ..models.registry import inference_network_2d, loaded_unet2d
from .slices import fixed_bytes_2d, predict_slices, slices_at_once
from .windows import chosen_class, normalise

if TYPE_CHECKING:
    from ..config import SliceTiling
    from ..core.geometry import Block, Vec
    from ..core.volume import VolumeHeader, VolumeReader
    from ..models.registry import PinnedModel
    from ..models.unet2d import UNet2DSettings

__all__ = ["CompatSliceOp", "CompatSlices", "SlabReader", "compat_slice_grid"]

Array = np.ndarray[Any, Any]

_STEP = 4
"""Slices whose tiles are added up together: float64 sums cost the most memory."""


@dataclass(frozen=True)
class CompatSlices:
    """Which slices DeePiCt predicts, and which tiles it cuts out of them.

    Raises
    ------
    ShapeMismatchError
        DeePiCt would predict no slice, or could not cut tiles.

    Examples
    --------
    >>> from deepict_dask.config import SliceTiling
    >>> plan = CompatSlices((121, 928, 1000), SliceTiling(z_cutoff=200))
    >>> plan.predicted, plan.out_shape
    ((0, 120), (120, 928, 1000))
    >>> plan.starts(1), plan.gaps(1), plan.gaps(2)
    ([0, 184, 368, 552, 736], [], [(192, 202), (394, 404), (596, 606), (798, 808)])
    """

    shape: Vec
    """Voxels of the tomogram."""
    tiling: SliceTiling

    def __post_init__(self) -> None:
        first, stop = self.predicted
        if first == stop:
            raise ShapeMismatchError(
                f"--compat deepict: expected at least 2 slices and a z cut-off of at least 2 (or "
                f"0), found {self.shape[0]} slices and {self.tiling.z_cutoff}: DeePiCt predicts "
                "none; leave out --compat deepict"
            )
        for axis in (1, 2):
            self._check_tile(axis)

    def _check_tile(self, axis: int) -> None:
        """Refuse tiles that do not fit a slice, or of which nothing is left."""
        size, crop, tile = self.shape[axis], self.tiling.crop, self.tiling.tile[axis - 1]
        if size + 2 * crop < tile:
            raise ShapeMismatchError(
                f"--compat deepict: axis {'zyx'[axis]} has {size} voxels, with a crop of {crop} on "
                f"both sides {size + 2 * crop}: expected at least a tile of {tile}; use smaller "
                "tiles (--tile), a larger --crop, or leave out --compat deepict"
            )
        if tile <= 2 * crop:
            raise ShapeMismatchError(
                f"--compat deepict: a crop of {crop} on both sides leaves nothing of a tile of "
                f"{tile} voxels along {'zyx'[axis]}; use a smaller --crop"
            )

    @property
    def predicted(self) -> tuple[int, int]:
        """First slice that is predicted, and one past the last."""
        n_slices = self.shape[0]
        if self.tiling.z_cutoff == 0:
            return 0, n_slices
        half = min(n_slices, self.tiling.z_cutoff) // 2
        return n_slices // 2 - half, n_slices // 2 + half

    @property
    def written(self) -> tuple[int, int]:
        """First slice of the tomogram that the score map has, and one past the last."""
        first, stop = self.predicted
        return (0, stop + first) if self.tiling.compensate_crop else (first, stop)

    @property
    def out_shape(self) -> Vec:
        """Voxels of the score map."""
        first, stop = self.written
        return (stop - first, *self.shape[1:])

    def starts(self, axis: int) -> list[int]:
        """Return where the tiles of an axis (1 for y, 2 for x) start in an extended slice.

        After cropping, these are also the places in the slice itself where their results start.
        """
        n, tile = self.tiling.tiles[axis - 1], self.tiling.tile[axis - 1]
        free = self.shape[axis] + 2 * self.tiling.crop - tile
        # the published expression: its rounding may leave a stripe of one voxel at the far end
        stride = free / (n - 1) if n > 1 else 0.0
        return [int(i * stride) for i in range(n)]

    def coverage(self, axis: int) -> Array:
        """Return how many rows (or columns) of tiles give a score to each voxel of an axis."""
        count = np.zeros(self.shape[axis], dtype=np.int64)
        kept = self.tiling.tile[axis - 1] - 2 * self.tiling.crop
        for start in self.starts(axis):
            count[start : start + kept] += 1
        return count

    def gaps(self, axis: int) -> list[tuple[int, int]]:
        """Return the ranges of voxels of an axis (1 for y, 2 for x) that no tile covers."""
        bare = np.concatenate([[False], self.coverage(axis) == 0, [False]])
        edges = np.flatnonzero(bare[1:] != bare[:-1])
        return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


@dataclass(frozen=True)
class SlabReader:
    """Some slices of a volume as a volume of their own, in float32.

    Examples
    --------
    >>> from deepict_dask.io.array import ArrayReader
    >>> slab = SlabReader(ArrayReader(np.arange(4).reshape(4, 1, 1)), 1, 3)
    >>> slab.read(Box.whole(slab.header.shape)).ravel().tolist()
    [1.0, 2.0]
    """

    source: VolumeReader
    first: int
    stop: int

    @property
    def path(self) -> str:
        """Where the volume is."""
        return self.source.path

    @property
    def header(self) -> VolumeHeader:
        """The source's header with fewer slices, and the origin of the first of them."""
        whole = self.source.header
        z, y, x = whole.origin_angstrom
        return replace(
            whole,
            shape=(self.stop - self.first, *whole.shape[1:]),
            dtype="float32",
            origin_angstrom=(z + self.first * (whole.voxel_spacing_angstrom or 0.0), y, x),
        )

    def read(self, box: Box) -> Array:
        """Return a new zyx array of the box."""
        return self.source.read(box.shift((self.first, 0, 0))).astype(np.float32, copy=False)


@dataclass(frozen=True)
class CompatSliceOp(ChunkOp):
    """A 2D network's scores of a tomogram, exactly as DeePiCt computes them.

    The one source is a `SlabReader` over ``plan.written``; blocks are slabs of whole slices (see
    `compat_slice_grid`). The result is float32: zyx for one class, czyx for all; slices that are
    not predicted are 0, and voxels that no tile covers are NaN.

    Examples
    --------
    >>> from deepict_dask.config import SliceTiling
    >>> plan = CompatSlices((300, 928, 960), SliceTiling())
    >>> CompatSliceOp("cytosol.h5", mean=0.0, std=1.0, plan=plan).dtype
    'float32'
    """

    model_path: str | PinnedModel
    mean: float
    """Of the slices that are predicted, see `deepict_statistics.statistics_of`."""
    std: float
    """Of the slices that are predicted."""
    plan: CompatSlices
    class_index: int | None = None
    """Channel to return; all of them for None."""
    device: str = "cpu"
    name: str = "segment"
    dtype: str = "float32"

    @property
    def settings(self) -> UNet2DSettings:
        """The network's architecture; loads the model on first use."""
        return loaded_unet2d(self.model_path).settings

    def check_tile(self) -> None:
        """Refuse tiles that the network's poolings would round.

        Raises
        ------
        ShapeMismatchError
            A side of the tile is no multiple of 2**depth.
        """
        align = self.settings.align
        if any(side % align for side in self.plan.tiling.tile):
            raise ShapeMismatchError(
                f"--tile: expected multiples of {align}, as the network halves them "
                f"{self.settings.depth} times, found {self.plan.tiling.tile}"
            )

    def apply(self, block: Block, *windows: Any) -> Array:
        """Return the scores over ``block.read``."""
        (window,) = windows
        self._check_whole_slices(block)
        scores = np.zeros((self._n_kept, *window.shape), dtype=np.float32)
        first, stop = (z - self.plan.written[0] - block.read.start[0] for z in self.plan.predicted)
        first, stop = max(0, first), min(len(window), stop)
        for z in range(first, stop, _STEP):
            part = slice(z, min(z + _STEP, stop))
            scores[:, part] = self._slices(window[part])
        return scores if self.class_index is None else scores[0]

    def _slices(self, slices: Array) -> Array:
        """Return the mean score of all tiles for a few slices, czyx."""
        plan, crop = self.plan, self.plan.tiling.crop
        normalised = normalise(slices, self.mean, self.std)
        extended = np.pad(normalised, [(0, 0), (crop, crop), (crop, crop)], mode="reflect")
        sums = np.zeros((self._n_kept, *slices.shape), dtype=np.float64)
        for x in plan.starts(2):
            for y in plan.starts(1):
                tile = self._tile(extended, y, x)
                sums[..., y : y + tile.shape[2], x : x + tile.shape[3]] += tile
        count = plan.coverage(1)[:, None] * plan.coverage(2)
        with np.errstate(invalid="ignore"):  # 0 / 0 where no tile is
            sums /= count
        return sums.astype(np.float32)

    def _tile(self, extended: Array, y: int, x: int) -> Array:
        """Return the scores of one tile of a few slices without its margin, czyx."""
        network = inference_network_2d(self.model_path, self.device)
        height, width = self.plan.tiling.tile
        crop = self.plan.tiling.crop
        cut = extended[:, y : y + height, x : x + width]
        inner = (..., slice(crop, height - crop), slice(crop, width - crop))
        step = slices_at_once(self.settings, height, width)
        parts = [
            chosen_class(predict_slices(network, cut[z : z + step]), self.class_index)[inner]
            for z in range(0, len(cut), step)
        ]
        tile = np.concatenate(parts, axis=-3)
        return tile if self.class_index is None else tile[None]

    def _check_whole_slices(self, block: Block) -> None:
        """Refuse blocks that cut slices apart."""
        if block.read.shape[1:] != self.plan.shape[1:]:
            raise ShapeMismatchError(
                f"--compat deepict: blocks must be whole slices of {self.plan.shape[1:]} voxels, "
                f"found {block.read.shape[1:]}"
            )

    @property
    def _n_kept(self) -> int:
        return self.settings.n_classes if self.class_index is None else 1

    def bytes_needed(self, window_shape: Vec) -> int:
        """Return the peak bytes of one slab: as read, its scores, and a few slices' tiles."""
        n_slices, height, width = (int(n) for n in window_shape)
        crop, n = self.plan.tiling.crop, min(n_slices, _STEP)
        extended = n * (height + 2 * crop) * (width + 2 * crop)
        # float64 sums, their float32 copy and the count; normalised slices, then extended ones
        few = n * height * width * (12 * self._n_kept + 4) + 8 * height * width + 4 * extended
        tile = math.prod(self.plan.tiling.tile)
        at_once = min(n, slices_at_once(self.settings, *self.plan.tiling.tile))
        network = network_bytes_2d(self.settings, at_once, *self.plan.tiling.tile)
        tiles = 4 * tile * (2 * at_once + 2 * n * self.settings.n_classes)
        return math.prod(window_shape) * 4 * (1 + self._n_kept) + few + tiles + network

    @property
    def fixed_bytes(self) -> int:
        """Resident bytes of a process before its first window."""
        return fixed_bytes_2d(self.settings)


def compat_slice_grid(plan: CompatSlices, n_slices: int) -> Grid:
    """Return slabs of whole slices of the score map.

    Examples
    --------
    >>> from deepict_dask.config import SliceTiling
    >>> plan = CompatSlices((121, 928, 960), SliceTiling())
    >>> compat_slice_grid(plan, 16).write_shape
    (16, 928, 960)
    """
    return Grid(plan.out_shape, (n_slices, *plan.out_shape[1:]))
