"""Picks in one pass from the tomogram: those of stored scores, without the scores."""

from __future__ import annotations

import re
import subprocess
import sys

import mrcfile
import numpy as np
import pandas as pd
import pytest
import torch

from deepict_dask.config import PickSettings, RunConfig, SegmentSettings
from deepict_dask.core.errors import ConfigError
from deepict_dask.core.geometry import Box
from deepict_dask.core.spectrum import Spectrum
from deepict_dask.engine.budget import BASELINE_TORCH_BYTES
from deepict_dask.io.spectrum import write_spectrum
from deepict_dask.io.volumes import open_volume
from deepict_dask.jobs.picking.predicted import PickSection, pick_predicted
from deepict_dask.jobs.segmenting import windows as segment_windows
from deepict_dask.jobs.session import Session
from deepict_dask.models.checkpoint import save_model
from deepict_dask.models.unet3d import UNet3D, UNet3DSettings
from deepict_dask.pipeline import run_pipeline
from deepict_dask.plan import plan_run

SHAPE = (40, 72, 100)
CHUNKS = (16, 24, 32)


def make_model(path, *, depth, names, seed):
    """Weights large enough for clusters of every size at a threshold of 0.5."""
    torch.manual_seed(seed)
    network = UNet3D(UNet3DSettings(depth, 4, len(names))).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean.normal_(0.3, 0.2)
            module.running_var.uniform_(0.03, 0.1)
            module.bias.data.normal_(0, 0.3)
    save_model(path, network, class_names=names, voxel_spacing_angstrom=10.0)
    return str(path)


def write_mrc(path, voxels):
    with mrcfile.new(path) as mrc:
        mrc.set_data(voxels)
        mrc.voxel_size = 10.0
    return path


@pytest.fixture
def tomogram(tmp_path):
    noise = np.random.default_rng(0).normal(size=SHAPE).astype("float32")
    return write_mrc(tmp_path / "t.mrc", noise)


@pytest.fixture
def region(tmp_path):
    """A slanted half of the volume."""
    z, y, x = np.indices(SHAPE)
    return write_mrc(tmp_path / "cytosol.mrc", (x + y + z < 110).astype("int8"))


@pytest.fixture
def models(tmp_path):
    """Networks of different depth, one with two classes."""
    return (
        make_model(tmp_path / "one.safetensors", depth=1, names=["a"], seed=1),
        make_model(tmp_path / "two.safetensors", depth=2, names=["b", "c"], seed=2),
    )


@pytest.fixture
def small_windows(monkeypatch):
    """Less memory than the whole needs."""
    monkeypatch.setattr(segment_windows, "_LARGEST_WINDOW_BYTES", 40 << 20)


def config_of(tomogram, output, models, region, **changes):
    contact = {"mode": "contact", "region": "cytosol"}
    inside = {"mode": "intersection", "region": "cytosol"}
    near = {"mode": "colocalization", "region": "cytosol", "distance_nm": 5.0}
    return RunConfig(
        **{
            "tomograms": tomogram,
            "output": output,
            "chunks": CHUNKS,
            "segment": tuple({"model": model} for model in models),
            "regions": ({"name": "cytosol", "path": region},),
            "pick": (
                {"class": "a", "threshold": 0.95, "min_size": 2, "label_map": True},
                {"class": "b", "threshold": 0.5, "connectivity": 6, "contacts": (inside,)},
                {"class": "c", "threshold": 0.75, "max_size": 500, "contacts": (contact,)},
                {"class": "c", "name": "near", "threshold": 0.7, "border": (2, 3, 4),
                 "contacts": (near,)},
            ),
            "keep_scores": False,
        }
        | changes
    )  # fmt: skip


def read_all(path):
    return open_volume(path).read(Box.whole(SHAPE))


def results_of(folder):
    """Everything a pick folder holds that does not name its inputs."""
    tables = {n: (folder / n).read_bytes() for n in ("picks.csv", "picks.star", "motl.csv")}
    clusters = pd.read_parquet(folder / "clusters.parquet")
    volumes = {p.name: read_all(p).tobytes() for p in sorted(folder.glob("*.zarr"))}
    return tables, clusters.to_csv(), volumes


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("flips", [False, True])
def test_picks_are_those_of_stored_scores(two_workers, tomogram, models, region, tmp_path, flips):
    session = Session(two_workers)
    reports = {}
    segment = tuple({"model": model, "average_flips": flips} for model in models)
    # means of noise are seldom high
    limits = {"a": 0.75, "b": 0.4, "c": 0.75}
    lower = {"pick": tuple({"class": name, "threshold": t} for name, t in limits.items())}
    for name, keep in (("stored", True), ("one_pass", False)):
        config = config_of(
            tomogram,
            tmp_path / name,
            models,
            region,
            keep_scores=keep,
            segment=segment,
            **(lower if flips else {}),
        )
        (reports[name],) = run_pipeline(session, config).tomograms
    assert reports["one_pass"].n_picks == reports["stored"].n_picks
    assert all(n > 3 for n in reports["stored"].n_picks.values()), reports["stored"].n_picks
    for name in reports["stored"].n_picks:
        theirs, ours = (tmp_path / run / "t" / name for run in ("stored", "one_pass"))
        assert results_of(ours) == results_of(theirs)
    left = {path.name for path in (tmp_path / "one_pass" / "t").iterdir()}
    assert left == {*reports["stored"].n_picks, "stages.json"}
    for name in reports["stored"].n_picks:
        left = {path.name for path in (tmp_path / "one_pass" / "t" / name).iterdir()}
        assert left == {path.name for path in (tmp_path / "stored" / "t" / name).iterdir()}


