"""`deepict-dask run` from a YAML: one tomogram, a table, a local cluster, a scheduler elsewhere."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile

from deepict_dask.config import RunConfig, load_run_config
from deepict_dask.core.errors import ConfigError, OutputExistsError, VolumeFormatError
from deepict_dask.jobs.session import Session
from deepict_dask.pipeline import run_pipeline
from deepict_dask.plan import plan_run, remove_results

RECORDS = {"run.json", "stages.json"}
"""Files that hold paths and times."""


def files_of(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder of results but the records."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in RECORDS
    }


def write_mrc(path, volume, spacing=13.48):
    with mrcfile.new(path, overwrite=True) as mrc:
        mrc.set_data(volume)
        mrc.voxel_size = spacing


@pytest.fixture(scope="module")
def blobs(golden):
    return golden / "deepict/models/blob_D2_IF4_BN.pth"


@pytest.fixture(scope="module")
def crop(golden):
    """Part of the golden tomogram that holds blobs."""
    tomo = mrcfile.read(golden / "deepict/inputs/tomo.mrc.gz")
    return np.ascontiguousarray(tomo[:72, 20:116, 10:106])


@pytest.fixture
def table(tmp_path, crop, blobs):
    """A config over three tomograms: whole, truncated, with a region mask."""
    for name in ("a", "b", "c"):
        write_mrc(tmp_path / f"{name}.mrc", crop)
    whole = (tmp_path / "b.mrc").read_bytes()
    (tmp_path / "b.mrc").write_bytes(whole[: len(whole) // 2])
    mask = np.zeros(crop.shape, "int8")
    mask[:36] = 1
    write_mrc(tmp_path / "mask.mrc", mask)
    (tmp_path / "tomograms.csv").write_text(
        "name,tomogram,lamella\nA,a.mrc,\nB,b.mrc,\nC,c.mrc,mask.mrc\n"
    )
    (tmp_path / "run.yaml").write_text(
        f"""
