"""Run deepict-dask as users do, as a program of its own; watch it, kill it, see what it left."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

PROGRAM = Path(sys.executable).with_name("deepict-dask")
PATIENCE_S = 300
MIB = 1 << 20


def untouched():
    """Return the environment without what earlier tests may have said of memory and threads.

    Workers that a test starts in its own process leave the latter behind.
    """
    said = ("MALLOC_", "OMP_", "MKL_", "OPENBLAS_")
    return {name: value for name, value in os.environ.items() if not name.startswith(said)}


def start(*arguments):
    """Start the program; its messages are collected."""
    command = [str(PROGRAM), *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/"
    )


def run(*arguments, expected=0):
    """Run the program to its end; return its messages."""
    process = start(*arguments)
    text, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == expected, text
    return text


def workers_of(process):
    """Return the worker processes that a driver has started."""
    found = []
    with suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.Error):
                if any("spawn_main" in part for part in child.cmdline()):
                    found.append(child)
    return found


def is_alive(pid):
    """Whether a process is at work: one that has ended may wait for its parent for a while yet."""
    with suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def peak_bytes(pid):
    """Return the largest resident size a process has had, 0 where it is gone."""
    with suppress(OSError, IndexError):
        status = Path(f"/proc/{pid}/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    return 0


@dataclass
class Peaks:
    """Largest resident sizes of a run, in bytes."""

    driver: int
    workers: dict[int, int]
    text: str

    @property
    def largest(self):
        return max(self.workers.values())


def run_measured(*arguments):
    """Run the program to its end; return the peaks of the driver and of each worker."""
    process = start(*arguments)
    driver, workers = 0, {}
    while process.poll() is None:
        driver = max(driver, peak_bytes(process.pid))
        for worker in workers_of(process):
            workers[worker.pid] = max(workers.get(worker.pid, 0), peak_bytes(worker.pid))
        time.sleep(0.02)
    text, _ = process.communicate()
    assert process.returncode == 0, text
    return Peaks(driver, workers, text)


def marks(partial):
    """Return one byte per block of an unfinished output's ledger; 1 is finished."""
    with suppress(OSError, IndexError, ValueError):  # there is none, or not all of it yet
        _, _, n_blocks, raw = (partial / ".ledger").read_bytes().split(b"\n", 3)
        return raw[: int(n_blocks)]
    return b""


def inside(partial, path):
    """Return what an unfinished output holds of this name: below the key of its request."""
    return next(partial.glob(f"*/{path}"), partial / "none")


def store_of(partial):
    """Return the store of an unfinished volume."""
    return inside(partial, "volume.zarr")


def wait_until(condition, process):
    """Wait for a mark of progress; fail if the program ends before."""
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until, "no such progress"
        time.sleep(0.001)


def kill_when(condition, *arguments, may_end=False):
    """Run the program, kill it with SIGKILL at a mark of progress; wait until its workers end.

    Returns whether it was killed: with ``may_end`` it may have passed a short-lived mark and ended.
    """
    process = start(*arguments)
    try:
        wait_until(condition, process)
    except AssertionError:
        if may_end and process.returncode == 0:
            return False
        raise
    workers = workers_of(process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=PATIENCE_S)
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive, "workers outlived their driver"
    return True


def files_of(folder):
    """Return the digest of each file of a folder by its name."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def times_of(folder):
    """Return the time of the last change of each file of a folder by its name.

    What vanishes meanwhile is left out: a folder may get its final name while it is looked through.
    """
    times = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            with suppress(FileNotFoundError):
                times[str(path.relative_to(folder))] = path.stat().st_mtime_ns
    return times
