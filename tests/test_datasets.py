"""Which tomograms a source names: each kind of source as other programs leave it on disk."""

from __future__ import annotations

import bz2
import gzip
import json
import logging
import os
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from typer.testing import CliRunner

from deepict_dask.cli import app
from deepict_dask.core.errors import ConfigError
from deepict_dask.io.dataset import list_tomograms, read_dataset
from deepict_dask.jobs.list_dataset import dataset_lines, list_dataset

SHAPE = (3, 4, 5)


def mrc(path, spacing=13.48, shape=SHAPE):
    path.parent.mkdir(parents=True, exist_ok=True)
    mrcfile.write(path, np.zeros(shape, "int8"), voxel_size=spacing, overwrite=True)
    return path


def zarr(path, scale=10.0, shape=SHAPE):
    """An OME-Zarr 0.4 image as copick and the portal write it, its one chunk left out."""
    (path / "0").mkdir(parents=True)
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    axes = [{"name": axis, "type": "space", "unit": "angstrom"} for axis in "zyx"]
    steps = [{"type": "scale", "scale": [scale] * 3}]
    image = {
        "axes": axes, "version": "0.4",
        "datasets": [{"path": "0", "coordinateTransformations": steps}],
    }  # fmt: skip
    (path / ".zattrs").write_text(json.dumps({"multiscales": [image]}))
    array = {
        "zarr_format": 2, "shape": list(shape), "chunks": list(shape), "dtype": "|u1",
        "compressor": None, "fill_value": 0, "order": "C", "filters": None,
        "dimension_separator": "/",
    }  # fmt: skip
    (path / "0" / ".zarray").write_text(json.dumps(array))
    return path


def touch(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def names(source):
    return [entry.name for entry in read_dataset(Path(source)).entries]


def by_name(source):
    return {entry.name: entry for entry in read_dataset(Path(source)).entries}


def run(*words):
    """Run the command; return what it printed and the error that `main` would show."""
    return CliRunner().invoke(app, ["dataset", "list", *map(str, words)])


def star(path, rows, columns=("rlnTomoName", "rlnTomoReconstructedTomogram")):
    heads = "\n".join(f"_{column} #{number}" for number, column in enumerate(columns, 1))
    lines = "\n".join("  ".join(map(str, row)) for row in rows)
    return touch(path, f"\n# version 50001\n\ndata_global\n\nloop_\n{heads}\n{lines}\n\n")


# ---------------------------------------------------------------- volumes, folders, patterns


def test_a_volume_is_one_tomogram_called_by_its_name(tmp_path):
    assert names(mrc(tmp_path / "TS_001.rec")) == ["TS_001"]


def test_a_zarr_store_is_one_tomogram_whatever_is_in_it(tmp_path):
    assert names(zarr(tmp_path / "TS_001.zarr")) == ["TS_001"]


def test_a_volume_without_a_known_ending_is_known_by_its_first_bytes(tmp_path):
    mrc(tmp_path / "a.mrc").rename(tmp_path / "tomogram")
    assert names(tmp_path / "tomogram") == ["tomogram"]


def test_a_folder_gives_all_volumes_below_it_and_nothing_else(tmp_path):
    mrc(tmp_path / "b" / "deep" / "TS_2.rec")
    mrc(tmp_path / "a.mrc")
    zarr(tmp_path / "b" / "TS_3.zarr")
    touch(tmp_path / "notes.txt")
    touch(tmp_path / "b" / "._TS_2.rec")
    found = read_dataset(tmp_path)
    assert sorted(entry.name for entry in found.entries) == ["TS_2", "TS_3", "a"]
    assert found.kind == "folder"
    assert any("*.txt" in note and "notes.txt" in note for note in found.notes)


def test_arrays_inside_a_zarr_store_are_no_tomograms(tmp_path):
    zarr(tmp_path / "TS_3.zarr")
    for pattern in ("", "**", "**/*", "*"):
        assert names(tmp_path / pattern) == ["TS_3"]
    with pytest.raises(ConfigError, match="found none"):
        names(tmp_path / "*/*")


def test_tilt_series_are_left_out_of_a_folder_aloud_but_taken_by_a_pattern(tmp_path):
    mrc(tmp_path / "TS_1.st")
    mrc(tmp_path / "TS_1.rec")
    found = read_dataset(tmp_path)
    assert [entry.path.name for entry in found.entries] == ["TS_1.rec"]
    assert any("tilt series" in text and "TS_1.st" in text for text in found.warnings)
    assert [e.path.name for e in read_dataset(tmp_path / "*.st").entries] == ["TS_1.st"]


def test_results_of_a_run_inside_the_folder_are_no_tomograms(tmp_path):
    mrc(tmp_path / "TS_1.rec")
    touch(tmp_path / "results" / "TS_1" / "stages.json", "{}")
    zarr(tmp_path / "results" / "TS_1" / "scores_model.zarr")
    zarr(tmp_path / "converted.zarr.partial")
    assert names(tmp_path) == ["TS_1"]


def test_a_pattern_crosses_folders_with_two_stars_only(tmp_path):
    for place in ("a/TS_1.rec", "a/b/TS_2.rec", "TS_3.rec", "a/b/TS_4.mrc"):
        mrc(tmp_path / place)
    assert names(tmp_path / "*.rec") == ["TS_3"]
    assert names(tmp_path / "*/*.rec") == ["TS_1"]
    assert sorted(names(tmp_path / "**/*.rec")) == ["TS_1", "TS_2", "TS_3"]
    assert sorted(names(tmp_path / "a/**")) == ["TS_1", "TS_2", "TS_4"]
    assert names(tmp_path / "**/TS_[24].mrc") == ["TS_4"]


def test_a_folder_of_2000_volumes_is_found_as_os_walk_finds_it(tmp_path):
    for number in range(2000):
        touch(tmp_path / f"g{number % 7}" / f"TS_{number:04}.rec")
    expected = {f for _, _, files in os.walk(tmp_path) for f in files}
    assert {f"{name}.rec" for name in names(tmp_path)} == expected


def test_linked_folders_are_visited_once_even_in_a_circle(tmp_path):
    mrc(tmp_path / "a" / "TS_1.rec")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "z").symlink_to(tmp_path / "a")
    assert names(tmp_path) == ["TS_1"]
    assert names(tmp_path / "**/*.rec") == ["TS_1"]


