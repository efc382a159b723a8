"""Which tomograms a source names: volumes, folders, patterns and tables."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from source_scenes import by_name, mrc, names, touch, zarr

from deepict_dask.core.errors import ConfigError
from deepict_dask.io.dataset import read_dataset
from deepict_dask.io.datasets import walk

# ---------------------------------------------------------------- volumes, folders, patterns


def test_a_volume_is_one_tomogram_called_by_its_name(tmp_path):
    assert names(mrc(tmp_path / "TS_001.rec")) == ["TS_001"]
    assert names(mrc(tmp_path / "TS_1_10.00Apx.mrc")) == ["TS_1"]  # Warp's


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


def test_a_folder_that_may_not_be_entered_is_skipped_and_named(tmp_path, monkeypatch):
    touch(tmp_path / "a.mrc", "")
    (tmp_path / "closed").mkdir()

    def refuses(path):  # as for everybody but root, who runs the tests
        if path.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return False

    monkeypatch.setattr(walk, "is_zarr", refuses)
    skipped = walk.Skipped()
    assert [path.name for path in walk.walk_volumes(tmp_path, skipped)] == ["a.mrc"]
    assert skipped.warnings() == [
        f"skipped: 1 folders that may not be read (such as {tmp_path / 'closed'})"
    ]


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
        ("t.yaml", "- name: 1\n  tomogram: a.mrc\n", "row 1: name: expected text, found 1"),
        ("t.yaml", "- [a\n", "expected a table"),
        ("t.yaml", "", "found nothing"),
    ],
)
def test_a_broken_table_is_refused_by_what_is_wrong(tmp_path, name, text, message):
    with pytest.raises(ConfigError, match=message):
        names(touch(tmp_path / name, text))
