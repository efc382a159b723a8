"""What a training's heap keeps: blocks of all its threads, until its end."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")

_PROGRAM = """
import contextlib, resource, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from deepict_dask.core.heap import one_heap

def blocks(_):
    for _ in range(20):
        some = [bytearray(b"x") * 12_000_000 for _ in range(10)]
        del some

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

before = resident()
with one_heap() if sys.argv[1] == "one" else contextlib.nullcontext():
    with ThreadPoolExecutor(1) as threads:
        first = faults()
        list(threads.map(blocks, range(2)))
        print(faults() - first)
print(resident() - before)
"""


def _faults_and_growth(how: str) -> tuple[int, int]:
    command = [sys.executable, "-c", _PROGRAM, how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    faults, growth = map(int, done.stdout.split())
    return faults, growth


def test_blocks_of_threads_are_not_mapped_anew_each_time() -> None:
    kept, _ = _faults_and_growth("one")
    usual, _ = _faults_and_growth("usual")
    pages = 120_000_000 // 4096  # of all blocks, once
    assert kept < 2 * pages
    assert usual > 4 * pages


def test_what_was_kept_is_given_back() -> None:
    _, growth = _faults_and_growth("one")
    assert growth < 24_000_000
