"""Regions restrict picks that are points, and distances to regions are measured for them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from deepict_dask.config import ContactSettings, PickSettings
from deepict_dask.core.errors import ShapeMismatchError
from deepict_dask.core.geometry import Box
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.io.ome_zarr_write import create_ome_zarr
from deepict_dask.io.picks import read_picks
from deepict_dask.jobs.picking.pick import pick_particles
from deepict_dask.jobs.session import Session

SHAPE = (24, 48, 64)
CENTRES = np.array([[8, 8, 8], [8, 24, 20], [12, 38, 30], [14, 12, 40], [10, 30, 52]])
POOL = {"method": "mp-nms", "diameters": (9,)}
SHIFT = {"method": "mean-shift", "bandwidth": 4}


def stored(path, voxels):
    writer = create_ome_zarr(path, VolumeHeader(voxels.shape, voxels.dtype.name, 10.0))
    writer.write(Box.whole(voxels.shape), voxels)
    return path


@pytest.fixture
def score(tmp_path):
    balls = np.zeros(SHAPE, np.float32)
    z, y, x = np.indices(SHAPE)
    for centre in CENTRES:
        near = sum((axis - c) ** 2 for axis, c in zip((z, y, x), centre, strict=True)) <= 16
        balls[near] = 1
    return stored(tmp_path / "s.zarr", balls)


@pytest.fixture
def half(tmp_path):
    """Half of the volume, slanted."""
    z, y, x = np.indices(SHAPE)
    mask = (x + y - z < 50).astype(np.uint8)
    return stored(tmp_path / "half.zarr", mask), mask


def picks_of(workers, score, folder, regions, **settings):
    session = Session(workers, chunks=(16, 16, 24), overwrite=True)
    pick_particles(session, score, folder, PickSettings(**settings), regions=regions)
    return read_picks(folder / "picks.csv")


@pytest.mark.parametrize("method", [POOL, SHIFT], ids=["mp-nms", "mean-shift"])
def test_points_in_and_near_a_region_are_kept_with_their_distance(
    two_workers, score, half, tmp_path, method
):
    path, mask = half
    away = distance_transform_edt(mask == 0)[tuple(CENTRES.T)]
    assert 0 < (away == 0).sum() < len(CENTRES)

    def found(**asked):
        picks = picks_of(two_workers, score, tmp_path / "p", {"half": path}, **method, **asked)
        places = np.rint(picks[["z", "y", "x"]].to_numpy()).astype(int)
        which = [int(np.abs(CENTRES - place).sum(axis=1).argmin()) for place in places]
        assert np.abs(CENTRES[which] - places).max() <= 1
        np.testing.assert_allclose(
            picks["distance_half_nm"], distance_transform_edt(mask == 0)[tuple(places.T)], rtol=1e-6
        )
        return sorted(which)

    everything = list(range(len(CENTRES)))
    assert found() == everything
    assert found(region="half") == np.flatnonzero(away == 0).tolist()
    limit = float(np.sort(away[away > 0])[0]) + 2
    near = ContactSettings(region="half", mode="colocalization", distance_nm=limit)
    assert found(contacts=(near,)) == np.flatnonzero(away <= limit).tolist()
    assert len(np.flatnonzero(away <= limit)) < len(CENTRES)


def test_what_points_cannot_be_asked_is_refused(two_workers, score, tmp_path):
    with pytest.raises(ValueError, match="'half': expected intersection or colocalization"):
        PickSettings(**POOL, contacts=(ContactSettings(region="half", mode="contact"),))
    other = stored(tmp_path / "o.zarr", np.ones((8, 8, 8), np.uint8))
    with pytest.raises(ShapeMismatchError, match="region mask of the score map's shape"):
        picks_of(two_workers, score, tmp_path / "p", {"o": other}, **SHIFT, compat="deepfinder")


def test_a_region_that_keeps_nothing_is_told(two_workers, score, tmp_path, caplog):
    empty = np.zeros(SHAPE, np.uint8)
    empty[-1, -1, -1] = 1
    mask = stored(tmp_path / "m.zarr", empty)
    picks = picks_of(two_workers, score, tmp_path / "p", {"m": mask}, **POOL, region="m")
    assert len(picks) == 0
    assert "none of 5 meets the contact" in caplog.text
