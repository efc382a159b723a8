"""What is shown of a source of tomograms, and how a run takes it."""

from __future__ import annotations

import bz2
import gzip
import json
import logging

import mrcfile
import numpy as np
import pytest
from source_scenes import RELION, SHAPE, make_copick, make_empiar, mrc, run, star, touch, zarr

from deepict_dask.core.errors import ConfigError
from deepict_dask.io.dataset import list_tomograms
from deepict_dask.jobs.list_dataset import dataset_lines, list_dataset


@pytest.fixture
def empiar(tmp_path):
    return make_empiar(tmp_path)


@pytest.fixture
def copick(tmp_path):
    return make_copick(tmp_path)


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
    assert set(first["picks"]) == {"ann_2_ribosome", "bob_1_ribosome"}
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


def write_run(folder, source):
    return touch(
        folder / "run.yaml", f"tomograms: {source}\noutput: 7\nsegment: [{{model: m.pth}}]\n"
    )


@pytest.mark.usefixtures("empiar")
def test_a_number_in_yaml_is_the_folder_of_that_name(tmp_path):
    from deepict_dask.config import load_run_config

    config = load_run_config(write_run(tmp_path, "10988"))
    found = [entry.name for entry in list_tomograms(config.tomograms)]
    assert found == ["DEF_TS_001", "DEF_TS_01", "VPP_TS_001", "VPP_TS_01"]
    assert config.output == tmp_path / "7"


@pytest.mark.parametrize("name", ["2024_05", "010"])
def test_a_name_that_yaml_takes_for_another_number_stays_as_it_is_written(tmp_path, name):
    from deepict_dask.config import load_run_config

    assert load_run_config(write_run(tmp_path, name)).tomograms == tmp_path / name
    table = touch(tmp_path / "t.yaml", f"- {{name: {name}, tomogram: a.mrc}}\n")
    assert [entry.name for entry in list_tomograms(table)] == [name]


@pytest.mark.parametrize("source", ["10988", "EMPIAR-10988"])
def test_a_deposit_that_is_not_here_is_refused_with_how_to_fetch_it(tmp_path, source):
    from deepict_dask.config import load_run_config

    config = load_run_config(write_run(tmp_path, source))
    with pytest.raises(ConfigError) as refused:
        list_tomograms(config.tomograms)
    assert f"{tmp_path / source}: found nothing of that name" in str(refused.value)
    assert "fetch it with `deepict-dask fetch EMPIAR-10988 DEST`" in str(refused.value)


@pytest.mark.parametrize("source", ["true", "[a.mrc]", "1.5"])
def test_what_can_be_no_source_is_refused_by_its_key(tmp_path, source):
    from deepict_dask.config import load_run_config

    with pytest.raises(ConfigError, match=r"run\.yaml: tomograms: "):
        load_run_config(write_run(tmp_path, source))
