"""Keeps a scheduler's memory flat over a million tasks.

What grows in a scheduler whose tasks are all forgotten?

* Each submission adds a note of what kind of thing was submitted to its "span": half a kilobyte
  per task, for good. The first note says as much as all of them.
* A span also keeps every group of tasks, and a group is made anew whenever no task of its name is
  left, as happens to the upper levels of a tree.
* Dask notes the kind of each task's name, of up to 100,000 names: some 25 MB.
* For debugging, the last 1000 messages to each worker are kept, with the tasks in them: bounded,
  but by more than the work needs. The last 100 are kept instead.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from dask.utils import key_split
from distributed import SchedulerPlugin

__all__ = ["FlatScheduler"]

LOG_LENGTH = 100
"""Messages and events of each kind that are kept for debugging."""
NAMES_KEPT = 4096
"""Names of tasks whose kind is remembered; those of a task in flight are asked for often."""


class FlatScheduler(SchedulerPlugin):
    """Lets a scheduler forget; registered by whoever connects, once.

    Examples
    --------
    >>> from deepict_dask.engine import ClusterSettings, connect
    >>> with connect(ClusterSettings(kind="threads", workers=1, memory="1GiB")) as workers:
    ...     FlatScheduler.name in workers.client.cluster.scheduler.plugins
    True
    """

    name = "deepict-dask-flat"
    idempotent = True

    async def start(self, scheduler: Any) -> None:
        """Shorten the logs of the workers that are there."""
        for worker in scheduler.stream_comms:
            self.add_worker(scheduler, worker)

    def add_worker(self, scheduler: Any, worker: str) -> None:
        """Shorten the log of messages to a worker."""
        stream = scheduler.stream_comms.get(worker)
        if stream is not None:
            stream.recent_message_log = deque(stream.recent_message_log, maxlen=LOG_LENGTH)

    def update_graph(self, scheduler: Any, *, tasks: Any, **_submission: Any) -> None:
        """Let the spans of what was submitted keep their first note and a few groups."""
        if key_split.cache_info().currsize > NAMES_KEPT:
            key_split.cache_clear()
        spans = scheduler.extensions.get("spans")
        groups = {scheduler.tasks[key].group for key in tasks if key in scheduler.tasks}
        for number in {group.span_id for group in groups if group.span_id} if spans else ():
            span = spans.spans[number]
            if span.metadata:
                del span.metadata["collections"][1:]
            if len(span.groups) > LOG_LENGTH:
                span.groups &= set(scheduler.task_groups.values())
