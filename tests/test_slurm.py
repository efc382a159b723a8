"""A real Slurm on this machine: same bytes as here, lost jobs replaced, none left behind."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from programs import run, start
from slurm_machine import slurm_machine

from deepict_dask.config import load_run_config
from deepict_dask.core.errors import ClusterError
from deepict_dask.demo import MODEL
from deepict_dask.engine import ClusterSettings, connect
from deepict_dask.engine.arrays import run_each
from deepict_dask.synthetic import CellSettings, make_cell, write_cell

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(240)]

MEMORY = "1376MiB"
"""What a worker has of a job of 1.5 GiB."""
RECORDS = {"run.json", "stages.json", "summary.csv", "report.html", ".deepict-dask"}
"""Files and folders that hold paths and times."""


@pytest.fixture(scope="module")
def slurm():
    with slurm_machine() as machine:
        yield machine


@pytest.fixture
def profile(slurm, tmp_path):
    """Writes a profile of two small jobs, with other keys laid over; nothing may be left of it."""

    def write(**keys):
        usual = {
            "jobs": 2, "memory_per_job": "1.5GiB", "walltime": "00:30:00", "interface": "lo",
            "log_directory": str(tmp_path / "logs"), "poll_s": 1, "dashboard_port": 0,
            "environment": f"{{PYTHONPATH: {Path(__file__).parent}}}",
        }  # fmt: skip
        path = tmp_path / "slurm.yaml"
        path.write_text("\n".join(f"{key}: {value}" for key, value in (usual | keys).items()))
        return f"slurm:{path}"

    yield write
    slurm.wait_for(lambda machine: not machine.jobs(), timeout_s=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small cell, and what a local run with the bundled network finds in it."""
    folder = tmp_path_factory.mktemp("cell")
    cell = make_cell(CellSettings((48, 96, 96), n_ribosomes=4, n_fas=1, n_distractors_each=0))
    write_cell(cell, folder / "cell")
    config = written(folder, "local")
    run("run", config, "--cluster", "local", "--workers", 2, "--memory", MEMORY)
    assert len((folder / "local/tomogram/picks_ribosome/picks.csv").read_text().splitlines()) > 1
    return folder


