"""Copick's picks and the point annotations of the CryoET Data Portal.

Oracles: files written by hand as the two programs write them. Not checked here: copick itself,
which is no dependency of ours.
"""

import json

import numpy as np
import pytest
from picks_lists import FRAME, particle, turned_alike, zyx

from deepict_dask.core.errors import PicksFormatError, SpacingError
from deepict_dask.io.orientation import has_angles, matrices_from_angles, relion_angles, with_angles
from deepict_dask.io.picks import read_picks, write_picks
from deepict_dask.io.picks_table import make_picks

TURN = [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
"""A quarter about z: x goes to y."""


def location(x, y, z):
    return {"x": x, "y": y, "z": z}


def copick(path, *points, **keys):
    data = {
        "pickable_object_name": "ribosome", "user_id": "ana", "session_id": "7",
        "run_name": "TS_1", "voxel_spacing": 10.0, "unit": "angstrom",
        "points": list(points), "trust_orientation": True,
    }  # fmt: skip
    path.write_text(json.dumps(data | keys))
    return path


# -- copick ---------------------------------------------------------------------------------------


def test_copick_counts_angstrom_from_the_first_voxel_and_its_shifts_are_added(tmp_path):
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = TURN, (5, -10, 20)
    point = {
        "location": location(90, 880, 50), "transformation_": matrix.tolist(), "instance_id": 3,
        "score": 0.75,
    }  # fmt: skip
    picks = read_picks(copick(tmp_path / "a.json", point))
    assert zyx(picks).tolist() == [[7, 87, 9.5]]
    np.testing.assert_allclose(matrices_from_angles(relion_angles(picks))[0], TURN, atol=1e-12)
    known = ["score", "instance_id", "class_name", "tomogram_name", "copick_user_id"]
    assert picks.loc[0, known].tolist() == [0.75, 3, "ribosome", "TS_1", "ana"]


def test_the_tomogram_at_hand_says_how_large_a_voxel_is(tmp_path):
    path = copick(tmp_path / "a.json", {"location": location(90, 880, 50)})
    assert zyx(read_picks(path, voxel_spacing_angstrom=5)).tolist() == [[10, 176, 18]]


def test_without_any_voxel_spacing_copicks_angstrom_are_not_guessed(tmp_path):
    path = copick(tmp_path / "a.json", {"location": location(9, 8, 5)}, voxel_spacing=None)
    with pytest.raises(SpacingError, match="--voxel-spacing-angstrom"):
        read_picks(path)
    with pytest.raises(SpacingError, match="--voxel-spacing-angstrom"):
        write_picks(particle(), tmp_path / "b.json")


def test_a_file_of_copick_written_again_says_the_same(tmp_path):
    matrix = np.eye(4)
    matrix[:3, :3] = TURN
    point = {
        "location": location(90.0, 880.0, 50.0), "transformation_": matrix.tolist(),
        "instance_id": 3, "score": 0.75, "note": "a",
    }  # fmt: skip
    path = copick(tmp_path / "a.json", point)
    write_picks(read_picks(path), tmp_path / "b.json", voxel_spacing_angstrom=10)
    was, now = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    (held,) = now["points"]
    np.testing.assert_allclose(held.pop("transformation_"), matrix, atol=1e-12)
    assert held == {key: value for key, value in point.items() if key != "transformation_"}
    assert {key: now[key] for key in now if key != "points"} == {
        key: was[key] for key in was if key != "points"
    }


def test_picks_without_a_turn_have_no_angles_and_are_not_trusted_with_any(tmp_path):
    write_picks(particle(), tmp_path / "a.json", **FRAME)
    assert json.loads((tmp_path / "a.json").read_text())["trust_orientation"] is False
    assert not has_angles(read_picks(tmp_path / "a.json"))


@pytest.mark.parametrize("column", ["class_name", "tomogram_name"])
def test_two_classes_or_tomograms_do_not_fit_a_file_of_copick(tmp_path, column):
    picks = make_picks([[1, 2, 3]] * 2, **{column: ["a", "b"]})
    with pytest.raises(PicksFormatError, match=rf"one {column}, found 2 \(a, b, ...\)"):
        write_picks(picks, tmp_path / "a.json", **FRAME)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"unit": "nm"}, "expected the unit angstrom, found 'nm'"),
        ({"voxel_spacing": -1}, "positive voxel_spacing"),
        ({"points": "none"}, "with a list of points"),
        ({"points": [{"location": {"x": 1, "y": 2}}]}, "point 1: expected a location"),
        ({"points": [{"location": location(1, 2, "3")}]}, "point 1: expected a location"),
        ({"points": [7]}, "point 1: expected a location"),
        ({"points": [{"location": location(1, 2, 3), "score": "high"}]}, "number for score"),
        ({"points": [{"location": location(1, 2, 3), "transformation_": TURN}]}, "4 x 4 numbers"),
        (
            {
                "points": [
                    {"location": location(1, 2, 3), "transformation_": (np.eye(4) * 2).tolist()}
                ]
            },
            "point 1: expected 4 x 4 numbers of a rotation",
        ),
    ],
)
def test_a_damaged_file_of_copick_is_refused_with_the_point(tmp_path, keys, message):
    with pytest.raises(PicksFormatError, match=rf"a\.json.*({message})"):
        read_picks(copick(tmp_path / "a.json", **keys))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected JSON"),
        ('{"points":\n[', "line 2: expected JSON"),
        ("[1, 2]", "expected picks of copick"),
        ('{"points": [{"location": {"x": NaN, "y": 1, "z": 1}}]}', "NaN, which is no number"),
        ("[" * 100_000, "brackets in brackets|expected JSON"),
        ('{"points": [{"location": {"x": 1' + "0" * 400 + ', "y": 1, "z": 1}}]}', "401 digits"),
    ],
)
def test_what_is_no_json_of_copick_is_refused(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(PicksFormatError, match=rf"a\.json.*({message})"):
        read_picks(tmp_path / "a.json")


# -- CryoET Data Portal ---------------------------------------------------------------------------


def lines(path, *points):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(point) + "\n" for point in points))
    return path


