"""`run --dry-run` plans for the workers that the run would have, and sends no job for it."""

from __future__ import annotations

import subprocess
import sys

import mrcfile
import pytest
import standin_cupy
import yaml
from dataset_scenes import write_network, write_tomogram, write_yaml
from typer.testing import CliRunner

from deepict_dask.backend import device as devices
from deepict_dask.cli import app
from deepict_dask.config import SegmentSettings
from deepict_dask.core.errors import BudgetError, ConfigError, SpacingError
from deepict_dask.core.geometry import Grid
from deepict_dask.engine import ClusterSettings
from deepict_dask.engine.budget import format_bytes
from deepict_dask.engine.gpu_workers import plan_gpu_workers
from deepict_dask.jobs.place import planned_place
from deepict_dask.jobs.segmenting.chosen_model import choose_model
from deepict_dask.jobs.segmenting.windows import (
    choose_grid,
    compat_blocks,
    compat_op,
    joint_op,
)


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


# -- GPUs -----------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _forget_the_choice():
    """Let `auto` look for a GPU in each test."""
    devices._choose.cache_clear()
    yield
    devices._choose.cache_clear()


def on_device(config, device, **more):
    values = yaml.safe_load(config.read_text())
    values["cluster"] = values.get("cluster", {}) | {"device": device}
    config.write_text(yaml.safe_dump(values | more))
    return config


def with_gpu(monkeypatch, free_bytes):
    """Put the stand-in of a GPU with so much free memory in CuPy's place."""
    monkeypatch.setattr("deepict_dask.backend.device.LEAST_FREE_BYTES", 0)
    monkeypatch.setattr("deepict_dask.backend.device._torch_is_for_cuda", lambda: True)
    for name, module in standin_cupy.modules(free_bytes=free_bytes).items():
        monkeypatch.setitem(sys.modules, name, module)


def op_of(network):
    settings = SegmentSettings(model=str(network))
    return joint_op({settings: choose_model(settings)}, "cuda")


def needs(network, window_shape):
    """Return the GPU bytes of a window of the network, for people."""
    return format_bytes(op_of(network).device_bytes_of(Grid(window_shape, window_shape)))


def line_of(text, name):
    (line,) = [line for line in text.splitlines() if line.startswith(f"  {name}")]
    return line


@pytest.mark.parametrize("name", ["scores_net.zarr", "picks_a"])
def test_on_a_gpu_the_windows_are_those_that_its_free_memory_gives(
    config, network, monkeypatch, name
):
    on_device(config, "cuda", keep_scores=name == "scores_net.zarr", chunks=[32, 48, 64])
    with_gpu(monkeypatch, 16 << 30)
    text = planned(config)
    assert "GPU: Stand-in (16 GiB), of which 10.0 GiB may be planned with now" in text
    whole = line_of(text, name)
    assert f": 1 blocks, about {1 if 'scores' in name else 2} tasks" in whole
    assert "windows of 64 x 96 x 128" in whole
    assert whole.endswith(f"{needs(network, (64, 96, 128))} of the GPU each")
    with_gpu(monkeypatch, 1 << 30)  # libraries alone take as much
    cut = line_of(planned(config), name)
    assert ": 8 blocks" in cut
    assert cut.endswith("of the GPU each, more than may be planned with: halved as they come")


def test_the_plan_of_a_gpu_is_that_of_the_run(config, network, monkeypatch):
    """Oracle: the grid that `segment` chooses with the same free memory."""
    on_device(config, "cuda", chunks=[16, 16, 16])
    monkeypatch.setattr("deepict_dask.jobs.place.device_budget", lambda _free: 40 << 20)
    with_gpu(monkeypatch, 8 << 30)
    op = op_of(network)
    grid = choose_grid(op, (64, 96, 128), (16, 16, 16), 2 << 30, device_bytes=40 << 20)
    assert op.device_bytes_of(grid) <= 40 << 20
    line = line_of(planned(config), "scores_net.zarr")
    assert f": {grid.n_blocks} blocks" in line
    assert f"windows of {' x '.join(map(str, grid.window_shape))}," in line


