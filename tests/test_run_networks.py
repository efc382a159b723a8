"""DeepFinder's and DeepETPicker's models in whole runs: scores, labels and picks of each class."""

from __future__ import annotations

import mrcfile
import numpy as np
import pandas as pd
import pytest
import torch
from hand_made import BRIGHT, DARK, NAMES, SHAPE, balls, deepetpicker, deepfinder
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from deepict_dask.cli import app
from deepict_dask.config import PickSettings, RunConfig, SegmentSettings
from deepict_dask.core.errors import ConfigError
from deepict_dask.core.geometry import Box
from deepict_dask.io.picks import read_picks
from deepict_dask.io.volumes import open_volume
from deepict_dask.jobs.picking.tiles import TilePicker, check_tile_picks, pick_tiles
from deepict_dask.jobs.segmenting.segment import segment_volume
from deepict_dask.jobs.session import Session
from deepict_dask.models.checkpoint import save_model
from deepict_dask.particles.class_labels import ClassLabels
from deepict_dask.particles.deepetpicker_compat import TileSearch, drop_as_deepetpicker
from deepict_dask.particles.mean_pool_nms import MeanPoolSettings
from deepict_dask.pipeline import run_pipeline
from deepict_dask.plan import plan_run
from deepict_dask.segmentation.deepetpicker_tiles import DeepETPickerOp

CHUNKS = (32, 32, 32)
BOTH = {"bright": BRIGHT, "dark": DARK}


@pytest.fixture(scope="module")
def tomogram(tmp_path_factory):
    return balls(tmp_path_factory.mktemp("tomogram") / "t.mrc")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    paths = {}
    for make in (deepfinder, deepetpicker):
        paths[make.__name__] = str(folder / f"{make.__name__}.safetensors")
        save_model(paths[make.__name__], make(), class_names=NAMES, voxel_spacing_angstrom=10.0)
    return paths


def config_of(tomogram, output, model, picks, **changes):
    segment = {"model": model, **changes.pop("segment", {})}
    return RunConfig(
        tomograms=tomogram, output=output, chunks=CHUNKS, segment=(segment,), pick=picks, **changes
    )  # fmt: skip


OF_DEEPFINDER = (
    {"class": "bright", "min_size": 60},
    {"class": "dark", "threshold": 0.7, "min_size": 60},
    {"name": "shift", "method": "mean-shift", "bandwidth": 6, "min_size": 60,
     "thresholds": {"dark": 0.7}},
    {"name": "argmax", "method": "mean-shift", "bandwidth": 6, "min_sizes": {"dark": 9000},
     "min_size": 60, "argmax": True},
)  # fmt: skip


def found_in(folder, within=1.5):
    """The true balls that a folder of picks has, by class; each pick must be near one."""
    picks = read_picks(folder / "picks.csv")
    found = {"bright": [], "dark": []}
    for row in picks.itertuples():
        centres = np.array(BOTH[row.class_name])
        distances = np.linalg.norm(centres - (row.z, row.y, row.x), axis=1)
        assert distances.min() < within, row
        found[row.class_name].append(tuple(centres[distances.argmin()].tolist()))
    return {name: sorted(balls_found) for name, balls_found in found.items()}


def normalised(tomogram):
    volume = mrcfile.read(tomogram)
    mean, std = volume.mean(dtype="f8"), volume.std(dtype="f8")
    return (volume - np.float32(mean)) / np.float32(std)


def scores_of(network, tomogram):
    with torch.inference_mode():
        volume = torch.from_numpy(normalised(tomogram))[None, None]
        return network(volume).softmax(dim=1)[0].numpy()


def read_class(path, name):
    return open_volume(path, class_name=name).read(Box.whole(SHAPE))


def lists_of(folder):
    names = ("picks.csv", "picks.star", "motl.csv", "raw_picks.csv")
    return {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}


