"""Profiles of batch systems: what their jobs ask for, how their queues are read, errors by name."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from profile_scenes import LEAST, SCHEDULER, elsewhere

from deepict_dask.config import load_run_config
from deepict_dask.config.profile import ClusterProfile, load_profile
from deepict_dask.config.run import read_config_file
from deepict_dask.core.errors import BudgetError, ClusterError, ConfigError
from deepict_dask.engine import ClusterSettings, Workers, batch_systems, connect
from deepict_dask.engine.batch_systems import BATCH_SYSTEMS, make_job, worker_bytes
from deepict_dask.engine.cluster import plan_workers
from deepict_dask.segmentation.joint import JointSegmentOp
from deepict_dask.segmentation.windows import SegmentOp

__all__ = ["elsewhere"]

DEPLOY = Path(__file__).parents[1] / "deploy"
EVERYTHING = LEAST | {
    "queue": "long", "account": "em42", "workers_per_job": 4, "cores_per_job": 6,
    "gpus_per_job": 1, "gpu_type": "a100", "interface": "ib0", "local_directory": "$TMPDIR",
    "modules": ("cuda/12",), "prologue": ("ulimit -n 4096",), "environment": {"WHERE": "a b"},
    "python": "/opt/python",
}  # fmt: skip
DIRECTIVES = {
    "slurm": [
        "#SBATCH -p long", "#SBATCH -A em42", "#SBATCH --cpus-per-task=6", "#SBATCH --mem=8192M",
        "#SBATCH -t 02:00:00", "#SBATCH --gres=gpu:a100:1", "#SBATCH --no-requeue",
    ],
    "pbs": [
        "#PBS -q long", "#PBS -A em42", "#PBS -r n", "#PBS -l walltime=02:00:00",
        "#PBS -l select=1:ncpus=6:mem=8192mb:ngpus=1:gpu_type=a100",
    ],
    "lsf": [
        "#BSUB -q long", '#BSUB -P "em42"', "#BSUB -n 6", "#BSUB -M 8589935", "#BSUB -W 02:00",
        '#BSUB -gpu "num=1:gmodel=a100"', "#BSUB -rn",
    ],
    "sge": [
        "#$ -q long", "#$ -P em42", "#$ -l h_vmem=2G,gpu=1", "#$ -l h_rt=02:00:00",
        "#$ -pe smp 6", "#$ -r n",
    ],
}  # fmt: skip
ONLY_SGE = {"resource_spec": "h_vmem=2G,gpu=1", "directives": ("-pe smp 6",)}


def script_of(system, **keys):
    return make_job(BATCH_SYSTEMS[system], ClusterProfile(**keys), SCHEDULER, "w0").job_script()


def option(script, name):
    """Return what follows an option of the workers' command."""
    words = shlex.split(script.strip().splitlines()[-1])
    return words[words.index(name) + 1]


@pytest.mark.parametrize("system", BATCH_SYSTEMS)
def test_a_job_asks_for_all_that_the_profile_says(system):
    script = script_of(system, **EVERYTHING | (ONLY_SGE if system == "sge" else {}))
    lines = script.splitlines()
    for line in DIRECTIVES[system]:
        assert line in lines
    assert lines.index("module load cuda/12") < lines.index("ulimit -n 4096")
    assert "export WHERE='a b'" in lines
    assert lines[-1].startswith(f"/opt/python -m distributed.cli.dask_worker {SCHEDULER} ")


@pytest.mark.parametrize("system", BATCH_SYSTEMS)
def test_workers_have_one_thread_share_the_memory_and_leave_in_time(system):
    script = script_of(system, **EVERYTHING | (ONLY_SGE if system == "sge" else {}))
    assert option(script, "--nthreads") == "1"
    assert option(script, "--nworkers") == "4"
    # 8 GiB less 160 MiB of the nanny, by four
    assert option(script, "--memory-limit") == "1.96GiB"
    lifetime, stagger = option(script, "--lifetime"), option(script, "--lifetime-stagger")
    assert (lifetime, stagger) == ("6480s", "360s")
    assert int(lifetime[:-1]) + int(stagger[:-1]) < 2 * 3600
    assert option(script, "--interface") == "ib0"
    assert option(script, "--local-directory") == "$TMPDIR"
    assert option(script, "--resources") == "GPU=1"


