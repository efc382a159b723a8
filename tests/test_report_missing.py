"""The report says what is not there or damaged, and why, and shows the rest."""

from __future__ import annotations

import gzip
import json
import os
import tempfile

import mrcfile
import numpy as np
import pytest
from report_page import Page, pixels, run
from report_scenes import (
    SHAPE,
    SPACING,
    balls,
    volume,
    write_dataset,
    write_picks,
    write_plan,
    write_run,
    write_volume,
)

from deepict_dask.core.errors import ConfigError
from deepict_dask.models.checkpoint import save_model
from deepict_dask.models.unet3d import UNet3D, UNet3DSettings
from deepict_dask.report import write_report
from deepict_dask.report.sources import read_source
from deepict_dask.report.write import _key_of
from deepict_dask.viewing import scenes_of

__all__ = ["run"]


def test_picks_of_a_method_without_clusters_are_shown_with_what_they_have(tmp_path):
    folder = write_picks(tmp_path / "picks", method="mean-shift")
    page = Page(write_report(folder, tomogram=write_volume(tmp_path / "t.zarr", volume())))
    titles = [a["aria-label"].split(":")[0] for a in page.all("svg", role="img")]
    assert titles == ["score", "radial amplitude spectrum"]
    assert "the method mean-shift makes none" in page.text
    assert page.data["layers"][0]["points"][0][3] == 0


def test_a_tomogram_without_picks_says_so(tmp_path):
    folder = write_picks(tmp_path / "picks", n=0)
    page = Page(write_report(folder, tomogram=write_volume(tmp_path / "t.zarr", volume())))
    assert "No clusters to count." in page.text
    assert "nothing was picked" in page.text


def test_a_method_that_picked_nothing_says_so_too(tmp_path):
    folder = write_picks(tmp_path / "picks", n=0, method="mp-nms")
    page = Page(write_report(folder, tomogram=write_volume(tmp_path / "t.zarr", volume())))
    assert "segmentation: the method mp-nms makes none" in page.text
    assert "nothing was picked: no pick is within the limits" in page.text


def test_a_run_in_the_middle_says_what_is_not_there_yet(tmp_path):
    run = write_run(tmp_path)
    events = [{"tomogram": "TS_1", "output": "region_cytosol.zarr"},
              {"tomogram": "TS_1", "state": "running"}]  # fmt: skip
    outputs = ["region_cytosol.zarr", "picks_ribosome", "picks_fas"]
    write_plan(run, {"TS_1": outputs}, events)
    page = Page(write_report(run))
    assert "picks_fas: not made: the run was stopped before" in page.text
    assert "the run's plan does not hold them" in page.text
    assert "equalized tomogram" in page.text  # stands in for the file that is not known
    assert [layer["name"] for layer in page.data["layers"]] == ["region cytosol"]


@pytest.mark.parametrize("damage", ["chunk", "shape", "metadata"])
def test_a_damaged_layer_is_named_and_the_rest_is_shown(run, damage):
    store = run / "TS_1" / "picks_ribosome" / "segmentation.zarr"
    if damage == "chunk":
        next(path for path in store.rglob("c/*/*/*") if path.is_file()).unlink()
    elif damage == "metadata":
        (store / "zarr.json").write_text("{")
    else:
        import shutil

        shutil.rmtree(store)
        write_volume(store, np.ones((8, 8, 8), "uint8"))
    page = Page(write_report(run))
    assert [one["kind"] for one in page.data["layers"]] == ["region", "picks"]
    assert "picks_ribosome: segmentation is not overlaid" in page.text


def test_voxels_that_are_no_numbers_do_not_stop_a_report(tmp_path):
    broken = volume()
    broken[:12] = np.nan
    folder = write_picks(tmp_path / "picks")
    page = Page(write_report(folder, tomogram=write_volume(tmp_path / "t.zarr", broken)))
    assert pixels(page.data["grey"]["z"][0])[1].size == (SHAPE[2], SHAPE[1])


@pytest.mark.parametrize("name", ["run.json", "picks.csv", "clusters.parquet"])
def test_damaged_tables_are_named(tmp_path, name):
    folder = write_picks(tmp_path / "picks")
    (folder / name).write_bytes(b"\xff\x00{")
    if name == "run.json":
        with pytest.raises(ConfigError, match=r"run\.json: expected the record of a pick"):
            write_report(folder)
    else:
        tomogram = write_volume(tmp_path / "t.zarr", volume())
        page = Page(write_report(folder, tomogram=tomogram))
        assert "not drawn" in page.text or "cannot be read" in page.text


def test_a_run_with_a_config_of_deepict_shows_its_volumes_and_counts(tmp_path):
    output = tmp_path / "predictions"
    mask = output / "TS_1" / "ribo" / "post_processed_prediction.mrc"
    mask.parent.mkdir(parents=True)
    mrcfile.write(mask, balls().astype("float32"), voxel_size=SPACING)
    place = {"path": str(mask), "partial": str(tmp_path / "work")}
    write_plan(
        output, {"TS_1": [mask.name]},
        [{"tomogram": "TS_1", "output": mask.name},
         {"tomogram": "TS_1", "state": "done", "picks": {"ribo": 3}, "seconds": 1.0}],
        config={"output_dir": "predictions"}, places={"TS_1": {mask.name: place}},
        inputs={"TS_1": str(write_volume(tmp_path / "t.zarr", volume()))},
    )  # fmt: skip
    page = Page(write_report(output))
    assert "3 ribo" in page.text
    assert "not asked for" not in page.text
    (layer,) = page.data["layers"]
    assert layer["name"] == "post_processed_prediction.mrc from 0.5"
    assert sum(uri is not None for uri in layer["z"]) == len(balls().any(axis=(1, 2)).nonzero()[0])