def test_a_run_of_a_deepfinder_model_finds_the_balls_of_each_class(
    one_worker, two_workers, tomogram, models, tmp_path
):
    config = config_of(tomogram, tmp_path / "out", models["deepfinder"], OF_DEEPFINDER)
    said: list[str] = []
    (report,) = run_pipeline(Session(two_workers), config, say=said.append).tomograms
    folder = tmp_path / "out/t"
    bright, dark = sorted(BRIGHT), sorted(DARK)
    assert found_in(folder / "picks_bright") == {"bright": bright, "dark": []}
    assert found_in(folder / "picks_dark") == {"bright": [], "dark": dark}
    assert found_in(folder / "picks_shift") == {"bright": bright, "dark": dark}
    assert found_in(folder / "picks_argmax") == {"bright": bright, "dark": []}
    expected = scores_of(deepfinder(), tomogram)
    for name, channel in zip(NAMES, expected, strict=True):
        found = read_class(folder / "scores_deepfinder.zarr", name)
        np.testing.assert_allclose(found, channel, atol=1e-5)

    # one worker makes the same bytes, and scores are stored whether they are to be kept or not
    other = config.model_copy(update={"output": tmp_path / "one", "keep_scores": False})
    run_pipeline(Session(one_worker), other)
    for name in report.n_picks:
        assert lists_of(tmp_path / "one/t" / name) == lists_of(folder / name)
    for name in NAMES:
        one, two = (read_class(f / "scores_deepfinder.zarr", name)
                    for f in (folder, tmp_path / "one/t"))  # fmt: skip
        assert one.tobytes() == two.tobytes()

    # what is there stays; a section that changed is picked again from the stored scores
    picks = (*OF_DEEPFINDER[:3], {**OF_DEEPFINDER[3], "min_size": 9000})
    again = config_of(tomogram, tmp_path / "out", models["deepfinder"], picks)
    said.clear()
    (report,) = run_pipeline(Session(two_workers), again, say=said.append).tomograms
    assert sum("is up to date" in line for line in said) == 4
    assert report.n_picks["picks_argmax"] == 0

    planned = "\n".join(plan_run(config, workers=2, memory="4GiB"))
    for name in ("scores_deepfinder.zarr", *report.n_picks):
        assert f"  {name}: " in planned


def test_a_run_may_store_labels_instead_of_scores(two_workers, tomogram, models, tmp_path):
    picks = (
        {"class": "dark", "min_size": 60},
        {"name": "shift", "method": "mean-shift", "bandwidth": 6, "min_sizes": {"bright": 60},
         "min_size": 60},
        {"class": "bright", "name": "pool", "method": "mp-nms", "diameters": [11]},
        {"name": "pools", "method": "mp-nms", "diameters": [11]},
    )  # fmt: skip
    config = config_of(
        tomogram, tmp_path / "out", models["deepfinder"], picks, segment={"argmax": True}
    )
    run_pipeline(Session(two_workers), config)
    folder = tmp_path / "out/t"
    labels = open_volume(folder / "labels_deepfinder.zarr")
    assert labels.header.dtype == "uint8"
    voxels = labels.read(Box.whole(SHAPE))
    np.testing.assert_array_equal(voxels, scores_of(deepfinder(), tomogram).argmax(axis=0))
    bright, dark = sorted(BRIGHT), sorted(DARK)
    assert found_in(folder / "picks_dark") == {"bright": [], "dark": dark}
    assert found_in(folder / "picks_shift") == {"bright": bright, "dark": dark}
    assert found_in(folder / "picks_pool", within=2.5)["dark"] == []
    assert found_in(folder / "picks_pool", within=2.5)["bright"] == bright
    assert found_in(folder / "picks_pools", within=2.5) == {"bright": bright, "dark": dark}
    assert "labels_deepfinder.zarr: " in "\n".join(plan_run(config, workers=1, memory="4GiB"))