tomograms: tomograms.csv
output: results
chunks: [40, 48, 48]
regions: [{{name: lamella, column: lamella}}]
segment: [{{model: {blobs}}}]
pick: [{{class: blob, threshold: 0.5, min_size: 50, region: lamella, contact_mode: contact}}]
"""
    )
    return load_run_config(tmp_path / "run.yaml")


def test_one_broken_tomogram_fails_alone_and_is_named(two_workers, table):
    report = run_pipeline(Session(two_workers), table)
    assert [one.name for one in report.failed] == ["B"]
    assert "b.mrc" in str(report.failed[0].error)
    counts = {one.name: one.n_picks.get("picks_blob") for one in report.tomograms}
    assert counts["A"] > counts["C"] > 0
    assert not (table.output / "B/scores_blob_D2_IF4_BN.zarr").exists()


def test_picks_hold_the_same_particles_in_every_format(two_workers, table, crop):
    run_pipeline(Session(two_workers), table)
    folder = table.output / "A/picks_blob"
    csv = pd.read_csv(folder / "picks.csv")
    clusters = pd.read_parquet(folder / "clusters.parquet")
    motl = pd.read_csv(folder / "motl.csv", header=None)
    star = starfile.read(folder / "picks.star")["particles"]
    assert len(csv) == len(clusters) == len(motl) == len(star) > 0
    assert csv["score"].is_monotonic_decreasing
    by_label = csv.sort_values("label")
    np.testing.assert_allclose(by_label[["z", "y", "x"]], clusters[["z", "y", "x"]], atol=6e-4)
    np.testing.assert_allclose(motl[[9, 8, 7]], clusters[["z", "y", "x"]], atol=6e-4)
    centre = np.array(crop.shape)[::-1] / 2
    angstrom = star[[f"rlnCenteredCoordinate{a}Angst" for a in "XYZ"]].to_numpy(float)
    np.testing.assert_allclose(
        np.sort(angstrom / 13.48 + centre, axis=0), np.sort(csv[["x", "y", "z"]], axis=0), atol=2e-3
    )
    assert set(star["rlnTomoName"]) == {"A"}


def test_a_second_run_does_nothing_and_says_so(two_workers, table):
    run_pipeline(Session(two_workers), table)
    of_tomograms = [p for name in "AC" for p in (table.output / name).rglob("*")]
    before = {p: p.stat().st_mtime_ns for p in of_tomograms if p.is_file()}
    # What a run leaves that is killed after the output has its name.
    remains = [table.output / "A" / f"picks_blob.{ending}" for ending in ("partial", "lock")]
    remains[0].mkdir()
    remains[1].touch()
    said: list[str] = []
    run_pipeline(Session(two_workers), table, say=said.append)
    after = {p: p.stat().st_mtime_ns for p in before}
    assert before == after
    assert not any(path.exists() for path in remains)
    assert "A: picks_blob is up to date" in said


def test_another_threshold_makes_only_the_picks_again(two_workers, table):
    run_pipeline(Session(two_workers), table)
    scores = table.output / "A/scores_blob_D2_IF4_BN.zarr/zarr.json"
    picks = table.output / "A/picks_blob/picks.csv"
    before = scores.stat().st_mtime_ns, picks.read_bytes()
    higher = table.pick[0].model_copy(update={"threshold": 0.9})
    run_pipeline(Session(two_workers), table.model_copy(update={"pick": (higher,)}))
    assert scores.stat().st_mtime_ns == before[0]
    assert picks.read_bytes() != before[1]


def test_a_changed_tomogram_behind_the_same_path_is_noticed(two_workers, table, tmp_path, crop):
    run_pipeline(Session(two_workers), table)
    before = files_of(table.output / "A")
    write_mrc(tmp_path / "a.mrc", np.ascontiguousarray(crop[::-1]))
    run_pipeline(Session(two_workers), table)
    assert files_of(table.output / "A") != before


def test_foreign_files_in_the_output_are_left_alone(two_workers, table):
    folder = table.output / "A"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("precious")
    with pytest.raises(OutputExistsError, match="other files"):
        run_pipeline(Session(two_workers), table)
    with pytest.raises(OutputExistsError, match="other files"):
        remove_results(table)
    assert (folder / "thesis.txt").read_text() == "precious"


def test_a_missing_single_tomogram_is_an_error(two_workers, table, tmp_path):
    config = table.model_copy(update={"tomograms": tmp_path / "none.mrc"})
    with pytest.raises(VolumeFormatError, match="no such file"):
        run_pipeline(Session(two_workers), config)


def test_two_models_of_one_name_are_refused(two_workers, table):
    twice = table.model_copy(update={"segment": table.segment * 2})
    with pytest.raises(ConfigError, match="different names"):
        run_pipeline(Session(two_workers), twice)


def test_equalization_comes_before_the_network(two_workers, table, tmp_path, crop):
    from deepict_dask.equalization import radial_spectrum
    from deepict_dask.io.spectrum import write_spectrum

    write_spectrum(tmp_path / "own.tsv", radial_spectrum(crop.copy(), 13.48))
    values = table.model_dump(by_alias=True) | {"equalize": {"target": tmp_path / "own.tsv"}}
    config = RunConfig.model_validate(values | {"output": tmp_path / "equalized"})
    run_pipeline(Session(two_workers), table)
    run_pipeline(Session(two_workers), config)
    plain = pd.read_csv(table.output / "A/picks_blob/picks.csv")
    ours = pd.read_csv(config.output / "A/picks_blob/picks.csv")
    assert (config.output / "A/equalized.zarr").is_dir()
    np.testing.assert_allclose(ours["n_voxels"], plain["n_voxels"], atol=2)


def test_the_plan_names_blocks_tasks_bytes_and_disk(table, tmp_path):
    config = table.model_copy(update={"tomograms": tmp_path / "a.mrc"})
    text = "\n".join(plan_run(config, workers=2, memory="1GiB"))
    for word in ("2 workers of 1.0 GiB", "blocks", "tasks", "per task", "on disk", "windows of"):
        assert word in text
    assert not config.output.exists()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def scheduler_elsewhere(folder, n_workers):
    """Start `dask scheduler` and workers as separate programs."""
    address = f"tcp://127.0.0.1:{free_port()}"
    dask = str(Path(sys.executable).with_name("dask"))
    port = address.rsplit(":", 1)[1]
    commands = [[dask, "scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard"]]
    for i in range(n_workers):
        local = str(folder / f"worker{i}")
        commands.append(
            [dask, "worker", address, "--nthreads", "1", "--memory-limit", "1GiB",
             "--local-directory", local, "--no-dashboard"]
        )  # fmt: skip
    log = (folder / "dask.log").open("w")
    programs = [subprocess.Popen(c, stdout=log, stderr=log) for c in commands]
    try:
        yield address
    finally:
        for program in reversed(programs):
            program.terminate()
        for program in programs:
            program.wait(60)
        log.close()


def deepict_dask(*arguments):
    command = [str(Path(sys.executable).with_name("deepict-dask")), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.cluster
@pytest.mark.slow
def test_a_local_cluster_and_a_scheduler_elsewhere_give_the_same_bytes(
    tmp_path, real_files, crop, blobs
):
    write_mrc(tmp_path / "golden.mrc", crop)
    sources = {"rec3D": real_files / "mrc/rec3D.rec", "golden": tmp_path / "golden.mrc"}
    for name, source in sources.items():
        for where in ("local", "tcp"):
            (tmp_path / f"{name}_{where}.yaml").write_text(
                f"tomograms: {source}\noutput: {name}_{where}\nchunks: [32, 32, 32]\n"
                f"segment: [{{model: {blobs}}}]\npick: [{{class: blob, min_size: 20}}]\n"
            )
    with scheduler_elsewhere(tmp_path, 2) as address:
        for name, source in sources.items():
            for where, options in (
                ("local", ["--workers", 2, "--memory", "1GiB"]),
                ("tcp", ["--cluster", address, "--workers", 2]),
            ):
                done = deepict_dask("run", tmp_path / f"{name}_{where}.yaml", *options)
                assert done.returncode == 0, done.stderr
            stem = source.name.split(".")[0]
            local = files_of(tmp_path / f"{name}_local" / stem)
            assert local == files_of(tmp_path / f"{name}_tcp" / stem)
            record = json.loads((tmp_path / f"{name}_tcp/{stem}/picks_blob/run.json").read_text())
            assert record["n_picks"] > 0
