"""Orientations: every convention stands for the same rotation of the reference into the particle.

Oracles: products of rotation matrices written out by hand, and cases that can be seen without any.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepict_dask.io.orientation import (
    angles_from_av3,
    angles_from_dynamo,
    angles_from_matrices,
    av3_from_angles,
    dynamo_from_angles,
    matrices_from_angles,
)

ANGLES = st.tuples(*[st.floats(-180, 180, allow_subnormal=False)] * 3)


def rx(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def ry(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def rz(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


@given(angles=ANGLES)
@settings(deadline=None)
def test_relion_angles_are_three_turns_of_the_axes(angles):
    rot, tilt, psi = angles
    np.testing.assert_allclose(
        matrices_from_angles([angles])[0], rz(-psi) @ ry(-tilt) @ rz(-rot), atol=1e-12
    )


@given(angles=ANGLES)
@settings(deadline=None)
def test_angles_of_a_motl_turn_the_reference_about_z_x_and_z(angles):
    phi, psi, theta = angles
    held = matrices_from_angles(angles_from_av3([angles]))[0]
    np.testing.assert_allclose(held, rz(psi) @ rx(theta) @ rz(phi), atol=1e-12)


@given(angles=ANGLES)
@settings(deadline=None)
def test_angles_of_dynamo_turn_the_particle_back(angles):
    tdrot, tilt, narot = angles
    held = matrices_from_angles(angles_from_dynamo([angles]))[0]
    particle_to_reference = rz(narot) @ rx(tilt) @ rz(tdrot)
    np.testing.assert_allclose(held, particle_to_reference.T, atol=1e-12)


@given(angles=ANGLES)
@settings(deadline=None)
def test_there_and_back_is_the_same_rotation_also_where_the_tilt_is_nothing(angles):
    for tilt in (angles[1], 0.0, 180.0):
        some = np.array([[angles[0], tilt, angles[2]]])
        turn = matrices_from_angles(some)
        for back in (
            angles_from_av3(av3_from_angles(some)),
            angles_from_dynamo(dynamo_from_angles(some)),
            angles_from_matrices(turn),
        ):
            np.testing.assert_allclose(matrices_from_angles(back), turn, atol=1e-9)


def test_a_quarter_turn_about_z_is_seen_in_every_convention():
    quarter = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # x goes to y
    (angles,) = angles_from_matrices([quarter])
    assert angles.round(9).tolist() == [-90, 0, 0]
    phi, psi, theta = av3_from_angles([angles])[0]
    assert ((phi + psi) % 360, theta) == (90, 0)
    tdrot, tilt, narot = dynamo_from_angles([angles])[0]
    assert ((tdrot + narot) % 360, tilt) == (270, 0)


def test_a_particle_that_lies_along_minus_x_is_seen_in_every_convention():
    # its z axis, the third column, points along -x
    turn = matrices_from_angles([[0, 90, 0]])[0]
    np.testing.assert_allclose(turn[:, 2], [-1, 0, 0], atol=1e-15)
    np.testing.assert_allclose((rz(-90) @ rx(90) @ rz(90))[:, 2], [-1, 0, 0], atol=1e-15)
    assert av3_from_angles([[0, 90, 0]]).tolist() == [[90, -90, 90]]
    assert dynamo_from_angles([[0, 90, 0]]).tolist() == [[-90, 90, 90]]


@pytest.mark.parametrize("matrix", [np.diag([1, 1, -1]), np.zeros((3, 3)), np.eye(3) * 1.1])
def test_a_matrix_that_is_no_rotation_is_refused(matrix):
    with pytest.raises(ValueError, match="matrix 2 is no rotation"):
        angles_from_matrices([np.eye(3), matrix])


def test_no_matrices_have_no_angles():
    assert angles_from_matrices(np.zeros((0, 3, 3))).shape == (0, 3)
    assert matrices_from_angles(np.zeros((0, 3))).shape == (0, 3, 3)
