"""One training at a time in a process, with its share of the cores.

PyTorch's threads and its random numbers belong to the whole process. A worker of Dask has one
thread as a rule, but several workers can live in one process, and a worker can have several
threads; and what it predicts after a training shall run with the threads that it had before.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["training_alone"]

_ONE = threading.Lock()


@contextmanager
def training_alone(threads: int) -> Iterator[None]:
    """Wait until no other training runs in this process, and give PyTorch so many threads.

    Examples
    --------
    >>> before = torch.get_num_threads()
    >>> with training_alone(3):
    ...     torch.get_num_threads()
    3
    >>> torch.get_num_threads() == before
    True
    """
    with _ONE:
        before = torch.get_num_threads()
        torch.set_num_threads(max(1, threads))
        try:
            yield
        finally:
            torch.set_num_threads(before)
