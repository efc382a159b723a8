"""What `run --restart` removes: what runs made, by name, and nothing else."""

from __future__ import annotations

import json

import pytest
from dataset_scenes import config_of, write_network, write_tomogram

from deepict_dask import run_outputs
from deepict_dask.core.errors import OutputExistsError, WorkFailedError
from deepict_dask.run_outputs import remove_results

OURS = (
    "scores_net.zarr", "scores_net.zarr.lock", "picks_a", "picks_a.partial", "picks_a.replaced",
    "scores_earlier.zarr", "scores_earlier.zarr.partial",
)  # fmt: skip


@pytest.fixture
def config(tmp_path):
    write_tomogram(tmp_path / "t.mrc", 0)
    network = write_network(tmp_path / "net.safetensors")
    return config_of(tmp_path, tmp_path / "out", network, 0.5, tomograms="t.mrc")


def fill(folder):
    """Make a folder of results, finished and not, of this config and of an earlier one."""
    folder.mkdir(parents=True)
    for name in OURS:
        if name.endswith(".lock"):
            (folder / name).touch()
        else:
            (folder / name).mkdir()
            (folder / name / "zarr.json").touch()
    keys = {"scores_net.zarr": "key", "scores_earlier.zarr": "key"}
    (folder / "stages.json").write_text(json.dumps(keys))
    return folder


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_restart_removes_what_runs_made_and_leaves_the_rest(config):
    folder = fill(config.output / "t")
    (folder / "my_curated_picks.csv").touch()
    (folder / "notes").mkdir()
    (folder / "poetry.lock").touch()
    remove_results(config)
    assert names_in(folder) == ["my_curated_picks.csv", "notes", "poetry.lock"]


def test_a_folder_of_nothing_but_results_goes_too(config):
    fill(config.output / "t")
    remove_results(config)
    assert names_in(config.output) == []


def test_a_folder_that_is_a_link_is_emptied_and_stays_one(config, tmp_path):
    elsewhere = fill(tmp_path / "other_disk")
    (elsewhere / "notes.txt").touch()
    config.output.mkdir()
    (config.output / "t").symlink_to(elsewhere)
    remove_results(config)
    assert (config.output / "t").is_symlink()
    assert names_in(elsewhere) == ["notes.txt"]
    (elsewhere / "notes.txt").unlink()
    remove_results(config)
    assert elsewhere.is_dir()


@pytest.mark.parametrize("name", ["poetry.lock", "thesis.partial"])
def test_a_folder_with_a_lock_of_somebody_else_is_not_ours(config, name):
    folder = config.output / "t"
    folder.mkdir(parents=True)
    (folder / name).touch()
    (folder / "raw.mrc").touch()
    with pytest.raises(OutputExistsError, match="other files"):
        remove_results(config)
    assert names_in(folder) == sorted([name, "raw.mrc"])


@pytest.mark.parametrize("name", ["picks_a.partial", "scores_net.zarr.lock"])
def test_unfinished_work_of_this_config_is_ours_without_a_record(config, name):
    folder = config.output / "t"
    folder.mkdir(parents=True)
    (folder / name).touch()
    remove_results(config)
    assert names_in(config.output) == []


def test_what_cannot_be_removed_is_named_and_answers_no_request(config, monkeypatch):
    folder = fill(config.output / "t")

    def refuse(_path):
        raise PermissionError(13, "Permission denied", "0.0.0")

    monkeypatch.setattr(run_outputs, "remove", refuse)
    with pytest.raises(WorkFailedError, match=r"out/t/\S+: .*Permission denied \(0.0.0\); remove"):
        remove_results(config)
    assert set(json.loads((folder / "stages.json").read_text()).values()) == {""}
