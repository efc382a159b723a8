"""A DeePiCt project that runs again does nothing twice, and loses nothing that others made."""

from __future__ import annotations

import csv
import errno
import os
from pathlib import Path

import mrcfile
import pytest
import yaml
from project_scenes import (
    CASES,
    POST,
    blob,
    case_config,
    changed,
    folder,
    give_map,
    place,
    run,
    session,
    small,
    unpacked,
)

from deepict_dask.core.errors import WorkFailedError
from deepict_dask.deepict_project import run3d, steps

__all__ = ["blob", "folder", "session", "small", "unpacked"]


def test_a_second_run_does_nothing_and_another_threshold_redoes_post_processing_only(
    session, golden, unpacked, folder, blob
):
    small = mrcfile.read(unpacked / "inputs/tomo.mrc")[:60, :80, :80].copy()
    mrcfile.write(folder / "small.mrc", small, voxel_size=13.48)
    Path("metadata.csv").write_text(
        f"tomo_name,tomo,lamella_file,blob_mask,blob_motl\na,small.mrc,,,{_truth(golden)}\n"
    )
    values = changed(
        case_config(golden, blob, CASES[0], prediction__active=True),
        tomos_sets__prediction_list=["a"], evaluation__particle_picking__active=True,
    )  # fmt: skip
    first = run(session, values)
    assert sum("wrote" in line for line in first) == 3
    before = _times(folder / "out")
    second = run(session, values)
    assert sum("up to date" in line for line in second) == 3
    assert _times(folder / "out") == before
    motl = next(place("a").glob("motl_*.csv"))
    old = motl.read_bytes()
    third = run(session, changed(values, **{f"{POST}__threshold": 0.9}))
    assert [line.split(": ")[1].split()[0] for line in third if "up to date" in line] == [
        "probability_map.mrc"
    ]
    assert (place("a") / f"prev_{motl.name}").read_bytes() == old
    assert len(list(place("a").glob("motl_*.csv"))) == 1
    with open("out/pp_statistics.csv") as table:
        thresholds = [row["threshold"] for row in csv.DictReader(table)]
    assert thresholds == ["0.5"] * 6 + ["0.9"] * 6


def _truth(golden) -> Path:
    return golden / "deepict/inputs/true_blobs_first50_xyz.csv"


def _times(folder: Path) -> dict[Path, int]:
    """Return when each file was written, but for those that say what a run did."""
    told = {".deepict-dask", "report", "report.html", "summary.csv"}
    return {
        path: path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and not told & {*path.parts}
    }


def test_what_somebody_else_made_is_set_aside_and_not_lost(session, golden, unpacked, blob):
    results = give_map(unpacked, "golden")
    (results / "post_processed_prediction.mrc").write_bytes(b"of DeePiCt")
    (results / "motl_3.csv").write_bytes(b"older")
    (results / "prev_motl_3.csv").write_bytes(b"oldest")
    run(session, case_config(golden, blob, CASES[0]))
    assert (results / "prev_post_processed_prediction.mrc").read_bytes() == b"of DeePiCt"
    assert (results / "prev_motl_3.csv").read_bytes() == b"older"
    assert (results / "prev_prev_motl_3.csv").read_bytes() == b"oldest"


def test_lists_of_somebody_elses_evaluation_are_set_aside(session, golden, unpacked, blob):
    results = give_map(unpacked, "golden")
    (results / "pr_radius_10").mkdir()
    (results / "pr_radius_10/theirs").write_bytes(b"kept")
    values = case_config(golden, blob, CASES[0], evaluation__particle_picking__active=True)
    run(session, values)
    assert (results / "prev_pr_radius_10/theirs").read_bytes() == b"kept"
    run(session, changed(values, **{f"{POST}__min_cluster_size": 900}))
    assert not (results / "prev_prev_pr_radius_10").exists()
    (results / "pr_radius_8").mkdir()  # of another radius, where an evaluation of ours was before
    (results / "pr_radius_8/theirs").write_bytes(b"kept")
    run(session, changed(values, evaluation__particle_picking__pr_tolerance_radius=8))
    assert (results / "prev_pr_radius_8/theirs").read_bytes() == b"kept"


