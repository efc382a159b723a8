"""Are targets where the particles are, and the same box by box as in one piece?"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from deepict_dask.core.errors import ConfigError, PicksFormatError
from deepict_dask.core.geometry import Box, as_vec
from deepict_dask.filaments.orientation import direction_of
from deepict_dask.io.array import ArrayReader
from deepict_dask.io.orientation import angles_from_av3, with_angles
from deepict_dask.training.orientations import rotations_of
from deepict_dask.training.targets import (
    Ball,
    LabelTargets,
    Targets,
    TurnedMask,
    particle_targets,
    sphere_target,
)

GOLDEN = Path(__file__).parents[1].parent / "shared" / "golden" / "deepetpicker" / "targets"
SHAPE = (13, 17, 19)
POINT = st.tuples(*(st.floats(-6, n + 6, allow_nan=False) for n in SHAPE))


def brute_force_balls(points, radius):
    """Compare every voxel with every centre."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), axis=-1)
    target = np.zeros(SHAPE, bool)
    for point in points:
        target |= ((grid - point) ** 2).sum(axis=-1) <= radius**2
    return target


@settings(deadline=None, max_examples=40)
@given(points=st.lists(POINT, max_size=6), radius=st.floats(0.5, 6), data=st.data())
def test_balls_painted_box_by_box_are_those_of_the_whole_volume(points, radius, data):
    centres = np.array(points).reshape(-1, 3)
    whole = brute_force_balls(centres, radius)
    targets = particle_targets(centres, Ball(radius))
    start = [data.draw(st.integers(0, n - 1)) for n in SHAPE]
    stop = [data.draw(st.integers(a + 1, n)) for a, n in zip(start, SHAPE, strict=True)]
    box = Box(as_vec(start), as_vec(stop))
    assert np.array_equal(targets.read(box), whole[box.slices])
    assert np.array_equal(sphere_target(centres, SHAPE, radius), whole)


def test_a_ball_of_8_voxels_holds_2109():
    assert sphere_target(np.array([[10, 10, 10]]), (21, 21, 21), 8).sum() == 2109


@pytest.mark.parametrize(("kind", "count"), [("ball", 123), ("tball", 287), ("cube", 343)])
def test_the_shapes_of_deepetpicker_of_diameter_7_hold_its_numbers_of_voxels(kind, count):
    targets = particle_targets(np.array([[8.9, 8.2, 8.5]]), Ball(3, kind))
    found = targets.read(Box.whole((17, 17, 17)))
    assert found.sum() == count
    assert np.flatnonzero(found[8, 8]).tolist() == [5, 6, 7, 8, 9, 10, 11], "centre cut off to 8"


@pytest.mark.parametrize(
    ("file", "kind"), [("sphere7", "ball"), ("gaussian7", "tball"), ("cubic7", "cube")]
)
def test_voxels_of_the_shapes_are_those_deepetpicker_labels(file, kind):
    if not GOLDEN.is_dir():
        pytest.skip("../shared/golden is absent")
    with np.load(GOLDEN / f"{file}.npz") as stored:
        labels = np.asarray(stored[stored.files[0]])
    rows = np.loadtxt(GOLDEN / "after_coords_gen.coords", ndmin=2)
    zyx = rows[:, :0:-1]
    painted = particle_targets(zyx, Ball(3, kind)).read(Box.whole(as_vec(labels.shape)))
    assert np.array_equal(painted > 0, labels > 0)


def stick(length=4):
    """Return a mask of 11 voxels' edge with a bar from its centre along +x."""
    mask = np.zeros((11, 11, 11), np.uint8)
    mask[5, 5, 5 : 5 + length] = 1
    return mask


def test_a_mask_without_a_turn_is_pasted_with_its_middle_voxel_on_the_particle():
    targets = particle_targets(np.array([[6.0, 7, 8]]), TurnedMask(stick(), np.eye(3)[None]))
    found = np.argwhere(targets.read(Box.whole(SHAPE)))
    assert found.tolist() == [[6, 7, x] for x in (8, 9, 10, 11)]


@pytest.mark.parametrize("psi", [0.0, 90.0, 200.0])
@pytest.mark.parametrize(("rot", "tilt"), [(0.0, 90.0), (40.0, 90.0), (10.0, 0.0)])
def test_a_bar_along_the_particles_z_points_where_relions_angles_say(rot, tilt, psi):
    bar = np.zeros((11, 11, 11), np.uint8)
    bar[5:10, 4:7, 4:7] = 1
    picks = pd.DataFrame({"rot_degrees": [rot], "tilt_degrees": [tilt], "psi_degrees": [psi]})
    mask = TurnedMask(bar, rotations_of(picks, "a.star"))
    found = np.argwhere(particle_targets(np.array([[10.0] * 3]), mask).read(Box.whole((21,) * 3)))
    direction = found.mean(axis=0) - 10
    wanted = direction_of([[rot, tilt, psi]])[0]
    assert direction / np.linalg.norm(direction) == pytest.approx(wanted, abs=0.08)


def test_a_pick_without_angles_among_others_is_refused():
    angles = {"rot_degrees": [0, np.nan], "tilt_degrees": [0, 1], "psi_degrees": [0, 1]}
    with pytest.raises(PicksFormatError, match="1 of 2 without"):
        rotations_of(pd.DataFrame(angles), "picks.csv")


