"""Spheres painted chunk by chunk are those of one array."""

from __future__ import annotations

import logging
import shutil

import mrcfile
import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from deepict_dask.cli import particles as commands
from deepict_dask.core.errors import (
    BudgetError,
    ConfigError,
    OutputExistsError,
    PicksFormatError,
    SpacingError,
)
from deepict_dask.core.geometry import Box, Grid
from deepict_dask.engine import ClusterSettings, connect
from deepict_dask.io.picks import write_picks
from deepict_dask.io.picks_table import make_picks
from deepict_dask.io.volumes import open_volume
from deepict_dask.jobs.particle_lists.to_mask import paint_picks
from deepict_dask.jobs.session import Session
from deepict_dask.particles.spheres import SphereSettings, sphere_rows, write_sphere_table


def read(path):
    reader = open_volume(path, spacing_required=False)
    return reader.read(Box.whole(reader.header.shape))


def nearest_spheres(shape, zyx, radii, values):
    """The definition, voxel by voxel: the nearest particle within its radius, first of equals."""
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    best, found = np.full(shape, np.inf), np.zeros(shape)
    for point, radius, value in zip(zyx, radii, values, strict=True):
        squared = ((grid - point) ** 2).sum(axis=-1)
        closer = (squared <= radius**2 * (1 + 1e-12)) & (squared < best)
        best[closer], found[closer] = squared[closer], value
    return found


def published_spheres(shape, zyx, radii, values):
    """The published script: mirrored whole offsets below the radius, later over earlier."""
    found = np.zeros(shape)
    for point, radius, value in zip(np.rint(zyx).astype(int), radii, values, strict=True):
        steps = [s * i for i in range(int(radius)) for s in (1, -1)]
        for dz in steps:
            for dy in steps:
                for dx in steps:
                    z, y, x = point[0] + dz, point[1] + dy, point[2] + dx
                    inside = 0 <= z < shape[0] and 0 <= y < shape[1] and 0 <= x < shape[2]
                    if inside and dz**2 + dy**2 + dx**2 <= radius**2:
                        found[z, y, x] = value
    return found


quarter = st.integers(-20, 120).map(lambda n: n / 4)


@settings(max_examples=20)
@given(
    shape=st.tuples(*[st.integers(1, 30)] * 3),
    chunks=st.tuples(*[st.integers(1, 32)] * 3).filter(lambda c: min(c) > 4 or max(c) > 12),
    picks=st.lists(st.tuples(*[quarter] * 3), max_size=12),
    n=st.integers(1, 3),
    seed=st.integers(0, 99),
    compat=st.sampled_from([None, "deepict"]),
)
def test_any_chunks_and_workers_paint_the_spheres_of_the_definition(
    any_workers, tmp_path, shape, chunks, picks, n, seed, compat
):
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    rng = np.random.default_rng(seed)
    zyx = np.array(picks, float).reshape(-1, 3)
    radii = rng.integers(1, 7, len(zyx)) if compat else rng.uniform(0.5, 7, len(zyx)).round(2)
    values = rng.integers(1, 9, len(zyx))
    scores = -np.arange(len(zyx))  # a list is written by falling score
    write_picks(make_picks(zyx, scores, r=radii, kind=values), tmp_path / "p.csv")
    session = Session(any_workers[n], chunks=chunks)
    wish = SphereSettings(radius_column="r", by_column="kind", compat=compat)
    paint_picks(session, tmp_path / "p.csv", tmp_path / "m.zarr", wish, shape=shape)
    definition = nearest_spheres if compat is None else published_spheres
    expected = definition(shape, zyx, radii, values)
    found = read(tmp_path / "m.zarr")
    assert found.dtype == ("uint8" if compat is None else "float32")
    np.testing.assert_array_equal(found, expected)


def paint(workers, folder, rows, wish, shape=(20, 20, 20), name="m.zarr", spacing=None, **columns):
    rows = np.array(rows, float).reshape(-1, 3)
    scores = -np.arange(len(rows))
    write_picks(make_picks(rows, scores, **columns), folder / "p.csv")
    session = Session(workers, chunks=(8, 8, 8), overwrite=True, voxel_spacing_angstrom=spacing)
    report = paint_picks(session, folder / "p.csv", folder / name, wish, shape=shape)
    return report, read(folder / name)


