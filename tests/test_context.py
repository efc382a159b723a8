"""One run: compartments by a 2D network, particles by a 3D one, picks by what lies near what."""

from __future__ import annotations

import mrcfile
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter1d

from deepict_dask.config import RunConfig, dump_config, load_run_config
from deepict_dask.core.errors import ConfigError
from deepict_dask.core.geometry import Box
from deepict_dask.io.picks import read_picks
from deepict_dask.io.volumes import open_volume
from deepict_dask.jobs.session import Session
from deepict_dask.models.checkpoint import save_model
from deepict_dask.models.unet2d import UNet2D, UNet2DSettings
from deepict_dask.models.unet3d import UNet3D, UNet3DSettings
from deepict_dask.pipeline import run_pipeline
from deepict_dask.plan import plan_run

SHAPE = (31, 48, 56)
SPACING_NM = 1.0


def read_all(path, **options):
    reader = open_volume(path, **options)
    return reader.read(Box.whole(reader.header.shape))


def write_mrc(path, volume):
    with mrcfile.new(path) as mrc:
        mrc.set_data(volume)
        mrc.voxel_size = 10 * SPACING_NM


@pytest.fixture
def project(tmp_path):
    """A tomogram, a mask file, a 2D model of two classes and a 3D model, all random."""
    rng = np.random.default_rng(3)
    write_mrc(tmp_path / "t.mrc", rng.normal(size=SHAPE).astype("float32"))
    mask = np.zeros(SHAPE, "int8")
    mask[:20, 10:40, :] = 1
    write_mrc(tmp_path / "lamella.mrc", mask)
    torch.manual_seed(0)
    flat = UNet2D(UNet2DSettings(depth=1, initial_features=8, n_classes=2)).eval()
    solid = UNet3D(UNet3DSettings(depth=1, initial_features=2)).eval()
    names = ["cytosol", "mitochondrion"]
    for path, network, classes in (
        ("flat.safetensors", flat, names), ("solid.safetensors", solid, ["ribosome"]),
    ):  # fmt: skip
        save_model(tmp_path / path, network, class_names=classes, voxel_spacing_angstrom=10.0)
    return tmp_path


def config_of(project, **changes):
    """Return a run whose thresholds are the medians of what the random networks give."""
    values = {
        "tomograms": project / "t.mrc",
        "output": project / "out",
        "chunks": (16, 24, 24),
        "regions": (
            {"name": "lamella", "path": project / "lamella.mrc"},
            {"name": "cytosol", "model": str(project / "flat.safetensors"), "class": "cytosol",
             "threshold": 0.5, "z_sigma": 1.5},
            {"name": "mito", "model": str(project / "flat.safetensors"),
             "class": "mitochondrion", "threshold": 0.5},
        ),
        "segment": ({"model": str(project / "solid.safetensors")},),
        "pick": ({"class": "ribosome", "threshold": 0.5, "distance_limit_nm": 12},),
    }  # fmt: skip
    return RunConfig(**values | changes)


@pytest.fixture
def balanced(project, two_workers):
    """The config with thresholds that split the voxels of each map."""
    run_pipeline(Session(two_workers), config_of(project, pick=()))
    maps = project / "out" / "t"
    half = {
        name: float(np.median(read_all(maps / "scores_flat.zarr", class_name=name)))
        for name in ("cytosol", "mitochondrion")
    }
    regions = config_of(project).model_dump(by_alias=True)["regions"]
    regions[1]["threshold"], regions[2]["threshold"] = half["cytosol"], half["mitochondrion"]
    scores = float(np.quantile(read_all(maps / "scores_solid.zarr"), 0.97))
    return project, {"regions": tuple(regions)}, scores


