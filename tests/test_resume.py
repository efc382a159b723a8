"""Kill any process at any moment, run again: the bytes are those of an undisturbed run."""

from __future__ import annotations

import json
import shutil

import mrcfile
import numpy as np
import pytest
import zarr
from programs import (
    files_of,
    inside,
    is_alive,
    kill_when,
    marks,
    run,
    start,
    store_of,
    times_of,
    wait_until,
    workers_of,
)

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

SHAPE = (96, 96, 128)
COMMON = ("--workers", 2, "--no-progress")
CHUNKS = ("--chunks", 32)
SMALL = ("--memory", "405MiB")
"""So little memory that a window is a fraction of the volume."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A noisy tomogram and two small networks with random weights."""
    import torch

    from deepict_dask.models.checkpoint import save_model
    from deepict_dask.models.unet3d import UNet3D, UNet3DSettings

    folder = tmp_path_factory.mktemp("inputs")
    noise = np.random.default_rng(5).normal(size=SHAPE).astype("float32")
    mrcfile.write(folder / "cell.mrc", noise, voxel_size=10)
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = UNet3D(UNet3DSettings(depth=1, initial_features=4)).eval()
        for weights in network.parameters():
            torch.nn.init.normal_(weights, std=0.2)
        path = folder / f"model{seed}.safetensors"
        save_model(path, network, class_names=("ribosome",), voxel_spacing_angstrom=10.0)
    return folder


def segment(inputs, target, *, seed=0):
    model = inputs / f"model{seed}.safetensors"
    return ("segment", inputs / "cell.mrc", target, "--model", model, *CHUNKS, *COMMON, *SMALL)


def is_inside(target, path):
    """Say whether an unfinished output holds this."""
    return inside(partial_of(target), path).exists()


def partial_of(target):
    return target.with_name(target.name + ".partial")


def n_marked(target):
    return sum(marks(partial_of(target)))


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory):
    """Score maps of both models, made without disturbance."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for seed in (0, 1):
        run(*segment(inputs, folder / f"scores{seed}.zarr", seed=seed))
    return folder


@pytest.fixture(scope="module")
def threshold(undisturbed):
    """A threshold that leaves a few hundred small clusters."""
    scores = zarr.open_array(undisturbed / "scores0.zarr" / "0", mode="r")[:]
    return round(float(np.quantile(scores, 0.99)), 6)


def chunk_files(numbers, n_chunks):
    """Return the names of the chunk files of blocks that are one chunk each."""
    return ["0/c/" + "/".join(map(str, np.unravel_index(i, n_chunks))) for i in numbers]


def test_a_conversion_killed_again_and_again_ends_with_the_same_bytes(inputs, tmp_path):
    def convert(target):
        return ("convert", inputs / "cell.mrc", target, "--chunks", 16, *COMMON)

    run(*convert(tmp_path / "undisturbed.zarr"))
    target = tmp_path / "cell.zarr"
    before = {}
    for n in (1, 80, 200):
        kill_when(lambda n=n: n_marked(target) >= n, *convert(target))
        assert not target.exists()
        done = np.flatnonzero(np.frombuffer(marks(partial_of(target)), np.uint8))
        now = times_of(store_of(partial_of(target)))
        assert before.items() <= now.items(), "finished blocks were made again"
        before = {name: now[name] for name in chunk_files(done, (6, 6, 8))}
    run(*convert(target))
    assert before.items() <= times_of(target).items(), "finished blocks were made again"
    assert files_of(target) == files_of(tmp_path / "undisturbed.zarr")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cell.zarr", "undisturbed.zarr"]


@pytest.mark.parametrize("mark", [".request", "*/volume.zarr/zarr.json", "volume.mrc*"])
def test_a_conversion_killed_at_its_start_or_while_exporting_ends_with_the_same_bytes(
    inputs, tmp_path, mark
):
    def convert(target):
        return ("convert", inputs / "cell.mrc", target, *CHUNKS, *COMMON)

    run(*convert(tmp_path / "undisturbed.mrc"))
    target = tmp_path / "cell.mrc"
    if kill_when(lambda: [*partial_of(target).glob(mark)], *convert(target), may_end=True):
        assert not target.exists()
        run(*convert(target))
    assert target.read_bytes() == (tmp_path / "undisturbed.mrc").read_bytes()


def test_a_score_map_killed_again_and_again_ends_with_the_same_bytes(inputs, undisturbed, tmp_path):
    target = tmp_path / "scores0.zarr"
    made, n_done = {}, 0
    for n in (1, 5):
        kill_when(lambda n=n: n_marked(target) >= n, *segment(inputs, target))
        now = times_of(store_of(partial_of(target)))
        assert n_kept(made, now) >= n_done, "finished blocks were made again"
        made, n_done = now, n_marked(target)
        assert n <= n_done < len(marks(partial_of(target)))
    run(*segment(inputs, target))
    assert n_kept(made, times_of(target)) >= n_done, "finished blocks were made again"
    assert files_of(target) == files_of(undisturbed / "scores0.zarr")


def n_kept(before, now):
    """Return how many chunk files (each of one block) were not written again."""
    return sum("/c/" in name and now[name] == time for name, time in before.items())


def test_a_run_survives_the_death_of_a_worker(inputs, undisturbed, tmp_path):
    target = tmp_path / "scores0.zarr"
    process = start(*segment(inputs, target))
    wait_until(lambda: n_marked(target) >= 1, process)
    victim = workers_of(process)[0]
    victim.kill()
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    assert not is_alive(victim.pid)
    assert files_of(target) == files_of(undisturbed / "scores0.zarr")


def test_unfinished_work_of_another_model_is_not_used(inputs, undisturbed, tmp_path):
    target = tmp_path / "scores.zarr"
    kill_when(lambda: n_marked(target) >= 2, *segment(inputs, target, seed=0))
    run(*segment(inputs, target, seed=1))
    assert files_of(target) == files_of(undisturbed / "scores1.zarr")


def test_unfinished_picks_of_another_threshold_are_not_used(undisturbed, threshold, tmp_path):
    def pick(target, value):
        scores = undisturbed / "scores0.zarr"
        return ("pick", scores, target, "--threshold", value, "--label-map", *CHUNKS, *COMMON)

    target = tmp_path / "one" / "picks"
    kill_when(lambda: is_inside(target, "segmentation.zarr/0/c"), *pick(target, threshold + 0.001))
    run(*pick(target, threshold))
    run(*pick(tmp_path / "two" / "picks", threshold))
    one, two = files_of(target), files_of(tmp_path / "two" / "picks")
    assert one.pop("run.json") != two.pop("run.json")  # it notes times
    assert one == two
    assert len((target / "picks.csv").read_text().splitlines()) > 20


def write_config(folder, inputs, threshold, *, seed=0):
    """Write the YAML of a run of one tomogram."""
    values = {
        "tomograms": str(inputs / "cell.mrc"),
        "output": str(folder / "out"),
        "chunks": [32, 32, 32],
        "segment": [{"model": str(inputs / f"model{seed}.safetensors")}],
        "pick": [{"threshold": threshold, "label_map": True}],
        "cluster": {"workers": 2, "memory": "405MiB"},
    }
    folder.mkdir(exist_ok=True)
    (folder / "run.yaml").write_text(json.dumps(values))
    return ("run", folder / "run.yaml", "--no-progress")


KEYS = ("stages.json", "run.json")
"""Files that hold digests of times of change, which are no part of the result."""


def results_of(folder):
    """Return the digests of a run's files."""
    return {
        name: digest
        for name, digest in files_of(folder / "out" / "cell").items()
        if not name.endswith(KEYS)
    }


