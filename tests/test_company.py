"""A driver says why nothing moves when all workers of somebody else's scheduler are gone."""

import logging
import time

import pytest
from distributed import Client, LocalCluster

from deepict_dask.engine.company import told_when_alone


@pytest.fixture
def cluster():
    with LocalCluster(n_workers=1, processes=False, dashboard_address=None) as one:
        yield one


def wait_for(found):
    """Wait generously until something is found."""
    until = time.monotonic() + 300
    while not found() and time.monotonic() < until:
        time.sleep(0.05)
    return found()


def test_a_driver_without_workers_says_so_once_and_when_some_are_back(cluster, caplog):
    caplog.set_level(logging.WARNING, logger="deepict_dask")
    with Client(cluster) as client, told_when_alone(client, "tcp://there", look_s=0.05):
        cluster.scale(0)
        assert wait_for(lambda: "tcp://there: no worker is left" in caplog.text)
        cluster.scale(1)
        assert wait_for(lambda: "tcp://there: 1 workers are there again" in caplog.text)
    assert caplog.text.count("no worker is left") == 1


def test_nothing_is_said_while_there_are_workers(cluster, caplog):
    caplog.set_level(logging.WARNING, logger="deepict_dask")
    with Client(cluster) as client, told_when_alone(client, "tcp://there", look_s=0.01):
        assert client.submit(sum, [1, 2]).result() == 3
        time.sleep(0.2)
    assert caplog.text == ""


class Counted:
    """A client that counts how often it is asked for the workers."""

    def __init__(self, client):
        self.client, self.n_looks = client, 0

    def scheduler_info(self, **options):
        self.n_looks += 1
        return self.client.scheduler_info(**options)


def test_a_worker_that_is_lost_for_good_is_missed(cluster, caplog):
    caplog.set_level(logging.WARNING, logger="deepict_dask")
    cluster.scale(3)
    with Client(cluster) as client:
        client.wait_for_workers(3)
        counted = Counted(client)
        with told_when_alone(counted, "tcp://there", look_s=0.05):
            assert wait_for(lambda: counted.n_looks > 3)  # it knows of three
            cluster.scale(2)
            assert wait_for(lambda: "tcp://there: 2 of 3 workers are left" in caplog.text)
    assert "there again" not in caplog.text