@pytest.mark.parametrize(
    ("file", "angles"), [("30_60_45", (30, 60, 45)), ("10_m20_75", (10, -20, 75))]
)
def test_a_turned_shape_is_where_deepfinder_pastes_it(file, angles):
    """Its rotate_array turns by phi, psi, theta about dim / 2, which for an even box is ours."""
    stored = GOLDEN.parents[1] / "deepfinder" / "targets" / "rotate_array.npz"
    if not stored.is_file():
        pytest.skip("../shared/golden is absent")
    with np.load(stored) as arrays:
        shape, turned = arrays["inp"], arrays[f"out_{file}"]
    picks = with_angles(pd.DataFrame({"z": [0.0]}), angles_from_av3([angles]))
    turn = rotations_of(picks, "objects.xml")[0][::-1, ::-1]
    centre = np.full((3, 1, 1, 1), 4.5)
    offsets = np.indices((9, 9, 9)) - centre
    places = np.einsum("ji,j...->i...", turn, offsets) + centre
    assert map_coordinates(shape, places, order=1) == pytest.approx(turned, abs=1e-5)


def test_quaternions_are_those_of_the_synthetic_cells():
    quarter = {"qx": [0.0], "qy": [0.0], "qz": [np.sqrt(0.5)], "qw": [np.sqrt(0.5)]}
    assert rotations_of(pd.DataFrame(quarter), "t.csv")[0] @ [1, 0, 0] == pytest.approx([0, 1, 0])


def test_each_particle_keeps_its_own_angles_though_points_are_sorted():
    turns = np.stack([np.eye(3), Rotation.from_euler("z", 90, degrees=True).as_matrix()])
    points = np.array([[9.0, 8, 8], [3.0, 8, 8]])  # the second comes first along z
    found = particle_targets(points, TurnedMask(stick(), turns)).read(Box.whole(SHAPE))
    assert np.argwhere(found[9]).tolist() == [[8, x] for x in (8, 9, 10, 11)]
    assert np.argwhere(found[3]).tolist() == [[y, 8] for y in (8, 9, 10, 11)]


def test_turned_masks_box_by_box_are_those_of_the_whole_volume():
    rng = np.random.default_rng(3)
    points = rng.uniform(-2, 20, (12, 3))
    mask = TurnedMask(stick(5), Rotation.random(12, random_state=1).as_matrix())
    targets = particle_targets(points, mask)
    whole = targets.read(Box.whole(SHAPE))
    assert whole.any()
    for z in range(0, 13, 4):
        box = Box((z, 3, 2), (min(z + 4, 13), 11, 19))
        assert np.array_equal(targets.read(box), whole[box.slices])


def test_a_list_without_angles_is_refused_for_a_shape_that_is_turned():
    with pytest.raises(PicksFormatError, match="rlnAngleRot, rlnAngleTilt, rlnAnglePsi"):
        rotations_of(pd.DataFrame({"z": [1], "y": [1], "x": [1]}), "picks.csv")


def test_labels_are_remapped_by_their_values():
    labels = ArrayReader(np.arange(8, dtype=np.int16).reshape(2, 2, 2))
    box = Box.whole((2, 2, 2))
    assert LabelTargets(labels, (2, 5)).read(box).ravel().tolist() == [0, 0, 1, 0, 0, 1, 0, 0]
    assert LabelTargets(labels).read(box).ravel().tolist() == [0, 1, 1, 1, 1, 1, 1, 1]


def test_bytes_that_an_mrc_file_makes_negative_and_scores_count_as_labels():
    box = Box.whole((1, 1, 3))
    for values in (np.array([0, -1, 1], np.int8), np.array([0.2, 0.7, 1.0], np.float32)):
        found = LabelTargets(ArrayReader(values.reshape(1, 1, 3))).read(box)
        assert found.ravel().tolist() == [0, 1, 1]


def test_classes_overlap_for_sigmoids_and_the_later_wins_for_a_softmax():
    first = particle_targets(np.array([[2.0, 2, 2]]), Ball(2))
    second = particle_targets(np.array([[2.0, 2, 3]]), Ball(1))
    box = Box.whole((5, 5, 6))
    both = Targets((first, second)).read(box)
    assert both.sum(axis=0).max() == 2
    one = Targets((first, second), exclusive=True).read(box)
    assert np.array_equal(one[1], both[1])
    assert np.array_equal(one[0], both[0] & ~both[1] & 1)


def test_a_label_volume_of_several_classes_is_read_once():
    class Counted(ArrayReader):
        reads = 0

        def read(self, box):
            type(self).reads += 1
            return super().read(box)

    reader = Counted(np.array([[[0, 1, 2]]], np.uint8))
    found = Targets((LabelTargets(reader, (1,)), LabelTargets(reader, (2,)))).read(
        Box.whole((1, 1, 3))
    )
    assert found[:, 0, 0].tolist() == [[0, 1, 0], [0, 0, 1]]
    assert Counted.reads == 1


def test_targets_travel_to_other_processes():
    targets = Targets((particle_targets(np.array([[2.0, 2, 2]]), Ball(2)),))
    again = pickle.loads(pickle.dumps(targets))
    box = Box.whole((5, 5, 5))
    assert np.array_equal(again.read(box), targets.read(box))


def test_centres_that_are_no_points_are_refused():
    with pytest.raises(ConfigError, match="shape"):
        sphere_target(np.zeros((3, 2)), (4, 4, 4), 1.0)