def test_files_of_one_name_in_several_folders_get_their_folders_names(tmp_path):
    for place in ("day1/t.mrc", "day2/t.mrc", "day2/other.mrc"):
        mrc(tmp_path / place)
    found = read_dataset(tmp_path)
    assert {e.name: str(e.path.relative_to(tmp_path)) for e in found.entries} == {
        "day1_t": "day1/t.mrc", "day2_t": "day2/t.mrc", "other": "day2/other.mrc",
    }  # fmt: skip
    assert any("longer names" in note for note in found.notes)


def test_dots_count_where_they_tell_files_apart(tmp_path):
    for name in ("bin4_13.48A.mrc", "bin4_13.50A.mrc", "TS_1.5.rec"):
        mrc(tmp_path / name)
    assert sorted(names(tmp_path)) == ["TS_1", "bin4_13.48A", "bin4_13.50A"]


def test_one_name_twice_in_a_folder_is_refused_with_both_files(tmp_path):
    mrc(tmp_path / "t.mrc")
    mrc(tmp_path / "t.rec")
    with pytest.raises(ConfigError, match=r"two of t: .*t\.mrc and .*t\.rec"):
        names(tmp_path)


@pytest.mark.parametrize("name", ["my tomo.mrc", "täst#1.mrc", "tomo[1].mrc", "a'b.mrc"])
def test_weird_names_are_names(tmp_path, name):
    mrc(tmp_path / name)
    (entry,) = read_dataset(tmp_path / name).entries
    assert entry.path.exists()
    assert names(tmp_path) == [name.split(".")[0]]


def test_an_empty_folder_says_what_was_looked_for(tmp_path):
    with pytest.raises(ConfigError, match=r"found none.*ExperimentRuns.*Reconstructions"):
        names(tmp_path)


@pytest.mark.parametrize("name", ["absent", "absent.txt", "notes.md", "*.rec", "absent/*.rec"])
def test_what_is_no_source_is_refused_in_one_message(tmp_path, name):
    touch(tmp_path / "notes.md", "# notes")
    with pytest.raises(ConfigError, match=r"looked for a volume, a pattern"):
        names(tmp_path / name)


