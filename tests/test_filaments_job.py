"""The command `filaments`: files in, lists out, one message where something is wrong."""

from __future__ import annotations

import logging
import warnings

import mrcfile
import numpy as np
import pytest
import starfile
import typer
from filament_scenes import straight, trace, tube
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

from deepict_dask.cli import filaments as command
from deepict_dask.core.errors import (
    BudgetError,
    ConfigError,
    OutputExistsError,
    SpacingError,
    VoxelValueError,
    WorkFailedError,
)
from deepict_dask.engine import ClusterSettings, connect
from deepict_dask.filaments import FilamentSettings
from deepict_dask.io.picks import read_picks
from deepict_dask.jobs import filaments as filaments_job
from deepict_dask.jobs.filaments import trace_filaments
from deepict_dask.jobs.session import Session

SPACING = 10.0
SHAPE = (40, 60, 90)
LINES = [straight((20, 20, 8), (20, 40, 82)), straight((10, 50, 10), (30, 50, 80))]
SETTINGS = FilamentSettings(step_nm=6.0, max_radius_nm=6.0, min_length_nm=20.0)


def two_tubes():
    return (tube(LINES[0], 4, SHAPE) | tube(LINES[1], 4, SHAPE)).astype(np.uint8)


def save(path, array, spacing=SPACING):
    with mrcfile.new(path) as file:
        file.set_data(array)
        if spacing:
            file.voxel_size = spacing
    return path


@pytest.fixture
def mask(tmp_path):
    return save(tmp_path / "TS_01.mrc", two_tubes())


@pytest.fixture
def session(one_worker):
    return Session(one_worker, chunks=(32, 32, 32))


def test_a_csv_has_voxels_filaments_and_angles_in_order(session, mask, tmp_path):
    report = trace_filaments(session, mask, tmp_path / "out.csv", SETTINGS)
    table = read_picks(tmp_path / "out.csv")
    assert report.n_filaments == table["filament_id"].nunique() == 2
    assert report.n_points == len(table)
    assert table["filament_id"].is_monotonic_increasing
    within = table.groupby("filament_id")["track_length_angstrom"]
    assert all(one.is_monotonic_increasing and one.iloc[0] == 0 for _, one in within)
    true_nm = sum(np.linalg.norm(line[-1] - line[0]) for line in LINES) * SPACING / 10
    assert report.length_nm == pytest.approx(true_nm, abs=8)
    assert table[["rot_degrees", "tilt_degrees", "psi_degrees"]].notna().all(axis=None)


