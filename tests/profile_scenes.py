"""The least profile of a batch system, and a scheduler that nobody asks."""

from __future__ import annotations

import pytest

SCHEDULER = "tcp://10.0.0.1:8786"
LEAST = {"memory_per_job": "8GiB", "walltime": "02:00:00"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
