"""A DeePiCt project folder runs unchanged and leaves the files of DeePiCt, in 2D and 3D."""

from __future__ import annotations

import csv
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import yaml
from project_scenes import (
    CASES,
    blob,
    case_config,
    changed,
    flat,
    folder,
    give_map,
    place,
    run,
    session,
    small,
    unpacked,
    write,
)

from deepict_dask.deepict_project import run_deepict

__all__ = ["blob", "flat", "folder", "session", "small", "unpacked"]


@pytest.mark.parametrize("case", CASES)
def test_masks_and_particle_lists_are_those_of_deepict(session, golden, unpacked, blob, case):
    values = case_config(golden, blob, case)
    results = give_map(unpacked, values["tomos_sets"]["prediction_list"][0])
    run(session, values)
    expected = golden / "deepict/postproc" / case
    (motl,) = expected.glob("motl_*.csv")
    assert (results / motl.name).read_bytes() == motl.read_bytes()
    with mrcfile.open(results / "post_processed_prediction.mrc") as made:
        assert made.data.dtype == np.float32
        truth = mrcfile.read(unpacked / f"postproc/{case}/post_processed_prediction.mrc")
        np.testing.assert_array_equal(made.data, truth)
    assert not list(Path("work").rglob("*"))


@pytest.mark.parametrize("case", ["nomask_c1_min50", "region_intersection_c1_min100"])
def test_statistics_are_byte_for_byte_those_of_deepict(session, golden, unpacked, blob, case):
    values = case_config(
        golden, blob, case,
        evaluation__particle_picking__active=True,
        evaluation__segmentation_evaluation__active=True,
    )  # fmt: skip
    results = give_map(unpacked, values["tomos_sets"]["prediction_list"][0])
    run(session, values)
    expected = (golden / f"deepict/evaluation/pp_statistics_{case}.csv").read_bytes()
    assert Path("out/pp_statistics.csv").read_bytes() == expected
    rows = {r["statistic_variable"]: float(r["statistic_value"])
            for r in csv.DictReader(expected.decode().splitlines())}  # fmt: skip
    lists = results / "pr_radius_10"
    assert (lists / f"detected/in_pred_motl/motl_{rows['tp']:.0f}.csv").is_file()
    assert (lists / f"detected/in_true_motl/motl_{rows['tp']:.0f}.csv").is_file()
    missed = (lists / f"undetected/motl_{rows['fn']:.0f}.csv").read_text().splitlines()
    assert len(missed) == rows["fn"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "tomo", "expected"),
    [
        ("blob", "golden", "blob_D2_IF4_BN__tomo"),
        ("rand_nobn", "golden_crop", "rand_D2_IF4_noBN__tomo_crop"),
        ("rand_nobn", "golden_corner", "rand_D2_IF4_noBN__corner_mask"),
        ("rand_2lab", "golden", "rand_D3_IF8_BN_2lab__tomo__class_shell"),
    ],
)
def test_probability_maps_are_those_of_deepict(
    session, golden, unpacked, folder, config, tomo, expected
):
    values = yaml.safe_load((golden / f"deepict/configs/{config}.yaml").read_text())
    (folder / "metadata.csv").write_text((golden / "deepict/configs/metadata.csv").read_text())
    run(session, changed(values, tomos_sets__prediction_list=[tomo]))
    model, label = Path(values["model_path"]).stem, values["prediction"]["semantic_class"]
    with mrcfile.open(place(tomo, model, label) / "probability_map.mrc") as made:
        truth = mrcfile.read(unpacked / f"pred/{expected}.mrc")
        np.testing.assert_allclose(made.data, truth, atol=1e-5)
        assert made.data.dtype == np.float32


