"""Outputs that are there already, others are making, or are not ours are left as they are."""

from __future__ import annotations

import shutil

from command_scenes import STAGES, THREADS, command, deepict, files, model, refused

from deepict_dask.engine import StagedOutput

__all__ = ["files", "model", "refused"]


def test_an_output_that_exists_is_replaced_on_request_only(files, model, tmp_path, refused):
    for stage in STAGES:
        folder = tmp_path / stage
        line = command(stage, files / "score.mrc", folder, files, model)
        assert deepict(*line).code == 0
        refused(*line, says=(line[2].name, "found one", "--overwrite"))
        # in a folder of picks a name of ours, which this run does not make: others are the user's
        stale = line[2] / ("raw_picks.csv" if stage == "pick" else "stale.txt")
        if line[2].is_dir():
            stale.write_text("of the first run")
        assert deepict(*line, "--overwrite").code == 0
        assert [*folder.iterdir()] == [line[2]]
        assert not stale.exists()


def test_files_and_folders_of_others_are_never_replaced(files, model, tmp_path, refused):
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "thesis.txt").write_text("years of work")
    (tmp_path / "o.zarr").write_text("no store")
    (tmp_path / "o.mrc").mkdir()
    (tmp_path / "o.mrc" / "thesis.txt").write_text("years of work")
    shutil.copytree(files / "plain_folder", tmp_path / "o.tsv")
    for stage in ("pick", "segment", "equalize", "spectrum"):
        line = command(stage, files / "tomo.mrc", tmp_path, files, model)
        says = (line[2].name, "expected an earlier output", "remove it yourself")
        refused(*line, "--overwrite", says=says)


def test_a_file_in_the_place_of_a_folder_is_named(files, model, tmp_path, refused):
    (tmp_path / "notes").write_text("a file")
    for stage in STAGES:
        line = command(stage, files / "score.mrc", tmp_path / "notes", files, model)
        refused(*line, says=("notes", "File exists"), code=1)


def test_an_output_that_another_run_is_making_is_refused(files, tmp_path, refused):
    with StagedOutput(tmp_path / "o", "0" * 64):
        line = ("pick", files / "score.mrc", tmp_path / "o", *THREADS)
        refused(*line, says=("another run making it", "give another name"))
    assert deepict(*line).code == 0
