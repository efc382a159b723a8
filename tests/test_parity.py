"""With ``--compat deepict`` the jobs give what DeePiCt gives."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
import yaml

from deepict_dask.config import EqualizeSettings, PickSettings, SegmentSettings
from deepict_dask.core.geometry import Box
from deepict_dask.io.spectrum import read_spectrum
from deepict_dask.io.volumes import open_volume
from deepict_dask.jobs.equalize import equalize_volume, measure_spectrum
from deepict_dask.jobs.picking.pick import pick_particles
from deepict_dask.jobs.segmenting.segment import segment_volume
from deepict_dask.jobs.session import Session

CASES = [
    "nomask_c1_min50",
    "nomask_c3_min300_max1500_border",
    "region_intersection_c1_min100",
    "region_contact_c1_min100",
    "region_colocalization_r8_c1_min100",
]
NEVER_PREDICTED = torch.sigmoid(torch.tensor(-10.0)).numpy()
CONNECTIVITY = {1: 6, 2: 18, 3: 26}


@pytest.fixture(scope="module")
def deepict(golden, tmp_path_factory) -> Path:
    """The golden volumes, unpacked once."""
    folder = tmp_path_factory.mktemp("golden")
    for packed in (golden / "deepict").rglob("*.mrc.gz"):
        plain = folder / packed.relative_to(golden / "deepict").with_suffix("")
        plain.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(packed) as source, plain.open("wb") as target:
            shutil.copyfileobj(source, target)
    return folder


@pytest.fixture
def session(two_workers):
    return Session(two_workers, chunks=(64, 64, 64))


def whole(path):
    reader = open_volume(path, spacing_required=False)
    return reader.read(Box.whole(reader.header.shape))


def settings_of(case_folder) -> PickSettings:
    """Translate a golden case's parameters, as the reference reads them."""
    values = yaml.safe_load((case_folder / "params.yaml").read_text())["postprocessing_clustering"]
    border = values["ignore_border_thickness"]
    xyz = [border] * 3 if isinstance(border, int) else border
    return PickSettings(
        threshold=values["threshold"],
        min_size=values["min_cluster_size"],
        max_size=values["max_cluster_size"],
        connectivity=CONNECTIVITY[values["clustering_connectivity"]],
        border=tuple(xyz[::-1]),
        region="lamella",
        contact_mode=values["contact_mode"],
        contact_distance=values["contact_distance"],
        compat="deepict",
    )


@pytest.mark.parametrize("chunks", [(64, 64, 64), (37, 150, 50)])
@pytest.mark.parametrize("case", CASES)
def test_post_processing_is_identical(two_workers, golden, deepict, tmp_path, case, chunks):
    expected = golden / "deepict" / "postproc" / case
    mask = deepict / "inputs/region_mask.mrc"
    pick_particles(
        Session(two_workers, chunks=chunks),
        deepict / "pred/blob_D2_IF4_BN__tomo.mrc",
        tmp_path / "picks",
        settings_of(expected),
        regions={"lamella": mask} if case.startswith("region") else {},
    )
    (motl,) = expected.glob("motl_*.csv")
    assert (tmp_path / "picks/motl.csv").read_bytes() == motl.read_bytes()
    mask = mrcfile.read(deepict / "postproc" / case / "post_processed_prediction.mrc")
    np.testing.assert_array_equal(whole(tmp_path / "picks/segmentation.zarr"), mask)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "source", "region", "expected", "name"),
    [
        ("blob_D2_IF4_BN", "tomo", None, "blob_D2_IF4_BN__tomo", None),
        (
            "rand_D2_IF4_noBN",
            "tomo",
            "region_mask_corner",
            "rand_D2_IF4_noBN__corner_mask",
            None,
        ),
        ("rand_D3_IF8_BN_2lab", "tomo", None, "rand_D3_IF8_BN_2lab__tomo__class_shell", "shell"),
    ],
)
def test_probability_maps_agree(
    session, golden, deepict, tmp_path, model, source, region, expected, name
):
    target = tmp_path / "scores.mrc"
    segment_volume(
        session,
        deepict / f"inputs/{source}.mrc",
        target,
        SegmentSettings(
            model=str(golden / f"deepict/models/{model}.pth"),
            classes=None if name is None else (name,),
            compat="deepict",
        ),
        region=None if region is None else deepict / f"inputs/{region}.mrc",
    )
    ours, theirs = whole(target), mrcfile.read(deepict / f"pred/{expected}.mrc")
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    never = theirs == NEVER_PREDICTED
    assert never.any() == (region is not None)
    np.testing.assert_array_equal(ours == NEVER_PREDICTED, never)


def test_a_crop_leaves_the_same_voxels_unpredicted(session, golden, deepict, tmp_path):
    tomo = mrcfile.read(deepict / "inputs/tomo.mrc")[:95, :150, :138]
    with mrcfile.new(tmp_path / "crop.mrc") as mrc:
        mrc.set_data(np.ascontiguousarray(tomo))
        mrc.voxel_size = 13.48
    model = str(golden / "deepict/models/rand_D2_IF4_noBN.pth")
    settings = SegmentSettings(model=model, compat="deepict")
    segment_volume(session, tmp_path / "crop.mrc", tmp_path / "s.zarr", settings)
    ours, theirs = (
        whole(tmp_path / "s.zarr"),
        whole(deepict / "pred/rand_D2_IF4_noBN__tomo_crop.mrc"),
    )
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    never = np.zeros(theirs.shape, bool)
    never[80:], never[:, :, 120:] = True, True
    assert len(np.unique(theirs[never])) == 1
    np.testing.assert_array_equal(ours[never], theirs[never])


def test_spectrum_files_agree(session, golden, deepict, tmp_path):
    for source, expected in [("tomo", "input"), ("target_tomo", "target")]:
        target = tmp_path / f"{source}.tsv"
        measure_spectrum(session, deepict / f"inputs/{source}.mrc", target, compat=True)
        ours = read_spectrum(target).intensity
        theirs = read_spectrum(golden / f"deepict/spectrum/{expected}_spectrum.tsv").intensity
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("odd", [False, True])
def test_equalized_volumes_agree(session, golden, deepict, tmp_path, odd):
    source = deepict / "inputs/tomo.mrc"
    if odd:
        crop = np.ascontiguousarray(mrcfile.read(source)[:95, :150, :138])
        source = tmp_path / "crop.mrc"
        with mrcfile.new(source) as mrc:
            mrc.set_data(crop)
            mrc.voxel_size = 13.48
    settings = EqualizeSettings(
        target=golden / "deepict/spectrum/target_spectrum.tsv",
        cutoff=40,
        smoothing=10,
        compat="deepict",
    )
    equalize_volume(session, source, tmp_path / "eq.zarr", settings)
    name = "eq_crop_cutoff40_smooth10" if odd else "eq_cutoff40_smooth10"
    theirs = mrcfile.read(deepict / f"spectrum/{name}.mrc")
    difference = np.abs(whole(tmp_path / "eq.zarr") - theirs).max()
    assert difference <= 1e-5 * theirs.std()