def test_an_empty_mask_gives_an_empty_list_where_deepict_crashes(
    session, golden, unpacked, folder, blob
):
    shape = mrcfile.read(unpacked / "inputs/tomo.mrc").shape
    mrcfile.write(folder / "zero.mrc", np.zeros(shape, "int8"))
    Path("metadata.csv").write_text("tomo_name,tomo,lamella_file\ng,inputs/tomo.mrc,zero.mrc\n")
    values = changed(
        case_config(golden, blob, "region_intersection_c1_min100"),
        tomos_sets__prediction_list=["g"],
    )
    results = give_map(unpacked, "g")
    run(session, values)
    assert (results / "motl_0.csv").read_bytes() == b""


def test_a_tomogram_that_fails_does_not_stop_the_others(session, golden, unpacked, blob):
    give_map(unpacked, "golden")
    values = changed(
        case_config(golden, blob, CASES[0]), tomos_sets__prediction_list=["golden_region", "golden"]
    )
    report = run_deepict(session, write(values))
    assert [one.name for one in report.failed] == ["golden_region"]
    assert "expected a probability map" in str(report.failed[0].error)
    assert (place("golden") / "motl_59.csv").is_file()


def test_a_tomogram_without_voxel_spacing_is_predicted(session, small):
    run(session, small)
    with mrcfile.open(place("a") / "probability_map.mrc") as made:
        assert float(made.voxel_size.x) == 0
        assert made.data.shape == (44, 44, 44)


def test_the_box_of_the_config_is_used(session, small):
    run(session, changed(small, training__box_size=48, training__overlap=4))
    made = mrcfile.read(place("a") / "probability_map.mrc")
    predicted = ~np.isclose(made, 4.539787e-05, rtol=1e-6)
    # boxes of 48 with 4 voxels of overlap predict cubes of 40, of 36 with 8 cubes of 20
    assert predicted[:40, :40, :40].all()
    assert not predicted[40:].any()
    run(session, changed(small, training__box_size=36, training__overlap=8))
    again = mrcfile.read(place("a") / "probability_map.mrc")
    assert np.abs(again - made).max() > 1e-3
    assert np.isclose(again[40:], 4.539787e-05, rtol=1e-6).all()


@pytest.mark.slow
def test_2d_results_are_those_of_deepict(session, unpacked, flat):
    lines = run(session, flat)
    assert "note: prediction.active is not given: the section is taken as active" in lines
    names = sorted(path.name for path in Path("out2d").glob("*.mrc"))
    assert names == ["cell_1_pred.mrc", "cell_1_pred_polished.mrc"]
    scores = mrcfile.read("out2d/cell_1_pred.mrc")
    truth = mrcfile.read(unpacked / "twod/pred_crop16.mrc")
    np.testing.assert_allclose(scores, truth, atol=1e-5)
    mask = mrcfile.read("out2d/cell_1_pred_polished.mrc")
    assert mask.dtype == np.float32
    np.testing.assert_array_equal(
        mask, mrcfile.read(unpacked / "twod/pred_crop16_post_s5_t0.5.mrc")
    )
    assert sum("up to date" in line for line in run(session, flat)) == 2
    again = run(session, changed(flat, postprocessing__threshold=0))
    assert sum("up to date" in line for line in again) == 1
    smooth = mrcfile.read("out2d/cell_1_pred_polished.mrc")
    assert np.unique(smooth).size > 2


def test_2d_filtering_is_that_of_deepict(session, golden, unpacked, flat):
    values = {
        "data": flat["data"],
        "preprocessing": {
            "filtering": {
                "active": True,
                "target_spectrum": str(golden / "deepict/spectrum/target_spectrum.tsv"),
                "lowpass_cutoff": 40,
                "smoothen_cutoff": 10,
            }
        },
    }
    run(session, values)
    made = mrcfile.read("out2d/cell_1_filtered.mrc")
    truth = mrcfile.read(unpacked / "spectrum/eq_cutoff40_smooth10.mrc")
    np.testing.assert_allclose(made, truth, rtol=1e-4, atol=1e-4 * np.abs(truth).max())
