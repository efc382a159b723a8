"""Filaments do not depend on how the mask is cut into chunks, nor on the number of workers.

The oracle is the mask thinned as one block. Thinning is not local in theory; with the declared halo
the skeletons were identical in every case that was tried (see `settings._REACH_RADII`), so the
tests ask for equality, not for a tolerance.
"""

from __future__ import annotations

import numpy as np
import pytest
from filament_scenes import LENGTHS, SHAPE, skeleton_of, straight, trace, tube
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from deepict_dask.core.geometry import Grid
from deepict_dask.filaments import SkeletonReduction
from deepict_dask.filaments.settings import VoxelLengths


def random_scene(seed, radius, roughness, n_tubes, *, hollow=False):
    """Tubes in all directions that cross, touch and leave the volume."""
    rng = np.random.default_rng(seed)
    noise = roughness * ndimage.gaussian_filter(rng.normal(size=SHAPE), 1.0)
    mask = np.zeros(SHAPE, bool)
    for _ in range(n_tubes):
        a, b, c = rng.uniform(0, 1, (3, 3)) * SHAPE
        t = np.linspace(0, 1, 800)[:, None]
        mask |= tube((1 - t) ** 2 * a + 2 * t * (1 - t) * b + t * t * c, radius, roughness=noise)
    if hollow:
        mask &= ndimage.distance_transform_edt(mask) <= 2
    return mask


@given(
    seed=st.integers(0, 10_000),
    radius=st.floats(1.5, 6),
    roughness=st.sampled_from([0.0, 2.0, 4.0]),
    chunks=st.tuples(*[st.integers(20, 60)] * 3),
    erode=st.sampled_from([1, 3]),
    hollow=st.booleans(),
)
def test_the_skeleton_does_not_depend_on_the_chunks(seed, radius, roughness, chunks, erode, hollow):
    mask = random_scene(seed, radius, roughness, 3, hollow=hollow)
    reach = int(np.ceil(radius)) + 1
    hole = 2 * reach if hollow else 0  # without holes the halo is that of the thinning alone
    lengths = VoxelLengths(radius=reach, hole=hole, erode=erode)
    whole = skeleton_of(mask, lengths)
    cut = skeleton_of(mask, lengths, chunks)
    assert cut.voxels.tolist() == whole.voxels.tolist()
    assert cut.n_foreground == whole.n_foreground == mask.sum()


@pytest.mark.parametrize("chunks", [(16, 16, 16), (64, 22, 13), (1, 88, 104)])
def test_picks_and_their_order_do_not_depend_on_the_chunks(chunks):
    mask = random_scene(5, 4, 2.0, 5)
    filaments, whole = trace(mask)
    assert len(filaments) >= 3
    again, cut = trace(mask, chunks=chunks)
    assert len(again) == len(filaments)
    assert cut.equals(whole)


def test_picks_do_not_depend_on_where_a_window_starts():
    """Thinning treats no voxel by its place: a moved mask has a moved skeleton."""
    mask = random_scene(3, 4, 2.0, 3)
    moved = np.pad(mask, ((1, 0), (2, 0), (3, 0)))
    found = np.argwhere(_as_mask(skeleton_of(moved).voxels, moved.shape))
    assert (found - [1, 2, 3]).tolist() == np.argwhere(
        _as_mask(skeleton_of(mask).voxels, SHAPE)
    ).tolist()


def _as_mask(voxels, shape):
    padded = np.zeros([n + 2 for n in shape], bool)
    padded.ravel()[voxels] = True
    return padded[1:-1, 1:-1, 1:-1]


def test_a_hole_that_a_chunk_face_cuts_is_filled_on_both_sides():
    """A microtubule's wall along x: each slice across it is a ring, and faces pass through all."""
    wall = tube(straight((32, 44, 0), (32, 44, 103)), 7) & ~tube(
        straight((32, 44, 0), (32, 44, 103)), 4
    )
    _, whole = trace(wall)
    assert np.abs(whole[["z", "y"]].to_numpy() - [32, 44]).max() <= 0.5
    assert trace(wall, chunks=(32, 44, 26))[1].equals(whole)


def test_chunks_of_a_mask_thicker_than_declared_are_counted():
    mask = tube(straight((32, 44, 10), (32, 44, 94)), 12)
    thin = VoxelLengths(radius=6, hole=0)
    assert skeleton_of(mask, thin, chunks=(64, 88, 52)).n_thick == 2
    assert skeleton_of(mask, VoxelLengths(radius=12, hole=0)).n_thick == 0


@pytest.mark.parametrize("n_tubes", [1, 2, 4, 8])
def test_chunks_of_tubes_that_touch_side_by_side_are_counted(n_tubes):
    mask = np.zeros((11, 88, 104), bool)
    for y in range(10, 10 + 5 * n_tubes, 5):
        away = np.hypot(*np.meshgrid(np.arange(11) - 5, np.arange(88) - y, indexing="ij"))
        mask[..., 5:85] |= (away <= 2.6)[..., None]
    lengths = VoxelLengths(radius=3, hole=0)
    whole, cut = skeleton_of(mask, lengths), skeleton_of(mask, lengths, chunks=(11, 30, 30))
    # a sheet is neither one tube nor several: what is made of it depends on the chunks
    assert (whole.n_thick, cut.n_thick > 0) == (int(n_tubes > 1), n_tubes > 1)
    if n_tubes == 1:
        assert cut.voxels.tolist() == whole.voxels.tolist()


def test_the_reduction_is_associative_and_commutative():
    mask = random_scene(1, 3, 0.0, 3)
    op = SkeletonReduction(SHAPE, LENGTHS)
    blocks = list(Grid(SHAPE, (32, 44, 104), halo=LENGTHS.halo))
    a, b, c, d = (op.measure(block, mask[block.read.slices]) for block in blocks)
    one = op.finalize(op.combine(op.combine(a, b), op.combine(c, d)))
    other = op.finalize(op.combine(d, op.combine(b, op.combine(c, a))))
    assert one.voxels.tolist() == other.voxels.tolist()
    assert (one.n_foreground, one.n_thick) == (other.n_foreground, other.n_thick)
