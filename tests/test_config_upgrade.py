"""Configs of DeePiCt become ours with the same meaning."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import typer
import yaml
from project_scenes import (
    CASES,
    POST,
    blob,
    case_config,
    changed,
    flat,
    folder,
    session,
    unpacked,
    write,
)
from typer.testing import CliRunner

from deepict_dask.cli import project as project_commands
from deepict_dask.config import load_run_config
from deepict_dask.core.errors import OutputExistsError
from deepict_dask.deepict_project import upgrade_config
from deepict_dask.io.dataset import list_tomograms
from deepict_dask.pipeline import run_pipeline

__all__ = ["blob", "flat", "folder", "session", "unpacked"]


def upgraded(values: dict, **options):
    made = upgrade_config(write(values), Path("new/run.yaml"), **options)
    return load_run_config(made.config), made


def test_an_upgraded_config_has_the_same_meaning(golden, blob):
    values = case_config(golden, blob, "nomask_c3_min300_max1500_border")
    config, made = upgraded(values)
    (pick,) = config.pick
    assert (pick.min_size, pick.max_size, pick.connectivity) == (301, 1500, 26)
    assert pick.border == (5, 20, 10)
    assert pick.compat is None
    assert config.segment[0].compat is None
    assert Path(config.segment[0].model).samefile("models/blob_D2_IF4_BN.pth")
    with made.table.open() as table:
        (row,) = csv.DictReader(table)
    assert row["name"] == "golden"
    assert row["tomogram"] == "../inputs/tomo.mrc"
    assert (made.table.parent / row["tomogram"]).samefile("inputs/tomo.mrc")


def test_an_upgraded_config_keeps_region_and_contact(golden, blob):
    values = case_config(golden, blob, "region_colocalization_r8_c1_min100")
    config, _ = upgraded(values)
    assert config.regions[0].column == "lamella_file"
    (pick,) = config.pick
    assert (pick.region, pick.contact_mode, pick.contact_distance) == (
        "region_mask", "colocalization", 8,
    )  # fmt: skip


def test_an_upgraded_config_names_the_class_of_the_model(golden):
    values = yaml.safe_load((golden / "deepict/configs/rand_2lab.yaml").read_text())
    config, _ = upgraded(changed(values, **{f"{POST}__active": True}))
    assert config.segment[0].classes == ("shell",)
    assert config.pick[0].class_name == "shell"


def test_every_golden_config_can_be_upgraded(golden, folder):
    (folder / "metadata.csv").write_text((golden / "deepict/configs/metadata.csv").read_text())
    for path in sorted((golden / "deepict/configs").glob("*.yaml")):
        values = changed(yaml.safe_load(path.read_text()), dataset_table="metadata.csv",
                         tomos_sets__prediction_list=["golden"])  # fmt: skip
        config, _ = upgraded(values, overwrite=True)
        assert config.segment


@pytest.mark.slow
def test_an_upgraded_config_with_compat_gives_the_particles_of_deepict(session, golden, blob):
    case = "region_intersection_c1_min100"
    values = case_config(golden, blob, case, prediction__active=True)
    config, _ = upgraded(values, compat=True)
    report = run_pipeline(session, config)
    assert not report.failed
    (motl,) = config.output.rglob("motl.csv")
    assert motl.read_bytes() == (golden / f"deepict/postproc/{case}/motl_8.csv").read_bytes()


@pytest.mark.slow
def test_an_upgraded_config_runs(session, golden, blob):
    config, _ = upgraded(case_config(golden, blob, CASES[0], prediction__active=True))
    report = run_pipeline(session, config)
    # the published tiling never predicts the right border, the exact one does
    assert report.tomograms[0].n_picks["picks_blob"] >= 59


def test_a_2d_config_becomes_a_region(flat):
    config, made = upgraded(flat)
    (region,) = config.regions
    assert (region.name, region.threshold, region.z_sigma) == ("organelle", 0.5, 5)
    assert region.compat is None
    kept, _ = upgraded(flat, compat=True, overwrite=True)
    assert kept.regions[0].tiling.crop == 16
    assert "cell_1" in made.table.read_text()


def test_a_2d_config_without_threshold_becomes_a_score_map(flat):
    config, _ = upgraded(changed(flat, postprocessing__threshold=0))
    assert config.regions == ()
    assert config.segment[0].model.endswith("organelle.h5")


def test_an_upgrade_needs_no_tomograms_and_keeps_warnings_as_comments(blob):
    Path("metadata.csv").write_text("tomo_name,tomo,lamella_file\ngolden,/far/away.mrc,\n")
    _, made = upgraded(blob)
    assert "# - " in made.config.read_text()
    assert any("/far/away.mrc" in text for text in made.warnings)


def test_config_upgrade_writes_beside_the_old_one_and_replaces_nothing(blob):
    app = typer.Typer()
    project_commands.register(app)
    path = write(blob)
    result = CliRunner().invoke(app, ["upgrade", str(path)])
    assert result.exit_code == 0
    assert load_run_config(Path("config_deepict_dask.yaml")).segment
    again = CliRunner().invoke(app, ["upgrade", str(path)])
    assert isinstance(again.exception, OutputExistsError)


def test_names_in_folders_and_odd_file_names_are_written_so_that_they_can_be_read(blob):
    Path("metadata.csv").write_text("tomo_name,tomo,lamella_file\n180426/004,inputs/tomo.mrc,\n")
    values = changed(blob, dataset_table="metadata.csv", tomos_sets__prediction_list=["180426/004"])
    made = upgrade_config(write(values), Path("run #2.yaml"))
    config = load_run_config(made.config)
    assert Path(config.tomograms).name == "run #2_tomograms.csv"
    assert [entry.name for entry in list_tomograms(config.tomograms)] == ["180426_004"]
