"""A dataset with broken tomograms, left alone on a real Slurm that loses a job."""

from __future__ import annotations

import csv

import mrcfile
import numpy as np
import pytest
from programs import run, start
from slurm_machine import slurm_machine

from deepict_dask.demo import MODEL

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]

MEMORY = "1376MiB"
"""What a worker has of a job of 1.5 GiB."""
SHAPES = [
    (32, 64, 64), (40, 64, 80), (32, 96, 64), (48, 48, 48),
    (33, 61, 70), (56, 64, 48), (32, 80, 80), (45, 50, 90),
]  # fmt: skip
BROKEN = {
    "TS_05": "truncated",
    "TS_11": "NaN",
    "TS_17": "found text",
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """24 tomograms of 8 shapes, three of which nobody can use."""
    folder = tmp_path_factory.mktemp("dataset")
    rng = np.random.default_rng(0)
    for i in range(24):
        path = folder / "tomograms" / f"TS_{i:02}.mrc"
        path.parent.mkdir(exist_ok=True)
        with mrcfile.new(path, rng.standard_normal(SHAPES[i % 8], dtype=np.float32)) as file:
            file.voxel_size = 13.48
    np.memmap(folder / "tomograms" / "TS_11.mrc", "<f4", "r+", offset=1024)[5000] = np.nan
    cut = folder / "tomograms" / "TS_05.mrc"
    cut.write_bytes(cut.read_bytes()[:5000])
    (folder / "tomograms" / "TS_17.mrc").write_text("moved to the archive\n" * 100)
    return folder


def written(folder, output):
    """Write the config of a run over the dataset."""
    path = folder / f"{output}.yaml"
    path.write_text(
        f"tomograms: tomograms\noutput: {output}\nchunks: [16, 32, 32]\n"
        f"segment: [{{model: {MODEL}}}]\npick: [{{class: ribosome, threshold: 0.1}}]\n"
    )
    return path


def summary_of(folder):
    """Return the rows of a run's summary by tomogram."""
    with (folder / "summary.csv").open(newline="") as file:
        return {row["tomogram"]: row for row in csv.DictReader(file)}


def files_of(folder):
    """Return the volumes and lists of a folder of results by name; records hold times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in {"run.json", "stages.json"}
    }


def n_done(folder):
    """Return how many tomograms have picks."""
    return len([*folder.glob("*/picks_ribosome/run.json")])


def test_all_that_can_be_done_is_done_though_a_job_is_cancelled(dataset, tmp_path):
    with slurm_machine() as slurm:
        profile = tmp_path / "slurm.yaml"
        profile.write_text(
            'jobs: 2\nmemory_per_job: 1.5GiB\nwalltime: "00:30:00"\ninterface: lo\n'
            f"log_directory: {tmp_path / 'logs'}\npoll_s: 1\ndashboard_port: 0\n"
        )
        process = start("run", written(dataset, "slurm"), "--cluster", f"slurm:{profile}")
        slurm.wait_for(lambda _: n_done(dataset / "slurm") >= 4, timeout_s=200)
        assert n_done(dataset / "slurm") < 21  # midway
        *_, newest = slurm.jobs()
        lost = slurm.jobs("RUNNING")[0]
        slurm.run("scancel", str(lost))
        slurm.wait_for(lambda machine: max(machine.jobs(), default=0) > newest, timeout_s=200)
        text, _ = process.communicate(timeout=400)
        slurm.wait_for(lambda machine: not machine.jobs(), timeout_s=60)
    assert process.returncode == 1, text
    assert f"job {lost} of Slurm is lost" in text
    run("run", written(dataset, "local"), "--workers", 2, "--memory", MEMORY, expected=1)
    for output in ("slurm", "local"):
        rows = summary_of(dataset / output)
        assert {name for name, row in rows.items() if row["state"] == "failed"} == {*BROKEN}
        assert sum(row["state"] == "done" for row in rows.values()) == 21
        for name, why in BROKEN.items():
            assert why in rows[name]["reason"]
    for name in {*summary_of(dataset / "slurm")} - {*BROKEN}:
        found = files_of(dataset / "slurm" / name)
        assert found == files_of(dataset / "local" / name)
        assert len(found) > 10
    counts = [row["picks_ribosome"] for row in summary_of(dataset / "slurm").values()]
    assert sum(map(int, filter(None, counts))) > 0