def test_a_choice_where_there_is_none_is_refused(tmp_path):
    mrc(tmp_path / "t.mrc")
    for source in (f"{tmp_path}#raw", f"{tmp_path}/t.mrc#raw"):
        with pytest.raises(ConfigError, match="found #raw"):
            names(source)


# ---------------------------------------------------------------- tables


def test_our_csv_and_yaml_tables_mean_the_same(tmp_path):
    mrc(tmp_path / "t" / "a.mrc")
    touch(tmp_path / "t.csv", "name,tomogram,lamella,picks_fas,voxel_spacing_angstrom\n"
                              "A,t/a.mrc,t/l.mrc,fas.csv,10\nB,t/b.mrc,,,\n")  # fmt: skip
    touch(tmp_path / "t.yaml",
          "- {name: A, tomogram: t/a.mrc, lamella: t/l.mrc, picks_fas: fas.csv, "
          "voxel_spacing_angstrom: 10}\n- name: B\n  tomogram: t/b.mrc\n")  # fmt: skip
    first, second = by_name(tmp_path / "t.csv"), by_name(tmp_path / "t.yaml")
    assert first == second
    assert list(first) == ["A", "B"]
    assert first["A"].path == tmp_path / "t" / "a.mrc"
    assert first["A"].file_of("lamella") == tmp_path / "t" / "l.mrc"
    assert first["A"].picks == {"fas": (tmp_path / "fas.csv",)}
    assert first["A"].voxel_spacing_angstrom == 10.0
    assert first["B"].file_of("lamella") is None
    assert first["B"].voxel_spacing_angstrom is None


def test_a_deepict_table_is_read_as_pandas_reads_it(tmp_path):
    import pandas as pd

    frame = pd.DataFrame({
        "tomo_name": ["TS_001", "TS_002"], "tomo": ["tomos/1.rec", "tomos/2.rec"],
        "filtered_tomo": ["tomos/f1.mrc", np.nan], "no_mask": [np.nan, np.nan],
        "lamella": ["masks/1.mrc", np.nan], "ribo_motl": ["m/1.csv", np.nan],
    })  # fmt: skip
    frame.to_csv(tmp_path / "metadata.csv", index=False)
    found = by_name(tmp_path / "metadata.csv")
    assert [e.path for e in found.values()] == [tmp_path / name for name in frame["tomo"]]
    assert set(found["TS_001"].files) == {"filtered_tomo", "lamella", "ribo_motl"}
    assert found["TS_001"].picks == {"ribo": (tmp_path / "m/1.csv",)}
    assert found["TS_002"].files == {}
    assert {entry.kind for entry in found.values()} == {"DeePiCt table"}


def test_a_column_is_chosen_and_rows_without_it_are_left_out_aloud(tmp_path):
    table = touch(tmp_path / "m.csv", "tomo_name,tomo,eq\na,1.rec,e1.mrc\nb,2.rec,\n")
    found = read_dataset(Path(f"{table}#eq"))
    assert [entry.path.name for entry in found.entries] == ["e1.mrc"]
    assert any("rows 2" in text for text in found.warnings)


def test_a_deepict_table_without_tomo_says_how_to_choose(tmp_path):
    table = touch(tmp_path / "m.csv", "tomo_name,no_mask,filtered_tomo\na,,1.rec\n")
    with pytest.raises(ConfigError, match=rf"column tomo.*{table}#filtered_tomo"):
        names(table)
    assert names(f"{table}#filtered_tomo") == ["a"]


def test_a_2d_table_of_deepict_takes_names_from_id_or_file(tmp_path):
    table = touch(tmp_path / "m.csv", "data,labels,flip_y,id\nx/a.b.mrc,,0,\nx/c.mrc,,0,two\n")
    assert names(table) == ["a.b", "two"]


