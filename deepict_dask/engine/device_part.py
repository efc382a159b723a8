"""The part of a task that a GPU does: what is read before it, and one task at a time in it.

A worker with a GPU has several threads (`gpu_workers`), each with a task, from read to write.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from ..backend import device_turn, pinned

if TYPE_CHECKING:
    from ..core.ops import ChunkOp, TreeReduction

__all__ = ["device_part", "needs_gpu", "ready_for_upload"]


def needs_gpu(work: Any) -> bool:
    """Say whether an op, or one that it holds, computes on a GPU.

    Examples
    --------
    >>> from deepict_dask.segmentation.windows import SegmentOp
    >>> needs_gpu(SegmentOp("m", 0.0, 1.0)), needs_gpu([SegmentOp("m", 0.0, 1.0, device="cuda")])
    (False, True)
    """
    if isinstance(work, tuple | list):
        return any(map(needs_gpu, work))
    if not is_dataclass(work):
        return False
    held = [getattr(work, each.name) for each in fields(work)]
    on_gpu = str(getattr(work, "device", "cpu")).startswith("cuda")
    return on_gpu or any(map(needs_gpu, held))


def device_part(work: Any) -> AbstractContextManager[None]:
    """Return what a task computes in: its turn on the GPU, if its op needs one.

    Examples
    --------
    >>> with device_part("work for a CPU"):
    ...     1 + 1
    2
    """
    return device_turn() if needs_gpu(work) else nullcontext()


def ready_for_upload(work: ChunkOp | TreeReduction[Any, Any], windows: list[Any]) -> list[Any]:
    """Return a task's windows, the first in page-locked memory if it goes to a GPU as it was read.

    The list is changed: a window as read is gone once it is copied. The others, a byte a voxel of
    regions, are cropped before they are uploaded; and two sizes in turn would be locked anew each.
    """
    if work.uploads:
        windows[0] = pinned(windows[0])
    return windows