def test_a_run_makes_regions_by_a_2d_network_and_measures_each_pick_against_all_of_them(
    balanced, two_workers
):
    project, changes, threshold = balanced
    pick = {"class": "ribosome", "threshold": threshold, "distance_limit_nm": 12}
    run_pipeline(Session(two_workers), config_of(project, **changes, pick=(pick,)))
    folder = project / "out" / "t"
    cytosol = read_all(folder / "scores_flat.zarr", class_name="cytosol")
    smooth = gaussian_filter1d(cytosol, 1.5, axis=0, mode="reflect", truncate=4)
    expected = smooth > np.float32(changes["regions"][1]["threshold"])
    mask = read_all(folder / "region_cytosol.zarr")
    assert np.array_equal(mask, expected)
    assert 0.1 < mask.mean() < 0.9
    clusters = pd.read_parquet(folder / "picks_ribosome/clusters.parquet")
    assert len(clusters) > 20
    masks = {
        "lamella": read_all(project / "lamella.mrc"),
        "cytosol": mask,
        "mito": read_all(folder / "region_mito.zarr"),
    }
    for name, region in masks.items():
        away = distance_transform_edt(region == 0, sampling=SPACING_NM)
        z, y, x = np.rint(clusters[["z", "y", "x"]].to_numpy()).astype(int).T
        whole = np.where(away[z, y, x] <= 12, away[z, y, x], np.nan)
        np.testing.assert_allclose(clusters[f"distance_{name}_nm"], whole, atol=1e-4)


def test_ribosomes_within_some_nm_of_an_organelle_are_one_filter_of_picks_csv(
    balanced, two_workers
):
    project, changes, threshold = balanced
    plain = {"class": "ribosome", "name": "all", "threshold": threshold}
    near = plain | {
        "name": "near",
        "contacts": ({"region": "lamella", "mode": "colocalization", "distance_nm": 2.5},),
    }
    run_pipeline(Session(two_workers), config_of(project, **changes, pick=(plain, near)))
    folder = project / "out" / "t"
    everything = read_picks(folder / "picks_all/picks.csv")
    filtered = everything[everything["distance_lamella_nm"] <= 2.5]
    chosen = read_picks(folder / "picks_near/picks.csv")
    assert 0 < len(filtered) < len(everything)
    assert sorted(map(tuple, filtered[["z", "y", "x"]].to_numpy())) == sorted(
        map(tuple, chosen[["z", "y", "x"]].to_numpy())
    )


def test_another_region_threshold_keeps_the_scores_and_makes_masks_and_picks_again(
    balanced, two_workers
):
    project, changes, threshold = balanced
    pick = {"class": "ribosome", "threshold": threshold}
    config = config_of(project, **changes, pick=(pick,))
    run_pipeline(Session(two_workers), config)
    said: list[str] = []
    changes["regions"][1]["threshold"] += 1e-3
    run_pipeline(Session(two_workers), config_of(project, **changes, pick=(pick,)), say=said.append)
    for kept in ("scores_flat.zarr", "scores_solid.zarr", "region_mito.zarr"):
        assert f"t: {kept} is up to date" in said
    for made in ("region_cytosol.zarr", "picks_ribosome"):
        assert f"t: wrote {made}" in said


def test_a_region_needs_a_class_that_its_model_has(project, two_workers):
    region = {"name": "er", "model": str(project / "flat.safetensors")}
    with pytest.raises(ConfigError, match="regions: er: class: expected one of cytosol, mito"):
        run_pipeline(Session(two_workers), config_of(project, regions=(region,)))
    wrong = region | {"class": "nucleus"}
    with pytest.raises(ConfigError, match="found nucleus"):
        run_pipeline(Session(two_workers), config_of(project, regions=(wrong,)))


def test_a_run_may_only_make_regions(project, two_workers):
    config = config_of(project, segment=(), pick=())
    run_pipeline(Session(two_workers), config)
    assert (project / "out/t/region_mito.zarr").is_dir()
    assert not (project / "out/t/scores_solid.zarr").exists()


def test_the_plan_shows_masks_and_windows_of_both_networks(project):
    plan = "\n".join(plan_run(config_of(project)))
    for name in ("scores_flat.zarr", "scores_solid.zarr", "region_cytosol.zarr", "picks_ribosome"):
        assert name in plan


def test_a_dumped_config_with_regions_reads_back_as_it_was(project):
    config = config_of(project)
    (project / "dumped.yaml").write_text(dump_config(config))
    assert load_run_config(project / "dumped.yaml") == config
