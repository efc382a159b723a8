"""A level of an image is known by its group's metadata; what is replaced meanwhile is read."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from content_scenes import cache, reads

from deepict_dask.core.geometry import Box
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.engine import content, fingerprint
from deepict_dask.io.ome_zarr_write import create_ome_zarr

__all__ = ["cache", "reads"]

SHAPE = (4, 4, 8)


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "cell.zarr"
    writer = create_ome_zarr(path, VolumeHeader(SHAPE, "float32", 10.0), chunks=(4, 4, 4))
    writer.write(Box.whole(SHAPE), np.ones(SHAPE, "float32"))
    (path / ".zattrs").write_text("{}")
    return path


@pytest.mark.parametrize("name", ["zarr.json", ".zattrs"])
def test_a_level_is_known_by_the_metadata_of_its_group_too(store, tmp_path, name):
    level, chunks, text = fingerprint(store / "0"), fingerprint(store / "0/c"), store / name
    before = text.read_text()
    text.write_text(f"{before} ")
    assert fingerprint(store / "0") != level
    assert fingerprint(store / "0/c") == chunks
    text.write_text(before)
    assert fingerprint(store / "0") == level
    other = shutil.copytree(store, tmp_path / "other.zarr")
    assert fingerprint(other / "0") == level


def test_an_unchanged_level_is_read_once(store, reads):
    for _ in range(2):
        fingerprint(store / "0")
    assert reads.count("zarr.json") == 2  # the level's and the group's


def test_a_file_that_is_away_for_a_moment_is_read_all_the_same(store, reads, monkeypatch):
    file, stamp, looks = store / "zarr.json", content._stamp, []
    expected = content._digest_of_file(file)

    def away_at_first(path):
        looks.append(path)
        if len(looks) == 1:
            raise FileNotFoundError(path)
        return stamp(path)

    monkeypatch.setattr(content, "_stamp", away_at_first)
    assert [fingerprint(file) for _ in range(2)] == [expected] * 2
    assert reads == ["zarr.json"] * 3  # at the first look there was no stamp to remember it by