def test_paths_of_a_deepict_table_count_from_here_where_the_tomograms_are_here(
    tmp_path, monkeypatch
):
    mrc(tmp_path / "tomos" / "1.rec")
    table = touch(tmp_path / "config" / "m.csv", "tomo_name,tomo\na,tomos/1.rec\n")
    monkeypatch.chdir(tmp_path)
    found = read_dataset(table)
    assert found.entries[0].path.exists()
    assert any(str(tmp_path) in note for note in found.notes)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "name,path\na,b.mrc\n", "expected the columns name and tomogram"),
        ("t.csv", "name;tomogram\na;b.mrc\n", "separated by commas"),
        ("t.csv", "", "found nothing"),
        ("t.csv", "name,tomogram\n", "at least one tomogram"),
        ("t.csv", "name,tomogram\n,b.mrc\n", "a name and a tomogram in every row"),
        ("t.csv", "name,tomogram\na,b.mrc\na,c.mrc\n", "found two of a"),
        ("t.csv", "tomo_name,tomo\na,b.mrc\na,c.mrc\n", "found two of a"),
        ("t.csv", "name,tomogram\n../a,b.mrc\n", "names for folders"),
        ("t.csv", "name,tomogram\n/etc/a,b.mrc\n", "names for folders"),
        ("t.csv", "name,tomogram\n.,b.mrc\n", "names for folders"),
        ("t.csv", "name,tomogram,voxel_spacing_angstrom\na,b.mrc,-1\n", "positive number"),
        ("t.csv", "name,tomogram,voxel_spacing_angstrom\na,b.mrc,big\n", "positive number"),
        ("t.yaml", "tomograms: a\noutput: b\n", "one mapping with the keys tomograms, output"),
        ("t.yaml", "- name: 001\n  tomogram: a.mrc\n", "row 1: name: expected text, found 1"),
        ("t.yaml", "- [a\n", "expected a table"),
        ("t.yaml", "", "found nothing"),
    ],
)
def test_a_broken_table_is_refused_by_what_is_wrong(tmp_path, name, text, message):
    with pytest.raises(ConfigError, match=message):
        names(touch(tmp_path / name, text))


# ---------------------------------------------------------------- EMPIAR


@pytest.fixture
def empiar(tmp_path):
    """What `fetch EMPIAR-10988` leaves behind, with the names of that entry."""
    root = tmp_path / "10988"
    for part in ("DEF", "VPP"):
        for name in ("TS_001", "TS_01"):
            mrc(root / part / "tomograms" / f"{name}.rec")
            mrc(root / part / "labels" / f"{name}_membranes.mrc")
            touch(root / part / "particle_lists" / f"{name}_cyto_ribosomes.csv", "1,2,3\n")
            touch(root / part / "particle_lists" / f"{name}_fas.csv", "1,2,3\n")
    mrc(root / "DEF" / "labels" / "180426_TS_001.labels.mrc")
    mrc(root / "VPP" / "labels" / "TS_01_cytosol.mrc")
    mrc(root / "VPP" / "labels" / "TS_999_cytosol.mrc")
    touch(root / "VPP" / "metadata" / "TS_001.rawtlt", "0\n")
    return root


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

RELION = (
    "rlnTomoName", "rlnTomoTiltSeriesPixelSize", "rlnTomoTomogramBinning",
    "rlnTomoReconstructedTomogram",
)  # fmt: skip
REC = "Tomograms/job009/tomograms/rec_{}.mrc"


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


@pytest.fixture
def copick(tmp_path):
    """A project as copick 1.27 lays it out, overlay and static in one folder."""
    root = tmp_path / "project"
    for run_name in ("TS_1", "TS_2"):
        folder = root / "ExperimentRuns" / run_name
        zarr(folder / "VoxelSpacing10.000" / "wbp.zarr", scale=10.012)
        zarr(folder / "VoxelSpacing10.000" / "wbp_sobel_features.zarr")
        zarr(folder / "Segmentations" / "10.000_bob_1_membrane.zarr")
        zarr(folder / "Segmentations" / "10.000_bob_1_all-multilabel.zarr")
        zarr(folder / "Segmentations" / "20.000_bob_1_nucleus.zarr")
        touch(folder / "Picks" / "bob_1_ribosome.json", "{}")
        touch(folder / "Picks" / "ann_2_ribosome.json", "{}")
    return root


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
    assert [path.name for path in first.picks["ribosome"]] == [
        "ann_2_ribosome.json", "bob_1_ribosome.json",
    ]  # fmt: skip


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
    assert set(by_name(config)["TS_1"].picks) == {"ribosome", "fas"}


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


