"""Which tomogram does this thread work on? So that every line of the log can say it.

A run works on several tomograms at a time, each in a thread of its own. What is logged below knows
nothing of runs, so the name travels with the thread.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["tomogram_in_turn", "working_on"]

_NAME: ContextVar[str] = ContextVar("tomogram", default="")


@contextmanager
def working_on(tomogram: str) -> Iterator[None]:
    """Let lines that this thread logs within the block belong to a tomogram.

    Examples
    --------
    >>> with working_on("TS_1"):
    ...     tomogram_in_turn()
    'TS_1'
    >>> tomogram_in_turn()
    ''
    """
    token = _NAME.set(tomogram)
    try:
        yield
    finally:
        _NAME.reset(token)


def tomogram_in_turn() -> str:
    """Return the tomogram of this thread, nothing where it has none."""
    return _NAME.get()