def test_points_of_the_portal_are_voxels_from_nought(tmp_path):
    path = lines(
        tmp_path / "a.ndjson",
        {"type": "point", "location": location(9, 88, 5)},
        {"type": "orientedPoint", "location": location(1, 2, 3), "xyz_rotation_matrix": TURN},
        {"type": "instancePoint", "location": location(4, 5, 6), "instance_id": 12},
    )
    picks = read_picks(path)
    assert zyx(picks).tolist() == [[5, 88, 9], [3, 2, 1], [6, 5, 4]]
    turns = matrices_from_angles(relion_angles(picks))
    np.testing.assert_allclose(turns, [np.eye(3), TURN, np.eye(3)], atol=1e-12)
    np.testing.assert_array_equal(picks.instance_id.astype(float), [np.nan, np.nan, 12])


def test_a_list_of_another_voxel_spacing_is_scaled_by_its_folders_name(tmp_path):
    path = tmp_path / "Reconstructions" / "VoxelSpacing13.480" / "Annotations" / "100" / "a.ndjson"
    lines(path, {"type": "point", "location": location(9, 88, 5)})
    assert zyx(read_picks(path)).tolist() == [[5, 88, 9]]
    assert zyx(read_picks(path, voxel_spacing_angstrom=13.4802)).tolist() == [[5, 88, 9]]
    assert zyx(read_picks(path, voxel_spacing_angstrom=26.96)).tolist() == [[2.5, 44, 4.5]]


@pytest.mark.parametrize(
    ("columns", "kind", "keys"),
    [
        ({}, "point", {"type", "location", "score"}),
        ({"instance_id": [4]}, "instancePoint", {"type", "location", "score", "instance_id"}),
    ],
)
def test_the_kind_of_a_point_follows_from_what_is_known(tmp_path, columns, kind, keys):
    write_picks(particle().assign(**columns), tmp_path / "a.ndjson")
    (line,) = (tmp_path / "a.ndjson").read_text().splitlines()
    point = json.loads(line)
    assert (point["type"], set(point)) == (kind, keys)
    assert point["location"] == location(9.125, 88.5, 5.25)


def test_an_oriented_point_has_the_matrix_of_its_angles(tmp_path):
    picks = with_angles(particle(), [[10, 20, 30]])
    write_picks(picks, tmp_path / "a.ndjson")
    point = json.loads((tmp_path / "a.ndjson").read_text())
    assert point["type"] == "orientedPoint"
    expected = matrices_from_angles([[10, 20, 30]])[0]
    np.testing.assert_allclose(point["xyz_rotation_matrix"], expected)
    assert turned_alike(relion_angles(read_picks(tmp_path / "a.ndjson")), [[10, 20, 30]])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: expected JSON"),
        ("[]", "line 2: expected one of point, orientedPoint, instancePoint, found 'list'"),
        ('{"type": "mesh"}', "line 2: .*found 'mesh'"),
        ('{"type": "point"}', "line 2: expected a location"),
        ('{"location": {"x": 1, "y": true, "z": 2}}', "line 2: expected a location"),
        ('{"location": {"x": 1, "y": Infinity, "z": 2}}', "line 2: .*Infinity, which is no"),
        (
            '{"location": {"x": 1, "y": 1, "z": 2}, "xyz_rotation_matrix": [[1, 0], [0, 1]]}',
            "line 2: expected 3 x 3 numbers of a rotation for xyz_rotation_matrix",
        ),
        (
            (
                '{"location": {"x": 1, "y": 1, "z": 2}, '
                '"xyz_rotation_matrix": [[1, 0, 0], [0, 1, 0], [0, 0, -1]]}'
            ),
            "line 2: expected 3 x 3 numbers of a rotation",
        ),
    ],
)
def test_a_damaged_line_is_refused_by_its_number(tmp_path, line, message):
    path = tmp_path / "a.ndjson"
    path.write_text('{"location": {"x": 1, "y": 2, "z": 3}}\n' + line + "\n")
    with pytest.raises(PicksFormatError, match=rf"a\.ndjson, {message}"):
        read_picks(path)
