"""What is read from DeePiCt's own configs and tables, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from project_scenes import (
    CASES,
    DROP,
    POST,
    blob,
    case_config,
    changed,
    flat,
    folder,
    place,
    unpacked,
    write,
)

from deepict_dask.core.errors import ConfigError, DeepictError
from deepict_dask.deepict_project import is_deepict_config, plan_deepict, read_project

__all__ = ["blob", "flat", "folder", "unpacked"]

BAD_CONFIGS = [
    (
        {"prediction__semantic_class": "ribo"},
        r"semantic_class: expected one of .*\(blob\), found ribo",
    ),
    ({"prediction__semantic_class": DROP}, r"prediction\.semantic_class: is required"),
    ({"dataset_table": "nowhere.csv"}, r"expected the table nowhere\.csv, found no "),
    ({"model_path": "models/none.pth"}, r"model_path: .*none\.pth"),
    ({"training__processing_tomo": "eq_tomo"}, r"expected the column eq_tomo .*found tomo_name"),
    ({f"{POST}__region_mask": "lamela"}, r"expected the column lamela "),
    ({"tomos_sets__prediction_list": ["TS_9"]}, r"one row with the tomo_name TS_9 .*found none"),
    ({"tomos_sets__prediction_list": ["../up"]}, r"expected a name for folders .*found \.\./up"),
    ({"model_path": "organelle.h5"}, r"expected DeePiCt's 3D network, found one of kind unet2d"),
    ({"tomos_sets__prediction_list": [1]}, r"tomo_name 1 .*write '001'"),
    ({"tomos_sets__prediction_list": "golden"}, r"expected a list of names, found 'golden'"),
    ({"tomos_sets__prediction_list": []}, r"prediction_list: expected a tomogram, found none"),
    ({"prediction__active": False}, r"nothing is active"),
    ({"prediction__active": "yes please"}, r"prediction\.active: expected True or False"),
    ({"prediction__active": False, "training__active": True}, r"only training is asked for"),
    (
        {f"{POST}__active": True, f"{POST}__max_cluster_size": 50},
        r"max_cluster_size: expected more",
    ),
    ({f"{POST}__clustering_connectivity": 26}, r"expected 1, 2 or 3 .* found 26"),
    ({f"{POST}__clustering_connectivity": [3]}, r"expected 1, 2 or 3 .* found \[3\]"),
    ({f"{POST}__ignore_border_thickness": [1, 2]}, r"three \[x, y, z\], found \[1, 2\]"),
    ({f"{POST}__contact_mode": "touch"}, r"expected one of intersection, contact, colocalization"),
    (
        {f"{POST}__treshold": 0.4, f"{POST}__threshold": DROP},
        r"treshold: unknown key; did you mean",
    ),
    ({"box_size": 64, "training__box_size": DROP}, r"box_size: unknown key; did you mean training"),
    ({"training__box_size": 20}, r"box_size: expected more than twice training\.overlap"),
    ({"training__box_size": 62}, r"box_size: expected a multiple of 4"),
    (
        {"training__box_shape": 64, "training__box_size": DROP},
        r"box_shape: an obsolete key, called",
    ),
    (
        {"model_name": "m.pkl", "model_path": DROP},
        r"model_name: an obsolete key, called model_path",
    ),
    (
        {f"{POST}__active": True, "evaluation__particle_picking__active": True},
        r"calculate_motl is False",
    ),
]


def test_a_misspelt_section_is_named_and_not_all_of_its_keys(blob):
    values = {("predction" if k == "prediction" else k): v for k, v in blob.items()}
    values[POST]["active"] = True
    with pytest.raises(
        ConfigError, match=r"predction: unknown section; did you mean prediction\?$"
    ):
        read_project(write(values))


@pytest.mark.parametrize(("updates", "message"), BAD_CONFIGS)
def test_a_bad_config_is_refused_with_one_message(golden, blob, updates, message):
    Path("organelle.h5").symlink_to(golden / "deepict/twod/model2d_nf2.h5")
    with pytest.raises(DeepictError, match=message) as caught:
        read_project(write(changed(blob, **updates)))
    assert caught.value.exit_code == 2
    assert not Path("out").exists()


def test_missing_files_are_named_with_row_and_column(blob):
    Path("metadata.csv").write_text("tomo_name,tomo,lamella_file\ngolden,gone.mrc,lost.mrc\n")
    with pytest.raises(ConfigError, match=r"row golden, column tomo: .*gone\.mrc.*lamella_file"):
        read_project(write(blob))


def test_an_empty_cell_of_the_tomogram_is_refused(blob):
    Path("metadata.csv").write_text("tomo_name,tomo,lamella_file\ngolden,nan,\n")
    with pytest.raises(ConfigError, match="column tomo: expected a file, found an empty cell"):
        read_project(write(blob))


def test_what_differs_from_the_checkpoint_is_a_warning_and_the_rest_a_note(blob):
    values = changed(
        blob, training__unet_hyperparameters__depth=3, training__box_size=48,
        training__BatchNorm=True, somebody="me", cross_validation__active=True,
        training__semantic_classes=["a", "blob"],
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"the model has 1 classes \(blob\), found 2"):
        read_project(write(values))
    found = read_project(write(changed(values, training__semantic_classes=["blob"]))).findings
    assert found.errors == []
    for start in ("training.BatchNorm: an obsolete key", "somebody: unknown key",
                  "cross_validation.active: ignored", "training.unet_hyperparameters.depth: the",
                  "training.box_size: the model was trained with 64"):  # fmt: skip
        assert sum(text.startswith(start) for text in found.warnings) == 1, start
    assert len(found.warnings) == 5


def test_a_plain_config_gives_no_warning_and_one_line_of_idle_keys(blob):
    found = read_project(write(blob)).findings
    assert found.warnings == []
    (note,) = found.notes
    assert note.startswith("without effect here: cluster.logdir")


def test_missing_settings_take_the_documented_defaults_and_are_named(blob):
    values = changed(blob, **{POST: {"active": True}})
    del values["evaluation"], values["debug"]
    project = read_project(write(values))
    pick = project.pick_settings(with_region=False)
    assert (pick.threshold, pick.min_size, pick.connectivity, pick.border) == (
        0.5, 100, 26, (10, 20, 10),
    )  # fmt: skip
    (note,) = [text for text in project.findings.notes if "default" in text]
    assert "clustering_connectivity 3" in note


def test_a_config_runs_from_another_folder_where_its_table_lies_beside_it(
    folder, blob, tmp_path_factory, monkeypatch
):
    path = write(blob).absolute()
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert read_project(path).tomograms[0].path == folder / "inputs/tomo.mrc"


def test_the_plan_names_every_file_and_makes_none(golden, blob):
    values = case_config(golden, blob, CASES[0], prediction__active=True)
    plan = "\n".join(plan_deepict(write(values)))
    for name in ("probability_map.mrc", "post_processed_prediction.mrc and motl_<N>.csv"):
        assert str(place("golden") / name) in plan
    assert not Path("out").exists()


def test_our_own_config_is_not_taken_for_one_of_deepict():
    assert is_deepict_config({"tomograms": "t.mrc", "output": "out", "segment": []}) is None
    assert is_deepict_config({"postprocessing": {"sigma": 5}}) == "2d"


@pytest.mark.parametrize(
    ("updates", "message"),
    [
        ({"data": {}}, r"data\.prediction_data: is required.*data\.output_dir: is required"),
        ({"prediction__model": None}, r"prediction\.model: is required"),
        ({"prediction__model": "models/blob_D2_IF4_BN.pth"}, r"expected a 2D network"),
        ({"prediction__crop": 48}, r"prediction\.crop: expected less than half"),
        ({"prediction__patch_dim": 5}, r"expected two whole numbers \[rows, columns\], found 5"),
        ({"postprocessing__sigma": -1}, r"postprocessing\.sigma: expected 0 or more, found -1"),
        (
            {"prediction__active": False, "postprocessing__active": False},
            r"nothing that can be done",
        ),
        ({"prediction__modle": "m.h5", "prediction__model": DROP}, r"prediction\.modle: unknown"),
    ],
)
def test_a_bad_2d_config_is_refused_with_one_message(flat, updates, message):
    with pytest.raises(ConfigError, match=message):
        read_project(write(changed(flat, **updates)))


def test_a_2d_config_without_sections_takes_the_defaults_and_says_which(flat):
    values = {"data": flat["data"], "prediction": {"model": "organelle.h5"}}
    project = read_project(write(values))
    assert (project.filtering, project.predict, project.polish) == (False, True, False)
    tiling = project.segment_settings.tiling
    assert (tiling.tile, tiling.tiles, tiling.crop, tiling.z_cutoff) == ((288, 288), (5, 5), 0, 0)
    assert any("prediction.patch_size [288, 288]" in text for text in project.findings.notes)


def test_two_tomograms_of_one_prefix_are_refused(flat):
    Path("prediction.csv").write_text("data\ninputs/tomo.mrc\n./inputs/tomo.mrc\n")
    with pytest.raises(ConfigError, match="row 2: expected another id, found tomo once more"):
        read_project(write(flat))
