"""Jobs of a batch system are looked after: which are lost, which are replaced, when to give up."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest
from profile_scenes import LEAST, SCHEDULER, elsewhere

from deepict_dask.config.profile import ClusterProfile
from deepict_dask.core.errors import ClusterError
from deepict_dask.engine.batch_systems import BATCH_SYSTEMS, BatchSystem
from deepict_dask.engine.cluster_jobs import _kept
from deepict_dask.engine.job_pool import JobPool

__all__ = ["elsewhere"]


class Site(BatchSystem):
    """A batch system whose queue a test writes."""

    queue: dict[str, str] | None

    def states(self):
        return self.queue


class PretendedJob:
    def __init__(self, name, site):
        self.name, self.site, self.job_id = name, site, None

    async def start(self):
        self.job_id = str(self.site.count())
        self.site.queue[self.job_id] = "PENDING"

    async def close(self):
        self.site.queue.pop(self.job_id, None)


@pytest.fixture
def pool(monkeypatch):
    """A pool of two jobs of two workers each that is looked after by hand."""
    import itertools

    site = object.__new__(Site)
    slurm = BATCH_SYSTEMS["slurm"]
    site.__dict__.update(vars(slurm) | {"queue": {}})
    numbers = itertools.count(1)
    site.__dict__["count"] = lambda: next(numbers)
    monkeypatch.setattr(
        "deepict_dask.engine.job_pool.make_job", lambda _s, _p, _a, name: PretendedJob(name, site)
    )
    clock = [1000.0]
    monkeypatch.setattr("deepict_dask.engine.job_pool.time.monotonic", lambda: clock[0])
    profile = ClusterProfile(**LEAST, jobs=2, workers_per_job=2, poll_s=1e6, wait_s=600)
    names: set[str] = set()
    pool = JobPool(site, {"worker": profile}, SCHEDULER, lambda: set(names))
    pool.start()
    pool.names, pool.clock, pool.site = names, clock, site
    yield pool
    pool.close()
    assert site.queue == {}


def tend(pool, *names, later=1.0):
    pool.names.clear()
    pool.names.update(names)
    pool.clock[0] += later
    pool.tend()
    return [*pool.site.queue]


def test_a_job_with_one_of_its_workers_is_left_alone(pool):
    assert tend(pool, "worker0-0", "worker0-1", "worker1-0", "worker1-1") == ["1", "2"]
    assert tend(pool, "worker0-1", "worker1-0", later=300) == ["1", "2"]


def test_a_job_that_waits_in_the_queue_is_left_alone(pool):
    assert tend(pool, later=300) == ["1", "2"]


def test_a_job_that_left_the_queue_with_its_workers_is_replaced_at_once(pool):
    tend(pool, "worker0-0", "worker1-0")
    del pool.site.queue["1"]
    assert tend(pool, "worker1-0") == ["2", "3"]
    assert pool.replaced == 1


def test_a_nanny_has_a_minute_to_start_its_workers_again(pool):
    tend(pool, "worker0-0", "worker1-0")
    assert tend(pool, "worker1-0", later=10) == ["1", "2"]
    assert tend(pool, "worker1-0", later=40) == ["1", "2"]
    assert tend(pool, "worker1-0", later=61) == ["2", "3"]


def test_a_queue_that_does_not_answer_is_no_loss(pool):
    known = pool.site.queue
    pool.site.__dict__["queue"] = None
    pool.names.clear()
    pool.clock[0] += 300
    pool.tend()
    pool.site.__dict__["queue"] = known
    assert [*known] == ["1", "2"]


def test_jobs_that_fail_again_and_again_end_the_wait(pool):
    for _ in range(4):
        pool.site.queue.clear()
        tend(pool, later=30)
    with pytest.raises(ClusterError, match="3 jobs of Slurm ended before a worker came"):
        pool.wait()


def test_failures_of_long_ago_do_not_end_a_run_whose_jobs_wait_in_the_queue(pool):
    tend(pool, "worker0-0")
    for _ in range(4):  # a bad node, until it is tried no more
        pool.site.queue.pop(pool._slots[1].number, None)
        tend(pool, "worker0-0", later=30)
    assert pool.replaced == 3
    del pool.site.queue["1"]  # the good job ends at its limit, and the next one waits
    tend(pool)
    assert [*pool.site.queue.values()] == ["PENDING"]
    tend(pool, later=300)
    assert pool.problem is None


def test_jobs_of_one_group_that_fail_do_not_end_the_wait_of_another(pool):
    gpu = ClusterProfile(**LEAST, jobs=1, poll_s=1e6, wait_s=600)
    pool.profiles["gpu"] = gpu
    pool._slots.append(pool._sent("gpu"))
    pool._none_since["gpu"] = pool.clock[0]
    waiting = pool._slots[-1].number
    for _ in range(5):
        for slot in pool._slots[:2]:
            pool.site.queue.pop(slot.number, None)
        tend(pool, "worker-of-nobody", later=30)
    assert "jobs of Slurm ended before a worker came" in pool.problem  # of the group that fails
    pool.problem = None
    pool._failures["worker"] = 9
    pool._judge([s for s in pool._slots if s.group == "gpu"], {waiting: "PENDING"}, pool.clock[0])
    assert pool.problem is None


def test_an_interrupt_while_jobs_are_sent_cancels_them():
    closed = []
    pool = SimpleNamespace(
        problem=None, start=lambda: signal.raise_signal(signal.SIGINT),
        close=lambda: closed.append(True),
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt), _kept(pool):
        raise AssertionError("the work has begun")
    assert closed == [True]


def test_a_wait_that_is_too_long_ends_with_what_the_queue_says(pool):
    tend(pool, later=601)
    with pytest.raises(ClusterError, match=r"within 600 s.*says 2 x PENDING.*wait_s"):
        pool.wait()


def test_jobs_that_can_never_start_end_the_wait_at_once(pool):
    pool.site.queue.update({"1": "PENDING (BadConstraints)", "2": "PENDING (BadConstraints)"})
    tend(pool)
    with pytest.raises(ClusterError, match="never start"):
        pool.wait()


def test_why_no_more_jobs_come_is_said_whether_the_work_raised_or_returned(caplog):
    closed = []
    pool = SimpleNamespace(problem=None, start=lambda: None, close=lambda: closed.append(True))

    def work(error=None):
        pool.problem = "--cluster: 3 jobs of Slurm ended before a worker came"
        if error is not None:
            raise error

    with pytest.raises(ClusterError, match="3 jobs of Slurm ended"), _kept(pool):
        work(RuntimeError("the client is closed"))
    # what returned has told what is unfinished, and what it exits with
    with _kept(pool):
        work()
    assert [r.message for r in caplog.records if r.levelname == "ERROR"] == [pool.problem]
    assert closed == [True, True]
