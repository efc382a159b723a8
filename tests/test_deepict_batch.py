"""DeePiCt's own configs over several tomograms: lock, status, summary, one failure, its files."""

from __future__ import annotations

import csv
import shutil
import threading
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from deepict_dask.cli import app
from deepict_dask.core.errors import LedgerError, WorkFailedError
from deepict_dask.deepict_project import read_project, run3d, run_deepict, steps
from deepict_dask.engine.output_lock import OutputLock
from deepict_dask.jobs.runs.journal import lock_of
from deepict_dask.jobs.runs.status import read_status
from deepict_dask.jobs.session import Session
from deepict_dask.report import write_report

NAMES = ("a", "b", "c")
SHAPE = (44, 52, 48)
TIMES = slice(224, 1024)
"""Of an MRC header: labels, which hold the time of writing."""


@pytest.fixture(autouse=True)
def folder(golden, tmp_path, monkeypatch) -> Path:
    """A project folder with three tomograms, the current folder."""
    (tmp_path / "models").symlink_to(golden / "deepict/models")
    rows = ["tomo_name,tomo,lamella_file,blob_motl"]
    for seed, name in enumerate(NAMES):
        voxels = np.random.default_rng(seed).normal(size=SHAPE).astype("float32")
        mrcfile.write(tmp_path / f"{name}.mrc", voxels, voxel_size=10.0)
        rows.append(f"{name},{name}.mrc,,true.csv")
    (tmp_path / "metadata.csv").write_text("\n".join(rows) + "\n")
    lines = (golden / "deepict/inputs/true_blobs_first50_xyz.csv").read_text()
    (tmp_path / "true.csv").write_text(lines)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def session(two_workers) -> Session:
    return Session(two_workers, chunks=(64, 64, 64))


@pytest.fixture
def blob(golden) -> dict:
    """A config that asks for all a 3D project can, over all three tomograms."""
    values = yaml.safe_load((golden / "deepict/configs/blob.yaml").read_text())
    values["tomos_sets"]["prediction_list"] = list(NAMES)
    values["postprocessing_clustering"] |= {
        "active": True, "threshold": 0.01, "min_cluster_size": 2, "calculate_motl": True,
        "ignore_border_thickness": [0, 0, 0],
    }  # fmt: skip
    values["evaluation"]["particle_picking"]["active"] = True
    return values


def write(values, name="config.yaml") -> Path:
    Path(name).write_text(yaml.safe_dump(values))
    return Path(name)