def test_mean_shift_of_argmax_is_that_of_the_label_volume(two_workers, tomogram, models, tmp_path):
    folders = {}
    for name, segment, pick in (("a", True, False), ("b", False, True)):
        section = {"name": "ms", "method": "mean-shift", "bandwidth": 6, "argmax": pick}
        config = config_of(
            tomogram, tmp_path / name, models["deepetpicker"], (section,),
            segment={"argmax": segment},
        )  # fmt: skip
        run_pipeline(Session(two_workers), config)
        folders[name] = read_picks(tmp_path / name / "t/picks_ms/motl.csv")
    assert len(folders["a"]) >= len(BRIGHT) + len(DARK)
    for axis in "zyx":
        assert folders["a"][axis].tolist() == folders["b"][axis].tolist()


def oracle_of_tiles(tomogram, diameter):
    """Raw picks of tiles cut from the padded volume, each searched as the network returned it."""
    network, volume = deepetpicker(), normalised(tomogram)
    padded = np.pad(volume, 4)
    rules = MeanPoolSettings.of_diameters([diameter])
    search = TileSearch(SHAPE, rules, 32, 4)
    rows = []
    for tile in search.tiles():
        z, y, x = tile.index
        cut = torch.from_numpy(padded[z : z + 32, y : y + 32, x : x + 32].copy())
        with torch.inference_mode():
            scores = network.scores(cut[None, None])[0].numpy()
        rows.append(search.search_scores(tile, list(scores[1:])))
    return np.concatenate(rows), rules


def test_a_run_of_a_deepetpicker_model_picks_by_pooling_and_from_its_tiles(
    one_worker, two_workers, tomogram, models, tmp_path
):
    model = models["deepetpicker"]
    picks = ({"name": "pool", "method": "mp-nms", "diameters": [11], "thresholds": {"dark": 0.7}},)
    config = config_of(tomogram, tmp_path / "pool", model, picks)
    run_pipeline(Session(two_workers), config)
    found = found_in(tmp_path / "pool/t/picks_pool", within=2.5)
    assert found == {"bright": sorted(BRIGHT), "dark": sorted(DARK)}

    tiles = ({"name": "tiles", "method": "mp-nms", "diameters": [11], "compat": "deepetpicker"},)
    for name, workers in (("one", one_worker), ("two", two_workers)):
        config = config_of(
            tomogram, tmp_path / name, model, tiles, keep_scores=False,
            segment={"compat": "deepetpicker"},
        )  # fmt: skip
        (report,) = run_pipeline(Session(workers), config).tomograms
        assert sorted(p.name for p in (tmp_path / name / "t").iterdir()) == [
            "picks_tiles", "stages.json",
        ]  # fmt: skip
    assert lists_of(tmp_path / "one/t/picks_tiles") == lists_of(tmp_path / "two/t/picks_tiles")
    rows, rules = oracle_of_tiles(tomogram, 11)
    raw = read_picks(tmp_path / "two/t/picks_tiles/raw_picks.csv").sort_values("label")
    assert raw[["z", "y", "x"]].to_numpy().tolist() == [
        [row["z"], row["y"], row["x"]] for row in rows
    ]
    assert raw["class_name"].tolist() == [NAMES[c + 1] for c in rows["channel"]]
    assert len(raw) > report.n_picks["picks_tiles"] > 3
    kept = drop_as_deepetpicker(rows, rules.min_distance)
    assert report.n_picks["picks_tiles"] == len(kept)
    table = pd.read_parquet(tmp_path / "two/dataset.parquet")
    np.testing.assert_allclose(table["z_angstrom"], table["z"] * 10.0)  # no volume is there
    assert ", tiles of the network" in "\n".join(plan_run(config, workers=1, memory="4GiB"))
    assert not any("scores" in line for line in plan_run(config, workers=1, memory="4GiB"))


