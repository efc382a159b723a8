"""How fast to learn, as a function of how much of the training is done.

constant
    Always the same.
cosine
    Along half a cosine to a twentieth.
one_cycle
    Up from a 25th along half a cosine for the first three tenths, then down to nearly nothing.
early_cycle
    The same from a 30th, up in the first tenth, down to a 3000th, and Adam's first beta down from
    0.95 to 0.85 and up again: as DeepETPicker has it.
plateau
    A tenth each time when ten epochs brought nothing better (see `epochs`).

What is done is the part of the steps or of the minutes that is spent, whichever is more, so the
rate falls in time wherever training ends.
"""

from __future__ import annotations

from math import cos, pi
from typing import Literal

__all__ = [
    "PLATEAU_FACTOR",
    "PLATEAU_PATIENCE",
    "ScheduleName",
    "first_beta_at",
    "part_done",
    "rate_at",
]

ScheduleName = Literal["constant", "plateau", "cosine", "one_cycle", "early_cycle"]
COSINE_END = 1 / 20
CYCLES = {"one_cycle": (1 / 25, 0.3, 1e-4), "early_cycle": (1 / 30, 0.1, 1 / 3000)}
"""Rate at the start, part of the training that the top is at, rate at the end."""
BETAS = (0.95, 0.85)
"""Adam's first beta at both ends of an early cycle, and at its top."""
PLATEAU_FACTOR = 0.1
PLATEAU_PATIENCE = 10
"""Epochs; factor and patience as DeePiCt has them."""


def rate_at(schedule: ScheduleName, done: float) -> float:
    """Return the learning rate over that of the config.

    Parameters
    ----------
    schedule
        Its name; plateaus are for the caller.
    done
        Part of the training, 0 to 1.

    Examples
    --------
    >>> [round(rate_at("cosine", done), 3) for done in (0, 0.5, 1)]
    [1.0, 0.525, 0.05]
    >>> [round(rate_at("one_cycle", done), 3) for done in (0, 0.3, 1)]
    [0.04, 1.0, 0.0]
    """
    done = min(max(done, 0.0), 1.0)
    if schedule == "cosine":
        return _between(1.0, COSINE_END, done)
    if schedule in CYCLES:
        start, top, end = CYCLES[schedule]
        if done < top:
            return _between(start, 1.0, done / top)
        return _between(1.0, end, (done - top) / (1 - top))
    return 1.0


def first_beta_at(schedule: ScheduleName, done: float) -> float | None:
    """Return Adam's first beta where the schedule changes it; None where it stays as it is.

    Parameters
    ----------
    schedule, done
        As of `rate_at`.

    Examples
    --------
    >>> [round(first_beta_at("early_cycle", done), 3) for done in (0, 0.1, 1)]
    [0.95, 0.85, 0.95]
    >>> first_beta_at("cosine", 0.5) is None
    True
    """
    if schedule != "early_cycle":
        return None
    top, (ends, least) = CYCLES[schedule][1], BETAS
    done = min(max(done, 0.0), 1.0)
    if done < top:
        return _between(ends, least, done / top)
    return _between(least, ends, (done - top) / (1 - top))


def part_done(step: int, n_steps: int, minutes: float, max_minutes: float | None) -> float:
    """Return the part of the steps or of the minutes that is spent, whichever is more.

    Examples
    --------
    >>> part_done(10, 100, 3.0, None), part_done(10, 100, 3.0, 6.0)
    (0.1, 0.5)
    """
    of_time = 0.0 if max_minutes is None else minutes / max_minutes
    return max(step / n_steps, of_time)


def _between(first: float, last: float, done: float) -> float:
    """Go from one to the other along half a cosine."""
    return last + (first - last) * 0.5 * (1 + cos(pi * done))