def counted_tasks(workers):
    """Return a list that grows by the key of every task that ends."""
    from distributed.diagnostics.plugin import SchedulerPlugin

    class Count(SchedulerPlugin):
        def __init__(self):
            self.keys = []

        def transition(self, key, start, finish, *_args, **_kwargs):
            if start == "processing" and finish == "memory":
                self.keys.append(str(key))

    plugin = Count()
    workers.client.cluster.scheduler.add_plugin(plugin, name=f"count-{id(plugin)}")
    return plugin.keys


@pytest.mark.parametrize(
    ("chunks", "mib", "n_windows"), [((20, 24, 25), 9, 12), ((10, 18, 25), 7, 64)]
)
def test_the_whole_pipeline_takes_three_tasks_per_window(
    two_workers, tomogram, models, region, tmp_path, monkeypatch, chunks, mib, n_windows
):
    # equalization, statistics, windows, the tree over both, the segmentation without small clusters
    monkeypatch.setattr(segment_windows, "_LARGEST_WINDOW_BYTES", mib << 20)
    write_spectrum(tmp_path / "s.tsv", Spectrum((1.0, 1.0), (0.01, 0.08)))
    whole = n_windows > 12  # of few windows what is done once is more than its share
    pick = ({"threshold": 0.9, "min_size": 5} if whole else {"threshold": 0.6},)
    config = config_of(
        tomogram, tmp_path / "out", models, region,
        segment=({"model": models[0]},), pick=pick, regions=(), chunks=chunks,
        **({"equalize": {"target": tmp_path / "s.tsv"}} if whole else {}),
    )  # fmt: skip
    keys = counted_tasks(two_workers)
    run_pipeline(Session(two_workers), config)
    assert sum(key.startswith("segment_and_label_L0") for key in keys) == n_windows
    kinds = {re.sub(r"[_-]?[0-9L].*", "", key) for key in keys}
    assert not whole or {"equalize", "segmentation"} <= kinds, kinds
    assert len(keys) <= 3 * n_windows, keys


@pytest.mark.usefixtures("small_windows")
def test_one_worker_or_two_the_same_bytes(
    one_worker, two_workers, tomogram, models, region, tmp_path
):
    for name, workers in (("one", one_worker), ("two", two_workers)):
        config = config_of(tomogram, tmp_path / name, models, region)
        (report,) = run_pipeline(Session(workers), config).tomograms
    for name in report.n_picks:
        assert results_of(tmp_path / "one/t" / name) == results_of(tmp_path / "two/t" / name)


def test_nothing_found_says_how_high_the_scores_are(one_worker, tomogram, models, tmp_path, caplog):
    settings = PickSettings(threshold=0.99999999, class_name="a")
    section = PickSection(SegmentSettings(model=models[0]), settings, {})
    reports = pick_predicted(
        Session(one_worker, chunks=CHUNKS), tomogram, {tmp_path / "p": section}, tomogram_name="t"
    )
    assert reports[tmp_path / "p"].n_picks == 0
    assert "none is above the threshold" in caplog.text
    assert "scores go from 0." in caplog.text


def test_only_sections_that_changed_are_picked_again(
    two_workers, tomogram, models, region, tmp_path
):
    config = config_of(tomogram, tmp_path / "out", models, region)
    run_pipeline(Session(two_workers), config)
    said = []
    run_pipeline(Session(two_workers), config, say=said.append)
    assert sum("is up to date" in line for line in said) == len(config.pick)
    lower = config.pick[0].model_copy(update={"threshold": 0.5})
    said.clear()
    run_pipeline(
        Session(two_workers),
        config.model_copy(update={"pick": (lower, *config.pick[1:])}),
        say=said.append,
    )
    assert [line for line in said if "wrote" in line] == ["t: wrote picks_a"]


def test_scores_that_a_region_needs_are_stored(two_workers, tomogram, models, tmp_path):
    config = RunConfig(
        tomograms=tomogram,
        output=tmp_path / "out",
        chunks=CHUNKS,
        segment=({"model": models[0]}, {"model": models[1]}),
        regions=({"name": "b", "model": models[1], "class": "b", "threshold": 0.5},),
        pick=(
            {"class": "a", "threshold": 0.6, "contacts": ({"mode": "contact", "region": "b"},)},
            {"class": "c", "threshold": 0.7},
        ),
        keep_scores=False,
    )
    run_pipeline(Session(two_workers), config)
    left = {path.name for path in (tmp_path / "out/t").iterdir()}
    assert left == {"scores_two.zarr", "region_b.zarr", "picks_a", "picks_c", "stages.json"}