def test_a_run_that_was_killed_while_it_wrote_the_file_does_not_predict_again(
    session, small, monkeypatch
):
    def killed(*_args, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(steps, "export_float32", killed)
        with pytest.raises(KeyboardInterrupt):
            run(session, small)
    assert not (place("a") / "probability_map.mrc").exists()
    with monkeypatch.context() as patch:
        patch.setattr(run3d, "segment_volume", killed)
        run(session, small)
    assert mrcfile.read(place("a") / "probability_map.mrc").shape == (44, 44, 44)


def test_a_map_of_another_request_is_not_used_silently(session, small, caplog):
    values = changed(small, **{f"{POST}__active": True})
    run(session, values)
    run(session, changed(values, prediction__active=False))
    assert "used as it is" not in caplog.text
    run(session, changed(values, prediction__active=False, training__overlap=8))
    assert "used as it is, since prediction.active is False" in caplog.text


@pytest.mark.usefixtures("small")
def test_a_map_of_one_of_several_classes_is_known_again(session, golden, caplog):
    two = yaml.safe_load((golden / "deepict/configs/rand_2lab.yaml").read_text())
    values = changed(two, tomos_sets__prediction_list=["a"], **{f"{POST}__active": True})
    run(session, values)
    run(session, changed(values, prediction__active=False))
    assert "used as it is" not in caplog.text


def test_a_result_that_was_changed_since_is_made_again(session, golden, unpacked, blob):
    values = case_config(golden, blob, CASES[0])
    results = give_map(unpacked, "golden")
    run(session, values)
    mask = results / "post_processed_prediction.mrc"
    good = mask.read_bytes()
    mask.write_bytes(b"edited")
    assert not any("up to date" in line for line in run(session, values))
    assert mask.read_bytes()[1024:] == good[1024:]  # the header holds the time of writing
    assert (results / "prev_post_processed_prediction.mrc").read_bytes() == b"edited"


def _fails(*_args, **_options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_somebody_else_makes_after_a_run_that_failed_is_set_aside(session, small, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(run3d, "segment_volume", _fails)
        with pytest.raises(WorkFailedError):
            run(session, small)
    (place("a") / "probability_map.mrc").write_bytes(b"of DeePiCt")
    run(session, small)
    assert (place("a") / "prev_probability_map.mrc").read_bytes() == b"of DeePiCt"
    assert mrcfile.read(place("a") / "probability_map.mrc").shape == (44, 44, 44)


def test_what_is_ours_is_replaced_after_a_run_that_failed(session, small, monkeypatch):
    run(session, small)
    other = changed(small, training__overlap=8)
    with monkeypatch.context() as patch:
        patch.setattr(run3d, "segment_volume", _fails)
        with pytest.raises(WorkFailedError):
            run(session, other)
    run(session, other)
    assert not [*place("a").glob("prev_*")]


def test_a_file_that_has_its_name_but_not_its_note_is_ours(session, small, monkeypatch):
    export = steps.export_float32

    def fails_after_it(store, target):
        export(store, target)
        _fails()

    with monkeypatch.context() as patch:
        patch.setattr(steps, "export_float32", fails_after_it)
        with pytest.raises(WorkFailedError):
            run(session, small)
    assert (place("a") / "probability_map.mrc").exists()
    run(session, small)
    assert not [*place("a").glob("prev_*")]


def test_two_outputs_of_one_work_dir_do_not_wipe_each_others_stores(session, small, monkeypatch):
    run(session, small)
    other, segment, seen = changed(small, output_dir="out_2"), run3d.segment_volume, []

    def meanwhile(own, source, store, *rest, **options):
        report = segment(own, source, store, *rest, **options)
        run(session, small)
        seen.append(store.exists())
        return report

    monkeypatch.setattr(run3d, "segment_volume", meanwhile)
    run(session, other)
    assert seen == [True]
    (made,) = Path("out_2").rglob("probability_map.mrc")
    assert mrcfile.read(made).shape == (44, 44, 44)
    assert not Path("work/deepict_dask").exists()