def test_a_star_file_has_relions_columns(session, mask, tmp_path):
    target = tmp_path / "out.star"
    twisted = SETTINGS.model_copy(update={"twist_degrees": 27.692})
    trace_filaments(session, mask, target, twisted)
    particles = starfile.read(target)["particles"]
    names = ["rlnHelicalTubeID", "rlnHelicalTrackLengthAngst", "rlnAngleRot", "rlnAngleTilt"]
    assert set(names) | {"rlnAnglePsi", "rlnTomoName"} <= set(particles.columns)
    assert set(particles["rlnTomoName"]) == {"TS_01"}
    angles = particles[["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]].to_numpy()
    matrices = Rotation.from_euler("ZYZ", angles, degrees=True).inv().as_matrix()
    for number, line in enumerate(reversed(LINES), 1):  # the second begins at a smaller z
        own = matrices[particles["rlnHelicalTubeID"] == number]
        way = (line[-1] - line[0])[::-1] / np.linalg.norm(line[-1] - line[0])
        assert (own[:, :, 2] @ way > 0.998).all()
        turns = Rotation.from_matrix(own[1:] @ own[:-1].transpose(0, 2, 1)).as_rotvec(degrees=True)
        assert np.allclose(turns @ way, 27.692, atol=0.05)
    frame = {"voxel_spacing_angstrom": SPACING, "tomogram_shape": SHAPE}
    trace_filaments(session, mask, tmp_path / "out.csv", SETTINGS)
    found, voxels = read_picks(target, **frame), read_picks(tmp_path / "out.csv")
    assert np.allclose(found[["z", "y", "x"]], voxels[["z", "y", "x"]], atol=2e-3)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("chunks", [(128, 128, 128), (16, 20, 24)])
def test_the_bytes_do_not_depend_on_workers_and_chunks(any_workers, mask, tmp_path, n, chunks):
    trace_filaments(Session(any_workers[1]), mask, tmp_path / "whole.csv", SETTINGS)
    other = Session(any_workers[n], chunks=chunks)
    trace_filaments(other, mask, tmp_path / "cut.csv", SETTINGS)
    assert (tmp_path / "cut.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.mark.parametrize(("dtype", "factor"), [("int8", 1), ("uint8", 255), ("float32", 1)])
def test_masks_of_any_type_give_the_same_list(session, mask, tmp_path, dtype, factor):
    trace_filaments(session, mask, tmp_path / "a.csv", SETTINGS)
    other = save(tmp_path / "other.mrc", (two_tubes() * factor).astype(dtype))
    trace_filaments(session, other, tmp_path / "b.csv", SETTINGS)
    assert (tmp_path / "b.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()


def test_an_empty_mask_gives_an_empty_list_and_a_warning(session, tmp_path, caplog):
    empty = save(tmp_path / "empty.mrc", np.zeros(SHAPE, np.uint8))
    for name in ("out.csv", "out.star"):
        report = trace_filaments(session, empty, tmp_path / name, SETTINGS)
        assert (report.n_filaments, report.n_points, report.length_nm) == (0, 0, 0)
    assert len(read_picks(tmp_path / "out.csv")) == 0
    assert caplog.text.count("the mask is empty, so there are no filaments") == 2


def test_one_voxel_gives_an_empty_list_and_says_what_was_asked_for(session, tmp_path, caplog):
    array = np.zeros(SHAPE, np.uint8)
    array[20, 30, 40] = 1
    report = trace_filaments(session, save(tmp_path / "m.mrc", array), tmp_path / "o.csv", SETTINGS)
    assert report.n_points == 0
    assert "no filament is as long as 20 nm; lower --min-length-nm" in caplog.text


def test_a_label_volume_is_one_mask_with_a_warning_unless_a_label_is_chosen(
    session, tmp_path, caplog
):
    labels = tube(LINES[0], 4, SHAPE) + 2 * tube(LINES[1], 4, SHAPE).astype(np.int16)
    path = save(tmp_path / "labels.mrc", labels.astype(np.int16))
    assert trace_filaments(session, path, tmp_path / "all.csv", SETTINGS).n_filaments == 2
    assert "looks like a label volume (values up to 2)" in caplog.text
    caplog.clear()
    chosen = SETTINGS.model_copy(update={"label_value": 2})
    assert trace_filaments(session, path, tmp_path / "two.csv", chosen).n_filaments == 1
    assert np.abs(read_picks(tmp_path / "two.csv")["y"] - 50).max() <= 1
    assert caplog.text == ""


def test_a_mask_without_voxel_spacing_is_refused_until_it_is_given(one_worker, tmp_path):
    path = save(tmp_path / "m.mrc", two_tubes(), spacing=None)
    with pytest.raises(SpacingError, match="voxel-spacing-angstrom"):
        trace_filaments(Session(one_worker), path, tmp_path / "o.csv", SETTINGS)
    given = Session(one_worker, voxel_spacing_angstrom=SPACING)
    assert trace_filaments(given, path, tmp_path / "o.csv", SETTINGS).n_filaments == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.mrc", "o.csv"]


@pytest.mark.parametrize("bad", [-1.0, np.nan])
def test_what_is_no_mask_is_refused_by_its_name(session, tmp_path, bad):
    array = two_tubes().astype(np.float32)
    array[5, 5, 5] = bad
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mrcfile warns of NaN
        path = save(tmp_path / "bad.mrc", array)
    with pytest.raises(VoxelValueError, match=r"bad\.mrc: expected a mask of 0 outside"):
        trace_filaments(session, path, tmp_path / "o.csv", SETTINGS)
    assert not (tmp_path / "o.csv").exists()


def test_scores_with_too_low_a_threshold_are_refused_before_they_are_traced(
    session, tmp_path, monkeypatch
):
    noise = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    path = save(tmp_path / "scores.mrc", noise)
    monkeypatch.setattr(filaments_job, "_MOST_VOXELS", 1000)
    with pytest.raises(ConfigError, match=r"scores\.mrc: .*middle lines: give a higher --thr"):
        trace_filaments(session, path, tmp_path / "o.csv", SETTINGS)
    assert not (tmp_path / "o.csv").exists()


@pytest.mark.parametrize("name", ["o.em", "o", "o.mrc"])
def test_an_output_that_cannot_hold_angles_is_refused(session, mask, tmp_path, name):
    with pytest.raises(ConfigError, match=r"expected an output ending in \.csv"):
        trace_filaments(session, mask, tmp_path / name, SETTINGS)


def test_an_output_is_replaced_only_on_request(one_worker, mask, tmp_path):
    target = tmp_path / "o.csv"
    target.write_text("precious")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        trace_filaments(Session(one_worker), mask, target, SETTINGS)
    assert target.read_text() == "precious"
    trace_filaments(Session(one_worker, overwrite=True), mask, target, SETTINGS)
    assert len(read_picks(target)) > 0


def test_a_filament_thicker_than_declared_is_named(session, mask, tmp_path, caplog):
    thin = SETTINGS.model_copy(update={"max_radius_nm": 1.0})
    trace_filaments(session, mask, tmp_path / "o.csv", thin)
    assert "thicker than twice --max-radius-nm (1 nm)" in caplog.text


def test_a_window_that_no_worker_can_hold_is_refused_before_work(mask, tmp_path):
    with (
        connect(ClusterSettings(kind="threads", workers=1, memory="129MiB")) as workers,
        pytest.raises(BudgetError, match="filaments: needs"),
    ):
        trace_filaments(Session(workers), mask, tmp_path / "o.csv", SETTINGS)


def test_compat_writes_the_published_list_from_the_config(session, golden, tmp_path):
    folder = golden / "deepict" / "filaments"
    compat = FilamentSettings(compat="deepict")
    config, target = folder / "config.txt", tmp_path / "o.csv"
    report = trace_filaments(session, folder / "mask.mrc.gz", target, compat, config=config)
    assert target.read_bytes() == (folder / "fil_coord.csv").read_bytes()
    assert (report.n_filaments, report.n_points) == (3, 38)
    assert report.length_nm == pytest.approx(311.17519922547336)


def test_compat_takes_the_same_numbers_from_options(one_worker, golden, tmp_path):
    folder = golden / "deepict" / "filaments"
    given = Session(one_worker, voxel_spacing_angstrom=13.48)
    settings = FilamentSettings(
        compat="deepict", erode_voxels=3, min_length_nm=30, step_nm=8,
        max_gap_nm=30 * 1.348, max_angle_degrees=20,
    )  # fmt: skip
    trace_filaments(given, folder / "mask.mrc.gz", tmp_path / "o.csv", settings)
    assert (tmp_path / "o.csv").read_bytes() == (folder / "fil_coord.csv").read_bytes()
    trace_filaments(given, folder / "mask.mrc.gz", tmp_path / "o.star", settings)
    particles = starfile.read(tmp_path / "o.star")["particles"]
    assert particles["rlnHelicalTubeID"].tolist() == [1] * 15 + [2] * 16 + [3] * 7


def test_our_filaments_of_the_published_mask_are_the_same_three(one_worker, golden, tmp_path):
    folder = golden / "deepict" / "filaments"
    given = Session(one_worker, voxel_spacing_angstrom=13.48)
    settings = FilamentSettings(erode_voxels=3)
    report = trace_filaments(given, folder / "mask.mrc.gz", tmp_path / "o.csv", settings)
    assert report.n_filaments == 3
    lines = (folder / "fil_coord.csv").read_text().splitlines()[1:]
    xyz = np.array([line.split(",")[1:4] for line in lines], float) / 1.348
    ours = read_picks(tmp_path / "o.csv")[["x", "y", "z"]].to_numpy()
    nearest = np.linalg.norm(xyz[:, None] - ours[None], axis=2).min(axis=1)
    assert nearest.max() <= 4.0  # half a step of 5.9 voxels, and one voxel


@pytest.mark.parametrize(
    "ours", [{"label_value": 2}, {"threshold": 0.7}, {"max_radius_nm": 5}, {"smoothing_nm": 10}]
)
def test_what_the_published_script_does_not_have_is_refused_with_compat(ours):
    with pytest.raises(ValueError, match=f"without {next(iter(ours))}"):
        FilamentSettings(compat="deepict", **ours)


def test_numbers_beside_the_published_config_are_refused(session, mask, tmp_path):
    settings = FilamentSettings(compat="deepict", step_nm=4, erode_voxels=3)
    with pytest.raises(ConfigError, match="config alone, found erode_voxels, step_nm besides"):
        trace_filaments(session, mask, tmp_path / "o.csv", settings, config=tmp_path / "config.txt")


def test_a_config_without_compat_is_refused(session, mask, tmp_path):
    with pytest.raises(ConfigError, match="--config together with --compat deepict"):
        trace_filaments(session, mask, tmp_path / "o.csv", SETTINGS, config=tmp_path / "config.txt")


def test_a_task_that_dies_is_one_message(session, mask, tmp_path, monkeypatch):
    from deepict_dask.filaments import op

    def fail(*_arguments):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(op, "thin", fail)
    with pytest.raises(WorkFailedError, match="skeleton failed: Input/output error"):
        trace_filaments(session, mask, tmp_path / "o.csv", SETTINGS)
    assert not list(tmp_path.glob("o.csv*"))


def test_the_command_says_what_it_found(mask, tmp_path):
    app = typer.Typer()
    command.register(app)
    target = tmp_path / "o.star"
    arguments = [mask, target, "--cluster", "threads", "--workers", 1, "--no-progress"]
    options = ["--max-radius-nm", 6, "--min-length-nm", 20, "--step-nm", 6]
    result = CliRunner().invoke(app, [str(part) for part in arguments + options])
    assert result.exit_code == 0, result.output
    assert "picks on 2 filaments (" in result.output
    _, table = trace(two_tubes() > 0, SETTINGS.voxels(SPACING))
    assert result.output.startswith(f"{len(table)} picks")


def test_the_command_refuses_settings_out_of_range(mask, tmp_path):
    app = typer.Typer()
    command.register(app)
    result = CliRunner().invoke(app, [str(mask), str(tmp_path / "o.csv"), "--step-nm", "0"])
    assert isinstance(result.exception, ConfigError)
    assert "step_nm: Input should be greater than 0, found 0.0" in str(result.exception)


def test_nothing_is_logged_about_a_sound_mask(session, mask, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="deepict_dask"):
        trace_filaments(session, mask, tmp_path / "o.csv", SETTINGS)
    assert [record for record in caplog.records if record.name == "deepict_dask"] == []
