"""Chunk geometry, against counting voxels one by one.

Mistakes these tests are meant to see: a voxel written twice or never, a window that starts off the
alignment, lacks some of its halo, or differs in shape from its neighbours, a crop that is shifted.
"""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepict_dask.core.errors import ShapeMismatchError
from deepict_dask.core.geometry import Block, Box, Grid, as_vec, ceil_to, floor_to

examples = settings(max_examples=150, deadline=None)


def vec(low, high):
    return st.tuples(*[st.integers(low, high)] * 3)


@st.composite
def grids(draw, one_shape=None):
    """Grids whose write boxes, halos and alignment fit one another or not."""
    align = draw(st.sampled_from([1, 2, 4]))
    halo = draw(vec(0, 9))
    if draw(st.booleans()):
        halo = as_vec([ceil_to(h, align) for h in halo])
    return Grid(
        shape=draw(vec(1, 24)),
        write_shape=draw(vec(1, 13)),
        halo=halo,
        align=align,
        one_shape=draw(st.booleans()) if one_shape is None else one_shape,
    )


@examples
@given(grid=grids())
def test_write_boxes_tile_the_volume_exactly_once(grid):
    times_written = np.zeros(grid.shape, np.int64)
    for block in grid:
        times_written[block.write.slices] += 1
    assert (times_written == 1).all()


@examples
@given(grid=grids())
def test_write_boxes_are_whole_chunks_but_for_the_far_end(grid):
    for block in grid:
        ends = zip(block.write.start, block.write.stop, grid.write_shape, grid.shape, strict=True)
        for start, stop, step, size in ends:
            assert start % step == 0
            assert stop == min(start + step, size)


@examples
@given(grid=grids())
def test_windows_hold_the_write_box_with_its_halo_inside_the_volume(grid):
    for block in grid:
        assert block.read.holds(block.write.grow(grid.halo, within=grid.shape))
        assert Box.whole(grid.shape).holds(block.read)


@pytest.mark.parametrize("one_shape", [True, False])
def test_a_halo_that_is_no_multiple_of_align_is_read_in_full(one_shape):
    grid = Grid((1, 1, 33), (1, 1, 8), halo=(0, 0, 2), align=4, one_shape=one_shape)
    for block in grid:
        assert block.read.holds(block.write.grow(grid.halo, within=grid.shape))
        assert block.read.shape[2] <= grid.window_shape[2]


@examples
@given(grid=grids())
def test_windows_start_on_multiples_of_align(grid):
    for block in grid:
        assert all(start % grid.align == 0 for start in block.read.start)


@examples
@given(grid=grids())
def test_windows_stop_on_multiples_of_align_or_at_the_end_of_the_volume(grid):
    for block in grid:
        for stop, size in zip(block.read.stop, grid.shape, strict=True):
            assert stop % grid.align == 0 or stop == size


@examples
@given(grid=grids(one_shape=True))
def test_windows_of_one_shape_differ_only_where_the_volume_ends_off_the_alignment(grid):
    for block in grid:
        sides = zip(block.read.shape, block.read.stop, grid.window_shape, grid.shape, strict=True)
        for side, stop, window, size in sides:
            assert window % grid.align == 0
            clipped = window - side
            assert clipped == 0 or (stop == size and size % grid.align != 0)
            assert 0 <= clipped < grid.align


@examples
@given(grid=grids(one_shape=False))
def test_no_window_is_larger_than_the_window_shape(grid):
    for block in grid:
        assert all(a <= b for a, b in zip(block.read.shape, grid.window_shape, strict=True))


@examples
@given(grid=grids(one_shape=False))
def test_without_alignment_or_one_shape_a_window_is_the_write_box_and_its_halo(grid):
    plain = Grid(grid.shape, grid.write_shape, grid.halo)
    for block in plain:
        assert block.read == block.write.grow(plain.halo, within=plain.shape)


@examples
@given(grid=grids())
def test_iteration_numbers_and_places_agree(grid):
    blocks = list(grid)
    assert len(blocks) == len(grid) == grid.n_blocks == np.prod(grid.counts)
    for number, (block, index) in enumerate(zip(blocks, np.ndindex(*grid.counts), strict=True)):
        assert block.number == number
        assert block.index == index
        assert grid[number] == grid.at(index) == block


@given(grid=grids())
def test_a_number_outside_the_grid_is_an_index_error(grid):
    for number in (-1, grid.n_blocks):
        with pytest.raises(IndexError):
            grid[number]


@examples
@given(grid=grids())
def test_cropping_what_was_read_gives_the_voxels_to_write(grid):
    coordinates = np.indices(grid.shape)
    written = np.full_like(coordinates, -1)
    for block in grid:
        window = coordinates[(slice(None), *block.read.slices)]
        written[(slice(None), *block.write.slices)] = block.crop(window)
        np.testing.assert_array_equal(block.crop(window[0]), coordinates[0][block.write.slices])
    np.testing.assert_array_equal(written, coordinates)


@examples
@given(start=vec(-5, 5), shape=vec(0, 5), offset=vec(-9, 9))
def test_a_box_holds_what_its_corners_say(start, shape, offset):
    box = Box(start, as_vec(np.add(start, shape)))
    assert box.shape == shape
    assert box.n_voxels == len(list(itertools.product(*map(range, box.start, box.stop))))
    assert box.shift(offset).shift(as_vec(np.negative(offset))) == box
    assert box.holds(box)
    moved = box.shift(offset)
    assert box.holds(moved) == (offset == (0, 0, 0))


@examples
@given(outer=vec(0, 4), low=vec(0, 3), shape=vec(1, 4))
def test_a_box_is_cut_out_of_an_array_over_another_box(outer, low, shape):
    inner = Box(as_vec(np.add(outer, low)), as_vec(np.add(np.add(outer, low), shape)))
    around = Box(outer, as_vec(np.add(inner.stop, 2)))
    volume = np.arange(np.prod(around.stop)).reshape(around.stop)
    cut = volume[around.slices][inner.slices_in(around)]
    np.testing.assert_array_equal(cut, volume[inner.slices])


@examples
@given(value=st.integers(-100, 100), multiple=st.integers(1, 17))
def test_rounding_to_a_multiple_goes_to_the_nearest_one_on_its_side(value, multiple):
    below, above = floor_to(value, multiple), ceil_to(value, multiple)
    assert below % multiple == above % multiple == 0
    assert value - multiple < below <= value <= above < value + multiple


@pytest.mark.parametrize(
    "settings_",
    [
        {"shape": (0, 4, 4), "write_shape": (4, 4, 4)},
        {"shape": (4, 4, 4), "write_shape": (4, 0, 4)},
        {"shape": (4, 4, 4), "write_shape": (4, 4, 4), "halo": (0, 0, -1)},
        {"shape": (4, 4, 4), "write_shape": (4, 4, 4), "align": 0},
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(settings_):
    with pytest.raises(ShapeMismatchError, match="grid: "):
        Grid(**settings_)


def test_a_box_that_stops_before_it_starts_is_refused():
    with pytest.raises(ShapeMismatchError, match="stops before it starts"):
        Box((0, 0, 3), (1, 1, 2))


def test_a_block_that_writes_what_it_does_not_read_is_refused():
    with pytest.raises(ShapeMismatchError, match="writes outside"):
        Block(0, (0, 0, 0), read=Box((0, 0, 0), (4, 4, 4)), write=Box((0, 0, 0), (4, 4, 5)))
