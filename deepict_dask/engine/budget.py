"""Bytes are planned before they are spent, in words a user can act on.

A worker's memory holds the interpreter with its libraries (the baseline) and one task. What is left
after the baseline and a margin for allocator slack is the budget of a task.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import BudgetError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..core.volume import VolumeReader

__all__ = [
    "BASELINE_BYTES",
    "BASELINE_TORCH_BYTES",
    "beside_torch",
    "check_budget",
    "check_source_chunks",
    "format_bytes",
    "parse_bytes",
    "task_budget_bytes",
]

BASELINE_BYTES = 128 << 20
"""Resident bytes of a worker that has done every kind of small task (measured: 94 MiB)."""
BASELINE_TORCH_BYTES = 384 << 20
"""The same with torch and a small model (measured: 284 MiB with PyTorch's wheel for CPUs)."""
_MARGIN = 0.85

_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "pb": 10**15}
_UNITS |= {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40, "pib": 1 << 50}


def parse_bytes(text: str) -> int:
    """Return a number of bytes from a text such as "4GiB".

    Examples
    --------
    >>> parse_bytes("1.5GiB"), parse_bytes("200 MB")
    (1610612736, 200000000)
    """
    compact = text.replace(" ", "").lower()
    number = compact.rstrip("abcdefghijklmnopqrstuvwxyz")
    unit = compact[len(number) :] or "b"
    try:
        return int(float(number) * _UNITS[unit])
    except (KeyError, ValueError, OverflowError):
        raise BudgetError(
            f"--memory: expected a size such as 4GiB or 800MB, found {text!r}"
        ) from None


def format_bytes(n: float) -> str:
    """Return bytes in words.

    Examples
    --------
    >>> format_bytes(3 << 30), format_bytes(1500)
    ('3.0 GiB', '1.5 KiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(n) < 1024:
            return f"{n:.0f} B" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} TiB"


def task_budget_bytes(worker_bytes: int, *, torch: bool = False) -> int:
    """Return the bytes one task may hold on a worker with this much memory.

    Examples
    --------
    >>> task_budget_bytes(1 << 30) < 1 << 30
    True
    """
    baseline = BASELINE_TORCH_BYTES if torch else BASELINE_BYTES
    return max(0, int((worker_bytes - baseline) * _MARGIN))


def beside_torch(worker_bytes: int) -> int:
    """Return the memory of a worker as a stage without a network sees it, after one with a network.

    Examples
    --------
    >>> task_budget_bytes(beside_torch(4 << 30)) == task_budget_bytes(4 << 30, torch=True)
    True
    """
    return worker_bytes - (BASELINE_TORCH_BYTES - BASELINE_BYTES)


def check_budget(stage: str, needed_bytes: int, worker_bytes: int, *, torch: bool = False) -> None:
    """Refuse work whose tasks would not fit a worker.

    Raises
    ------
    BudgetError
        With what is needed, what there is, and what to change.

    Examples
    --------
    >>> check_budget("label", 100 << 20, 1 << 30)
    """
    budget = task_budget_bytes(worker_bytes, torch=torch)
    if needed_bytes > budget:
        raise BudgetError(
            f"{stage}: needs {format_bytes(needed_bytes)} per task, but a worker with "
            f"{format_bytes(worker_bytes)} has {format_bytes(budget)} for a task; "
            "give workers more with --memory, use fewer with --workers, or smaller --chunks"
        )


def check_source_chunks(sources: Iterable[VolumeReader], worker_bytes: int) -> None:
    """Refuse a store whose chunks are too large: any box within one is decoded with all of it.

    Raises
    ------
    BudgetError
        With the chunk, what it takes, and what to do.
    """
    budget = task_budget_bytes(worker_bytes)
    for source in sources:
        chunk = getattr(source, "chunk_shape", None)
        if chunk is None:
            continue
        header = source.header
        shape = [min(c, n) for c, n in zip(chunk, header.shape, strict=True)]
        n_bytes = math.prod(shape) * np.dtype(header.dtype).itemsize
        if n_bytes > budget:
            raise BudgetError(
                f"{source.path}: has chunks of {'x'.join(map(str, shape))} voxels, of "
                f"{format_bytes(n_bytes)} each, but a worker with {format_bytes(worker_bytes)} has "
                f"{format_bytes(budget)} for a task; `deepict-dask convert` it once with "
                "--workers 1 and more --memory"
            )
