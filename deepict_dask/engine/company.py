"""Says when a scheduler that somebody else runs has lost workers, or has none left.

Work that was submitted waits for new workers, however long: on a cluster they may come with the
next night. Whoever sits before a program that does not move should know why. A host that crashed or
was cut off takes its workers with it, and nobody starts others: whoever finds a run slow in the
morning should know that too.
"""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["told_when_alone"]

log = logging.getLogger("deepict_dask")

_LOOK_S = 20.0


@contextmanager
def told_when_alone(client: Any, address: str, *, look_s: float = _LOOK_S) -> Iterator[None]:
    """Warn when workers are gone, some or all, and say when there are any again.

    Parameters
    ----------
    client
        A connected ``distributed.Client``.
    address
        The scheduler, for the message.
    look_s
        Seconds from one look to the next.

    Examples
    --------
    >>> from deepict_dask.engine import ClusterSettings, connect
    >>> with connect(ClusterSettings(kind="threads", workers=1, memory="1GiB")) as workers:
    ...     with told_when_alone(workers.client, "here"):
    ...         workers.client.submit(sum, [1, 2]).result()
    3
    """
    ended = threading.Event()
    watch = threading.Thread(
        target=_watch, args=(client, address, ended, look_s), daemon=True, name="company"
    )
    watch.start()
    try:
        yield
    finally:
        ended.set()


def _watch(client: Any, address: str, ended: threading.Event, look_s: float) -> None:
    """Look after the workers: the body of a thread."""
    before = 0
    told: int | None = None
    while not ended.wait(look_s):
        try:
            n = len(client.scheduler_info(n_workers=-1)["workers"])
        except Exception as error:  # the scheduler itself is gone: who waits for results is told
            log.debug("%s: cannot be asked for its workers: %r", address, error)
            return
        # A worker that its nanny starts again is missing for one look only.
        if n in (0, before) and n != told and not ended.is_set():
            if n == 0 or told is not None:
                _tell(address, n, told or 0)
            told = n
        before = n


def _tell(address: str, n: int, told: int) -> None:
    """Say how many workers there are, of as many as there were."""
    if n == 0:
        log.warning(
            "%s: no worker is left, so the work stands still until some come: "
            "`dask worker %s --nthreads 1 --memory-limit 4GiB`; Ctrl-C ends it, and the same "
            "command continues later", address, address,
        )  # fmt: skip
    elif n < told:
        log.warning("%s: %d of %d workers are left; the work goes on with them", address, n, told)
    elif told == 0:
        log.warning("%s: %d workers are there again", address, n)