@pytest.mark.parametrize("numbers", [(3,), pytest.param(tuple(range(12)), marks=pytest.mark.slow)])
def test_raw_picks_of_the_programs_tiles_are_equal_to_the_last_bit(golden, numbers):
    folder = golden / "deepetpicker"
    volume = mrcfile.read(folder / "volume_80x96x104.mrc.gz")
    picks = np.load(folder / "picks_b72_p12.npz")
    expected = picks["raw_cls_x_y_z_val"]
    search = TileSearch(volume.shape, MeanPoolSettings.of_diameters((11, 13)))
    op = DeepETPickerOp(
        str(folder / "epoch=59-step=539.ckpt"), float(volume.mean()), float(volume.std()),
        shape=volume.shape,
    )  # fmt: skip
    picker = TilePicker(op, search, (1, 2))
    tiles = list(search.tiles())
    rows = np.concatenate([picker.find(tiles[n], volume[tiles[n].read.slices]) for n in numbers])
    columns = [rows["channel"] + 1, *(rows[name] for name in "xyz"), rows["value"]]
    first = 8 if numbers == (3,) else 0  # of the tiles before
    assert len(rows) >= 4
    np.testing.assert_array_equal(np.stack(columns, 1), expected[first : first + len(rows)])
    if len(numbers) > 1:
        assert len(drop_as_deepetpicker(rows, 6)) == len(picks["dedup_cls_x_y_z_val"])


@given(st.integers(1, 4), st.integers(0, 99))
def test_labels_without_thresholds_are_numpys_argmax_ties_included(n_classes, seed):
    scores = np.random.default_rng(seed).integers(-3, 3, (n_classes, 3, 4, 5)).astype("float32")
    labels = ClassLabels(-np.inf).of(list(scores))
    np.testing.assert_array_equal(labels, scores.argmax(axis=0) + 1)
    limits = np.random.default_rng(seed).integers(-3, 2, n_classes)
    allowed = np.where(scores > limits[:, None, None, None], scores, -np.inf)
    expected = np.where(np.isfinite(allowed.max(axis=0)), allowed.argmax(axis=0) + 1, 0)
    found = ClassLabels(tuple(limits.astype(float).tolist())).of(list(scores))
    np.testing.assert_array_equal(found, expected)


SHIFT = {"method": "mean-shift", "bandwidth": 5, "name": "p"}
POOL = {"method": "mp-nms", "diameters": [11], "name": "p"}


