"""Says when a scheduler that somebody else runs has no workers left.

Work that was submitted waits for new workers, however long: on a cluster they may come with the
next night. Whoever sits before a program that does not move should know why.
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
    """Warn when all workers are gone, and say when some are back, as long as the block lasts.

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
    is_alone = False
    while not ended.wait(look_s):
        try:
            n = len(client.scheduler_info(n_workers=-1)["workers"])
        except Exception as error:  # the scheduler itself is gone: who waits for results is told
            log.debug("%s: cannot be asked for its workers: %r", address, error)
            return
        if n == 0 and not is_alone and not ended.is_set():
            log.warning(
                "%s: no worker is left, so the work stands still until some come: "
                "`dask worker %s --nthreads 1 --memory-limit 4GiB`; Ctrl-C ends it, and the same "
                "command continues later", address, address,
            )  # fmt: skip
        if n and is_alone:
            log.warning("%s: %d workers are there again", address, n)
        is_alone = n == 0
