"""Several drivers on one cluster: whose task is next, and how all of them are stopped.

What should a worker do when the tasks of two tomograms wait for it? Those of the earlier one, or
both end late: then the later one fills in what the earlier one leaves idle, most of all while that
opens, joins and writes tables. So every driver thread has a client of its own turn, whose tasks
have a lower priority than those of the turns before, and all these clients share one connection.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..core.errors import WorkFailedError

if TYPE_CHECKING:
    from .cluster import Workers

__all__ = ["Turns", "died_with_worker"]

_LEVELS = 64
"""More than a tree of tasks has levels, which are priorities within a turn."""


def died_with_worker(error: BaseException) -> bool:
    """Say whether a task was given up because workers that held it died again and again.

    It need not be to blame: Dask counts a worker's death against all tasks that waited there.

    Examples
    --------
    >>> died_with_worker(ValueError("no"))
    False
    """
    from distributed import KilledWorker

    return isinstance(error, KilledWorker) or isinstance(error.__cause__, KilledWorker)


class Turns:
    """Workers for drivers that run at the same time in threads of this process.

    Parameters
    ----------
    workers
        The cluster that they share.

    Examples
    --------
    >>> from deepict_dask.engine import ClusterSettings, connect
    >>> with connect(ClusterSettings(kind="threads", workers=1, memory="1GiB")) as workers:
    ...     turns = Turns(workers)
    ...     turns.workers(0).client.submit(sum, [1, 2]).result()
    ...     turns.stop()
    ...     turns.workers(1).client.submit(sum, [1, 2])
    Traceback (most recent call last):
    ...
    deepict_dask.core.errors.WorkFailedError: the run was stopped; run it again to continue
    """

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._futures: weakref.WeakSet[Any] = weakref.WeakSet()

    def workers(self, turn: int) -> Workers:
        """Return the workers as a driver sees them whose tasks come after those of lower turns."""
        client: Any = _TurnClient(self, self._workers.client, -_LEVELS * turn)
        return replace(self._workers, client=client)

    @property
    def is_stopped(self) -> bool:
        """Whether no more work is taken."""
        return self._stopped.is_set()

    @property
    def is_connected(self) -> bool:
        """Whether the scheduler can be reached."""
        return self._workers.is_connected

    def check(self) -> None:
        """Raise an error once no more work is taken.

        Raises
        ------
        WorkFailedError
            The run was stopped.
        """
        if self.is_stopped:
            raise WorkFailedError("the run was stopped; run it again to continue")

    def stop(self) -> None:
        """Take no more work and cancel what is submitted; whoever waits for it gets an error."""
        self._stopped.set()
        with self._lock:
            futures = [*self._futures]
        if futures and self.is_connected:
            self._workers.client.cancel(futures)

    def remember(self, future: Any) -> None:
        """Keep a future in mind as long as somebody holds it."""
        with self._lock:
            self._futures.add(future)
        if self.is_stopped:  # since it was submitted
            self._workers.client.cancel([future])


class _TurnClient:
    """A client whose tasks have the priority of a turn; all else is the client's own."""

    def __init__(self, turns: Turns, client: Any, priority: int) -> None:
        self._turns, self._client, self._priority = turns, client, priority

    def submit(self, *arguments: Any, priority: int = 0, **options: Any) -> Any:
        """Submit a task, unless all was stopped."""
        self._turns.check()
        future = self._client.submit(*arguments, priority=self._priority + priority, **options)
        self._turns.remember(future)
        return future

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)
