"""Points for napari are written in pieces: any list is exported in the memory of one."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest

from deepict_dask.core.volume import VolumeHeader
from deepict_dask.io.ome_zarr_write import create_ome_zarr
from deepict_dask.io.replace import replace_file
from deepict_dask.viewing import export
from deepict_dask.viewing.scene import PointsLayer

N_PICKS = 60_000


@pytest.fixture
def layer(tmp_path, monkeypatch):
    """A list of more picks than a piece has."""
    monkeypatch.setattr(export, "_BATCH_ROWS", 1000)
    random = np.random.default_rng(0)
    table = pd.DataFrame(random.random((N_PICKS, 4)).round(3), columns=["score", "x", "y", "z"])
    (tmp_path / "picks").mkdir()
    table.to_csv(tmp_path / "picks" / "picks.csv", index=False)
    create_ome_zarr(tmp_path / "a.zarr", VolumeHeader((4, 4, 4), "uint8", 10.0), chunks=(4, 4, 4))
    return PointsLayer("picks", tmp_path / "picks", "red")


def test_a_list_of_many_pieces_is_one_table_and_never_whole_in_memory(tmp_path, layer):
    path = tmp_path / "points.csv"
    export._write_points(layer, path, tmp_path / "a.zarr")  # what is imported once is not counted
    tracemalloc.start()
    assert export._write_points(layer, path, tmp_path / "a.zarr") == path
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size
    picks, points = pd.read_csv(layer.folder / "picks.csv"), pd.read_csv(path)
    assert points["index"].tolist() == list(range(N_PICKS))
    np.testing.assert_allclose(points[["axis-0", "axis-1", "axis-2"]], 10 * picks[["z", "y", "x"]])
    np.testing.assert_array_equal(points.score, picks.score)


def test_pieces_that_fail_leave_the_file_that_was_there(tmp_path):
    def pieces():
        yield b"new"
        raise OSError("the list is cut short")

    replace_file(tmp_path / "a.csv", "old")
    with pytest.raises(OSError, match="cut short"):
        replace_file(tmp_path / "a.csv", pieces())
    assert (tmp_path / "a.csv").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]