def written(folder: Path, output: str) -> Path:
    """Write the config of a run."""
    tomogram = next((folder / "cell").glob("*tomo*"))
    path = folder / f"{output}.yaml"
    path.write_text(
        f"tomograms: {tomogram}\noutput: {output}\nchunks: [16, 32, 32]\n"
        f"segment: [{{model: {MODEL}}}]\npick: [{{class: ribosome, threshold: 0.5, min_size: 3}}]\n"
    )
    load_run_config(path)
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder of results but the records."""
    found = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not RECORDS & {*path.parts}
    }
    assert len(found) > 10
    return found


def square(number):
    time.sleep(0.2)
    return number * number


def n_connected(workers):
    return len(workers.client.scheduler_info(n_workers=-1)["workers"])


def test_a_run_through_slurm_gives_the_bytes_of_a_local_run(slurm, profile, folder):
    text = run("run", written(folder, "slurm"), "--cluster", profile())
    assert files_of(folder / "slurm") == files_of(folder / "local")
    assert "dashboard" in text
    slurm.wait_for(lambda machine: not machine.jobs())


def test_a_run_whose_jobs_are_all_cancelled_goes_on_in_others(slurm, profile, folder):
    process = start("run", written(folder, "robbed"), "--cluster", profile(jobs=1))
    slurm.wait_for(lambda _: [*(folder / "robbed").rglob("*.partial")])
    first = slurm.jobs()
    slurm.run("scancel", *map(str, first))
    text, _ = process.communicate(timeout=200)
    assert process.returncode == 0, text
    assert f"job {first[0]} of Slurm is lost" in text
    assert files_of(folder / "robbed") == files_of(folder / "local")


def test_a_cancelled_job_is_replaced_and_the_results_are_right(slurm, profile):
    with connect(ClusterSettings(kind=profile(workers_per_job=2))) as workers:
        slurm.wait_for(lambda _: n_connected(workers) == 4)
        futures = workers.client.map(square, range(200), pure=False)
        lost = slurm.jobs()[0]
        slurm.run("scancel", str(lost))
        slurm.wait_for(lambda machine: machine.jobs("RUNNING")[-1:] > [lost + 1])
        slurm.wait_for(lambda _: n_connected(workers) == 4)
        assert workers.client.gather(futures) == [n * n for n in range(200)]
        assert len(slurm.jobs()) == 2


def test_workers_leave_before_the_time_limit_and_lose_no_task(slurm, profile):
    keys = {"lifetime_s": 10, "lifetime_stagger_s": 1}
    with connect(ClusterSettings(kind=profile(**keys))) as workers:
        slurm.wait_for(lambda _: n_connected(workers) == 2)
        first = slurm.jobs()

        def submit(number):
            return workers.client.submit(square, number, pure=False)

        done = dict(run_each(workers, submit, range(80), stage="square", where="here"))
        assert done == {n: n * n for n in range(80)}
        slurm.wait_for(lambda machine: machine.jobs("RUNNING")[-1:] > first[-1:])


def test_a_ctrl_c_cancels_the_jobs(slurm, profile, folder):
    process = start("run", written(folder, "interrupted"), "--cluster", profile())
    slurm.wait_for(lambda _: [*(folder / "interrupted").rglob("*.partial")])
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode in (1, 130), text
    assert "Traceback" not in text
    slurm.wait_for(lambda machine: not machine.jobs(), timeout_s=10)


def test_the_time_limit_of_the_drivers_own_job_cancels_the_jobs(slurm, profile, folder):
    process = start("run", written(folder, "ended"), "--cluster", profile())
    slurm.wait_for(lambda _: [*(folder / "ended").rglob("*.partial")])
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 143, text
    slurm.wait_for(lambda machine: not machine.jobs(), timeout_s=10)


def test_jobs_of_a_killed_driver_end_by_themselves(slurm, profile, folder):
    process = start("run", written(folder, "killed"), "--cluster", profile(death_timeout_s=5))
    slurm.wait_for(lambda machine: len(machine.jobs("RUNNING")) == 2)
    slurm.wait_for(lambda _: [*(folder / "killed").rglob("*.partial")])
    process.kill()
    process.communicate(timeout=60)
    slurm.wait_for(lambda machine: not machine.jobs(), timeout_s=60)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"memory_per_job": "900GiB"}, ("expected Slurm to take a job", "Memory", "profile")),
        ({"queue": "nosuch"}, ("expected Slurm to take a job", "invalid partition")),
        ({"walltime": "'20:00:00'"}, ("PartitionTimeLimit", "never start", "profile")),
        ({"gpus_per_job": 1, "gpu_type": "h100"}, ("expected Slurm to take a job", "gpus")),
        ({"directives": "[--begin=now+1hour]", "wait_s": 3}, ("2 x PENDING (BeginTime)", "wait_s")),
        ({"prologue": "[echo no space left >&2, exit 3]"}, ("before a worker", "no space left")),
        ({"python": "/nosuch/python"}, ("before a worker", "/nosuch/python")),
        ({"interface": "nosuch0"}, ("expected to start a scheduler", "nosuch0", "ip -brief")),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_request_that_cannot_be_met_is_named(slurm, profile, keys, said):
    with pytest.raises(ClusterError) as caught, connect(ClusterSettings(kind=profile(**keys))):
        pytest.fail("there can be no worker")
    for words in said:
        assert words in str(caught.value)
    slurm.wait_for(lambda machine: not machine.jobs(), timeout_s=20)


def test_no_more_workers_ends_the_run_with_what_the_queue_says(slurm, profile):
    """The partition closes, the jobs are cancelled: new ones cannot be sent, and tasks must end."""

    def robbed():
        with connect(ClusterSettings(kind=profile(wait_s=4))) as workers:
            slurm.wait_for(lambda _: n_connected(workers) == 2)
            futures = workers.client.map(square, range(500), pure=False)
            slurm.run("scontrol", "update", "PartitionName=main", "State=INACTIVE")
            slurm.run("scancel", *map(str, slurm.jobs()))
            workers.client.gather(futures)

    try:
        with pytest.raises(ClusterError, match=r"expected a worker within 4 s.*Slurm says"):
            robbed()
    finally:
        slurm.run("scontrol", "update", "PartitionName=main", "State=UP")


GROUPS = "{gpu: {gpus_per_job: 1, queue: gpu, jobs: 1}, cpu: {jobs: 1}}"


def gpu_of_this_worker():
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def test_a_run_on_two_kinds_of_jobs_gives_the_bytes_of_a_local_run(profile, folder):
    run("run", written(folder, "groups"), "--cluster", profile(groups=GROUPS))
    assert files_of(folder / "groups") == files_of(folder / "local")


def test_networks_go_to_the_gpu_and_the_rest_to_cheap_workers(profile):
    with connect(ClusterSettings(kind=profile(groups=GROUPS))) as workers:
        assert workers.kinds == {"CPU", "GPU"}
        network = _network_op()

        def seen(*work):
            return workers.client.submit(gpu_of_this_worker, pure=False, **workers.placed(*work))

        assert [seen(network).result() for _ in range(4)] == ["0"] * 4
        assert [seen().result() for _ in range(4)] == [None] * 4


def _network_op():
    from deepict_dask.segmentation.deepict_slices import CompatSliceOp

    return CompatSliceOp("m.pth", 0.0, 1.0, None, 0, "cuda")