@pytest.fixture(scope="module")
def finished(inputs, threshold, tmp_path_factory):
    """A whole run without disturbance."""
    folder = tmp_path_factory.mktemp("run") / "undisturbed"
    run(*write_config(folder, inputs, threshold))
    return folder


def test_a_run_killed_in_every_stage_ends_with_the_same_bytes(
    inputs, threshold, finished, tmp_path
):
    command = write_config(tmp_path, inputs, threshold)
    cell = tmp_path / "out" / "cell"
    scores, picks = cell / "scores_model0.zarr", cell / "picks_0"
    kill_when(lambda: n_marked(scores) >= 2, *command)
    kill_when(scores.exists, *command)
    kill_when(lambda: is_inside(picks, "nodes"), *command)
    made = times_of(scores)
    kill_when(lambda: is_inside(picks, "segmentation.zarr/0/c"), *command)
    kill_when(lambda: is_inside(picks, "clusters.parquet"), *command, may_end=True)
    run(*command)
    assert times_of(scores) == made, "the score map was made again"
    assert results_of(tmp_path) == results_of(finished)
    assert sorted(p.name for p in cell.iterdir()) == [picks.name, scores.name, "stages.json"]


def test_a_second_run_does_nothing_and_says_so(inputs, threshold, finished):
    before = times_of(finished / "out" / "cell")
    text = run(*write_config(finished, inputs, threshold))
    assert text.count("is up to date") == 2
    assert "wrote" not in text
    assert times_of(finished / "out" / "cell") == before


def test_inputs_in_another_place_are_known_by_their_bytes(inputs, threshold, finished, tmp_path):
    """A project may be moved, or reached by another path from a compute node."""
    shutil.copytree(finished / "out", tmp_path / "out")
    moved = shutil.copytree(inputs, tmp_path / "moved")
    text = run(*write_config(tmp_path, moved, threshold))
    assert text.count("is up to date") == 2
    assert "wrote" not in text


def test_another_pick_threshold_makes_only_the_picks_again(inputs, threshold, finished, tmp_path):
    shutil.copytree(finished / "out", tmp_path / "out")
    before = times_of(tmp_path / "out")
    run(*write_config(tmp_path, inputs, threshold))
    scores = {name: time for name, time in before.items() if "scores" in name}
    assert len(scores) > 10
    before = times_of(tmp_path / "out")
    text = run(*write_config(tmp_path, inputs, threshold + 0.001))
    assert "scores_model0.zarr is up to date" in text
    assert "wrote picks_0" in text
    now = times_of(tmp_path / "out")
    assert scores.items() <= now.items()
    assert before["cell/picks_0/picks.csv"] != now["cell/picks_0/picks.csv"]


def test_another_number_of_workers_changes_no_byte(inputs, threshold, tmp_path):
    found = []
    for n in (1, 2, 3):
        folder = tmp_path / str(n)
        folder.mkdir()
        scores, picks = folder / "scores.zarr", folder / "picks"
        model = inputs / "model0.safetensors"
        wish = ("--workers", n, "--no-progress", *CHUNKS)
        run("segment", inputs / "cell.mrc", scores, "--model", model, *wish, "--memory", "2GiB")
        run("pick", scores, picks, "--threshold", threshold, "--label-map", *wish)
        found.append({k: v for k, v in files_of(folder).items() if not k.endswith(KEYS)})
    assert found[0] == found[1] == found[2]
    assert len(found[0]) > 20