@pytest.mark.parametrize("system", ["slurm", "pbs", "lsf"])
def test_jobs_set_up_their_workers_as_local_ones_are(system):
    script = script_of(system, **LEAST)
    for line in (
        "export OMP_NUM_THREADS=1",
        "export ZARR_ASYNC__CONCURRENCY=1",
        "export DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=False",
        "export DASK_DISTRIBUTED__WORKER__MEMORY__SPILL=False",
        "export DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE=False",
    ):
        assert line in script.splitlines()


def test_dask_reads_these_variables_as_the_settings_they_are_made_of():
    import dask

    read = dask.config.collect_env(batch_systems.job_environment())
    with dask.config.set(read):
        assert dask.config.get("distributed.worker.profile.enabled") is False
        assert dask.config.get("distributed.worker.memory.spill") is False
        assert dask.config.get("distributed.worker.memory.terminate") == 0.95


@pytest.mark.parametrize("path", sorted(DEPLOY.glob("*.yaml")), ids=lambda path: path.name)
def test_each_profile_in_deploy_gives_a_job_of_its_size(path):
    system = path.name.split("-")[0]
    for profile in load_profile(path).values():
        script = make_job(BATCH_SYSTEMS[system], profile, SCHEDULER, "w0").job_script()
        gib = int(profile.memory_per_job.removesuffix("GiB"))
        asked = {
            "slurm": (f"--mem={gib * 1024}M", f"--cpus-per-task={profile.cores}"),
            "pbs": (f"mem={gib * 1024}mb", f"ncpus={profile.cores}"),
            # LSF counts kilobytes where its settings say nothing else, dask-jobqueue a thousand.
            "lsf": (f"-M {-(-(gib << 30) // 1000)}\n", f"-n {profile.cores}\n", "span[hosts=1]"),
            "sge": (f"h_vmem={gib // profile.cores}G", f"-pe smp {profile.cores}", "-S /bin/bash"),
        }
        limit = "-W 04:00\n" if system == "lsf" else "04:00:00"
        for words in (*asked[system], f"{profile.queue}\n", limit):
            assert words in script
        read = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
        assert read.returncode == 0, read.stderr
        assert option(script, "--local-directory") == "${TMPDIR:-/tmp}"
        assert ("gpu" in script) == (profile.gpus_per_job == 1)
        assert worker_bytes(profile) >= 2 << 30


def test_deploy_has_profiles_of_every_system_and_one_with_two_groups():
    groups = {path.name: [*load_profile(path)] for path in DEPLOY.glob("*.yaml")}
    alone = {f"{system}-cpu.yaml": ["worker"] for system in BATCH_SYSTEMS}
    assert groups == alone | {"slurm-gpu.yaml": ["gpu", "cpu"]}


