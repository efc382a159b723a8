"""Results of runs, and what `view` makes of them."""

from __future__ import annotations

import pytest
from report_scenes import write_run
from typer.testing import CliRunner

from deepict_dask.cli import app
from deepict_dask.io import pyramid
from deepict_dask.jobs.session import Session
from deepict_dask.viewing import export_scene, scenes_of


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """Levels of small volumes: down to 12 voxels."""
    monkeypatch.setattr(pyramid, "COARSEST", 12)


@pytest.fixture
def results(tmp_path):
    return write_run(tmp_path)


@pytest.fixture
def made(results, two_workers):
    (scene,) = scenes_of(results)
    return export_scene(Session(two_workers, chunks=(16, 16, 16)), scene, results / "viewer")


def run_view(*words):
    return CliRunner().invoke(app, ["view", *map(str, words)])
