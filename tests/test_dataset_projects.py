"""Which tomograms a project names: deposits, RELION, copick, the CryoET Data Portal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from source_scenes import (
    REC,
    RELION,
    by_name,
    make_copick,
    make_empiar,
    make_portal,
    mrc,
    names,
    star,
    touch,
    zarr,
)

from deepict_dask.core.errors import ConfigError
from deepict_dask.io.dataset import read_dataset
from deepict_dask.jobs.list_dataset import list_dataset


@pytest.fixture
def empiar(tmp_path):
    return make_empiar(tmp_path)


@pytest.fixture
def copick(tmp_path):
    return make_copick(tmp_path)


@pytest.fixture
def portal(tmp_path):
    return make_portal(tmp_path)


# ---------------------------------------------------------------- EMPIAR


def test_an_empiar_entry_gives_tomograms_labels_and_lists_by_name(empiar):
    found = by_name(empiar)
    assert sorted(found) == ["DEF_TS_001", "DEF_TS_01", "VPP_TS_001", "VPP_TS_01"]
    first = found["DEF_TS_001"]
    assert first.path == empiar / "DEF" / "tomograms" / "TS_001.rec"
    assert first.files == {
        "membranes": empiar / "DEF" / "labels" / "TS_001_membranes.mrc",
        "labels": empiar / "DEF" / "labels" / "180426_TS_001.labels.mrc",
    }
    assert set(found["VPP_TS_01"].files) == {"membranes", "cytosol"}
    assert {name: [p.name for p in paths] for name, paths in first.picks.items()} == {
        "cyto_ribosomes": ["TS_001_cyto_ribosomes.csv"], "fas": ["TS_001_fas.csv"],
    }  # fmt: skip
    assert first.kind == "EMPIAR"


def test_labels_of_no_tomogram_are_named(empiar):
    assert any("TS_999_cytosol.mrc" in note for note in read_dataset(empiar).notes)


def test_names_do_not_change_when_more_of_a_deposit_is_fetched(empiar):
    before = by_name(empiar)
    for path in (empiar / "VPP").rglob("*"):
        if path.is_file():
            path.unlink()
    after = by_name(empiar)
    assert set(after) == {name for name in before if name.startswith("DEF")}


def test_one_set_of_a_deposit_and_a_data_folder_above_it_are_understood(empiar):
    assert sorted(names(empiar / "DEF")) == ["TS_001", "TS_01"]
    empiar.rename(empiar.parent / "data")
    assert "VPP_TS_01" in names(empiar.parent)


def test_tomograms_alone_are_a_plain_folder(empiar):
    assert read_dataset(empiar / "DEF" / "tomograms").kind == "folder"


# ---------------------------------------------------------------- RELION


def test_a_relion_project_gives_paths_from_its_root_and_the_spacing_of_the_star(tmp_path):
    rows = [(name, 1.724, 8.12065, REC.format(name)) for name in ("TS_1", "TS_2")]
    for *_, path in rows:
        mrc(tmp_path / path, spacing=1.0)
    path = star(tmp_path / "Tomograms" / "job009" / "tomograms.star", rows, RELION)
    found = by_name(path)
    assert [entry.path for entry in found.values()] == [tmp_path / row[-1] for row in rows]
    assert [e.voxel_spacing_angstrom for e in found.values()] == pytest.approx([14.0] * 2, 1e-5)
    assert names(path.parent) == ["TS_1", "TS_2"]  # the folder of the job
    (odd,) = {text for row in list_dataset(path).rows for text in row.odd if "header" in text}
    assert "1 Å" in odd
    assert "14 Å" in odd


def test_real_tomograms_star_files_are_understood(real_files):
    rows = by_name(real_files / "star" / "r5_project_tomograms.star")
    assert len(rows) == 10
    assert rows["tomo200528_100"].voxel_spacing_angstrom == pytest.approx(1.724 * 8.12065, 1e-5)
    halves = real_files / "star" / "R5_tutorial_run_tomograms.star"
    with pytest.raises(ConfigError, match="found half1, half2; say which"):
        names(halves)
    found = by_name(f"{halves}#half2")
    assert set(found) == {"TS_01", "TS_03", "TS_43", "TS_45", "TS_54"}
    assert found["TS_01"].voxel_spacing_angstrom == 10.0
    assert set(found["TS_01"].files) == {"half1"}


@pytest.mark.parametrize("name", ["warp2_matching_tomograms.star", "relion_3.0.star"])
def test_a_star_without_tomograms_is_refused_with_the_column_it_lacks(real_files, name):
    with pytest.raises(ConfigError, match="rlnTomoReconstructedTomogram, found rln"):
        names(real_files / "star" / name)


def test_two_reconstructions_must_be_chosen_from(tmp_path):
    columns = (*RELION, "rlnTomoReconstructedTomogramDenoised")
    path = star(
        tmp_path / "tomograms.star",
        [("TS_1", 1.0, 10.0, "a.mrc", "d.mrc"), ("TS_2", 1.0, 10.0, "b.mrc", "N/A")],
        columns,
    )
    with pytest.raises(ConfigError, match="found 2 of TS_1: denoised, reconstructed"):
        names(path)
    found = read_dataset(Path(f"{path}#denoised"))
    assert [(e.name, e.path.name) for e in found.entries] == [("TS_1", "d.mrc")]
    assert any("TS_2" in text for text in found.warnings)


def test_a_star_of_only_denoised_tomograms_needs_no_choice(tmp_path):
    columns = ("rlnTomoName", "rlnTomoReconstructedTomogramDenoised",
               "rlnTomoReconstructedTomogramHalf1")  # fmt: skip
    path = star(tmp_path / "tomograms.star", [("TS_1", "d.mrc", "h.mrc")], columns)
    (entry,) = read_dataset(path).entries
    assert (entry.path.name, entry.voxel_spacing_angstrom) == ("d.mrc", None)


def test_one_name_twice_in_a_star_and_text_that_is_none_are_refused(tmp_path):
    twice = star(tmp_path / "a.star", [("TS_1", "a.mrc"), ("TS_1", "b.mrc")])
    with pytest.raises(ConfigError, match="two of TS_1"):
        names(twice)
    with pytest.raises(ConfigError, match="expected"):
        names(touch(tmp_path / "b.star", "not a star file"))


# ---------------------------------------------------------------- copick


def test_a_copick_project_gives_runs_segmentations_and_picks(copick):
    found = by_name(copick)
    assert sorted(found) == ["TS_1", "TS_2"]
    first = found["TS_1"]
    folder = copick / "ExperimentRuns" / "TS_1"
    assert first.path == folder / "VoxelSpacing10.000" / "wbp.zarr"
    assert first.voxel_spacing_angstrom == 10.0
    assert first.files == {
        "membrane": folder / "Segmentations" / "10.000_bob_1_membrane.zarr",
        "all": folder / "Segmentations" / "10.000_bob_1_all-multilabel.zarr",
    }


def test_lists_of_one_object_keep_user_and_session_in_all_runs_where_one_has_two(copick):
    lists = copick / "ExperimentRuns" / "TS_2" / "Picks"
    touch(lists / "bob_1_fas.json", "{}")
    (lists / "ann_2_ribosome.json").unlink()
    found = by_name(copick)
    assert {name: [path.name for path in paths] for name, paths in found["TS_1"].picks.items()} == {
        "ann_2_ribosome": ["ann_2_ribosome.json"], "bob_1_ribosome": ["bob_1_ribosome.json"],
    }  # fmt: skip
    assert set(found["TS_2"].picks) == {"bob_1_ribosome", "fas"}


def test_two_segmentations_of_one_name_keep_user_and_session(copick):
    zarr(copick / "ExperimentRuns" / "TS_1" / "Segmentations" / "10.000_ann_2_membrane.zarr")
    assert set(by_name(copick)["TS_1"].files) == {"all", "bob_1_membrane", "ann_2_membrane"}


@pytest.mark.parametrize("text", ["local://{}", "{}", "file://{}", "project"])
def test_a_copick_config_leads_to_its_folder(copick, text):
    content = {"name": "p", "overlay_root": text.format(copick), "pickable_objects": []}
    config = touch(copick.parent / "copick_config.json", json.dumps(content))
    assert names(config) == ["TS_1", "TS_2"]
    assert read_dataset(copick.parent).kind == "copick"  # the folder of the config


def test_overlay_and_static_roots_are_read_together(copick):
    overlay = copick.parent / "overlay"
    touch(overlay / "ExperimentRuns" / "TS_1" / "Picks" / "eve_1_fas.json", "{}")
    config = touch(
        copick.parent / "c.json",
        json.dumps({"overlay_root": str(overlay), "static_root": f"local://{copick}"}),
    )
    assert set(by_name(config)["TS_1"].picks) == {"ann_2_ribosome", "bob_1_ribosome", "fas"}


def test_roots_on_a_server_are_refused_or_left_out_aloud(copick):
    remote = {"overlay_root": "ssh:///hpc/overlay", "dataset_ids": [10301]}
    config = touch(copick.parent / "c.json", json.dumps(remote))
    with pytest.raises(ConfigError, match="ssh:///hpc/overlay"):
        names(config)
    touch(config, json.dumps({**remote, "static_root": str(copick)}))
    assert any("ssh:///hpc/overlay" in note for note in read_dataset(config).notes)


def test_several_tomograms_of_a_copick_run_must_be_chosen_from(copick):
    zarr(copick / "ExperimentRuns" / "TS_2" / "VoxelSpacing10.000" / "denoised.zarr")
    zarr(copick / "ExperimentRuns" / "TS_2" / "VoxelSpacing20.000" / "wbp.zarr", scale=20.0)
    labels = "10.000/denoised, 10.000/wbp, 20.000/wbp"
    with pytest.raises(ConfigError, match=f"found 3 of TS_2: {labels}; say which"):
        names(copick)
    assert names(f"{copick}#10/wbp") == ["TS_1", "TS_2"]
    assert names(f"{copick}#VoxelSpacing20.000") == ["TS_2"]
    found = read_dataset(Path(f"{copick}#denoised"))
    assert [entry.path.name for entry in found.entries] == ["denoised.zarr"]
    assert found.warnings == ("left out, without denoised: TS_1",)
    with pytest.raises(ConfigError, match="expected one tomogram of each run"):
        names(f"{copick}#wbp")
    with pytest.raises(ConfigError, match="expected tomograms with isonet in 2 runs"):
        names(f"{copick}#isonet")


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}'])
def test_a_json_that_is_no_copick_config_is_refused(tmp_path, text):
    with pytest.raises(ConfigError, match="copick"):
        names(touch(tmp_path / "x.json", text))


# ---------------------------------------------------------------- CryoET Data Portal


def test_a_portal_folder_gives_one_tomogram_per_run_the_zarr_one(portal):
    found = by_name(portal)
    assert list(found) == ["TS_026", "TS_027"]
    home = portal / "TS_026" / "Reconstructions" / "VoxelSpacing13.480"
    assert found["TS_026"].path == home / "Tomograms" / "100" / "TS_026.zarr"
    assert found["TS_026"].voxel_spacing_angstrom == 13.48
    assert found["TS_026"].files == {
        "membrane": home / "Annotations" / "114" / "membrane-1.0_segmentationmask.zarr"
    }
    assert [path.name for path in found["TS_026"].picks["cytosolic_ribosome"]] == [
        "cytosolic_ribosome-1.0_orientedpoint.ndjson"
    ]


def test_two_annotations_of_one_object_keep_number_and_shape(portal):
    home = portal / "TS_026" / "Reconstructions" / "VoxelSpacing13.480" / "Annotations"
    touch(home / "130" / "cytosolic_ribosome-1.0_point.ndjson")
    found = by_name(portal)
    (number,) = {path.parent.name for path in home.glob("*/*_orientedpoint.ndjson")}
    assert set(found["TS_026"].picks) == {
        f"cytosolic_ribosome_{number}_orientedpoint", "cytosolic_ribosome_130_point"
    }  # fmt: skip


def test_one_run_and_several_data_sets_of_the_portal_are_understood(portal):
    assert names(portal / "TS_027") == ["TS_027"]
    assert names(portal.parent) == ["10000_TS_026", "10000_TS_027"]


def test_tomograms_of_the_portal_are_chosen_by_number_or_processing(portal):
    home = portal / "TS_026" / "Reconstructions" / "VoxelSpacing13.480" / "Tomograms"
    zarr(home / "101" / "TS_026.zarr")
    touch(home / "101" / "tomogram_metadata.json", '{"processing": "denoised"}')
    with pytest.raises(ConfigError, match=r"found 2 of TS_026: 13\.480/100/raw, 13\.480/101"):
        names(portal)
    assert by_name(f"{portal}#denoised")["TS_026"].path.parent.name == "101"
    assert by_name(f"{portal}#13.48/100")["TS_026"].path.parent.name == "100"
    assert len(names(f"{portal}#raw")) == 2


def test_the_portals_layout_before_2025_is_understood(tmp_path):
    home = tmp_path / "10001" / "TS_1" / "Tomograms" / "VoxelSpacing13.480"
    zarr(home / "CanonicalTomogram" / "TS_1.zarr")
    touch(home / "Annotations" / "101-cytosolic_ribosome-1.0_point.ndjson")
    (entry,) = read_dataset(tmp_path / "10001").entries
    assert entry.path == home / "CanonicalTomogram" / "TS_1.zarr"
    assert set(entry.picks) == {"cytosolic_ribosome"}


def test_portal_runs_without_tomograms_are_an_error(tmp_path):
    (tmp_path / "TS_1" / "Reconstructions" / "VoxelSpacing10.000" / "Annotations").mkdir(
        parents=True
    )
    with pytest.raises(ConfigError, match="found no tomogram"):
        names(tmp_path)
