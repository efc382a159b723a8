"""`--compat deepict`: the published script's coordinates, to the byte."""

from __future__ import annotations

import mrcfile
import numpy as np
import pytest

from deepict_dask.core.errors import ConfigError
from deepict_dask.filaments.deepict_compat import (
    CompatSettings,
    compat_filaments,
    compat_table,
    dump_coordinates,
    fill_all_holes,
    grown_order,
)
from deepict_dask.filaments.deepict_config import parse_compat_config
from deepict_dask.filaments.deepict_join import join_lines
from deepict_dask.filaments.orientation import direction_of

HEADER = (
    "tomo_name, working_dir, tomo_file, voxel_size, erode_size, min_fil_length, resampling_steps, "
    "maxdist, maxang, cnn_statistics, ground_truth_file, output_dir\n"
)


@pytest.fixture(scope="module")
def published(golden):
    """The script's mask, settings, log and list."""
    folder = (
        golden / "filaments" if (golden / "filaments").is_dir() else golden / "deepict/filaments"
    )
    with mrcfile.open(folder / "mask.mrc.gz") as file:
        mask = file.data.copy()
    settings = parse_compat_config((folder / "config.txt").read_text(), "config.txt", "mask.mrc.gz")
    return mask, settings, (folder / "log.txt").read_text(), (folder / "fil_coord.csv").read_bytes()


def test_the_published_list_is_reproduced_to_the_byte(published):
    mask, settings, _, expected = published
    filaments, _ = compat_filaments(mask, settings)
    assert dump_coordinates(filaments, settings.voxel_size_nm) == expected


def test_the_published_total_length_is_reproduced(published):
    mask, settings, log, _ = published
    _, length = compat_filaments(mask, settings)
    assert f"is {length * settings.voxel_size_nm} nm." in log


def test_the_list_does_not_depend_on_the_type_of_the_mask(published):
    mask, settings, _, expected = published
    for other in (mask.astype(bool), (255 * mask).astype("uint8"), mask.astype("int16")):
        filaments, _ = compat_filaments(other, settings)
        assert dump_coordinates(filaments, settings.voxel_size_nm) == expected


def _swept(voxels, *, touch):
    """Order voxels as the script does: sweeps over those that are left, front before back."""
    left = sorted(voxels)
    line = [left.pop(0)]
    while left:
        place = 0
        while place < len(left):
            if touch(line[0], left[place]):
                line.insert(0, left.pop(place))
            elif touch(line[-1], left[place]):
                line.append(left.pop(place))
            else:
                place += 1
    return line


@pytest.mark.parametrize("closed", [False, True])
def test_voxels_are_ordered_as_by_sweeps(closed):
    rng = np.random.default_rng(0)
    for n in (4, 5, 6, 9, 17, 40):
        for _ in range(20):
            names = rng.permutation(100)[:n]
            place = {int(name): i for i, name in enumerate(names)}

            def touch(a, b, place=place, n=n):
                apart = abs(place[a] - place[b])
                return apart == 1 or (closed and apart == n - 1)

            expected = _swept(place, touch=touch)
            assert grown_order(names, closed=closed).tolist() == expected


def test_holes_that_only_another_filling_closes_are_filled_too():
    mask = np.zeros((5, 5, 5), bool)
    mask[1:4, 1:4, 1:4] = True
    mask[2, 2, 1:3] = False  # open along x, enclosed in slices across x
    assert fill_all_holes(mask).sum() == 27


def _run(start, stop, n=12):
    return np.linspace(start, stop, n)


def test_ends_join_within_the_distance_and_the_angle():
    one, other = _run((0, 0, 0), (0, 0, 22)), _run((0, 0, 60), (0, 0, 30))
    assert [len(line) for line in join_lines([one, other], 10, 20)] == [24]
    joined = join_lines([one, other], 10, 20)[0]
    assert (np.diff(joined[:, 2]) > 0).all()
    assert [len(line) for line in join_lines([one, other], 7, 20)] == [12, 12]
    aside = _run((0, 8, 30), (0, 30, 52))
    assert [len(line) for line in join_lines([one, aside], 30, 20)] == [12, 12]


def test_an_end_with_two_candidates_is_joined_by_the_one_that_has_only_it_and_is_its_first():
    """The script's quirk: the partner's other candidates are not looked at."""
    one = _run((0, 0, 0), (0, 0, 22))
    two = _run((0, 0, 28), (0, 0, 50))
    three = _run((0, 1, 36), (0, 1, 80))
    lengths = [len(line) for line in join_lines([two, one, three], 12, 20)]
    assert lengths == [12, 24, 12]  # line `two` is kept alone and is joined to `one` as well


def test_lines_that_close_into_a_ring_are_joined_once_round():
    turn = np.linspace(0, np.pi, 40)
    half = np.stack([0 * turn, 30 * np.sin(turn), 30 * np.cos(turn)], axis=-1)
    other = half * [1, -1, 1]
    lines = [half[2:-2], other[2:-2]]
    assert [len(line) for line in join_lines(lines, 15, 45)] == [72]


@pytest.mark.parametrize("mask", [np.zeros((9, 9, 9)), np.eye(9).reshape(1, 9, 9)])
def test_nothing_to_find_is_an_empty_list(mask):
    filaments, length = compat_filaments(mask, CompatSettings(1.0))
    assert (filaments, length) == ([], 0.0)
    assert dump_coordinates(filaments, 1.0) == b"Point ID,X,Y,Z,Filament ID\r\n"


def test_points_of_the_script_get_directions_along_their_filaments(published):
    mask, settings, _, _ = published
    filaments, _ = compat_filaments(mask, settings)
    table = compat_table(filaments, 10 * settings.voxel_size_nm)
    angles = table[["rot_degrees", "tilt_degrees", "psi_degrees"]].to_numpy()
    for number, points in enumerate(filaments, 1):
        along = direction_of(angles[table["filament_id"] == number])[:-1]
        ways = np.diff(points, axis=0)
        ways /= np.linalg.norm(ways, axis=1, keepdims=True)
        assert ((along * ways).sum(axis=1) > 0.95).all()


def test_a_config_of_several_tomograms_is_read_by_the_mask_name():
    rows = ["a, in/, sub/one.mrc, 1.0, 3, 30, 8, 30, 20", "b, in/, two.mrc, 2.0, 3, 30, 8, 30, 20"]
    text = HEADER + "\n".join(rows) + "\n"
    assert parse_compat_config(text, "c.txt", "two.mrc").voxel_size_nm == 2.0
    with pytest.raises(ConfigError, match=r"expected one line for three.mrc, found 0 among a, b"):
        parse_compat_config(text, "c.txt", "three.mrc")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found no line of settings"),
        (HEADER, "found no line of settings"),
        (HEADER + "fil, in/, m.mrc, 1.3\n", "at least 9 values separated by commas, found 4"),
        (HEADER + "fil, in/, m.mrc, 0, 3, 30, 8, 30, 20\n", "voxel_size: expected a positive"),
        (HEADER + "fil, in/, m.mrc, 1, 3, 30, x, 30, 20\n", "resampling_steps: .*found 'x'"),
        (HEADER + "fil, in/, m.mrc, 1, 3, nan, 8, 30, 20\n", "min_fil_length: .*found 'nan'"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused_with_its_name(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_compat_config(text, "c.txt", "m.mrc")
