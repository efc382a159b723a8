"""What `view` makes of a run: valid OME-Zarr with coloured labels, points where the picks are."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import zarr
from report_scenes import (
    CENTRES,
    SHAPE,
    SPACING,
    balls,
    volume,
    write_dataset,
    write_picks,
    write_volume,
)
from viewing_scenes import coarse, made, results, run_view

from deepict_dask.cli import viewing
from deepict_dask.core.errors import ConfigError, OutputExistsError
from deepict_dask.core.geometry import Box
from deepict_dask.core.volume import VolumeHeader
from deepict_dask.io import pyramid
from deepict_dask.io.ome_labels import label_colours
from deepict_dask.io.ome_zarr import open_ome_zarr
from deepict_dask.io.ome_zarr_write import create_ome_zarr
from deepict_dask.jobs.session import Session
from deepict_dask.viewing import export, export_scene, scenes_of

__all__ = ["coarse", "made", "results"]


def whole(path):
    reader = open_ome_zarr(path)[1]
    return reader.read(Box.whole(reader.header.shape)), reader.header


def test_image_and_labels_hold_the_voxels_of_the_run(made):
    array, header = whole(made.store)
    np.testing.assert_array_equal(array, volume())
    assert header.voxel_spacing_angstrom == SPACING
    mask, header = whole(made.store / "labels/picks_ribosome")
    np.testing.assert_array_equal(mask, balls())
    assert header.voxel_spacing_angstrom == SPACING
    region, _ = whole(made.store / "labels/region_cytosol")
    assert region.sum() == 30 * SHAPE[0] * SHAPE[1]
    assert made.notes == ()


def test_levels_of_labels_are_majorities_and_lie_on_those_of_the_image(made):
    for level in (1, 2):
        coarse, header = whole(made.store / f"labels/picks_ribosome/{level}")
        _, of_image = whole(made.store / str(level))
        assert header.shape == of_image.shape
        assert (
            header.origin_angstrom
            == of_image.origin_angstrom
            == (SPACING * (2**level - 1) / 2,) * 3
        )
        assert set(np.unique(coarse)) == {0, 1}
    fine = balls().astype("uint8")
    assert (
        pyramid.halve(fine, "majority").sum()
        == whole(made.store / "labels/picks_ribosome/1")[0].sum()
    )


def test_the_metadata_are_valid_to_ome_zarr_models(made):
    from ome_zarr_models.v05 import Image, ImageLabel, Labels

    image = Image.from_zarr(zarr.open_group(made.store, mode="r"))
    assert image.ome_attributes.multiscales[0].name == "TS_1"
    assert len(image.ome_attributes.multiscales[0].datasets) == 3
    labels = Labels.from_zarr(zarr.open_group(made.store / "labels", mode="r"))
    assert labels.ome_attributes.labels == ["region_cytosol", "picks_ribosome"]
    assert image.labels is not None
    for name in labels.ome_attributes.labels:
        label = ImageLabel.from_zarr(zarr.open_group(made.store / "labels" / name, mode="r"))
        (colour,) = label.ome_attributes.image_label.colors
        assert (colour.label_value, colour.rgba[3]) == (1, 255)


def test_ome_zarr_py_finds_the_image_its_levels_and_its_labels(made):
    """Where ome-zarr-py is installed; it does not go with the versions of constraints.txt."""
    pytest.importorskip("ome_zarr", reason="ome-zarr-py is not installed")
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    nodes = list(Reader(parse_url(made.store))())
    np.testing.assert_array_equal(np.asarray(nodes[0].data[0]), volume())
    assert [level.shape for level in nodes[0].data] == [SHAPE, (12, 20, 24), (6, 10, 12)]
    labels = {node.zarr.basename(): node for node in nodes[1:] if node.data}
    assert set(labels) == {"region_cytosol", "picks_ribosome"}
    np.testing.assert_array_equal(np.asarray(labels["picks_ribosome"].data[0]), balls())
    assert labels["picks_ribosome"].metadata["color"][1] == pytest.approx(
        [230 / 255, 159 / 255, 0, 1]
    )


def test_colours_are_those_of_the_report_and_named_by_class(made):
    found = label_colours(made.store / "labels/picks_ribosome")
    assert found == {1: ("ribosome", (0xE6, 0x9F, 0x00))}


def test_points_are_in_world_coordinates_with_their_scores(made):
    table = pd.read_csv(made.points["picks_ribosome"])
    assert list(table.columns[:4]) == ["index", "axis-0", "axis-1", "axis-2"]
    np.testing.assert_allclose(table[["axis-0", "axis-1", "axis-2"]], np.array(CENTRES) * SPACING)
    assert table["index"].tolist() == [0, 1, 2]
    assert table["score"].tolist() == pytest.approx([0.9, 0.8, 0.7])


def test_points_follow_the_origin_of_the_tomogram(tmp_path, two_workers):
    header = VolumeHeader(SHAPE, "float32", SPACING, (100.0, 0.0, -50.0))
    create_ome_zarr(tmp_path / "moved.zarr", header).write(Box.whole(SHAPE), volume())
    folder = write_picks(tmp_path / "picks_ribosome")
    (scene,) = scenes_of(folder, tomogram=tmp_path / "moved.zarr")
    made = export_scene(Session(two_workers), scene, tmp_path / "viewer")
    table = pd.read_csv(made.points["picks_ribosome"])
    expected = np.array(CENTRES) * SPACING + (100.0, 0.0, -50.0)
    np.testing.assert_allclose(table[["axis-0", "axis-1", "axis-2"]], expected)
    assert whole(made.store / "labels/picks_ribosome")[1].origin_angstrom == (100.0, 0.0, -50.0)


def test_a_list_without_picks_makes_no_file(tmp_path, two_workers):
    tomogram = write_volume(tmp_path / "tomogram.zarr", volume())
    folder = write_picks(tmp_path / "picks_ribosome", n=0)
    (scene,) = scenes_of(folder, tomogram=tomogram)
    made = export_scene(Session(two_workers), scene, tmp_path / "viewer")
    assert made.points == {}
    assert made.notes == ("picks_ribosome: has no picks",)
    assert [path.name for path in (tmp_path / "viewer").iterdir()] == ["picks_ribosome.zarr"]


def test_masks_of_any_numbers_and_label_maps_become_labels(tmp_path, results, two_workers):
    folder = results / "TS_1" / "picks_ribosome"
    objects = balls().astype("int64")
    objects[12:] *= 70_000
    write_volume(folder / "label_map.zarr", objects)
    mask = np.zeros(SHAPE, "float32")
    mask[:4] = 0.25
    record = json.loads((folder / "run.json").read_text())
    record["inputs"]["regions"]["slab"] = str(write_volume(tmp_path / "slab.zarr", mask))
    (folder / "run.json").write_text(json.dumps(record))
    (scene,) = scenes_of(results)
    made = export_scene(Session(two_workers), scene, tmp_path / "out")
    np.testing.assert_array_equal(whole(made.store / "labels/picks_ribosome_objects")[0], objects)
    np.testing.assert_array_equal(whole(made.store / "labels/region_slab")[0], mask > 0)
    assert label_colours(made.store / "labels/picks_ribosome_objects") == {}


def test_a_label_volume_of_a_model_has_a_colour_for_each_class(results, two_workers, tmp_path):
    labels = np.random.default_rng(0).integers(0, 3, SHAPE).astype("uint8")
    path = write_volume(results / "TS_1" / "labels_net.zarr", labels)
    folder = results / "TS_1" / "picks_ribosome"
    record = json.loads((folder / "run.json").read_text())
    record["inputs"]["score"] = str(path)
    record["request"]["settings"]["class_names"] = ["background", "ribosome", "fas"]
    (folder / "run.json").write_text(json.dumps(record))
    (scene,) = scenes_of(results)
    made = export_scene(Session(two_workers), scene, tmp_path / "out")
    np.testing.assert_array_equal(whole(made.store / "labels/labels_net")[0], labels)
    found = label_colours(made.store / "labels/labels_net")
    assert {value: name for value, (name, _) in found.items()} == {1: "ribosome", 2: "fas"}
    assert len({rgb for _, rgb in found.values()}) == 2


def test_a_layer_of_another_shape_or_damaged_is_named_and_left_out(results, two_workers, tmp_path):
    write_volume(results / "TS_1" / "region_small.zarr", np.ones((4, 4, 4), "uint8"))
    (results / "TS_1" / "region_broken.zarr").mkdir()
    (scene,) = scenes_of(results)
    made = export_scene(Session(two_workers), scene, tmp_path / "out")
    broken, small = sorted(made.notes)
    assert broken.startswith("region_broken: not shown")
    assert "region_small: not shown" in small
    assert "found (4, 4, 4)" in small
    assert {p.name for p in (made.store / "labels").iterdir() if p.is_dir()} == {
        "region_cytosol", "picks_ribosome"
    }  # fmt: skip


def test_an_export_is_kept_until_its_results_change(made, results, two_workers):
    session = Session(two_workers, chunks=(16, 16, 16))
    before = (made.store / "zarr.json").stat().st_mtime_ns
    (scene,) = scenes_of(results)
    export_scene(session, scene, results / "viewer")
    assert (made.store / "zarr.json").stat().st_mtime_ns == before
    mask = np.zeros(SHAPE, "uint8")
    path = results / "TS_1/picks_ribosome/segmentation.zarr"
    open_ome_zarr(path)
    array = zarr.open_array(path / "0", mode="r+")
    array[:] = mask
    # Empty chunks are left out by this writer; ours would have written them.
    array.with_config({"write_empty_chunks": True})[:] = mask
    again = export_scene(session, scene, results / "viewer")
    assert not whole(again.store / "labels/picks_ribosome")[0].any()


def test_a_store_of_somebody_else_is_not_replaced(results, two_workers):
    other = write_volume(results / "viewer/TS_1.zarr", np.ones((3, 3, 3), "uint8"))
    (scene,) = scenes_of(results)
    with pytest.raises(OutputExistsError):
        export_scene(Session(two_workers), scene, results / "viewer")
    assert whole(other)[0].sum() == 27


def test_an_export_that_was_killed_goes_on(results, two_workers, monkeypatch, tmp_path):
    session = Session(two_workers, chunks=(16, 16, 16))
    (scene,) = scenes_of(results)
    real, done = export.map_chunks, []

    def killed_in_the_second_layer(workers, op, sources, sink, grid, **kwargs):
        done.append((op.name, len(list(kwargs["ledger"].unfinished()))))
        if len(done) == 3:
            raise KeyboardInterrupt
        real(workers, op, sources, sink, grid, **kwargs)

    monkeypatch.setattr(export, "map_chunks", killed_in_the_second_layer)
    with pytest.raises(KeyboardInterrupt):
        export_scene(session, scene, tmp_path)
    assert not (tmp_path / "TS_1.zarr").exists()
    made = export_scene(session, scene, tmp_path)
    region, picks = "labels region_cytosol", "labels picks_ribosome"
    assert done == [("copy", 18), (region, 18), (picks, 18), ("copy", 0), (region, 0), (picks, 18)]
    np.testing.assert_array_equal(whole(made.store / "labels/picks_ribosome")[0], balls())


def test_the_command_exports_every_tomogram_that_can_be_shown(tmp_path):
    output = write_dataset(tmp_path, ["TS_1", "TS_2", "TS_3"])
    result = run_view(output, "--export-only", "--export", tmp_path / "out", "--workers", 1)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "TS_1.picks_ribosome.points.csv", "TS_1.zarr"
    ]  # fmt: skip


def test_what_cannot_be_shown_is_refused(tmp_path, results):
    with pytest.raises(ConfigError, match="--only: expected one of TS_1, found TS_9"):
        scenes_of(results, only="TS_9")
    folder = write_picks(tmp_path / "alone")
    (folder / "segmentation.zarr").rename(tmp_path / "gone.zarr")
    with pytest.raises(ConfigError, match="give the tomogram with --tomogram"):
        scenes_of(folder)


def test_the_command_has_its_place_in_the_program():
    assert viewing.view.__doc__
    assert "--export-only" in run_view("--help").output