def test_without_a_gpu_the_plan_says_that_it_cannot_know_and_guesses_no_window(
    config, network, monkeypatch
):
    monkeypatch.setitem(sys.modules, "cupy", None)
    text = planned(on_device(config, "cuda", chunks=[32, 48, 64]))
    (told,) = [line for line in text.splitlines() if line.startswith("GPU: ")]
    assert "its free memory is not known" in told
    assert "the run would be refused: device cuda: expected a working GPU, found no CuPy" in told
    line = line_of(text, "scores_net.zarr")
    assert "blocks" not in line
    assert f"one of 64 x 96 x 128 holds {needs(network, (64, 96, 128))} of it" in line
    each = tuple(map(int, line.partition("each of 8 of ")[2].partition(" holds")[0].split(" x ")))
    assert max(each) < 96
    assert f"holds {needs(network, each)}, up to" in line


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_a_machine_without_a_gpu_plans_as_ever_unless_one_is_asked_for(config, monkeypatch, device):
    monkeypatch.setitem(sys.modules, "cupy", None)
    text = planned(on_device(config, device))
    assert "GPU" not in text
    assert "windows of" in line_of(text, "scores_net.zarr")


@pytest.mark.parametrize(
    ("device", "gpus", "told"),
    [("auto", 1, True), ("auto", 0, False), ("cuda", 0, True), ("cpu", 1, False)],
)
def test_of_the_gpus_of_jobs_nothing_is_known_beforehand(config, tmp_path, device, gpus, told):
    profile = tmp_path / "slurm.yaml"
    profile.write_text(profile.read_text() + f"gpus_per_job: {gpus}\n")
    text = planned(on_device(config, device), "--cluster", f"slurm:{profile}")
    assert ("GPU: of the workers' machines" in text) is told
    assert ("by the GPU's free memory" in line_of(text, "scores_net.zarr")) is told


def test_the_worker_with_the_gpu_is_planned_with_its_own_memory(monkeypatch):
    """Oracle: what `plan_gpu_workers` gives the workers that a run here would start."""
    with_gpu(monkeypatch, 16 << 30)
    workers = plan_gpu_workers(["0"], 4, 24 << 30)
    monkeypatch.setattr("deepict_dask.jobs.place.plan_local", lambda _settings: workers)
    place = planned_place(ClusterSettings(), "cuda")
    least = {
        kind: min(b // int(r[kind]) for b, _, r in workers.values() if kind in r)
        for kind in ("GPU", "CPU")
    }
    assert (place.n_workers, place.network_bytes) == (len(workers), least["GPU"])
    assert place.worker_bytes == min(least.values()) < place.network_bytes
    assert place.device_bytes == 10 << 30


def test_published_results_are_planned_as_they_are_made_also_without_a_voxel_spacing(
    config, network, tmp_path
):
    values = yaml.safe_load(config.read_text())
    values["segment"] = [{"model": str(network), "compat": "deepict"}]
    values["pick"][0]["compat"] = "deepict"
    config.write_text(yaml.safe_dump(values))
    with mrcfile.open(tmp_path / "a.mrc", "r+") as file:
        file.voxel_size = 0
    text = planned(config)
    assert "a: (64, 96, 128) voxels (zyx) of unknown size" in text
    settings = SegmentSettings(model=str(network), compat="deepict")
    op = compat_op(choose_model(settings), settings, (64, 96, 128), "cpu")
    grid, chunks = compat_blocks(op, 2 << 30)
    assert chunks == (120, 120, 120)
    (line,) = [line for line in text.splitlines() if ": 2 blocks" in line and "windows" in line]
    assert grid.n_blocks == 2
    assert line.endswith(f"windows of {' x '.join(map(str, grid.window_shape))}")
    del values["pick"][0]["compat"]
    config.write_text(yaml.safe_dump(values))
    with pytest.raises(SpacingError):
        planned(config)