@pytest.mark.parametrize(
    ("script", "arguments", "given", "system"),
    [
        ("driver.sbatch", ("run.yaml", "profile.yaml"), {}, "slurm"),
        ("driver.pbs", (), {"config": "run.yaml", "profile": "profile.yaml"}, "pbs"),
    ],
)
def test_the_drivers_scripts_start_a_run_with_what_they_are_given(
    tmp_path, script, arguments, given, system
):
    stand_in = tmp_path / "deepict-dask"
    stand_in.write_text('#!/bin/bash\necho "$PWD" "$@"\n')
    stand_in.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    known = {"PATH": path, "PBS_O_WORKDIR": str(tmp_path)}
    command = ["bash", DEPLOY / script]
    done = subprocess.run(
        [*command, *arguments], env=known | given, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == f"{tmp_path} run run.yaml --cluster {system}:profile.yaml --no-progress\n"
    without = subprocess.run(command, env=known, cwd=tmp_path, capture_output=True, text=True)
    assert without.returncode != 0
    assert "usage: " in without.stderr


BAD = {
    "a misspelt key": ("walltme: 1:00:00", "walltme: unknown key (known keys: queue"),
    "no memory": ("walltime: '01:00:00'", "memory_per_job: is required"),
    "a size without unit": ("memory_per_job: 8\nwalltime: '01:00:00'", "memory_per_job: "),
    "a time in words": ("memory_per_job: 8GiB\nwalltime: two hours", "expected a time such as"),
    "no time to leave": ("memory_per_job: 8GiB\nwalltime: 00:01:00", "walltime: expected time"),
    "fewer cores than workers": (
        "memory_per_job: 8GiB\nwalltime: 1:00:00\nworkers_per_job: 4\ncores_per_job: 2",
        "cores_per_job: expected at least 4",
    ),
    "four GPUs": ("memory_per_job: 8GiB\nwalltime: 1:00:00\ngpus_per_job: 4", "more jobs of one"),
    "a group that is no name": ("groups: {a-b: {}}", "groups: expected names of letters"),
    "a misspelt key of a group": ("groups: {gpu: {jbs: 1}}", "groups.gpu: "),
    "a driver for each group": ("groups: {gpu: {wait_s: 1}}", "there is one driver"),
}


@pytest.mark.parametrize(("text", "said"), BAD.values(), ids=BAD)
def test_what_a_profile_cannot_mean_is_named_with_the_file(text, said, tmp_path):
    path = tmp_path / "slurm.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught, connect(ClusterSettings(kind=f"slurm:{path}")):
        pytest.fail("there is no such profile")
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)


def test_a_profile_that_is_not_there_is_named(tmp_path):
    kind = f"pbs:{tmp_path}/nowhere.yaml"
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"), connect(ClusterSettings(kind=kind)):
        pytest.fail("there is no such profile")


@pytest.mark.parametrize(
    ("written", "read"),
    [("12:00", "12:00:00"), ("04:00", "04:00:00"), ("1:30:00", "01:30:00"), ("43200", "12:00:00")],
)
def test_hours_and_minutes_need_no_quotes(tmp_path, written, read):
    path = tmp_path / "slurm.yaml"
    path.write_text(f"memory_per_job: 8GiB\nwalltime: {written}\n")
    (profile,) = load_profile(path).values()
    assert profile.walltime == read