@pytest.fixture
def portal(tmp_path):
    """A data set as the portal's bucket has it."""
    root = tmp_path / "10000"
    for run_name in ("TS_026", "TS_027"):
        home = root / run_name / "Reconstructions" / "VoxelSpacing13.480"
        zarr(home / "Tomograms" / "100" / f"{run_name}.zarr", scale=1.0)
        mrc(home / "Tomograms" / "100" / f"{run_name}.mrc")
        touch(home / "Tomograms" / "100" / "tomogram_metadata.json", '{"processing": "raw"}')
        zarr(home / "Annotations" / "114" / "membrane-1.0_segmentationmask.zarr")
        mrc(home / "Annotations" / "114" / "membrane-1.0_segmentationmask.mrc")
        touch(home / "Annotations" / "114" / "membrane-1.0.json", "{}")
        touch(home / "Annotations" / "101" / "cytosolic_ribosome-1.0_orientedpoint.ndjson")
        mrc(root / run_name / "TiltSeries" / "100" / f"{run_name}.mrc")
    return root


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


# ---------------------------------------------------------------- dataset list


def test_the_list_shows_shape_spacing_files_and_picks(empiar):
    result = run(empiar)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == f"{empiar}: EMPIAR, 4 tomograms"
    row = next(line for line in lines if line.startswith("VPP_TS_01 "))
    assert " ".join(row.split()) == (
        f"VPP_TS_01 3 4 5 13.48 cytosol membranes cyto_ribosomes fas "
        f"{empiar}/VPP/tomograms/TS_01.rec"
    )


def test_the_list_as_json_is_read_back(copick):
    found = json.loads(run(copick, "--json").stdout)
    assert found["kind"] == "copick"
    first = found["tomograms"][0]
    assert (first["name"], first["shape"], first["readable"]) == ("TS_1", [3, 4, 5], True)
    assert (first["voxel_spacing_angstrom"], first["header_spacing_angstrom"]) == (10.0, 10.012)
    assert set(first["picks"]) == {"ribosome"}
    assert first["odd"] == []


def test_the_list_names_what_is_odd(tmp_path):
    mrc(tmp_path / "a.mrc", spacing=0.0)
    mrc(tmp_path / "b.mrc", spacing=10.0)
    mrc(tmp_path / "c.mrc", spacing=13.48)
    mrc(tmp_path / "d.mrc", spacing=13.48)
    mrc(tmp_path / "e.mrc", spacing=13.9)  # 3 %: nothing to speak of
    (tmp_path / "f.mrc").symlink_to(tmp_path / "c.mrc")
    touch(tmp_path / "t.csv", "name,tomogram,mask,weight,voxel_spacing_angstrom\n" + "".join(
        f"{name},{name}.mrc,{mask},0.5,{spacing}\n"
        for name, mask, spacing in [("a", "", ""), ("b", "no.mrc", ""), ("c", "d.mrc", ""),
                                    ("d", "", "20"), ("e", "", "13.48"), ("f", "", "")]
    ))  # fmt: skip
    report = list_dataset(tmp_path / "t.csv")
    odd = {row.entry.name: " | ".join(row.odd) for row in report.rows}
    assert odd["a"] == "the file gives no voxel spacing"
    assert odd["b"] == f"mask: no such file: {tmp_path / 'no.mrc'}"
    assert odd["c"] == ""
    assert odd["d"] == "the header says 13.48 Å, the source 20 Å, which is used"
    assert odd["e"] == ""
    assert odd["f"] == "the same file as c"
    assert any("most have about 13.48 Å" in note and "b (10 Å)" in note for note in report.notes)
    assert run(tmp_path / "t.csv").exit_code == 0


def test_the_same_oddity_of_many_tomograms_is_one_line(tmp_path):
    for number in range(5):
        mrc(tmp_path / f"t{number}.mrc", spacing=0.0)
    (line,) = [text for text in dataset_lines(list_dataset(tmp_path)) if text.startswith("odd")]
    assert line == "odd: t0, t1, t2 and 2 more: the file gives no voxel spacing"


