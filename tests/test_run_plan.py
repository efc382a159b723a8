"""`run --dry-run` plans for the workers that the run would have, and sends no job for it."""

from __future__ import annotations

import subprocess

import pytest
import yaml
from dataset_scenes import write_network, write_tomogram, write_yaml
from typer.testing import CliRunner

from deepict_dask.cli import app
from deepict_dask.core.errors import BudgetError, ConfigError


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return write_network(tmp_path_factory.mktemp("network") / "net.safetensors")


@pytest.fixture
def config(network, tmp_path, monkeypatch):
    """A config of local workers beside a tomogram and a profile, where nothing may be started."""
    write_tomogram(tmp_path / "a.mrc", 0, shape=(64, 96, 128))
    profile = {
        "memory_per_job": "12GiB", "walltime": "02:00:00", "workers_per_job": 2, "jobs": 3,
    }  # fmt: skip
    (tmp_path / "slurm.yaml").write_text(yaml.safe_dump(profile))

    def started(*_arguments, **_options):
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", started)
    monkeypatch.setattr("deepict_dask.engine.connect", started)
    return write_yaml(tmp_path, network, 0.5, workers=1, memory="2GiB")


def planned(config, *options):
    """Return what a dry run shows."""
    ended = CliRunner().invoke(app, ["run", str(config), "--dry-run", *options])
    if ended.exception is not None:
        raise ended.exception
    return ended.output


def head_of(text):
    (head,) = [line for line in text.splitlines() if line.startswith("plan: ")]
    return head


def test_the_plan_is_of_the_configs_workers(config):
    assert head_of(planned(config)) == "plan: 1 tomograms on 1 workers of 2.0 GiB"


def test_options_of_the_command_come_first_and_are_shown(config):
    text = planned(config, "--workers", "2", "--memory", "1GiB")
    assert head_of(text) == "plan: 1 tomograms on 2 workers of 1.0 GiB"
    cluster = yaml.safe_load(text.partition("plan: ")[0])["cluster"]
    assert (cluster["workers"], cluster["memory"]) == (2, "1GiB")
    assert not (config.parent / "out").exists()


def test_a_profile_on_the_command_line_gives_its_workers_and_their_memory(config, tmp_path):
    text = planned(config, "--cluster", f"slurm:{tmp_path}/slurm.yaml")
    n, each = head_of(text).split(" on ")[1].split(" workers of ")
    assert int(n) == 6
    assert each.endswith("GiB")
    assert 5 < float(each.removesuffix(" GiB")) <= 6
    kind = yaml.safe_load(text.partition("plan: ")[0])["cluster"]["kind"]
    assert kind == f"slurm:{tmp_path}/slurm.yaml"
    text = planned(config, "--cluster", f"slurm:{tmp_path}/slurm.yaml", "--memory", "3GiB")
    assert head_of(text).endswith("6 workers of 3.0 GiB")


def test_a_profile_whose_workers_are_too_small_is_refused_before_any_job(config, tmp_path):
    values = yaml.safe_load(config.read_text()) | {"chunks": [64, 96, 128]}
    config.write_text(yaml.safe_dump(values))
    profile = tmp_path / "slurm.yaml"
    profile.write_text(profile.read_text().replace("12GiB", "820MiB"))
    with pytest.raises(BudgetError):
        planned(config, "--cluster", f"slurm:{profile}")


def test_a_profile_that_is_not_there_is_refused(config):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        planned(config, "--cluster", "slurm:nowhere.yaml")