def test_a_mask_of_a_2d_model_is_made_at_once(two_workers, tomogram, models, tmp_path):
    masks = {}
    for keep in (True, False):
        output = tmp_path / f"keep_{keep}"
        config = RunConfig(
            tomograms=tomogram,
            output=output,
            chunks=CHUNKS,
            segment=({"model": models[0]},),
            regions=({"name": "cell", "model": "demo_cytosol", "threshold": 0.4, "z_sigma": 2},),
            pick=({"threshold": 0.6},),
            keep_scores=keep,
        )
        run_pipeline(Session(two_workers), config)
        masks[keep] = read_all(output / "t/region_cell.zarr")
        assert (output / "t/scores_demo_cytosol.zarr").exists() == keep
    assert masks[True].any()
    assert np.mean(masks[True] != masks[False]) < 1e-4


def test_a_model_that_nobody_picks_from_is_refused(two_workers, tomogram, models, region, tmp_path):
    config = config_of(
        tomogram, tmp_path / "out", models, region, pick=({"class": "a"},), regions=()
    )
    with pytest.raises(ConfigError, match=r"two.safetensors: expected a pick section"):
        run_pipeline(Session(two_workers), config)


def test_without_picks_scores_are_kept(tomogram, models, tmp_path):
    with pytest.raises(ValueError, match="keep_scores: expected true where nothing is picked"):
        RunConfig(
            tomograms=tomogram,
            output=tmp_path,
            segment=({"model": models[0]},),
            keep_scores=False,
        )


def test_a_dry_run_plans_what_the_run_does(two_workers, tomogram, models, region, tmp_path):
    config = config_of(tomogram, tmp_path / "out", models, region)
    lines = plan_run(config, workers=2, memory="4GiB")
    (planned,) = [line for line in lines if "in one pass" in line]
    assert not any("scores_" in line for line in lines)
    keys = counted_tasks(two_workers)
    run_pipeline(Session(two_workers), config)
    n_windows = sum(key.startswith("segment_and_label_L0") for key in keys)
    assert f"{n_windows} blocks" in planned
    assert all(f"picks_{name}" in planned for name in ("a", "b", "c", "near"))


MEASURE = """
import sys
import numpy as np, torch
torch.set_num_threads(1)
from deepict_dask.core.geometry import Box, Grid
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.io.ome_zarr_write import create_ome_zarr
from deepict_dask.jobs.picking.predict_and_label import LabelledChannel, PredictAndLabel
from deepict_dask.labelling import LabelReduction, SelectSettings
from deepict_dask.segmentation.joint import JointSegmentOp
from deepict_dask.segmentation.windows import SegmentOp

model, folder, threshold = sys.argv[1:4]
op = JointSegmentOp((SegmentOp(model, 0.0, 1.0, 0),))

def run(shape, name):
    label = LabelReduction(shape, SelectSettings(threshold=float(threshold)))
    writer = create_ome_zarr(f"{folder}/{name}.zarr", VolumeHeader(shape, "uint8", 10.0))
    both = PredictAndLabel(op, (LabelledChannel(0, label),), (64, 64, 64), (writer,))
    grid = Grid(shape, shape)
    tomogram = np.random.default_rng(0).normal(size=shape).astype("float32")
    nodes = both.measure(grid[0], tomogram)
    return both.bytes_of(grid), nodes.nodes[0].n_finished

run((32, 32, 32), "small")
planned, n_clusters = run((128, 160, 192), "large")
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) * 1024, planned, n_clusters)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("model", "threshold"), [(0, 0.97), (1, 0.8), (1, 0.5)])
def test_the_planned_memory_of_the_pass_bounds_the_measured_peak(
    models, tmp_path, model, threshold
):
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, models[model], str(tmp_path), str(threshold)],
        check=True, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    peak, planned, n_clusters = map(int, result.stdout.split())
    assert n_clusters > 1000  # there is something to hold
    assert peak <= BASELINE_TORCH_BYTES + planned  # what a worker is planned to have


def test_a_precision_that_a_model_does_not_know_is_refused_before_any_work(
    two_workers, tomogram, models, tmp_path
):
    config = RunConfig(
        tomograms=tomogram,
        output=tmp_path / "out",
        segment=({"model": models[0]},),
        regions=({"name": "cell", "model": "demo_cytosol", "precision": "bfloat16"},),
        pick=({"threshold": 0.6},),
    )
    with pytest.raises(ConfigError, match="precision: expected float32 for a 2D network"):
        run_pipeline(Session(two_workers), config)
    assert not (tmp_path / "out").exists()
