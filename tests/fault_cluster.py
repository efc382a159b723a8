"""A Dask cluster of separate programs on this machine, any of which can be killed and replaced."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
from programs import PATIENCE_S, start

DASK = Path(sys.executable).with_name("dask")


def free_port():
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


def kill(process):
    """Kill one process with SIGKILL; its children live on."""
    with suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE_S)


class Cluster:
    """A scheduler and nannies, each with a worker of its own."""

    def __init__(self, folder, *, n_workers=2, memory="1GiB"):
        self.folder, self.n_workers, self.memory = folder, n_workers, memory
        self.scheduler, self.nannies, self.started, self.n_logs = None, [], [], 0
        self.address = f"tcp://127.0.0.1:{free_port()}"

    def __enter__(self):
        self.mend()
        return self

    def __exit__(self, *exc):
        for process in self.started:
            for child in self._children(process):
                kill(child)
            kill(process)

    def mend(self):
        """Start what is missing and wait until all workers are there."""
        if self.scheduler is None or self.scheduler.poll() is not None:
            # Workers that lose their scheduler end; those of the new one are new.
            for nanny in self.nannies:
                self._end(nanny)
            port = self.address.rpartition(":")[2]
            self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", port)
        self.nannies = [nanny for nanny in self.nannies if nanny.poll() is None]
        while len(self.nannies) < self.n_workers:
            limits = ("--nthreads", 1, "--memory-limit", self.memory, "--death-timeout", 60)
            self.nannies.append(
                self._start("worker", self.address, *limits, "--local-directory", self.folder)
            )
        self.wait_for_workers()

    def _start(self, *arguments):
        self.n_logs += 1
        command = [str(DASK), *map(str, arguments), "--no-dashboard"]
        with (self.folder / f"{arguments[0]}{self.n_logs}.log").open("w") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, cwd=self.folder
            )
        self.started.append(process)
        return process

    def wait_for_workers(self):
        from distributed import Client

        with Client(self.address, timeout=PATIENCE_S) as client:
            until = time.monotonic() + PATIENCE_S
            while len(client.scheduler_info(n_workers=-1)["workers"]) != self.n_workers:
                assert time.monotonic() < until, "workers did not come"
                time.sleep(0.05)

    def worker_of(self, nanny):
        """The process that does a nanny's work."""
        return next(p for p in self._children(nanny) if "spawn_main" in " ".join(p.cmdline()))

    @staticmethod
    def _children(process):
        with suppress(psutil.Error):
            return psutil.Process(process.pid).children(recursive=True)
        return []

    def _end(self, nanny):
        children = self._children(nanny)
        kill(nanny)
        for child in children:
            kill(child)

    def kill_worker(self, number):
        """Kill a worker; its nanny starts another."""
        with suppress(StopIteration):  # it is being started again
            kill(self.worker_of(self.nannies[number]))

    def kill_nanny(self, number):
        """Kill a nanny; its worker sees that it is an orphan and ends."""
        orphans = self._children(self.nannies[number])
        kill(self.nannies[number])
        _, alive = psutil.wait_procs(orphans, timeout=PATIENCE_S)
        assert not alive, "a worker outlived its nanny"

    def kill_host(self, number):
        """Kill a nanny and its worker at once."""
        self._end(self.nannies[number])

    def kill_scheduler(self):
        kill(self.scheduler)


def start_driver(command, cluster):
    """Start a run on a cluster."""
    return start(*command, "--cluster", cluster.address)


def end_of(process):
    """Wait for a program; return its exit code and what it said."""
    text, _ = process.communicate(timeout=PATIENCE_S)
    return process.returncode, text