@pytest.mark.parametrize("breakage", ["dead link", "truncated", "empty", "store"])
def test_a_tomogram_that_cannot_be_read_is_listed_and_ends_with_1(tmp_path, breakage):
    mrc(tmp_path / "good.mrc")
    if breakage == "dead link":
        (tmp_path / "bad.mrc").symlink_to(tmp_path / "gone.mrc")
    elif breakage == "store":
        (tmp_path / "bad.zarr" / "0").mkdir(parents=True)
    else:
        whole = mrc(tmp_path / "bad.mrc").read_bytes()
        (tmp_path / "bad.mrc").write_bytes(b"" if breakage == "empty" else whole[:-7])
    result = run(tmp_path)
    assert result.exit_code == 1
    assert result.exception.exit_code == 1
    assert "1 of 2 tomograms cannot be read" in str(result.exception)
    rows = {row.entry.name: row for row in list_dataset(tmp_path).rows}
    assert rows["good"].is_readable
    assert rows["bad"].odd[0].startswith(f"cannot be read: {tmp_path / 'bad'}")


def test_a_source_that_is_not_understood_ends_with_2(tmp_path):
    result = run(tmp_path)
    assert isinstance(result.exception, ConfigError)
    assert result.exception.exit_code == 2
    assert result.stdout == ""


def test_packed_tomograms_are_listed_without_unpacking_them(tmp_path):
    packed = tmp_path / "t.mrc.gz"
    packed.write_bytes(gzip.compress(mrc(tmp_path / "t.mrc").read_bytes()))
    (tmp_path / "t.mrc").unlink()
    with packed.open("r+b") as file:
        file.truncate(packed.stat().st_size - 9)  # the end is not read
    (row,) = list_dataset(tmp_path).rows
    assert (row.shape, row.voxel_spacing_angstrom) == (SHAPE, 13.48)
    packed.write_bytes(b"\x1f\x8b broken")
    assert "breaks off" in list_dataset(tmp_path).rows[0].odd[0]


def test_packed_tomograms_of_other_formats_are_listed_too(tmp_path):
    import emfile

    emfile.write(str(tmp_path / "t.em"), np.zeros(SHAPE, "float32"))
    (tmp_path / "t.em.bz2").write_bytes(bz2.compress((tmp_path / "t.em").read_bytes()))
    (tmp_path / "t.em").unlink()
    (row,) = list_dataset(tmp_path).rows
    assert row.shape == SHAPE
    assert [path.name for path in tmp_path.iterdir()] == ["t.em.bz2"]


def test_no_chunk_is_looked_for(tmp_path, monkeypatch):
    import deepict_dask.io.volumes as volumes

    def refuse(*_):
        raise AssertionError("chunks were counted")

    zarr(tmp_path / "t.zarr")
    monkeypatch.setattr(volumes, "count_missing_chunks", refuse)
    assert list_dataset(tmp_path).rows[0].shape == SHAPE


def test_the_volumes_of_2000_tomograms_are_never_read(tmp_path):
    """Each file has 4 GB of voxels, all in a hole: reading 8 TB would end at the time limit."""
    source = mrc(tmp_path / "first.mrc", shape=(1, 1, 1)).read_bytes()[:1024]
    header = np.frombuffer(source, "<i4").copy()
    header[:3] = header[7:10] = 1600
    (tmp_path / "first.mrc").unlink()
    for number in range(2000):
        with (tmp_path / f"TS_{number}.mrc").open("wb") as file:
            file.write(header.tobytes())
            file.truncate(1024 + 1600**3)
    report = list_dataset(tmp_path)
    assert {row.shape for row in report.rows} == {(1600,) * 3}
    assert len(report.rows) == 2000


def test_what_a_run_leaves_out_is_logged(tmp_path, caplog):
    mrc(tmp_path / "a.mrc")
    mrc(tmp_path / "a_tilts.st")
    with caplog.at_level(logging.WARNING):
        assert [entry.name for entry in list_tomograms(tmp_path)] == ["a"]
    assert "tilt series" in caplog.text


# ---------------------------------------------------------------- in a run