def test_the_radius_is_inclusive_also_where_it_was_given_in_nm(two_workers, tmp_path):
    _, mask = paint(two_workers, tmp_path, [[10, 10, 10]], SphereSettings(radius=3))
    assert mask[10, 10].nonzero()[0].tolist() == [7, 8, 9, 10, 11, 12, 13]
    for spacing in (13.48, 10.0, 7.84, 3.37):
        wish = SphereSettings(radius_nm=3 * spacing / 10)
        _, same = paint(two_workers, tmp_path, [[10, 10, 10]], wish, spacing=spacing)
        np.testing.assert_array_equal(same, mask)


def test_positions_between_voxels_are_honoured(two_workers, tmp_path):
    _, mask = paint(two_workers, tmp_path, [[10, 10, 9.5]], SphereSettings(radius=1.5))
    assert mask[10, 10].nonzero()[0].tolist() == [8, 9, 10, 11]


def test_a_voxel_between_two_particles_goes_to_the_nearer_and_at_the_middle_to_the_first(
    two_workers, tmp_path
):
    rows = [[10, 10, 4], [10, 10, 10]]
    _, mask = paint(two_workers, tmp_path, rows, SphereSettings(radius=5, numbered=True))
    assert mask[10, 10].tolist() == [1] * 8 + [2] * 8 + [0] * 4
    _, mask = paint(two_workers, tmp_path, rows[::-1], SphereSettings(radius=5, numbered=True))
    assert mask[10, 10].tolist() == [2] * 7 + [1] * 9 + [0] * 4


def test_what_does_not_lie_in_the_volume_is_counted_and_clipped(two_workers, tmp_path, caplog):
    rows = [[10, 10, -2], [10, 10, 21], [10, 10, 500], [0, 0, 0]]
    with caplog.at_level(logging.WARNING):
        report, mask = paint(two_workers, tmp_path, rows, SphereSettings(radius=3, numbered=True))
    assert "3 of 4 picks lie outside the tomogram" in caplog.text
    assert mask[10, 10].tolist() == [1, 1] + [0] * 16 + [2, 2]
    assert mask[0, 0, :4].tolist() == [4] * 4
    assert report.n_picks == 3


