"""Outputs in the making, for the tests of staging."""

from __future__ import annotations

from deepict_dask.engine import StagedOutput

ONE_KEY, OTHER_KEY = "1" * 64, "2" * 64


def make(path, key=ONE_KEY, *, text="finished", overwrite=False, own=None):
    """Make a folder with one file and the mark of a finished result."""
    with StagedOutput(path, key, overwrite=overwrite, own=own) as staged:
        (staged.folder / "picks.csv").write_text(text)
        (staged.folder / "run.json").write_text("{}")
        staged.commit()
