"""A cache of fingerprints of one test, and what is read to find them."""

from __future__ import annotations

import pytest

from deepict_dask.engine import content


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of this test alone, in which a change of a moment ago counts as long ago."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(content, "SETTLED_NS", -1 << 62)
    return tmp_path / "cache"


@pytest.fixture
def reads(monkeypatch):
    """The files that are read, in order."""
    seen, read = [], content._digest_of_file

    def counted(path):
        seen.append(path.name)
        return read(path)

    monkeypatch.setattr(content, "_digest_of_file", counted)
    return seen