def test_a_page_follows_the_volumes_of_deepict_and_its_filtered_tomogram_is_no_mask(tmp_path):
    places = {}
    for name in ("TS_1_filtered.mrc", "TS_1_pred.mrc"):
        mrcfile.write(tmp_path / name, balls().astype("float32"), voxel_size=SPACING)
        places[name] = {"path": str(tmp_path / name), "partial": str(tmp_path / "work")}
    write_plan(
        tmp_path / "out", {"TS_1": list(places)},
        [*({"tomogram": "TS_1", "output": name} for name in places),
         {"tomogram": "TS_1", "state": "done", "picks": {}, "seconds": 1.0}],
        config={"output_dir": "out"}, places={"TS_1": places},
        inputs={"TS_1": str(write_volume(tmp_path / "t.zarr", volume()))},
    )  # fmt: skip
    run = read_source(tmp_path / "out")
    (tomogram,) = run.tomograms
    assert [*tomogram.volumes] == ["TS_1_pred.mrc"]
    before = _key_of(run, tomogram)
    os.utime(tmp_path / "TS_1_pred.mrc", (1, 1))
    assert _key_of(run, tomogram) != before


def test_a_packed_tomogram_is_unpacked_for_the_report_only(tmp_path, monkeypatch):
    elsewhere, packed = tmp_path / "tmp", tmp_path / "t.mrc.gz"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    mrcfile.write(tmp_path / "t.mrc", volume().astype("float32"), voxel_size=SPACING)
    packed.write_bytes(gzip.compress((tmp_path / "t.mrc").read_bytes()))
    folder = write_picks(tmp_path / "picks")
    before = {path.name for path in folder.iterdir()}
    page = Page(write_report(folder, tomogram=packed))
    assert page.data["layers"]
    assert {path.name for path in folder.iterdir()} == before | {"report.html"}
    (scene,) = scenes_of(folder, tomogram=packed)
    assert scene.image == packed
    assert list(elsewhere.iterdir()) == []


def test_the_voxel_spacing_that_a_run_was_told_is_shown_not_the_headers(tmp_path):
    output = write_run(tmp_path)
    plan = output / ".deepict-dask/plan.json"
    facts = json.loads(plan.read_text()) | {"spacings": {"TS_1": 2 * SPACING}}
    plan.write_text(json.dumps(facts))
    assert f"{2 * SPACING:g} Å" in Page(write_report(output)).text
    (scene,) = scenes_of(output)
    assert scene.voxel_spacing_angstrom == 2 * SPACING


def test_a_target_in_a_models_card_is_drawn(tmp_path):
    frequency = (np.arange(1, 20) / (48 * SPACING)).tolist()
    target = {"frequency_per_angstrom": frequency, "intensity": (1 / np.arange(1, 20)).tolist()}
    said = {"target": target, "cutoff": None, "smoothing": 0.0, "compat": None}
    model = tmp_path / "m.safetensors"
    save_model(
        model, UNet3D(UNet3DSettings(1, 1, 1)), class_names=["a"], voxel_spacing_angstrom=SPACING,
        card={"equalization": said},
    )  # fmt: skip
    output = write_run(tmp_path, config={"equalize": {"target": str(model)}})
    text = Page(write_report(output)).text
    assert "tomogram equalized target" in text
    assert "the target spectrum is not shown" not in text


def test_a_tomogram_that_is_not_there_is_refused(tmp_path, run):
    for folder in (write_picks(tmp_path / "picks"), run):
        with pytest.raises(ConfigError, match=r"--tomogram .*nix\.mrc: expected a tomogram"):
            write_report(folder, tomogram=tmp_path / "nix.mrc")


def test_picks_whose_lists_are_gone_are_not_done(tmp_path, caplog):
    folder = write_picks(tmp_path / "picks")
    for name in ("picks.csv", "clusters.parquet"):
        (folder / name).unlink()
    page = Page(write_report(folder))
    assert "picks.csv and clusters.parquet are gone" in page.text
    assert "picks.csv and clusters.parquet are gone" in caplog.text
    assert "Errno" not in page.text
    badges = [attrs["class"] for attrs in page.all("span") if "badge" in attrs.get("class", "")]
    assert "badge done" not in badges
    assert "badge failed" in badges


def test_picks_whose_list_alone_is_gone_say_so_in_words(tmp_path):
    folder = write_picks(tmp_path / "picks")
    (folder / "picks.csv").unlink()
    page = Page(write_report(folder, tomogram=write_volume(tmp_path / "t.zarr", volume())))
    assert f"picks are not drawn: {folder / 'picks.csv'} is gone" in page.text
    assert "Errno" not in page.text


def test_a_tomogram_cannot_be_given_for_several(tmp_path):
    run = write_dataset(tmp_path, ["A", "B"])
    with pytest.raises(ConfigError, match="--tomogram: expected a folder of picks"):
        write_report(run, tomogram=tmp_path / "t.mrc")


def test_a_damaged_record_spoils_its_own_picks_only(run):
    (run / "TS_1" / "picks_ribosome" / "run.json").write_text("{")
    page = Page(write_report(run))
    assert "picks_ribosome: not shown" in page.text
    assert [one["kind"] for one in page.data["layers"]] == ["region"]


def test_a_target_by_place_is_not_drawn_beside_frequencies(tmp_path):
    from deepict_dask.core.spectrum import Spectrum
    from deepict_dask.io.spectrum import write_spectrum

    target = write_spectrum(tmp_path / "by_place.tsv", Spectrum((2.0, 1.0)))
    run = write_run(tmp_path, config={"equalize": {"target": str(target)}})
    assert "it is by place, as DeePiCt writes it" in Page(write_report(run)).text
