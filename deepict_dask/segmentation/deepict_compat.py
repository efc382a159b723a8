"""DeePiCt's own tiling, voxel for voxel, for those who compare with its published results.

1. The tomogram (cropped to the region mask's shape where that is smaller) is cut into inner cubes
   of 40 voxels; each is predicted from its box of 64, without blending.
2. An axis of n voxels gets (n + n % 40) // 40 cubes. DeePiCt adds the remainder where it should add
   what is missing to 40, so the last n % 40 voxels are never predicted if they are fewer than 20.
3. Outside the volume a box sees reflections, again and again where the volume is short.
4. With a region mask, a box is predicted only if the mask, reflected alike, is above 0 in it.
5. Voxels that no box predicts hold sigmoid(-10).

Only the inner cubes matter, so blocks of whole cubes are independent: how far a box reaches out of
its cube (through the reflection at the far end: 13 voxels, one more than the overlap) is the halo.

Source: behaviour of github.com/ZauggGroup/DeePiCt at 4a96629 (the paper's text differs).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ShapeMismatchError
from ..core.geometry import Box, Grid, as_vec
from ..core.ops import ChunkOp
from ..models.registry import inference_network, loaded_unet3d
from .windows import chosen_class, network_bytes, normalise, predict_window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..core.geometry import Block, Vec
    from ..models.registry import PinnedModel

__all__ = [
    "CompatSegmentOp",
    "CompatTiling",
    "compat_grid",
    "reflected",
]

Array = np.ndarray[Any, Any]

NEVER_PREDICTED = np.float32(4.5397872e-05)
"""DeePiCt fills its volume with the logit -10 before the sigmoid."""


def reflected(start: int, stop: int, size: int) -> Array:
    """Return the voxels seen at positions ``start`` to ``stop`` of a reflected axis.

    Examples
    --------
    >>> reflected(-2, 8, size=4).tolist()
    [2, 1, 0, 1, 2, 3, 2, 1, 0, 1]
    """
    if size == 1:
        return np.zeros(stop - start, dtype=np.int64)
    period = 2 * (size - 1)
    positions = np.arange(start, stop) % period
    return np.where(positions < size, positions, period - positions)


@dataclass(frozen=True)
class CompatTiling:
    """Which boxes DeePiCt cuts out of a volume.

    Examples
    --------
    >>> tiling = CompatTiling((95, 150, 138))
    >>> tiling.counts, tiling.covered_shape
    ((2, 4, 3), (80, 150, 120))
    >>> tiling.patch((0, 1, 0))
    Box(start=(0, 40, 0), stop=(40, 80, 40))
    """

    shape: Vec
    """Voxels of the volume, after cropping to the region mask."""
    box: int = 64
    overlap: int = 12

    def __post_init__(self) -> None:
        if self.overlap < 1 or self.inner < 2:
            raise ShapeMismatchError(
                f"box {self.box} with overlap {self.overlap}: expected an overlap of at least 1 "
                "and twice that at least 2 voxels below the box"
            )
        for axis, size in zip("zyx", self.shape, strict=True):
            if (size + size % self.inner) // self.inner == 0:
                raise ShapeMismatchError(
                    f"--compat deepict: axis {axis} has {size} voxels, but DeePiCt predicts "
                    f"nothing below {-(-self.inner // 2)}; leave out --compat deepict"
                )

    @property
    def inner(self) -> int:
        """Edge of the cube that a box predicts."""
        return self.box - 2 * self.overlap

    @property
    def counts(self) -> Vec:
        """Boxes on each axis."""
        return as_vec([(n + n % self.inner) // self.inner for n in self.shape])

    @property
    def covered_shape(self) -> Vec:
        """Voxels on each axis that some box can predict; the rest is never predicted."""
        return as_vec(
            [min(n, c * self.inner) for n, c in zip(self.shape, self.counts, strict=True)]
        )

    @property
    def reach(self) -> int:
        """Voxels a box needs beyond its cube, reflections at the far end included."""
        reach = self.overlap
        for remainder in range(self.inner):
            size = 2 * self.inner + remainder  # longer axes end alike
            last = ((size + remainder) // self.inner - 1) * self.inner
            seen = reflected(last - self.overlap, last - self.overlap + self.box, size)
            reach = max(reach, last - int(seen.min()))
        return reach

    def patch(self, index: Vec) -> Box:
        """Return the cube that a box predicts, clipped to the volume."""
        start = [i * self.inner for i in index]
        stop = [min(n, a + self.inner) for n, a in zip(self.shape, start, strict=True)]
        return Box(as_vec(start), as_vec(stop))

    def indices_in(self, box: Box) -> Iterator[Vec]:
        """Yield the boxes whose cubes start inside a box of whole cubes."""
        ranges = [
            range(-(-a // self.inner), min(count, -(-b // self.inner)))
            for a, b, count in zip(box.start, box.stop, self.counts, strict=True)
        ]
        yield from (as_vec(index) for index in itertools.product(*ranges))

    def cut(self, window: Array, read: Box, index: Vec) -> Array:
        """Return the 64^3 voxels that a box sees, from a window over ``read``."""
        axes = [
            reflected(i * self.inner - self.overlap, i * self.inner - self.overlap + self.box, n)
            - a
            for i, n, a in zip(index, self.shape, read.start, strict=True)
        ]
        return window[np.ix_(*axes)]

    def is_wanted(self, mask: Array, read: Box, index: Vec) -> bool:
        """Say whether the region mask, a window over ``read``, is above 0 anywhere in a box."""
        return bool((self.cut(mask, read, index) > 0).any())


@dataclass(frozen=True)
class CompatSegmentOp(ChunkOp):
    """A network's scores of a tomogram, exactly as DeePiCt computes them.

    Sources are the tomogram and, optionally, a region mask in a `FittedReader`, so that both have
    the tomogram's shape. Write boxes must be whole inner cubes (see `compat_grid`). The result is
    float32: zyx for one class, czyx for all.

    Examples
    --------
    >>> op = CompatSegmentOp("ribosome.pth", mean=0.0, std=1.0, shape=(100, 200, 200))
    >>> op.halo, op.tiling.covered_shape
    ((13, 13, 13), (100, 200, 200))
    """

    model_path: str | PinnedModel
    mean: float
    """Of the whole tomogram, see `deepict_statistics.statistics_of`."""
    std: float
    """Of the whole tomogram."""
    shape: Vec
    """Voxels of the tomogram."""
    mask_shape: Vec | None = None
    """Voxels of the region mask's file, where there is one."""
    class_index: int | None = None
    """Channel to return; all of them for None."""
    box: int = 64
    overlap: int = 12
    device: str = "cpu"
    name: str = "segment"
    dtype: str = "float32"

    @property
    def tiling(self) -> CompatTiling:
        """The boxes; raises ShapeMismatchError where DeePiCt would make none."""
        cropped = as_vec(np.minimum(self.shape, self.mask_shape or self.shape))
        return CompatTiling(cropped, self.box, self.overlap)

    @property
    def halo(self) -> Vec:
        """Voxels a block needs on every side, derived from the tiling."""
        return as_vec(self.tiling.reach)

    def apply(self, block: Block, *windows: Any) -> Array:
        """Return the scores over ``block.read``; outside ``block.write`` they say nothing."""
        tiling = self.tiling
        self._check_cubes(block)
        mask = windows[1] if len(windows) > 1 else None
        channels = loaded_unet3d(self.model_path).settings.n_classes
        kept = channels if self.class_index is None else 1
        scores = np.full((kept, *block.read.shape), NEVER_PREDICTED, dtype=np.float32)
        for index in tiling.indices_in(block.write):
            if mask is None or tiling.is_wanted(mask, block.read, index):
                target = tiling.patch(index)
                scores[(..., *target.slices_in(block.read))] = self._predict(
                    tiling.cut(windows[0], block.read, index), target.shape
                )
        return scores if self.class_index is None else scores[0]

    def _predict(self, patch: Array, shape: Vec) -> Array:
        """Return the scores of a box's inner cube, clipped to a shape; czyx."""
        network = inference_network(self.model_path, self.device)
        scores = predict_window(network, normalise(patch, self.mean, self.std))
        inner = Box.whole(shape).shift(as_vec(self.overlap))
        chosen = chosen_class(scores, self.class_index)[(..., *inner.slices)]
        return chosen if self.class_index is None else chosen[None]

    def _check_cubes(self, block: Block) -> None:
        """Refuse blocks that cut cubes apart."""
        inner = self.tiling.inner
        ends = zip(block.write.stop, self.shape, strict=True)
        if any(a % inner for a in block.write.start) or any(b % inner and b < n for b, n in ends):
            raise ShapeMismatchError(
                f"--compat deepict: blocks must be whole cubes of {inner} voxels, found "
                f"{block.write.start} to {block.write.stop}; use chunks of a multiple of {inner}"
            )

    def bytes_needed(self, window_shape: Vec) -> int:
        """Return the peak bytes of one block: its windows, its scores, and one box's network."""
        settings = loaded_unet3d(self.model_path).settings
        n_windows = 1 if self.mask_shape is None else 2
        kept = settings.n_classes if self.class_index is None else 1
        per_voxel = 4 * (n_windows + kept)
        one_box = network_bytes(settings, as_vec(self.box)) + 4 * 4 * self.box**3
        return math.prod(window_shape) * per_voxel + one_box


def compat_grid(shape: Vec, chunk_shape: Vec, op: CompatSegmentOp) -> Grid:
    """Return a grid of whole chunks and whole inner cubes.

    Chunks of a multiple of 40 (say 120) keep the blocks small; others are combined until both fit.

    Examples
    --------
    >>> op = CompatSegmentOp("ribosome.pth", 0.0, 1.0, shape=(500, 960, 960))
    >>> compat_grid((500, 960, 960), (120, 120, 64), op).write_shape
    (120, 120, 320)
    """
    inner = op.tiling.inner
    write_shape = as_vec([math.lcm(chunk, inner) for chunk in chunk_shape])
    return Grid(shape, write_shape, op.halo)
