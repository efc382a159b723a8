"""Filaments of synthetic tubes: the truth is the line that each tube was drawn around."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from filament_scenes import (
    LENGTHS,
    SHAPE,
    angle_errors,
    arc,
    directions,
    miss,
    positions,
    recall,
    spacing_error,
    straight,
    trace,
    tube,
)
from scipy import ndimage
from scipy.spatial.transform import Rotation

from deepict_dask.core.errors import VoxelValueError
from deepict_dask.filaments import FilamentSettings, filament_table
from deepict_dask.filaments.graph import cut_pieces, encode, prune
from deepict_dask.filaments.link import Line, link_lines
from deepict_dask.filaments.orientation import carried_frames, direction_of, euler_angles
from deepict_dask.filaments.settings import VoxelLengths
from deepict_dask.filaments.skeleton import fill_small_holes, foreground

TUBES = {
    "along_x": (straight((32, 44, 10), (32, 44, 94)), 5, 0.5),
    "along_y": (straight((32, 10, 52), (32, 78, 52)), 4, 0.5),
    "along_z": (straight((8, 44, 20), (56, 44, 20)), 5, 0.5),
    "oblique": (straight((12, 20, 12), (54, 70, 92)), 4, 3.0),
    "thin": (straight((12, 20, 12), (54, 70, 92)), 1.5, 3.0),
    "curved": (arc((26, 12, 52), 48, 0.5, 2.6, climb=0.15), 5, 8.0),
    "bent_hard": (arc((32, 40, 52), 30, 0.0, 3.4), 4, 12.0),
}
"""Line, radius, largest error of a direction in degrees."""


@pytest.mark.parametrize("name", TUBES)
def test_a_tube_gives_one_filament_on_its_axis(name):
    line, radius, worst_angle = TUBES[name]
    filaments, table = trace(tube(line, radius))
    assert len(filaments) == 1
    assert miss(table, [line]).max() <= 1.0
    assert recall(filaments, [line]) >= 0.98
    assert spacing_error(table, LENGTHS.step) <= 0.02
    errors = angle_errors(table, line)
    assert errors.max() <= worst_angle
    assert np.median(errors) <= 2.0


@pytest.mark.parametrize("radius", [3, 5, 7])
def test_a_rough_tube_gives_one_filament_with_steady_directions(radius):
    rng = np.random.default_rng(radius)
    roughness = 4 * ndimage.gaussian_filter(rng.normal(size=SHAPE), 1.0)
    line = arc((26, 12, 52), 48, 0.5, 2.6, climb=0.15)
    filaments, table = trace(tube(line, radius, roughness=roughness))
    assert len(filaments) == 1
    assert recall(filaments, [line]) >= 0.95
    assert spacing_error(table, LENGTHS.step) <= 0.02
    assert np.median(angle_errors(table, line)) <= 4.0
    assert angle_errors(table, line).max() <= 15.0


@pytest.mark.parametrize("apart", [1, 3])
def test_parallel_neighbours_are_two_filaments(apart):
    radius = 4
    lines = [straight((32, y, 10), (32, y, 94)) for y in (36, 36 + 2 * radius + 1 + apart)]
    filaments, table = trace(tube(lines[0], radius) | tube(lines[1], radius))
    assert len(filaments) == 2
    assert miss(table, lines).max() <= 0.5
    assert recall(filaments, lines) >= 0.98


def test_touching_neighbours_are_parted_by_erosion():
    lines = [straight((32, y, 10), (32, y, 94)) for y in (36, 45)]
    mask = tube(lines[0], 4.1) | tube(lines[1], 4.1)
    assert ndimage.label(mask)[1] == 1
    eroded = VoxelLengths(**{**LENGTHS.__dict__, "erode": 5})
    filaments, table = trace(mask, eroded)
    assert len(filaments) == 2
    assert miss(table, lines).max() <= 1.0


@pytest.mark.parametrize("degrees", [45, 60, 90])
def test_crossing_tubes_are_two_filaments_that_go_straight_on(degrees):
    way = 34 * np.array([0, np.sin(np.radians(degrees)), np.cos(np.radians(degrees))])
    middle = np.array([32, 44, 52])
    lines = [straight((32, 44, 10), (32, 44, 94)), straight(middle - way, middle + way)]
    filaments, table = trace(tube(lines[0], 4) | tube(lines[1], 4))
    assert len(filaments) == 2
    lengths = sorted(filament.curve.length for filament in filaments)
    assert lengths == pytest.approx([68, 84], abs=6)
    assert miss(table, lines).max() <= 1.0
    assert recall(filaments, lines) >= 0.98
    for (_, one), line in zip(table.groupby("filament_id"), lines, strict=True):
        ways = np.abs(directions(one) @ (line[-1] - line[0])) / np.linalg.norm(line[-1] - line[0])
        other = lines[1] if line is lines[0] else lines[0]
        across = np.abs(directions(one) @ (other[-1] - other[0]))
        across /= np.linalg.norm(other[-1] - other[0])
        assert (np.maximum(ways, across) > 0.99).all()


def test_a_hollow_microtubule_has_one_axis():
    line = straight((18, 20, 12), (46, 68, 92))
    wall = tube(line, 7) & ~tube(line, 4)
    filaments, table = trace(wall)
    assert len(filaments) == 1
    assert miss(table, [line]).max() <= 1.0
    no_filling = VoxelLengths(**{**LENGTHS.__dict__, "hole": 0})
    assert len(trace(wall, no_filling)[1]) != len(table)


def test_a_gap_within_the_limit_is_linked_and_the_line_is_straight_there():
    line = straight((20, 30, 10), (44, 58, 94))
    mask = tube(line, 4)
    mask[:, :, 48:58] = False
    filaments, table = trace(mask)
    assert len(filaments) == 1
    assert miss(table, [line]).max() <= 1.0
    assert spacing_error(table, LENGTHS.step) <= 0.02
    assert recall(filaments, [line]) >= 0.98


def test_a_gap_beyond_the_limit_is_not_linked():
    mask = tube(straight((32, 44, 6), (32, 44, 98)), 4)
    mask[:, :, 38:66] = False
    assert len(trace(mask)[0]) == 2


def test_ends_that_meet_at_an_angle_are_not_linked():
    lines = [straight((32, 20, 8), (32, 20, 50)), straight((32, 28, 58), (32, 70, 82))]
    mask = tube(lines[0], 3) | tube(lines[1], 3)
    assert len(trace(mask)[0]) == 2
    assert len(trace(mask, max_angle_degrees=75.0)[0]) == 1


def test_an_end_takes_its_best_partner_not_the_first():
    def run(start, stop):
        return Line(np.linspace(start, stop, 20))

    left, ahead = run((0, 0, 0), (0, 0, 19)), run((0, 0, 26), (0, 0, 45))
    aside = run((0, 3, 24), (0, 8, 43))
    linked = link_lines([left, aside, ahead], max_gap=20, max_angle_degrees=25)
    assert sorted(len(line.points) for line in linked) == [20, 40]
    longest = max(linked, key=lambda line: len(line.points))
    assert np.abs(longest.points[:, 1]).max() == 0


def test_a_ring_is_one_closed_filament_with_even_steps_all_round():
    line = arc((32, 44, 52), 28, 0, 2 * np.pi)
    filaments, table = trace(tube(line, 4))
    assert [filament.curve.closed for filament in filaments] == [True]
    assert filaments[0].curve.length == pytest.approx(2 * np.pi * 28, rel=0.01)
    assert miss(table, [line]).max() <= 1.0
    assert recall(filaments, [line]) >= 0.98
    points = positions(table)
    gaps = np.linalg.norm(points - np.roll(points, 1, axis=0), axis=1)
    assert np.abs(gaps / LENGTHS.step - 1).max() <= 0.02
    assert np.median(angle_errors(table, line)) <= 2.0


def test_a_ring_with_a_gap_is_closed():
    mask = tube(arc((32, 44, 52), 28, 0.0, 2 * np.pi - 0.2), 3)
    filaments, _ = trace(mask, max_angle_degrees=40.0)
    assert [filament.curve.closed for filament in filaments] == [True]


def test_a_tube_through_the_border_ends_within_a_radius_of_it():
    radius = 5
    line = straight((32, 44, -20), (32, 44, 130))
    filaments, table = trace(tube(line, radius))
    assert len(filaments) == 1
    assert miss(table, [line]).max() <= 0.5
    ends = filaments[0].curve.points[[0, -1], 2]
    assert ends[0] <= radius
    assert ends[1] >= SHAPE[2] - 1 - radius


def test_a_tube_that_the_border_cuts_lengthwise_keeps_its_axis():
    filaments, table = trace(tube(straight((2, 44, 10), (2, 44, 94)), 5))
    assert len(filaments) == 1
    assert miss(table, [straight((2, 44, 10), (2, 44, 94))]).max() <= 1.0


@pytest.mark.parametrize("n_voxels", [0, 1, 3])
def test_fewer_voxels_than_a_curve_needs_are_no_filament(n_voxels):
    mask = np.zeros((9, 9, 9), bool)
    mask[4, 4, 2 : 2 + n_voxels] = True
    filaments, table = trace(mask)
    assert filaments == []
    assert len(table) == 0


def test_short_filaments_are_dropped_after_linking():
    mask = np.zeros((7, 7, 60), bool)
    mask[3, 3, 2:15] = mask[3, 3, 20:33] = True  # 13 voxels each, linked to 31
    mask[3, 3, 50:58] = True
    linked = VoxelLengths(**{**LENGTHS.__dict__, "radius": 2, "max_gap": 8.0})
    assert [round(f.curve.length) for f in trace(mask, linked)[0]] == [30]


def test_picks_of_a_filament_are_in_order_and_their_track_lengths_grow_by_the_step():
    _, table = trace(tube(TUBES["curved"][0], 4))
    steps = np.diff(table["track_length_angstrom"])
    assert np.allclose(steps, 10 * LENGTHS.step, atol=1e-3)
    assert table["label"].tolist() == list(range(1, len(table) + 1))


def test_all_picks_of_a_filament_point_one_way():
    _, table = trace(tube(TUBES["bent_hard"][0], 4))
    ways = np.diff(positions(table), axis=0)
    assert ((ways * directions(table)[1:]).sum(axis=1) > 0).all()


def test_angles_are_those_of_relion():
    """Its matrix is the inverse of the intrinsic ZYZ rotation and takes z to the filament."""
    rng = np.random.default_rng(0)
    tangents = rng.normal(size=(50, 3))
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    frames = carried_frames(tangents, twist_degrees=40.0)
    angles = euler_angles(frames)
    matrices = Rotation.from_euler("ZYZ", angles, degrees=True).inv().as_matrix()
    assert np.allclose(matrices, frames, atol=1e-9)
    assert np.allclose(matrices[:, ::-1, 2], tangents, atol=1e-9)
    assert np.allclose(direction_of(angles), tangents, atol=1e-9)


@pytest.mark.parametrize("z", [1.0, -1.0])
def test_angles_along_the_z_axis_are_a_turn_about_it(z):
    frames = carried_frames(np.array([[z, 0, 0]] * 4), twist_degrees=30.0)
    matrices = Rotation.from_euler("ZYZ", euler_angles(frames), degrees=True).inv().as_matrix()
    assert np.allclose(matrices, frames, atol=1e-9)


@pytest.mark.parametrize("backwards", [False, True])
def test_the_twist_is_right_handed_about_the_filament_whichever_way_it_points(backwards):
    tangent = Rotation.random(rng=3).as_matrix()[:, 0] * (-1 if backwards else 1)
    twist = 360 / 13
    frames = carried_frames(np.array([tangent[::-1]] * 14), twist)
    for one, other in itertools.pairwise(frames):
        turn = Rotation.from_matrix(other @ one.T).as_rotvec(degrees=True)
        assert np.allclose(turn, twist * tangent, atol=1e-6)
    assert np.allclose(frames[13], frames[0], atol=1e-9)


def test_without_twist_a_frame_does_not_turn_about_a_planar_curve():
    angle = np.linspace(0, 2, 200)
    tangents = np.stack([0 * angle, np.cos(angle), np.sin(angle)], axis=-1)
    frames = carried_frames(tangents)
    normal = frames[0].T @ [0, 0, 1]  # the plane's normal, seen by the particle
    assert np.allclose(np.einsum("nij,i->nj", frames, [0, 0, 1]), normal, atol=1e-9)


def test_spurs_go_and_the_line_they_stood_on_stays_whole():
    shape = (3, 20, 60)
    line = [[1, 10, x] for x in range(60)]
    spurs = [[1, 10 + s * d, x + d] for x, s in ((12, 1), (30, -1), (45, 1)) for d in range(1, 5)]
    voxels = np.unique(encode(line + spurs, shape))
    pieces = cut_pieces(prune(voxels, shape, radius=8), shape).pieces
    assert [len(piece.voxels) for piece in pieces] == [60]


def test_a_small_hole_in_a_line_is_passed_on_one_side():
    shape = (3, 20, 60)
    line = [[1, 10, x] for x in range(60) if not 25 < x < 32]
    bulge = enumerate((1, 2, 3, 3, 2, 1), 26)
    sides = [[1, 10 + side * far, x] for x, far in bulge for side in (1, -1)]
    pieces = cut_pieces(
        prune(np.unique(encode(line + sides, shape)), shape, radius=8), shape
    ).pieces
    assert [len(piece.voxels) for piece in pieces] == [60]


def test_long_branches_are_no_spurs():
    shape = (3, 40, 60)
    voxels = np.unique(
        encode([[1, 5, x] for x in range(60)] + [[1, y, 30] for y in range(6, 30)], shape)
    )
    pieces = cut_pieces(prune(voxels, shape, radius=8), shape).pieces
    assert sum(len(piece.voxels) > 20 for piece in pieces) == 3


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_holes_are_filled_up_to_the_limit_and_bays_never(axis):
    plane = np.ones((12, 12), bool)
    plane[2:4, 2:5] = False  # a hole, 3 wide
    plane[7:10, 6:11] = False  # a hole, 5 wide
    plane[0:3, 8] = False  # a bay
    mask = np.zeros((12, 12, 12), bool)
    np.moveaxis(mask, axis, 0)[5] = plane
    filled = np.moveaxis(fill_small_holes(mask, 3), axis, 0)[5]
    expected = plane.copy()
    expected[2:4, 2:5] = True
    assert (filled == expected).all()


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (np.array([0, 255], "uint8"), [False, True]),
        (np.array([0.0, 0.4, 0.6, 1.0], "float32"), [False, False, True, True]),
        (np.array([False, True]), [False, True]),
    ],
)
def test_masks_of_any_type_have_the_same_foreground(window, expected):
    assert foreground(window).tolist() == expected


@pytest.mark.parametrize("bad", [-1.0, np.nan])
def test_negative_voxels_and_nan_are_no_mask(bad):
    with pytest.raises(VoxelValueError, match="expected a mask of 0 outside"):
        foreground(np.array([0.0, bad, 1.0]))


def test_lengths_in_nm_become_voxels():
    lengths = FilamentSettings(step_nm=8, max_radius_nm=12.5, max_gap_nm=30).voxels(13.48)
    assert lengths.step == pytest.approx(8 / 1.348)
    assert lengths.radius == 10
    assert lengths.hole == 20
    assert lengths.halo == (55, 55, 55)


def test_an_empty_table_has_the_columns_of_a_full_one():
    _, full = trace(tube(TUBES["thin"][0], 2))
    empty = filament_table([], 6.0, voxel_spacing_angstrom=10.0)
    assert empty.columns.tolist() == full.columns.tolist()