def test_a_key_that_is_given_twice_is_refused_with_its_line(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("output: a\npick:\n  - class: a\n    class: b\n")
    with pytest.raises(ConfigError, match=r"line 4, column 5: .*the key class again"):
        read_config_file(path)


def test_yaml_times_without_quotes_are_times():
    assert ClusterProfile(memory_per_job="8GiB", walltime=43200).walltime == "12:00:00"
    assert ClusterProfile(memory_per_job="8GiB", walltime="2-12:00:00").walltime == "60:00:00"


def test_workers_that_could_not_even_start_are_refused():
    with pytest.raises(BudgetError, match="fewer workers_per_job"):
        worker_bytes(ClusterProfile(**LEAST, workers_per_job=100))


def test_grid_engine_is_told_how_its_site_names_memory_and_cores():
    with pytest.raises(ConfigError, match="resource_spec: is required for sge"):
        script_of("sge", **LEAST)
    with pytest.raises(ConfigError, match="-pe smp 2"):
        script_of("sge", **LEAST, workers_per_job=2, resource_spec="h_vmem=4G")


def test_a_missing_dask_jobqueue_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setattr(batch_systems.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ClusterError, match=re.escape("pip install 'deepict-dask[hpc]'")):
        script_of("slurm", **LEAST)


def test_an_unknown_system_is_refused_with_the_known_ones():
    with (
        pytest.raises(ClusterError, match=r"slurm, pbs, lsf, sge.*'torque:p\.yaml'"),
        connect(ClusterSettings(kind="torque:p.yaml")),
    ):
        pytest.fail("there is no such system")


def test_a_scheduler_file_that_is_not_there_is_named(tmp_path):
    kind = f"scheduler-file:{tmp_path}/none.json"
    with (
        pytest.raises(ClusterError, match="dask scheduler --scheduler-file"),
        connect(ClusterSettings(kind=kind)),
    ):
        pytest.fail("there is no scheduler")


def test_a_scheduler_file_leads_to_its_workers(tmp_path):
    import json

    from distributed import LocalCluster

    options = {"n_workers": 1, "processes": False, "dashboard_address": None}
    with LocalCluster(**options) as cluster:
        path = tmp_path / "scheduler.json"
        path.write_text(json.dumps({"address": cluster.scheduler_address}))
        with connect(ClusterSettings(kind=f"scheduler-file:{path}")) as workers:
            assert workers.client.submit(sum, [1, 2]).result() == 3
            assert workers.address == cluster.scheduler_address
            assert workers.device("cpu") == "cpu"


PBS_QUEUE = """
                                                            Req'd  Req'd   Elap
Job ID          Username Queue    Jobname    SessID NDS TSK Memory Time  S Time
--------------- -------- -------- ---------- ------ --- --- ------ ----- - -----
12.pbs          me       workq    deepict       331   1   8   32gb 04:00 R 00:01
13.pbs          me       workq    deepict       --    1   8   32gb 04:00 Q   --
14.pbs          me       workq    deepict       331   1   8   32gb 04:00 F 00:01
"""


@pytest.mark.parametrize(
    ("system", "text", "found"),
    [
        ("slurm", "1|RUNNING|None\n2|PENDING|Priority\n3|COMPLETING|None\n",
         {"1": "RUNNING", "2": "PENDING (Priority)"}),
        ("pbs", PBS_QUEUE, {"12": "R", "13": "Q"}),
        ("lsf", "101 PEND\n102 RUN\n103 EXIT\n", {"101": "PEND", "102": "RUN"}),
        ("sge", "job-ID prior name user state\n-----\n  7 0.55 dd me qw 11/21/2026 12:00:00 8\n",
         {"7": "qw"}),
    ],
)  # fmt: skip
def test_the_queue_is_read_without_finished_jobs(system, text, found):
    assert BATCH_SYSTEMS[system].read_states(text) == found


@pytest.mark.parametrize(
    ("message", "found"),
    [("No unfinished job found", {}), ("Failed in an LSF library call", None)],
)
def test_a_queue_without_jobs_is_known_from_one_that_does_not_answer(
    message, found, tmp_path, monkeypatch
):
    command = tmp_path / "bjobs"
    command.write_text(f"#!/bin/sh\necho '{message}' >&2\nexit 255\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert BATCH_SYSTEMS["lsf"].states() == found


def test_only_networks_on_a_gpu_need_a_worker_with_one():
    both = Workers(None, 2, 1 << 30, "", kinds=frozenset({"CPU", "GPU"}))
    alike = Workers(None, 2, 1 << 30, "", kinds=frozenset({"GPU"}))
    on_gpu, on_cpu = (SegmentOp("m.pth", 0.0, 1.0, device=d) for d in ("cuda", "cpu"))
    assert (
        both.placed(on_gpu) == both.placed(JointSegmentOp((on_gpu,))) == {"resources": {"GPU": 1}}
    )
    assert both.placed(on_cpu) == both.placed() == {"resources": {"CPU": 1}}
    assert alike.placed(on_gpu) == alike.placed() == {}


def test_a_run_finds_the_profile_beside_its_config_and_plans_with_its_workers(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site/slurm.yaml").write_text(
        "memory_per_job: 8GiB\nwalltime: 1:00:00\njobs: 3\nworkers_per_job: 2\n"
    )
    (tmp_path / "site/run.yaml").write_text(
        "tomograms: t.mrc\noutput: out\nsegment: [{model: m.pth}]\n"
        "cluster: {kind: 'slurm:slurm.yaml', memory: 3GiB}\n"
    )
    cluster = load_run_config(tmp_path / "site/run.yaml").cluster
    assert cluster.kind == f"slurm:{tmp_path}/site/slurm.yaml"
    settings = ClusterSettings(cluster.kind, memory=cluster.memory)
    assert plan_workers(settings) == (6, 3 << 30)
    assert plan_workers(ClusterSettings(cluster.kind, workers=3)) == (4, (8192 - 160) // 2 << 20)