@pytest.mark.parametrize(
    ("segment", "pick", "message"),
    [
        ({}, {"class": "background"}, "class: expected a class of particles, found background"),
        ({}, {**SHIFT, "class": "background"}, "expected a class of particles, found background"),
        ({}, {"name": "p"}, "expected one of the models' classes bright, dark, found none"),
        ({}, {**SHIFT, "thresholds": {"fas": 0.5}}, "thresholds: expected a class of .*'fas'"),
        ({}, {**SHIFT, "min_sizes": {"fas": 5}}, "min_sizes: expected a class of .*'fas'"),
        # of the class that is picked, not of any that the model knows
        ({}, {**SHIFT, "class": "bright", "thresholds": {"dark": 0.5}}, "a class of bright, found"),
        ({}, {**SHIFT, "class": "bright", "min_sizes": {"dark": 5}}, "expected a class of bright"),
        ({}, {**SHIFT, "class_names": ["a"]}, "class_names: expected none in a run"),
        ({"argmax": True}, {**SHIFT, "threshold": 0.7}, "whose labels are no scores"),
        ({"argmax": True}, {"name": "p"}, "expected one of the models' classes .*, found none"),
        ({"classes": ["dark"]}, {**SHIFT, "argmax": True}, "expected several classes, found dark"),
        ({"class_names": ["a", "b"]}, SHIFT, "expected 3 different names, background first"),
        ({"class_names": ["a", "b", "c"]}, SHIFT, "expected 3 different names, background first"),
        ({"compat": "deepetpicker"}, {**POOL, "compat": "deepetpicker", "diameters": [5, 6, 7]},
         "diameters: expected one, or one for each of 2 classes"),
        ({"compat": "deepetpicker"}, {**POOL, "compat": "deepetpicker", "thresholds": {"x": 0.5}},
         "thresholds: expected a class of"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_before_any_work(
    tomogram, models, tmp_path, two_workers, segment, pick, message
):
    model = models["deepetpicker"]
    config = config_of(tomogram, tmp_path / "out", model, (pick,), segment=segment)
    with pytest.raises(ConfigError, match=message):
        run_pipeline(Session(two_workers), config)
    assert not (tmp_path / "out/t").exists()


def test_classes_may_be_named_where_a_file_numbers_them(two_workers, tomogram, tmp_path):
    model = tmp_path / "m.safetensors"
    save_model(model, deepfinder(), class_names=["0", "1", "2"], voxel_spacing_angstrom=10.0)
    picks = ({"class": "dark", "min_size": 60},)
    config = config_of(
        tomogram, tmp_path / "out", str(model), picks, segment={"class_names": list(NAMES)}
    )
    run_pipeline(Session(two_workers), config)
    assert found_in(tmp_path / "out/t/picks_dark")["dark"] == sorted(DARK)
    # unnamed, the first channel of a softmax is the background all the same
    settings = SegmentSettings(model=str(model))
    segment_volume(Session(two_workers), tomogram, tmp_path / "s.zarr", settings)
    header = open_volume(tmp_path / "s.zarr", class_name="1").header
    assert header.shape == SHAPE
    with pytest.raises(Exception, match="background, 1, 2"):
        open_volume(tmp_path / "s.zarr", class_name="0")


def test_tiles_of_another_network_are_refused(two_workers, tomogram, models, tmp_path):
    settings = PickSettings(method="mp-nms", diameters=(11,), compat="deepetpicker")
    model = SegmentSettings(model=models["deepfinder"])
    with pytest.raises(ConfigError, match="found a deepfinder model"):
        pick_tiles(Session(two_workers), tomogram, tmp_path / "p", model, settings)


def test_distances_of_tile_picks_are_refused(models):
    settings = PickSettings(
        method="mp-nms", diameters=(11,), compat="deepetpicker", distances=("er",)
    )
    model = SegmentSettings(model=models["deepetpicker"], compat="deepetpicker")
    with pytest.raises(ConfigError, match="contacts, distances: expected none where tiles"):
        check_tile_picks(model, settings)
    check_tile_picks(model, settings.model_copy(update={"distances": ()}))


def test_the_commands_write_labels_and_pick_from_them_and_from_tiles(tomogram, models, tmp_path):
    def command(line):
        result = CliRunner().invoke(app, [*line.split(), "--workers", "1", "--no-progress"])
        assert result.exit_code == 0, result.output

    labels, model = tmp_path / "labels.zarr", models["deepfinder"]
    command(f"segment {tomogram} {labels} --model {model} --argmax --chunks 32")
    command(
        f"pick {labels} {tmp_path / 'p'} --method mean-shift --bandwidth 6 --min-size 60 "
        f"--class-names {','.join(NAMES)} --class-min-size dark=9000"
    )
    assert found_in(tmp_path / "p") == {"bright": sorted(BRIGHT), "dark": []}
    command(
        f"pick {tomogram} {tmp_path / 'q'} --model {models['deepetpicker']} --method mp-nms "
        "--diameter 11 --compat deepetpicker --class-threshold b=0.9 "
        "--class-names background,a,b"
    )
    raw = read_picks(tmp_path / "q/raw_picks.csv")
    assert set(raw["class_name"]) == {"a", "b"}


def test_regions_are_refused_where_tiles_are_searched(tomogram, models, tmp_path):
    line = (
        f"pick {tomogram} {tmp_path / 'q'} --model {models['deepetpicker']} --method mp-nms "
        "--diameter 11 --compat deepetpicker --region er=er.mrc --workers 1 --no-progress"
    )
    result = CliRunner().invoke(app, line.split())
    assert isinstance(result.exception, ConfigError)
    assert "--region: expected none where tiles of a network are searched" in str(result.exception)
