"""Which of the processes of one training is this? Several GPUs have a process each.

Lightning starts those of one machine itself and numbers them by ``LOCAL_RANK``; Slurm's ``srun``
starts those of several machines all at once.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from ..core.errors import ConfigError, WorkFailedError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["is_first_process", "refuse_together", "wait_for_first"]

_PATIENCE_S, _LOOK_S = 1800.0, 0.5


def is_first_process() -> bool:
    """Say whether this process is the one that writes.

    Examples
    --------
    >>> is_first_process()
    True
    """
    number = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_PROCID") or "0"
    return number == "0" and os.environ.get("NODE_RANK", "0") == "0"


def refuse_together(what: str, instead: str) -> None:
    """Refuse what processes that were started together would all do at once.

    Raises
    ------
    ConfigError
        ``srun`` has started several.
    """
    started = int(os.environ.get("SLURM_STEP_NUM_TASKS") or "1")
    if started > 1:
        raise ConfigError(f"{what}: expected one process, found {started} of srun; {instead}")


def wait_for_first(note: Path, key: str, *, patience_s: float = _PATIENCE_S) -> None:
    """Wait until the first process has made the folder ready, and noted for what.

    Raises
    ------
    WorkFailedError
        It has not, in half an hour.
    """
    until = time.monotonic() + patience_s
    while not (note.is_file() and note.read_text() == key):
        if time.monotonic() > until:
            raise WorkFailedError(
                f"{note}: expected the first process to begin this training, waited "
                f"{patience_s:.0f} s; look at its messages"
            )
        time.sleep(_LOOK_S)