def files_below(folder) -> dict[str, bytes]:
    """Return the bytes of what DeePiCt leaves, without the times in MRC headers."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        ours = {".deepict-dask", "report", "report.html", "summary.csv"} & {*path.parts}
        if path.is_file() and not ours and not path.name.startswith("."):
            content = bytearray(path.read_bytes())
            if path.suffix == ".mrc":
                content[TIMES] = b""
            found[str(path.relative_to(folder))] = bytes(content)
    return found


def rows_of(path) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def states_of(folder) -> dict[str, tuple[str, list[str]]]:
    status = read_status(Path(folder))
    return {
        one.tomogram: (one.state, [part.state for part in one.outputs]) for one in status.tomograms
    }


def test_several_at_a_time_leave_the_files_of_one_by_one(session, blob):
    for name in NAMES:  # a config of one tomogram after another
        blob["tomos_sets"]["prediction_list"] = [name]
        assert not run_deepict(session, write(blob)).failed
    expected = files_below("out")
    shutil.rmtree("out")
    blob["tomos_sets"]["prediction_list"] = list(NAMES)
    report = run_deepict(session, write(blob))
    assert [one.name for one in report.tomograms] == list(NAMES)
    assert files_below("out") == expected
    assert sum(name.endswith("probability_map.mrc") for name in expected) == 3
    assert [row["tomo_name"] for row in rows_of("out/pp_statistics.csv")][::6] == list(NAMES)
    assert not Path("work/deepict_dask").exists()


def test_rows_of_statistics_are_in_the_order_of_the_run_whoever_ends_first(
    session, blob, monkeypatch
):
    after_a, evaluate = threading.Event(), run3d.evaluate_tomogram

    def waits_for_b(maker, project, tomogram, folder):
        if tomogram.name == "a":
            assert after_a.wait(120)
        evaluate(maker, project, tomogram, folder)
        if tomogram.name == "b":
            after_a.set()

    monkeypatch.setattr(run3d, "evaluate_tomogram", waits_for_b)
    run_deepict(session, write(blob))
    assert [row["tomo_name"] for row in rows_of("out/pp_statistics.csv")][::6] == list(NAMES)


def test_the_summary_counts_particles_and_status_names_each_output(session, blob):
    run_deepict(session, write(blob))
    rows = rows_of("out/summary.csv")
    assert [(row["tomogram"], row["state"]) for row in rows] == [(name, "done") for name in NAMES]
    for row in rows:
        place = Path("out/predictions/blob_D2_IF4_BN", row["tomogram"], "blob")
        (motl,) = place.glob("motl_*.csv")
        assert motl.name == f"motl_{row['blob']}.csv"
    assert max(int(row["blob"]) for row in rows) > 0
    assert states_of("out") == dict.fromkeys(NAMES, ("done", ["done"] * 3))
    (first, *_) = read_status(Path("out")).tomograms
    assert [part.output for part in first.outputs] == [
        "probability_map.mrc", "post_processed_prediction.mrc", "pp_statistics.csv",
    ]  # fmt: skip


def test_tomograms_in_folders_keep_their_names_in_status_and_report(session, blob):
    rows = Path("metadata.csv").read_text().splitlines()
    names = ("180426/a", "180711/a")
    of_a = next(row for row in rows if row.startswith("a,"))
    Path("metadata.csv").write_text(
        "\n".join([rows[0], *(name + of_a.removeprefix("a") for name in names)]) + "\n"
    )
    blob["tomos_sets"]["prediction_list"] = list(names)
    run_deepict(session, write(blob))
    assert states_of("out") == dict.fromkeys(names, ("done", ["done"] * 3))
    report = write_report(Path("out")).read_text()
    pages = sorted(path.name for path in Path("out/report").glob("*.html"))
    assert pages == ["180426_a.html", "180711_a.html"]
    assert all(name in report for name in (*names, *pages))
    assert "the tomogram's file is not known" not in Path("out/report", pages[0]).read_text()


def test_a_broken_tomogram_fails_alone_and_the_command_ends_with_1(blob):
    Path("b.mrc").write_bytes(Path("b.mrc").read_bytes()[:5000])
    words = ["run", str(write(blob)), "--no-progress", "--cluster", "threads", "--workers", "2"]
    ended = CliRunner().invoke(app, words)
    assert isinstance(ended.exception, WorkFailedError)
    assert ended.exception.exit_code == 1
    assert "1 of 3 tomograms failed: b: " in str(ended.exception)
    rows = rows_of("out/summary.csv")
    assert [row["state"] for row in rows] == ["done", "failed", "done"]
    assert "b.mrc" in rows[1]["reason"]
    assert states_of("out") == {
        "a": ("done", ["done"] * 3),
        "b": ("failed", ["failed", "not made", "not made"]),
        "c": ("done", ["done"] * 3),
    }
    shown = CliRunner().invoke(app, ["status", "out"]).output
    assert "3 tomograms: 2 done, 1 failed" in shown


def test_an_unexpected_error_fails_its_tomogram_alone(session, blob, monkeypatch):
    segment = run3d.segment_volume

    def odd(session, source, *arguments, **options):
        if source.name == "b.mrc":
            raise ValueError("odd")
        return segment(session, source, *arguments, **options)

    monkeypatch.setattr(run3d, "segment_volume", odd)
    report = run_deepict(session, write(blob))
    assert [one.state for one in report.tomograms] == ["done", "failed", "done"]
    assert "odd" in report.tomograms[1].why


@pytest.mark.parametrize("noted", ["scores.zarr", "probability_map.mrc"])
def test_a_run_that_dies_before_it_has_noted_a_map_does_not_predict_again(
    session, blob, monkeypatch, noted
):
    """Reading a large map for its note takes a while, so a kill may well come then."""
    blob["tomos_sets"]["prediction_list"] = ["a"]
    note = steps.note

    def dies(output, *arguments, **facts):
        if output.name == noted:
            raise KeyboardInterrupt
        note(output, *arguments, **facts)

    with monkeypatch.context() as patch:
        patch.setattr(steps, "note", dies)
        with pytest.raises(KeyboardInterrupt):
            run_deepict(session, write(blob))

    def again(*_arguments, **_options):
        raise AssertionError("it predicts again")

    monkeypatch.setattr(run3d, "segment_volume", again)
    assert [one.state for one in run_deepict(session, write(blob)).tomograms] == ["done"]
    assert not list(Path("out").rglob("scores.zarr"))


def test_a_run_that_dies_shows_how_many_windows_it_has_and_goes_on(session, blob, monkeypatch):
    blob["tomos_sets"]["prediction_list"] = ["a", "b"]
    export = run3d.through_store

    def dies(store, *arguments):
        if store.parts[-3] == "b":
            partial = store.absolute().with_name(f"{store.name}.partial")
            partial.mkdir(parents=True)
            raise KeyboardInterrupt
        return export(store, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(run3d, "through_store", dies)
        with pytest.raises(KeyboardInterrupt):
            run_deepict(session, write(blob))
    assert states_of("out")["b"] == ("unfinished", ["stopped", "waiting", "waiting"])
    assert "was stopped by an interrupt at" in CliRunner().invoke(app, ["status", "out"]).output
    lines = []
    run_deepict(session, write(blob), say=lines.append)
    assert states_of("out") == dict.fromkeys("ab", ("done", ["done"] * 3))
    assert any(line.startswith("b: wrote") for line in lines)


def test_a_finished_output_of_before_is_called_earlier_until_it_is_looked_at(
    session, blob, monkeypatch
):
    run_deepict(session, write(blob))
    seen = []

    def stops(_maker, _project, tomogram, _folder):
        seen.append(states_of("out")[tomogram.name])
        raise KeyboardInterrupt

    blob["tomos_sets"]["prediction_list"] = ["c"]
    monkeypatch.setattr(run3d, "evaluate_tomogram", stops)
    with pytest.raises(KeyboardInterrupt):
        run_deepict(session, write(blob))
    assert seen == [("running", ["done", "done", "earlier"])]


def test_a_second_run_on_one_output_is_refused(session, blob):
    with OutputLock(lock_of(read_project(write(blob)).output)), pytest.raises(LedgerError):
        run_deepict(session, write(blob))
    assert not Path("out/predictions").exists()


def test_a_summary_of_somebody_else_is_set_aside(session, blob):
    blob["tomos_sets"]["prediction_list"] = ["a"]
    Path("out").mkdir()
    Path("out/summary.csv").write_text("mine\n")
    run_deepict(session, write(blob))
    run_deepict(session, write(blob))
    assert Path("out/prev_summary.csv").read_text() == "mine\n"
    assert rows_of("out/summary.csv")[0]["tomogram"] == "a"
    assert not Path("out/prev_prev_summary.csv").exists()


def test_a_2d_project_has_the_same_lock_status_and_summary(session, golden):
    target = golden / "deepict/spectrum/target_spectrum.tsv"
    Path("prediction.csv").write_text("data,id\na.mrc,cell_1\nb.mrc,cell_2\nc.mrc,cell_3\n")
    Path("b.mrc").write_bytes(Path("b.mrc").read_bytes()[:5000])
    values = {
        "data": {"prediction_data": "prediction.csv", "output_dir": "out2d"},
        "preprocessing": {
            "filtering": {
                "active": True, "target_spectrum": str(target), "lowpass_cutoff": 10,
                "smoothen_cutoff": 5,
            }
        },
    }  # fmt: skip
    report = run_deepict(session, write(values))
    assert [one.state for one in report.tomograms] == ["done", "failed", "done"]
    assert [row["state"] for row in rows_of("out2d/summary.csv")] == ["done", "failed", "done"]
    assert states_of("out2d")["cell_3"] == ("done", ["done"])
    assert sorted(files_below("out2d")) == ["cell_1_filtered.mrc", "cell_3_filtered.mrc"]
    with OutputLock(lock_of(Path("out2d"))), pytest.raises(LedgerError):
        run_deepict(session, write(values))