def test_an_empty_list_gives_zeros_and_a_warning(two_workers, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        report, mask = paint(two_workers, tmp_path, [], SphereSettings(radius=3))
    assert "the list is empty" in caplog.text
    assert (report.n_picks, mask.any(), mask.dtype, mask.shape) == (0, False, "uint8", (20, 20, 20))


def test_classes_are_named_and_can_be_chosen(two_workers, tmp_path):
    rows, names = [[5, 5, 5], [15, 15, 15]], ["ribosome", "fas"]
    wish = SphereSettings(radius=2, by_column="class_name")
    report, mask = paint(two_workers, tmp_path, rows, wish, class_name=names)
    assert report.legend == {1: "fas", 2: "ribosome"}
    assert (mask[5, 5, 5], mask[15, 15, 15]) == (2, 1)
    wish = SphereSettings(radius=2, class_name="fas")
    report, mask = paint(two_workers, tmp_path, rows, wish, class_name=names)
    assert (report.n_picks, mask[5, 5, 5], mask[15, 15, 15]) == (1, 0, 1)
    with pytest.raises(ConfigError, match="found fas, ribosome"):
        paint(
            two_workers, tmp_path, rows, SphereSettings(radius=2, class_name="x"), class_name=names
        )


@pytest.mark.parametrize(
    ("value", "dtype"), [(1, "uint8"), (255, "uint8"), (256, "uint16"), (70000, "uint32")]
)
def test_values_are_written_as_they_are_in_the_smallest_type(two_workers, tmp_path, value, dtype):
    _, mask = paint(two_workers, tmp_path, [[5, 5, 5]], SphereSettings(radius=1, value=value))
    assert (mask.dtype, mask[5, 5, 5], (mask > 0).sum()) == (dtype, value, 7)


def test_values_that_are_not_whole_or_negative_are_floats(two_workers, tmp_path, caplog):
    wish = SphereSettings(radius=1, by_column="ccc")
    rows = [[5, 5, 5], [9, 9, 9], [15, 15, 15]]
    with caplog.at_level(logging.WARNING):
        _, mask = paint(two_workers, tmp_path, rows, wish, ccc=[-0.5, 0.25, 0])
    assert (mask.dtype, mask[5, 5, 5], mask[9, 9, 9]) == ("float32", -0.5, 0.25)
    assert "1 picks have the value 0" in caplog.text


def test_the_output_has_the_frame_of_the_volume_it_is_like(two_workers, tmp_path):
    with mrcfile.new(tmp_path / "tomo.mrc", np.zeros((12, 20, 16), "float32")) as file:
        file.voxel_size = 13.48
        file.header.origin.x = 27.0
    (tmp_path / "p.csv").write_text("9,8,5\n")
    for name in ("m.mrc", "m.zarr", "m.tif"):
        session = Session(two_workers, chunks=(8, 8, 8))
        wish, like = SphereSettings(radius_nm=2.7), tmp_path / "tomo.mrc"
        paint_picks(session, tmp_path / "p.csv", tmp_path / name, wish, like=like)
        header = open_volume(tmp_path / name).header
        assert header.shape == (12, 20, 16)
        assert header.voxel_spacing_angstrom == pytest.approx(13.48)
        expected = nearest_spheres((12, 20, 16), [[5, 8, 9]], [27 / 13.48], [1])
        np.testing.assert_array_equal(read(tmp_path / name), expected)
    assert open_volume(tmp_path / "m.mrc").header.origin_angstrom == (0.0, 0.0, 27.0)


def test_a_star_file_is_painted_in_the_voxels_of_the_volume(two_workers, tmp_path):
    frame = {"voxel_spacing_angstrom": 10.0, "tomogram_shape": (20, 20, 20)}
    write_picks(make_picks([[5, 8, 9]]), tmp_path / "p.star", tomogram_name="T", **frame)
    session = Session(two_workers, voxel_spacing_angstrom=10.0)
    wish = SphereSettings(radius=1)
    paint_picks(session, tmp_path / "p.star", tmp_path / "m.zarr", wish, shape=(20, 20, 20))
    assert np.argwhere(read(tmp_path / "m.zarr")).mean(axis=0).tolist() == [5, 8, 9]


def test_a_list_of_several_tomograms_needs_a_choice(two_workers, tmp_path):
    wish, names = SphereSettings(radius=1), ["a", "b"]
    with pytest.raises(PicksFormatError, match="--tomogram-name"):
        paint(two_workers, tmp_path, [[5, 5, 5], [9, 9, 9]], wish, tomogram_name=names)
    with pytest.raises(PicksFormatError, match=r"found 2 \(2, 116, ...\); choose one with --tomo"):
        paint(two_workers, tmp_path, [[5, 5, 5], [9, 9, 9]], wish, tomogram_number=[2, 116])


def test_what_cannot_be_meant_is_refused(two_workers, tmp_path):
    for wrong in ({}, {"radius": 3, "radius_nm": 3}, {"radius": 3, "value": 2, "numbered": True}):
        with pytest.raises(ValueError, match="expected one of"):
            SphereSettings(**wrong)
    with pytest.raises(SpacingError, match="--voxel-spacing-angstrom"):
        paint(two_workers, tmp_path, [[5, 5, 5]], SphereSettings(radius_nm=3))
    with pytest.raises(PicksFormatError, match="expected a column 'kind'"):
        paint(two_workers, tmp_path, [[5, 5, 5]], SphereSettings(radius=3, by_column="kind"))
    with pytest.raises(ConfigError, match="whole voxels"):
        paint(two_workers, tmp_path, [[5, 5, 5]], SphereSettings(radius=2.5, compat="deepict"))
    session, wish = Session(two_workers), SphereSettings(radius=3)
    with pytest.raises(ConfigError, match="--like VOLUME and --shape"):
        paint_picks(session, tmp_path / "p.csv", tmp_path / "n.zarr", wish)
    (tmp_path / "there.mrc").write_text("mine")
    with pytest.raises(OutputExistsError):
        paint_picks(session, tmp_path / "p.csv", tmp_path / "there.mrc", wish, shape=(4, 4, 4))
    assert (tmp_path / "there.mrc").read_text() == "mine"
    assert not [*tmp_path.glob("*.partial"), *tmp_path.glob("*.lock")]


def test_a_chunk_is_given_the_spheres_near_it_and_no_others(tmp_path):
    rng = np.random.default_rng(0)
    zyx = rng.uniform(-3, 67, (3000, 3))
    grid = Grid((64, 64, 64), (8, 16, 32))
    radii = rng.uniform(1, 5, len(zyx))
    table = write_sphere_table(tmp_path, sphere_rows(zyx, radius=radii, values=1), grid)
    for block in grid:
        given_rows = set(table.rows_for(block)["number"].tolist())
        low, high = np.array(block.write.start), np.array(block.write.stop) - 1
        gap = np.linalg.norm(np.clip(zyx, low, high) - zyx, axis=1)
        assert set(np.flatnonzero(gap <= radii).tolist()) <= given_rows
        assert len(given_rows) <= table.most_rows() < len(zyx)


def test_a_hundred_thousand_picks_are_painted_once_each(two_workers, tmp_path):
    rng = np.random.default_rng(0)
    cells = rng.permutation(60**3)[:100_000]
    zyx = np.stack(np.unravel_index(cells, (60, 60, 60)), axis=1) * 3 + 1
    write_picks(make_picks(zyx), tmp_path / "p.csv")
    session = Session(two_workers, chunks=(64, 64, 64))
    wish = SphereSettings(radius=1)
    paint_picks(session, tmp_path / "p.csv", tmp_path / "m.zarr", wish, shape=(180, 180, 180))
    assert int(read(tmp_path / "m.zarr").sum()) == 700_000


def test_more_picks_than_a_task_can_hold_are_refused_before_the_work(tmp_path):
    write_picks(make_picks(np.full((200_000, 3), 5.0)), tmp_path / "p.csv")
    with connect(ClusterSettings(kind="threads", workers=1, memory="140MiB")) as workers:
        session, wish = Session(workers), SphereSettings(radius=1)
        with pytest.raises(BudgetError, match="paint: needs"):
            paint_picks(session, tmp_path / "p.csv", tmp_path / "m.zarr", wish, shape=(9, 9, 9))


# -- the published script ------------------------------------------------------------------------


@pytest.mark.parametrize(("radius", "n_voxels"), [(8, 2103), (5, 509)])
def test_compat_spheres_have_the_published_number_of_voxels(
    two_workers, tmp_path, radius, n_voxels
):
    wish = SphereSettings(radius=radius, compat="deepict")
    _, mask = paint(two_workers, tmp_path, [[9, 9, 9]], wish)
    assert (mask.sum(), mask.dtype) == (n_voxels, "float32")
    _, whole = paint(two_workers, tmp_path, [[9, 9, 9]], SphereSettings(radius=radius))
    assert whole.sum() == n_voxels + 6  # the tips


@pytest.mark.parametrize("chunks", ["128", "16,20,24", "7,9,60"])
def test_compat_gives_the_published_volume(golden, tmp_path, chunks):
    (tmp_path / "p.csv").write_text("score,x,y,z,r\n1,10,10,3,8\n2,30,25,20,5\n3,59,49,39,3\n")
    app = typer.Typer()
    commands.register(app)
    options = ["--shape", "40,50,60", "--radius-column", "r", "--by-column", "score"]
    more = ["--compat", "deepict", "--chunks", chunks, "--workers", "1", "--no-progress"]
    target = tmp_path / "m.mrc"
    command = ["to-mask", str(tmp_path / "p.csv"), str(target), *options, *more]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.output == f"3 picks in {target}\n"
    with mrcfile.open(golden / "deepict" / "evaluation" / "spheres.mrc.gz") as published:
        np.testing.assert_array_equal(read(target), published.data)
        assert read(target).dtype == published.data.dtype