def test_a_run_takes_the_spacing_of_the_star(two_workers, golden, tmp_path):
    """Å in picks.star are voxels from the middle times 14, not times the header's 1."""
    import pandas as pd
    import starfile

    from deepict_dask.config import load_run_config
    from deepict_dask.jobs.session import Session
    from deepict_dask.pipeline import run_pipeline
    from deepict_dask.plan import plan_run

    tomo = mrcfile.read(golden / "deepict/inputs/tomo.mrc.gz")[:72, 20:116, 10:106]
    mrc(tmp_path / "Tomograms/job1/rec.mrc")
    mrcfile.write(tmp_path / "Tomograms/job1/rec.mrc", tomo, voxel_size=1.0, overwrite=True)
    star(
        tmp_path / "Tomograms/job1/tomograms.star",
        [("TS_1", 1.75, 8, "Tomograms/job1/rec.mrc")],
        RELION,
    )
    touch(
        tmp_path / "run.yaml",
        "tomograms: Tomograms/job1/tomograms.star\noutput: results\nchunks: [40, 48, 48]\n"
        f"segment: [{{model: {golden}/deepict/models/blob_D2_IF4_BN.pth}}]\n"
        "pick: [{class: blob, threshold: 0.5, min_size: 50}]\n",
    )
    config = load_run_config(tmp_path / "run.yaml")
    assert any("of 14 Å" in line for line in plan_run(config, workers=1, memory="4GiB"))
    assert run_pipeline(Session(two_workers), config).failed == []
    folder = tmp_path / "results" / "TS_1" / "picks_blob"
    voxels = pd.read_csv(folder / "picks.csv")["x"]
    blocks = starfile.read(folder / "picks.star", always_dict=True)
    angstrom = blocks["particles"]["rlnCenteredCoordinateXAngst"]
    assert len(voxels) > 3
    np.testing.assert_allclose(
        sorted((voxels - tomo.shape[2] / 2) * 14.0), sorted(angstrom), atol=0.02
    )


def test_a_run_finds_the_masks_of_a_deposit_by_their_label(empiar, tmp_path):
    from deepict_dask.config import load_run_config

    touch(
        tmp_path / "run.yaml",
        "tomograms: ./10988\noutput: results\nregions: [{name: membrane, column: membranes}]\n"
        "segment: [{model: m.pth}]\npick: [{class: blob, region: membrane}]\n",
    )
    config = load_run_config(tmp_path / "run.yaml")
    column = config.regions[0].column
    found = {e.name: e.file_of(column) for e in list_tomograms(config.tomograms)}
    assert found["VPP_TS_01"] == empiar / "VPP" / "labels" / "TS_01_membranes.mrc"
    assert None not in found.values()


@pytest.mark.parametrize("source", ["10988/DEF", "t.csv", "10988/DEF/tomograms"])
def test_a_region_of_a_column_that_the_source_lacks_is_refused(empiar, source):
    from deepict_dask.config import RunConfig
    from deepict_dask.run_outputs import check_config

    touch(empiar.parent / "t.csv", "name,tomogram,membranes\na,a.mrc,\n")
    entries = list_tomograms(empiar.parent / source)
    for column in ("membrane", "membranes"):
        region = {"name": "membrane", "column": column}
        config = RunConfig(
            tomograms=source, output=empiar / "out", regions=(region,),
            segment=({"model": "demo_ribosome_fas"},),
        )  # fmt: skip
        if column == "membranes" and not source.endswith("tomograms"):
            check_config(config, entries)
        else:
            with pytest.raises(ConfigError, match=f"expected one of .*, found {column};"):
                check_config(config, entries)


def test_one_volume_with_the_config_of_a_table_is_run_without_its_mask_aloud(tmp_path, caplog):
    from deepict_dask.config import RunConfig
    from deepict_dask.run_outputs import check_config

    config = RunConfig(
        tomograms="a.mrc", output=tmp_path / "out", segment=({"model": "demo_ribosome_fas"},),
        regions=({"name": "lamella", "column": "lamella_file"},),
    )  # fmt: skip
    check_config(config, list_tomograms(mrc(tmp_path / "a.mrc")))
    assert "has no lamella_file" in caplog.text


@pytest.mark.usefixtures("copick")
def test_a_choice_passes_through_the_config_of_a_run(tmp_path):
    from deepict_dask.config import load_run_config

    touch(
        tmp_path / "run.yaml",
        "tomograms: project#10.000/wbp\noutput: results\nsegment: [{model: m.pth}]\n",
    )
    config = load_run_config(tmp_path / "run.yaml")
    assert [entry.name for entry in list_tomograms(config.tomograms)] == ["TS_1", "TS_2"]
